"""Feedback: taken, listed, exported, revised and withdrawn over HTTP.

Does not know what a rating does to those before it: the store does.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final, get_args

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from strop.proxy import objects, ratings
from strop.proxy.auth import LOCAL_KEY_ID, Caller
from strop.proxy.errors import BadRequest, NotFound
from strop.proxy.ids import completion_id
from strop.proxy.parts import Front
from strop.proxy.routes.requests import Query, caller, front, json_object, services
from strop.proxy.routes.responses import json_response
from strop.proxy.store.records import (
    Dialect,
    ExportFormat,
    Feedback,
    FeedbackFilter,
    FeedbackState,
    Sign,
)

_STATUS: Final = {"created": 201, "repeat": 200, "pending": 202}
FORMATS: Final[tuple[ExportFormat, ...]] = get_args(ExportFormat)
DIALECTS: Final[tuple[Dialect, ...]] = get_args(Dialect)
FEEDBACK_STATES: Final[tuple[FeedbackState, ...]] = get_args(FeedbackState)
SIGNS: Final[tuple[Sign, ...]] = get_args(Sign)


async def create(request: Request) -> Response:
    """POST /v1/feedback: rate a choice of a completion."""
    who, running = caller(request), front(request)
    Query(request)
    new = ratings.parse_feedback(
        await json_object(request),
        key_id=who.key_id,
        idempotency_key=_idempotency_key(request),
    )
    if who.is_admin:
        new = replace(new, key_id=await _key_to_rate_with(who, new.completion, running))
    new = running.redaction.feedback(new)
    outcome = await running.rater.add(new)
    if outcome.outcome != "repeat":
        running.metrics.feedback.labels("api").inc()
    return json_response(objects.feedback(outcome.feedback), _STATUS[outcome.outcome])


async def index(request: Request) -> Response:
    """GET /v1/feedback: the newest first."""
    who = caller(request)
    query = Query(
        request, "limit", "after", "completion_id", "session", "rater", "state", "sign", "since"
    )
    running, named = front(request), query.text("completion_id")
    wanted = FeedbackFilter(
        key_id=_seen_by(who),
        completion=named and await running.rater.id_of(completion_id(named), _seen_by(who)),
        session=query.text("session"),
        rater=query.text("rater"),
        state=query.one_of("state", FEEDBACK_STATES),
        sign=query.one_of("sign", SIGNS),
        since_ms=query.since_ms(),
    )
    page = await running.store.list_feedback(wanted, limit=query.limit(), after=query.text("after"))
    return json_response(objects.list_of(map(objects.feedback, page.data), has_more=page.has_more))


async def export(request: Request) -> Response:
    """GET /v1/feedback/export: all that is rated as JSONL, in the format that is asked for."""
    who = caller(request)
    of_any_key = ("key_id",) if who.is_admin else ()
    query = Query(request, "format", "dialect", *of_any_key, "session", "rater", "since")
    format_ = query.one_of("format", FORMATS)
    if format_ is None:
        raise BadRequest(
            f"expected `format` to be one of {', '.join(FORMATS)}; got none", param="format"
        )
    wanted = FeedbackFilter(
        key_id=query.text("key_id") if who.is_admin else who.key_id,
        session=query.text("session"),
        rater=query.text("rater"),
        since_ms=query.since_ms(),
    )
    dialect = query.one_of("dialect", DIALECTS) or "chat"
    lines = services(request).store.export(format_, wanted, dialect=dialect)
    # What is wrong with the store is said with a status, so the first line is read before that.
    first = await anext(lines, None)
    return StreamingResponse(
        _with_first(first, lines),
        media_type="application/jsonl",
        headers={"content-disposition": f'attachment; filename="feedback.{format_}.jsonl"'},
    )


async def show(request: Request) -> Response:
    """GET /v1/feedback/{id}."""
    who = caller(request)
    Query(request)
    return json_response(objects.feedback(await _own(request, who)))


async def revise(request: Request) -> Response:
    """PUT /v1/feedback/{id}: a new revision in place of what it says."""
    who = caller(request)
    Query(request)
    said = ratings.parse_revision(await json_object(request))
    known = await _own(request, who)
    running = services(request)
    new = running.redaction.revision(replace(said, scope=known.scope))
    revised = await running.store.revise(known.id, _seen_by(who), new)
    return json_response(objects.feedback(revised))


async def withdraw(request: Request) -> Response:
    """DELETE /v1/feedback/{id}: take it back; its history is kept."""
    who = caller(request)
    Query(request)
    store = services(request).store
    withdrawn = await store.withdraw(request.path_params["id"], _seen_by(who))
    return json_response(objects.feedback(withdrawn))


class _Id(StringConvertor):
    """Any id; `export` is none, so that what can't be done there is not what a rating takes."""

    regex = "(?!export$)[^/]+"


register_url_convertor("feedback_id", _Id())

ROUTES: Final = [
    Route("/v1/feedback", create, methods=["POST"]),
    Route("/v1/feedback", index, methods=["GET"]),
    Route("/v1/feedback/export", export, methods=["GET"]),
    Route("/v1/feedback/{id:feedback_id}", show, methods=["GET"]),
    Route("/v1/feedback/{id:feedback_id}", revise, methods=["PUT"]),
    Route("/v1/feedback/{id:feedback_id}", withdraw, methods=["DELETE"]),
]


def _seen_by(who: Caller) -> str | None:
    """Return the key whose feedback `who` sees; None for all."""
    return None if who.is_admin else who.key_id


async def _key_to_rate_with(admin: Caller, completion: str, running: Front) -> str:
    """Return the key that an admin's rating counts for: the completion's."""
    if key_id := await running.flights.key_of(completion):
        return key_id
    found = await running.store.get_completion(await running.store.id_of(completion))
    return admin.key_id if found is None else found.completion.key_id


def _idempotency_key(request: Request) -> str | None:
    given = request.headers.getlist("idempotency-key")
    if len(given) > 1:
        raise BadRequest(f"expected one Idempotency-Key header, got {len(given)}; send one")
    return given[0] if given else None


async def _own(request: Request, who: Caller) -> Feedback:
    """Return the feedback that the path names.

    Raises:
        NotFound: the caller gave no such feedback.
    """
    identity = request.path_params["id"]
    found = await services(request).store.get_feedback(identity)
    if found is None or _seen_by(who) not in (None, found.key_id):
        has_key = who.key_id != LOCAL_KEY_ID and not who.is_admin
        whose = "was given with this key" if has_key else "is recorded"
        raise NotFound(f"no feedback {identity[:100]!r} {whose}; list them to find its id")
    return found


async def _with_first(first: bytes | None, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first is not None:
        yield first
        async for line in rest:
            yield line
