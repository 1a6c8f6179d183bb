"""What a durable write costs on the disk at hand: the floor of any durable answer."""

import os
import time
from pathlib import Path
from statistics import median

_NUM_SAMPLES = 200
_PAGE = os.urandom(4096)


def fdatasync_ms(folder: Path) -> float:
    """Return the median time in ms to append 4 KB to a file in `folder` and make it durable."""
    probe = folder / "fdatasync.probe"
    taken = []
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for _ in range(_NUM_SAMPLES):
            start = time.perf_counter()
            os.write(descriptor, _PAGE)
            os.fdatasync(descriptor)
            taken.append(time.perf_counter() - start)
    finally:
        os.close(descriptor)
        probe.unlink()
    return median(taken) * 1000
