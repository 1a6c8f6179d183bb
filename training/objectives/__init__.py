"""Objectives: one file each behind one Protocol; a loss is a pure function of logprobs."""

from typing import Final

from strop.training.objectives.base import Objective, Settings
from strop.training.objectives.dpo import Dpo
from strop.training.objectives.kto import Kto
from strop.training.objectives.mispo import Mispo
from strop.training.objectives.reinforce import Reinforce
from strop.training.objectives.sft import Sft
from strop.training.objectives.topr import Topr

__all__ = ["OBJECTIVES", "Objective", "Settings", "make"]

OBJECTIVES: Final = {made.name: made for made in (Topr, Mispo, Reinforce, Sft, Kto, Dpo)}


def make(name: str, settings: Settings) -> Objective:
    """Return the objective called `name`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"expected an objective of {', '.join(OBJECTIVES)}; got {name!r}")
    made: Objective = OBJECTIVES[name](settings)
    return made
