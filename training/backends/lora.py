"""The trainable LoRA as plain arrays: which layers get one, a fresh one, and the state of a run.

Knows no framework. Every backend holds the same arrays under the same names, in PEFT's layout: for
the module at `path`, `path.a` is (r, in) and `path.b` is (out, r).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from strop.adapters import peft, tensor_file
from strop.training.backends.base import BackendUnavailable, LoraSettings
from strop.training.sequences import Floats

# A linear layer inside a block: `model.layers.0.self_attn.q_proj`, `transformer.h.0.attn.c_attn`.
_IN_BLOCK = re.compile(r"(?:.+\.)?(?:layers|h|blocks)\.\d+\..+")
# What chooses experts or mixes them, a layer or a module of layers: engines put no LoRA there.
_ROUTERS = frozenset(("gate", "router", "shared_expert_gate"))

_STATE = "state.json"
_STATE_ARRAYS = "state.safetensors"


@dataclass(frozen=True, slots=True)
class State:
    """A run between two steps: weights and AdamW's two moments by name, and the steps taken."""

    step: int
    weights: Mapping[str, Floats]
    means: Mapping[str, Floats]
    variances: Mapping[str, Floats]


def is_target(path: str) -> bool:
    """Whether a fresh LoRA adapts the linear layer at `path`."""
    return _IN_BLOCK.fullmatch(path) is not None and _ROUTERS.isdisjoint(path.split("."))


def fresh(shapes: Mapping[str, tuple[int, int]], settings: LoraSettings) -> peft.Adapter:
    """Return a LoRA that changes nothing yet.

    A is uniform in ±1/sqrt(in), as peft draws it, B is zero.

    Args:
        shapes: (inputs, outputs) of the linear layers of the base.
        settings: rank, alpha, and the seed of A.

    Raises:
        BackendUnavailable: the base has no linear layer in its blocks.
    """
    rng = np.random.default_rng(settings.seed)
    modules = {}
    config = peft.LoraConfig(settings.rank, settings.alpha)
    for path in sorted(filter(is_target, shapes)):
        num_in, num_out = shapes[path]
        bound = num_in**-0.5
        a = rng.uniform(-bound, bound, (settings.rank, num_in)).astype(np.float32)
        b = np.zeros((num_out, settings.rank), np.float32)
        modules[path] = peft.LoraModule(a, b, config.scale_of(path))
    if not modules:
        raise BackendUnavailable("this base has no linear layers in its blocks, so none can adapt")
    return peft.Adapter(config, modules)


def arrays_of(adapter: peft.Adapter) -> dict[str, Floats]:
    """Return the arrays of an adapter by name."""
    arrays = {}
    for path, module in adapter.modules.items():
        arrays[f"{path}.a"], arrays[f"{path}.b"] = module.a, module.b
    return arrays


def with_arrays(adapter: peft.Adapter, arrays: Mapping[str, Floats]) -> peft.Adapter:
    """Return `adapter` with other weights."""
    modules = {
        path: peft.LoraModule(arrays[f"{path}.a"], arrays[f"{path}.b"], module.scale)
        for path, module in adapter.modules.items()
    }
    return peft.Adapter(adapter.config, modules)


def write_state(state: State, folder: Path) -> None:
    """Write a state into an existing folder."""
    arrays = {
        f"{kind}.{name}": array
        for kind, named in _kinds(state).items()
        for name, array in named.items()
    }
    tensor_file.write(folder / _STATE_ARRAYS, arrays)
    (folder / _STATE).write_text(json.dumps({"step": state.step}) + "\n")


def read_state(folder: Path, like: Mapping[str, Floats]) -> State:
    """Read a state of the LoRA whose arrays have the names and shapes of `like`.

    Raises:
        ValueError: it is of another LoRA, or broken.
    """
    path = folder / _STATE_ARRAYS
    raw = json.loads((folder / _STATE).read_bytes())
    step = raw.get("step") if isinstance(raw, dict) else None
    if not isinstance(step, int) or step < 0:
        raise ValueError(f"{folder / _STATE} must hold a step count, got {raw!r}")
    header = tensor_file.read_header(path)
    expected = {
        f"{kind}.{name}": array.shape
        for kind in ("weight", "mean", "variance")
        for name, array in like.items()
    }
    found = {name: tensor.shape for name, tensor in header.items()}
    if expected != found:
        names = expected.keys() | found.keys()
        name = min(name for name in names if expected.get(name) != found.get(name))
        raise ValueError(
            f"{folder} is the state of another LoRA: expected {name} with shape"
            f" {expected.get(name)}, got {found.get(name)}; remove the folder to begin again"
        )
    arrays = dict(tensor_file.read_arrays(path, header))

    def of(kind: str) -> dict[str, Floats]:
        return {name: arrays[f"{kind}.{name}"] for name in like}

    return State(step, of("weight"), of("mean"), of("variance"))


def _kinds(state: State) -> dict[str, Mapping[str, Floats]]:
    return {"weight": state.weights, "mean": state.means, "variance": state.variances}
