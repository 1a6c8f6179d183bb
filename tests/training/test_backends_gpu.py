"""The torch backend on a GPU: nothing is left on the CPU that has to meet what is there.

The GPU is a pretended one, so that every machine runs this.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import models
import numpy as np
import pytest
import torch
from backend_cases import TOLERANCE, assert_close, pull, sequences, state_of
from pretended_gpu import DEVICE, OnGpu, pretended

from strop.training.backends import base_files, open_policy
from strop.training.backends.base import BASE, AdamWSettings, Policy
from strop.training.sequences import Floats

# AdamW's own takes a step as long for a gradient that is rounding alone as for any other.
SMOOTH = AdamWSettings(eps=0.1)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that the torch backend finds."""
    with pretended(monkeypatch):
        yield


@dataclass
class Life:
    """What a policy said and did: token ids, logprobs one behind another, and its state."""

    ids: list[tuple[int, ...]]
    logprobs: dict[str, Floats]
    state: dict[str, Floats]


def live(policy: Policy, other: Path, folder: Path) -> Life:
    """Do with `policy` what a run does, `other` being another version's folder."""
    folder.mkdir()
    asked = sequences((5, 7), (20, 3))
    prompts = [one.ids[: one.num_prompt].tolist() for one in asked]
    logprobs = {
        "base": policy.logprobs(asked, BASE),
        "other": policy.logprobs(asked, other),
    }
    for _ in range(2):
        policy.accumulate(asked, pull)
        policy.accumulate(sequences((2, 4)), pull)
        policy.step(0.01)
    state = state_of(policy, folder / "state")
    logprobs["trained"] = policy.logprobs(asked)
    ids = [policy.greedy(prompts[0], 5)[0]]
    for temperature in (0.0, 1.0):
        drawn = policy.sample(prompts, max_tokens=6, temperature=temperature, seed=3)
        ids.extend(one.ids for one in drawn)
        logprobs[f"at {temperature}"] = [one.logprobs for one in drawn]
    policy.load_state(folder / "state")
    policy.accumulate(asked, pull)
    policy.step(0.01)
    (folder / "adapter").mkdir()
    policy.save_adapter(folder / "adapter")
    logprobs["saved"] = policy.logprobs(asked, folder / "adapter")
    policy.close()
    return Life(ids, {name: np.concatenate(values) for name, values in logprobs.items()}, state)


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_a_run_on_a_gpu_is_the_run_on_the_cpu(
    is_checkpointed: bool,
    qwen3: Path,
    peft_a: Path,
    peft_b: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Logprobs, steps, samples and state: also with blocks and logits computed twice."""
    if is_checkpointed:
        monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", 0)
    # Of logits a few at a time, or all at once.
    chunk = (7 if is_checkpointed else 1000) * models.VOCAB_SIZE

    def opened() -> Policy:
        policy: Any = open_policy(qwen3, start=peft_a, backend="torch", adamw=SMOOTH)
        policy._net = dataclasses.replace(policy._net, chunk=chunk)
        return cast("Policy", policy)

    expected = live(opened(), peft_b, tmp_path / "cpu")
    with pretended(monkeypatch):
        found = live(opened(), peft_b, tmp_path / "gpu")

    assert expected.ids == found.ids
    assert_close(expected.logprobs, found.logprobs, TOLERANCE)
    assert_close(expected.state, found.state, TOLERANCE)


@pytest.mark.usefixtures("gpu")
def test_a_base_in_16_bits_computes_in_bf16_there(
    qwen3: Path, qwen3_bf16: Path, peft_a: Path, tmp_path: Path
) -> None:
    """Its logprobs are near to those of float32; what is trained stays float32."""
    asked = sequences((5, 7))
    exact = open_policy(qwen3, start=peft_a, backend="torch").logprobs(asked)
    policy = open_policy(qwen3_bf16, start=peft_a, backend="torch")

    found = policy.logprobs(asked)
    policy.accumulate(asked, pull)
    policy.step(0.01)

    assert "bfloat16" == policy.dtype
    np.testing.assert_allclose(exact[0], found[0], atol=0.1)
    assert {np.dtype("float32")} == {one.dtype for one in state_of(policy, tmp_path / "s").values()}


@pytest.mark.usefixtures("gpu")
def test_the_pretended_gpu_refuses_what_a_gpu_refuses() -> None:
    """A tensor of the CPU beside one of its own, and NumPy."""
    there, here = torch.tensor([1.0, 2.0], device=DEVICE), torch.tensor([1.0, 2.0])

    assert isinstance(there, OnGpu)
    assert DEVICE == (there * 2 + torch.tensor(1.0)).device
    assert [2.0, 4.0] == (there.cpu() + here).tolist()
    with pytest.raises(RuntimeError, match="on the CPU: \\(2,\\)"):
        there + here
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
