"""What the fault tests reached, counted, and printed at the end of a run.

Knows no fault. `conftest` takes the fixture from here, and calls what prints.
"""

import os
from collections.abc import Callable
from typing import Protocol

import pytest

SCALE = float(os.environ.get("FAULTS_SCALE", "1"))
"""How much larger than by default the fault tests are."""

_PREFIX = "reached:"


def scaled(number: int) -> int:
    """Return `number` times the scale that FAULTS_SCALE asks for."""
    return max(1, round(number * SCALE))


class Reached(Protocol):
    """Notes what a test did."""

    def __call__(self, **counts: float) -> None:
        """Note counts by their names."""


@pytest.fixture
def reached(record_property: Callable[[str, object], None]) -> Reached:
    """Notes what a test did: printed by itself, and in the run's summary."""

    def note(**counts: float) -> None:
        print(_line(counts))
        for name, count in counts.items():
            record_property(_PREFIX + name, count)

    return note


def say_what_was_reached(terminal: pytest.TerminalReporter) -> None:
    """Print what every fault test reached."""
    lines = []
    for report in terminal.getreports("passed") + terminal.getreports("failed"):
        found = [
            (name.removeprefix(_PREFIX), value)
            for name, value in getattr(report, "user_properties", ())
            if name.startswith(_PREFIX)
        ]
        if found and report.when == "call":
            lines.append(f"{report.nodeid.rpartition('::')[2]}: {_line(dict(found))}")
    if lines:
        terminal.section("faults: what was reached")
        for line in lines:
            terminal.write_line(line)


def _line(counts: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count:g}" for name, count in counts.items())
