"""Whether a run is asked to stop: by a signal, by its row, by the end of its parent or a deletion.

Does not end anything: whoever computes asks `check` where it can stop.
"""

import threading


class Stopped(Exception):
    """Somebody asked the run to stop."""


class Stopping:
    """Set from any thread, asked by the one that computes."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._is_for_good = False

    def ask(self) -> None:
        """Ask the run to stop where it next can."""
        self._is_for_good = True
        self._event.set()

    def ask_to_begin_anew(self) -> None:
        """Ask it to stop and begin anew."""
        self._event.set()

    def begin_anew(self) -> bool:
        """Return whether that was all that was asked; if so, nothing is asked any more.

        Belongs to the thread that asks.
        """
        if self._is_for_good:
            return False
        self._event.clear()
        return True

    @property
    def is_asked(self) -> bool:
        """Whether it was asked to stop."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise Stopped if it was asked to."""
        if self.is_asked:
            raise Stopped
