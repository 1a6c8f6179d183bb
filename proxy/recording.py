"""Turns what was relayed into the completion that the store keeps.

Pure, and slow beside the relay: it parses the whole answer, so it runs in the writer's thread. Does
not write anything.
"""

from array import array
from collections.abc import Iterable, Iterator
from itertools import chain

import msgspec

from strop.proxy import conversation
from strop.proxy.alias import Served
from strop.proxy.engines.base import Ask, Capabilities
from strop.proxy.errors import BadRequest
from strop.proxy.redaction import Redaction
from strop.proxy.store.records import Choice, Completion, LogprobsKind, State
from strop.proxy.wire import body, chat, completions, sse
from strop.proxy.wire.answer import Answer, AnsweredChoice
from strop.proxy.wire.restore import Split
from strop.proxy.wire.stream_copy import StreamCopy

# What decided the sampling, as the client asked for it, or else as the engine says that it samples;
# what is absent was the default of an engine that doesn't say.
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "seed", "n", "stop", "stop_token_ids", "max_tokens",
    "max_completion_tokens", "min_tokens", "ignore_eos", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "logit_bias", "response_format", "structured_outputs", "tool_choice",
    "reasoning_effort", "chat_template_kwargs",
)  # fmt: skip

# What changes a distribution beside temperature and cut-offs, and what leaves it as it is.
_PENALTIES = {
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "logit_bias": None,
}


# Of an answer's members, those that are parts of what the model sampled, as they are.
_TEXTS = ("content", "text", "reasoning", "reasoning_content", "thinking")


class Draft(msgspec.Struct, frozen=True):
    """What the relay knows of one request when it is over.

    `answer` is the engine's body, exactly as sent, or else `stream` is what it streamed; `split` is
    the body in two, where that was done for the client. Times are in milliseconds.
    """

    id: str
    created_ms: int
    key_id: str
    engine: str
    capabilities: Capabilities
    ask: Ask
    served: Served
    state: State
    delivered: bool
    status: int | None
    error: str | None
    answer: bytes
    stream: StreamCopy | None
    ttft_ms: float | None
    total_ms: float
    overhead_ms: float
    request_id: str | None
    session: str | None
    redaction: Redaction
    split: Split | None = None

    @property
    def num_bytes(self) -> int:
        """About how much memory it takes."""
        num_answered = len(self.answer) if self.stream is None else self.stream.num_held_bytes
        return num_answered + len(self.ask.raw)


def complete(draft: Draft) -> Completion:
    """Return the completion that `draft` amounts to."""
    ask, answer = draft.ask, _read(draft)
    if ask.dialect == "chat":
        history = conversation.read(chat.messages_of(ask.fields), draft.key_id)
    else:
        history = conversation.read_prompt(draft.key_id)
    if not draft.capabilities.token_ids or draft.capabilities.may_drop_tokens:
        answer.read_texts(_pieces(draft))
    if draft.capabilities.may_drop_tokens and not _has_each_token(answer):
        answer.forget_tokens()
    choices = []
    for choice in sorted(answer.choices.values(), key=lambda c: c.index):
        chain, tail = (
            conversation.extend(history, choice.message) if ask.dialect == "chat" else (None, None)
        )
        choices.append(_choice(choice, draft, chain, tail))
    completion_tokens = answer.completion_tokens
    if completion_tokens is None:
        completion_tokens = _num_tokens(*(choice.token_ids for choice in choices))
    prompt_tokens = answer.prompt_tokens
    if prompt_tokens is None:
        prompt_tokens = _num_tokens(answer.prompt_ids)
    model = ask.fields.get("model")
    redaction = draft.redaction
    request = redaction.json(ask.raw)
    asked = {key: ask.fields[key] for key in SAMPLING if key in ask.fields}
    told = draft.capabilities.sampling
    usual = {key: told[key] for key in SAMPLING if key in told and asked.get(key) is None}
    sampling = _json(asked | usual)
    return Completion(
        id=draft.id,
        created_ms=draft.created_ms,
        key_id=draft.key_id,
        dialect=ask.dialect,
        engine=draft.engine,
        model=redaction.text(model) if isinstance(model, str) else "",
        served=draft.served.name,
        version=draft.served.version,
        base=draft.served.base,
        state=draft.state,
        delivered=draft.delivered,
        stream=ask.is_stream,
        request=request,
        status=draft.status,
        error=redaction.text(draft.error or answer.error),
        sampling=redaction.json(sampling),
        # Ids spell what was taken out of the text.
        prompt_ids=answer.prompt_ids if request is ask.raw else None,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        ttft_ms=draft.ttft_ms,
        total_ms=draft.total_ms,
        overhead_ms=draft.overhead_ms,
        upstream_id=answer.upstream_id if draft.capabilities.body_ids_are_unique else None,
        request_id=redaction.text(draft.request_id),
        session=redaction.label(draft.session),
        starts_turn=history.starts_turn,
        after=history.after,
        after_tail=history.after_tail,
        follows=ask.follows,
        choices=tuple(choices),
    )


def _pieces(draft: Draft) -> Iterable[bytes]:
    """Return the body, or the chunks of the stream; of a long one never all at once."""
    if draft.stream is None:
        return [draft.answer] if draft.answer else []
    return chain.from_iterable(map(_chunks, _runs(draft.stream)))


def _runs(stream: StreamCopy) -> Iterator[bytes]:
    """Yield the stream in runs of whole events, and what is left at its end."""
    splitter = sse.Splitter()
    yield from map(splitter.feed, stream)
    yield splitter.take_rest()


def _chunks(events: bytes) -> list[bytes]:
    # Half an event, where a stream was cut off, and [DONE] are no chunks.
    return [one for one in sse.payloads(events) if one[:1] == b"{" and one[-1:] == b"}"]


def _read(draft: Draft) -> Answer:
    is_chat = draft.ask.dialect == "chat"
    if draft.split is not None and not draft.capabilities.may_drop_tokens:
        answer = chat.read_json(draft.split.rest)
        if answer.put_back(draft.split.snapshot):
            return answer
    if draft.stream is None:
        return chat.read_json(draft.answer) if is_chat else completions.read_json(draft.answer)
    pieces = _pieces(draft)
    return chat.read_stream(pieces) if is_chat else completions.read_stream(pieces)


def _json(fields: dict[str, object]) -> bytes:
    """Return `fields` as JSON; nothing of them where they are nested too deeply to be written."""
    try:
        return body.dumps(fields)
    except BadRequest:
        return b"{}"


def _num_tokens(*ids: "array[int] | None") -> int | None:
    """Return how many ids an engine sent that did not count them; None where it sent not all."""
    known = [len(one) for one in ids if one is not None]
    return sum(known) if known and len(known) == len(ids) else None


def _has_each_token(answer: Answer) -> bool:
    """Whether there is a logprob for each token that the engine says it sampled.

    Some engines leave out the token that ends a text. What they leave out besides are parts of
    characters: where one token is missing, the text of the others says whether it was the end.
    """
    if answer.completion_tokens is None:
        return False
    choices = answer.choices.values()
    num_missing = answer.completion_tokens - sum(len(choice.values) for choice in choices)
    num_ended = sum(choice.finish_reason in ("stop", "tool_calls") for choice in choices)
    if not num_missing or num_missing != num_ended:
        return not num_missing
    return all(_is_said_in("".join(choice.texts), choice.message) for choice in choices)


def _is_said_in(text: str, message: dict[str, object]) -> bool:
    """Whether no character of `message` is missing in the text that the model sampled."""
    rest = {name: said for name, said in message.items() if name not in _TEXTS}
    said = (said for name in _TEXTS if isinstance(said := message.get(name), str))
    return _json(rest).isascii() and all(one.isascii() or one in text for one in said)


def _choice(
    choice: AnsweredChoice, draft: Draft, chain: bytes | None, tail: bytes | None
) -> Choice:
    said = _json(choice.message)
    message = draft.redaction.json(said)
    is_whole = message is said
    logprobs = choice.logprobs if is_whole and draft.capabilities.logprobs else None
    return Choice(
        index=choice.index,
        message=message,
        finish_reason=choice.finish_reason,
        token_ids=choice.token_ids if is_whole else None,
        token_texts=choice.token_texts if logprobs is not None else None,
        logprobs=logprobs,
        logprobs_source="engine" if logprobs is not None else None,
        logprobs_kind=_logprobs_kind(draft) if logprobs is not None else None,
        chain=chain,
        tail=tail,
    )


def _logprobs_kind(draft: Draft) -> LogprobsKind:
    capabilities, fields = draft.capabilities, draft.ask.fields
    if capabilities.logprobs_show_penalties:
        said = ((fields.get(name), neutral) for name, neutral in _PENALTIES.items())
        if any(value and value != neutral for value, neutral in said):
            return "processed"
    return capabilities.logprobs_kind
