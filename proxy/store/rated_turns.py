"""Rated turns: standing feedback on one choice, with the completions that it credits.

Pure: puts together what was read.
"""

from collections.abc import Iterable, Mapping, Sequence

from strop.proxy.store.records import Feedback, StoredCompletion
from strop.proxy.store.run_records import RatedTurn
from strop.proxy.store.training_queries import Rated, Step


def assemble(
    rated: Iterable[Rated],
    feedback: Sequence[Feedback],
    steps: Sequence[Step],
    stored: Mapping[str, StoredCompletion],
) -> list[RatedTurn]:
    """Return a turn for each rated choice.

    Args:
        rated: the choices.
        feedback: all that stands on their completions.
        steps: what was answered before them in their turns, oldest first.
        stored: the completions of all of these, by id.
    """
    return [_turn(one, feedback, steps, stored) for one in rated]


def _turn(
    rated: Rated,
    feedback: Sequence[Feedback],
    steps: Sequence[Step],
    stored: Mapping[str, StoredCompletion],
) -> RatedTurn:
    given = tuple(
        f for f in feedback if (f.completion, f.choice) == (rated.completion, rated.choice)
    )
    last = stored[rated.completion]
    credited = [(last, rated.choice)]
    if any(f.scope == "turn" for f in given):
        before = [(stored[s.completion], s.choice) for s in steps if s.rated == rated.completion]
        credited = [
            (one, choice)
            for one, choice in before
            if one.completion.state == "complete" and one.completion.base == last.completion.base
        ] + credited
    return RatedTurn(
        feedback=given,
        completions=tuple(one for one, _ in credited),
        choices=tuple(choice for _, choice in credited),
        root=rated.root,
    )
