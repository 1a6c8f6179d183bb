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

    What was deleted, or taken back, while it was read is left out.

    Args:
        rated: the choices.
        feedback: all that stands on their completions.
        steps: what was answered before them in their turns, oldest first.
        stored: the completions of all of these, by id.
    """
    turns = (_turn(one, feedback, steps, stored) for one in rated)
    return [turn for turn in turns if turn is not None]


def _turn(
    rated: Rated,
    feedback: Sequence[Feedback],
    steps: Sequence[Step],
    stored: Mapping[str, StoredCompletion],
) -> RatedTurn | None:
    given = tuple(
        f for f in feedback if (f.completion, f.choice) == (rated.completion, rated.choice)
    )
    last = _having(stored, rated.completion, rated.choice)
    if last is None or not given:
        return None
    credited = [(last, rated.choice)]
    if any(f.scope == "turn" for f in given):
        before = [
            (_having(stored, s.completion, s.choice), s.choice)
            for s in steps
            if s.rated == rated.completion
        ]
        credited = [
            (one, choice)
            for one, choice in before
            if one is not None
            and one.completion.state == "complete"
            and one.completion.base == last.completion.base
        ] + credited
    return RatedTurn(
        feedback=given,
        completions=tuple(one for one, _ in credited),
        choices=tuple(choice for _, choice in credited),
        root=rated.root,
    )


def _having(
    stored: Mapping[str, StoredCompletion], completion: str, choice: int
) -> StoredCompletion | None:
    found = stored.get(completion)
    has_it = found is not None and any(one.index == choice for one in found.completion.choices)
    return found if has_it else None
