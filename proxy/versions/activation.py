"""An activation as values: who wants it, where it is, what came of it, and where a version is.

Does nothing: `swapping` does.
"""

from dataclasses import dataclass

from strop.adapters.probe import Judgement
from strop.adapters.swap import Step
from strop.proxy.store.version_records import Activating


@dataclass(frozen=True, slots=True)
class Switched:
    """An activation that is done: how long each step took, and how long requests were held.

    `stale` says why the version is stale, if it is.
    """

    version: str
    previous: str
    timings_ms: dict[str, float]
    probe: Judgement | None
    pause_ms: float = 0.0
    stale: str | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """Who wants a version active, how, and why; `reason` is empty where nobody said."""

    actor: str
    force: bool
    kind: Activating
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an activation under way is, since when in Unix time."""

    version: str
    step: Step
    since_ms: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """Where a version is loaded, and how many requests hold it."""

    engine: str
    since_ms: int
    leases: int
    is_draining: bool
