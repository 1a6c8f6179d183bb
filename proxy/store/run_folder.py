"""What a run keeps in its folder, by name: the set it learns from, its newest state, its log.

Reads none of it. Here, since what is deleted from the store must not stay there either.
"""

import shutil
from pathlib import Path
from typing import Final

from strop.proxy.store import layout, run_lock

SET_FILE: Final = "set.npz"
STATE_PREFIX: Final = "state-"
LOG_FILE: Final = "log.jsonl"


def make(home: Path, run: str) -> Path:
    """Return a run's folder, made if missing."""
    folder = home / layout.RUNS / run
    # Not with parents=True: that gives the outer one the mode that the umask leaves.
    for one in (folder.parent, folder):
        one.mkdir(mode=0o700, exist_ok=True)
    return folder


def states(folder: Path) -> list[Path]:
    """Return the whole states in a run's folder, the newest last."""
    return sorted(folder.glob(f"{STATE_PREFIX}*"))


def clean(folder: Path) -> None:
    """Delete what only a resumed run needs; the log stays."""
    # The set may have been cut off while it was written, under another ending.
    for path in folder.glob(f"{Path(SET_FILE).stem}.*"):
        path.unlink(missing_ok=True)
    for path in folder.glob(f"*{STATE_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def clean_all(folder: Path, run: str | None) -> None:
    """Do so in `folder`, that of all runs; whoever would train meanwhile waits.

    Args:
        folder: the folder of all runs.
        run: the one that isn't over, if there is one; it begins anew when it goes on.

    Raises:
        AlreadyRunning: another process trains in this home.
    """
    if not folder.is_dir():
        return
    with run_lock.hold(folder, run or run_lock.DELETION):
        for one in folder.iterdir():
            if one.is_dir():
                clean(one)
