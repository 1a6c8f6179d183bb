"""Which of an engine's models is to serve.

Knows no engine: a driver says what its engine has, and puts the one that is chosen here first.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from strop.proxy.errors import EngineNotReady

_MOST_NAMED: Final = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """The model that the settings name, if they do.

    Attributes:
        name: what the engine calls it; empty for the engine's first.
        is_required: whether no other may serve in its place. Where it may, `name` is what clients
            call the model, and only perhaps one that the engine has.
        is_base: whether what serves is taken for `model.base`, so that none of several is guessed.
    """

    name: str = ""
    is_required: bool = False
    is_base: bool = False

    def among(self, names: Sequence[str], *, former: str = "", advice: str = "") -> str:
        """Return the one of `names`, of which there is at least one, that is to serve.

        Args:
            names: the engine's models, in its own order, which may be another each time.
            former: the one that served before: it stays where no other is named.
            advice: how to get one that it lacks.

        Raises:
            EngineNotReady: none but one that isn't there may serve, or none is to be guessed.
        """
        if self.name in names:
            return self.name
        if not self.is_required:
            if former in names:
                return former
            if self.is_base and len(names) > 1:
                raise EngineNotReady(
                    f"the engine has {listed(names)}: say which of them model.base is, as in"
                    f" --model {names[0]}"
                )
            return names[0]
        raise EngineNotReady(
            f"the engine has no model {self.name!r}, which engine.model (--model) names; it has"
            f" {listed(names, like=self.name)}: name one of them{advice}"
        )


ITS_FIRST: Final = Wanted()
"""The engine's first model, whatever it is."""


def listed(names: Sequence[str], *, like: str = "") -> str:
    """Return the first few names for people, those that are `like` one before the others."""
    near = difflib.get_close_matches(like, names, n=_MOST_NAMED, cutoff=0.4)
    shown = list(dict.fromkeys((*near, *names)))[:_MOST_NAMED]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more
