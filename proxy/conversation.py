"""Which completion a request follows, read from its messages alone, and the session it names.

Pure. Does not know what is stored: it makes keys, and the store finds the choice they belong to.

A history is hashed message by message into a chain, salted with the client key's id. A choice
stores the chain of its request plus itself, so a later request whose history ends in that choice
has the same chain, whatever the client did to the messages on the way (see `message`). System and
developer messages, and what agents say by themselves as a user's, are not in the chain: they change
and move, and begin no turn. The results of an answer's calls are hashed in the order of the calls:
clients send them as they come, too.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Final

import msgspec
import orjson

from strop.proxy.message import call_key, canonical, digest, is_context, role_of, utf8

UNCHAINED: Final = frozenset({"system", "developer"})
"""Roles that are not part of a conversation's chain."""

MAX_LABEL_CHARS: Final = 256

# From this size on, an answer and the tool results before it don't recur by chance.
_TELLING_BYTES = 96
_TOOL_ROLES = frozenset({"tool", "function"})


class Hashed(msgspec.Struct, frozen=True):
    """One message: its role, the digest of its canonical form and its size, an answer's call."""

    role: str
    digest: bytes
    num_bytes: int
    call: bytes | None


class Conversation(msgspec.Struct, frozen=True):
    """A request's history, as keys.

    `after` is the chain up to and including the last assistant message, and `after_tail` that
    message's tail key; both None where there is none. `starts_turn`: a user message stands after
    the last assistant message, or there is no assistant message. `extend` goes on from the rest:
    `start` is the empty chain, `chain` covers all messages, and `since` holds those after the last
    assistant message.
    """

    after: bytes | None
    after_tail: bytes | None
    starts_turn: bool
    start: bytes
    chain: bytes
    since: tuple[Hashed, ...] = ()


def read(messages: Iterable[object], salt: str) -> Conversation:
    """Return the keys of a chat history.

    Takes whatever JSON can hold: a malformed message is hashed as what it is.

    Args:
        messages: the request's messages, inline commands taken out (`inline.without_commands`).
        salt: the client key's id; the same words under another key are another conversation.
    """
    start = chain = digest(b"chat " + utf8(salt))
    since: list[Hashed] = []
    before_last: list[Hashed] = []
    last: Hashed | None = None
    after: bytes | None = None
    for role, message in _chained(messages):
        hashed = _hash(message, role)
        chain = digest(chain + hashed.digest)
        if role == "assistant":
            after, last = chain, hashed
            before_last, since = since, []
        else:
            since.append(hashed)
    return Conversation(
        after=after,
        after_tail=_tail(start, before_last, last) if last else None,
        starts_turn=last is None or any(hashed.role == "user" for hashed in since),
        start=start,
        chain=chain,
        since=tuple(since),
    )


def read_prompt(salt: str) -> Conversation:
    """Return the keys of a text completion's prompt: it follows nothing.

    A prompt may begin with an earlier prompt and its answer, but nothing says where that ends.
    """
    start = digest(b"prompt " + utf8(salt))
    return Conversation(after=None, after_tail=None, starts_turn=True, start=start, chain=start)


def extend(conversation: Conversation, message: Mapping[str, object]) -> tuple[bytes, bytes]:
    """Return the chain and the tail key that the choice `message` stores.

    A later request whose history ends in this choice has this chain as its `after`. Where the
    history before it was cut, compacted or rewritten, it still has this tail as its `after_tail`.
    The tail is the answer's first tool call, by its id: some clients rewrite arguments. Where there
    is none, or its id doesn't tell, the tail covers the answer and the tool results between it and
    the assistant message before it; where these are too short to tell conversations apart, all
    messages between. Some clients move context about in user messages or shorten earlier ones, so
    these count only where they must.
    """
    hashed = _hash(message, "assistant")
    return (
        digest(conversation.chain + hashed.digest),
        _tail(conversation.start, conversation.since, hashed),
    )


def session_label(
    headers: Iterable[tuple[bytes, bytes]], path_session: str | None, body: Mapping[str, object]
) -> str | None:
    """Return the session that a request names, or None.

    In this order: X-Strop-Session, the path's `/s/<session>`, X-Session-ID,
    X-Claude-Code-Session-Id, Codex's session-id and thread-id, `metadata.session_id`, and the
    session in Claude Code's `metadata.user_id`. Labels that are empty, not printable or longer
    than `MAX_LABEL_CHARS` are passed over.

    Args:
        headers: names in lower case.
        path_session: the `<session>` of the path, decoded.
        body: the request's fields.
    """
    sent = {
        name: value.decode("utf-8", "backslashreplace")
        for name, value in headers
        if name in _LABEL_HEADERS
    }
    metadata = body.get("metadata")
    said = metadata if isinstance(metadata, dict) else {}
    first, *others = (sent.get(name) for name in _LABEL_HEADERS)
    user_id = said.get("user_id")
    for candidate in (first, path_session, *others, said.get("session_id"), _session_in(user_id)):
        label = candidate.strip() if isinstance(candidate, str) else ""
        if 0 < len(label) <= MAX_LABEL_CHARS and label.isprintable():
            return label
    return None


# Codex wrote `session_id` before it wrote `session-id`.
_LABEL_HEADERS = (
    b"x-strop-session",
    b"x-session-id",
    b"x-claude-code-session-id",
    b"session-id",
    b"session_id",
    b"thread-id",
)
_USER_ID_SESSION = re.compile(r"_session_([0-9a-fA-F-]{36})$")


def _session_in(user_id: object) -> str | None:
    """Return the session in Claude Code's user id: at its end, or, since 2.1, in the JSON it is."""
    if not isinstance(user_id, str):
        return None
    if found := _USER_ID_SESSION.search(user_id):
        return found[1]
    try:
        holder = orjson.loads(user_id)
    except ValueError:
        return None
    session = holder.get("session_id") if isinstance(holder, dict) else None
    return session if isinstance(session, str) else None


def _chained(messages: Iterable[object]) -> Iterator[tuple[str, object]]:
    """Yield the messages of the chain, in its order, each with its role."""
    answer: object = None
    results: list[dict[str, object]] = []
    for message in messages:
        role = role_of(message)
        if role in UNCHAINED or is_context(message):
            continue
        if role == "tool" and isinstance(message, dict):
            results.append(message)
            continue
        if results:
            yield from (("tool", result) for result in _in_order(results, answer))
            results = []
        if role == "assistant":
            answer = message
        yield role, message
    yield from (("tool", result) for result in _in_order(results, answer))


def _in_order(results: list[dict[str, object]], answer: object) -> list[dict[str, object]]:
    """Return results in the order of the calls of `answer`; as they are, if one is of none."""
    calls = answer.get("tool_calls") if len(results) > 1 and isinstance(answer, dict) else None
    places = {
        call["id"]: place
        for place, call in enumerate(calls if isinstance(calls, list) else ())
        if isinstance(call, dict) and isinstance(call.get("id"), str)
    }
    named = [
        (places[identity], result)
        for result in results
        if isinstance(identity := result.get("tool_call_id"), str) and identity in places
    ]
    if len(named) < len(results):
        return results
    return [result for _, result in sorted(named, key=itemgetter(0))]


def _hash(message: object, role: str) -> Hashed:
    form = canonical(message, role)
    call = call_key(message) if role == "assistant" else None
    return Hashed(role, digest(form), len(form), call)


def _tail(start: bytes, before: Sequence[Hashed], last: Hashed) -> bytes:
    if last.call is not None:
        return digest(b"tail " + start + last.call)
    results = [hashed for hashed in before if hashed.role in _TOOL_ROLES]
    num_bytes = last.num_bytes + sum(hashed.num_bytes for hashed in results)
    counted = results if num_bytes >= _TELLING_BYTES else before
    return digest(b"tail " + start + b"".join(hashed.digest for hashed in (*counted, last)))
