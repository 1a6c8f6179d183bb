"""What an objective is: a loss per unit and its gradient by the logprobs, in plain numpy.

Knows no model and no framework: a backend computes logprobs, the objective says which way each
should move, and the backend carries that into the weights. So every backend has the same losses,
and their gradients are checked by finite differences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from strop.training.sequences import Floats, Kind, Loss, Unit


@dataclass(frozen=True, slots=True)
class Settings:
    """What objectives can be set to.

    Attributes:
        beta: the anchor's coefficient, of topr, mispo and reinforce.
        kto_beta: how fast KTO's value saturates, per nat of a sequence.
        dpo_beta: the same for DPO.
    """

    beta: float = 0.05
    kto_beta: float = 0.5
    dpo_beta: float = 0.1


class Rated(Protocol):
    """What tells whether an objective learns from something: an example or a unit."""

    @property
    def kind(self) -> Kind:
        """What it is."""
        ...

    @property
    def rating(self) -> float:
        """What people said, in [-1, 1]."""
        ...


R = TypeVar("R", bound=Rated)


class Objective(Protocol):
    """A loss over units. A step's loss is the mean over its units.

    Attributes:
        name: what settings call it.
        needs_step: whether `prepare` is to be called, which takes another forward pass.
    """

    name: str
    needs_step: bool

    def select(self, rated: Sequence[R]) -> list[R]:
        """Return those that this objective learns from, of all that a run has; called once."""
        ...

    def prepare(self, units: Sequence[Unit], logprobs: Sequence[tuple[Floats, ...]]) -> None:
        """Take in what the loss needs of a whole step, before its first unit (KTO's KL point).

        `logprobs` are those of the current policy, for each unit one array (S,) per answer.
        """
        ...

    def __call__(self, unit: Unit, logprobs: tuple[Floats, ...]) -> Loss:
        """Return the loss of one unit under the current policy's `logprobs` of its answers.

        Where every token is masked the loss is 0, and so is its gradient.
        """
        ...


class UnitByUnit:
    """What objectives share that need no more than one unit at a time; without the pairs."""

    needs_step = False

    def select(self, rated: Sequence[R]) -> list[R]:
        """Return all but the pairs."""
        return [one for one in rated if one.kind != "pair"]

    def prepare(self, units: Sequence[Unit], logprobs: Sequence[tuple[Floats, ...]]) -> None:
        """Need nothing of the whole step."""
