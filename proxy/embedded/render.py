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
from strop.proxy.embedded.protocol import Request
from strop.proxy.embedded.text import Vocabulary
from strop.proxy.wire import sse

_LEAST_LOGPROB = -9999.0  # JSON has no infinity; vLLM's stand-in
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
        self._vocabulary = vocabulary
        self._is_chat = request.dialect == "chat"
        self._chunk_kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        self._offsets: dict[int, int] = {}

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
                "logprobs": self._chat_logprobs([piece]),
                "finish_reason": piece.finish_reason,
                **end,
                "token_ids": ids,
            }
        else:
            is_first = len(answer.pieces) == 1
            choice = {
                "index": index,
                "text": piece.delta.content,
                "logprobs": self._text_logprobs(index, [piece]),
                "finish_reason": piece.finish_reason,
                **end,
                "prompt_token_ids": self._if_asked(part.job.prompt) if is_first else None,
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
            "logprobs": self._chat_logprobs(answer.pieces),
            "finish_reason": answer.pieces[-1].finish_reason,
            "stop_reason": answer.pieces[-1].stop_reason,
            "token_ids": self._if_asked(answer.token_ids),
        }

    def _text_choice(self, index: int, part: Part, answer: Answer) -> dict[str, Any]:
        return {
            "index": index,
            "text": answer.content,
            "logprobs": self._text_logprobs(index, answer.pieces),
            "finish_reason": answer.pieces[-1].finish_reason,
            "stop_reason": answer.pieces[-1].stop_reason,
            "prompt_logprobs": self._prompt_logprobs(part),
            "prompt_token_ids": self._if_asked(part.job.prompt),
            "token_ids": self._if_asked(answer.token_ids),
        }

    def _chat_logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        count = self._request.logprobs
        if count is None:
            return None
        return {
            "content": [
                {
                    **self._entry(piece.token.id, piece.token_text, piece.token.logprob),
                    "top_logprobs": [
                        self._entry(token, self._vocabulary.token_text(token, piece.before), value)
                        for token, value in _alternatives(piece.token)[:count]
                    ],
                }
                for piece in pieces
            ]
        }

    def _entry(self, token: int, text: str, logprob: float) -> dict[str, Any]:
        return {
            "token": self._name(token, text),
            "logprob": max(logprob, _LEAST_LOGPROB),
            "bytes": list(text.encode()),
        }

    def _text_logprobs(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        count = self._request.logprobs
        if count is None:
            return None
        offset = self._offsets.get(index, 0)
        offsets, tokens, tops = [], [], []
        for piece in pieces:
            name = self._name(piece.token.id, piece.token_text)
            offsets.append(offset)
            offset += len(piece.token_text)
            tokens.append(name)
            top = {name: max(piece.token.logprob, _LEAST_LOGPROB)}
            for token, value in _alternatives(piece.token)[: count + 1]:
                text = self._vocabulary.token_text(token, piece.before)
                top.setdefault(self._name(token, text), max(value, _LEAST_LOGPROB))
            tops.append(top)
        self._offsets[index] = offset
        return {
            "text_offset": offsets,
            "token_logprobs": [max(piece.token.logprob, _LEAST_LOGPROB) for piece in pieces],
            "tokens": tokens,
            "top_logprobs": tops,
        }

    def _name(self, token: int, text: str) -> str:
        return f"token_id:{token}" if self._request.tokens_as_ids else text

    def _prompt_logprobs(self, part: Part) -> list[Any] | None:
        if part.started is None or part.started.prompt_scores is None:
            return None
        prompt = part.job.prompt
        return [
            None,
            *(
                self._prompt_entry(scored, prompt[max(0, at - 4) : at])
                for at, scored in enumerate(part.started.prompt_scores, 1)
            ),
        ]

    def _prompt_entry(self, scored: Scored, before: Sequence[int]) -> dict[str, Any]:
        ranks = {token: rank for rank, (token, _) in enumerate(scored.top, 1)}
        return {
            str(token): {
                "logprob": max(value, _LEAST_LOGPROB),
                "rank": scored.rank if token == scored.id else ranks[token],
                "decoded_token": self._vocabulary.token_text(token, before),
            }
            for token, value in _alternatives(scored)
        }


def _alternatives(scored: Scored) -> list[tuple[int, float]]:
    """Return the token itself, then the best others."""
    others = [pair for pair in scored.top if pair[0] != scored.id]
    return [(scored.id, scored.logprob), *others]


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
