"""What a model answered, read from its JSON or its stream, whatever the engine.

Reads standard members and the token ids that engines add to them; does not know which engine wrote
them, or what was asked for.
"""

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

# Counts and indices beyond it are no such thing, and don't fit into a database.
_LIMIT = 2**31


@dataclass(slots=True)
class AnsweredChoice:
    """One choice as it stands, complete or cut off.

    `token_ids` and `logprobs` (nats) hold one entry per sampled token where the engine gave them.
    """

    index: int
    message: dict[str, object] = field(default_factory=dict)
    finish_reason: str | None = None
    token_ids: "array[int] | None" = None
    logprobs: "array[float] | None" = None

    def add_ids(self, ids: object) -> None:
        """Append the ids of one piece; anything but a list of integers is not a piece."""
        if not isinstance(ids, list) or not ids:
            return
        try:
            more = array("i", ids)
        except (TypeError, OverflowError):
            return
        if self.token_ids is None:
            self.token_ids = more
        else:
            self.token_ids.extend(more)

    def add_logprobs(self, values: list[object]) -> None:
        """Append the logprobs of one piece. A hole drops them all: none is ever made up."""
        if all(isinstance(value, float | int) for value in values):
            more = array("f", cast("list[float]", values))
        else:
            more = array("f", [math.nan])
        if self.logprobs is None:
            self.logprobs = more
        else:
            self.logprobs.extend(more)


@dataclass(slots=True)
class Answer:
    """All of an answer that the store keeps."""

    upstream_id: str | None = None
    model: str | None = None
    prompt_ids: "array[int] | None" = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    choices: dict[int, AnsweredChoice] = field(default_factory=dict)
    error: str | None = None

    def choice(self, entry: Mapping[str, object]) -> AnsweredChoice:
        """Return the choice that `entry` of a `choices` array belongs to."""
        index = entry.get("index")
        if not isinstance(index, int) or not 0 <= index < _LIMIT:
            index = 0
        if index not in self.choices:
            self.choices[index] = AnsweredChoice(index)
        return self.choices[index]

    def read_head(self, body: Mapping[str, object]) -> None:
        """Take what stands beside `choices`: id, model, usage, prompt ids, an error."""
        identity, model, usage = body.get("id"), body.get("model"), body.get("usage")
        if self.upstream_id is None and isinstance(identity, str):
            self.upstream_id = identity
        if self.model is None and isinstance(model, str):
            self.model = model
        if isinstance(usage, dict):
            self.prompt_tokens = _count(usage.get("prompt_tokens"), self.prompt_tokens)
            self.completion_tokens = _count(usage.get("completion_tokens"), self.completion_tokens)
        self.read_prompt_ids(body)
        error = body.get("error")
        if error is not None:
            said = error.get("message", error) if isinstance(error, dict) else error
            self.error = str(said)

    def read_prompt_ids(self, holder: Mapping[str, object]) -> None:
        """Take `prompt_token_ids` where `holder` has them and none are known yet."""
        ids = holder.get("prompt_token_ids")
        if self.prompt_ids is None and isinstance(ids, list) and ids:
            try:
                self.prompt_ids = array("i", ids)
            except (TypeError, OverflowError):
                return

    def close(self) -> None:
        """Drop logprobs that don't pair with the ids one to one, or are no numbers."""
        for choice in self.choices.values():
            values = choice.logprobs
            if values is None:
                continue
            if any(map(math.isnan, values)) or (
                choice.token_ids is not None and len(choice.token_ids) != len(values)
            ):
                choice.logprobs = None


def _count(value: object, known: int | None) -> int | None:
    return value if isinstance(value, int) and 0 <= value < _LIMIT else known
