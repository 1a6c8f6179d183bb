"""A client that misbehaves as told, on bare sockets: a proper one would mend what the tests break.

Knows HTTP/1.1 and no dialect.
"""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from typing import Literal

from strop.proxy.wire import body as json_body

Moment = Literal["", "connected", "half_head", "half_body", "sent", "head", "body", "later"]
"""When a client leaves; "" for one that stays, `later` for any time after it has asked."""

MOMENTS: tuple[Moment, ...] = (
    "connected",
    "half_head",
    "half_body",
    "sent",
    "head",
    "body",
    "later",
)
BEFORE_ASKING: frozenset[Moment] = frozenset({"connected", "half_head", "half_body"})


@dataclass
class Answer:
    """What a client got.

    Attributes:
        status: 0 where no head came.
        is_whole: whether the body came to its announced end.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_whole: bool = False

    @property
    def completion_id(self) -> str:
        """The id of the completion; empty where none was said."""
        return self.headers.get("x-strop-completion-id", "")

    @property
    def is_answered(self) -> bool:
        """Whether the client has all of the model's answer."""
        is_stream = self.headers.get("content-type", "").startswith("text/event-stream")
        is_ended = b"data: [DONE]\n\n" in self.body if is_stream else self.is_whole
        return self.status == 200 and is_ended


class Client:
    """One connection to a proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, url: str) -> "Client":
        """Return a connection to the server at `url`."""
        host, port = url.removeprefix("http://").split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)

    async def read_head(self, answer: Answer) -> None:
        """Read a status line and headers into `answer`."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *lines = head.rstrip().split("\r\n")
        answer.status = int(status.split()[1])
        split = [line.partition(": ") for line in lines]
        answer.headers = {name.lower(): value for name, _, value in split}

    async def read_body(self, answer: Answer, limit: int = 1 << 30) -> None:
        """Read the body into `answer`, up to its end or to about `limit` bytes."""
        if "content-length" in answer.headers:
            length = int(answer.headers["content-length"])
            answer.body = await self.reader.readexactly(min(length, limit))
            answer.is_whole = len(answer.body) == length
            return
        while len(answer.body) < limit:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            answer.body += (await self.reader.readexactly(size + 2))[:-2]
            if size == 0:
                answer.is_whole = True
                return

    async def leave(self, *, is_rude: bool = False) -> None:
        """Close the connection; rudely is with RST in place of FIN."""
        pipe = self.writer.get_extra_info("socket")
        if is_rude and pipe is not None:
            pipe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            return


@dataclass(frozen=True)
class Plan:
    """One request, and when its client leaves.

    Attributes:
        fields: the body.
        headers: beside Host and Content-Length.
        is_rude: whether it leaves with RST.
        patience: how many bytes of the body, or how many seconds, it waits before it leaves at
            `body` or `later`.
    """

    fields: dict[str, object]
    headers: dict[str, str] = field(default_factory=dict)
    path: str = "/v1/chat/completions"
    leaves: Moment = ""
    is_rude: bool = False
    patience: float = 0.0

    def request(self) -> tuple[bytes, bytes]:
        """Return the head and the body of the request."""
        body = json_body.dumps(self.fields)
        lines = [f"POST {self.path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode(), body


async def ask(url: str, plan: Plan) -> Answer:
    """Carry out `plan` on a connection of its own; return what came, whole or not."""
    answer = Answer()
    try:
        client = await Client.connect(url)
    except OSError:
        return answer
    try:
        if plan.leaves == "later":
            # Whatever ends it.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(plan.patience):
                    await _talk(client, plan, answer)
        else:
            await _talk(client, plan, answer)
    except (OSError, EOFError):
        # What is missing shows in the answer.
        pass
    finally:
        await client.leave(is_rude=plan.is_rude)
    return answer


async def _talk(client: Client, plan: Plan, answer: Answer) -> None:
    head, body = plan.request()
    if plan.leaves == "connected":
        return
    if plan.leaves == "half_head":
        client.send(head[: len(head) // 2])
        return
    client.send(head)
    if plan.leaves == "half_body":
        client.send(body[: len(body) // 2])
        return
    client.send(body)
    if plan.leaves == "sent":
        return
    await client.read_head(answer)
    if plan.leaves == "head":
        return
    await client.read_body(answer, int(plan.patience) if plan.leaves == "body" else 1 << 30)
