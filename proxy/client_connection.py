"""A client's connection: uvicorn's, with bounds on what a client can make strop hold or wait for.

Knows HTTP, and neither paths nor what is asked for.

    no HTTP                       400
    a head of over MAX_HEAD_BYTES 431, and trailers of as many too
    half a request                408 after `server.body_timeout_s`, for its head and for its body;
                                  silence is just closed
    a client that stops reading   cut off after `server.stall_timeout_s` without a byte taken
    an offer to upgrade           declined, and the request served: some clients send `Upgrade: h2c`
                                  with each (RFC 9110, section 7.8)
    HTTP/1.0                      knows no chunks: the connection's end is that of an answer whose
                                  length isn't known (RFC 9112, sections 6.1 and 6.3)
    strop stops                   the answer under way is the last, or else that to a request that
                                  comes within LAST_CALL_S
"""

import asyncio
import select
from typing import Any, Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from strop.proxy.errors import BadRequest, BodyTimeout, HeadTooLarge, head_of, render
from strop.proxy.settings.settings import Server

MAX_HEAD_BYTES = 64 * 1024
LAST_CALL_S: Final = 0.1
"""How long a connection that is idle when strop stops may still bring a request.

One may be on its way, and clients don't ask again by themselves where no answer came.
"""

_OFFER = frozenset({b"connection", b"upgrade", b"http2-settings"})


class ClientConnection(HttpToolsProtocol):
    """One connection, for uvicorn to make.

    Args:
        config: uvicorn's, as are `server_state`, `app_state` and `_loop`.
        server_state: see `config`.
        app_state: see `config`.
        limits: the server's settings.
    """

    # With uvicorn's own attributes these would be over 30, and Python packs no more than that into
    # an object: each connection would take 1.3 KB more.
    __slots__ = (
        "_has_body_come",
        "_is_arriving",
        "_is_ending",
        "_is_in_head",
        "_limits",
        "_num_head_bytes",
        "_num_unsent_bytes",
        "_request_timer",
        "_served",
        "_stall_timer",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Server,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._num_head_bytes = 0
        self._is_in_head = False
        self._is_arriving = False
        self._is_ending = False
        self._has_body_come = False
        # The request that is served now; `cycle` is the one that came last, and may wait for it.
        self._served: RequestResponseCycle | None = None
        self._request_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._num_unsent_bytes = 0

    def connection_made(  # type: ignore[override]
        self, transport: asyncio.Transport
    ) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._await_rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop_timers()
        # uvicorn's own timer would hold a connection that was reset until it fires.
        self._unset_keepalive_if_required()
        self._tell_that_it_left(self._served)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what the client sent."""
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                self._decline(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("")
            return
        # Most requests come whole, and cost no timer.
        if self._is_arriving:
            if self._request_timer is None:
                self._await_rest()
            self._bound_head(len(data))

    def on_message_begin(self) -> None:
        """Note that a head has begun."""
        super().on_message_begin()
        self._num_head_bytes = 0
        self._is_in_head = self._is_arriving = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; after the head it is a trailer, which nothing here reads."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start on a request, unless it offers an upgrade: then it is read again without."""
        self._is_in_head = False
        self._stop_waiting()
        # Not at each byte: a line end between two requests begins none, and would end all waiting.
        self._unset_keepalive_if_required()
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        self._has_body_come = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of a request; the parser takes an offer's head for the whole of it."""
        if not self.parser.should_upgrade():
            self._is_arriving = False
            self._stop_waiting()
            super().on_message_complete()
            if self.cycle.response_complete and self.timeout_keep_alive_task is None:
                # It was answered before its end, and the time of an idle connection begins here.
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's own words
        """Refuse what isn't HTTP."""
        self._refuse(
            BadRequest(
                "expected an HTTP/1.1 request, got something else, or a broken one; check that the"
                " client speaks plain HTTP to this port"
            )
        )

    def pause_writing(self) -> None:
        """Give the client some time to read."""
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        """Go on."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        super().resume_writing()

    def shutdown(self) -> None:
        """Let one more answer be the last; where none is asked for soon, close."""
        is_first, self._is_ending = not self._is_ending, True
        if self.transport.is_closing():
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and (is_first or (not self._is_arriving and self._has_unread())):
            self.loop.call_later(LAST_CALL_S, self.shutdown)
        else:
            super().shutdown()

    def _has_unread(self) -> bool:
        """Return whether something came that nobody has read: closed on that, it gets no answer."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, at once if the client has not even read its last answer."""
        if self._is_arriving:
            # A request, or the rest of one that was answered, is coming: another timer bounds that.
            self.timeout_keep_alive_task = None
        elif self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._served = cycle
        if self._request_timer is not None:
            # It waited behind another, and nothing of it was read meanwhile: its time begins here.
            self._request_timer.cancel()
            self._await_rest()
        if self._is_ending:
            cycle.keep_alive = False
        if cycle.scope["http_version"] == "1.0":
            app = _until_the_end(cycle, app)
        super()._start_asgi_task(cycle, app)

    def _bound_head(self, num_bytes: int) -> None:
        """Count what came without a body: a head, or trailers, whose end the parser waits for."""
        if self._has_body_come:
            self._has_body_come = False
            self._num_head_bytes = 0
            return
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse(
                HeadTooLarge(
                    f"expected a request line and headers of at most {MAX_HEAD_BYTES} bytes, got"
                    " more; shorten them"
                )
            )

    def _await_rest(self) -> None:
        self._request_timer = self.loop.call_later(self._limits.body_timeout_s, self._no_rest)

    def _stop_waiting(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _no_rest(self) -> None:
        self._request_timer = None
        if self.pipeline:
            # Nothing is read before the requests in front of it are answered.
            self._await_rest()
            return
        # A body may go on after its answer: it was too large, say.
        is_answered = not self._is_in_head and self.cycle and self.cycle.response_started
        if self._is_arriving and not is_answered:
            part = "head" if self._is_in_head else "body"
            self._refuse(
                BodyTimeout(
                    f"expected a request's {part} within {self._limits.body_timeout_s:g} s, got"
                    " half of it; send it faster, or raise server.body_timeout_s"
                )
            )
        else:
            self.transport.close()

    def _await_reading(self) -> None:
        self._num_unsent_bytes = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(self._limits.stall_timeout_s, self._no_reading)

    def _no_reading(self) -> None:
        if self.transport.get_write_buffer_size() < self._num_unsent_bytes:
            self._await_reading()
        else:
            self.transport.abort()

    def _stop_timers(self) -> None:
        for timer in (self._request_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()

    def _decline(self, rest: bytes) -> None:
        """Read the request again as one that offers nothing; `rest` is what came after its head."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("")
            return
        kept = [b"%b: %b\r\n" % header for header in self.headers if header[0] not in _OFFER]
        version = self.parser.get_http_version().encode()
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(kept))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(head + rest)

    def _refuse(self, error: BadRequest) -> None:
        """Answer with `error`, and close. An answer under way is cut off: two would mix."""
        served = self._served
        is_answering = served and served.response_started and not served.response_complete
        if not self.transport.is_closing() and not is_answering:
            body = render(error)
            head = [*head_of(error, body), (b"connection", b"close")]
            lines = [b"%b: %b\r\n" % header for header in head]
            self.transport.write(STATUS_LINE[error.status] + b"".join(lines) + b"\r\n" + body)
        self._tell_that_it_left(served)
        self._is_in_head = self._is_arriving = False
        self.transport.close()

    def _tell_that_it_left(self, cycle: RequestResponseCycle | None) -> None:
        """Let a request know that nobody waits for its answer any more."""
        if cycle and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()


def _until_the_end(cycle: RequestResponseCycle, app: Any) -> Any:
    """Return `app` with answers that are not cut into chunks; uvicorn closes behind them itself."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        has_length = True

        async def send_plain(message: Any) -> None:
            nonlocal has_length
            if message["type"] == "http.response.start":
                has_length = any(name == b"content-length" for name, _ in message["headers"])
            if not has_length:
                # To uvicorn, each piece is all that was announced.
                cycle.chunked_encoding = False
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return serve
