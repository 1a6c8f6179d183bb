"""What a run learns from: fresh ratings as examples, split from the held-out ones, or a refusal.

Reads the store, and computes nothing with a model; `measurement` does that.
"""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from strop.proxy.store.run_records import COMPARING, RatedTurn
from strop.proxy.store.store import Store
from strop.proxy.store.training_store import TrainingStore
from strop.training.advantages import advantages, baseline
from strop.training.examples import Example, Examples, Maker
from strop.training.figures import MAX_SAMPLE_TOKENS, MAX_SAMPLES
from strop.training.objectives.base import Objective
from strop.training.rows import Target
from strop.training.training_set import HeldOutTurn, num_bytes

MAX_PROMPT_TOKENS: Final = 4096
NUM_JUDGING: Final = 32
"""How many held-out sessions a candidate is compared on, the newest.

What people like changes, and a version that has learned it is worse by what they liked before. The
more sessions, the longer the old ones outvote the new ones (docs/decisions, 0023).
"""

Ids = NDArray[np.int32]


class Refused(Exception):
    """This run can't be made; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Collected:
    """Examples with their advantages, and what the gate needs.

    Attributes:
        learn: what the objective learns from.
        advantages: one for each of `learn`.
        held_out: rated turns of held-out sessions, the newest first.
        prompts: ids of all recorded prompts, shuffled; those of held-out sessions first.
        counts: examples by kind, what was left out or flagged, by reason, and the baseline.
        warnings: what people should know.
        completions: the ids of all that was read for it.
    """

    learn: tuple[Example, ...]
    advantages: tuple[float, ...]
    held_out: tuple[HeldOutTurn, ...]
    prompts: tuple[Ids, ...]
    counts: dict[str, float]
    warnings: tuple[str, ...]
    completions: tuple[str, ...] = ()

    @property
    def longest(self) -> int:
        """How many tokens the longest sequence has that is learned from."""
        return max(len(row.tokens.ids) for one in self.learn for row in one.rows)

    @property
    def num_bytes(self) -> int:
        """How much memory its sequences take."""
        learn = [row.tokens for one in self.learn for row in one.rows]
        return num_bytes([*learn, *(one for turn in self.held_out for one in turn.answers)])

    def within(self, longest: int) -> "Collected":
        """Return the same with what the gate can ask in sequences of up to `longest` tokens.

        Held-out turns that have a longer one are left out, and of the others all but those of the
        newest `NUM_JUDGING` sessions. Prompts that leave no room for an answer are left out, but
        for the shortest where all are such; of the others up to `MAX_SAMPLES` distinct ones are
        kept.
        """
        fitting = [turn for turn in self.held_out if turn.longest <= longest]
        newest = [*dict.fromkeys(turn.root for turn in fitting)][:NUM_JUDGING]
        held_out = tuple(turn for turn in fitting if turn.root in newest)
        most = min(longest - MAX_SAMPLE_TOKENS, MAX_PROMPT_TOKENS)
        prompts = [ids for ids in self.prompts if len(ids) <= most]
        prompts = prompts or sorted(self.prompts, key=len)[:1]
        return replace(
            self,
            held_out=held_out,
            prompts=_distinct(prompts),
            counts=self.counts | {"held_out": len(held_out)},
        )


async def collect(
    store: Store,
    parent: str,
    objective: Objective,
    target: Target,
    *,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> Collected:
    """Return what there is to learn from for a child of `parent`, a version or `base`.

    Of what is read, only this stays in memory: requests are far larger than their tokens.

    Args:
        store: what people said.
        parent: what it has learned from is left out.
        objective: chooses what it learns from.
        target: the base, its context and its tokenizer.
        seed: of the order of the prompts.
        check: called between turns; may raise.

    Raises:
        Refused: it is not enough, and why.
    """
    base, ratings = target.base, store.training
    found, completions = await _read(ratings.fresh_turns(parent, base=base), target, check)
    prior = await ratings.prior(base=base)
    if not completions:
        raise Refused(nothing_fresh(prior.num_ratings, (await store.feedback_counts()).total))
    learn = objective.select(found.examples)
    if reason := refusal(found, learn, objective.name):
        raise Refused(reason)
    judging, more = await _read(ratings.held_out_turns(base=base), target, check)
    kept = _rated(judging)
    counts = found.counts() | {
        "examples": len(learn),
        "held_out": len(kept),
        "baseline": round(baseline(prior), 6),
    }
    return Collected(
        learn=tuple(learn),
        advantages=tuple(advantages(learn, prior)),
        held_out=tuple(one.as_held_out() for one in kept),
        prompts=_prompts([kept, learn], seed),
        counts=counts,
        warnings=found.warnings(),
        completions=tuple(completions | more),
    )


async def held_out_turns(ratings: TrainingStore, target: Target) -> list[Example]:
    """Return the newest rated turns of held-out sessions."""
    found, _ = await _read(ratings.held_out_turns(base=target.base), target)
    return _rated(found)


async def _read(
    turns: AsyncIterator[RatedTurn], target: Target, check: Callable[[], None] = lambda: None
) -> tuple[Examples, dict[str, None]]:
    """Return what can be learned from `turns`, and the ids of all their completions, in order."""
    maker = Maker(target)
    completions: dict[str, None] = {}
    async for turn in turns:
        check()
        maker.add(turn)
        completions.update((one.completion.id, None) for one in turn.completions)
    return maker.made(), completions


def _rated(found: Examples) -> list[Example]:
    return [one for one in found.examples if one.kind == "rating"]


def nothing_fresh(num_learned: int, num_rated: int) -> str:
    """Return why there is nothing to learn from.

    Args:
        num_learned: how many ratings stand that may be learned from: all were.
        num_rated: how many stand in all.
    """
    if num_rated == 0:
        why = "nothing is rated yet"
    elif num_rated == num_learned:
        why = f"all {num_rated} were learned from already"
    else:
        why = (
            f"of {num_rated} ratings {num_learned} were learned from already; the others are held"
            " out, or of answers that broke off, that another model gave, or the base before its"
            " files changed, or that came before model.base was set"
        )
    return f"there is no rating to learn from: {why}"


def refusal(found: Examples, learn: Sequence[Example], objective: str) -> str | None:
    """Return why `learn`, selected from `found`, can't be learned from; None if it can."""
    left_out = ", ".join(f"{reason}: {num}" for reason, num in found.left_out.most_common())
    if not found.examples:
        return f"no rating can be learned from ({left_out})"
    num_good = sum(one.rating > 0 for one in found.examples if one.kind != "pair")
    num_bad = sum(one.rating < 0 for one in found.examples if one.kind != "pair")
    if objective in COMPARING and not (num_good and num_bad):
        missing = "bad" if num_good else "good"
        either = ", or train with --objective sft" if num_good else ", or correct some"
        return (
            f"{num_good} good and {num_bad} bad answers, each by the mean of its ratings:"
            f" {objective} compares good ones with bad ones; rate some {missing} ones too{either}"
            + (f" (left out: {left_out})" if left_out else "")
        )
    if not learn:
        wanted = {"dpo": "pairs: a correction, or a good and a bad answer to the same prompt"}
        needs = wanted.get(objective, "answers rated good, or corrections")
        return f"{objective} learns from {needs}; there is none among {len(found.examples)} ratings"
    return None


def _prompts(groups: Sequence[Sequence[Example]], seed: int) -> tuple[Ids, ...]:
    """Return the prompts of each group, shuffled, one group after the other; none is copied."""
    rng = random.Random(seed)  # noqa: S311
    found: list[Ids] = []
    for group in groups:
        tokens = [row.tokens for one in group for row in one.rows]
        found += [one.ids[: one.num_prompt] for one in rng.sample(tokens, len(tokens))]
    return tuple(found)


def _distinct(prompts: Sequence[Ids]) -> tuple[Ids, ...]:
    """Return the first `MAX_SAMPLES` that differ."""
    found: dict[bytes, Ids] = {}
    for ids in prompts:
        found.setdefault(ids.tobytes(), ids)
        if len(found) == MAX_SAMPLES:
            break
    return tuple(found.values())
