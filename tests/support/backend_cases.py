"""Models, sequences and references for the tests of the training backends."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from strop.adapters import tensor_file
from strop.training.backends import open_policy
from strop.training.backends.base import AdamWSettings, Policy
from strop.training.sequences import Floats, Tokens

TOLERANCE = 1e-4
UNCLIPPED = AdamWSettings(max_grad_norm=1e9)

Open = Callable[..., Policy]


@pytest.fixture(params=["torch", "mlx"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    return str(request.param)


@pytest.fixture
def opened(backend: str) -> Iterator[Open]:
    """Opens policies of the backend, and closes them at the end."""
    policies = []

    def open_one(base: Path, start: Path | None = None, **settings: Any) -> Policy:
        policies.append(open_policy(base, start=start, backend=backend, **settings))
        return policies[-1]

    yield open_one
    for policy in policies:
        policy.close()


SIZES = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "eos_token_id": 2,
}


def save_random(folder: Path, config: Any) -> Path:
    """Write a model of random weights, and nothing else, to `folder`."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(5)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    # Where mlx-lm reads it for models that it knew before transformers 5.
    read = json.loads((folder / "config.json").read_text())
    theta = read["rope_parameters"]["rope_theta"]
    (folder / "config.json").write_text(json.dumps({**read, "rope_theta": theta}))
    return folder


def sequences(*sizes: tuple[int, int], vocabulary: int = 500, seed: int = 0) -> list[Tokens]:
    """Return random sequences of these numbers of prompt and answer tokens."""
    rng = np.random.default_rng(seed)
    return [
        Tokens(rng.integers(3, vocabulary, num_prompt + num).astype(np.int32), num_prompt)
        for num_prompt, num in sizes
    ]


def reference(base: Path, adapter: Path | None, tokens: Tokens) -> Floats:
    """Return the logprobs of the answer by transformers and peft."""
    ids = tokens.ids.tolist()
    asked, answered = ids[: tokens.num_prompt], ids[tokens.num_prompt :]
    return np.array(models.reference_logprobs(base, adapter, asked, answered), np.float32)


def pull(logprobs: list[Floats]) -> list[Floats]:
    """A gradient that differs from token to token and depends on the logprobs."""
    return [np.sin(np.arange(len(one)) + one).astype(np.float32) for one in logprobs]


def state_of(policy: Policy, folder: Path) -> dict[str, Floats]:
    """Return the arrays of the policy's saved state by name."""
    folder.mkdir()
    policy.save_state(folder)
    path = folder / "state.safetensors"
    return dict(tensor_file.read_arrays(path, tensor_file.read_header(path)))


def gradients_of(policy: Policy, folder: Path) -> dict[str, Floats]:
    """Take the first step, unclipped; return the gradients that it was taken with."""
    policy.step(0.0)
    state = state_of(policy, folder)
    # AdamW's first mean is (1 - beta1) times the gradient.
    return {
        name.removeprefix("mean."): array / (1 - UNCLIPPED.beta1)
        for name, array in state.items()
        if name.startswith("mean.")
    }


def assert_close(expected: Mapping[str, Floats], found: Mapping[str, Floats], atol: float) -> None:
    """Fail where names differ, or values by more than `atol` of the largest."""
    assert expected.keys() == found.keys()
    largest = max(float(np.abs(array).max()) for array in expected.values())
    for name, array in expected.items():
        np.testing.assert_allclose(array, found[name], atol=atol * largest, rtol=0, err_msg=name)


def peak_bytes(backend: str, policy: Policy, asked: Sequence[Tokens]) -> int:
    """Return how much memory one micro-batch takes at most, on a CPU, of those to come."""
    policy.accumulate(asked, pull)
    if backend == "mlx":
        return kept_bytes(backend, policy, asked)
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        policy.accumulate(asked, pull)
    results: Any = profiled.profiler
    events = [one for one in results.kineto_results.events() if one.name() == "[memory]"]
    events.sort(key=lambda one: one.start_ns())
    return int(max(accumulate(one.nbytes() for one in events)))


def kept_bytes(backend: str, policy: Policy, asked: Sequence[Tokens]) -> int:
    """Return how much memory one micro-batch keeps (torch), or takes at most (mlx)."""
    if backend == "mlx":
        import mlx.core as mx

        mx.reset_peak_memory()
        before = mx.get_active_memory()
        policy.accumulate(asked, pull)
        return int(mx.get_peak_memory() - before)
    import torch

    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.accumulate(asked, pull)
    return sum(kept.values())
