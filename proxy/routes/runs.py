"""Training runs, for the owner: what they did, one more, one less.

Does not train: the trainer's child process does. The admin key is asked for before these routes.
"""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from strop.proxy import adapter_objects, objects
from strop.proxy.errors import BadRequest, NotFound
from strop.proxy.routes.requests import Query, actor, control, fields, services
from strop.proxy.routes.responses import json_response
from strop.proxy.run_requests import MAX_SEED, Wanted
from strop.proxy.settings.settings import KINDS
from strop.proxy.store.run_records import Run

OBJECTIVES: Final = KINDS["training.objective"].choices


async def index(request: Request) -> Response:
    """GET /admin/runs: the newest first, and what the next one waits for."""
    query = Query(request, "limit", "after")
    running = control(request)
    page = await running.store.runs.list(limit=query.limit(), after=query.text("after"))
    shown = objects.list_of(map(adapter_objects.run, page.data), has_more=page.has_more)
    return json_response(shown | {"waits_for": await running.trainer.waits_for()})


async def create(request: Request) -> Response:
    """POST /admin/runs: train now, with what is rated."""
    asked = await fields(request, "objective", "preset", "parent", "seed")
    objective = asked.text("objective")
    if objective is not None and objective not in OBJECTIVES:
        raise BadRequest(
            f"expected `objective` to be one of {', '.join(OBJECTIVES)}; got {objective!r:.100}",
            param="objective",
        )
    seed = asked.integer("seed", MAX_SEED)
    wanted = Wanted(objective, asked.text("preset"), asked.text("parent"), seed)
    run = await control(request).trainer.request(wanted, actor=actor(request))
    return json_response(adapter_objects.run(run), 201)


async def show(request: Request) -> Response:
    """GET /admin/runs/{id}: with the metrics of every step."""
    Query(request)
    run = await _run(request)
    steps = await services(request).store.runs.list_steps(run.id)
    return json_response(adapter_objects.run(run, steps))


async def cancel(request: Request) -> Response:
    """DELETE /admin/runs/{id}: it stops at its next step; its ratings stay to be learned from."""
    run = await _run(request)
    return json_response(adapter_objects.run(await control(request).trainer.cancel(run.id)))


ROUTES: Final = [
    Route("/runs", index, methods=["GET"]),
    Route("/runs", create, methods=["POST"]),
    Route("/runs/{id}", show, methods=["GET"]),
    Route("/runs/{id}", cancel, methods=["DELETE"]),
]
"""Mounted under /admin."""


async def _run(request: Request) -> Run:
    id_ = request.path_params["id"]
    found = await services(request).store.runs.get(id_)
    if found is None:
        raise NotFound(f"there is no run {id_[:100]!r}; GET /admin/runs lists them")
    return found
