"""Which answer a request's history ends in, and which was read last before a command in it.

Never "the latest one around". Rates nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from strop.proxy import conversation, objects, unread
from strop.proxy.errors import StropError
from strop.proxy.flights import Flights
from strop.proxy.message import canonical, is_context, role_of, texts_of
from strop.proxy.store import prompt
from strop.proxy.store.records import Completion, CompletionFilter, Reply
from strop.proxy.store.store import Store

# How many answers back one that an agent has dropped is looked for.
_NUM_NEAR: Final = 8


@dataclass(frozen=True, slots=True)
class Replies:
    """Finds recorded answers by the history that a client sends."""

    store: Store
    flights: Flights

    async def ends_in(
        self, history: Sequence[object], key_id: str, session: str | None, follows: str | None
    ) -> str | None:
        """Return the completion that has all of `history`, in what it was asked and its answer.

        None where none is known to have it word for word.

        Args:
            history: the messages of a request, inline commands taken out.
            key_id: whose request it is.
            session: what the client calls its conversation, if it does.
            follows: the completion that it says `history` ends in, if it does.
        """
        try:
            keys = conversation.read(history, key_id)
            reply = await self._found(keys, key_id, session, follows)
            if reply is None or reply.by == "tail" or reply.choice:
                return None
            found = await self.store.get_completion(reply.completion)
        except StropError:
            return None
        asked = (prompt.fields(found.completion) or {}).get("messages") if found else None
        return reply.completion if asked == history[:-1] else None

    async def of(
        self, history: Sequence[object], key_id: str, session: str | None, follows: str | None
    ) -> tuple[str, int] | None:
        """Return the completion and choice that `history` ends in, or None; as `ends_in`."""
        found = await self._found(conversation.read(history, key_id), key_id, session, follows)
        return (found.completion, found.choice) if found else None

    async def read_last(
        self, history: Sequence[object], key_id: str, session: str | None, follows: str | None
    ) -> tuple[str, int | None] | None:
        """Return the answer that was read before the command, if it is known.

        As its completion and choice, which is None where what its user said last got no answer.
        A tool's result without one leaves the answer that called it to be rated.

        The one that the history ends in; but where it ends in a question, or the result of a tool,
        the answer to that, if there was one: agents drop what their users cut off. They may put a
        note of that behind the question, or another question, so the answer to any leading part of
        what was said since is looked for: to the longest, and of these the newest. What was gone on
        from was not dropped.
        """
        keys = conversation.read(history, key_id)
        if keys.since:
            # What was cut off a moment ago is on its way into the store.
            await self.flights.landed(key_id)
        reply = await self._found(keys, key_id, session, follows)
        if keys.since:
            # That of the answer above may be another, from which this one was forked.
            label = session or (reply.session if reply else None)
            # A session's name is its client's choice, and so may be another key's too.
            near = CompletionFilter(key_id, session=label)
            newest = (await self.store.list_completions(near, limit=_NUM_NEAR)).data
            said, last, most = _said(history), None, 0
            for each in newest:
                found = await self.store.get_completion(each.id)
                num = _num_asked(found.completion, keys.after, said, key_id) if found else 0
                if found is not None and num > most:
                    last, most = found.completion, num
            if last is not None and all(each.parent != last.id for each in newest):
                if any(map(objects.text_of, last.choices)):
                    return last.id, 0
                if keys.starts_turn:
                    return last.id, None
        return (reply.completion, reply.choice) if reply else None

    async def _found(
        self,
        keys: conversation.Conversation,
        key_id: str,
        session: str | None,
        follows: str | None,
    ) -> Reply | None:
        if keys.after is None or keys.after_tail is None:
            return None
        return await self.store.find_reply(key_id, keys.after, keys.after_tail, session, follows)


def _num_asked(
    completion: Completion, after: bytes | None, said: Sequence[bytes], key_id: str
) -> int:
    """Return how much of `said`, from its beginning, is what this was asked after the same answer.

    None of it where it has several answers, or one that nobody would read.
    """
    if len(completion.choices) > 1:
        return 0
    # What an agent asks for by itself is that too where it failed.
    if unread.why(msgspec.structs.replace(completion, state="complete")) is not None:
        return 0
    messages = (prompt.fields(completion) or {}).get("messages")
    if not isinstance(messages, list) or conversation.read(messages, key_id).after != after:
        return 0
    asked = _said(messages)
    return len(asked) if asked == said[: len(asked)] else 0


def _said(messages: Sequence[object]) -> list[bytes]:
    """Return what was said since the last answer, paragraph by paragraph.

    What agents say in several messages may come as one, with blank lines between.
    """
    said: list[bytes] = []
    for message in reversed(messages):
        role = role_of(message)
        if role == "assistant":
            break
        if role in conversation.UNCHAINED or is_context(message):
            continue
        content = message.get("content") if isinstance(message, dict) else message
        pieces: list[object] = []
        for part in content if isinstance(content, list) else [content]:
            texts = texts_of({"content": [part]})
            lines = texts[0].replace("\r\n", "\n") if texts else ""
            pieces += [one for one in lines.split("\n\n") if one.strip()] if texts else [part]
        said[:0] = [canonical({"content": [piece]}, role) for piece in pieces]
    return said
