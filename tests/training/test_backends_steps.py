"""The contract of training backends, torch and mlx alike: optimizer steps, and a run's state."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from backend_cases import (
    TOLERANCE,
    UNCLIPPED,
    Open,
    assert_close,
    backend,
    gradients_of,
    opened,
    pull,
    sequences,
    state_of,
)

from strop.adapters import tensor_file
from strop.training.backends import open_policy
from strop.training.backends.base import AdamWSettings, LoraSettings, Policy

__all__ = ["backend", "opened"]  # fixtures


def test_the_first_step_moves_by_the_learning_rate(
    opened: Open, qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """With its biases corrected, AdamW's first step is lr times the gradient's sign."""
    policy = opened(qwen3, peft_a, adamw=AdamWSettings(eps=0.0))
    before = state_of(policy, tmp_path / "before")

    policy.accumulate(sequences((5, 7)), pull)
    policy.step(0.01)

    after = state_of(policy, tmp_path / "after")
    for name in (name for name in before if name.startswith("weight.")):
        gradient = after[name.replace("weight.", "mean.")]
        # Weights of about 1 are float32, so their differences are exact to about 1e-7.
        np.testing.assert_allclose(
            -0.01 * np.sign(gradient), after[name] - before[name], atol=1e-6, err_msg=name
        )


def test_steps_are_those_of_torchs_adamw(
    opened: Open, qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """Three clipped steps with decay move the weights as torch.optim.AdamW moves them."""
    import torch

    settings = AdamWSettings(beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1, max_grad_norm=0.5)
    policy = opened(qwen3, peft_a, adamw=settings)
    measuring = opened(qwen3, peft_a, adamw=UNCLIPPED)
    weights = {
        name.removeprefix("weight."): torch.nn.Parameter(torch.tensor(array))
        for name, array in state_of(policy, tmp_path / "start").items()
        if name.startswith("weight.")
    }
    optimizer = torch.optim.AdamW(
        weights.values(), lr=0.0, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1
    )

    for step, lr in enumerate((0.01, 0.03, 0.02)):
        asked = sequences((5, 7), seed=step)
        # A fixed dL/dlogprob, and gradients measured at the weights of this step.
        state = tmp_path / f"state{step}"
        state.mkdir()
        policy.save_state(state)
        reset = tmp_path / f"reset{step}"
        shutil.copytree(state, reset)
        (reset / "state.json").write_text('{"step": 0}')
        zero_moments(reset)
        measuring.load_state(reset)
        measuring.accumulate(asked, pull)
        gradients = gradients_of(measuring, tmp_path / f"gradient{step}")
        for name, weight in weights.items():
            weight.grad = torch.tensor(gradients[name])
        expected_norm = float(torch.nn.utils.clip_grad_norm_(weights.values(), 0.5))
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        policy.accumulate(asked, pull)

        assert pytest.approx(expected_norm, rel=1e-4) == policy.step(lr)

    found = state_of(policy, tmp_path / "end")
    for name, weight in weights.items():
        np.testing.assert_allclose(
            weight.detach().numpy(), found[f"weight.{name}"], atol=TOLERANCE, err_msg=name
        )


def zero_moments(folder: Path) -> None:
    """Make a saved state one before the first step."""
    path = folder / "state.safetensors"
    arrays = dict(tensor_file.read_arrays(path, tensor_file.read_header(path)))
    tensor_file.write(
        path,
        {name: a if name.startswith("weight.") else np.zeros_like(a) for name, a in arrays.items()},
    )


def test_the_norm_is_told_before_clipping(
    opened: Open, qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """A gradient over the limit is scaled to it; `step` returns what it was."""
    asked = sequences((5, 7), (20, 3))
    free = opened(qwen3, peft_a, adamw=UNCLIPPED)
    clipped = opened(qwen3, peft_a, adamw=AdamWSettings(max_grad_norm=0.25))

    for policy in (free, clipped):
        policy.accumulate(asked, pull)
    norm = clipped.step(0.0)

    whole = gradients_of(free, tmp_path / "free")
    mean = state_of(clipped, tmp_path / "clipped")
    expected = float(np.sqrt(sum(np.square(array).sum() for array in whole.values())))
    assert pytest.approx(expected, rel=1e-4) == norm
    left = [mean[f"mean.{name}"] / 0.1 for name in whole]
    assert pytest.approx(0.25, rel=1e-3) == np.sqrt(sum(np.square(a).sum() for a in left))


def test_a_gradient_that_is_not_finite_takes_no_step(
    opened: Open, qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """An infinite gradient is reported and forgotten; the next step is a normal one."""
    asked = sequences((5, 7))
    policy = opened(qwen3, peft_a)
    before = state_of(policy, tmp_path / "before")

    policy.accumulate(asked, lambda values: [np.full_like(one, np.inf) for one in values])
    norm = policy.step(0.1)

    assert not np.isfinite(norm)
    assert_close(before, state_of(policy, tmp_path / "after"), 0.0)
    policy.accumulate(asked, pull)
    assert np.isfinite(policy.step(0.1))


def test_a_state_goes_on_bit_for_bit(
    opened: Open, qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """A run that was stopped and resumed ends with the weights of one that was not."""
    through, second = opened(qwen3, peft_a), opened(qwen3, peft_a)
    take_steps(through, 0, 2)
    tmp_path.joinpath("state").mkdir()
    through.save_state(tmp_path / "state")
    take_steps(through, 2, 4)

    second.load_state(tmp_path / "state")
    take_steps(second, 2, 4)

    assert_close(state_of(through, tmp_path / "a"), state_of(second, tmp_path / "b"), 0.0)


def test_a_state_goes_on_in_the_other_backend(
    opened: Open, backend: str, qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """A state says nothing of the framework that wrote it."""
    first = opened(qwen3, peft_a)
    other = open_policy(qwen3, start=peft_a, backend={"torch": "mlx", "mlx": "torch"}[backend])
    take_steps(first, 0, 2)
    tmp_path.joinpath("state").mkdir()
    first.save_state(tmp_path / "state")

    other.load_state(tmp_path / "state")
    for policy in (first, other):
        take_steps(policy, 2, 4)

    a, b = state_of(first, tmp_path / "a"), state_of(other, tmp_path / "b")
    other.close()
    weights = [name for name in a if name.startswith("weight.")]
    assert weights
    for name in weights:
        np.testing.assert_allclose(a[name], b[name], atol=2e-3, err_msg=name)
        assert np.abs(a[name] - b[name]).mean() < TOLERANCE


def take_steps(policy: Policy, first: int, last: int) -> None:
    """Take the steps `first` to `last` of a run."""
    for step in range(first, last):
        policy.accumulate(sequences((5, 7), (3, 9), seed=step), pull)
        policy.step(0.01)


@pytest.mark.parametrize("damage", ["other rank", "step", "cut off"])
def test_a_state_of_another_lora_changes_nothing(
    opened: Open, qwen3: Path, tmp_path: Path, damage: str
) -> None:
    """A state that doesn't fit, or is broken, is refused before anything is taken from it."""
    policy = opened(qwen3, lora=LoraSettings(rank=4))
    writer = opened(qwen3, lora=LoraSettings(rank=2 if damage == "other rank" else 4, seed=9))
    state = tmp_path / "state"
    state.mkdir()
    writer.save_state(state)
    if damage == "step":
        (state / "state.json").write_text("[]")
    if damage == "cut off":
        content = (state / "state.safetensors").read_bytes()
        (state / "state.safetensors").write_bytes(content[:-4])
    before = state_of(policy, tmp_path / "before")

    with pytest.raises(ValueError, match="state"):
        policy.load_state(state)

    assert_close(before, state_of(policy, tmp_path / "after"), 0.0)
