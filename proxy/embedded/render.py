"""Bodies and chunks in vLLM's dialect, for both chat and text completions.

Pure. Field places and nulls are those of vLLM 0.32: what was not asked for is null, and in chunks a
null too where vLLM sends one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from strop.proxy.embedded.answer import Answer, Piece, render_tool_call
from strop.proxy.embedded.jobs import Job, Scored, Started
from strop.proxy.embedded.logprobs import Logprobs
from strop.proxy.embedded.protocol import Request
from strop.proxy.embedded.text import Vocabulary
from strop.proxy.wire import sse

DONE = sse.event(sse.DONE)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every body and chunk of one answer begins with."""

    id: str
    created: int
    model: str
    fingerprint: str


@dataclass(slots=True)
class Part:
    """One prompt of a request with its answers; `started` is None until the worker took it."""

    job: Job
    answers: list[Answer]
    started: Started | None = None


def event(value: object) -> bytes:
    """Return one server-sent event."""
    return sse.event(orjson.dumps(value))


def usage(parts: Sequence[Part]) -> dict[str, Any]:
    """Return the token counts of a request."""
    num_prompt = sum(len(part.job.prompt) for part in parts)
    num_completion = sum(len(answer.pieces) for part in parts for answer in part.answers)
    return {
        "prompt_tokens": num_prompt,
        "total_tokens": num_prompt + num_completion,
        "completion_tokens": num_completion,
        "prompt_tokens_details": {
            "cached_tokens": sum(part.started.cached_tokens for part in parts if part.started)
        },
    }


class Renderer:
    """Renders the answers of one request.

    Args:
        request: what was asked for.
        envelope: its head.
        vocabulary: for the text of tokens.
    """

    def __init__(self, request: Request, envelope: Envelope, vocabulary: Vocabulary) -> None:
        self._request = request
        self._envelope = envelope
        self._logprobs = Logprobs(request, vocabulary)
        self._decode = vocabulary.decode
        self._is_chat = request.dialect == "chat"
        self._chunk_kind = "chat.completion.chunk" if self._is_chat else "text_completion"

    def body(self, parts: Sequence[Part]) -> bytes:
        """Return the JSON body of the finished answers."""
        kind = "chat.completion" if self._is_chat else "text_completion"
        choices: list[dict[str, Any]] = []
        for part in parts:
            for answer in part.answers:
                render = self._chat_choice if self._is_chat else self._text_choice
                choices.append(render(len(choices), part, answer))
        head = self._head(kind)
        head["choices"] = choices
        head["system_fingerprint"] = self._envelope.fingerprint
        head["usage"] = usage(parts)
        if self._is_chat:
            (part,) = parts
            head["prompt_logprobs"] = self._prompt_logprobs(part)
            head["prompt_token_ids"] = self._if_asked(part.job.prompt)
            head["prompt_text"] = None
        return orjson.dumps(head)

    def opening(self, index: int, part: Part) -> bytes:
        """Return the event that opens a chat choice; text completions have none."""
        if not self._is_chat:
            return b""
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return event(
            {
                **self._head(self._chunk_kind),
                "choices": [choice],
                "prompt_token_ids": self._if_asked(part.job.prompt),
                "prompt_text": None,
            }
        )

    def chunk(self, index: int, part: Part, answer: Answer, piece: Piece) -> bytes:
        """Return the event for one piece; empty where vLLM sends none."""
        ids = [piece.token.id] if self._request.return_token_ids else None
        has_end = piece.finish_reason or not self._is_chat
        end = {"stop_reason": piece.stop_reason} if has_end else {}
        if self._is_chat:
            is_asked = ids is not None or self._request.logprobs is not None
            if piece.delta.is_empty and not piece.finish_reason and not is_asked:
                return b""
            choice = {
                "index": index,
                "delta": _delta(piece),
                "logprobs": self._logprobs.of_chat([piece]),
                "finish_reason": piece.finish_reason,
                **end,
                "token_ids": ids,
            }
        else:
            is_first = len(answer.pieces) == 1
            # As in vLLM, a stream that echoes the prompt has its ids unasked.
            shows_ids = is_first and (self._request.echo or ids is not None)
            choice = {
                "index": index,
                **self._said(index, part, piece.delta.content, [piece], is_first=is_first),
                "finish_reason": piece.finish_reason,
                **end,
                "prompt_token_ids": list(part.job.prompt) if shows_ids else None,
                "token_ids": ids,
            }
        head = self._head(self._chunk_kind)
        head["choices"] = [choice]
        if piece.finish_reason and not self._request.include_usage:
            head["system_fingerprint"] = self._envelope.fingerprint
        return event(head)

    def closing(self, parts: Sequence[Part]) -> bytes:
        """Return the last events of a stream."""
        if not self._request.include_usage:
            return DONE
        head = self._head(self._chunk_kind)
        head["choices"] = []
        head["usage"] = usage(parts)
        head["system_fingerprint"] = self._envelope.fingerprint
        return event(head) + DONE

    def _head(self, kind: str) -> dict[str, Any]:
        envelope = self._envelope
        return {
            "id": envelope.id,
            "object": kind,
            "created": envelope.created,
            "model": envelope.model,
        }

    def _if_asked(self, ids: Sequence[int]) -> list[int] | None:
        return list(ids) if self._request.return_token_ids else None

    def _chat_choice(self, index: int, _part: Part, answer: Answer) -> dict[str, Any]:
        content, reasoning, calls = answer.content, answer.reasoning, answer.tool_calls
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content or (None if reasoning or calls else ""),
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": reasoning or None,
        }
        if calls:
            message["tool_calls"] = [render_tool_call(call) for call in calls]
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs.of_chat(answer.pieces),
            "finish_reason": answer.pieces[-1].finish_reason,
            "stop_reason": answer.pieces[-1].stop_reason,
            "token_ids": self._if_asked(answer.token_ids),
        }

    def _text_choice(self, index: int, part: Part, answer: Answer) -> dict[str, Any]:
        return {
            "index": index,
            **self._said(index, part, answer.content, answer.pieces, is_first=True),
            "finish_reason": answer.pieces[-1].finish_reason,
            "stop_reason": answer.pieces[-1].stop_reason,
            "prompt_logprobs": self._prompt_logprobs(part),
            "prompt_token_ids": self._if_asked(part.job.prompt),
            "token_ids": self._if_asked(answer.token_ids),
        }

    def _said(
        self, index: int, part: Part, said: str, pieces: Sequence[Piece], *, is_first: bool
    ) -> dict[str, Any]:
        """Return text and logprobs of a text completion, behind the prompt's where it is echoed."""
        request = self._request
        scores: Sequence[Scored | None] = ()
        if request.echo and is_first:
            if request.max_tokens == 0:
                said, pieces = "", ()
            if part.started is not None and part.started.prompt_scores is not None:
                scores = (None, *part.started.prompt_scores)
            # As in vLLM: who asks for ids has the prompt's beside the text.
            if not request.return_token_ids:
                prompt = request.prompts[index // request.n]
                said = (prompt if isinstance(prompt, str) else self._decode(prompt)) + said
        logprobs = self._logprobs.of_text(index, part.job.prompt, scores, pieces)
        return {"text": said, "logprobs": logprobs}

    def _prompt_logprobs(self, part: Part) -> list[Any] | None:
        if part.started is None or part.started.prompt_scores is None:
            return None
        return self._logprobs.of_prompt(part.job.prompt, part.started.prompt_scores)


def _delta(piece: Piece) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if piece.delta.reasoning:
        delta["reasoning"] = piece.delta.reasoning
    if piece.delta.content:
        delta["content"] = piece.delta.content
    if piece.delta.tool_calls:
        delta["tool_calls"] = [
            {"index": call.index, **render_tool_call(call)} for call in piece.delta.tool_calls
        ]
    return delta
