"""Token sequences and what a loss is a function of. Pure values; knows no model and no store.

Shapes: T tokens of one sequence, S of them sampled.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Mask = NDArray[np.bool_]
Kind = Literal["rating", "correction", "pair"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the model was given, and what it answered, as ids.

    `ids` is int32 (T,); the first `num_prompt` are the prompt, at least one; the other S = T -
    num_prompt are the answer, exactly as sampled, the end-of-text token included where there was
    one. Logprobs "of a sequence" are always those of its S answer ids, float32 (S,), the raw
    log-softmax at T = 1.
    """

    ids: NDArray[np.int32]
    num_prompt: int

    @classmethod
    def of(cls, prompt: Sequence[int], answer: Sequence[int]) -> "Tokens":
        """Return the sequence of a prompt and its answer."""
        ids = np.concatenate([np.asarray(part, np.int32) for part in (prompt, answer)])
        return cls(ids, len(prompt))

    @property
    def num_answer(self) -> int:
        """S, the number of answer tokens."""
        return len(self.ids) - self.num_prompt


@dataclass(frozen=True, slots=True)
class Answer:
    """One sequence as an objective sees it; all arrays are (S,).

    Attributes:
        tokens: the sequence.
        base: logprobs under the base, the anchor.
        sampler: the trainer's own logprobs under the version that sampled it.
        parent: logprobs under the version that training begins at.
        keep: which tokens count; False where the mismatch mask dropped one.
    """

    tokens: Tokens
    base: Floats
    sampler: Floats
    parent: Floats
    keep: Mask


@dataclass(frozen=True, slots=True)
class Unit:
    """What one term of a loss is a function of: a rated turn, a correction, or a pair.

    Attributes:
        kind: what it is. A `pair` has its preferred answer first, the other second.
        advantage: A_i of docs/learning.md; 1 for corrections and pairs.
        answers: the completions of one turn, in order (one credit, one mean over their tokens); of
            a pair, exactly two.
        rating: what people said, in [-1, 1]; 1 for corrections and pairs.
    """

    kind: Kind
    advantage: float
    answers: tuple[Answer, ...]
    rating: float


@dataclass(frozen=True, slots=True)
class Loss:
    """One unit's loss, and its derivative by each logprob.

    Attributes:
        value: the loss, in nats.
        gradients: dL/dlogprob for each answer of the unit, each (S,); zero where a token is masked.
        metrics: figures of this unit; a step's is the mean over the units that have it.
    """

    value: float
    gradients: tuple[Floats, ...]
    metrics: dict[str, float]


def token_mean(rows: Sequence[Floats]) -> float:
    """Return the mean over all tokens of all `rows`, in float64; NaN without any."""
    joined = np.concatenate([np.zeros(0), *rows], dtype=np.float64)
    return float(joined.mean()) if len(joined) else math.nan
