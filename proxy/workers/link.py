"""The line between the process that decides and one worker: frames in order, both ways.

Does not know what the frames mean. A frame is its length in four bytes, then MessagePack.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from strop.proxy.errors import StropError, Unavailable
from strop.proxy.workers.frames import Answer, Answered, Asked, Call, Failure, Frame, Note

log = logging.getLogger(__name__)

A = TypeVar("A")

_LENGTH_BYTES = 4


class Link:
    """One end of the line. Made by `Link.open`; belongs to the running loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Frame)
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._num_calls = 0
        self._answering: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, end: socket.socket) -> "Link":
        """Return the line that `end` is one end of."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def tell(self, note: Note) -> None:
        """Say something. Does not wait, and says nothing to who is gone."""
        self._send(note)

    async def ask(self, call: Call, expected: type[A]) -> A:
        """Return the answer to a call, which is an `expected`.

        Raises:
            StropError: what the other end raised.
            Unavailable: it is gone.
        """
        if self._writer.is_closing():
            raise _gone()
        self._num_calls += 1
        number = self._num_calls
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(Asked(number, call))
            answer = await future
        finally:
            del self._asked[number]
        if isinstance(answer, Failure):
            raise answer.error()
        assert isinstance(answer, expected)
        return answer

    async def first(self) -> Note | None:
        """Return the first note, before `run`; None where the other end is gone."""
        frame = await self._receive()
        return None if isinstance(frame, Asked | Answered) else frame

    async def run(
        self, note: Callable[[Note], None], answer: Callable[[Call], Awaitable[Answer]]
    ) -> None:
        """Take what comes until the other end is gone.

        Args:
            note: told of each note, in order.
            answer: answers a call; calls are answered side by side.
        """
        try:
            while (frame := await self._receive()) is not None:
                if isinstance(frame, Answered):
                    future = self._asked.get(frame.number)
                    if future is not None and not future.done():
                        future.set_result(frame.answer)
                elif isinstance(frame, Asked):
                    task = asyncio.create_task(self._answer(frame, answer))
                    self._answering.add(task)
                    task.add_done_callback(self._answering.discard)
                else:
                    note(frame)
        finally:
            self.close()

    def close(self) -> None:
        """Hang up; calls under way fail. Idempotent."""
        self._writer.close()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(_gone())
        for task in self._answering:
            task.cancel()

    async def _answer(self, asked: Asked, answer: Callable[[Call], Awaitable[Answer]]) -> None:
        try:
            self._send(Answered(asked.number, await answer(asked.call)))
        except StropError as error:
            self._send(Answered(asked.number, Failure.of(error)))
        except Exception:
            # The edge of a request: whatever goes wrong inside, who asked is told.
            log.exception("a call failed", extra={"call": type(asked.call).__name__})
            failure = Failure.of(StropError("strop failed to serve this; see its log"))
            self._send(Answered(asked.number, failure))

    def _send(self, frame: Frame) -> None:
        if not self._writer.is_closing():
            body = self._encoder.encode(frame)
            self._writer.write(len(body).to_bytes(_LENGTH_BYTES) + body)

    async def _receive(self) -> Frame | None:
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES))
            body = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            return None
        frame: Frame = self._decoder.decode(body)
        return frame


def _gone() -> Unavailable:
    return Unavailable("expected an answer from another process of strop, and it ended; try again")
