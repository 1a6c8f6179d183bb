"""Tests of the training loop on a policy that is checked by hand."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_policy import ToyPolicy, log_softmax, tokens, unit

from strop.proxy.store import run_folder
from strop.training import objectives
from strop.training.backends.base import CutShort, OutOfMemory, Weights
from strop.training.batching import Rows, learning_rate, pack, plan_steps
from strop.training.divergence import kl_of
from strop.training.loop import Ending, Loop, Schedule, Step
from strop.training.micro_batch import MicroBatch
from strop.training.objectives.base import Settings
from strop.training.sequences import Floats, Tokens, Unit

LOGITS = [0.0, 0.3, -0.2, 0.5]
SCHEDULE = Schedule(num_steps=6, batch_size=3, lr=0.5, warmup_steps=1, kl_stop=1e9, seed=3)


def some_units(policy: ToyPolicy) -> list[Unit]:
    """Liked and disliked turns of one to three answers, of lengths one to four."""
    return [
        unit(policy, [1, 2, 0]),
        unit(policy, [3, 0], [2, 0], rating=-1.0),
        unit(policy, [0], num_prompt=3),
        unit(policy, [2, 2, 2, 0], [1], [3, 3], rating=-1.0, num_prompt=2),
        unit(policy, [1, 0], rating=0.5),
    ]


def make_loop(
    policy: ToyPolicy,
    folder: Path,
    units: list[Unit] | None = None,
    *,
    max_tokens: int = 10**6,
    objective: str = "topr",
    schedule: Schedule = SCHEDULE,
) -> Loop:
    """A loop over units whose parent is the base."""
    units = units or some_units(policy)
    return Loop(
        policy,
        objectives.make(objective, Settings()),
        units,
        schedule,
        MicroBatch(max_tokens),
        folder,
    )


def run(loop: Loop, num_steps: int = 10**6) -> tuple[Ending, list[Step]]:
    """Take so many steps, or all."""
    taken: list[Step] = []
    ending = loop.run(taken.append, lambda: len(taken) >= num_steps)
    return ending, taken


def test_a_step_is_the_mean_over_its_units(tmp_path: Path) -> None:
    """One liked answer of one token with A = 1 at rate r moves theta by r (1[token] - share).

    The anchor's gradient is zero at the base.
    """
    policy = ToyPolicy([0.0, 0.0])
    once = replace(SCHEDULE, num_steps=1, warmup_steps=0, lr=0.5)

    run(make_loop(policy, tmp_path, [unit(policy, [1]), unit(policy, [1])], schedule=once))

    assert pytest.approx([-0.25, 0.25]) == policy.trained.tolist()


def test_figures_are_means_over_the_units_that_have_them(tmp_path: Path) -> None:
    """One liked answer of two that the mask leaves: the loss is over both, its logprob over one."""
    policy = ToyPolicy([0.0, 0.0])
    liked = unit(policy, [1, 0])
    (whole,) = liked.answers
    masked = replace(liked, answers=(replace(whole, keep=np.zeros(2, np.bool_)),))
    once = replace(SCHEDULE, num_steps=1, batch_size=2)

    _, (step,) = run(make_loop(policy, tmp_path, [liked, masked], schedule=once))

    told = {name: step.metrics[name] for name in ("loss", "kept", "logprob_liked", "kl_parent")}
    ln2 = math.log(2)
    expected = {"loss": ln2 / 2, "kept": 0.5, "logprob_liked": -ln2, "kl_parent": 0.0}
    assert pytest.approx(expected) == told


def test_the_distance_told_is_the_one_to_the_parent(tmp_path: Path) -> None:
    """Not to the base, nor to the version that sampled: training begins at the parent."""
    policy = ToyPolicy([0.0, 0.0])
    liked = unit(policy, [1, 0])
    (answer,) = liked.answers
    parent = answer.base - np.float32(0.5)
    moved = replace(liked, answers=(replace(answer, parent=parent),))
    once = replace(SCHEDULE, num_steps=1, batch_size=1)

    _, (step,) = run(make_loop(policy, tmp_path, [moved], schedule=once))

    expected = kl_of((answer.base - parent).astype(np.float64)).mean()
    assert expected > 0.1
    assert pytest.approx(expected) == step.metrics["kl_parent"]


@pytest.mark.parametrize("objective", ["topr", "kto", "sft"])
@pytest.mark.parametrize("max_tokens", [1, 5, 9, 14])
def test_micro_batches_change_nothing(tmp_path: Path, objective: str, max_tokens: int) -> None:
    """However a step is cut, and where a turn goes one answer by one, the weights are the same."""
    whole, cut = ToyPolicy(LOGITS), ToyPolicy(LOGITS)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()

    _, expected = run(make_loop(whole, tmp_path / "whole", objective=objective))
    _, taken = run(make_loop(cut, tmp_path / "cut", objective=objective, max_tokens=max_tokens))

    assert not np.allclose(LOGITS, whole.trained)
    np.testing.assert_allclose(cut.trained, whole.trained, atol=1e-6)
    for one, other in zip(expected, taken, strict=True):
        assert one.metrics.keys() == other.metrics.keys()
        assert pytest.approx(one.metrics["loss"], abs=1e-6) == other.metrics["loss"]


def test_out_of_memory_halves_the_micro_batch_and_goes_on(tmp_path: Path) -> None:
    """The result is that of a larger device, and the smaller size is kept for a resume."""
    large, small = ToyPolicy(LOGITS), ToyPolicy(LOGITS, max_tokens=6)
    (tmp_path / "large").mkdir()
    (tmp_path / "small").mkdir()

    run(make_loop(large, tmp_path / "large"))
    ending, _ = run(make_loop(small, tmp_path / "small", max_tokens=4096))

    assert "finished" == ending
    np.testing.assert_allclose(small.trained, large.trained, atol=1e-6)
    (state,) = run_folder.states(tmp_path / "small")
    assert json.loads((state / "loop.json").read_text())["max_tokens"] <= 12


@pytest.mark.parametrize("num_answers", [1, 2])
def test_a_conversation_that_does_not_fit_alone_says_what_to_do(
    tmp_path: Path, num_answers: int
) -> None:
    """There is nothing smaller than one sequence."""
    policy = ToyPolicy(LOGITS, max_tokens=20)
    units = [unit(policy, *[[1] * 30] * num_answers)]

    with pytest.raises(OutOfMemory, match=r"one conversation of 31 tokens .* training\.device"):
        run(make_loop(policy, tmp_path, units))


@pytest.mark.parametrize("num_answers", [1, 2])
def test_a_conversation_that_macos_cuts_short_alone_says_to_train_beside_no_display(
    tmp_path: Path, num_answers: int
) -> None:
    """More memory wouldn't help."""
    policy = ToyPolicy(LOGITS, max_tokens=20)
    policy.too_much = CutShort
    units = [unit(policy, *[[1] * 30] * num_answers)]

    with pytest.raises(CutShort, match=r"one conversation of 31 tokens .*training\.hours"):
        run(make_loop(policy, tmp_path, units))


@pytest.mark.parametrize("step", range(1, 6))
def test_a_resumed_loop_ends_as_an_undisturbed_one(tmp_path: Path, step: int) -> None:
    """From whatever state is on disk it comes to the same weights, and takes each step once."""
    undisturbed = ToyPolicy(LOGITS)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    run(make_loop(undisturbed, tmp_path / "whole"))

    ending, first = run(make_loop(ToyPolicy(LOGITS), tmp_path / "cut"), step)
    policy = ToyPolicy(LOGITS)
    loop = make_loop(policy, tmp_path / "cut")
    resumed_at = loop.resume()
    _, second = run(loop)

    assert "stopped" == ending
    assert step == resumed_at
    assert [*range(1, 7)] == [one.num for one in first + second]
    np.testing.assert_array_equal(undisturbed.trained, policy.trained)


@pytest.mark.parametrize(("then", "now"), [(10**6, 20), (20, 10**6)])
def test_a_resumed_loop_takes_no_more_at_once_than_there_was_room_for_then_and_is_now(
    tmp_path: Path, then: int, now: int
) -> None:
    """An engine may have taken memory since; and what an estimate allows may not fit after all."""
    run(make_loop(ToyPolicy(LOGITS), tmp_path, max_tokens=then), 2)
    policy = ToyPolicy(LOGITS)
    micro_batch = MicroBatch(now)
    units = some_units(policy)
    loop = Loop(
        policy,
        objectives.make("topr", Settings()),
        units,
        SCHEDULE,
        micro_batch,
        tmp_path,
    )

    loop.resume()

    assert 20 == micro_batch.max_tokens


def test_a_loop_without_a_state_begins_at_the_beginning(tmp_path: Path) -> None:
    """A state that was not finished does not count."""
    (tmp_path / ".state-00000004").mkdir()

    assert 0 == make_loop(ToyPolicy(LOGITS), tmp_path).resume()


def test_only_the_newest_state_is_kept(tmp_path: Path) -> None:
    """A run's folder doesn't grow with its steps."""
    run(make_loop(ToyPolicy(LOGITS), tmp_path))

    assert ["state-00000006"] == [path.name for path in tmp_path.iterdir()]


def test_what_a_kill_left_of_a_state_is_written_over(tmp_path: Path) -> None:
    """A run that was killed while it saved goes on, and saves that step again."""
    policy = ToyPolicy(LOGITS)
    half = tmp_path / f".{run_folder.STATE_PREFIX}{SCHEDULE.num_steps:08d}"
    half.mkdir()
    (half / "half").write_bytes(b"written")

    ending, _ = run(make_loop(policy, tmp_path))

    assert "finished" == ending
    assert run_folder.states(tmp_path) == [*tmp_path.iterdir()]
    assert SCHEDULE.num_steps == make_loop(ToyPolicy(LOGITS), tmp_path).resume()
    assert not (run_folder.states(tmp_path)[0] / "half").exists()


def test_the_kl_to_the_parent_ends_a_run_early(tmp_path: Path) -> None:
    """Once the running mean is beyond the stop no further step is taken, after a resume neither."""
    schedule = replace(SCHEDULE, num_steps=50, lr=3.0, kl_stop=0.01)

    ending, taken = run(make_loop(ToyPolicy(LOGITS), tmp_path, schedule=schedule))
    loop = make_loop(ToyPolicy(LOGITS), tmp_path, schedule=schedule)
    loop.resume()

    assert "kl_stop" == ending
    assert taken[-1].metrics["kl_parent_mean"] > 0.01
    assert all(step.metrics["kl_parent_mean"] <= 0.01 for step in taken[:-1])
    assert ("kl_stop", []) == run(loop)


def test_a_kl_that_is_no_number_ends_a_run(tmp_path: Path) -> None:
    """What computes NaN once is not trained on; what is not a number is beyond every bound."""

    class Broken(ToyPolicy):
        def logprobs(
            self, sequences: Sequence[Tokens], weights: Weights = "trained"
        ) -> list[Floats]:
            found = super().logprobs(sequences, weights)
            is_broken = self.num_calls == 2
            return [one * math.nan for one in found] if is_broken else found

    ending, taken = run(make_loop(Broken(LOGITS), tmp_path))

    assert ("kl_stop", 2) == (ending, len(taken))


def test_a_correction_does_not_count_as_kl(tmp_path: Path) -> None:
    """What nobody sampled is far from any model; going there is what it is for."""
    policy = ToyPolicy(LOGITS)
    units = [replace(unit(policy, [2, 2, 2]), kind="correction")]
    schedule = replace(SCHEDULE, lr=5.0, kl_stop=1e-9)

    ending, taken = run(make_loop(policy, tmp_path, units, schedule=schedule))

    assert "finished" == ending
    assert "kl_parent" not in taken[-1].metrics


def test_a_step_without_a_sample_leaves_the_running_mean_as_it_was(tmp_path: Path) -> None:
    """A step of corrections alone says nothing of the KL, and is no step at which it was 0."""
    policy = ToyPolicy(LOGITS)
    units = [unit(policy, [1, 2, 0]), replace(unit(policy, [2, 2, 2]), kind="correction")]
    schedule = replace(SCHEDULE, num_steps=12, batch_size=1)

    _, taken = run(make_loop(policy, tmp_path, units, schedule=schedule))

    means = [step.metrics.get("kl_parent_mean") for step in taken]
    without = [n for n, step in enumerate(taken) if n and "kl_parent" not in step.metrics]
    assert len(without) >= 5
    assert [means[n - 1] for n in without] == [means[n] for n in without]
    assert means[-1] is not None
    assert means[-1] > 0


def test_a_step_of_masked_answers_alone_has_no_kl(tmp_path: Path) -> None:
    """There is nothing that it could be a mean of."""
    policy = ToyPolicy(LOGITS)
    whole = unit(policy, [1, 0])
    (one,) = whole.answers
    masked = replace(whole, answers=(replace(one, keep=np.zeros(2, np.bool_)),))

    ending, taken = run(make_loop(policy, tmp_path, [masked]))

    assert "finished" == ending
    assert all(step.metrics.keys().isdisjoint({"kl_parent", "kl_parent_mean"}) for step in taken)


def test_of_a_pair_the_other_answer_counts_as_kl(tmp_path: Path) -> None:
    """A version sampled that one, while the preferred one may be what a person wrote."""
    policy = ToyPolicy(LOGITS)
    units = [replace(unit(policy, [2, 2], [3, 1]), kind="pair")]
    loop = make_loop(policy, tmp_path, units, objective="dpo")

    run(loop, 1)
    moved = (log_softmax(policy.trained) - log_softmax(policy.base))[[3, 1]]
    _, taken = run(loop, 1)

    assert pytest.approx(kl_of(moved).mean(), rel=1e-4) == taken[0].metrics["kl_parent"]


def test_the_kl_to_the_parent_ends_a_run_over_pairs_too(tmp_path: Path) -> None:
    """Nothing else does: DPO has no anchor that would."""
    policy = ToyPolicy(LOGITS)
    units = [replace(unit(policy, [2, 2], [3, 1]), kind="pair")]
    schedule = replace(SCHEDULE, num_steps=50, lr=3.0, kl_stop=0.01)

    ending, _ = run(make_loop(policy, tmp_path, units, objective="dpo", schedule=schedule))

    assert "kl_stop" == ending


def test_one_answer_that_the_parent_would_hardly_give_does_not_end_a_run(tmp_path: Path) -> None:
    """As a logit_bias brings it: once 30 times as likely, its token is still rare."""
    policy = ToyPolicy([0.0, 0.0, 0.0, -10.0])
    units = [*[unit(policy, [1, 2, 0], rating=0.0)] * 30, unit(policy, [3])]
    schedule = replace(SCHEDULE, num_steps=50, batch_size=31, lr=4.0, kl_stop=0.05)

    ending, taken = run(make_loop(policy, tmp_path, units, schedule=schedule))

    moved = log_softmax(policy.trained) - log_softmax(policy.base)
    assert moved[3] > math.log(30)
    assert np.exp(log_softmax(policy.trained))[3] < 0.01
    assert ("finished", 50) == (ending, len(taken))


def test_a_run_on_nothing_but_such_answers_ends_early_all_the_same(tmp_path: Path) -> None:
    """Where most tokens run away, so does the policy."""
    policy = ToyPolicy([0.0, 0.0, 0.0, -10.0])
    schedule = replace(SCHEDULE, num_steps=50, lr=8.0, kl_stop=0.05)

    ending, _ = run(make_loop(policy, tmp_path, [unit(policy, [3, 3])], schedule=schedule))

    assert "kl_stop" == ending


def test_kl_of_is_schulmans_k3() -> None:
    """exp(d) - d - 1: 0 at 0, e - 2 at 1, 1/e at -1; from 1.5 on it is what it is there."""
    found = kl_of(np.array([0.0, 1.0, -1.0, -9.0, 1.5, 8.0, 1000.0]))

    most = math.exp(1.5) - 2.5
    assert (
        pytest.approx([0.0, math.e - 2, 1 / math.e, 8.0 + math.exp(-9.0), most, most, most])
        == found.tolist()
    )


@given(num_units=st.integers(1, 60), num_steps=st.integers(1, 30), batch_size=st.integers(1, 40))
def test_each_pass_sees_each_unit_once(num_units: int, num_steps: int, batch_size: int) -> None:
    """Passes follow each other; no batch has a unit twice, and none is empty."""
    steps = plan_steps(num_units, num_steps=num_steps, batch_size=batch_size, seed=1)

    assert num_steps == len(steps)
    assert all(0 < len(step) <= batch_size for step in steps)
    assert all(len(set(step)) == len(step) for step in steps)
    a_pass = -(-num_units // batch_size)
    for start in range(0, num_steps - a_pass + 1, a_pass):
        seen = [index for step in steps[start : start + a_pass] for index in step]
        assert [*range(num_units)] == sorted(seen)


@given(num_units=st.integers(1, 60), num_steps=st.integers(1, 30), batch_size=st.integers(1, 40))
def test_steps_of_a_run_have_equally_many_units(
    num_units: int, num_steps: int, batch_size: int
) -> None:
    """Or one more: whatever is left over of a pass does not make a step by itself."""
    steps = plan_steps(num_units, num_steps=num_steps, batch_size=batch_size, seed=1)

    sizes = {len(step) for step in steps}
    assert max(sizes) - min(sizes) <= 1


def test_thirty_three_units_in_batches_of_eight_make_five_steps() -> None:
    """Of six or seven each, not four of eight and one of one."""
    steps = plan_steps(33, num_steps=5, batch_size=8, seed=1)

    assert [6, 6, 7, 7, 7] == sorted(map(len, steps))


def test_a_plan_is_the_same_for_the_same_seed_only() -> None:
    """A resumed run takes the steps that the killed one would have taken."""
    plans = [plan_steps(40, num_steps=5, batch_size=8, seed=seed) for seed in (1, 1, 2)]

    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    with pytest.raises(ValueError, match="at least one unit"):
        plan_steps(0, num_steps=1, batch_size=1, seed=0)


@given(
    st.lists(st.builds(Rows, st.integers(1, 50), st.integers(1, 4)), max_size=30),
    st.integers(1, 200),
)
def test_a_micro_batch_has_no_more_tokens_than_asked(rows: list[Rows], max_tokens: int) -> None:
    """Padding included, unless one alone has more; all are there once, the longest first."""
    batches = pack(rows, max_tokens)

    assert [*range(len(rows))] == sorted(index for batch in batches for index in batch)
    for batch in batches:
        longest = max(rows[index].length for index in batch)
        num_padded = longest * sum(rows[index].num for index in batch)
        assert len(batch) == 1 or num_padded <= max_tokens
        assert longest == rows[batch[0]].length
    firsts = [rows[batch[0]].length for batch in batches]
    assert sorted(firsts, reverse=True) == firsts


def test_the_rate_rises_and_falls_in_a_line() -> None:
    """Over two steps up to the peak, then down, and no step has the rate 0."""
    rates = [learning_rate(step, 6, peak=1.0, warmup_steps=2) for step in range(6)]

    assert pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25]) == rates
    assert 1.0 == learning_rate(0, 1, peak=1.0, warmup_steps=0)


def test_logprobs_come_in_order_however_memory_cuts_them() -> None:
    """The longest go first, and out of memory only makes the calls smaller."""
    policy = ToyPolicy(LOGITS, max_tokens=8)
    sequences = [tokens([1]), tokens([2, 3, 0]), tokens([3, 3]), tokens([0])]
    micro_batch = MicroBatch(100)

    found = micro_batch.logprobs(policy, sequences, "base")

    roomy = ToyPolicy(LOGITS).logprobs(sequences, "base")
    assert [one.tolist() for one in roomy] == [one.tolist() for one in found]
    assert micro_batch.max_tokens <= 16
    assert [] == micro_batch.logprobs(policy, [], "base")
