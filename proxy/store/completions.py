"""Completions and their choices, as rows: recorded once, under the parent that their history names.

Does not know how a history becomes a key, or who reads what is written here.
"""

import sqlite3
from collections.abc import Generator
from typing import Final, NamedTuple

import msgspec

from strop.proxy.errors import Conflict
from strop.proxy.store import feedback, pack
from strop.proxy.store.database import Query, Row, storable
from strop.proxy.store.records import Choice, Completion, ParentBy, Recorded, Reply

TAIL_WINDOW_MS: Final = 24 * 60 * 60 * 1000
"""How long a choice can be found again by its tail key."""

_NUM_EQUAL: Final = 64
"""Among how many of the newest equal histories that of the request's own conversation is sought."""

COMPLETION_COLUMNS: Final = (
    "id", "created_ms", "key_id", "dialect", "engine", "model", "served", "version", "state",
    "delivered", "stream", "status", "error", "prompt_tokens", "completion_tokens", "ttft_ms",
    "total_ms", "overhead_ms", "upstream_id", "request_id", "starts_turn", "after", "after_tail",
    "base", "sampling", "prompt_ids", "prompt_text", "request", "session", "session_by", "turn",
    "parent", "parent_choice", "parent_by",
)  # fmt: skip
CHOICE_COLUMNS: Final = (
    "completion", "choice", "created_ms", "finish_reason", "num_tokens", "logprobs_source",
    "logprobs_kind", "chain", "tail", "token_ids", "token_texts", "logprobs", "message",
)  # fmt: skip


def _insert(table: str, columns: tuple[str, ...]) -> str:
    places = ", ".join("?" * len(columns))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})"


_INSERT_COMPLETION: Final = _insert("completions", COMPLETION_COLUMNS)
_INSERT_CHOICE: Final = _insert("choices", CHOICE_COLUMNS)

# CROSS JOIN keeps the order: the choice by its key first, then its completion by id.
_BY_CHAIN: Final = """
SELECT h.completion, h.choice, c.session, c.session_by, c.turn, h.chain, h.tail
FROM choices AS h CROSS JOIN completions AS c ON c.id = h.completion
WHERE h.chain = ? AND c.key_id = ? ORDER BY h.num DESC LIMIT ?"""
_BY_TAIL: Final = """
SELECT h.completion, h.choice, c.session, c.session_by, c.turn, h.chain, h.tail
FROM choices AS h CROSS JOIN completions AS c ON c.id = h.completion
WHERE h.tail = ? AND h.created_ms > ? AND c.key_id = ? LIMIT ?"""
_BY_ID: Final = """
SELECT h.completion, h.choice, c.session, c.session_by, c.turn, h.chain, h.tail
FROM choices AS h CROSS JOIN completions AS c ON c.id = h.completion
WHERE h.completion = ? AND c.key_id = ? ORDER BY h.choice"""


class Candidate(NamedTuple):
    """A choice that a history may end in, and its keys."""

    completion: str
    choice: int
    session: str
    session_by: str
    turn: str
    chain: bytes | None
    tail: bytes | None

    def reply(self, by: ParentBy) -> Reply:
        """Return it as the one that the history ends in, found in this way."""
        return Reply(self.completion, self.choice, by, self.session, self.turn)


Search = Generator[Query[Candidate], list[Candidate], Reply | None]
"""Asks for queries to be run, one after the other, and returns what was looked for."""


class Packed(msgspec.Struct, frozen=True):
    """A completion whose large values are packed; made before the transaction opens."""

    completion: Completion
    row: Row
    choices: tuple[Row, ...]
    num_sampled: int


def pack_completion(completion: Completion) -> Packed:
    """Return `completion` as rows, but for what only the transaction can tell."""
    c = completion
    row = (
        c.id, c.created_ms, storable(c.key_id), c.dialect, c.engine, storable(c.model),
        storable(c.served), c.version, c.state, c.delivered, c.stream, c.status, storable(c.error),
        c.prompt_tokens, c.completion_tokens, c.ttft_ms, c.total_ms, c.overhead_ms,
        storable(c.upstream_id), storable(c.request_id), c.starts_turn, c.after, c.after_tail,
        c.base, c.sampling.decode("utf-8", "replace"),
        None if c.prompt_ids is None else pack.pack_ints(c.prompt_ids),
        None if c.prompt_text is None else _pack_text(c.prompt_text),
        pack.pack_bytes(c.request),
    )  # fmt: skip
    num_sampled = sum(len(choice.token_ids or ()) for choice in c.choices)
    return Packed(c, row, tuple(_pack_choice(c, choice) for choice in c.choices), num_sampled)


def note_prompt(connection: sqlite3.Connection, id_: str, text: str) -> None:
    """Keep the prompt of a completion, as its engine shows it; of a deleted one nothing."""
    connection.execute(
        "UPDATE completions SET prompt_text = ? WHERE id = ?", (_pack_text(text), id_)
    )


def insert(connection: sqlite3.Connection, packed: Packed) -> Recorded:
    """Record a completion: find its parent, session and turn, and join the feedback that waits.

    The session is the client's label, else the parent's, else a new one. The turn is the parent's
    unless the completion starts one.

    Raises:
        Conflict: a completion with this id is recorded already.
    """
    c = packed.completion
    label = storable(c.session)
    reply = _run(
        connection, find_reply(c.key_id, c.after, c.after_tail, label, c.follows, c.created_ms)
    )
    if label is not None:
        session, session_by = label, "client"
    elif reply is not None:
        session, session_by = reply.session, "parent"
    else:
        session, session_by = "ses_" + c.id.removeprefix("cmp_"), "new"
    num = packed.num_sampled
    if reply is None:
        recorded = Recorded(c.id, session, turn=c.id, num_sampled=num)
    else:
        turn = c.id if c.starts_turn else reply.turn
        recorded = Recorded(c.id, session, turn, reply.completion, reply.choice, reply.by, num)
    link = (
        session, session_by, recorded.turn, recorded.parent, recorded.parent_choice,
        recorded.parent_by,
    )  # fmt: skip
    try:
        connection.execute(_INSERT_COMPLETION, packed.row + link)
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
            raise
        raise Conflict(
            f"expected a new completion id, got {c.id}, which is recorded already; each completion"
            " is recorded once"
        ) from error
    for choice in packed.choices:
        connection.execute(_INSERT_CHOICE, choice)
    feedback.join_pending(connection, c, session)
    return recorded


def find_reply(
    key_id: str,
    after: bytes | None,
    after_tail: bytes | None,
    session: str | None,
    follows: str | None,
    now_ms: int,
) -> Search:
    """Look for the choice that a history ends in; return None where it is not known.

    The choice of the completion `follows`, which the client names, if the whole history or its tail
    is that choice's. Else by the whole history: of several, those whose tail it has too, a tool
    call's id; of these the newest of `session`, or without one of those for which no session was
    named either; else the newest; marked ambiguous if it is not alone.
    Else by its tail: only if one choice of the last 24 h has it, be it of `session`, or of those
    without one, or alone. Other keys' choices are never found.
    """
    if follows is not None:
        named = yield Query(_BY_ID, (follows, key_id), lambda row: Candidate(*row))
        for one in named:
            if after is not None and one.chain == after:
                return one.reply("chain")
        for one in named:
            if after_tail is not None and one.tail == after_tail:
                return one.reply("tail")
    equal: list[Candidate] = []
    if after is not None:
        equal = yield Query(_BY_CHAIN, (after, key_id, _NUM_EQUAL), lambda row: Candidate(*row))
    has_tail = [one for one in equal if after_tail is not None and one.tail == after_tail]
    if after_tail is not None and len(equal) != 1 and not has_tail:
        parameters = (after_tail, now_ms - TAIL_WINDOW_MS, key_id, _NUM_EQUAL)
        tails = yield Query(_BY_TAIL, parameters, lambda row: Candidate(*row))
        found = _likeliest(tails, session)
        if len(found) == 1 and (not equal or found[0].chain == after):
            return found[0].reply("chain" if equal else "tail")
    return _newest(has_tail or equal, session)


def _newest(equal: list[Candidate], session: str | None) -> Reply | None:
    """Return the first of the likeliest; marked if it may be another."""
    found = _likeliest(equal, session)
    if not found:
        return None
    is_sure = len(equal) == 1 or (len(found) == 1 and found[0].session == session)
    return found[0].reply("chain" if is_sure else "chain_ambiguous")


def _likeliest(equal: list[Candidate], session: str | None) -> list[Candidate]:
    """Return those of `session`, or without one those for which none was named; all, if none are.

    A client may name its conversation anew, or not each time.
    """
    if session is None:
        return [one for one in equal if one.session_by != "client"] or equal
    return [one for one in equal if one.session == session] or equal


def _run(connection: sqlite3.Connection, search: Search) -> Reply | None:
    try:
        query = next(search)
        while True:
            query = search.send(query.run(connection))
    except StopIteration as end:
        found: Reply | None = end.value
        return found


def _pack_text(text: str) -> bytes:
    # Engines may spell half a character in JSON.
    return pack.pack_bytes(text.encode("utf-8", "replace"))


def _pack_choice(completion: Completion, choice: Choice) -> Row:
    ids, texts, logprobs = choice.token_ids, choice.token_texts, choice.logprobs
    return (
        completion.id, choice.index, completion.created_ms, storable(choice.finish_reason),
        None if ids is None else len(ids), choice.logprobs_source, choice.logprobs_kind,
        choice.chain, choice.tail,
        None if ids is None else pack.pack_ints(ids),
        None if texts is None else pack.pack_bytes(msgspec.json.encode(texts)),
        None if logprobs is None else pack.pack_floats(logprobs),
        pack.pack_bytes(choice.message),
    )  # fmt: skip
