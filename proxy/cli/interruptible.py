"""Ctrl-C at any time, while a program's modules are imported too: it ends without a traceback.

`python -m strop.proxy.cli.interruptible MODULE ...` runs a module so. Knows no command, and imports
nothing that takes time.
"""

import contextlib
import runpy
import sys
from collections.abc import Iterator
from typing import Final

INTERRUPTED: Final = 130
"""The exit status after Ctrl-C, as a shell has it of who was ended by it."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """End the process without a word where Ctrl-C comes."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    with interruptible():
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
