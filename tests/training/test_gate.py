"""Tests of the gate: which figures pass, which are rejected, and what it says of both."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.training.gate import Behaviour, Figures, HeldOut, Verdict, judge

BASE = Behaviour(num_samples=64, num_tokens=800, base_nll=0.58, length=12.5, entropy=0.55)


def held_out(liked: list[float], disliked: list[float], parent: float = -1.0) -> list[HeldOut]:
    """One session per difference against the parent."""
    return [
        HeldOut(f"cmp_{sign}{i}", rating, parent + difference, parent)
        for sign, rating, differences in (("good", 1.0, liked), ("bad", -1.0, disliked))
        for i, difference in enumerate(differences)
    ]


def figures(**changes: Any) -> Figures:
    """Figures of a sound candidate that its ratings prefer."""
    preferred = held_out([0.2 + 0.01 * i for i in range(10)], [-0.3 - 0.01 * i for i in range(10)])
    sound = Figures(
        candidate=replace(BASE, base_nll=0.62, entropy=0.4),
        base=BASE,
        parent_kl=0.02,
        held_out=tuple(preferred),
    )
    return replace(sound, **changes)


def outcome_of(verdict: Verdict, name: str) -> str:
    """What one check says."""
    return {check.name: check.outcome for check in verdict.checks}[name]


def test_a_sound_and_preferred_candidate_passes() -> None:
    """Every check passes, and each has its sentence."""
    verdict = judge(figures())

    assert "passed" == verdict.outcome
    assert verdict.is_passed
    assert {"passed"} == {check.outcome for check in verdict.checks}
    assert 6 == len(verdict.reasons)


@given(
    nll=st.floats(0.5, 0.7),
    length=st.floats(4, 60),
    entropy=st.floats(0.1, 1.0),
    parent_kl=st.floats(-0.01, 0.25),
    shift=st.floats(0.01, 2.0),
)
def test_sound_figures_pass(
    nll: float, length: float, entropy: float, parent_kl: float, shift: float
) -> None:
    """The spread of sound runs (base NLL .5 to .7 against .58) is not rejected."""
    candidate = replace(BASE, base_nll=nll, length=length, entropy=entropy)
    preferred = tuple(held_out([shift] * 9, [-shift] * 9))

    verdict = judge(figures(candidate=candidate, parent_kl=parent_kl, held_out=preferred))

    assert "passed" == verdict.outcome


@given(nll=st.floats(0.8, 3.9))
def test_samples_that_surprise_the_base_are_rejected(nll: float) -> None:
    """The spread of degenerate runs (base NLL .8 to 3.9 against .58) is, whatever ratings say."""
    verdict = judge(figures(candidate=replace(BASE, base_nll=nll)))

    assert "rejected" == verdict.outcome
    assert not verdict.is_passed
    assert 1 == len(verdict.reasons)
    assert "surprise of its samples to the base" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("base", "nll", "expected"),
    [
        (1.0, 1.29, "passed"),
        (1.0, 1.31, "rejected"),
        (0.2, 0.34, "passed"),
        (0.2, 0.36, "rejected"),
        (0.0, 0.14, "passed"),
        (math.inf, math.inf, "rejected"),
    ],
)
def test_the_bound_on_surprise_leaves_room_where_the_base_is_sure_of_itself(
    base: float, nll: float, expected: str
) -> None:
    """1.3 times the base's own, or .15 nats more: the same preference costs a sure base no less."""
    given = figures(
        base=replace(BASE, base_nll=base), candidate=replace(figures().candidate, base_nll=nll)
    )

    assert expected == outcome_of(judge(given), "base_nll")


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        ("length", {"length": 1.0}),
        ("length", {"length": 128.0}),
        ("entropy", {"entropy": 0.01}),
        ("entropy", {"entropy": 3.0}),
        ("base_nll", {"base_nll": math.nan}),
        ("entropy", {"entropy": math.inf}),
    ],
)
def test_degenerate_samples_are_rejected(check: str, changes: dict[str, Any]) -> None:
    """Answers that end at once or never, that say one thing or anything, or aren't numbers."""
    verdict = judge(figures(candidate=replace(figures().candidate, **changes)))

    assert "rejected" == verdict.outcome
    assert "rejected" == outcome_of(verdict, check)


@pytest.mark.parametrize("parent_kl", [0.31, 7.0, math.inf, math.nan])
def test_a_candidate_far_from_its_parent_is_rejected(parent_kl: float) -> None:
    """More than .3 nats a token is another model, not a sharper one."""
    verdict = judge(figures(parent_kl=parent_kl))

    assert "rejected" == outcome_of(verdict, "parent_kl")
    assert ["distance from its parent"] == [reason[:24] for reason in verdict.reasons]


def test_too_few_fresh_samples_are_rejected() -> None:
    """Collapse can't be ruled out with fewer than 16 samples."""
    verdict = judge(figures(candidate=replace(BASE, num_samples=15)))

    assert "rejected" == verdict.outcome
    assert "at least 16 fresh samples, got 15" in verdict.reasons[0]


def test_liked_answers_that_became_less_likely_reject() -> None:
    """Where none is disliked, the whole interval below what any version may lose rejects."""
    worse = tuple(held_out([-0.2 - 0.01 * i for i in range(10)], []))

    verdict = judge(figures(held_out=worse))

    assert "rejected" == outcome_of(verdict, "liked_logprob")
    assert "rejected" == verdict.outcome
    assert "worse" in verdict.reasons[0]


@pytest.mark.parametrize(("disliked", "outcome"), [(-0.9, "passed"), (-0.2, "inconclusive")])
def test_where_some_are_disliked_the_margin_decides(disliked: float, outcome: str) -> None:
    """What left all old answers behind, the disliked ones no less, is not worse than its parent."""
    moved = tuple(held_out([-0.2, -0.22] * 5, [disliked, disliked - 0.02] * 5))

    verdict = judge(figures(held_out=moved))

    assert verdict.is_passed
    assert "inconclusive" == outcome_of(verdict, "liked_logprob")
    assert outcome == outcome_of(verdict, "margin")
    assert any(reason.endswith("worse, but the margin decides") for reason in verdict.reasons)


def test_a_margin_that_shrank_rejects() -> None:
    """Liked answers became more likely, but disliked ones even more so."""
    worse = tuple(held_out([0.1 + 0.01 * i for i in range(10)], [0.8] * 10))

    verdict = judge(figures(held_out=worse))

    assert "passed" == outcome_of(verdict, "liked_logprob")
    assert "rejected" == outcome_of(verdict, "margin")
    assert "rejected" == verdict.outcome


def test_the_margin_is_what_liked_answers_gained_over_disliked_ones() -> None:
    """The number that people read, and not only its interval."""
    moved = tuple(held_out([0.1] * 9, [-0.3] * 9))

    (margin,) = (check for check in judge(figures(held_out=moved)).checks if check.name == "margin")

    assert pytest.approx(0.4) == margin.value


@pytest.mark.parametrize(
    ("liked", "disliked", "name"), [(-0.03, [], "liked_logprob"), (0.1, [0.13], "margin")]
)
def test_only_a_drop_that_surely_matters_rejects(
    liked: float, disliked: list[float], name: str
) -> None:
    """By having moved, a version as good as its parent loses a little on the parent's answers."""
    sure = tuple(held_out([liked] * 10, disliked * 10))
    spread = (-0.02, 0.02)
    unsure = tuple(
        held_out(
            [liked + by for by in spread] * 5, [one - by for one in disliked for by in spread] * 5
        )
    )

    verdict = judge(figures(held_out=unsure))

    (check,) = [one for one in verdict.checks if one.name == name]
    assert check.interval is not None
    assert -0.02 < check.interval.high < 0
    assert "inconclusive" == check.outcome
    assert check.reason.endswith("worse, but not surely by the 0.02 that matter")
    assert verdict.is_passed
    assert "rejected" == outcome_of(judge(figures(held_out=sure)), name)


def test_an_interval_across_0_is_inconclusive_and_passes() -> None:
    """Without evidence either way the candidate may serve, and the verdict says so."""
    either = tuple(held_out([0.5, -0.5] * 5, [0.5, -0.5] * 5))

    verdict = judge(figures(held_out=either))

    assert "inconclusive" == verdict.outcome
    assert verdict.is_passed
    assert any("could be either way" in reason for reason in verdict.reasons)


def test_fewer_than_8_sessions_are_inconclusive() -> None:
    """Seven sessions are too few, however many ratings they hold and however bad they look."""
    worse = held_out([-1.0] * 70, [-0.5] * 70)
    few = [replace(one, root=f"cmp_{i % 7}") for i, one in enumerate(worse)]

    verdict = judge(figures(held_out=tuple(few)))

    assert "inconclusive" == verdict.outcome
    assert any("7 held-out sessions" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("num_liked", "num_disliked", "expected"),
    [(20, 4, "rejected"), (20, 3, "inconclusive"), (4, 20, "rejected"), (3, 20, "inconclusive")],
)
def test_a_margin_takes_4_sessions_of_each(
    num_liked: int, num_disliked: int, expected: str
) -> None:
    """One answer has no spread, so its interval would be sure of whatever that one did."""
    worse = tuple(held_out([0.1] * num_liked, [0.3] * num_disliked))

    verdict = judge(figures(held_out=worse))

    assert expected == outcome_of(verdict, "margin")
    lacks = f"{num_liked} held-out sessions with liked answers, {num_disliked} with disliked ones"
    assert (expected == "inconclusive") == any(lacks in reason for reason in verdict.reasons)


def test_beside_one_disliked_session_the_liked_answers_decide() -> None:
    """As where none is disliked: what one answer did doesn't outweigh all others."""
    worse = tuple(held_out([-0.2 - 0.01 * i for i in range(10)], [-0.9]))

    verdict = judge(figures(held_out=worse))

    assert ("rejected", "inconclusive") == (
        outcome_of(verdict, "liked_logprob"), outcome_of(verdict, "margin"),
    )  # fmt: skip


def test_no_held_out_rating_is_inconclusive() -> None:
    """A first run has none; the collapse tests alone decide then."""
    verdict = judge(figures(held_out=()))

    assert "inconclusive" == verdict.outcome
    assert "rejected" == judge(figures(held_out=(), parent_kl=1.0)).outcome


def test_neutral_ratings_are_on_neither_side() -> None:
    """A rating of 0 is neither liked nor disliked."""
    neutral = tuple(HeldOut(f"cmp_{i}", 0.0, -9.0, -1.0) for i in range(20))

    assert "inconclusive" == judge(figures(held_out=neutral)).outcome


def test_held_out_logprobs_that_are_not_finite_reject() -> None:
    """A candidate that gives an answer no chance at all is broken."""
    broken = (*figures().held_out, HeldOut("cmp_x", 1.0, -math.inf, -1.0))

    assert "rejected" == judge(figures(held_out=broken)).outcome


def test_a_verdict_is_json() -> None:
    """The manifest and the run keep it, so figures that aren't finite become null."""
    verdict = judge(figures(parent_kl=math.nan))

    written = json.loads(json.dumps(verdict.to_json(), allow_nan=False))

    assert "rejected" == written["outcome"]
    assert [None] == [one["value"] for one in written["checks"] if one["name"] == "parent_kl"]
    assert {"low", "high"} == set(written["checks"][-1]["interval"])


@pytest.mark.parametrize(
    ("difference", "shown"),
    [
        (0.25, "+0.250"),
        (-0.25, "-0.250"),
        (0.0004, "+0.0004"),
        (-0.0004, "-0.0004"),
        (0.0, "+0.000"),
    ],
)
def test_a_small_difference_is_not_shown_as_none(difference: float, shown: str) -> None:
    """Neither of the value nor of its interval."""
    verdict = judge(figures(held_out=tuple(held_out([difference] * 10, [0.0] * 10, parent=0.0))))

    (reason,) = [check.reason for check in verdict.checks if check.name == "liked_logprob"]
    assert f": {shown} nats a token, 90 % interval {shown} to {shown} over" in reason
