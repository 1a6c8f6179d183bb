"""One worker: answers clients as one process would, and lets another decide what is served.

Started by `processes`; its settings come over the line, and its connections over the door.
"""

import argparse
import asyncio
import contextlib
import functools
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import uvicorn
import uvloop

from strop.proxy import auth, configured_engine, logs
from strop.proxy.app import App
from strop.proxy.child import follow_parent
from strop.proxy.client_connection import ClientConnection
from strop.proxy.errors import Unavailable
from strop.proxy.http_server import Server, collect_rarely, uvicorn_config
from strop.proxy.parts import Front, run_front
from strop.proxy.routes import routing
from strop.proxy.settings.settings import Settings
from strop.proxy.tally import note_store, num_lost
from strop.proxy.workers import sums
from strop.proxy.workers.door import Arrivals
from strop.proxy.workers.following import Following, key_elsewhere
from strop.proxy.workers.frames import (
    Answer,
    Begin,
    Call,
    Hurry,
    Key,
    KeyOf,
    Look,
    Looks,
    Moved,
    Note,
    Request,
    Response,
    Serve,
    Started,
)
from strop.proxy.workers.link import Link
from strop.proxy.workers.requests import passing_on

log = logging.getLogger(__name__)

ORPHAN_GRACE_S: Final = 5.0
"""How long a worker may take to end by itself once the process that decides is gone."""

_HURRY_S = 1.0


class Worker:
    """One worker, from what it was told first.

    Args:
        link: the line to the process that decides.
        begin: what to serve.
    """

    def __init__(self, link: Link, begin: Begin) -> None:
        self._link = link
        self._begin = begin
        home = Path(begin.home)
        engine = configured_engine.at(begin.engine_url, begin.settings, home)
        self._serving = Following(engine, begin.settings, link)
        self._serving.adopt(begin.view)
        self._elsewhere = functools.partial(key_elsewhere, link)
        self._home = home
        self._turn = begin.turn
        self._hurry: Callable[[], None]
        self.app = App(self._services(), self._routes)

    async def serve(self, arrivals: Arrivals) -> int:
        """Serve until stopped; return the exit status."""
        settings = self._begin.settings
        make = functools.partial(_Connection, arrivals)
        server = _Server(uvicorn_config(settings, self.app, make), arrivals, self._started)
        self._hurry = server.end_now
        listening = asyncio.create_task(self._listen())
        try:
            await server.serve()
        finally:
            listening.cancel()
        return server.exit_status

    async def _listen(self) -> None:
        """Follow the process that decides; without it, nothing is served any more."""
        await self._link.run(self._note, self._answer)
        log.error("the process that decides is gone, so this worker ends")
        self._hurry()

    def _started(self) -> None:
        self._link.tell(Started())
        self._say_moved()

    def _say_moved(self) -> None:
        self._link.tell(Moved(self._turn, self._serving.holds.held()))

    def _note(self, note: Note) -> None:
        if isinstance(note, Serve):
            self._serving.adopt(note.view)
            self._turn = note.turn
            self._say_moved()
        elif isinstance(note, Hurry):
            self._hurry()

    async def _answer(self, call: Call) -> Answer:
        if not self.app.has_started:
            raise Unavailable("this worker has not started yet; try again")
        front = self.app.services
        match call:
            case KeyOf(completion):
                return Key(front.relay.key_of(completion))
            case Look():
                note_store(front.metrics, front.store.health)
                replicas = self._serving.engine.replicas
                return Looks(
                    front.relay.num_calls,
                    num_lost(front.metrics),
                    front.store.health,
                    sums.read(front.metrics.registry),
                    {one.engine.upstream.url: one.num_in_flight for one in replicas},
                )
        raise TypeError(f"expected a call to a worker, got {type(call).__name__}")

    @contextlib.asynccontextmanager
    async def _services(self) -> AsyncIterator[Front]:
        begin = self._begin
        async with run_front(begin.settings, self._home, self._serving, self._elsewhere) as front:
            collect_rarely()
            yield front

    def _routes(self, front: Front) -> Any:
        async def ask(request: Request) -> Response:
            return await self._link.ask(request, Response)

        return routing.make_front(front, passing_on(ask, front.settings.server))


class _Connection(ClientConnection):
    """A client's connection that came through the door."""

    def __init__(self, arrivals: Arrivals, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._arrivals = arrivals

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so at the door."""
        super().connection_lost(exc)
        self._arrivals.closed()


class _Server(Server):
    """A server whose connections come through the door."""

    def __init__(
        self, config: uvicorn.Config, arrivals: Arrivals, on_started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._arrivals = arrivals
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Open what serves, then take connections."""
        await super().startup(sockets=[])
        self._arrivals.start(self._connection)
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and end those there are."""
        await self._arrivals.stop()
        await super().shutdown(sockets)

    def end_now(self) -> None:
        """Cut off what runs, and end in order."""
        self.config.timeout_graceful_shutdown = round(_HURRY_S)
        self.handle_exit(signal.SIGTERM, None)
        # A drain that has begun would go on, for those too who don't read what they are told.
        for task in self.server_state.tasks:
            task.cancel()
        asyncio.get_running_loop().call_later(_HURRY_S, self._cut)

    def _cut(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def _connection(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def _set_up_log(number: int, home: Path, settings: Settings) -> None:
    """Log as the process that decides does, with the worker's number in each line."""
    keys = auth.secrets_of(settings.server.client_keys, settings.engine.key)
    logs.set_up(settings.log, (*keys, auth.load_or_create_admin_key(home)))
    make = logging.getLogRecordFactory()

    def numbered(*args: Any, **named: Any) -> logging.LogRecord:
        record = make(*args, **named)
        record.worker = number
        return record

    logging.setLogRecordFactory(numbered)


async def _main(link_fd: int, door_fd: int) -> int:
    link = await Link.open(socket.socket(fileno=link_fd))
    begin = await link.first()
    if not isinstance(begin, Begin):
        return 1
    _set_up_log(begin.number, Path(begin.home), begin.settings)
    return await Worker(link, begin).serve(Arrivals(socket.socket(fileno=door_fd)))


def main() -> int:
    """Run a worker; return its exit status."""
    parser = argparse.ArgumentParser(description="A worker of strop's; `strop serve` starts it.")
    for name in ("--parent-fd", "--link-fd", "--door-fd"):
        parser.add_argument(name, type=int, required=True)
    given = parser.parse_args()
    threading.Thread(
        target=follow_parent, args=(given.parent_fd, ORPHAN_GRACE_S), daemon=True
    ).start()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_main(given.link_fd, given.door_fd))


if __name__ == "__main__":
    raise SystemExit(main())
