"""What a run keeps in its folder, by name: the set it learns from, its newest state, its log.

Reads none of it.
"""

import shutil
from pathlib import Path
from typing import Final

SET_FILE: Final = "set.npz"
STATE_PREFIX: Final = "state-"
LOG_FILE: Final = "log.jsonl"


def states(folder: Path) -> list[Path]:
    """Return the whole states in a run's folder, the newest last."""
    return sorted(folder.glob(f"{STATE_PREFIX}*"))


def clean(folder: Path) -> None:
    """Delete what only a resumed run needs; the log stays."""
    (folder / SET_FILE).unlink(missing_ok=True)
    for path in folder.glob(f"*{STATE_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)
