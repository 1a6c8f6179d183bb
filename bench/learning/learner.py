"""What a learner is: fresh ratings and a parent version -> a child, or why there is none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from strop.proxy.store.run_records import Prior, RatedTurn

State = Literal["trained", "refused", "rejected"]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one run is given.

    Attributes:
        base: the base's folder.
        parent: the version to continue, or `base`.
        versions: the folder of each version so far.
        turns: fresh ratings.
        held_out: ratings that the gate compares on, and that nothing learns from.
        prior: how all was rated so far, held-out ones aside.
        folder: an empty one, for the child and the run's state.
        seed: of the run.
    """

    base: Path
    parent: str
    versions: Mapping[str, Path]
    turns: Sequence[RatedTurn]
    held_out: Sequence[RatedTurn]
    prior: Prior
    folder: Path
    seed: int


@dataclass(frozen=True, slots=True)
class Learned:
    """What became of a lesson.

    Attributes:
        state: `trained` where there is a child that may serve, `rejected` where the gate says no,
            `refused` where the ratings can't be learned from.
        adapter: the child's folder, where it may serve.
        reasons: why not.
        num_steps: optimizer steps taken.
        cpu_s: what training took of one core: measuring, steps, saving.
    """

    state: State
    adapter: Path | None = None
    reasons: tuple[str, ...] = ()
    num_steps: int = 0
    cpu_s: float = 0.0


class Learner(Protocol):
    """Takes one lesson after the other, of one arm with one seed.

    Attributes:
        has_gate: whether it wants held-out ratings.
    """

    has_gate: bool

    def learn(self, lesson: Lesson) -> Learned:
        """Make a child of the lesson's parent."""
        ...

    def close(self) -> None:
        """End what it started."""
        ...
