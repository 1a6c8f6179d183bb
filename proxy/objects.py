"""What is stored, as the API and the command line show it: plain values that JSON can hold.

Pure. Does not read the store, or know who asks.
"""

from collections.abc import Iterable, Mapping

from strop.proxy.errors import BadRequest
from strop.proxy.message import is_context, role_of, texts_of
from strop.proxy.store.export import tokens_of
from strop.proxy.store.records import (
    Choice,
    Completion,
    CompletionSummary,
    Feedback,
    StoredCompletion,
)
from strop.proxy.wire import body
from strop.proxy.wire.translation import reasoning_in

Object = dict[str, object]


def list_of(data: Iterable[Mapping[str, object]], *, has_more: bool = False) -> Object:
    """Return an OpenAI list object."""
    return {"object": "list", "data": list(data), "has_more": has_more}


def feedback(found: Feedback) -> Object:
    """Return a feedback object; `created` is in seconds since the epoch."""
    return {
        "id": found.id,
        "object": "feedback",
        "created": found.created_ms // 1000,
        "completion_id": found.completion,
        "choice": found.choice,
        "rating": found.rating,
        "original": _value(found.original),
        "comment": found.comment,
        "correction": found.correction,
        "tags": list(found.tags),
        "rater": found.rater,
        "source": found.source,
        "scope": found.scope,
        "state": found.state,
        "revision": found.revision,
        "session": found.session,
        "note": found.note,
    }


def summary(found: CompletionSummary) -> Object:
    """Return a completion object without texts and tokens, as lists have it."""
    return {
        "id": found.id,
        "object": "completion",
        "created": found.created_ms // 1000,
        "key_id": found.key_id,
        "session": found.session,
        "turn": found.turn,
        "parent": found.parent,
        "dialect": found.dialect,
        "engine": found.engine,
        "model": found.model,
        "version": found.version,
        "state": found.state,
        "delivered": found.delivered,
        "stream": found.stream,
        "status": found.status,
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "total_ms": found.total_ms,
        "num_choices": found.num_choices,
        "num_feedback": found.num_feedback,
    }


def completion(found: StoredCompletion, ratings: Iterable[Feedback]) -> Object:
    """Return all of a completion: what was asked and answered, the snapshot, and its feedback."""
    c = found.completion
    return {
        "id": c.id,
        "object": "completion",
        "created": c.created_ms // 1000,
        "key_id": c.key_id,
        "session": found.session,
        "turn": found.turn,
        "parent": found.parent,
        "parent_choice": found.parent_choice,
        "parent_by": found.parent_by,
        "dialect": c.dialect,
        "engine": c.engine,
        "model": c.model,
        "served": c.served,
        "version": c.version,
        "state": c.state,
        "delivered": c.delivered,
        "stream": c.stream,
        "status": c.status,
        "error": c.error,
        "prompt_tokens": c.prompt_tokens,
        "completion_tokens": c.completion_tokens,
        "ttft_ms": c.ttft_ms,
        "total_ms": c.total_ms,
        "overhead_ms": c.overhead_ms,
        "upstream_id": c.upstream_id,
        "request_id": c.request_id,
        "request": _value(c.request),
        "choices": [
            {
                "index": choice.index,
                "message": _value(choice.message),
                "finish_reason": choice.finish_reason,
            }
            for choice in c.choices
        ],
        "snapshot": _snapshot(c),
        "feedback": [feedback(one) for one in ratings],
    }


def asked_in(request: bytes) -> str:
    """Return what people read of a request: the last words of a user's, or the prompt."""
    value = _value(request)
    if not isinstance(value, dict):
        return ""
    if isinstance(value.get("prompt"), str):
        return str(value["prompt"])
    messages = value.get("messages")
    for one in reversed(messages if isinstance(messages, list) else []):
        if role_of(one) == "user" and not is_context(one):
            return "\n".join(texts_of(one))
    return ""


def text_of(choice: Choice) -> str:
    """Return what people read of an answer: its text, else the names of the tools it calls."""
    message = _value(choice.message)
    if not isinstance(message, dict):
        return str(message)
    for member in ("content", "text", "refusal"):
        if isinstance(text := message.get(member), str) and text:
            return text
    calls = message.get("tool_calls")
    names = [
        str(function.get("name"))
        for call in (calls if isinstance(calls, list) else ())
        if isinstance(call, dict) and isinstance(function := call.get("function"), dict)
    ]
    return f"[calls {', '.join(names)}]" if names else ""


def thoughts_of(choice: Choice) -> str:
    """Return what the model thought before an answer, as far as the engine gave it."""
    message = _value(choice.message)
    return reasoning_in(message) if isinstance(message, dict) else ""


def snapshot_of(choice: Choice) -> str:
    """Return in words what is kept of a choice for training."""
    if choice.token_ids is not None:
        tokens = f"{len(choice.token_ids)} token ids"
    elif choice.token_texts is not None:
        tokens = f"no token ids, {len(choice.token_texts)} tokens' texts"
    else:
        return "no token ids"
    return f"{tokens}, {choice.logprobs_kind} logprobs" if choice.logprobs is not None else tokens


def _snapshot(c: Completion) -> Object:
    return {
        "sampling": _value(c.sampling),
        "prompt_ids": None if c.prompt_ids is None else c.prompt_ids.tolist(),
        "prompt_text": c.prompt_text,
        "choices": [{"index": choice.index, **tokens_of(choice)} for choice in c.choices],
    }


def _value(stored: bytes) -> object:
    """Return the JSON value in `stored`, or its text where it holds none."""
    try:
        return body.loads(stored)
    except BadRequest:
        return stored.decode(errors="replace")
