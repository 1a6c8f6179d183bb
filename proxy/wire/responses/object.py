"""What a response says of itself besides its items.

Pure. Knows the request that it answers; does not know how it is sent.
"""

import time
from collections.abc import Mapping, Sequence

from strop.proxy.wire.responses.tools import Tool, Toolbox
from strop.proxy.wire.translation import count_in

# Why an answer was cut short, in chat's words and in this dialect's.
_CUT_SHORT: Mapping[str, str] = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
}
# Clients try again after other codes, and a request that was refused would be refused again.
_REFUSED = "invalid_prompt"
_TELLING_CODES = frozenset(
    {"context_length_exceeded", "rate_limit_exceeded", "insufficient_quota", "invalid_prompt"}
)


class Envelope:
    """The response to one request.

    Args:
        fields: the request.
        tools: the tools in it.
        has_logprobs: whether it asks for the text's logprobs.
    """

    def __init__(self, fields: Mapping[str, object], tools: Toolbox, *, has_logprobs: bool) -> None:
        self.has_logprobs = has_logprobs
        reasoning = fields.get("reasoning")
        asked = reasoning if isinstance(reasoning, dict) else {}
        self._tools = tools
        text = fields.get("text")
        told = text if isinstance(text, dict) else {}
        self._head: dict[str, object] = {
            "object": "response",
            "created_at": 0,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": fields.get("instructions"),
            "max_output_tokens": fields.get("max_output_tokens"),
            "metadata": fields.get("metadata") or {},
            "model": fields.get("model"),
            "output": [],
            "parallel_tool_calls": fields.get("parallel_tool_calls") is not False,
            "previous_response_id": fields.get("previous_response_id"),
            "prompt_cache_key": fields.get("prompt_cache_key"),
            "reasoning": {"effort": asked.get("effort"), "summary": asked.get("summary")},
            "safety_identifier": fields.get("safety_identifier"),
            "service_tier": fields.get("service_tier") or "default",
            "store": fields.get("store") is not False,
            "temperature": fields.get("temperature"),
            "text": {**told, "format": told.get("format") or {"type": "text"}},
            "tool_choice": fields.get("tool_choice") or "auto",
            "tools": fields.get("tools") or [],
            "top_logprobs": fields.get("top_logprobs") or 0,
            "top_p": fields.get("top_p"),
            "truncation": "disabled",
            "usage": None,
            "user": fields.get("user"),
        }

    def tool(self, function: str) -> Tool:
        """Return the tool that the engine called as `function`."""
        return self._tools.called(function)

    def opened(self, identity: str, created: int) -> dict[str, object]:
        """Return the response as it stands before anything is answered."""
        return {"id": identity, **self._head, "created_at": created}


def closed(
    opened: Mapping[str, object],
    output: Sequence[object],
    *,
    finish_reason: object,
    usage: object,
    model: object,
) -> dict[str, object]:
    """Return the response as it stands at its end.

    Args:
        opened: as it stood before.
        output: its items.
        finish_reason: chat's.
        usage: chat's.
        model: what the engine calls the model.
    """
    reason = _CUT_SHORT.get(finish_reason) if isinstance(finish_reason, str) else None
    return {
        **opened,
        "status": "incomplete" if reason else "completed",
        "completed_at": None if reason else int(time.time()),
        "incomplete_details": {"reason": reason} if reason else None,
        "model": model if isinstance(model, str) else opened["model"],
        "output": output,
        "usage": _usage(usage),
    }


def failed(
    opened: Mapping[str, object], output: Sequence[object], error: Mapping[str, object]
) -> dict[str, object]:
    """Return the response as it stands where an OpenAI error object ended it."""
    said = {"code": _failure(error), "message": str(error.get("message") or "the engine failed")}
    return {**opened, "status": "failed", "output": output, "error": said}


def _failure(error: Mapping[str, object]) -> str:
    code = error.get("code")
    if isinstance(code, str) and code in _TELLING_CODES:
        return code
    is_refused = isinstance(code, int) and 400 <= code < 500 and code not in (408, 429)
    if is_refused or error.get("type") in ("invalid_request_error", "BadRequestError"):
        return _REFUSED
    return "server_error"


def _usage(usage: object) -> dict[str, object] | None:
    """Return chat's usage in this dialect's words; None for none."""
    if not isinstance(usage, dict):
        return None
    read, written = count_in(usage, "prompt_tokens"), count_in(usage, "completion_tokens")
    of_read, of_written = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    return {
        "input_tokens": read,
        "input_tokens_details": {
            "cached_tokens": count_in(of_read, "cached_tokens"),
            "cache_write_tokens": count_in(of_read, "cache_write_tokens"),
        },
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": count_in(of_written, "reasoning_tokens")},
        "total_tokens": count_in(usage, "total_tokens") or read + written,
    }
