"""Every objective: values derived by hand, gradients by finite differences, masks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_values import LN2, answer, floats, unit

from strop.training import mismatch, objectives
from strop.training.objectives import Settings
from strop.training.objectives.base import Objective
from strop.training.objectives.terms import anchor
from strop.training.sequences import Floats, Kind, Loss, Unit

ALL = sorted(objectives.OBJECTIVES)
OF_RATINGS = sorted(set(ALL) - {"dpo"})
POLICY_GRADIENTS = ("topr", "mispo", "reinforce")


def make(name: str, **changes: float) -> Objective:
    return objectives.make(name, Settings(**changes))


def gradients(loss: Loss) -> list[list[float]]:
    return [gradient.tolist() for gradient in loss.gradients]


def unit_for(name: str, **changes: Any) -> Unit:
    """A unit of two answers as `name` learns from it."""
    kind: Kind = "pair" if name == "dpo" else "rating"
    made = unit(answer([-1.0, -2.0]), answer([-0.5, -1.5, -3.0]), kind=kind)
    return replace(made, **changes)


# Hand-derived values.


def test_topr_pulls_a_liked_answer_up_whatever_its_ratio() -> None:
    """A = 1, pi = (1/2, 1/4), pi_v far above: w = 1, L = -mean(ln 1/2, ln 1/4) = 1.5 ln 2.

    Each of two tokens has the gradient -1/2; at pi = pi_base the anchor is 0, and flat.
    """
    policy = floats(-LN2, -2 * LN2)
    liked = unit(answer(policy.tolist(), sampler=[0.0, 0.0]))

    loss = make("topr")(liked, (policy,))

    assert pytest.approx(1.5 * LN2) == loss.value
    assert [[-0.5, -0.5]] == gradients(loss)


def test_topr_tapers_a_disliked_answer_by_its_sequence_ratio() -> None:
    """A = -1, both tokens half as likely as when sampled: w = (1/2)^2 = 1/4.

    pi = (1/4, 1/4): L = 1/4 x mean(log pi) = -ln 2 / 2, and w / 2 = 1/8 at each token.
    """
    policy = floats(-2 * LN2, -2 * LN2)
    disliked = unit(answer(policy.tolist(), sampler=[-LN2, -LN2]), advantage=-1.0)

    loss = make("topr")(disliked, (policy,))

    assert pytest.approx(-LN2 / 2) == loss.value
    assert [pytest.approx([0.125, 0.125])] == gradients(loss)
    assert pytest.approx(0.25) == loss.metrics["weight"]


def test_topr_never_weighs_a_disliked_answer_more_than_once() -> None:
    """It is four times as likely as when sampled: w = min(1, 4) = 1, and each token gets 1."""
    disliked = unit(answer([-LN2], sampler=[-3 * LN2]), advantage=-1.0)

    loss = make("topr")(disliked, (floats(-LN2),))

    assert [pytest.approx([1.0])] == gradients(loss)


def test_topr_tempers_the_weight_beyond_32_tokens() -> None:
    """40 tokens, each 0.1 nats down: w = exp(32 x -0.1) = e^-3.2, not e^-4."""
    disliked = unit(answer([-1.1] * 40, sampler=[-1.0] * 40), advantage=-1.0)

    loss = make("topr")(disliked, (floats(*[-1.1] * 40),))

    assert pytest.approx(np.exp(-3.2)) == loss.metrics["weight"]


def test_long_disliked_answers_of_a_slightly_biased_engine_still_move() -> None:
    """With a bias of 0.02 nats on each of 1,000 tokens the push is e^-0.64 = 0.53 of a full one.

    The mismatch mask keeps them all; the untempered weight would be e^-20.
    """
    sampled, now = floats(*[-1.0] * 1000), floats(*[-1.02] * 1000)
    keep = mismatch.keep(sampled, now)
    disliked = unit(answer(now.tolist(), sampled.tolist(), keep.tolist()), advantage=-1.0)

    loss = make("topr")(disliked, (now,))

    assert 1000 == keep.sum()
    assert pytest.approx(np.exp(-0.64), rel=1e-5) == float(loss.gradients[0].sum())


def test_the_anchor_is_k3_and_goes_on_along_its_tangent() -> None:
    """With d = ln 2 it is 2 - ln 2 - 1, slope -(2 - 1); with d = -ln 2, 1/2 + ln 2 - 1 and 1/2.

    From 20 on it is a line: at 25 e^20 - 21 + 5 (e^20 - 1), and the slope doesn't vanish.
    """
    value, slope = anchor(np.array([-LN2, LN2, -25.0]), np.zeros(3))

    e20 = np.exp(20)
    assert pytest.approx([1 - LN2, LN2 - 0.5, e20 - 21 + 5 * (e20 - 1)]) == value.tolist()
    assert pytest.approx([-1.0, 0.5, -(e20 - 1)]) == slope.tolist()


def test_the_anchor_is_part_of_the_loss() -> None:
    """A = 0, one token half as likely as under the base, beta = 0.1: L = 0.1 (1 - ln 2)."""
    neutral = unit(answer([0.0]), advantage=0.0)

    loss = make("topr", beta=0.1)(neutral, (floats(-LN2),))

    assert pytest.approx(0.1 * (1 - LN2)) == loss.value
    assert [pytest.approx([-0.1])] == gradients(loss)


def test_the_anchor_ends_the_push_on_a_disliked_token() -> None:
    """-A = beta (e^d - 1) at d = ln(1 + 1 / 0.05) = 3.04 nats below the base: no gradient is left.

    At twice that distance the token is pulled up again.
    """
    reinforce = make("reinforce", beta=0.05)
    disliked = unit(answer([-1.0]), advantage=-1.0)
    distance = np.log(21)

    at_rest = reinforce(disliked, (floats(-1 - distance),))
    beyond = reinforce(disliked, (floats(-1 - 2 * distance),))

    assert [pytest.approx([0.0], abs=1e-6)] == gradients(at_rest)
    assert gradients(beyond)[0][0] < 0


def test_reinforce_weighs_nothing() -> None:
    """A = -0.5, mean(log pi) = -2: L = 0.5 x -2, each of two tokens 1/4, however unlikely."""
    disliked = unit(answer([-1.0, -3.0], sampler=[0.0, 0.0]), advantage=-0.5)

    loss = make("reinforce")(disliked, (floats(-1.0, -3.0),))

    assert pytest.approx(-1.0) == loss.value
    assert [pytest.approx([0.25, 0.25])] == gradients(loss)


def test_mispo_drops_tokens_that_left_the_band_and_weighs_none() -> None:
    """Of the ratios (1, 2.5, 0.9, 0.9) only the second lies outside the band.

    Their geometric mean, 2.025^(1/4) = 1.19, is inside. With A = 1, L is minus the mean of the
    other three, and each of them has -1/3.
    """
    ratios = np.log([1.0, 2.5, 0.9, 0.9])
    sampler = [-1.0, -1.5, -2.0, -3.0]
    policy = floats(*(np.array(sampler) + ratios))
    liked = unit(answer(policy.tolist(), sampler=sampler))

    loss = make("mispo")(liked, (policy,))

    assert pytest.approx(-policy[[0, 2, 3]].mean()) == loss.value
    assert [pytest.approx([-1 / 3, 0, -1 / 3, -1 / 3])] == gradients(loss)
    assert pytest.approx(0.75) == loss.metrics["kept"]


def test_mispo_drops_an_answer_that_left_the_band_and_keeps_the_turns_other_one() -> None:
    """Every ratio of the first is 1.3, over 1.25 on average; the second, one token, has it all."""
    first = answer([-1.0, -1.0], sampler=[-1 - np.log(1.3)] * 2)
    liked = unit(first, answer([-2.0]))

    loss = make("mispo")(liked, (floats(-1.0, -1.0), floats(-2.0)))

    assert [[0.0, 0.0], [-1.0]] == gradients(loss)


def test_mispo_masks_no_correction() -> None:
    """Nobody sampled it, so its ratio to a sampler says nothing."""
    correction = unit(answer([-9.0], sampler=[-1.0]), kind="correction")

    loss = make("mispo")(correction, (floats(-9.0),))

    assert [[-1.0]] == gradients(loss)


def test_sft_is_the_mean_negative_logprob() -> None:
    """Three tokens of two answers, -1, -2 and -6: L = 3, and -1/3 each."""
    liked = unit(answer([-1.0, -2.0]), answer([-6.0]))

    loss = make("sft")(liked, (floats(-1.0, -2.0), floats(-6.0)))

    assert pytest.approx(3.0) == loss.value
    assert [pytest.approx([-1 / 3] * 2), pytest.approx([-1 / 3])] == gradients(loss)


@pytest.mark.parametrize(("advantage", "slope"), [(1.0, -0.125), (-1.0, 0.125)])
def test_kto_begins_half_way(advantage: float, slope: float) -> None:
    """At pi = pi_base r = z = 0: L = 1 - sigmoid(0) = 1/2, slope kto_beta / 4 = 1/8 a token."""
    kto = make("kto", kto_beta=0.5)
    rated = unit(answer([-1.0, -2.0]), advantage=advantage)
    policy = (floats(-1.0, -2.0),)

    kto.select([rated])
    kto.prepare([rated], [policy])
    loss = kto(rated, policy)

    assert pytest.approx(0.5) == loss.value
    assert [pytest.approx([slope, slope])] == gradients(loss)


def test_ktos_reference_point_is_the_steps_mean_reward() -> None:
    """With the rewards 2 and 0, z = 1.

    The liked one has L = 1 - sigmoid(0.5 (2 - 1)) = 0.3775; the disliked one
    1 - sigmoid(0.5 (1 - 0)), the same.
    """
    kto = make("kto", kto_beta=0.5)
    liked = unit(answer([-2.0, -2.0]))
    disliked = unit(answer([-2.0]), advantage=-1.0)
    policies = [(floats(-1.0, -1.0),), (floats(-2.0),)]

    kto.select([liked, disliked])
    kto.prepare([liked, disliked], policies)

    assert pytest.approx(0.3775407) == kto(liked, policies[0]).value
    assert pytest.approx(0.3775407) == kto(disliked, policies[1]).value


def test_ktos_reference_point_is_never_below_zero() -> None:
    """A KL isn't: with a mean reward of -2 the point is 0, and L = 1 - sigmoid(-1)."""
    kto = make("kto", kto_beta=0.5)
    liked = unit(answer([-1.0]))

    kto.prepare([liked], [(floats(-3.0),)])

    assert pytest.approx(0.7310586) == kto(liked, (floats(-3.0),)).value


def test_ktos_reference_point_leaves_out_what_is_masked() -> None:
    """An answer without a kept token has no reward, which is not one of 0: z = 2."""
    kto = make("kto")
    liked, masked = unit(answer([-2.0, -2.0])), unit(answer([-2.0], keep=[False]))

    kto.prepare([liked, masked], [(floats(-1.0, -1.0),), (floats(-1.0),)])

    assert 2.0 == kto(liked, (floats(-1.0, -1.0),)).metrics["kto_point"]


def test_kto_balances_both_sides_by_their_numbers() -> None:
    """One liked and three disliked: lambda = 4 / 2 and 4 / 6, so L = 1 and 1/3 at the start."""
    kto = make("kto")
    liked = unit(answer([-1.0]))
    disliked = unit(answer([-1.0]), advantage=-1.0)

    kto.select([liked, disliked, disliked, disliked])

    assert pytest.approx(1.0) == kto(liked, (floats(-1.0),)).value
    assert pytest.approx(1 / 3) == kto(disliked, (floats(-1.0),)).value


def test_dpo_begins_at_ln_2() -> None:
    """At pi = pi_base the margin is 0: L = ln 2, and the slope dpo_beta / 2 on both sides."""
    pair = unit(answer([-1.0]), answer([-2.0, -3.0]), kind="pair")

    loss = make("dpo", dpo_beta=0.1)(pair, (floats(-1.0), floats(-2.0, -3.0)))

    assert pytest.approx(LN2) == loss.value
    assert [pytest.approx([-0.05]), pytest.approx([0.05, 0.05])] == gradients(loss)


def test_dpo_compares_with_the_base() -> None:
    """The preferred answer gained 1 nat on the base and the other lost 2: L = ln(1 + e^-0.3)."""
    pair = unit(answer([-2.0]), answer([-1.0, -1.0]), kind="pair")

    loss = make("dpo", dpo_beta=0.1)(pair, (floats(-1.0), floats(-2.0, -2.0)))

    assert pytest.approx(np.log1p(np.exp(-0.3))) == loss.value
    assert 1.0 == loss.metrics["dpo_accuracy"]


# What holds for all of them.


@pytest.mark.parametrize("name", OF_RATINGS)
def test_a_turn_has_one_mean_over_all_its_tokens(name: str) -> None:
    """However they lie in its answers: credit goes by tokens, not by answers."""
    values = [-1.0, -2.0, -0.5]
    whole = unit(answer(values))
    parts = unit(answer(values[:1]), answer(values[1:]))
    objective = make(name)

    of_whole = objective(whole, (floats(*values),))
    of_parts = objective(parts, (floats(*values[:1]), floats(*values[1:])))

    assert pytest.approx(of_whole.value) == of_parts.value
    assert np.concatenate(of_parts.gradients).tolist() == of_whole.gradients[0].tolist()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_masked_tokens_have_no_gradient_and_leave_the_mean(name: str, advantage: float) -> None:
    """Whatever a masked token's logprob is, the loss is that of the others alone."""
    kind: Kind = "pair" if name == "dpo" else "rating"
    masked = unit(
        answer([-1.0, -3.0], keep=[True, False]), answer([-2.0]), kind=kind, advantage=advantage
    )
    alone = unit(answer([-1.0]), answer([-2.0]), kind=kind, advantage=advantage)
    objective = make(name)

    # Mispo's own mask looks at whole answers, so the masked token stays in its band there.
    loss = objective(masked, (floats(-1.1, -3.2), floats(-2.1)))
    expected = objective(alone, (floats(-1.1), floats(-2.1)))

    assert pytest.approx(expected.value) == loss.value
    assert expected.gradients[0].tolist() == loss.gradients[0][:1].tolist()
    assert 0.0 == loss.gradients[0][1]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_where_all_is_masked_there_is_no_loss_and_no_gradient(name: str, advantage: float) -> None:
    """Not even where it is a whole batch, and not a number that isn't one."""
    kind: Kind = "pair" if name == "dpo" else "rating"
    nothing = unit(
        answer([-1.0, -2.0], keep=[False, False]),
        answer([-3.0], keep=[False]),
        kind=kind,
        advantage=advantage,
    )
    policy = (floats(-1.5, -2.5), floats(-9.0))
    objective = make(name)

    objective.select([nothing])
    objective.prepare([nothing], [policy])
    loss = objective(nothing, policy)

    assert 0.0 == loss.value
    assert [[0.0, 0.0], [0.0]] == gradients(loss)
    assert {"kept": 0.0} == loss.metrics


@pytest.mark.parametrize("is_kept", [(False, True), (True, False)])
def test_a_pair_of_which_one_side_is_masked_compares_nothing(is_kept: tuple[bool, bool]) -> None:
    """It would else push the other one down, or this one up, without limit."""
    preferred, other = (answer([-1.0], keep=[kept]) for kept in is_kept)

    loss = make("dpo")(unit(preferred, other, kind="pair"), (floats(-1.0), floats(-2.0)))

    assert 0.0 == loss.value
    assert [[0.0], [0.0]] == gradients(loss)


@pytest.mark.parametrize("name", ALL)
def test_metrics_are_finite_numbers(name: str) -> None:
    """Each goes into the store and the API as JSON."""
    loss = make(name)(unit_for(name), (floats(-1.0, -2.0), floats(-0.5, -1.5, -3.0)))

    assert all(np.isfinite(value) for value in loss.metrics.values())
    assert "kept" in loss.metrics


@pytest.mark.parametrize("name", OF_RATINGS)
def test_the_mean_logprob_is_told_by_whether_the_answer_is_liked(name: str) -> None:
    """A mild rating too has a side; one of 0 has none."""
    policy = (floats(-1.0, -2.0), floats(-0.5, -1.5, -3.0))

    told = [
        {key: value for key, value in metrics.items() if key.startswith("logprob")}
        for rating in (0.25, -0.25, 0.0)
        for metrics in [make(name)(unit_for(name, rating=rating), policy).metrics]
    ]

    assert [{"logprob_liked": -1.6}, {"logprob_disliked": -1.6}, {}] == told


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_single_precision_of_the_answers_shape(name: str) -> None:
    """Backends take them as they are."""
    loss = make(name)(unit_for(name), (floats(-1.0, -2.0), floats(-0.5, -1.5, -3.0)))

    assert [(2,), (3,)] == [gradient.shape for gradient in loss.gradients]
    assert {np.dtype(np.float32)} == {gradient.dtype for gradient in loss.gradients}


def moved(policy: Floats, made: Unit, which: int, by: float) -> tuple[Unit, Floats]:
    """Return a unit's only answer with one logprob moved, and the sampler's with it.

    Weights and masks are functions of policy over sampler, so they stay as they are: the constants
    that they are in a loss.
    """
    (one,) = made.answers
    step = np.zeros(len(policy))
    step[which] = by
    sampler = floats(*(one.sampler + step))
    return replace(made, answers=(replace(one, sampler=sampler),)), floats(*(policy + step))


def assert_gradient_is_the_difference(objective: Objective, made: Unit, policy: Floats) -> None:
    loss = objective(made, (policy,))
    for which in range(len(policy)):
        above, below = (moved(policy, made, which, by) for by in (1e-5, -1e-5))
        rise = objective(above[0], (above[1],)).value - objective(below[0], (below[1],)).value

        assert pytest.approx(rise / 2e-5, rel=1e-4, abs=1e-6) == float(loss.gradients[0][which])


logprobs = st.floats(-8, -0.01)


@st.composite
def rated(draw: st.DrawFn) -> tuple[Unit, Floats]:
    """A rated answer, and the policy's logprobs of it."""
    length = draw(st.integers(1, 6))
    many = st.lists(logprobs, min_size=length, max_size=length)
    policy = draw(many)
    near = draw(st.lists(st.floats(-0.9, 0.9), min_size=length, max_size=length))
    sampler = [value + by for value, by in zip(policy, near, strict=True)]
    keep = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    advantage = draw(st.floats(-1.9, 1.9).filter(lambda value: abs(value) > 1e-3))
    return unit(answer(draw(many), sampler, keep), advantage=advantage), floats(*policy)


@pytest.mark.parametrize("name", OF_RATINGS)
@given(case=rated())
@settings(max_examples=60, deadline=None)
def test_gradients_of_ratings_are_finite_differences(name: str, case: tuple[Unit, Floats]) -> None:
    """For any logprobs, masks and advantages."""
    made, policy = case
    objective = make(name)
    objective.prepare([made], [(policy,)])

    assert_gradient_is_the_difference(objective, made, policy)


@given(
    values=st.lists(st.tuples(logprobs, logprobs, st.booleans()), min_size=2, max_size=8),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_gradients_of_pairs_are_finite_differences(
    values: list[tuple[float, float, bool]], data: st.DataObject
) -> None:
    """For any logprobs and masks of both answers."""
    cut = data.draw(st.integers(1, len(values) - 1))
    sides = (values[:cut], values[cut:])
    pair = unit(
        *(answer([b for _, b, _ in side], keep=[k for _, _, k in side]) for side in sides),
        kind="pair",
    )
    policy = [floats(*(p for p, _, _ in side)) for side in sides]
    dpo = make("dpo", dpo_beta=0.7)

    loss = dpo(pair, (policy[0], policy[1]))

    for side in (0, 1):
        for which in range(len(policy[side])):
            value = []
            for by in (1e-5, -1e-5):
                step = [one.copy() for one in policy]
                step[side][which] += by
                value.append(dpo(pair, (step[0], step[1])).value)
            slope = (value[0] - value[1]) / 2e-5
            assert pytest.approx(slope, rel=1e-4, abs=1e-6) == float(loss.gradients[side][which])


# What each learns from.


def test_each_objective_selects_what_it_is_defined_on() -> None:
    """Ratings and corrections; of these the liked ones; those with a sign; or pairs alone."""
    liked = unit(answer([-1.0]), rating=0.5, advantage=0.1)
    neutral = unit(answer([-1.0]), rating=0.0, advantage=-0.4)
    disliked = unit(answer([-1.0]), rating=-1.0, advantage=-1.4)
    correction = unit(answer([-1.0]), kind="correction")
    pair = unit(answer([-1.0]), answer([-2.0]), kind="pair")
    everything = [liked, neutral, disliked, correction, pair]

    selected = {name: make(name).select(everything) for name in ALL}

    ratings = [liked, neutral, disliked, correction]
    assert {
        "topr": ratings,
        "mispo": ratings,
        "reinforce": ratings,
        "sft": [liked, correction],
        "kto": [liked, disliked, correction],
        "dpo": [pair],
    } == selected


def test_an_unknown_objective_is_named_with_the_known_ones() -> None:
    """The message says what could have been meant."""
    with pytest.raises(ValueError, match=r"expected an objective of topr, .*; got 'ppo'"):
        make("ppo")


# A defect of the documented objective of ReinforceClaw, and its absence here.


def scaled_actor(policy: Floats, reference: Floats, advantage: float) -> float:
    """Its actor: -mean_t(ratio x A), times a scale that is not detached.

    scale = min(1, rho / 0.996, 1.001 / rho), rho the geometric mean of the ratios. No ratio here
    leaves [0.5, 2], so its clipping changes nothing.
    """
    log_ratio = policy - reference
    rho = np.exp(log_ratio.mean())
    scale = min(1.0, rho / 0.996, 1.001 / rho)
    return float(-(np.exp(log_ratio) * advantage).mean() * scale)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_an_undetached_scale_has_no_gradient_above_its_band(advantage: float) -> None:
    """All ratios 1.2: -A 1.2 x 1.001 / 1.2 is a constant, for good and bad alike. Ours go on."""
    reference = floats(-1.0, -2.0)
    policy = reference + np.log(1.2)
    step = np.array([1e-6, 0.0])
    rated = unit(answer(reference.tolist()), advantage=advantage)

    slope = (
        scaled_actor(policy + step, reference, advantage)
        - scaled_actor(policy - step, reference, advantage)
    ) / 2e-6
    ours = {name: make(name)(rated, (policy,)).gradients[0][0] for name in POLICY_GRADIENTS}

    assert pytest.approx(0.0, abs=1e-6) == slope
    assert all(pytest.approx(-advantage / 2, abs=0.02) == gradient for gradient in ours.values())
