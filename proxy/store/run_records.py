"""Training runs and what they learn from, as the store keeps them: plain values, never rows.

Knows nothing of models, losses or SQL.
"""

from dataclasses import dataclass
from typing import Final, Literal

from strop.proxy.store.records import Feedback, StoredCompletion

RunState = Literal["queued", "running", "gating", "passed", "rejected", "failed", "cancelled"]

UNFINISHED: Final[tuple[RunState, ...]] = ("queued", "running", "gating")

COMPARING: Final = ("topr", "mispo", "reinforce", "kto")
"""The objectives that can't tell a better answer from a worse one without some of both."""


@dataclass(frozen=True, slots=True)
class Run:
    """A training run. JSON members are objects, `reasons` an array of strings.

    Attributes:
        parent: the version that it continues; None for the base.
        version: what it made, once that is reserved.
        counts: examples by kind, and what was left out, by reason.
        metrics: of the last step, and the gate's at the end.
        reasons: the verdict's reasons, or why it failed.
        config: every setting in force: objective, preset, backend, device, lr, ...
        is_cancelling: somebody asked it to stop.
    """

    id: str
    created_ms: int
    state: RunState
    objective: str
    preset: str
    parent: str | None
    base: str
    requested_by: str
    started_ms: int | None = None
    finished_ms: int | None = None
    version: str | None = None
    step: int = 0
    num_steps: int = 0
    eta_s: float | None = None
    counts: bytes = b"{}"
    metrics: bytes = b"{}"
    reasons: bytes = b"[]"
    config: bytes = b"{}"
    is_cancelling: bool = False


@dataclass(frozen=True, slots=True)
class RunUpdate:
    """What to change in a run; None leaves a member as it is."""

    state: RunState | None = None
    num_steps: int | None = None
    counts: bytes | None = None
    metrics: bytes | None = None
    reasons: bytes | None = None
    config: bytes | None = None


@dataclass(frozen=True, slots=True)
class RunStep:
    """The metrics of one optimizer step, a JSON object of numbers."""

    step: int
    metrics: bytes


@dataclass(frozen=True, slots=True)
class RatedTurn:
    """All standing feedback on one choice, and the completions that it credits, oldest first.

    Where a feedback's scope is `turn`, those are all from the last user message to the rated one,
    along the parents; else the rated one alone. All are of one base. Of those before the rated one,
    only the complete ones are here. `choices` says which choice of each completion is meant.
    `root` is the id of the session's first completion.
    """

    feedback: tuple[Feedback, ...]
    completions: tuple[StoredCompletion, ...]
    choices: tuple[int, ...]
    root: str


@dataclass(frozen=True, slots=True)
class Prior:
    """All rated answers of a base, learned from or not, none held out.

    Attributes:
        total: the sum of their ratings, each the mean of what stands on it.
        num_answers: how many they are.
        num_ratings: how many ratings stand on them.
    """

    total: float
    num_answers: int
    num_ratings: int


@dataclass(frozen=True, slots=True)
class FreshCounts:
    """How many answers have standing ratings that no version in a lineage has learned from.

    None held out. An answer is `good` if the mean of its ratings is above 0, `bad` if below;
    `corrections` have one, whatever the rating beside it. `newest_ms` is when the newest rating
    came, or was revised; None where there is none.
    """

    good: int
    bad: int
    corrections: int
    total: int
    newest_ms: int | None
