"""From an HTTP request to a completion that can be relayed.

Reads and checks the body, carries out inline commands and header ratings. Forwards nothing.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from strop.proxy import conversation, inline
from strop.proxy.auth import Caller
from strop.proxy.call import ClientLeft, Incoming, Receive, Send
from strop.proxy.engines.base import Ask, Dialect
from strop.proxy.errors import BadRequest, BodyEncoded, BodyTooLarge, StropError
from strop.proxy.ids import new_id
from strop.proxy.rater import Rater
from strop.proxy.relay import Relay
from strop.proxy.settings.settings import Server
from strop.proxy.store.clock import now_ms
from strop.proxy.wire import body as wire_body
from strop.proxy.wire import chat
from strop.proxy.wire import headers as wire_headers
from strop.proxy.wire.rechunk import rechunk

log = logging.getLogger(__name__)

FOLLOWS: Final = "strop.follows"
"""Where a scope says, once its body is read, which completion's answer the history ends in."""

ENDS_IN: Final = "strop.ends_in"
"""Where the start of strop's own answer says which completion has all that was said before it.

In a scope, that this is to be found.
"""

RATING_HEADER = b"x-strop-feedback"
RATING_FOR_HEADER = b"x-strop-feedback-for"
RATING_STATUS_HEADER = b"x-strop-feedback-status"


async def read_body(
    receive: Receive, headers: wire_headers.Headers, limits: Server, *, may_be_encoded: bool = False
) -> bytes:
    """Return the whole request body, chunked or not; its connection bounds how long it may take.

    Args:
        receive: gives its pieces.
        headers: the request's.
        limits: how long it may be.
        may_be_encoded: whether it is for somebody who may know its content coding.

    Raises:
        BodyEncoded: it has a content coding.
        BodyTooLarge: it is longer than `server.max_body_bytes`.
        ClientLeft: the connection was closed before its end.
    """
    if not may_be_encoded:
        _refuse_encoded(headers)
    limit = limits.max_body_bytes
    said = wire_headers.first(headers, b"content-length")
    if said is not None and int(said) > limit:
        raise _too_large(int(said), limit)
    pieces: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        piece = message.get("body", b"")
        num_bytes += len(piece)
        if num_bytes > limit:
            raise _too_large(num_bytes, limit)
        if not message.get("more_body", False):
            return piece if not pieces else b"".join([*pieces, piece])
        pieces.append(piece)


def _refuse_encoded(headers: wire_headers.Headers) -> None:
    coding = wire_headers.first(headers, b"content-encoding")
    if coding is not None and coding.strip().lower() not in (b"", b"identity"):
        raise BodyEncoded(
            "expected a request body without a Content-Encoding, got"
            f" {coding.decode('latin-1')[:100]!r}; let your client send it uncompressed"
        )


def _too_large(num_bytes: int, limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"expected a request body of at most {limit} bytes, got {num_bytes} or more; shorten it, or"
        " raise server.max_body_bytes"
    )


@dataclass(slots=True)
class Intake:
    """Takes completion requests in."""

    limits: Server
    relay: Relay
    rater: Rater

    async def take(
        self,
        dialect: Dialect,
        scope: Mapping[str, Any],
        receive: Receive,
        send: Send,
        *,
        caller: Caller,
        path_session: str | None,
    ) -> None:
        """Serve one completion request, from its body to its last byte.

        Raises:
            StropError: nothing was sent to the client yet.
        """
        started, created_ms = time.monotonic(), now_ms()
        headers: wire_headers.Headers = scope["headers"]
        raw = await read_body(receive, headers, self.limits)
        fields = wire_body.parse(raw)
        is_rewritten = False
        session = conversation.session_label(headers, path_session, fields)
        follows: str | None = scope.get(FOLLOWS)
        history: list[object] = []
        command: inline.Command | None = None
        if dialect == "chat":
            messages = chat.messages_of(fields)
            command = inline.find_command(messages)
            kept = inline.without_commands(messages) if inline.may_be_in(raw) else None
            history = messages if kept is None else kept
            if kept is not None:
                fields, is_rewritten = {**fields, "messages": kept}, True
        elif "prompt" not in fields:
            raise BadRequest("expected `prompt` in a text completion, got none", param="prompt")
        told: wire_headers.Headers = []
        if rated := [value for name, value in headers if name == RATING_HEADER]:
            meant = _text(wire_headers.first(headers, RATING_FOR_HEADER))
            status = await self.rater.by_header(
                rated, meant, history, caller.key_id, session, follows
            )
            told.append((RATING_STATUS_HEADER, status.encode("ascii", "replace")))
        if command is not None:
            text = await self.rater.by_command(command, history, caller.key_id, session, follows)
            ends_in = None
            if scope.get(ENDS_IN):
                ends_in = await self.rater.replies.ends_in(history, caller.key_id, session, follows)
            await _say(inline.MARK + text, fields, told, send, ends_in)
            return
        incoming = Incoming(
            id=new_id("cmp", created_ms),
            created_ms=created_ms,
            started=started,
            ask=Ask(dialect, raw, fields, is_rewritten=is_rewritten, follows=follows),
            key_id=caller.key_id,
            headers=headers,
            query=scope["query_string"],
            request_id=_text(wire_headers.first(headers, b"x-request-id")),
            session=session,
            extra_headers=told,
        )
        try:
            await self.relay.relay(incoming, receive, send)
        except StropError as error:
            error.headers += told
            raise


async def _say(
    text: str,
    fields: Mapping[str, object],
    told: wire_headers.Headers,
    send: Send,
    ends_in: str | None,
) -> None:
    """Answer in the model's place, in the dialect that was asked for, with the headers `told`."""
    answer = chat.say(text, identity=new_id("chatcmpl"), model=str(fields.get("model", "")))
    head = list(told)
    if fields.get("stream") is True:
        options = fields.get("stream_options")
        include_usage = isinstance(options, dict) and options.get("include_usage") is True
        answer = rechunk(answer, include_usage=include_usage)
        head += [wire_headers.EVENTS, (b"cache-control", b"no-cache")]
    else:
        head.append(wire_headers.JSON)
    head.append((b"content-length", str(len(answer)).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": head, ENDS_IN: ends_in})
    await send({"type": "http.response.body", "body": answer})


def _text(value: bytes | None) -> str | None:
    return value.decode("latin-1")[:256] if value is not None else None
