"""A wall clock that jumps. Other clocks go on as they do."""

import time
from typing import Any

import pytest

HOUR_NS = 3_600 * 1_000_000_000


class Clock:
    """The wall clock, ahead of or behind itself by `offset_ns`."""

    def __init__(self, now_ns: Any) -> None:
        self.offset_ns = 0
        self._now_ns = now_ns

    def __call__(self) -> int:
        """Return what the clock shows."""
        return int(self._now_ns() + self.offset_ns)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that ids and times of creation are taken from."""
    clock = Clock(time.time_ns)
    monkeypatch.setattr(time, "time_ns", clock)
    return clock
