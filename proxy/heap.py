"""The memory that the C library keeps of what was freed, and giving it back.

Does not know what was allocated. By itself glibc gives back only the end of its heap; after many
answers at once, or a few long ones, most of what is free lies before things still in use. Elsewhere
than with glibc nothing is done.
"""

import ctypes
import sys
from collections.abc import Callable
from typing import Final


def _malloc_trim() -> Callable[[int], int]:
    if sys.platform != "linux":
        return lambda _num_bytes: 0
    # Absent from musl.
    found: Callable[[int], int] = getattr(ctypes.CDLL(None), "malloc_trim", lambda _num_bytes: 0)
    return found


_trim: Final = _malloc_trim()


def trim() -> bool:
    """Give back each free page; return whether there were any. Some 10 ms after 100 MB."""
    return bool(_trim(0))
