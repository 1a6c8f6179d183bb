"""What every target is: a name, a way to start, and what runs then.

Knows no target.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.processes import Child


@dataclass(frozen=True, slots=True)
class Site:
    """Where a target is to run: its engine's port, a folder of its own, the cores it may use."""

    upstream_port: int
    folder: Path
    cores: frozenset[int]


@dataclass(frozen=True, slots=True)
class Running:
    """A target that answers.

    Attributes:
        target: its name.
        json_port: where JSON requests go.
        stream_port: where requests for streams go.
        child: its process; None where there is none.
        home: strop's home; None for others.
        records: whether a row is owed for each answer.
    """

    target: str
    json_port: int
    stream_port: int
    child: Child | None = None
    home: Path | None = None
    records: bool = False

    def stop(self) -> None:
        """End its process."""
        if self.child is not None:
            self.child.stop()


class Target(Protocol):
    """Something to measure."""

    @property
    def name(self) -> str:
        """Its name in tables and on the command line."""

    def missing(self) -> str | None:
        """Return what is not installed, and how to get it; None if it can start."""

    def version(self) -> str:
        """Return its version."""

    def start(self, site: Site) -> Running:
        """Start it, and return once it answers; raises StartError."""
