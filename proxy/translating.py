"""Stands between a client of another dialect and what answers chat completions.

The request comes out of `receive` as the chat completion that asks for the same, and what is sent
goes to the client in its own dialect: answers, streams, and errors whoever says them. Knows no
dialect (see `wire`), and does not know who answers.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from strop.proxy.call import Receive, Send
from strop.proxy.errors import SOURCE_HEADER, BadRequest, UpstreamError
from strop.proxy.ids import digits_of, own_digits
from strop.proxy.intake import ENDS_IN, FOLLOWS, read_body
from strop.proxy.settings.settings import Server
from strop.proxy.store.records import StoredCompletion
from strop.proxy.wire import body as wire_body
from strop.proxy.wire import headers as wire_headers
from strop.proxy.wire import sse
from strop.proxy.wire.translation import Earlier, Translation, Writer

log = logging.getLogger(__name__)

LEFT_OUT_HEADER = b"x-strop-left-out"
"""What of the request no chat completion can carry, as paths in its JSON."""

_MAX_LEFT_OUT_CHARS = 1000
_ID_HEADER = b"x-strop-completion-id"

Message = MutableMapping[str, Any]
Recall = Callable[[str], Awaitable[Earlier | None]]


class Interpreter:
    """One request, and its answer.

    Args:
        translation: the client's dialect.
        scope: the ASGI scope of the request.
        receive: gives the request's body, and says when the client leaves.
        send: takes the answer for the client.
        limits: how large the body may be.
        recall: finds the client's earlier completions, by the digits of their ids.
    """

    def __init__(
        self,
        translation: Translation,
        scope: Mapping[str, Any],
        receive: Receive,
        send: Send,
        limits: Server,
        recall: Recall,
    ) -> None:
        # A path of its own has a query of its own, such as `?beta=true`.
        self.scope = {**scope, "query_string": b""}
        self._translation = translation
        self._receive = receive
        self._send = send
        self._limits = limits
        self._recall = recall
        self._make_writer: Callable[[str], Writer] | None = None
        self._left_out: tuple[str, ...] = ()
        self._wants_stream = False
        self._follows: str | None = None
        self._says_more = False
        self._head: Message = {}
        self._body: list[bytes] = []
        self._writer: Writer | None = None
        self._splitter = sse.Splitter()
        self._has_failed = False

    async def receive(self) -> Message:
        """Return the chat completion that the client asks for, then when it leaves.

        Raises:
            BadRequest: the request is malformed, or asks for what no chat completion can do.
            BodyEncoded, BodyTooLarge, ClientLeft: as `read_body` has it.
        """
        if self._make_writer is not None:
            return await self._receive()
        raw = await read_body(self._receive, self.scope["headers"], self._limits)
        fields = wire_body.parse(raw)
        earlier = {}
        for answer in self._translation.refers_to(fields):
            if (found := await self._recall(answer)) is not None:
                earlier[answer] = found
        translated = self._translation.to_chat(fields, earlier)
        # The rest may be large, and whoever reads the chat holds it already.
        self._make_writer, self._left_out = translated.writer, translated.left_out
        self._wants_stream = translated.fields.get("stream") is True
        self._follows, self._says_more = translated.follows, translated.says_more
        self.scope[ENDS_IN] = translated.says_more
        if translated.last_answer is not None:
            self.scope[FOLLOWS] = f"cmp_{translated.last_answer}"
        said = wire_body.dumps(translated.fields)
        return {"type": "http.request", "body": said, "more_body": False}

    async def send(self, message: Message) -> None:
        """Take a part of the answer, and send the client what it says.

        Raises:
            RuntimeError: a second answer begins behind the beginning of a stream.
        """
        if message["type"] == "http.response.start":
            if self._writer is not None:
                raise RuntimeError("the client has the beginning of another answer")
            self._head, self._body = message, []
            if self._wants_stream and _is_stream(message):
                await self._begin_stream()
        elif self._writer is not None:
            await self._go_on(self._writer, message)
        else:
            self._body.append(message.get("body", b""))
            if not message.get("more_body", False):
                await self._answer(b"".join(self._body))

    async def _begin_stream(self) -> None:
        head = [h for h in self._head["headers"] if h[0] != b"content-length"]
        writer = self._writer = self._new_writer()
        await self._send({**self._head, "headers": head + self._own_head()})
        await self._send(_part(writer.begin()))

    async def _go_on(self, writer: Writer, message: Message) -> None:
        is_last = not message.get("more_body", False)
        events = self._splitter.feed(message.get("body", b""))
        if is_last:
            events += self._splitter.take_rest()
        said = b"".join(self._event(writer, event) for event in sse.events(events))
        if is_last and not self._has_failed:
            said += writer.end()
        if said or is_last:
            await self._send({**_part(said), "more_body": not is_last})

    def _event(self, writer: Writer, event: bytes) -> bytes:
        data = sse.data_of(event)
        if self._has_failed or data == sse.DONE:
            return b""
        if not data:
            # A comment, which keeps the connection open.
            return event.rstrip(b"\r\n") + b"\n\n"
        try:
            chunk = wire_body.parse(data)
        except BadRequest as reason:
            log.warning("an event of the engine can't be read", extra={"reason": reason.message})
            return b""
        if error := chunk.get("error"):
            self._has_failed = True
            return writer.fail(_as_error(error))
        return writer.feed(chunk)

    async def _answer(self, body: bytes) -> None:
        head, status, kind = self._head["headers"], self._head["status"], wire_headers.JSON
        try:
            if status >= 400:
                said = self._translation.error(status, _error_in(body))
            elif self._wants_stream:
                kind = wire_headers.EVENTS
                said = _streamed(self._new_writer(), _completion_in(body))
            else:
                said = self._new_writer().whole(_completion_in(body))
        except UpstreamError as error:
            status, kind, head = error.status, wire_headers.JSON, [*head, SOURCE_HEADER]
            said = self._translation.error(status, _as_error(error.message))
        own = {b"content-length", b"content-type"}
        head = [h for h in head if h[0] not in own] + self._own_head()
        head += [kind, (b"content-length", str(len(said)).encode())]
        await self._send({**self._head, "status": status, "headers": head})
        await self._send({"type": "http.response.body", "body": said})

    def _new_writer(self) -> Writer:
        assert self._make_writer is not None
        own = wire_headers.first(self._head["headers"], _ID_HEADER)
        return self._make_writer(digits_of(own.decode()) if own else self._own_digits())

    def _own_digits(self) -> str:
        """Return digits for what is answered in the model's place, such as to an inline command.

        It is no completion: a conversation goes on from the answer before it, if that and what it
        was asked is all that was said.
        """
        ends_in: str | None = self._head.get(ENDS_IN)
        if ends_in is not None:
            return own_digits(digits_of(ends_in))
        return own_digits(self._follows, is_link=not self._says_more)

    def _own_head(self) -> wire_headers.Headers:
        if not self._left_out:
            return []
        # A client's own names may hold line ends, which no header may.
        paths = ", ".join(self._left_out).encode("unicode_escape")
        return [(LEFT_OUT_HEADER, paths[:_MAX_LEFT_OUT_CHARS])]


def earlier_in(found: StoredCompletion, key_id: str) -> Earlier | None:
    """Return a chat that was asked with this key, as what a later request may go on from."""
    stored = found.completion
    if stored.dialect != "chat" or stored.key_id != key_id:
        return None
    if stored.state != "complete" or not stored.choices:
        return Earlier(b"", {}, is_whole=False)
    # The request is large, and most that is referred to is an answer alone.
    return Earlier(stored.request, wire_body.parse(stored.choices[0].message))


def _is_stream(start: Message) -> bool:
    return start["status"] < 400 and wire_headers.is_stream(start["headers"])


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


def _completion_in(body: bytes) -> dict[str, object]:
    """Return the chat completion that an engine answered with.

    Raises:
        UpstreamError: it is something else: a client would take that for an empty answer.
    """
    try:
        answer = wire_body.parse(body)
    except BadRequest as reason:
        said = reason.message
    else:
        if isinstance(answer.get("choices"), list):
            return answer
        said = str(_error_in(body)["message"])
    raise UpstreamError(f"expected a chat completion from the engine, got something else: {said}")


def _streamed(writer: Writer, answer: dict[str, object]) -> bytes:
    """Return the stream that says what came whole: some engines pass over `stream`."""
    choices = answer["choices"]
    assert isinstance(choices, list)
    parts = [{**one, "delta": one.get("message")} for one in choices if isinstance(one, dict)]
    return writer.begin() + writer.feed({**answer, "choices": parts}) + writer.end()


def _error_in(body: bytes) -> dict[str, object]:
    """Return the error that an engine or strop answered with, whichever way it was written."""
    try:
        said = wire_body.loads(body)
    except BadRequest:
        said = body.decode("utf-8", "replace").strip()
    return _as_error(said.get("error", said) if isinstance(said, dict) else said)


def _as_error(said: object) -> dict[str, object]:
    """Return `said` as an OpenAI error object."""
    if isinstance(said, dict):
        message = said.get("message")
        return {**said, "message": message if isinstance(message, str) else str(said)[:500]}
    return {"message": str(said)[:500], "type": "upstream_error", "param": None, "code": None}
