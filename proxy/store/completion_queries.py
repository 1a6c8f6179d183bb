"""Completions as they are read: whole ones by id, and lists without their texts.

Pure: makes queries and decodes their rows; runs and changes nothing.
"""

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Final

import msgspec

from strop.proxy.store import filters, pack
from strop.proxy.store.completions import CHOICE_COLUMNS, COMPLETION_COLUMNS
from strop.proxy.store.database import Query, Row
from strop.proxy.store.records import (
    Choice,
    Completion,
    CompletionFilter,
    CompletionSummary,
    StoredCompletion,
)

Position = tuple[int, int]
"""A completion's place in the order of creation: `created_ms`, then `num`."""

NEWEST: Final = (2**63 - 1, 2**63 - 1)
"""The position that every completion is older than."""

_SUMMARY: Final = """
c.id, c.created_ms, c.key_id, c.session, c.turn, c.parent, c.dialect, c.engine, c.model, c.version,
c.state, c.delivered, c.stream, c.status, c.prompt_tokens, c.completion_tokens, c.total_ms,
(SELECT count(*) FROM choices AS h WHERE h.completion = c.id),
(SELECT count(*) FROM feedback AS f WHERE f.completion = c.id AND f.state = 'standing'),
c.num"""
_IS_RATED: Final = """EXISTS
(SELECT 1 FROM feedback AS f WHERE f.completion = c.id AND f.state = 'standing')"""
_IS_ALIAS: Final = "NOT EXISTS (SELECT 1 FROM completions WHERE id = ?)"
_ORDER: Final = "ORDER BY c.created_ms DESC, c.num DESC LIMIT ?"
# By what stands of ratings, whose rows say where their completions come in this order.
_RATED: Final = """FROM feedback AS s CROSS JOIN completions AS c ON c.num = s.completion_num
WHERE s.state = 'standing'
AND s.completion_ms >= ? AND (s.completion_ms, s.completion_num) < (?, ?)"""
_RATED_ORDER: Final = """GROUP BY s.completion_ms, s.completion_num
ORDER BY s.completion_ms DESC, s.completion_num DESC LIMIT ?"""


def whole(ids: Sequence[str]) -> Query[Row]:
    """Return the query for the rows that `assemble` takes first."""
    sql = f"SELECT {', '.join(COMPLETION_COLUMNS)} FROM completions WHERE id IN ({_places(ids)})"
    return Query(sql, ids, tuple)


def choices(ids: Sequence[str]) -> Query[Row]:
    """Return the query for the rows that `assemble` takes second."""
    sql = f"""SELECT {", ".join(CHOICE_COLUMNS)} FROM choices
WHERE completion IN ({_places(ids)}) ORDER BY completion, choice"""
    return Query(sql, ids, tuple)


def assemble(rows: Iterable[Row], choice_rows: Iterable[Row]) -> dict[str, StoredCompletion]:
    """Return the completions by id, unpacked. Takes a while: 0.1 ms for 100 KB."""
    answers: dict[str, list[Choice]] = {}
    for row in choice_rows:
        answers.setdefault(row[0], []).append(_decode_choice(row))
    return {row[0]: _decode(row, tuple(answers.get(row[0], ()))) for row in rows}


def called(name: str, key_id: str | None) -> Query[str]:
    """Return the query for two completions, at most, whose answers the engine gave this id.

    None where it is one of strop's own.
    """
    sql, parameters = (
        f"SELECT id FROM completions WHERE upstream_id = ? AND {_IS_ALIAS}",
        [name] * 2,
    )
    if key_id is not None:
        sql, parameters = f"{sql} AND key_id = ?", [*parameters, key_id]
    return Query(f"{sql} LIMIT 2", parameters, lambda row: str(row[0]))


def latest(limit: int, before: int | None = None) -> Query[tuple[int, str]]:
    """Return the query for `num` and id of the last answers that ended, the last one first.

    The clock has no part in it. `before` is the `num` to go on from.
    """
    sql = "SELECT num, id FROM completions WHERE num < ? ORDER BY num DESC LIMIT ?"
    return Query(
        sql, (NEWEST[1] if before is None else before, limit), lambda row: (row[0], row[1])
    )


def position(id_: str) -> Query[Position]:
    """Return the query for a completion's place in the order of creation."""
    sql = "SELECT created_ms, num FROM completions WHERE id = ?"
    return Query(sql, (id_,), lambda row: (row[0], row[1]))


def newest(
    wanted: CompletionFilter, limit: int, before: Position = NEWEST
) -> Query[CompletionSummary]:
    """Return the query for up to `limit` completions older than `before`, newest first.

    They are as `wanted` says, but for what they must contain.
    """
    asked = {
        "c.key_id = ?": wanted.key_id,
        "c.session = ?": wanted.session,
        "c.state = ?": wanted.state,
        "c.model = ?": wanted.model,
    }
    place = (wanted.since_ms or 0, *before)
    if wanted.is_rated and wanted.session is None:
        conditions, values = filters.conditions(asked, leads=())
        sql = f"SELECT {_SUMMARY} {' AND '.join([_RATED, *conditions])} {_RATED_ORDER}"
        return Query(sql, (*place, *values, limit), _decode_summary)
    is_whole = wanted.state in (None, "complete")
    by_state = () if is_whole else ("c.state = ?",)
    leads = ("c.session = ?", *by_state, "c.key_id = ?", "c.model = ?")
    conditions, values = filters.conditions(asked, leads)
    if not is_whole:
        # What the partial index is over; the planner doesn't look into the parameter.
        conditions.append("c.state <> 'complete'")
    if wanted.is_rated is not None:
        conditions.append(_IS_RATED if wanted.is_rated else f"NOT {_IS_RATED}")
    places = ["c.created_ms >= ?", "(c.created_ms, c.num) < (?, ?)"]
    where = " AND ".join([*places, *conditions])
    sql = f"SELECT {_SUMMARY} FROM completions AS c WHERE {where} {_ORDER}"
    return Query(sql, (*place, *values, limit), _decode_summary)


def keys_of(session: str) -> Query[str]:
    """Return the query for the key of each completion of the sessions called `session`."""
    return Query("SELECT key_id FROM completions WHERE session = ?", (session,), itemgetter(0))


def newest_placed(
    wanted: CompletionFilter, limit: int, before: Position = NEWEST
) -> Query[tuple[Position, CompletionSummary]]:
    """Return the query of `newest`, for each with its position."""
    query = newest(wanted, limit, before)
    return Query(query.sql, query.parameters, lambda row: ((row[1], row[-1]), query.decode(row)))


def _places(ids: Sequence[str]) -> str:
    return ", ".join("?" * len(ids))


def _decode_summary(row: Row) -> CompletionSummary:
    (
        id_, created_ms, key_id, session, turn, parent, dialect, engine, model, version, state,
        delivered, stream, status, prompt_tokens, completion_tokens, total_ms, num_choices,
        num_feedback, _,
    ) = row  # fmt: skip
    return CompletionSummary(
        id_, created_ms, key_id, session, turn, parent, dialect, engine, model, version, state,
        bool(delivered), bool(stream), status, prompt_tokens, completion_tokens, total_ms,
        num_choices, num_feedback,
    )  # fmt: skip


_decode_texts: Final = msgspec.json.Decoder(tuple[str, ...]).decode


def _decode_choice(row: Row) -> Choice:
    found = dict(zip(CHOICE_COLUMNS, row, strict=True))
    ids, texts, logprobs = found["token_ids"], found["token_texts"], found["logprobs"]
    return Choice(
        index=found["choice"],
        message=pack.unpack_bytes(found["message"]),
        finish_reason=found["finish_reason"],
        token_ids=None if ids is None else pack.unpack_ints(ids),
        token_texts=None if texts is None else _decode_texts(pack.unpack_bytes(texts)),
        logprobs=None if logprobs is None else pack.unpack_floats(logprobs),
        logprobs_source=found["logprobs_source"],
        logprobs_kind=found["logprobs_kind"],
        chain=found["chain"],
        tail=found["tail"],
    )


def _decode(row: Row, answers: tuple[Choice, ...]) -> StoredCompletion:
    found = dict(zip(COMPLETION_COLUMNS, row, strict=True))
    prompt_ids, prompt_text = found["prompt_ids"], found["prompt_text"]
    completion = Completion(
        id=found["id"],
        created_ms=found["created_ms"],
        key_id=found["key_id"],
        dialect=found["dialect"],
        engine=found["engine"],
        model=found["model"],
        served=found["served"],
        version=found["version"],
        base=found["base"],
        state=found["state"],
        delivered=bool(found["delivered"]),
        stream=bool(found["stream"]),
        request=pack.unpack_bytes(found["request"]),
        status=found["status"],
        error=found["error"],
        sampling=found["sampling"].encode(),
        prompt_ids=None if prompt_ids is None else pack.unpack_ints(prompt_ids),
        prompt_text=None if prompt_text is None else pack.unpack_bytes(prompt_text).decode(),
        prompt_tokens=found["prompt_tokens"],
        completion_tokens=found["completion_tokens"],
        ttft_ms=found["ttft_ms"],
        total_ms=found["total_ms"],
        overhead_ms=found["overhead_ms"],
        upstream_id=found["upstream_id"],
        request_id=found["request_id"],
        session=found["session"] if found["session_by"] == "client" else None,
        starts_turn=bool(found["starts_turn"]),
        after=found["after"],
        after_tail=found["after_tail"],
        choices=answers,
    )
    return StoredCompletion(
        completion=completion,
        session=found["session"],
        turn=found["turn"],
        parent=found["parent"],
        parent_choice=found["parent_choice"],
        parent_by=found["parent_by"],
    )
