"""The model names that requests may use, as OpenAI model objects.

Does not ask the engine: the alias says what each name means now.
"""

from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from strop.proxy import objects
from strop.proxy.alias import BASE, Alias
from strop.proxy.errors import StoreUnavailable, UnknownModel
from strop.proxy.routes.requests import caller, services
from strop.proxy.routes.responses import json_response


async def index(request: Request) -> Response:
    """GET /v1/models."""
    caller(request)
    alias, parents = services(request).serving.alias, await _parents(request)
    shown = (_model(request, alias, name, parents) for name in alias.names())
    return json_response(objects.list_of(shown))


async def show(request: Request) -> Response:
    """GET /v1/models/{name}; a name may hold slashes."""
    caller(request)
    alias, name = services(request).serving.alias, request.path_params["name"]
    if name not in alias.names():
        raise UnknownModel(alias.no_such(name), param="model")
    return json_response(_model(request, alias, name, await _parents(request)))


ROUTES: Final = [
    Route("/v1/models", index, methods=["GET"]),
    Route("/v1/models/{name:path}", show, methods=["GET"]),
]


async def _parents(request: Request) -> Mapping[str, str]:
    """Return what each version was made from; nothing while the store can't be read."""
    try:
        found = await services(request).store.versions.list()
    except StoreUnavailable:
        return {}
    return {one.id: one.parent or BASE for one in found}


def _model(
    request: Request, alias: Alias, name: str, parents: Mapping[str, str]
) -> dict[str, object]:
    """Return the model object of `name`, as vLLM extends OpenAI's.

    `root` is the pinned name that it stands for, and `parent`, of a pinned name, what that was
    trained from. Of another model of the engine no more is known than its name.
    """
    served = alias.resolve(name)
    is_other = name in alias.others
    # To who knows vLLM's dialect, what has a parent is an adapter beside the model to use.
    is_pinned = name not in (alias.name, *alias.synonyms)
    parent = parents.get(served.version) if is_pinned else None
    state = services(request).serving.state
    return {
        "id": name,
        "object": "model",
        "created": request.app.state.started_epoch_s,
        "owned_by": "strop",
        "root": name if is_other else f"{alias.name}@{served.version}",
        "parent": None if parent is None else f"{alias.name}@{parent}",
        "version": served.version,
        "max_model_len": None if is_other or state is None else state.max_model_len,
    }
