"""Ratings as they come in: by themselves, in a completion request's header, typed into the chat.

Does not relay or render anything; which answer is meant is for `replies`.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from strop.proxy import objects, ratings
from strop.proxy.errors import BadRequest, StropError, UnknownCompletion
from strop.proxy.flights import Flights, withdraw_lost
from strop.proxy.ids import completion_id
from strop.proxy.inline import Command
from strop.proxy.metrics import Metrics
from strop.proxy.redaction import Redaction
from strop.proxy.replies import Replies
from strop.proxy.store.records import (
    Feedback,
    FeedbackOutcome,
    NewFeedback,
    Scope,
)
from strop.proxy.store.store import Store
from strop.proxy.tally import num_lost

log = logging.getLogger(__name__)

SETTLE_INTERVAL_S = 1.0
# How much of an answer is quoted, in characters.
_MOST_WORDS = 60
_NO_ANSWER = "There is no answer above that strop has recorded"
_NOT_ANSWERED = "What was asked last got no answer"
_UNDO_BY_ID = "In the shell, `strop undo ID` takes back the rating of any answer."
HELP = (
    "Rate the answer above: /rl good [why], /rl bad [why], /rl undo, /rl status."
    " What you type here is answered by strop and never reaches the model."
)


@dataclass(slots=True)
class Rater:
    """Takes the ratings that requests carry, or are."""

    store: Store
    flights: Flights
    replies: Replies
    metrics: Metrics
    redaction: Redaction

    async def add(self, new: NewFeedback, *, is_recorded: bool = False) -> FeedbackOutcome:
        """Store a rating; see `feedback.add` for how it is bound, and its errors.

        Args:
            new: the rating.
            is_recorded: whether its completion was found in the store.

        Raises:
            UnknownCompletion: it was lost meanwhile, too.
            Unavailable: another process can't be asked what it has in flight.
        """
        called = [] if is_recorded else self.flights.called(new.completion, new.key_id)
        is_running = bool(called) or (
            not is_recorded and await self.flights.has(new.completion, new.key_id)
        )
        outcome = await self.store.add_feedback(new, lambda _: is_running, called)
        waits_for = outcome.feedback.completion
        if outcome.outcome != "pending" or await self.flights.has(waits_for, new.key_id):
            return outcome
        # Its completion ended in between: it is recorded, or nobody will settle what waits for it.
        await self.store.withdraw_lost([outcome.feedback.id])
        settled = await self.store.get_feedback(outcome.feedback.id)
        assert settled is not None
        if settled.state == "withdrawn":
            raise UnknownCompletion(
                f"the completion {new.completion!r} could not be recorded, so it can't be rated",
                param="completion_id",
            )
        return FeedbackOutcome(settled, "created")

    async def settle(self) -> None:
        """Withdraw the ratings of completions that get lost, soon after. Runs until cancelled.

        Not before the store takes writes again, as it mostly was the store that lost them.
        """
        num_seen = 0
        while True:
            await asyncio.sleep(SETTLE_INTERVAL_S)
            num_now = num_lost(self.metrics)
            if num_now == num_seen or self.store.reason is not None:
                continue
            try:
                await withdraw_lost(self.store, self.flights.key_of)
            except StropError as error:
                reason = error.message
                log.warning("ratings of lost completions wait", extra={"reason": reason})
            else:
                num_seen = num_now

    async def id_of(self, name: str, key_id: str | None) -> str:
        """Return the own id of the one completion that goes by `name`, recorded or else in flight.

        Where there is none, or there are several, it is `name` itself.

        Args:
            name: what a person calls a completion.
            key_id: the key that it must have been asked with; None for any.
        """
        recorded = await self.store.id_of(name, key_id)
        called = self.flights.called(name, key_id)
        return called[0].id if recorded == name and len(called) == 1 else recorded

    async def by_header(
        self,
        values: Sequence[bytes],
        meant: str | None,
        history: Sequence[object],
        key_id: str,
        session: str | None,
        follows: str | None,
    ) -> str:
        """Carry out an X-Strop-Feedback header; return what became of it, as one line of ASCII.

        A rating that fails is said here and never fails the request that carries it.

        Args:
            values: the header, as often as it came; more than once is refused.
            meant: the completion that X-Strop-Feedback-For names, or None for the reply that
                `history` ends with.
            history: the request's messages, inline commands taken out.
            key_id: whose request it is.
            session: what the client calls its conversation, if it does.
            follows: the completion that it says `history` ends in, if it does.
        """
        try:
            if len(values) > 1:
                raise BadRequest(
                    f"expected one X-Strop-Feedback header, got {len(values)}; send one"
                )
            said = ratings.parse_header(values[0])
            named = completion_id(meant) if meant else None
            # A rating by an id that a stream has too is bound where that is known to be one's own.
            if named and (said.rating is None or not self.flights.called(named, key_id)):
                named = await self.id_of(named, key_id)
            reply = await self.replies.of(history, key_id, session, named or follows)
            if named is not None and (reply is None or reply[0] != named):
                reply = named, await self._only_choice(named, key_id)
            if reply is None:
                return "no-reply; this request's history ends in no answer known here"
            if said.rating is None:
                # Of this answer alone: clients send a request that failed again by themselves.
                undone = await self.store.undo_answer(*reply, key_id, rater="", or_above=False)
                if undone is None:
                    return f"nothing-to-undo; completion={reply[0]}"
                return f"undone {await self._described(undone)}"
            new = self._new(
                reply, key_id, said.rating, said.original, said.comment, said.scope, "header"
            )
            # What a history ends with was found in the store.
            outcome = await self.add(new, is_recorded=named is None)
            if outcome.outcome != "repeat":
                self.metrics.feedback.labels("header").inc()
            return f"{outcome.outcome} {await self._described(outcome.feedback)}"
        except StropError as error:
            return f"error {error.code}; {error.message}"

    async def by_command(
        self,
        command: Command,
        history: Sequence[object],
        key_id: str,
        session: str | None,
        follows: str | None,
    ) -> str:
        """Carry out an inline command; return what to tell the person.

        Takes what `by_header` does; `history` is what stood before the command.
        """
        if command.verb == "help":
            return HELP
        try:
            read = await self.replies.read_last(history, key_id, session, follows)
            if command.verb == "undo":
                return await self._undo(read, key_id, session)
            if read is None:
                return f"{_NO_ANSWER}, so there is nothing to rate."
            if command.verb == "status":
                return await self._status(*read, key_id)
            completion, choice = read
            if choice is None:
                return f"{_NOT_ANSWERED}, so there is nothing to rate."
            reply = completion, choice
            rating = 1.0 if command.verb == "good" else -1.0
            original = b'"%b"' % command.verb.encode()
            new = self._new(reply, key_id, rating, original, command.comment, "turn", "inline")
            outcome = await self.add(new, is_recorded=True)
        except StropError as error:
            return f"Could not do that: {error.message}."
        self.metrics.feedback.labels("inline").inc()
        because = f', because "{command.comment}"' if command.comment else ""
        words = await self._first_words(*reply)
        return (
            f"Rated the answer above {_name(rating)}{because} ({outcome.feedback.completion}):"
            f' "{words}"'
        )

    async def _only_choice(self, completion_id: str, key_id: str) -> int:
        """Return the choice of a completion that has one; 0 where that isn't known yet.

        Raises:
            BadRequest: it has several.
        """
        found = await self.store.get_completion(completion_id)
        if found is None or found.completion.key_id != key_id:
            return 0
        choices = [choice.index for choice in found.completion.choices]
        if len(choices) > 1:
            raise BadRequest(
                f"{completion_id} has the choices {choices}, and this request's history ends in"
                " none of them; rate one by POST /v1/feedback, with its `choice`"
            )
        return choices[0] if choices else 0

    async def _described(self, given: Feedback) -> str:
        """Return which rating it is, and of what; of which choice, where there are several."""
        found = await self.store.get_completion(given.completion)
        has_several = found is not None and len(found.completion.choices) > 1
        choice = f"; choice={given.choice}" if has_several else ""
        return f"{given.id}; completion={given.completion}{choice}"

    async def _first_words(self, completion_id: str, choice: int) -> str:
        """Return what a person knows the answer by: it may not be the one that they see."""
        found = await self.store.get_completion(completion_id)
        choices = found.completion.choices if found else ()
        said = next((objects.text_of(each) for each in choices if each.index == choice), "")
        line = " ".join(said.split())
        return line if len(line) <= _MOST_WORDS else line[: _MOST_WORDS - 3].rstrip() + "..."

    async def _undo(
        self, read: tuple[str, int | None] | None, key_id: str, session: str | None
    ) -> str:
        """Take back the rating of the answer that was read, else of the next above it.

        Where that answer isn't known, the newest of the session that the client names.
        """
        if read is not None:
            completion, choice = read
            undone = await self.store.undo_answer(
                completion, choice or 0, key_id, rater="", or_above=True
            )
        elif session is not None:
            undone = await self.store.undo(session, key_id, rater="")
        else:
            return f"{_NO_ANSWER}, so there is nothing to undo. {_UNDO_BY_ID}"
        if undone is None:
            return f"There is no rating in this conversation to undo. {_UNDO_BY_ID}"
        words = await self._first_words(undone.completion, undone.choice)
        return (
            f"Took back the rating {_name(undone.rating)} ({undone.id}) of {undone.completion}:"
            f' "{words}"'
        )

    async def _status(self, completion_id: str, choice: int | None, key_id: str) -> str:
        found = await self.store.get_completion(completion_id)
        if found is None:
            return "Nothing is known of this conversation."
        counts = await self.store.feedback_counts(found.session, key_id)
        above = f"The answer above is {completion_id}, by {found.completion.version}"
        return (
            f"In this conversation: {counts.good} good, {counts.bad} bad."
            f" {_NOT_ANSWERED if choice is None else above}."
        )

    def _new(
        self,
        reply: tuple[str, int],
        key_id: str,
        rating: float,
        original: bytes,
        comment: str | None,
        scope: Scope,
        source: Literal["header", "inline"],
    ) -> NewFeedback:
        if comment is not None and len(comment) > ratings.MAX_COMMENT_CHARS:
            raise BadRequest(
                f"expected a comment of at most {ratings.MAX_COMMENT_CHARS} characters, got"
                f" {len(comment)}; shorten it"
            )
        return self.redaction.feedback(
            NewFeedback(
                completion=reply[0],
                choice=reply[1],
                key_id=key_id,
                rating=rating,
                original=original,
                comment=comment,
                scope=scope,
                source=source,
            )
        )


def _name(rating: float) -> str:
    return {1.0: "good", -1.0: "bad"}.get(rating, f"{rating:g}")
