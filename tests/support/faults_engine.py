"""An engine that answers in one of many bad ways, as each request asks for, at once or slowly.

Knows vLLM's dialect as far as the proxy needs it; the answers are always the same, so that making
them takes no time. Runs in a `FakeEngine` that reads bodies only when asked.
"""

import asyncio
import random
from dataclasses import replace
from typing import Final, Literal, get_args

from fake_engine import SSE, Call
from fake_vllm import FakeVllm

Way = Literal[
    "ok",  # a whole answer
    "slow",  # the same, with pauses
    "held",  # a long pause after the event that ends the answer
    "fin_early",  # closes before its head
    "rst_early",
    "fin",  # closes in the middle
    "rst",
    "500",
    "hang",  # reads the request and says nothing
    "deaf",  # reads nothing of the request's body
]
WAYS: Final[tuple[Way, ...]] = get_args(Way)
SILENT: Final[frozenset[Way]] = frozenset({"hang", "deaf"})
BROKEN: Final[frozenset[Way]] = frozenset({"fin_early", "rst_early", "fin", "rst", "500"})

WAY_HEADER: Final = "x-way"
TAG_HEADER: Final = "x-tag"

NUM_TOKENS: Final = 12

_HEAD: Final = b'{"id":"chatcmpl-same","object":"chat.completion","created":1,"model":"tiny",'
WHOLE: Final = (
    _HEAD + b'"choices":[{"index":0,"message":{"role":"assistant","content":"'
    b"yes "
    b'"},"logprobs":{"content":[{"token":"yes","logprob":-0.5}]},"finish_reason":"stop",'
    b'"token_ids":[7]}],"prompt_token_ids":[1,2,3],"usage":{"prompt_tokens":3,"completion_tokens":1}}'
)


def _event(number: int) -> bytes:
    reason = b'"stop"' if number == NUM_TOKENS - 1 else b"null"
    return (
        b"data: " + _HEAD + b'"choices":[{"index":0,"delta":{"content":"yes "},'
        b'"logprobs":{"content":[{"token":"yes ","logprob":-0.5}]},"finish_reason":'
        + reason
        + b',"token_ids":[7]}]}\n\n'
    )


EVENTS: Final = tuple(_event(number) for number in range(NUM_TOKENS))
DONE: Final = b"data: [DONE]\n\n"


class FaultyEngine:
    """The handler.

    Attributes:
        tags: what requests called themselves, in the order they came.
        pause_s: the longest of the pauses.
    """

    def __init__(self, seed: int, pause_s: float = 0.02) -> None:
        self.tags: list[str] = []
        self.pause_s = pause_s
        self._random = random.Random(seed)
        self._vllm = FakeVllm()

    async def __call__(self, call: Call) -> None:
        """Answer one request."""
        request = call.request
        if request.method == "GET":
            await self._vllm(call)
            return
        if tag := request.header(TAG_HEADER):
            self.tags.append(tag)
        way = request.header(WAY_HEADER) or "ok"
        if way == "deaf":
            await call.hang()
        call.request = replace(request, body=await call.read_body())
        match way:
            case "hang":
                await call.hang()
            case "500":
                await call.json({"error": {"message": "out of memory", "code": 500}}, 500)
            case "fin_early":
                call.close()
            case "rst_early":
                call.reset()
            case _ if b'"stream":true' in call.request.body:
                await self._stream(call, way)
            case _:
                await self._whole(call, way)

    async def _whole(self, call: Call, way: str) -> None:
        if way in ("slow", "held"):
            await self._pause()
        if way in ("fin", "rst"):
            await call.head(200, [("content-type", "application/json")], framing="chunked")
            await call.chunk(WHOLE[:50])
            await self._break(call, way)
        else:
            await call.answer(WHOLE)

    async def _stream(self, call: Call, way: str) -> None:
        await call.head(200, [("content-type", SSE)])
        broken_at = self._random.randrange(NUM_TOKENS) if way in ("fin", "rst") else None
        for number, event in enumerate(EVENTS):
            if way == "slow":
                await self._pause()
            if number == broken_at:
                await call.chunk(event[: self._random.randrange(1, len(event))])
                await self._break(call, way)
                return
            await call.chunk(event)
        if way == "held":
            await self._pause()
        await call.chunk(DONE)
        await call.end()

    async def _break(self, call: Call, way: str) -> None:
        if way == "fin":
            call.close()
        else:
            call.reset()

    async def _pause(self) -> None:
        await asyncio.sleep(self._random.random() * self.pause_s)
