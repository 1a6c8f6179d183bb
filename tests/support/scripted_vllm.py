"""A fake vLLM that plays a fixed part: it calls a tool, reports on its result, or answers.

Plays it as `scripted_models` does, for clients whose prompts are too long for a small model, or
that force a tool.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from fake_engine import SSE, Call
from fake_vllm import FakeVllm
from fake_vllm_answers import END_ID, FIRST_ID, ChatCompletion, Choice, Fields, Token
from scripted_models import ANSWER, CALL, REPORT

CALLS: Mapping[str, Mapping[str, str]] = {
    CALL["name"]: CALL["arguments"],
    "bash": {"command": "echo 21 degrees", "description": "Ask for the weather"},
    "Bash": {"command": "echo 21 degrees", "description": "Ask for the weather"},
    "exec_command": {"cmd": "echo 21 degrees"},
    "exec": {"command": "echo 21 degrees"},
}
"""The tools it knows, and the arguments that it gives them."""


class ScriptedVllm(FakeVllm):
    """The handler."""

    async def __call__(self, call: Call) -> None:
        """Answer one request."""
        if call.request.path != "/v1/chat/completions":
            return await super().__call__(call)
        fields = call.request.json()
        answer = _Scripted(self.base, fields)
        if not fields.get("stream"):
            return await call.json(answer.whole())
        await call.head(200, [("content-type", SSE)])
        for event in answer.events():
            await call.chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
        await call.chunk(b"data: [DONE]\n\n")
        return await call.end()


class _Scripted(ChatCompletion):
    def __init__(self, model: str, fields: Fields) -> None:
        super().__init__(model, fields, has_parser=False)
        self.tool = _chosen(fields)
        if self.tool is not None:
            text, reason = json.dumps(CALLS[self.tool]), "tool_calls"
        elif fields.get("response_format"):
            schema = fields["response_format"]["json_schema"]["schema"]
            text, reason = json.dumps(dict.fromkeys(schema["properties"], ANSWER)), "stop"
        else:
            text, reason = (REPORT if _is_reported(fields) else ANSWER), "stop"
        pieces = re.findall(r"\s*\S+", text)
        tokens = [Token(FIRST_ID + at, piece, -0.5, ()) for at, piece in enumerate(pieces)]
        tokens.append(Token(END_ID, "", -0.25, ()))
        self.choices = [Choice(0, self.choices[0].prompt_ids, tokens, reason)]
        self.call_id = f"call_{self.id}"

    def whole(self) -> dict[str, Any]:
        """Return a JSON answer."""
        body: dict[str, Any] = super().whole()
        if self.tool is not None:
            function = {"name": self.tool, "arguments": self.choices[0].text}
            message = body["choices"][0]["message"]
            message["content"] = None
            message["tool_calls"] = [{"id": self.call_id, "type": "function", "function": function}]
        return body

    def delta(self, choice: Choice, token: Token, *, is_last: bool) -> dict[str, object] | None:
        """Return one token's part of a stream."""
        part = super().delta(choice, token, is_last=is_last)
        assert part is not None
        if self.tool is not None:
            called: dict[str, object] = {"index": 0, "function": {"arguments": token.text}}
            if token is choice.tokens[0]:
                called["function"] = {"name": self.tool, "arguments": token.text}
                called |= {"id": self.call_id, "type": "function"}
            part["delta"] = {} if is_last else {"tool_calls": [called]}
        return part


def _is_reported(fields: Fields) -> bool:
    # OpenClaw puts something of its own behind it.
    return any(message["role"] == "tool" for message in fields["messages"][-2:])


def _chosen(fields: Fields) -> str | None:
    """Return the tool to call, or None to say something."""
    if _is_reported(fields):
        return None
    names = [tool["function"]["name"] for tool in fields.get("tools") or ()]
    return next((name for name in names if name in CALLS), None)
