"""An engine for random walks: notes what it is sent, by the request's tag, and answers as told.

Speaks vLLM's dialect, calls a tool where the last message says so, and loads adapters.
"""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from fake_adapters import FakeAdapters
from fake_engine import SSE, Call
from fake_vllm_answers import ChatCompletion, Choice, Token
from said import Said, calls_of

LOOK: Final = "look it up"
TAG: Final = "x-tag"
TOOLS: Final = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
ASKED_FOR_BY_STROP: Final = ("logprobs", "return_token_ids", "stream_options")
NUM_UNTIL_CUT: Final = 5
"""After how many events an answer is held, or ends: one has text then, none is whole."""

Way = Literal["whole", "refused", "dies", "left"]


class Answering(ChatCompletion):
    """An answer that calls a tool where the last message says so; others depend on the history."""

    def __init__(self, model: str, fields: dict[str, Any], name: str, created: int | None) -> None:
        super().__init__(model, fields, has_parser=False)
        self.id = f"chatcmpl-{name}"
        self.created = created or self.created
        called = fields.get("tools") and str(fields["messages"][-1]["content"]).endswith(LOOK)
        self.calls = ((f"call_{name}", json.dumps({"n": len(fields["messages"])})),) * bool(called)

    def whole(self) -> dict[str, object]:
        """Return the body, with the call."""
        body: dict[str, Any] = super().whole()
        for choice in body["choices"] if self.calls else ():
            choice["message"]["tool_calls"] = calls_of(self.calls)
            choice["finish_reason"] = "tool_calls"
        return body

    def delta(self, choice: Choice, token: Token, *, is_last: bool) -> dict[str, object] | None:
        """Return an event's choice; the last one has the call."""
        said: dict[str, Any] | None = super().delta(choice, token, is_last=is_last)
        if said and is_last and self.calls:
            said["delta"]["tool_calls"] = [{"index": 0, **calls_of(self.calls)[0]}]
            said["finish_reason"] = "tool_calls"
        return said

    def said(self) -> list[Said]:
        """Return what each choice says."""
        return [Said("assistant", choice.text, self.calls) for choice in self.choices]


@dataclass
class Talker(FakeAdapters):
    """An engine that notes what it is sent, by the request's tag, and answers as told.

    Attributes:
        ways: how to answer, if not whole.
        held: what an answer waits for before it goes on.
        got: the requests.
        said: what the choices said, whole ones or their beginnings.
        plain: the bytes of an answer without what only strop asks for.
    """

    ways: dict[str, Way] = field(default_factory=dict)
    held: dict[str, asyncio.Event] = field(default_factory=dict)
    got: dict[str, dict[str, Any]] = field(default_factory=dict)
    said: dict[str, list[Said]] = field(default_factory=dict)
    plain: dict[str, bytes] = field(default_factory=dict)

    async def _complete(self, call: Call, *, is_chat: bool) -> None:
        tag = call.request.header(TAG)
        if tag is None:
            await super()._complete(call, is_chat=is_chat)
            return
        assert tag not in self.got, "asked twice"
        fields = self.got[tag] = call.request.json()
        way = self.ways.get(tag, "whole")
        if way == "refused":
            await call.json({"error": {"message": "out of memory", "code": 500}}, 500)
            return
        name, model = call.request.header("x-request-id"), fields["model"]
        assert name is not None
        assert model == self.base or model in self.adapters
        answer = Answering(model, fields, name, None)
        kept = {key: value for key, value in fields.items() if key not in ASKED_FOR_BY_STROP}
        plain = Answering(model, kept, name, answer.created)
        self.said[tag] = answer.said()
        if not fields.get("stream"):
            self.plain[tag] = _compact(plain.whole())
            await call.answer(_compact(answer.whole()))
            return
        self.plain[tag] = b"".join(map(_event, plain.events())) + b"data: [DONE]\n\n"
        await call.head(200, [("content-type", SSE)])
        for number, each in enumerate(answer.events()):
            if number == NUM_UNTIL_CUT and tag in self.held:
                await self.held[tag].wait()
            if number == NUM_UNTIL_CUT and way == "dies":
                call.close()
                return
            await call.chunk(_event(each))
        await call.chunk(b"data: [DONE]\n\n")
        await call.end()


def _event(payload: object) -> bytes:
    """Return a server-sent event."""
    return b"data: " + _compact(payload) + b"\n\n"


def _compact(payload: object) -> bytes:
    """Return JSON as engines write it."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
