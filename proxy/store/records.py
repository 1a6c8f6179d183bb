"""What the store takes and gives back: plain values, never rows.

Knows nothing of SQL, HTTP or engines. What is made for each completion is a msgspec struct: to make
a frozen dataclass takes several times as long.
"""

from array import array
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import msgspec

T = TypeVar("T")

State = Literal[
    "complete",  # the engine's end was seen; `delivered` says whether the client was still there
    "client_cancelled",
    "upstream_error",
    "upstream_timeout",
    "shutdown",
]
FeedbackState = Literal["standing", "superseded", "withdrawn", "pending"]
Scope = Literal["completion", "turn"]
Sign = Literal["good", "bad"]
Source = Literal["api", "header", "inline", "cli"]
LogprobsKind = Literal["raw", "processed"]
ParentBy = Literal["chain", "chain_ambiguous", "tail"]
ExportFormat = Literal["raw", "turns", "kto", "dpo", "sft"]
Dialect = Literal["chat", "completions"]


class Choice(msgspec.Struct, frozen=True):
    """One of a completion's answers, with its half of the snapshot.

    `token_ids` (array 'i') and `logprobs` (array 'f', nats) have one entry per sampled token, the
    end-of-text token included; None where the engine gave none. `token_texts` has one per logprob
    where the engine gives texts in place of ids. `logprobs_kind` is `raw` for the
    log-softmax at T = 1, `processed` for one after penalties or temperature.
    `chain` and `tail` identify the conversation that ends in this choice (see `conversation`).
    """

    index: int
    message: bytes
    finish_reason: str | None = None
    token_ids: "array[int] | None" = None
    token_texts: tuple[str, ...] | None = None
    logprobs: "array[float] | None" = None
    logprobs_source: Literal["engine"] | None = None
    logprobs_kind: LogprobsKind | None = None
    chain: bytes | None = None
    tail: bytes | None = None


class Completion(msgspec.Struct, frozen=True):
    """One request that reached an engine, and what the model answered.

    `request` is the body exactly as the client sent it. `sampling` is the JSON of the sampling
    parameters in force. `after` and `after_tail` identify the history that the request continues
    (None where it has no assistant message); `follows` is the completion that the client says that
    history ends in, and is not kept. Times are in milliseconds; `created_ms` since the
    epoch, the others durations. `prompt_text` is the prompt as an engine shows it that gives no
    ids, noted later. `session` is what the client said, None if it said nothing. `base` is the
    identity of the base that answered, None where it isn't known.
    """

    id: str
    created_ms: int
    key_id: str
    dialect: Dialect
    engine: str
    model: str
    served: str
    version: str
    state: State
    delivered: bool
    stream: bool
    request: bytes
    status: int | None = None
    error: str | None = None
    sampling: bytes = b"{}"
    prompt_ids: "array[int] | None" = None
    prompt_text: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    ttft_ms: float | None = None
    total_ms: float = 0.0
    overhead_ms: float = 0.0
    upstream_id: str | None = None
    request_id: str | None = None
    session: str | None = None
    starts_turn: bool = True
    after: bytes | None = None
    after_tail: bytes | None = None
    follows: str | None = None
    choices: tuple[Choice, ...] = ()
    base: str | None = None


class Recorded(msgspec.Struct, frozen=True):
    """What the store found out about a completion when it recorded it.

    `turn` is the id of the completion that began the turn. `num_sampled` counts the ids that the
    engine gave, of all choices.
    """

    id: str
    session: str
    turn: str
    parent: str | None = None
    parent_choice: int | None = None
    parent_by: ParentBy | None = None
    num_sampled: int = 0


@dataclass(frozen=True, slots=True)
class StoredCompletion:
    """A completion as read back, with what the store found out about it."""

    completion: Completion
    session: str
    turn: str
    parent: str | None
    parent_choice: int | None
    parent_by: ParentBy | None


@dataclass(frozen=True, slots=True)
class CompletionSummary:
    """A completion in a list: no texts, no tokens. `num_feedback` counts the standing ones."""

    id: str
    created_ms: int
    key_id: str
    session: str
    turn: str
    parent: str | None
    dialect: Dialect
    engine: str
    model: str
    version: str
    state: State
    delivered: bool
    stream: bool
    status: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    total_ms: float
    num_choices: int
    num_feedback: int


@dataclass(frozen=True, slots=True)
class CompletionFilter:
    """Which completions to list; None asks for nothing. `since_ms` is inclusive.

    `containing` is a text that must stand in the conversation, in whatever case; see `containing`.
    """

    key_id: str | None = None
    session: str | None = None
    state: State | None = None
    model: str | None = None
    is_rated: bool | None = None
    since_ms: int | None = None
    containing: str | None = None


class Reply(msgspec.Struct, frozen=True):
    """A known choice that a history ends in, and the conversation that it belongs to."""

    completion: str
    choice: int
    by: ParentBy = "chain"
    session: str = ""
    turn: str = ""


@dataclass(frozen=True, slots=True)
class NewFeedback:
    """One rating as accepted, before it is bound.

    `rating` lies in [-1, 1]; `original` is the JSON of what the person gave. `source` says by
    which way it came. `idempotency` makes a retry safe; `digest` is of the whole request body.
    """

    completion: str
    key_id: str
    rating: float
    original: bytes
    choice: int = 0
    comment: str | None = None
    correction: str | None = None
    tags: tuple[str, ...] = ()
    rater: str = ""
    source: Source = "api"
    scope: Scope = "completion"
    idempotency: str | None = None
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Revision:
    """What one revision of a feedback says; a PUT replaces all of it."""

    rating: float
    original: bytes
    comment: str | None = None
    correction: str | None = None
    tags: tuple[str, ...] = ()
    scope: Scope = "completion"


@dataclass(frozen=True, slots=True)
class Feedback:
    """One rating event as stored; `revision` counts PUTs from 1.

    While `pending`, `completion` is the id that was given and `session` is None. `note` says why
    strop itself withdrew it. What is of a session that is held out is never learned from.
    """

    id: str
    revision: int
    completion: str
    choice: int
    rating: float
    original: bytes
    comment: str | None
    correction: str | None
    tags: tuple[str, ...]
    rater: str
    key_id: str
    source: str
    scope: Scope
    state: FeedbackState
    created_ms: int
    session: str | None = None
    note: str | None = None
    is_held_out: bool = False


@dataclass(frozen=True, slots=True)
class FeedbackOutcome:
    """What became of a rating: stored, held until its completion is, or known already.

    `replaced` is the rating that it superseded, as that stood.
    """

    feedback: Feedback
    outcome: Literal["created", "pending", "repeat"]
    replaced: Feedback | None = None


@dataclass(frozen=True, slots=True)
class FeedbackFilter:
    """Which feedback to list; None asks for nothing. `since_ms` is inclusive."""

    key_id: str | None = None
    completion: str | None = None
    session: str | None = None
    rater: str | None = None
    state: FeedbackState | None = None
    sign: Sign | None = None
    source: Source | None = None
    since_ms: int | None = None


@dataclass(frozen=True, slots=True)
class FeedbackCounts:
    """The standing ratings, counted: above 0, below 0, all."""

    good: int
    bad: int
    total: int


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list, newest first."""

    data: tuple[T, ...]
    has_more: bool = False


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """Whether the store takes writes.

    `reason` says what is wrong and what to do, None while `ok`. `since_ms` is when `ok` last
    changed. `num_queued` and `queued_bytes` are those writes not yet durable.
    """

    ok: bool
    reason: str | None
    since_ms: int
    num_queued: int
    queued_bytes: int
