"""Rated completions as training data for other programs: JSON lines, from stored values alone.

Pure. Does not know where the values come from. Only standing feedback counts; a choice is good if
the mean of its ratings lies above 0, bad below.

    raw   one line a completion: all that is stored of it, but for hashes; and its feedback
    turns one line a rated choice: its feedback, and all answers that this credits, as raw has them
    kto   {"prompt", "completion", "label"}    one line a choice that is good or bad
    dpo   {"prompt", "chosen", "rejected"}     each correction over its answer, and each good choice
                                               over each bad one of the same completion
    sft   {"prompt", "completion"}             each good choice, and each correction

Each line says whether its session is `held_out`, as strop measures on those. Each of the last three
names its completion, and what answered; and says whether its answer, or both of a pair, `is_whole`:
the model ended it, or a person wrote it. Trainers end the turn after any answer, and so teach to
stop where one was cut. They pass over columns that they don't know.

These are TRL's formats (its "Dataset formats" page). Chat is conversational: `prompt` is a
list of messages, an answer a list of one; a text completion gives plain strings. One file holds one
dialect, since a column can't be both. sft has no line of `messages`: on those TRL's loss falls on
all that was said, by the user and by the model when nobody liked it.

Left out of them: completions that the engine broke off, and what was redacted (prompts, answers
and corrections), which strop doesn't learn from either; prompts that hold more than text and tool
calls; answers without either; half characters, for which readers refuse the whole file; and
commands of ours with their answers. Messages keep role, content
(one string), name, tool calls and tool_call_id, and what the model thought as `reasoning_content`;
`tools` stands beside a chat's prompt. Tools, and the arguments of a call, are strings of JSON:
their members differ from line to line, and a column has one type. So `tools` is `"null"` where none
were offered: some readers take their columns from the first line alone.
"""

import base64
import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from strop.proxy.errors import BadRequest
from strop.proxy.inline import without_commands
from strop.proxy.store import binding
from strop.proxy.store import prompt as prompts
from strop.proxy.store.records import (
    Choice,
    Dialect,
    ExportFormat,
    Feedback,
    StoredCompletion,
)
from strop.proxy.store.run_records import RatedTurn
from strop.proxy.wire import body
from strop.proxy.wire.translation import reasoning_in

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Rated:
    """A completion and the standing feedback on it."""

    stored: StoredCompletion
    feedback: tuple[Feedback, ...]

    @property
    def is_held_out(self) -> bool:
        """Whether its session is held out."""
        return any(one.is_held_out for one in self.feedback)


@dataclass(frozen=True, slots=True)
class _Example:
    """One rated choice: what was asked, what was answered, what should have been.

    `is_whole` is said of the answer.
    """

    prompt: object
    answer: object
    rating: float
    corrections: tuple[object, ...]
    is_whole: bool


def lines(rated: Rated, format_: ExportFormat, dialect: Dialect = "chat") -> Iterator[bytes]:
    """Yield the lines that `rated` gives, each with its newline, in a format other than `turns`.

    `raw` has both dialects.
    """
    if format_ == "raw":
        given = [_raw_feedback(f) for f in rated.feedback]
        raw = {**_raw(rated.stored), "held_out": rated.is_held_out, "feedback": given}
        yield body.dumps(raw) + b"\n"
        return
    completion = rated.stored.completion
    request = _json(completion.request)
    if completion.dialect != dialect or not isinstance(request, dict):
        return
    if completion.state not in binding.TRAINS:
        return
    if _is_redacted(completion.request, completion.prompt_ids):
        return
    read = _CHAT if dialect == "chat" else _TEXT
    prompt = read.prompt(request)
    if prompt is None:
        return
    examples = list(_examples(rated, request, prompt, read))
    beside: Json = {
        "completion_id": completion.id,
        "model": completion.model,
        "version": completion.version,
        "base": completion.base,
        "held_out": rated.is_held_out,
    }
    if dialect == "chat":
        beside["tools"] = body.dumps(request.get("tools") or None).decode()
    for row in _ROWS[format_](examples):
        if body.is_text(line := body.dumps({**row, **beside})):
            yield line + b"\n"


def turn_line(turn: RatedTurn) -> bytes:
    """Return the line that a rated turn gives in `turns`, with its newline; in both dialects."""
    rated = turn.completions[-1]
    said: Json = {
        "completion_id": rated.completion.id,
        "choice": turn.choices[-1],
        "rating": _mean(turn.feedback),
        "session": rated.session,
        "root": turn.root,
        "held_out": any(f.is_held_out for f in turn.feedback),
        "feedback": [_raw_feedback(f) for f in turn.feedback],
    }
    # Each by itself: as values all of them would take far more room than as JSON.
    answers = b",".join(
        body.dumps({**_raw(one), "choice": choice})
        for one, choice in zip(turn.completions, turn.choices, strict=True)
    )
    return b'%b,"answers":[%b]}\n' % (body.dumps(said)[:-1], answers)


def _kto(examples: list[_Example]) -> Iterator[Json]:
    for example in examples:
        if example.answer is not None and example.rating:
            yield {
                "prompt": example.prompt,
                "completion": example.answer,
                "label": example.rating > 0,
                "is_whole": example.is_whole,
            }


def _dpo(examples: list[_Example]) -> Iterator[Json]:
    answered = [example for example in examples if example.answer is not None]
    for example in answered:
        for correction in example.corrections:
            if correction != example.answer:
                yield _pair(example.prompt, correction, example.answer, example.is_whole)
    for good in answered:
        for bad in answered:
            if good.rating > 0 > bad.rating and good.answer != bad.answer:
                both = good.is_whole and bad.is_whole
                yield _pair(good.prompt, good.answer, bad.answer, both)


def _pair(prompt: object, chosen: object, rejected: object, is_whole: bool) -> Json:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "is_whole": is_whole}


def _sft(examples: list[_Example]) -> Iterator[Json]:
    for example in examples:
        is_liked = example.answer is not None and example.rating > 0
        liked = [(example.answer, example.is_whole)] if is_liked else []
        for answer, is_whole in [*liked, *((text, True) for text in example.corrections)]:
            yield {"prompt": example.prompt, "completion": answer, "is_whole": is_whole}


_ROWS: Final[Mapping[str, Callable[[list[_Example]], Iterator[Json]]]] = {
    "kto": _kto,
    "dpo": _dpo,
    "sft": _sft,
}


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How a dialect's prompt, answers and corrections are read; None where there is no text."""

    prompt: Callable[[Json], object]
    answer: Callable[[Json, object], object]
    correction: Callable[[str], object]


def _examples(rated: Rated, request: Json, prompt: object, read: _Dialect) -> Iterator[_Example]:
    sampling = body.parse(rated.stored.completion.sampling)
    for choice in rated.stored.completion.choices:
        given = [f for f in rated.feedback if f.choice == choice.index]
        if given:
            # In the order of arrival, each once.
            texts = dict.fromkeys(
                f.correction
                for f in given
                if f.correction is not None and not prompts.is_redacted(f.correction.encode())
            )
            is_redacted = _is_redacted(choice.message, choice.token_ids)
            yield _Example(
                prompt,
                None if is_redacted else read.answer(request, _json(choice.message)),
                _mean(given),
                tuple(read.correction(text) for text in texts),
                prompts.has_ended(choice, sampling),
            )


def _mean(given: Sequence[Feedback]) -> float:
    return sum(f.rating for f in given) / len(given)


def _is_redacted(recorded: bytes, ids: "array[int] | None") -> bool:
    # Whose ids are kept, nothing was taken out of: the mark is what somebody said.
    return ids is None and prompts.is_redacted(recorded)


def _chat_prompt(request: Json) -> object:
    messages = request.get("messages")
    if not isinstance(messages, list):
        return None
    kept = without_commands(messages)
    read = [_message(message) for message in (messages if kept is None else kept)]
    return None if not read or None in read else read


def _chat_answer(_request: Json, message: object) -> object:
    read = _message(message)
    if read is None or not (read["content"] or "tool_calls" in read):
        return None
    return [{**read, "role": "assistant"}]


def _chat_correction(text: str) -> object:
    return [{"role": "assistant", "content": text}]


def _text_answer(request: Json, message: object) -> object:
    said = prompts.continuation(request, message) if isinstance(message, dict) else None
    return said or None


_CHAT: Final = _Dialect(_chat_prompt, _chat_answer, _chat_correction)
_TEXT: Final = _Dialect(prompts.only_prompt, _text_answer, str)


def _message(message: object) -> Json | None:
    """Return a chat message as TRL reads it, or None if it holds more than text and tool calls."""
    if not isinstance(message, dict):
        return None
    said, calls = message.get("content"), message.get("tool_calls")
    content = _content(said)
    if content is None:
        return None
    read: Json = {"role": str(message.get("role", "assistant")), "content": content}
    if isinstance(calls, list) and calls:
        read["tool_calls"] = [_call(call) for call in calls]
    elif said is None and read["role"] == "assistant":
        # It said something else, such as a refusal.
        return None
    for key in ("name", "tool_call_id"):
        if isinstance(message.get(key), str):
            read[key] = message[key]
    if read["role"] == "assistant" and (thought := reasoning_in(message)):
        # As chat templates call it.
        read["reasoning_content"] = thought
    return read


def _call(call: object) -> object:
    """Return a tool call with its arguments as a string; some clients send the object itself."""
    if isinstance(call, dict) and isinstance(function := call.get("function"), dict):
        given = function.get("arguments")
        if isinstance(given, dict):
            return {**call, "function": {**function, "arguments": body.dumps(given).decode()}}
    return call


def _content(content: object) -> str | None:
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        return None
    return "".join(str(text) for text in texts)


def _raw(stored: StoredCompletion) -> Json:
    c = stored.completion
    request = _json(c.request)
    return {
        "id": c.id,
        "created_ms": c.created_ms,
        "key_id": c.key_id,
        "session": stored.session,
        "turn": stored.turn,
        "parent": stored.parent,
        "parent_choice": stored.parent_choice,
        "parent_by": stored.parent_by,
        "dialect": c.dialect,
        "engine": c.engine,
        "model": c.model,
        "served": c.served,
        "version": c.version,
        "base": c.base,
        "starts_turn": c.starts_turn,
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
        "sampling": _json(c.sampling),
        "request": request,
        "request_base64": base64.b64encode(c.request).decode() if request is None else None,
        "prompt_ids": None if c.prompt_ids is None else c.prompt_ids.tolist(),
        "prompt_text": c.prompt_text,
        "choices": [_raw_choice(choice) for choice in c.choices],
    }


def _raw_choice(choice: Choice) -> Json:
    return {
        "index": choice.index,
        "message": _json(choice.message),
        "finish_reason": choice.finish_reason,
        **tokens_of(choice),
    }


def tokens_of(choice: Choice) -> Json:
    """Return what is kept of a choice for training, as JSON can hold it."""
    return {
        "token_ids": None if choice.token_ids is None else choice.token_ids.tolist(),
        "token_texts": choice.token_texts,
        "logprobs": _finite(choice.logprobs),
        "logprobs_source": choice.logprobs_source,
        "logprobs_kind": choice.logprobs_kind,
    }


def _raw_feedback(f: Feedback) -> Json:
    return {
        "id": f.id,
        "revision": f.revision,
        "choice": f.choice,
        "rating": f.rating,
        "original": _json(f.original),
        "comment": f.comment,
        "correction": f.correction,
        "tags": list(f.tags),
        "rater": f.rater,
        "key_id": f.key_id,
        "source": f.source,
        "scope": f.scope,
        "created_ms": f.created_ms,
    }


def _finite(values: "array[float] | None") -> list[float | None] | None:
    """Return logprobs as JSON can hold them: minus infinity is null."""
    if values is None:
        return None
    return [value if math.isfinite(value) else None for value in values]


def _json(data: bytes) -> object:
    try:
        return body.loads(data)
    except BadRequest:
        return None
