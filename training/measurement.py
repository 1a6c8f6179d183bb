"""What models say of the collected answers before the first step: logprobs, masks, units.

Computes with a policy that stands at the parent's weights. Knows no store.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from strop.training import mismatch
from strop.training.backends.base import BASE, TRAINED, Policy, Weights
from strop.training.examples import Example
from strop.training.micro_batch import MicroBatch
from strop.training.mismatch import Agreement
from strop.training.rows import Row
from strop.training.sequences import Answer, Floats, Tokens, Unit


@dataclass(frozen=True, slots=True)
class Measured:
    """Units, and what was found of their answers.

    `agreement` is between trainer and engine. `num_gone` answers were sampled by a version that is
    no longer there: the engine's own logprobs stand in, where it gave some. `staleness` is the mean
    |log ratio| of the parent over the version that sampled, in nats a token: how far training has
    moved on since.
    """

    units: tuple[Unit, ...]
    agreement: Agreement
    num_gone: int
    staleness: float


@dataclass(frozen=True, slots=True)
class Scored:
    """How far the scoring is: answers, each once for each version that it is scored under.

    Attributes:
        num: how many are done.
        num_all: of how many.
        share: the part of all their tokens that is done.
    """

    num: int
    num_all: int
    share: float


class Scores:
    """Logprobs under one version after the other, each sequence once per version.

    Args:
        policy: computes.
        micro_batch: how much fits.
        wanted: all that will be asked for.
        on_scored: told before the first batch and after each; may raise.
    """

    def __init__(
        self,
        policy: Policy,
        micro_batch: MicroBatch,
        wanted: Iterable[tuple[Weights, Tokens]],
        on_scored: Callable[[Scored], None],
    ) -> None:
        self._policy = policy
        self._micro_batch = micro_batch
        self._on_scored = on_scored
        # A sequence is known by its identity: rows and pairs share theirs.
        self._found: dict[tuple[Weights, int], Floats] = {}
        sizes = {(weights, id(one)): len(one.ids) for weights, one in wanted}
        self._num_all, self._num_tokens_all = len(sizes), sum(sizes.values())
        self._num = self._num_tokens = 0
        self._note(())

    def of(self, weights: Weights, sequences: Sequence[Tokens]) -> list[Floats]:
        """Return the logprobs of each sequence; those that were asked for before cost nothing."""
        missing = {id(one): one for one in sequences if (weights, id(one)) not in self._found}
        computed = self._micro_batch.logprobs(
            self._policy, [*missing.values()], weights, self._note
        )
        self._found |= {
            (weights, key): logprobs for key, logprobs in zip(missing, computed, strict=True)
        }
        return [self._found[weights, id(one)] for one in sequences]

    def _note(self, batch: Sequence[Tokens]) -> None:
        self._num += len(batch)
        self._num_tokens += sum(len(one.ids) for one in batch)
        share = self._num_tokens / max(1, self._num_tokens_all)
        self._on_scored(Scored(self._num, self._num_all, share))


def measure(
    policy: Policy,
    examples: Sequence[Example],
    advantages: Sequence[float],
    parent: str,
    versions: Mapping[str, Path],
    micro_batch: MicroBatch,
    on_scored: Callable[[Scored], None] = lambda _: None,
) -> Measured:
    """Return units with everything that a loss needs.

    Args:
        policy: at the parent's weights.
        examples: what is learned from.
        advantages: one for each.
        parent: the version that the run continues, or `base`.
        versions: folders of the versions that are on disk.
        micro_batch: how much fits.
        on_scored: told before the first batch and after each; may raise.

    Raises:
        Mismatch: trainer and engine disagree too much.
    """
    weights: dict[str, Weights] = {**versions, parent: TRAINED, "base": BASE}
    rows = [row for one in examples for row in one.rows]
    tokens = [row.tokens for row in rows]
    sampled_by = [_sampler(row, weights, parent) for row in rows]
    asked = [
        *zip(sampled_by, tokens, strict=True),
        *itertools.product((BASE, weights[parent]), tokens),
    ]
    wanted = [(using, one) for using, one in asked if using is not None]
    scores = Scores(policy, micro_batch, wanted, on_scored)
    sampler = _samplers(scores, rows, sampled_by)
    # Where an answer's version is gone, or nobody sampled it, there is nothing to compare.
    captured = [row.captured if row.version in weights else None for row in rows]
    agreement = mismatch.compare(captured, sampler)
    agreement.check()
    base, parents = scores.of(BASE, tokens), scores.of(weights[parent], tokens)
    answers = map(Answer, tokens, base, sampler, parents, agreement.keep)
    units = [
        Unit(one.kind, advantage, tuple(itertools.islice(answers, len(one.rows))), one.rating)
        for one, advantage in zip(examples, advantages, strict=True)
    ]
    num_gone = sum(row.version not in weights for row in rows)
    staleness = mismatch.distance(sampler, parents)
    return Measured(tuple(units), agreement, num_gone, staleness)


def _sampler(row: Row, weights: Mapping[str, Weights], parent: str) -> Weights | None:
    """Return who is asked for the logprobs under the version that sampled `row`.

    Where that is gone the engine's stand in, which is None here, and without those the parent's.
    """
    if row.version not in weights and row.captured is not None:
        return None
    return weights.get(row.version, weights[parent])


def _samplers(
    scores: Scores, rows: Sequence[Row], sampled_by: Sequence[Weights | None]
) -> list[Floats]:
    """Return for each row the logprobs under whoever is asked; the engine's where nobody is."""
    by_weights: dict[Weights, list[int]] = {}
    found: dict[int, Floats] = {}
    for index, (row, using) in enumerate(zip(rows, sampled_by, strict=True)):
        if using is not None:
            by_weights.setdefault(using, []).append(index)
        elif row.captured is not None:
            found[index] = row.captured
    for using, indices in by_weights.items():
        computed = scores.of(using, [rows[i].tokens for i in indices])
        found |= dict(zip(indices, computed, strict=True))
    return [found[index] for index in range(len(rows))]
