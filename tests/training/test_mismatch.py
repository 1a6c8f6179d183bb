"""Trainer against engine: which tokens count, and when to stop."""

import numpy as np
import pytest
from training_values import floats

from strop.training.mismatch import Mismatch, compare, keep
from strop.training.sequences import Floats


def off_by(*ratios: float) -> tuple[Floats, Floats]:
    """The engine's logprobs, and the trainer's at these ratios to them."""
    engine = floats(*[-2.0] * len(ratios))
    return engine, engine + np.log(ratios).astype(np.float32)


@pytest.mark.parametrize("ratio", [0.51, 1.0, 1.99])
def test_a_token_counts_while_its_ratio_is_in_the_band(ratio: float) -> None:
    """From a half to the double."""
    assert [True] * 8 == keep(*off_by(ratio, *[1.0] * 7)).tolist()


@pytest.mark.parametrize("ratio", [0.49, 2.01])
def test_a_token_outside_the_band_is_dropped_alone(ratio: float) -> None:
    """One odd token among many says nothing about the others."""
    assert [False, *[True] * 7] == keep(*off_by(ratio, *[1.0] * 7)).tolist()


@pytest.mark.parametrize(
    ("ratio", "counts"), [(0.79, False), (0.81, True), (1.24, True), (1.26, False)]
)
def test_an_answer_counts_while_its_geometric_mean_is_in_the_band(
    ratio: float, counts: bool
) -> None:
    """From 0.8 to 1.25, though each of its tokens would."""
    assert [counts] * 3 == keep(*off_by(ratio, ratio, ratio)).tolist()


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_a_logprob_that_is_not_finite_agrees_with_nothing(value: float) -> None:
    """On either side, or on both."""
    odd, plain = floats(value, -1.0), floats(-1.0, -1.0)

    for engine, trainer in ((odd, plain), (plain, odd), (odd, odd)):
        assert [False, False] == keep(engine, trainer).tolist()


def test_an_empty_answer_has_an_empty_mask() -> None:
    """And no mean that isn't a number."""
    assert [] == keep(floats(), floats()).tolist()


def test_agreement_is_measured_where_the_engine_gave_logprobs() -> None:
    """Two tokens at ratio 1.1, one without logprobs: that one counts, and is not compared."""
    engine, trainer = off_by(1.1, 1.1)

    found = compare([engine, None], [trainer, floats(-1.0)])

    assert [[True, True], [True]] == [mask.tolist() for mask in found.keep]
    assert (2, 0) == (found.num_tokens, found.num_dropped)
    assert pytest.approx(np.log(1.1)) == found.bias
    assert pytest.approx(np.log(1.1)) == found.difference


def test_nothing_to_compare_is_no_mismatch() -> None:
    """An engine without logprobs can't disagree."""
    found = compare([None, None], [floats(-1.0), floats(-2.0)])

    found.check()

    assert (0, 0.0) == (found.num_tokens, found.dropped)


def test_a_fifth_of_the_tokens_may_be_dropped() -> None:
    """One of five is a fifth."""
    found = compare(*([one] for one in off_by(1.99 * 1.01, 1.0, 1.0, 1.0, 1.0)))

    found.check()

    assert pytest.approx(0.2) == found.dropped


def test_more_than_a_fifth_stops_and_says_why() -> None:
    """With the wrong chat template the trainer sees another conversation."""
    engine = [floats(*[-0.1] * 50), floats(*[-0.2] * 50)]
    trainer = [floats(*[-0.1] * 50), floats(*[-4.2] * 50)]

    with pytest.raises(Mismatch, match="chat template") as raised:
        compare(engine, trainer).check()

    message = str(raised.value)
    assert "50% of 100 tokens don't (at most 20% may" in message
    assert "2.00 nats apart on average, bias -2.00" in message
    assert "model.base" in message
