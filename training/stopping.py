"""Whether a run is asked to stop: by a signal, by its row, or because its parent is gone.

Does not end anything: whoever computes asks `check` where it can stop.
"""

import threading


class Stopped(Exception):
    """Somebody asked the run to stop."""


class Stopping:
    """Set from any thread, asked by the one that computes."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def ask(self) -> None:
        """Ask the run to stop where it next can."""
        self._event.set()

    @property
    def is_asked(self) -> bool:
        """Whether it was asked to."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise Stopped if it was asked to."""
        if self.is_asked:
            raise Stopped
