"""One run at a time in a home.

Does not know what a run does, or its row.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from strop.proxy.store import file_lock

LOCK_FILE: Final = "lock"
PROBE: Final = "the probe of an import"
"""What holds the lock instead of a run while an imported adapter's probe is made."""
DELETION: Final = "a deletion of answers"
"""What holds it for a moment where no run is unfinished, while the folders of runs are cleaned."""


class AlreadyRunning(Exception):
    """Another process trains in this home; `run` is what it works on."""

    def __init__(self, run: str) -> None:
        super().__init__(
            f"{run or 'another run'} is under way in this home already; one goes at a time: wait"
            " for it, or cancel it"
        )
        self.run = run


@contextlib.contextmanager
def hold(folder: Path, run: str) -> Iterator[None]:
    """Hold `folder`, that of all runs, for the run with the id `run`.

    Raises:
        AlreadyRunning: another process holds it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock.hold(folder / LOCK_FILE, run.encode()))
        except file_lock.Held as held:
            raise AlreadyRunning(held.said.decode()) from None
        yield


def is_held(folder: Path) -> bool:
    """Whether a process trains in the home of this folder of all runs."""
    return file_lock.said_by_holder(folder / LOCK_FILE) is not None
