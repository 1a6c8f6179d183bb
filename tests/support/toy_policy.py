"""A policy small enough to check by hand: the same next-token distribution after every prompt.

Its one parameter is a vector of logits; its optimizer is plain gradient descent.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from strop.training.backends.base import BASE, OutOfMemory, Sampled, Weights
from strop.training.sequences import Answer, Doubles, Floats, Tokens, Unit

END = 0


class ToyPolicy:
    """A `Policy` over a vocabulary of as many ids as `logits` has; id 0 ends an answer.

    Args:
        logits: of the base, and where training starts.
        max_tokens: with more, padding included, in one call, memory runs out.
    """

    dtype = "float32"
    end_ids = frozenset({END})
    too_much: type[OutOfMemory] = OutOfMemory
    peak_memory_bytes = 0

    def __init__(self, logits: Sequence[float], max_tokens: int = 10**9) -> None:
        self.base = np.array(logits, np.float64)
        self.trained = self.base.copy()
        self.versions: dict[Path, Doubles] = {}
        self.max_tokens = max_tokens
        self.num_calls = 0
        self.num_sampled: list[int] = []  # prompts of each call
        self._gradient = np.zeros_like(self.base)

    def logprobs(self, sequences: Sequence[Tokens], weights: Weights = "trained") -> list[Floats]:
        """Return the logprobs of each answer."""
        self.num_calls += 1
        if len(sequences) * max((len(one.ids) for one in sequences), default=0) > self.max_tokens:
            raise self.too_much("too many tokens")
        table = self._table(weights)
        return [table[one.ids[one.num_prompt :]].astype(np.float32) for one in sequences]

    def accumulate(
        self, sequences: Sequence[Tokens], gradient: Callable[[list[Floats]], list[Floats]]
    ) -> None:
        """Add a micro-batch to the gradient."""
        given = gradient(self.logprobs(sequences))
        share = np.exp(log_softmax(self.trained))
        for tokens, slopes in zip(sequences, given, strict=True):
            for token, slope in zip(tokens.ids[tokens.num_prompt :], slopes, strict=True):
                self._gradient += slope * (np.eye(len(share))[token] - share)

    def step(self, lr: float) -> float:
        """Go down the gradient."""
        norm = float(np.linalg.norm(self._gradient))
        self.trained -= lr * self._gradient
        self._gradient = np.zeros_like(self.base)
        return norm

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        weights: Weights = "trained",
    ) -> list[Sampled]:
        """Return an answer to each prompt."""
        if len(prompts) * (max(map(len, prompts)) + max_tokens) > self.max_tokens:
            raise self.too_much("too many tokens")
        self.num_sampled.append(len(prompts))
        rng = np.random.default_rng(seed)
        table = self._table(weights)
        share = np.exp(table)
        entropy = float(-(share * table).sum())
        answers = []
        for _ in prompts:
            ids: list[int] = []
            while len(ids) < max_tokens and END not in ids:
                drawn = share.argmax() if temperature == 0 else rng.choice(len(share), p=share)
                ids.append(int(drawn))
            logprobs = table[ids].astype(np.float32)
            answers.append(Sampled(tuple(ids), logprobs, np.full(len(ids), entropy, np.float32)))
        return answers

    def greedy(
        self, prompt: Sequence[int], num_tokens: int, weights: Weights = "trained"
    ) -> tuple[tuple[int, ...], Floats, Floats]:
        """Return the likeliest id, over and over."""
        table = self._table(weights)
        second, best = np.sort(table)[-2:]
        assert len(prompt)
        ids = (int(table.argmax()),) * num_tokens
        return ids, np.full(num_tokens, best), np.full(num_tokens, best - second)

    def save_adapter(self, folder: Path) -> None:
        """Write the logits."""
        np.save(folder / "logits.npy", self.trained)

    def save_state(self, folder: Path) -> None:
        """Write the logits."""
        np.save(folder / "logits.npy", self.trained)

    def load_state(self, folder: Path) -> None:
        """Read them."""
        self.trained = np.load(folder / "logits.npy")

    def close(self) -> None:
        """Free nothing."""

    def _table(self, weights: Weights) -> Doubles:
        if isinstance(weights, Path):
            return log_softmax(self.versions[weights])
        return log_softmax(self.base if weights == BASE else self.trained)


def log_softmax(logits: Doubles) -> Doubles:
    """Return the logprobs of all ids."""
    shifted: Doubles = logits - logits.max()
    return shifted - math.log(np.exp(shifted).sum())


def tokens(answer: Sequence[int], num_prompt: int = 1) -> Tokens:
    """A prompt of so many ids, and an answer."""
    return Tokens(np.array([1] * num_prompt + list(answer), np.int32), num_prompt)


def unit(
    policy: ToyPolicy, *answers: Sequence[int], rating: float = 1.0, num_prompt: int = 1
) -> Unit:
    """A rated turn whose answers the base sampled."""
    made = []
    for ids in answers:
        sequence = tokens(ids, num_prompt)
        (base,) = log_softmax(policy.base)[None, sequence.ids[num_prompt:]].astype(np.float32)
        made.append(Answer(sequence, base, base, base, np.ones(len(ids), np.bool_)))
    return Unit("rating", rating, tuple(made), rating)
