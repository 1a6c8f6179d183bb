"""Files that outlast a power cut: on the disk before they have their name.

A rename may reach the disk before the bytes of what it renames; whoever finds the name after a
crash would take an empty file for a whole one. Knows nothing of what the files hold.
"""

import contextlib
import fcntl
import os
import sys
from pathlib import Path


def sync(path: Path) -> None:
    """Return once a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if sys.platform == "darwin":
            # There, fsync alone leaves what was written in the drive's own cache.
            with contextlib.suppress(OSError):  # not every file system can
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
                return
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(scratch: Path, target: Path) -> None:
    """Give a file, or a folder of files, its name, once its content is on the disk."""
    if scratch.is_dir():
        for path in scratch.iterdir():
            sync(path)
    sync(scratch)
    scratch.rename(target)
    sync(target.parent)
