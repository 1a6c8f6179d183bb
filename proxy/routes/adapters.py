"""Adapter versions, for the owner: what there is, and which one serves.

Does not load, probe or move traffic itself: the swapper does. The admin key is asked for before
these routes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from strop.adapters.rates import Rate
from strop.proxy import adapter_objects, objects
from strop.proxy.errors import BadRequest
from strop.proxy.parts import Control
from strop.proxy.routes.requests import Query, actor, control, fields, services
from strop.proxy.routes.responses import json_response
from strop.proxy.store.version_records import BASE, Version

LIST_EVENTS: Final = 200
"""How many events, the newest of all versions, are shown in the list."""

SHOW_EVENTS: Final = 100


async def index(request: Request) -> Response:
    """GET /admin/adapters: the newest version first, which one is active, and what is going on."""
    Query(request)
    running = control(request)
    versions = running.store.versions
    events = await versions.list_events(limit=LIST_EVENTS)
    activation = await versions.activation()
    liked = await _liked(running)
    shown = [
        adapter_objects.adapter(
            one,
            running.swapper.loaded(one.id),
            [event for event in events if event.version == one.id],
            liked.get(one.id),
        )
        for one in await versions.list()
    ]
    return json_response(
        objects.list_of(shown)
        | {
            "active": activation.version,
            "previous": activation.previous,
            "base_liked": adapter_objects.rate(liked.get(BASE)),
            "activating": adapter_objects.progress(running.swapper.progress),
        }
    )


async def show(request: Request) -> Response:
    """GET /admin/adapters/{version}."""
    Query(request)
    return json_response(await _shown(request, await _version(request)))


async def create(request: Request) -> Response:
    """POST /admin/adapters: import a PEFT adapter from a folder of this machine."""
    folder = Path((await fields(request, "path")).required_text("path"))
    if not folder.is_absolute():
        raise BadRequest(
            f"expected `path` to be an absolute path of a folder, got {str(folder)[:200]!r}",
            param="path",
        )
    version = await control(request).swapper.import_adapter(folder, actor=actor(request))
    return json_response(await _shown(request, version), 201)


async def activate(request: Request) -> Response:
    """PUT /admin/adapters/active: 200 once the version serves everywhere."""
    asked = await fields(request, "version", "force")
    done = await control(request).swapper.activate(
        asked.required_text("version"), actor=actor(request), force=asked.flag("force") or False
    )
    return json_response(adapter_objects.switched(done))


async def rollback(request: Request) -> Response:
    """POST /admin/adapters/rollback: activate the version that was active before."""
    await fields(request, may_be_empty=True)
    done = await control(request).swapper.rollback(actor=actor(request))
    return json_response(adapter_objects.switched(done))


async def update(request: Request) -> Response:
    """PUT /admin/adapters/{version}: keep it, however many newer ones there are, or no longer."""
    kept = (await fields(request, "kept")).flag("kept")
    if kept is None:
        raise BadRequest("expected `kept`, true or false", param="kept")
    version = await _version(request)
    changed = await services(request).store.versions.set_kept(version.id, kept)
    return json_response(await _shown(request, changed))


async def remove(request: Request) -> Response:
    """DELETE /admin/adapters/{version}: its files go, what it learned from stays known."""
    version = await _version(request)
    await control(request).swapper.remove(version.id, actor=actor(request))
    return json_response({"id": version.id, "object": "adapter", "deleted": True})


ROUTES: Final = [
    Route("/adapters", index, methods=["GET"]),
    Route("/adapters", create, methods=["POST"]),
    Route("/adapters/active", activate, methods=["PUT"]),
    Route("/adapters/rollback", rollback, methods=["POST"]),
    Route("/adapters/{version}", show, methods=["GET"]),
    Route("/adapters/{version}", update, methods=["PUT"]),
    Route("/adapters/{version}", remove, methods=["DELETE"]),
]
"""Mounted under /admin."""


async def _version(request: Request) -> Version:
    return await services(request).store.versions.existing(request.path_params["version"])


async def _shown(request: Request, version: Version) -> objects.Object:
    running = control(request)
    events = await running.store.versions.list_events(version.id, limit=SHOW_EVENTS)
    liked = (await _liked(running)).get(version.id)
    return adapter_objects.adapter(version, running.swapper.loaded(version.id), events, liked)


async def _liked(running: Control) -> Mapping[str, Rate]:
    base = running.serving.base
    return {} if base is None else await running.store.training.live_rates(base=base)
