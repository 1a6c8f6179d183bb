"""The store as the trigger and the trainer see it: what is there to learn from.

Reads only. Does not know how ratings become examples, or when there are enough of them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final

from strop.adapters.rates import Rate
from strop.proxy.store import (
    binding,
    completion_queries,
    feedback_queries,
    rated_turns,
    training_queries,
)
from strop.proxy.store.database import Query
from strop.proxy.store.held_out import MOST_TURNS
from strop.proxy.store.reader import Reader
from strop.proxy.store.records import FeedbackFilter
from strop.proxy.store.run_records import FreshCounts, Prior, RatedTurn
from strop.proxy.store.training_queries import Fresh, Rated

# Choices are small, and looked for in one pass; a turn can be a hundred long requests.
_CHOICES_PAGE: Final = 256
_TURNS_PAGE: Final = 8
_ALL: Final = FeedbackFilter()


class TrainingStore:
    """What may be learned from: standing ratings of what the model itself said, of one base.

    Fresh is what no version of a lineage, which ends with `active`, has learned from: what a
    version learned that was rolled back is fresh again. `base` is the identity of the base.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def fresh_counts(self, active: str, *, base: str, since_ms: int = 0) -> FreshCounts:
        """Return how many answers have fresh ratings, none held out, that came after `since_ms`.

        An answer that several people rated is one, good or bad by the mean of all that stands on
        it, also of what is not fresh: as `fresh_turns` yields it.
        """
        (found,) = await self._reader.all(Fresh(active, base).counts(since_ms))
        return found

    async def fresh_versions(self, active: str, *, base: str) -> frozenset[str]:
        """Return the versions, `base` too, whose answers the fresh ratings are of."""
        return frozenset(await self._reader.all(Fresh(active, base).versions()))

    def fresh_turns(self, active: str, *, base: str) -> AsyncIterator[RatedTurn]:
        """Yield what the fresh ratings credit, none of it held out, newest answers first.

        A choice that one rater rated freshly comes with all that stands on it.
        """
        return self._turns(Fresh(active, base).choices)

    async def held_out_turns(self, *, base: str) -> AsyncIterator[RatedTurn]:
        """Yield what is rated and held out, newest answers first, `MOST_TURNS` at most."""

        def choices(limit: int, before: Rated) -> Query[Rated]:
            return training_queries.held_out_choices(base, limit, before)

        left = MOST_TURNS
        async for turn in self._turns(choices):
            yield turn
            left -= 1
            if not left:
                return

    async def turns(self, wanted: FeedbackFilter) -> AsyncIterator[RatedTurn]:
        """Yield what the standing ratings that `wanted` asks for credit, oldest answers first.

        Learned or not, held out or not, of whatever base, also of one that isn't known; but not of
        answers that the engine didn't let the model finish.
        """
        after = ""
        while ids := await self._reader.all(feedback_queries.rated(wanted, _TURNS_PAGE, after)):
            found = await self._reader.all(feedback_queries.rated_choices(ids))
            for turn in await self._load([Rated(*one) for one in found], wanted):
                if turn.completions[-1].completion.state in binding.TRAINS:
                    yield turn
            after = ids[-1]

    async def prior(self, *, base: str) -> Prior:
        """Return what is expected of an answer: how all that stands was rated, none held out."""
        (found,) = await self._reader.all(training_queries.prior(base))
        return found

    async def still_stand(self, feedback: Sequence[tuple[str, int]]) -> bool:
        """Return whether all of `feedback`, pairs of id and revision, stands as it did."""
        for start in range(0, len(feedback), _CHOICES_PAGE):
            some = feedback[start : start + _CHOICES_PAGE]
            found = await self._reader.all(training_queries.standing([id_ for id_, _ in some]))
            if not set(some).issubset(found):
                return False
        return True

    async def are_recorded(self, completions: Sequence[str]) -> bool:
        """Return whether none of `completions`, distinct ids, was deleted."""
        for start in range(0, len(completions), _CHOICES_PAGE):
            some = completions[start : start + _CHOICES_PAGE]
            (num,) = await self._reader.all(training_queries.num_recorded(some))
            if num < len(some):
                return False
        return True

    async def live_rates(self, *, base: str) -> Mapping[str, Rate]:
        """Return, by version, how many of its answers' ratings are good, `base` too.

        Ratings of 0 don't count.
        """
        return dict(await self._reader.all(training_queries.live_rates(base)))

    async def rates_around(
        self, at_ms: int, before: str, after: str, *, base: str, most: int
    ) -> tuple[list[Rate], list[Rate]]:
        """Return how the answers next to a moment were rated: one rate for each session.

        An answer is good or bad by the mean of its ratings, and isn't counted where that is 0.

        Args:
            at_ms: when the answers of `after` took the place of those of `before`.
            before: the version of whose answers, asked for until then, the newest count.
            after: the version of whose answers, asked for from then on, the first count.
            base: what both answer for.
            most: how many rated answers are looked at on each side.
        """
        left = training_queries.rates_before(before, at_ms, base=base, most=most)
        right = training_queries.rates_from(after, at_ms, base=base, most=most)
        return await self._reader.all(left), await self._reader.all(right)

    async def _turns(
        self, choices: Callable[[int, Rated], Query[Rated]]
    ) -> AsyncIterator[RatedTurn]:
        before = training_queries.NEWEST
        while found := await self._reader.all(choices(_CHOICES_PAGE, before)):
            for start in range(0, len(found), _TURNS_PAGE):
                for turn in await self._load(found[start : start + _TURNS_PAGE]):
                    yield turn
            before = found[-1]

    async def _load(self, rated: list[Rated], wanted: FeedbackFilter = _ALL) -> list[RatedTurn]:
        ids = list(dict.fromkeys(one.completion for one in rated))
        feedback = await self._reader.all(feedback_queries.standing(wanted, ids))
        steps = await self._reader.all(training_queries.steps(ids))
        ids = list(dict.fromkeys([*ids, *(step.completion for step in steps)]))
        rows = await self._reader.all(completion_queries.whole(ids))
        choices = await self._reader.all(completion_queries.choices(ids))
        stored = await asyncio.to_thread(completion_queries.assemble, rows, choices)
        return rated_turns.assemble(rated, feedback, steps, stored)
