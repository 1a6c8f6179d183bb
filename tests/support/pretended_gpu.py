"""A GPU that isn't there: tensors that say they are on one, computed on the CPU.

What mixes them with tensors of the CPU is refused, as on a GPU, and so is taking them for NumPy
arrays. It has no memory and no kernels of its own, and doesn't load: what runs out, what a kernel
lacks, and how transformers puts weights on a device can't be seen with it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from strop.training.backends import torch_model
from strop.training.backends.base_files import BaseFiles

DEVICE: Final = torch.device("cuda", 0)

_aten = torch.ops.aten
_MOVES: Final = (_aten.copy_.default, _aten._to_copy.default)
# What is indexed decides; where the indices are, doesn't matter.
_INDEXES: Final = (_aten.index.Tensor, _aten._index_put_impl_.default)


class OnGpu(torch.Tensor):  # type: ignore[misc]  # torch is not followed by mypy
    """A tensor that is on the GPU; `inner`, on the CPU, has its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "OnGpu":
        """Return `inner` as one; to torch's C++, which asks drivers, it is on no device at all."""
        made: OnGpu = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="meta",
        )
        made.inner = inner
        return made

    @property
    def device(self) -> torch.device:
        """The GPU."""
        return DEVICE

    def tolist(self) -> Any:
        """Return the numbers, as any tensor does."""
        return self.inner.tolist()

    def numpy(self) -> Any:
        """Refuse, as a tensor on a GPU does."""
        raise TypeError("can't convert a tensor on cuda:0 to numpy; use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute on the CPU."""
        return _compute(func, args, kwargs or {})


class _Gpu(TorchDispatchMode):  # type: ignore[misc]  # torch is not followed by mypy
    """Sees what is computed without a tensor of the GPU too: what makes the first ones."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute on the CPU."""
        return _compute(func, args, kwargs or {})


class _Generator(torch.Generator):  # type: ignore[misc]  # torch is not followed by mypy
    """Draws as the CPU's does; one that was made for the CPU draws nothing on a GPU."""

    def __new__(cls, device: torch.device) -> "_Generator":
        if device != DEVICE:
            raise RuntimeError(f"expected a generator for {DEVICE}, got one for {device}")
        made: _Generator = super().__new__(cls)
        return made


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the torch backend find the GPU, for the time of the block."""
    load = torch_model.load

    def load_there(base: BaseFiles, device: torch.device, *, quantize: bool) -> Any:
        with _disable_current_modes():
            model = load(base, torch.device("cpu"), quantize=quantize)
            model.to(torch_model.pick_dtype(base, device))
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    module._parameters[name] = torch.nn.Parameter(OnGpu(weight.data), False)
            for name, buffer in module._buffers.items():
                module._buffers[name] = OnGpu(buffer)
        return model

    # Else `torch.tensor(..., device=...)` goes to drivers before it can be seen.
    torch._C._set_only_lift_cpu_tensors(True)
    with monkeypatch.context() as patch, _Gpu():
        patch.setattr(torch_model, "pick_device", lambda _: DEVICE)
        patch.setattr(torch_model, "load", load_there)
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(False)


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    is_there = any(isinstance(one, OnGpu) for one in tensors)
    asked = kwargs.get("device")
    if is_there and func not in _MOVES:
        _refuse_others(func, args[:1] if func in _INDEXES else tensors)
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        is_there = torch.device(asked).type != "cpu"
    found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    # What is written in place is the tensor that was given.
    given = {id(one.inner): one for one in tensors if isinstance(one, OnGpu)}

    def outer(one: Any) -> Any:
        if not isinstance(one, torch.Tensor) or not is_there:
            return one
        return given[id(one)] if id(one) in given else OnGpu(one)

    return tree_map(outer, found)


def _inner(one: Any) -> Any:
    return one.inner if isinstance(one, OnGpu) else one


def _refuse_others(func: Any, tensors: Any) -> None:
    # A single number may come from the CPU.
    others = [one for one in tensors if not isinstance(one, OnGpu) and one.dim()]
    if others:
        shapes = ", ".join(str(tuple(one.shape)) for one in others)
        raise RuntimeError(f"expected all tensors of {func} on {DEVICE}; on the CPU: {shapes}")
