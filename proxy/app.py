"""The ASGI application: what strop is made of, and which part answers which path.

Completions take the short way to the relay; everything else is a Starlette route. The list of `/v1`
paths is closed, so an engine's own admin routes can't be reached through here.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from strop.adapters.library import Library
from strop.proxy import auth, run_requests
from strop.proxy.call import ClientLeft, Receive, Send
from strop.proxy.engines.base import Dialect, Engine
from strop.proxy.engines.embedded import EngineProcess
from strop.proxy.errors import (
    SOURCE_HEADER,
    ShuttingDown,
    StoreUnavailable,
    StropError,
    render,
)
from strop.proxy.intake import Intake
from strop.proxy.metrics import Metrics
from strop.proxy.pairing import base_folder, identity_of
from strop.proxy.passing import pass_through
from strop.proxy.promotion import Promoter
from strop.proxy.rater import Rater
from strop.proxy.relay import Relay
from strop.proxy.run_requests import NO_BASE, Base, TrainCommand
from strop.proxy.serving import Serving
from strop.proxy.settings import Settings
from strop.proxy.shelf import Shelf
from strop.proxy.store.store import Store
from strop.proxy.swapping import Swapper
from strop.proxy.trainer import Trainer

log = logging.getLogger(__name__)

_COMPLETIONS: dict[str, Dialect] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
}
_PASSED = frozenset({"/v1/embeddings"})


@dataclass(slots=True)
class Services:
    """The parts of a running strop, for the routes."""

    settings: Settings
    home: Path
    keys: auth.Keys
    doors: auth.Doors
    store: Store
    metrics: Metrics
    serving: Serving
    relay: Relay
    swapper: Swapper
    trainer: Trainer
    rater: Rater
    intake: Intake
    process: EngineProcess | None = None


def adapters_folder(home: Path) -> Path:
    """Return the folder of adapter versions, as engines on this machine are told of it."""
    return (home / "adapters").absolute()


@contextlib.asynccontextmanager
async def run_services(
    settings: Settings,
    home: Path,
    engine: Engine,
    process: EngineProcess | None,
    *,
    train_command: TrainCommand = run_requests.command,
) -> AsyncIterator[Services]:
    """Open the store, start what runs in the background, and end all of it in order.

    Args:
        settings: all of them.
        home: the folder with the database and the admin key.
        engine: the driver; its upstream is closed at the end.
        process: the embedded engine, if strop runs one.
        train_command: returns the command line of a training run's process.
    """
    capture = settings.capture
    store = await Store.open(
        home / "strop.db",
        synchronous="full" if capture.synchronous == "FULL" else "normal",
        busy_timeout_s=capture.commit_timeout_s,
        max_queued=capture.max_queued,
        is_server=True,
    )
    metrics = Metrics()
    activation = await store.versions.activation()
    serving = Serving(
        engine,
        model_name=settings.model.name,
        accepts_any=settings.model.accept_any,
        check_interval_s=settings.engine.health_interval_s,
        active=activation.version,
    )
    swapper = Swapper(
        Shelf(
            store,
            Library(adapters_folder(home)),
            find_base=lambda: base_folder(settings),
            num_kept=settings.adapters.keep,
        ),
        serving,
        metrics,
        identify=lambda: identity_of(settings, home),
        hold_s=settings.adapters.swap_hold_s,
        reopens=settings.training.reopen_on_rollback,
    )
    try:
        await swapper.replay()
    except StoreUnavailable as error:
        # It serves without; what is left half done is settled at the next start.
        log.error("versions are not settled", extra={"reason": error.message})
    serving.keeper = swapper.keeper
    relay = Relay(settings, serving, store, metrics)
    trainer = Trainer(
        settings.training,
        home,
        store,
        Promoter(settings.training, store, swapper),
        base=lambda: _trainable(settings, serving),
        load=lambda: relay.num_calls,
        command=train_command,
    )
    server = settings.server
    keys = auth.Keys(server.client_keys, auth.load_or_create_admin_key(home))
    doors = auth.Doors(server.host, server.allowed_hosts, server.allowed_origins)
    rater = Rater(store, relay.is_in_flight, metrics)
    services = Services(
        settings,
        home,
        keys,
        doors,
        store,
        metrics,
        serving,
        relay,
        swapper,
        trainer,
        rater,
        Intake(settings.server, relay, rater),
        process,
    )
    background = [
        asyncio.create_task(serving.watch()),
        asyncio.create_task(relay.sweep()),
        asyncio.create_task(trainer.watch()),
    ]
    if process is not None:
        background.append(
            asyncio.create_task(process.keep_alive(lambda: identity_of(settings, home)))
        )
    for task in background:
        task.add_done_callback(_say_why)
    try:
        yield services
    finally:
        # The engine outlives the drain, the store everything; nobody watches an engine that stops.
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await swapper.aclose()
        if process is not None:
            await process.stop()
        for one in (engine, *(replica.engine for replica in engine.replicas)):
            await one.upstream.aclose()
        await store.close()


def _trainable(settings: Settings, serving: Serving) -> Base | str:
    """Return the base that ratings can train, or why there is none."""
    if serving.engine.adapters is None:
        return (
            f"the engine {serving.engine.label} serves no adapter versions here, so ratings are"
            " kept and nothing is trained"
        )
    folder = base_folder(settings)
    if folder is None:
        return NO_BASE
    if serving.base is None:
        return "the identity of the base is not known yet"
    return Base(folder, serving.base)


def _say_why(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("a background task ended", exc_info=task.exception())


class App:
    """The ASGI application.

    Args:
        services: a context manager that yields what `run_services` does; entered at start-up.
        routes: makes the Starlette application for everything but completions.
    """

    def __init__(
        self,
        services: contextlib.AbstractAsyncContextManager[Services],
        routes: Callable[[Services], Starlette],
    ) -> None:
        self._open = services
        self._make_routes = routes
        self._services: Services | None = None
        self._routes: Starlette | None = None

    @property
    def services(self) -> Services:
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
        except StropError as error:
            await send({"type": "lifespan.startup.failed", "message": error.message})
            return
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        try:
            await self._dispatch(scope, receive, send)
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

    async def _answer(self, error: StropError, send: Send) -> None:
        self.services.metrics.refused.labels(error.code).inc()
        body = render(error)
        head = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            SOURCE_HEADER,
        ]
        if error.status == 503:
            head.append((b"retry-after", b"2"))
        elif error.status == 401:
            head.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": error.status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async def _dispatch(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        services = self.services
        services.doors.check(scope["headers"])
        path, session = _without_session(scope["path"])
        if scope["method"] == "POST":
            if dialect := _COMPLETIONS.get(path):
                await services.intake.take(
                    dialect,
                    scope,
                    receive,
                    send,
                    caller=services.keys.caller(scope["headers"]),
                    path_session=session,
                )
                return
            if path in _PASSED:
                services.keys.caller(scope["headers"])
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
