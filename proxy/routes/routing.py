"""Which route answers which path, as one application, and the answers of paths that have none.

Knows the routes by their lists alone.
"""

import time
from collections.abc import Sequence
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from strop.proxy.auth import Keys
from strop.proxy.errors import MethodNotAllowed, NotFound, StropError
from strop.proxy.parts import Control, Front, Parts, Services
from strop.proxy.routes import (
    adapters,
    completions,
    count_tokens,
    feedback,
    health,
    models,
    openapi,
    runs,
)
from strop.proxy.routes.operations import RELAYED
from strop.proxy.routes.requests import services
from strop.proxy.routes.responses import error_response


class AdminOnly:
    """Lets only requests with the admin key pass, so that no route behind it can forget to ask."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope.

        Raises:
            Unauthorized: the admin key was not sent.
        """
        self._keys.require_admin(scope["headers"])
        await self._app(scope, receive, send)


_FRONT: Final = [
    *(*health.ROUTES, *openapi.ROUTES, *models.ROUTES),
    *(*count_tokens.ROUTES, *feedback.ROUTES),
]
_DECIDED: Final = [*adapters.ROUTES, *runs.ROUTES]
_CONTROL_PATHS: Final = (
    *(route.path for route in health.CONTROL_ROUTES),
    "/admin/adapters",
    "/admin/runs",
)


_UNSPOKEN: Final = {
    "/v1/responses/": "of the Responses API only POST /v1/responses is spoken here",
    "/v1/messages/": "this is not a part of Anthropic's Messages API that is spoken here",
}


def make(running: Services) -> ASGIApp:
    """Return the application for everything that isn't relayed."""
    return _application(
        running, [*_FRONT, *health.CONTROL_ROUTES], [*completions.ROUTES, *_DECIDED]
    )


def make_control(running: Control) -> ASGIApp:
    """Return the part of the application that only the process that decides can answer."""
    return _application(running, [*health.CONTROL_ROUTES], _DECIDED)


def make_front(running: Front, control: ASGIApp) -> ASGIApp:
    """Return the application of a process that answers; `control` gets what it can't answer."""
    own = _application(running, _FRONT, completions.ROUTES)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await (control if is_decided(scope["path"]) else own)(scope, receive, send)

    return serve


def is_decided(path: str) -> bool:
    """Whether only the process that decides can answer a request to `path`."""
    return any(path == one or path.startswith(f"{one}/") for one in _CONTROL_PATHS)


def _application(
    running: Parts, routes: Sequence[BaseRoute], admin: Sequence[BaseRoute]
) -> Starlette:
    app = Starlette(
        routes=[
            *routes,
            Mount("/admin", routes=admin, middleware=[Middleware(AdminOnly, keys=running.keys)]),
        ],
        exception_handlers={
            StropError: _strop_error,
            HTTPException: _http_error,
            Exception: _unforeseen,
        },
    )
    # A redirect would lose the body of a POST, and name the Host that the client sent.
    app.router.redirect_slashes = False
    app.state.services = running
    app.state.started = time.monotonic()
    app.state.started_epoch_s = int(time.time())
    return app


def paths(app: Starlette) -> dict[str, set[str]]:
    """Return every path that `app` has routes for, and its methods."""
    found: dict[str, set[str]] = {}
    _collect(app.routes, "", found)
    return found


def _collect(routes: list[BaseRoute], prefix: str, found: dict[str, set[str]]) -> None:
    for route in routes:
        if isinstance(route, Mount):
            _collect(list(route.routes), prefix + route.path, found)
        elif isinstance(route, Route):
            methods = (route.methods or set()) - {"HEAD"}
            found.setdefault(prefix + route.path_format, set()).update(methods)


def _strop_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StropError)
    services(request).metrics.refused.labels(error.code).inc()
    return error_response(error)


def _http_error(request: Request, error: Exception) -> Response:
    """Render Starlette's own errors: no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    path, headers = request.scope["path"], {}
    if allowed := _methods_at(request.app.routes, _outermost(path)):
        headers["Allow"] = ", ".join(sorted(allowed))
        refused: StropError = MethodNotAllowed(
            f"expected {headers['Allow']} at {path[:200]}, got {request.method}"
        )
    else:
        there = sorted([*RELAYED, *(one for one in paths(request.app) if one.startswith("/v1/"))])
        refused = NotFound(f"nothing is at {path[:200]}; {_where_instead(path, there)}")
    services(request).metrics.refused.labels(refused.code).inc()
    return error_response(refused, headers)


def _where_instead(path: str, there: Sequence[str]) -> str:
    """Return where to look for what was sought at `path`; `there` are the paths under /v1."""
    for meant in (f"/v1{path}", path.removeprefix("/v1")):
        if meant == "/v1/messages":
            return f"it is at {meant}: let the base URL of your client end without /v1"
        if meant in there:
            return f"it is at {meant}: let the base URL of your client end in one /v1"
    if path.startswith("/api/"):
        return (
            "Ollama's own API is not spoken here, but OpenAI's, whose base URL ends in /v1 (Open"
            " WebUI: an OpenAI connection)"
        )
    if not path.startswith("/v1/"):
        return "/openapi.json lists what there is"
    listed = f"under /v1 are: {', '.join(there)}"
    for prefix, why in _UNSPOKEN.items():
        if path.startswith(prefix):
            return f"{why}; {listed}"
    return listed


def _outermost(path: str) -> Scope:
    """Return the scope of a request to `path` before any route has looked at it."""
    return {"type": "http", "path": path, "root_path": "", "method": ""}


def _methods_at(routes: list[BaseRoute], scope: Scope) -> set[str]:
    """Return every method that the path in `scope` takes; Starlette names those of one route."""
    if scope["path"] in RELAYED:
        return {"POST"}
    found: set[str] = set()
    for route in routes:
        match, inner = route.matches(scope)
        if match is Match.NONE:
            continue
        if isinstance(route, Mount):
            found |= _methods_at(list(route.routes), {**scope, **inner})
        elif isinstance(route, Route):
            found |= route.methods or set()
    return found


def _unforeseen(_request: Request, _error: Exception) -> Response:
    return _Unsaid()


class _Unsaid(Response):
    """Sends nothing: Starlette raises the error again behind it, and the application answers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Leave the request unanswered."""
