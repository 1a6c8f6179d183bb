"""Freed memory goes back to the system, wherever in the heap it lies."""

import os
import platform
from pathlib import Path

import pytest

from strop.proxy import heap

NUM_PIECES = 20_000
# Too long for Python's own allocator.
PIECE_BYTES = 2_000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do it themselves")
def test_what_is_free_between_what_is_in_use_goes_back() -> None:
    """The C library alone keeps it, for whoever asks next."""
    pieces = [bytes(PIECE_BYTES) for _ in range(NUM_PIECES)]
    in_use = pieces[::100]
    del pieces
    before = resident_bytes()

    has_given_back = heap.trim()

    assert has_given_back
    assert before - resident_bytes() > NUM_PIECES * PIECE_BYTES / 2
    assert NUM_PIECES // 100 == len(in_use)
