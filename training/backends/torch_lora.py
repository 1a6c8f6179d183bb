"""LoRA in a torch model: places in its linear layers, and what goes into them.

Not peft's modules: those put LoRA elsewhere than asked where transformers holds experts as one
tensor, and keep a float32 copy of each layer's input. The tests compare with peft.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from strop.adapters import peft


@dataclass(frozen=True, slots=True)
class Weights:
    """The LoRA of one layer: `a` is (r, in), `b` is (out, r), float32."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


class LoraLinear(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """A linear layer, of whatever quantisation, with a place for LoRA; empty, it costs nothing."""

    def __init__(self, linear: torch.nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.lora: Weights | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output with the LoRA that is there now, in the dtype of `x`.

        Engines round A and B to the base's dtype, so that is what is trained; the optimizer's
        copies stay float32.
        """
        y = self.linear(x)
        if self.lora is None:
            return y
        a, b = self.lora.a.to(x.dtype), self.lora.b.to(x.dtype)
        delta = functional.linear(functional.linear(x, a), b)
        return y + (self.lora.scale * delta).to(y.dtype)

    def __getattr__(self, name: str) -> Any:
        """Return what the layer has itself: some models look at its weight's dtype."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("linear"), name)


class Slots:
    """The places for LoRA in one model. Any version may be in them, of any rank."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._modules: dict[str, LoraLinear] = {}

    def put(self, adapter: peft.Adapter | None, tensors: Mapping[str, torch.Tensor]) -> None:
        """Make the model compute with an adapter whose weights are `tensors`; None is the base."""
        adapted = adapter.modules if adapter else {}
        for path in adapted.keys() - self._modules.keys():
            parent, _, name = path.rpartition(".")
            module = LoraLinear(self._model.get_submodule(path))
            setattr(self._model.get_submodule(parent), name, module)
            self._modules[path] = module
        for path, module in self._modules.items():
            module.lora = None
            if path in adapted:
                a, b = tensors[f"{path}.a"], tensors[f"{path}.b"]
                module.lora = Weights(a, b, adapted[path].scale)


def trained_on_text(
    model: Any, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Return those of `shapes` that text goes through: none of a tower for images or sound.

    Ratings are of text alone, so a LoRA there would stay as it began, and few engines load one.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    inside = next((path for path, module in model.named_modules() if module is decoder), "")
    prefix = f"{inside}." if inside else ""
    return {path: sizes for path, sizes in shapes.items() if path.startswith(prefix)}


def linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """Return (inputs, outputs) of every linear layer, quantised ones included, but the head."""
    head = model.get_output_embeddings()
    return {
        path: (module.in_features, module.out_features)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
