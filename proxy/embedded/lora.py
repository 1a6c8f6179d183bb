"""LoRA versions over one resident base: slots in its linear layers, and what goes into them.

Does not know requests. A version is immutable; switching assigns its arrays to the slots, which is
safe while a step is still being computed, because the lazy graph holds the arrays it began with.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from strop.adapters import peft
from strop.adapters.mlx import own_path


@dataclass(frozen=True, slots=True)
class LinearShape:
    """The inputs and outputs of a linear layer, and the dtype it computes in."""

    num_in: int
    num_out: int
    dtype: Any


@dataclass(frozen=True, slots=True)
class Weights:
    """The LoRA of one layer as the slot takes it: `a` is (in, r), `b` is (r, out)."""

    a: mx.array
    b: mx.array
    scale: float


@dataclass(frozen=True, slots=True)
class Version:
    """What one served name stands for. `uid` is never used again; the base has no weights."""

    uid: int
    name: str
    weights: Mapping[str, Weights]


class SlotLoRA(nn.Module):  # type: ignore[misc]  # mlx has no types for it
    """A linear layer with an empty place for LoRA; empty, it costs nothing."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.lora: Weights | None = None

    def __call__(self, x: mx.array) -> mx.array:
        """Return the layer's output, with the LoRA that the slot holds now."""
        y: mx.array = self.linear(x)
        lora = self.lora
        if lora is None:
            return y
        delta: mx.array = (lora.scale * ((x @ lora.a) @ lora.b)).astype(y.dtype)
        return y + delta


class Slots:
    """The slots of one model. Belongs to the thread that runs the model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._slots: dict[str, SlotLoRA] = {}
        self._current = 0

    def install(self, version: Version) -> None:
        """Make a slot in each layer that the version adapts."""
        modules = dict(self._model.named_modules())
        new = {path: SlotLoRA(modules[path]) for path in version.weights if path not in self._slots}
        if new:
            self._model.update_modules(tree_unflatten([*new.items()]))
            self._slots.update(new)

    def activate(self, version: Version) -> None:
        """Make the model compute with this version from here on."""
        if version.uid != self._current:
            for path, slot in self._slots.items():
                slot.lora = version.weights.get(path)
            self._current = version.uid


def shapes_of(model: nn.Module) -> dict[str, LinearShape]:
    """Return the layers of a model that can be adapted, by module path."""
    shapes = {}
    default = _float_dtype(model)
    for path, module in model.named_modules():
        if isinstance(module, nn.QuantizedLinear):
            num_in = module.scales.shape[-1] * module.group_size
            # The scales of mxfp4 and its like are bytes, and say nothing of what it computes in.
            is_float = mx.issubdtype(module.scales.dtype, mx.floating)
            dtype = module.scales.dtype if is_float else default
            shapes[path] = LinearShape(num_in, module.weight.shape[0], dtype)
        elif isinstance(module, nn.Linear):
            num_out, num_in = module.weight.shape
            shapes[path] = LinearShape(num_in, num_out, module.weight.dtype)
    return shapes


def _float_dtype(model: nn.Module) -> Any:
    """Return the dtype of the model's first parameter that isn't quantised, as norms never are."""
    dtypes = (array.dtype for _, array in tree_flatten(model.parameters()))
    return next((dtype for dtype in dtypes if mx.issubdtype(dtype, mx.floating)), mx.float32)


def prepare(
    folder: Path,
    shapes: Mapping[str, LinearShape],
    *,
    max_rank: int,
    base_identity: str | None,
) -> dict[str, Weights]:
    """Read an adapter and fit it to the base; may run in any thread.

    Raises:
        InvalidAdapter: the folder is no usable adapter, or doesn't fit this base.
    """
    _check_base(folder, base_identity)
    named = peft.read(folder).modules
    modules = {own_path(path, shapes): module for path, module in named.items()}
    peft.check_fit(modules, {path: (each.num_in, each.num_out) for path, each in shapes.items()})
    weights = {}
    for path, module in modules.items():
        if (rank := module.a.shape[0]) > max_rank:
            raise peft.InvalidAdapter(f"LoRA rank {rank} is greater than max_lora_rank {max_rank}.")
        weights[path] = Weights(
            mx.array(module.a.T).astype(shapes[path].dtype),
            mx.array(module.b.T).astype(shapes[path].dtype),
            module.scale,
        )
    # Evaluated here, or the owner thread would stall all streams with it. Metal says late where it
    # has computed nothing.
    mx.eval([array for each in weights.values() for array in (each.a, each.b)])
    mx.synchronize()
    return weights


def _check_base(folder: Path, base_identity: str | None) -> None:
    manifest = folder / "manifest.json"
    if base_identity is None or not manifest.is_file():
        return
    try:
        named = json.loads(manifest.read_bytes()).get("base")
    except (ValueError, AttributeError) as error:
        raise peft.InvalidAdapter(f"manifest.json is not a JSON object: {error}") from error
    if named is not None and named != base_identity:
        raise peft.InvalidAdapter(
            f"its manifest says it was trained on base {named!r}; this engine serves "
            f"{base_identity!r}"
        )
