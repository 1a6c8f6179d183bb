"""The probe's judgement, over simulated engines: honest ones, wrong ones and mixtures of both."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.adapters import probe as probes
from strop.adapters.probe import Item, Judgement, Measured, Probe
from strop.adapters.tolerances import TOLERANCES, tolerance_of

NUM_ITEMS, NUM_TOKENS = 4, 64
WRONG_ID = 9999

Noise = Callable[[random.Random], float]


def gaussian(tolerance: float) -> Noise:
    """Errors as bf16's: a quarter of the tolerance, rarely near to it."""
    return lambda rng: rng.gauss(0, tolerance / 4)


def laplace(tolerance: float) -> Noise:
    """Errors with long tails: a fifth of the tolerance on average, sometimes beyond it."""
    return lambda rng: rng.choice((-1, 1)) * rng.expovariate(5 / tolerance)


def uniform(tolerance: float) -> Noise:
    """Errors as large as the tolerance allows."""
    return lambda rng: rng.uniform(-tolerance, tolerance)


def exact(_: float) -> Noise:
    """No errors."""
    return lambda _: 0.0


NOISES = (gaussian, laplace, uniform, exact)


def make_probe(
    rng: random.Random,
    *,
    to_parent: float,
    to_base: float,
    num_tokens: int = NUM_TOKENS,
    has_parent: bool = True,
) -> Probe:
    """Return a probe whose candidate lies so far from parent and base (root mean square)."""
    items = []
    for _ in range(NUM_ITEMS):
        candidate = [-rng.expovariate(2) for _ in range(num_tokens)]
        parent = [value + rng.gauss(0, to_parent) for value in candidate]
        items.append(
            Item(
                prompt_ids=tuple(rng.randrange(1000) for _ in range(8)),
                ids=tuple(rng.randrange(1000) for _ in range(num_tokens)),
                margins=tuple(rng.expovariate(0.5) for _ in range(num_tokens)),
                candidate=tuple(candidate),
                parent=tuple(parent) if has_parent else None,
                base=tuple(value + rng.gauss(0, to_base) for value in candidate),
            )
        )
    return Probe(tuple(items), "float32")


@dataclass
class SimulatedEngine:
    """An engine that computes some logprobs, with its own errors.

    `true` are the logprobs that its weights give, before any error. It leaves the greedy path where
    two errors outweigh the margin; `follows_margins` is whether its weights are the candidate's.
    """

    rng: random.Random
    noise: Noise
    follows_margins: bool = True

    def generate(
        self, item: Item, true: Sequence[float]
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        ids: list[int] = []
        logprobs: list[float] = []
        for place, id_ in enumerate(item.ids):
            error = self.noise(self.rng)
            margin = item.margins[place] if self.follows_margins else 0.02
            if margin + error - self.noise(self.rng) < 0:
                rest = len(item.ids) - place
                return (
                    (*ids, *[WRONG_ID] * rest),
                    (*logprobs, *[-self.rng.expovariate(1) for _ in range(rest)]),
                )
            ids.append(id_)
            logprobs.append(true[place] + error)
        return tuple(ids), tuple(logprobs)

    def score(self, true: Sequence[float]) -> tuple[float, ...]:
        return tuple(value + self.noise(self.rng) for value in true)

    def measure(
        self,
        item: Item,
        *,
        cold: Sequence[float],
        warm: Sequence[float] | None = None,
        scores: bool = True,
    ) -> Measured:
        return Measured(
            cold=self.generate(item, cold),
            warm=self.generate(item, cold if warm is None else warm),
            scored=self.score(cold) if scores else None,
        )


def mixed(a: Sequence[float], b: Sequence[float], share: float, rng: random.Random) -> list[float]:
    """Return logprobs of which some, by chance, are b's."""
    return [y if rng.random() < share else x for x, y in zip(a, b, strict=True)]


def between(a: Sequence[float], b: Sequence[float], share: float) -> list[float]:
    """Return logprobs that lie part of the way from a to b."""
    return [x + share * (y - x) for x, y in zip(a, b, strict=True)]


def parent_of(item: Item) -> Sequence[float]:
    return item.base if item.parent is None else item.parent


def judged(probe: Probe, measured: Sequence[Measured], tolerance: float) -> Judgement:
    return probes.judge(probe, measured, tolerance=tolerance)


tolerances = st.sampled_from(sorted(TOLERANCES.values()))
seeds = st.integers(0, 2**32)
noises = st.sampled_from(NOISES)


@settings(max_examples=150, deadline=None)
@given(seeds, tolerances, noises, st.booleans(), st.booleans())
def test_an_honest_engine_is_proven(
    seed: int, tolerance: float, noise: Callable[[float], Noise], scores: bool, has_parent: bool
) -> None:
    """Whatever its errors within the tolerance: what lies four tolerances away is told apart."""
    rng = random.Random(seed)
    probe = make_probe(rng, to_parent=4 * tolerance, to_base=5 * tolerance, has_parent=has_parent)
    engine = SimulatedEngine(rng, noise(tolerance))

    measured = [engine.measure(item, cold=item.candidate, scores=scores) for item in probe.items]

    judgement = judged(probe, measured, tolerance)
    # Where it left the greedy path almost at once, too little may be left.
    expected = {"proven"} if scores or judgement.num_tokens >= 64 else {"proven", "unproven"}
    if judgement.num_tokens < probes.MIN_TOKENS:
        expected = {"unproven"}
    assert judgement.outcome in expected, judgement
    assert has_parent == ("parent" in judgement.errors)


@settings(max_examples=200, deadline=None)
@given(seeds, tolerances, noises, st.floats(0, 8))
def test_an_honest_engine_never_fails(
    seed: int, tolerance: float, noise: Callable[[float], Noise], distance: float
) -> None:
    """However near or far the other versions are."""
    rng = random.Random(seed)
    probe = make_probe(rng, to_parent=distance * tolerance, to_base=2 * distance * tolerance)
    engine = SimulatedEngine(rng, noise(tolerance))

    measured = [engine.measure(item, cold=item.candidate) for item in probe.items]

    assert judged(probe, measured, tolerance).outcome != "failed"


@settings(max_examples=200, deadline=None)
@given(
    seeds, tolerances, noises, st.floats(0, 50), st.sampled_from(["parent", "base"]), st.booleans()
)
def test_an_engine_that_serves_another_version_is_never_proven(
    seed: int,
    tolerance: float,
    noise: Callable[[float], Noise],
    distance: float,
    serves: str,
    follows_margins: bool,
) -> None:
    """Not by its errors, nor where its greedy answers are the candidate's."""
    rng = random.Random(seed)
    probe = make_probe(rng, to_parent=distance * tolerance, to_base=distance * tolerance)
    engine = SimulatedEngine(rng, noise(tolerance), follows_margins)

    measured = [
        engine.measure(item, cold=parent_of(item) if serves == "parent" else item.base)
        for item in probe.items
    ]

    outcome = judged(probe, measured, tolerance).outcome
    assert outcome != "proven"
    if distance >= 4:
        assert "failed" == outcome


@settings(max_examples=200, deadline=None)
@given(
    seeds,
    tolerances,
    noises,
    st.floats(0, 50),
    st.floats(0.4, 1),
    st.sampled_from(["parent", "base"]),
    st.sampled_from(["tokens", "weights", "items", "warm"]),
)
def test_a_mixture_is_never_proven(
    seed: int,
    tolerance: float,
    noise: Callable[[float], Noise],
    distance: float,
    share: float,
    of: str,
    how: str,
) -> None:
    """Of two versions, by tokens, by weights, by prompts, or between cold and warm cache."""
    rng = random.Random(seed)
    probe = make_probe(rng, to_parent=distance * tolerance, to_base=distance * tolerance)
    engine = SimulatedEngine(rng, noise(tolerance))
    measured = []
    for place, item in enumerate(probe.items):
        other = parent_of(item) if of == "parent" else item.base
        if how == "tokens":
            measured.append(engine.measure(item, cold=mixed(item.candidate, other, share, rng)))
        elif how == "weights":
            measured.append(engine.measure(item, cold=between(item.candidate, other, share)))
        elif how == "items":
            measured.append(engine.measure(item, cold=item.candidate if place else other))
        else:
            measured.append(engine.measure(item, cold=item.candidate, warm=other))

    outcome = judged(probe, measured, tolerance).outcome

    assert outcome != "proven"
    if distance >= 8 and how != "items":
        assert "failed" == outcome


@settings(max_examples=150, deadline=None)
@given(seeds, noises, st.sampled_from(["candidate", "parent", "base"]))
def test_a_4_bit_engine_is_judged_by_its_own_base(
    seed: int, noise: Callable[[float], Noise], serves: str
) -> None:
    """Offsets of 0.02 nats a token, two thirds of them the same under the version as the base."""
    rng = random.Random(seed)
    probe = make_probe(rng, to_parent=0.15, to_base=0.25)
    engine = SimulatedEngine(rng, noise(1e-3))
    measured = []
    for item in probe.items:
        offsets = [rng.gauss(0, 0.02) for _ in item.ids]
        served = {"candidate": item.candidate, "parent": parent_of(item), "base": item.base}[serves]
        true = [
            value + offset * (1 if serves == "base" else rng.uniform(0.67, 1.33))
            for value, offset in zip(served, offsets, strict=True)
        ]
        base = [value + offset for value, offset in zip(item.base, offsets, strict=True)]
        measured.append(replace(engine.measure(item, cold=true), base_scored=engine.score(base)))

    judgement = judged(probe, measured, 1e-3)

    if judgement.num_tokens < probes.MIN_TOKENS:
        assert "unproven" == judgement.outcome
    else:
        assert ("proven" if serves == "candidate" else "failed") == judgement.outcome, judgement


def test_a_4_bit_engine_without_its_base_is_not_proven() -> None:
    """Its offsets alone are beyond the tolerance of float32."""
    rng = random.Random(0)
    probe = make_probe(rng, to_parent=0.15, to_base=0.25)
    engine = SimulatedEngine(rng, gaussian(0.08))

    measured = [engine.measure(item, cold=item.candidate) for item in probe.items]

    assert "failed" == judged(probe, measured, 1e-3).outcome


@pytest.mark.parametrize(
    ("to_parent", "to_base", "serves"),
    [
        (0.0, 1.0, "candidate"),
        (1e-4, 1.0, "candidate"),
        (1.0, 1e-4, "candidate"),
        (0.0, 1.0, "parent"),
        (1e-4, 1.0, "parent"),
    ],
)
def test_versions_within_the_noise_are_indistinguishable(
    to_parent: float, to_base: float, serves: str
) -> None:
    """Then even an engine without any error proves nothing, and no version is ruled out."""
    rng = random.Random(1)
    probe = make_probe(rng, to_parent=to_parent, to_base=to_base)
    engine = SimulatedEngine(rng, exact(0))

    measured = [
        engine.measure(item, cold=item.candidate if serves == "candidate" else parent_of(item))
        for item in probe.items
    ]

    judgement = judged(probe, measured, 1e-3)
    assert "indistinguishable" == judgement.outcome
    assert ("parent" if to_parent < 1 else "base") in judgement.reason


def test_a_stale_prefix_cache_is_said_as_such() -> None:
    """Right when cold and the parent's when warm: the reason names the cache."""
    rng = random.Random(2)
    probe = make_probe(rng, to_parent=0.5, to_base=1.0)
    engine = SimulatedEngine(rng, gaussian(1e-3))

    measured = [
        engine.measure(item, cold=item.candidate, warm=parent_of(item)) for item in probe.items
    ]

    judgement = judged(probe, measured, 1e-3)
    assert "failed" == judgement.outcome
    assert "wrong with a warm one" in judgement.reason
    assert "the engine serves the parent" in judgement.reason


def test_other_tokens_where_the_candidate_is_sure_fail() -> None:
    """A margin of a nat is turned by no noise; the reason says prompt, token and margin."""
    rng = random.Random(3)
    probe = make_probe(rng, to_parent=0.5, to_base=1.0)
    item = replace(probe.items[0], margins=(1.0,) * NUM_TOKENS)
    probe = Probe((item,), "float32")
    answer = (*item.ids[:40], WRONG_ID, *item.ids[41:]), item.candidate
    measured = Measured(cold=answer, warm=answer)

    judgement = judged(probe, [measured], 1e-3)

    assert "failed" == judgement.outcome
    assert "prompt 0" in judgement.reason
    assert "at token 40" in judgement.reason


@pytest.mark.parametrize(("kept", "outcome"), [(15, "unproven"), (16, "proven")])
def test_what_follows_a_turned_token_is_not_compared(kept: int, outcome: str) -> None:
    """Behind it the engine answers another prompt; too few tokens before it decide nothing."""
    rng = random.Random(4)
    probe = make_probe(rng, to_parent=0.5, to_base=1.0)
    item = replace(probe.items[0], margins=(0.0005,) * NUM_TOKENS)
    answer = (
        (*item.ids[:kept], *[WRONG_ID] * (NUM_TOKENS - kept)),
        (*item.candidate[:kept], *[-50.0] * (NUM_TOKENS - kept)),
    )

    judgement = judged(Probe((item,), "float32"), [Measured(cold=answer, warm=answer)], 1e-3)

    assert (outcome, kept) == (judgement.outcome, judgement.num_tokens)


def test_an_answer_that_ends_early_counts_as_far_as_it_goes() -> None:
    """An engine that stops at the end of text has answered nothing wrong."""
    rng = random.Random(5)
    probe = make_probe(rng, to_parent=0.5, to_base=1.0)
    measured = [
        Measured(
            cold=(item.ids[:20], item.candidate[:20]), warm=(item.ids[:20], item.candidate[:20])
        )
        for item in probe.items
    ]

    judgement = judged(probe, measured, 1e-3)

    assert ("proven", NUM_ITEMS * 20) == (judgement.outcome, judgement.num_tokens)


NOTHING: tuple[tuple[int, ...], tuple[float, ...]] = ((), ())


def test_nothing_measured_is_unproven() -> None:
    """No items, no answers, answers without logprobs, or not all prompts: no proof, no failure."""
    rng = random.Random(6)
    probe = make_probe(rng, to_parent=0.5, to_base=1.0)
    empty = Measured(cold=NOTHING, warm=NOTHING)
    ids_only = [Measured(cold=(item.ids, ()), warm=(item.ids, ())) for item in probe.items]

    assert "unproven" == judged(Probe((), "float32"), [], 1e-3).outcome
    assert "unproven" == judged(probe, [], 1e-3).outcome
    assert "unproven" == judged(probe, [empty] * NUM_ITEMS, 1e-3).outcome
    assert "unproven" == judged(probe, ids_only, 1e-3).outcome
    assert "unproven" == judged(probe, [empty], 1e-3).outcome


def test_a_right_cold_answer_alone_is_unproven() -> None:
    """Without a warm one the prefix cache is not known to be right."""
    rng = random.Random(7)
    probe = make_probe(rng, to_parent=0.5, to_base=1.0)

    measured = [
        Measured(cold=(item.ids, item.candidate), warm=NOTHING, scored=item.candidate)
        for item in probe.items
    ]

    assert "unproven" == judged(probe, measured, 1e-3).outcome


@pytest.mark.parametrize("broken", [float("nan"), float("-inf")])
def test_a_logprob_that_is_no_number_fails(broken: float) -> None:
    """NaN compares with nothing, so it must not slip through."""
    rng = random.Random(8)
    probe = make_probe(rng, to_parent=0.5, to_base=1.0)
    measured = [
        Measured(
            cold=(item.ids, item.candidate),
            warm=(item.ids, (broken, *item.candidate[1:])),
        )
        for item in probe.items
    ]

    assert "failed" == judged(probe, measured, 1e-3).outcome


def test_the_errors_are_mean_squares() -> None:
    """Half a nat from the candidate everywhere is 0.25; the parent 1.5 away is 2.25."""
    item = Item((1,), (2,) * 20, (9.0,) * 20, (-1.0,) * 20, (0.0,) * 20, (-3.0,) * 20)
    answer = (item.ids, (-1.5,) * 20)

    judgement = judged(Probe((item,), "float32"), [Measured(cold=answer, warm=answer)], 1.0)

    assert {"candidate": 0.25, "parent": 2.25, "base": 2.25} == judgement.errors


def evenly_off(apart: float, *errors: float) -> Judgement:
    """What is said where base and parent lie so far away from the candidate, all on one side.

    The engine's errors, one for each prompt, change their sign from token to token. The prompts
    have 64 tokens in all.
    """
    count = NUM_TOKENS // len(errors)
    items, measured = [], []
    for error in errors:
        ids, there = tuple(range(count)), (-1.0 - apart,) * count
        items.append(Item((1,), ids, (9.0,) * count, (-1.0,) * count, there, there))
        off = [error if place % 2 else -error for place in ids]
        given = ids, tuple(-1.0 + each for each in off)
        measured.append(Measured(cold=given, warm=given, scored=given[1]))
    return probes.judge(Probe(tuple(items), "float32"), measured, tolerance=1.0)


@pytest.mark.parametrize(
    ("apart", "error", "outcome"),
    [
        (0.49, 0.0, "indistinguishable"),
        (0.51, 0.0, "proven"),
        # error² against a quarter of apart² + error².
        (1.0, 0.57, "proven"),
        (1.0, 0.58, "indistinguishable"),
        # 0.6 of the tolerance, and a quarter more with 64 tokens.
        (9.0, 0.74, "proven"),
        (9.0, 0.76, "failed"),
    ],
)
def test_the_bounds_are_as_they_are_said(apart: float, error: float, outcome: str) -> None:
    """With a tolerance of 1 and errors of one size, each bound is a number."""
    assert outcome == evenly_off(apart, error).outcome


def test_one_prompt_of_16_tokens_that_another_version_answers_fails() -> None:
    """The other three are right, so that all together are nearest to the candidate."""
    honest = evenly_off(1.0, 0.0, 0.0, 0.0, 0.0)
    items = [Item((1,), tuple(range(16)), (9.0,) * 16, (-1.0,) * 16, None, (-2.0,) * 16)] * 4
    given = [(items[0].ids, (at,) * 16) for at in (-1.0, -1.0, -2.0, -1.0)]

    judgement = probes.judge(
        Probe(tuple(items), "float32"),
        [Measured(cold=one, warm=one, scored=one[1]) for one in given],
        tolerance=1.0,
    )

    assert "proven" == honest.outcome
    assert ("failed", True) == (judgement.outcome, "prompt 2 as the base" in judgement.reason)


def test_a_parent_that_is_the_base_for_some_prompts_is_taken_as_that() -> None:
    """A missing parent means the base, prompt by prompt."""
    rng = random.Random(9)
    probe = make_probe(rng, to_parent=0.5, to_base=1.0)
    probe = Probe((replace(probe.items[0], parent=None), *probe.items[1:]), "float32")
    engine = SimulatedEngine(rng, exact(0))

    measured = [engine.measure(item, cold=item.candidate) for item in probe.items]

    assert "proven" == judged(probe, measured, 1e-3).outcome


def test_the_parent_is_told_apart_where_the_first_prompt_has_none() -> None:
    """It is asked of all prompts, and the base stands in for it where it is missing."""
    rng = random.Random(9)
    probe = make_probe(rng, to_parent=0.5, to_base=1.0)
    probe = Probe((replace(probe.items[0], parent=None), *probe.items[1:]), "float32")
    engine = SimulatedEngine(rng, exact(0))

    measured = [engine.measure(item, cold=parent_of(item)) for item in probe.items]

    judgement = judged(probe, measured, 1e-3)
    assert {"candidate", "parent", "base"} == judgement.errors.keys()
    assert ("failed", True) == (judgement.outcome, "serves the parent" in judgement.reason)


def test_the_looser_of_two_dtypes_gives_the_tolerance() -> None:
    """And what isn't known is taken for bfloat16."""
    assert 1e-3 == tolerance_of("float32")
    assert 0.18 == tolerance_of("float32", "bfloat16")
    assert 0.18 == tolerance_of("float32", "mxfp4")


def test_fewer_bits_a_weight_give_a_larger_tolerance() -> None:
    """As llama.cpp names them, in either case; the trainer's own dtype stays the least."""
    levels = ["Q8_0", "q6_k", "Q5_K_M", "q4_0", "IQ3_XS", "q2_k"]
    found = [tolerance_of("float32", level) for level in levels]

    assert sorted(found) == found
    assert 6 == len({*found})
    assert 0.18 < found[0]
    assert 1.0 == tolerance_of("bfloat16", "Q4_K_M")


def test_the_error_of_the_engines_own_base_widens_the_tolerance() -> None:
    """A 4-bit engine that can't score is judged by what its pairing measured."""
    rng = random.Random(10)
    probe = make_probe(rng, to_parent=0.5, to_base=0.8)
    engine = SimulatedEngine(rng, gaussian(0.2))
    measured = [engine.measure(item, cold=item.candidate, scores=False) for item in probe.items]
    offsets = [
        abs(logprob - expected)
        for item, each in zip(probe.items, measured, strict=True)
        for id_, own, logprob, expected in zip(
            each.cold[0], item.ids, each.cold[1], item.candidate, strict=True
        )
        if id_ == own
    ]
    error = sum(offsets) / len(offsets)

    assert 1e-3 == tolerance_of("float32", base_error=1e-6)
    assert "failed" == judged(probe, measured, tolerance_of("float32")).outcome
    assert "proven" == (judged(probe, measured, tolerance_of("float32", base_error=error)).outcome)
