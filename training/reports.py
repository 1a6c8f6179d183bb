"""Where a run's progress goes besides the store: a log of JSON lines, the terminal, TensorBoard.

Doesn't decide what is reported. Close it, so that TensorBoard has all of it.
"""

import contextlib
import importlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TextIO

from strop.proxy.store import run_folder
from strop.training.progress import Progress, line

# TensorBoard's own writer comes with torch but needs the `tensorboard` package.
_WRITERS: Final = (
    ("tensorboard", "torch", "torch.utils.tensorboard"),
    ("tensorboardX", "tensorboardX", "tensorboardX"),
)


class Reports:
    """One run's reports.

    Args:
        folder: of the run; `log.jsonl` grows there, also over a resume.
        terminal: where a person watches; anything that is not a terminal gets nothing.
    """

    def __init__(self, folder: Path, terminal: TextIO) -> None:
        self._log = os.open(
            folder / run_folder.LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        self._terminal = terminal if terminal.isatty() else None
        self._board = _tensorboard(folder / "tensorboard")
        self._width = 0

    def event(self, name: str, /, **facts: object) -> None:
        """Write one line to the log."""
        entry = {"time_ms": time.time_ns() // 1_000_000, "event": name, **facts}
        # A full disk must not end a run here: what has to be written says so itself.
        with contextlib.suppress(OSError):
            os.write(self._log, json.dumps(entry, default=str).encode() + b"\n")

    def progress(self, now: Progress) -> None:
        """Show where the run is."""
        self._rewrite(line(now, shutil.get_terminal_size().columns - 1))

    def step(self, num: int, metrics: Mapping[str, float]) -> None:
        """Take down the metrics of an optimizer step."""
        self.event("step", step=num, **metrics)
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, num)

    def say(self, text: str) -> None:
        """Leave a line on the terminal, below the progress."""
        self._rewrite(text)
        self._write("\n")
        self._width = 0

    def close(self) -> None:
        """Finish the log and TensorBoard's files."""
        os.close(self._log)
        if self._board is not None:
            self._board.close()
        if self._width:
            self._write("\n")

    def _rewrite(self, text: str) -> None:
        self._write("\r" + text.ljust(self._width))
        self._width = len(text)

    def _write(self, text: str) -> None:
        if self._terminal is not None:
            try:
                self._terminal.write(text)
                self._terminal.flush()
            except OSError:
                # It was closed: nobody watches any more.
                self._terminal = None


def _tensorboard(folder: Path) -> Any:
    """Return a SummaryWriter, or None where none is installed."""
    for needed, also, module in _WRITERS:
        if find_spec(needed) is not None and find_spec(also) is not None:
            return importlib.import_module(module).SummaryWriter(str(folder))
    return None
