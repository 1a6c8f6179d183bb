"""The cores that processes may use, and keeping them to some. Linux alone can do the latter."""

import os

NEEDED = "this needs Linux: it keeps processes to cores of their own, and reads /proc"


def can_be_chosen() -> bool:
    """Return whether a process can be kept to some cores here."""
    return hasattr(os, "sched_setaffinity")


def allowed() -> set[int]:
    """Return the cores that this process may use."""
    if can_be_chosen():
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def keep_to(cores: set[int]) -> None:
    """Use these cores alone, as children will, where that can be chosen."""
    if can_be_chosen():
        os.sched_setaffinity(0, cores)
