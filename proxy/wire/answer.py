"""What a model answered, read from its JSON or its stream, whatever the engine.

Reads standard members and the token ids that engines add to them; does not know which engine wrote
them, or what was asked for. Only the members named here are ever made into values: in an answer
with logprobs most bytes are alternatives that nobody keeps.
"""

import contextlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from strop.proxy.wire.snapshot import Snapshot, floats, ints

_Known = TypeVar("_Known", int, int | None)
_Ids = list[int] | None


class _Token(msgspec.Struct, gc=False):
    logprob: float | None = None
    # mlx_lm.server and llama-server put each id into its logprob entry.
    id: int | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None
    token_logprobs: list[float | None] | None = None


class Entry(msgspec.Struct):
    """One member of `choices`, in a body or in a chunk, chat or text."""

    index: object = 0
    message: object = None
    delta: object = None
    text: object = None
    finish_reason: object = None


class _Sampled(Entry):
    token_ids: _Ids = None
    prompt_token_ids: _Ids = None
    logprobs: _Logprobs | None = None


class _Body(msgspec.Struct):
    """A whole body, or one chunk of a stream."""

    choices: list[Entry] | None = None
    id: object = None
    usage: object = None
    error: object = None
    # llama-server's: in streams too, where it has usage only if asked.
    timings: object = None


class _SampledBody(_Body):
    choices: list[_Sampled] | None = None  # type: ignore[assignment]  # narrower, and only read
    prompt_token_ids: _Ids = None


class _TextOfToken(msgspec.Struct, gc=False):
    token: str = ""


class _TextsOfTokens(msgspec.Struct):
    content: list[_TextOfToken] | None = None


class _NamedEntry(msgspec.Struct):
    index: object = 0
    logprobs: _TextsOfTokens | None = None


class _NamedBody(msgspec.Struct):
    choices: list[_NamedEntry] | None = None


_decode_named = msgspec.json.Decoder(_NamedBody).decode
_decode_sampled = msgspec.json.Decoder(_SampledBody).decode

# Counts and indices beyond it are no such thing, and don't fit into a database.
_LIMIT = 2**31


@dataclass(slots=True)
class AnsweredChoice:
    """One choice as it stands, complete or cut off.

    `ids` and `values` (logprobs, nats) gather one entry per sampled token; None stands for a hole.
    `texts` has the text of each where `Answer.read_texts` took it. `snapshot` is what was read
    before them, in their place.
    """

    index: int
    message: dict[str, object] = field(default_factory=dict)
    finish_reason: str | None = None
    ids: list[int | None] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    snapshot: Snapshot | None = None

    def read(self, entry: _Sampled) -> None:
        """Take the snapshot that `entry` holds of this choice."""
        ids, logprobs = entry.token_ids, entry.logprobs
        if ids:
            self.ids += ids
        if logprobs is None:
            return
        content = logprobs.content or ()
        if ids is None:
            self.ids += [token.id for token in content]
        self.values += logprobs.token_logprobs or [token.logprob for token in content]

    @property
    def token_ids(self) -> "array[int] | None":
        """The sampled ids; None where the engine gave none, or not each one."""
        return ints(self.ids) if self.snapshot is None else self.snapshot.token_ids

    @property
    def logprobs(self) -> "array[float] | None":
        """A logprob for each id; None where they don't pair one to one: none is ever made up."""
        if self.snapshot is not None:
            return self.snapshot.logprobs
        found = floats(self.values)
        if found is None:
            return None
        return found if len(self.ids) == len(found) or self.token_ids is None else None

    @property
    def token_texts(self) -> tuple[str, ...] | None:
        """A text for each logprob, in place of the id that the engine doesn't give."""
        has_each = len(self.texts) == len(self.logprobs or ()) > 0
        return tuple(self.texts) if has_each and self.token_ids is None else None


@dataclass(slots=True)
class Answer:
    """All of an answer that the store keeps.

    `error` is what the engine said was wrong, or why its answer can't be read. `has_one_prompt`:
    all choices answer the same, whose ids are `prompt_ids`.
    """

    upstream_id: str | None = None
    prompt_ids: "array[int] | None" = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    choices: dict[int, AnsweredChoice] = field(default_factory=dict)
    error: str | None = None
    has_one_prompt: bool = True

    def entries(self, pieces: Iterable[bytes]) -> Iterator[tuple[AnsweredChoice, Entry]]:
        """Read a body, or the chunks of a stream; yield each choice with what it gets.

        A piece whose snapshot is malformed is read without it; one that isn't of the OpenAI shape
        is passed over, and `error` says why.
        """
        for piece in pieces:
            body = self._decode(piece)
            if body is None:
                continue
            self._read_head(body)
            for entry in body.choices or ():
                index = _count(entry.index, 0)
                choice = self.choices.get(index)
                if choice is None:
                    choice = self.choices[index] = AnsweredChoice(index)
                if isinstance(entry.finish_reason, str):
                    choice.finish_reason = entry.finish_reason
                if isinstance(entry, _Sampled):
                    choice.read(entry)
                    if entry.prompt_token_ids:
                        self._read_prompt_ids(entry.prompt_token_ids)
                yield choice, entry

    def put_back(self, snapshot: Snapshot) -> bool:
        """Take what was taken out of a body before; whether it is that of its one choice."""
        if len(self.choices) != 1:
            return False
        (choice,) = self.choices.values()
        if choice.ids or choice.values or self.prompt_ids is not None:
            # Something else in the body bore the same name.
            return False
        choice.snapshot = snapshot
        self.prompt_ids = snapshot.prompt_ids
        return True

    def read_texts(self, pieces: Iterable[bytes]) -> None:
        """Take the text of each token that has a logprob, from what `entries` has read."""
        for piece in pieces:
            with contextlib.suppress(ValueError, RecursionError):
                for entry in _decode_named(piece).choices or ():
                    choice = self.choices.get(_count(entry.index, 0))
                    if choice is not None and entry.logprobs is not None:
                        choice.texts += [token.token for token in entry.logprobs.content or ()]

    def forget_tokens(self) -> None:
        """Drop every choice's tokens: they are not those of the whole answer."""
        for choice in self.choices.values():
            choice.ids.clear()
            choice.values.clear()
            choice.texts.clear()

    def _decode(self, piece: bytes) -> _Body | None:
        try:
            return _decode_sampled(piece)
        except (ValueError, RecursionError) as error:
            reason = error
        try:
            # Some engines write NaN, or halves of a character: Python reads these.
            value = json.loads(piece.decode("utf-8-sig", "replace"))
        except (ValueError, RecursionError):
            value = None
        for shape in (_SampledBody, _Body):
            with contextlib.suppress(ValueError):
                return msgspec.convert(value, shape)
        self.error = self.error or f"the engine's answer can't be read: {reason}"
        return None

    def _read_head(self, body: _Body) -> None:
        if self.upstream_id is None and isinstance(body.id, str):
            self.upstream_id = body.id
        if isinstance(body.usage, dict):
            self.prompt_tokens = _count(body.usage.get("prompt_tokens"), self.prompt_tokens)
            self.completion_tokens = _count(
                body.usage.get("completion_tokens"), self.completion_tokens
            )
        if isinstance(body.timings, dict):
            self._read_timings(body.timings)
        if isinstance(body, _SampledBody) and body.prompt_token_ids:
            self._read_prompt_ids(body.prompt_token_ids)
        if (error := body.error) is not None:
            self.error = str(error.get("message", error) if isinstance(error, dict) else error)

    def _read_timings(self, timings: dict[str, object]) -> None:
        self.completion_tokens = _count(timings.get("predicted_n"), self.completion_tokens)
        cached, read = _count(timings.get("cache_n"), 0), _count(timings.get("prompt_n"), None)
        if read is not None and self.prompt_tokens is None:
            self.prompt_tokens = cached + read

    def _read_prompt_ids(self, ids: list[int]) -> None:
        """Take the prompt of a choice; of those of several text prompts none is that of all."""
        found = ints(ids)
        self.has_one_prompt = self.has_one_prompt and self.prompt_ids in (None, found)
        self.prompt_ids = found if self.has_one_prompt else None


def _count(value: object, known: _Known) -> int | _Known:
    return value if isinstance(value, int) and 0 <= value < _LIMIT else known
