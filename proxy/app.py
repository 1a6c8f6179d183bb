"""The ASGI application: which part answers which path.

Completions take the short way to the relay; everything else is a Starlette route. The list of `/v1`
paths is closed, so an engine's own admin routes can't be reached through here.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, MutableMapping
from typing import Any, Generic, TypeVar

from starlette.types import ASGIApp

from strop.proxy.auth import without_keys
from strop.proxy.call import ClientLeft, Receive, Send
from strop.proxy.engines.base import Dialect
from strop.proxy.errors import ShuttingDown, StropError, head_of, render
from strop.proxy.parts import Front
from strop.proxy.passing import pass_through
from strop.proxy.translating import Interpreter, earlier_in
from strop.proxy.wire.headers import Headers
from strop.proxy.wire.messages.dialect import MESSAGES
from strop.proxy.wire.responses.dialect import RESPONSES
from strop.proxy.wire.translation import Earlier, Translation

log = logging.getLogger(__name__)

_TRANSLATED: dict[str, Translation] = {
    "/v1/messages": MESSAGES,
    "/v1/responses": RESPONSES,
}
_COMPLETIONS: dict[str, Dialect] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    **dict.fromkeys(_TRANSLATED, "chat"),
}
_PASSED = frozenset({"/v1/embeddings"})

F = TypeVar("F", bound=Front)


class App(Generic[F]):
    """The ASGI application.

    Args:
        services: a context manager that yields the parts to serve with; entered at start-up.
        routes: makes the application for everything but completions.

    Attributes:
        failure: why it did not start, or did not stop in order; None where it did.
    """

    def __init__(
        self,
        services: contextlib.AbstractAsyncContextManager[F],
        routes: Callable[[F], ASGIApp],
    ) -> None:
        self._open = services
        self._make_routes = routes
        self._services: F | None = None
        self._routes: ASGIApp | None = None
        self.failure: Exception | None = None

    @property
    def has_started(self) -> bool:
        """Whether start-up has finished."""
        return self._services is not None

    @property
    def services(self) -> F:
        """The running parts.

        Raises:
            RuntimeError: start-up has not finished.
        """
        if self._services is None:
            raise RuntimeError("strop has not started")
        return self._services

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with self._open as services:
                self._services = services
                self._routes = self._make_routes(services)
                await send({"type": "lifespan.startup.complete"})
                # Cancelled where a person asks twice: then all ends in order too, but at once.
                with contextlib.suppress(asyncio.CancelledError):
                    await receive()
        except Exception as error:
            self.failure = error
            if not isinstance(error, StropError | OSError):
                # The server logs it, with its traceback.
                raise
            stage = "shutdown" if self.has_started else "startup"
            said = error.message if isinstance(error, StropError) else str(error)
            await send({"type": f"lifespan.{stage}.failed", "message": said})
            return
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        path, session = _without_session(scope["path"])
        translation = _TRANSLATED.get(path) if scope["method"] == "POST" else None
        if translation is not None:
            limits = self.services.settings.server
            recall = functools.partial(self._recall, scope["headers"])
            between = Interpreter(translation, scope, receive, send, limits, recall)
            scope, receive, send = between.scope, between.receive, between.send
        try:
            await self._dispatch(scope, receive, send, path, session)
        except ClientLeft:
            return
        except StropError as error:
            await self._answer(error, send)
        except asyncio.CancelledError:
            # The drain is over, and the request had not got as far as the relay.
            with contextlib.suppress(RuntimeError):
                await self._answer(ShuttingDown("strop is stopping; ask again shortly"), send)
        except Exception:
            # The edge of a request: whatever goes wrong inside, others are served as before.
            log.exception("request failed", extra={"path": scope["path"]})
            # Where an answer has begun, the server refuses a second head and closes the connection.
            with contextlib.suppress(RuntimeError):
                await self._answer(StropError("strop failed to serve this; see its log"), send)

    async def _recall(self, headers: Headers, digits: str) -> Earlier | None:
        """Return what a client was answered before, if it is recorded as it was."""
        services = self.services
        if services.settings.capture.redact:
            return None
        found = await services.store.get_completion(f"cmp_{digits}")
        return earlier_in(found, services.keys.caller(headers).key_id) if found else None

    async def _answer(self, error: StropError, send: Send) -> None:
        self.services.metrics.refused.labels(error.code).inc()
        body = render(error)
        head = head_of(error, body)
        await send({"type": "http.response.start", "status": error.status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async def _dispatch(
        self,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
        path: str,
        session: str | None,
    ) -> None:
        services = self.services
        services.doors.check(scope["headers"])
        dialect = _COMPLETIONS.get(path)
        if scope["method"] == "POST" and (dialect or path in _PASSED):
            caller = services.keys.caller(scope["headers"])
            if caller.is_admin:
                # An engine that is given its caller's key must not get this one.
                scope["headers"] = without_keys(scope["headers"])
            if dialect:
                await services.intake.take(
                    dialect, scope, receive, send, caller=caller, path_session=session
                )
            else:
                await pass_through(
                    scope,
                    receive,
                    send,
                    path=path,
                    settings=services.settings,
                    serving=services.serving,
                    metrics=services.metrics,
                )
            return
        assert self._routes is not None
        await self._routes({**scope, "path": path, "raw_path": path.encode()}, receive, send)


def _without_session(path: str) -> tuple[str, str | None]:
    """Return a path without its `/s/<session>` prefix, and the session."""
    if not path.startswith("/s/"):
        return path, None
    session, slash, rest = path[3:].partition("/")
    return (slash + rest, session) if session and slash else (path, None)
