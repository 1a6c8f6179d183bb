"""What goes to the worker and what comes back: plain values.

Imports no mlx, knows no HTTP and no text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from strop.proxy.embedded.errors import EngineError

if TYPE_CHECKING:
    from strop.proxy.embedded.grammar import Grammar

Finish = Literal["stop", "length"]
Place = tuple[int, int]  # by age: a job's number, and which of its answers


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one token is drawn, with vLLM's meanings and neutral values.

    Order: `min_tokens`, `logit_bias` and penalties change the logits; then temperature, min_p,
    top_k, top_p. Presence and frequency count generated tokens, repetition the prompt's as well.
    The answer begins with the ids of `forced`, whatever else is set, and follows `grammar`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    forced: tuple[int, ...] = ()
    grammar: "Grammar | None" = None


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt to answer `n` times.

    Attributes:
        model: the served name: the base, or a loaded version.
        prompt: token ids, at least one.
        max_tokens: at least 1.
        stop_ids: tokens that end an answer; they are delivered.
        num_top: how many of the best alternatives to give with each token.
        prompt_logprobs: None, or how many alternatives to give with each prompt token's logprob.
        cache_salt: which of its version's prefix caches it uses.
    """

    model: str
    prompt: tuple[int, ...]
    max_tokens: int
    stop_ids: frozenset[int]
    sampling: Sampling
    n: int = 1
    num_top: int = 0
    prompt_logprobs: int | None = None
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that has not begun, or one of its answers that goes on behind what it has drawn.

    Attributes:
        number: of the job.
        job: what to answer.
        choice: None for a whole job.
        drawn: the ids that the answer has so far.
    """

    number: int
    job: Job
    choice: int | None = None
    drawn: tuple[int, ...] = ()

    @property
    def place(self) -> Place:
        """Where it belongs in a line."""
        return self.number, self.choice or 0

    @property
    def num_rows(self) -> int:
        """How many answers it makes."""
        return self.job.n if self.choice is None else 1


@dataclass(frozen=True, slots=True)
class Scored:
    """A token with its raw logprob (log-softmax at T = 1, nats) and the best alternatives.

    `rank` is 1 for the most likely token; it is counted for prompt tokens only.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """The job was taken: how much of the prompt was cached, and the prompt's scores if asked for.

    `prompt_scores` has one entry per prompt token after the first.
    """

    cached_tokens: int
    prompt_scores: tuple[Scored, ...] | None = None


@dataclass(frozen=True, slots=True)
class Sampled:
    """One more token of the answer `choice`; `finish` is set on its last."""

    choice: int
    token: Scored
    finish: Finish | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The job ended without an answer; nothing more of it comes."""

    error: EngineError


Event = Started | Sampled | Failed
