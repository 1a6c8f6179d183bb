"""Recorded completions, for the owner: a list without texts, and each one whole.

Takes no completion requests: the relay does. The admin key is asked for before these routes.
"""

from typing import Final, get_args

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from strop.proxy import objects
from strop.proxy.errors import UnknownCompletion
from strop.proxy.ids import completion_id
from strop.proxy.routes.requests import Query, services
from strop.proxy.routes.responses import json_response
from strop.proxy.store.records import CompletionFilter, FeedbackFilter, State

MAX_RATINGS: Final = 1000
"""How many ratings are shown with one completion, the newest."""

STATES: Final[tuple[State, ...]] = get_args(State)
TRUTHS: Final = {"true": True, "false": False}


async def index(request: Request) -> Response:
    """GET /admin/completions: the newest first."""
    query = Query(
        request, "limit", "after", "key_id", "session", "state", "model", "rated", "since"
    )
    rated = query.one_of("rated", tuple(TRUTHS))
    wanted = CompletionFilter(
        key_id=query.text("key_id"),
        session=query.text("session"),
        state=query.one_of("state", STATES),
        model=query.text("model"),
        is_rated=None if rated is None else TRUTHS[rated],
        since_ms=query.since_ms(),
    )
    page = await services(request).store.list_completions(
        wanted, limit=query.limit(), after=query.text("after")
    )
    return json_response(objects.list_of(map(objects.summary, page.data), has_more=page.has_more))


async def show(request: Request) -> Response:
    """GET /admin/completions/{id}: what was asked and answered, the snapshot, and the ratings."""
    Query(request)
    store = services(request).store
    identity = await store.id_of(completion_id(request.path_params["id"]))
    found = await store.get_completion(identity)
    if found is None:
        raise UnknownCompletion(
            f"no completion {identity[:100]!r} is recorded; GET /admin/completions lists them"
        )
    ratings = await store.list_feedback(FeedbackFilter(completion=identity), limit=MAX_RATINGS)
    return json_response(objects.completion(found, ratings.data))


ROUTES: Final = [
    Route("/completions", index, methods=["GET"]),
    Route("/completions/{id}", show, methods=["GET"]),
]
"""Mounted under /admin."""
