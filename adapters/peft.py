"""PEFT LoRA folders: `adapter_config.json` and `adapter_model.safetensors`, read and written.

Knows no model: whether names and shapes fit a base is for whoever holds the base. Imports no torch;
numpy only where tensors are read. Never reads a pickle.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from strop.adapters import tensor_file
from strop.adapters.peft_config import (
    CONFIG,
    AdapterNotFound,
    InvalidAdapter,
    LoraConfig,
    read_config,
    write_config,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "CONFIG",
    "PREFIX",
    "WEIGHTS",
    "Adapter",
    "AdapterNotFound",
    "InvalidAdapter",
    "LoraConfig",
    "LoraModule",
    "ModuleShape",
    "check_fit",
    "check_values",
    "folded",
    "read",
    "read_config",
    "read_shapes",
    "scaled",
    "write",
]

WEIGHTS = "adapter_model.safetensors"

PREFIX = "base_model.model."
_TENSOR_NAME = re.compile(r"(.{1,256})\.lora_(?:([AB])\.weight|embedding_([AB]))")


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One adapted linear layer: y = Wx + scale · B(Ax); `a` is (r, in), `b` is (out, r).

    Of an embedding, the inputs are the vocabulary, and x is one-hot.
    """

    a: "NDArray[np.float32]"
    b: "NDArray[np.float32]"
    scale: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """A whole adapter, by the base's module paths, as `model.layers.0.self_attn.q_proj`."""

    config: LoraConfig
    modules: Mapping[str, LoraModule]
    embeddings: Mapping[str, LoraModule] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """The sizes of one adapted module; of an embedding, `num_in` is the vocabulary."""

    rank: int
    num_in: int
    num_out: int
    is_embedding: bool


def read_shapes(folder: Path) -> tuple[LoraConfig, dict[str, ModuleShape]]:
    """Return the config and the sizes of every module, by path; the weights are not read.

    Raises:
        AdapterNotFound: the folder or one of its two files isn't there.
        InvalidAdapter: anything else that keeps it from being used, with the reason.
    """
    config = read_config(folder)
    return config, {path: _shape(path, pair, config) for path, pair in _halves(folder).items()}


def read(folder: Path, *, with_embeddings: bool = False) -> Adapter:
    """Read and validate a PEFT LoRA folder.

    Raises:
        AdapterNotFound: the folder or one of its two files isn't there.
        InvalidAdapter: anything else that keeps it from being used, with the reason; without
            `with_embeddings`, also that it adapts one.
    """
    config = read_config(folder)
    halves = _halves(folder)
    shapes = {path: _shape(path, pair, config) for path, pair in halves.items()}
    if not with_embeddings and (found := [path for path in shapes if shapes[path].is_embedding]):
        raise InvalidAdapter(
            f"it adapts the embedding {found[0]}, not only linear layers, which is not supported "
            "here; train it on linear layers"
        )
    arrays = dict(_arrays(folder, halves))
    modules = {
        path: LoraModule(arrays[pair["A"].name], arrays[pair["B"].name], config.scale_of(path))
        for path, pair in halves.items()
    }
    return Adapter(
        config,
        {path: module for path, module in modules.items() if not shapes[path].is_embedding},
        {path: module for path, module in modules.items() if shapes[path].is_embedding},
    )


def check_fit(modules: Mapping[str, LoraModule], shapes: Mapping[str, tuple[int, int]]) -> None:
    """Check that each module has its layer in a base whose layers are (inputs, outputs) by path.

    Raises:
        InvalidAdapter: one has none, or one of another size.
    """
    for path, module in modules.items():
        sizes = (module.a.shape[1], module.b.shape[0])
        if path not in shapes:
            raise InvalidAdapter(f"the base has no linear layer {path} to adapt")
        if sizes != shapes[path]:
            raise InvalidAdapter(
                f"{path} adapts a layer of {sizes[0]} inputs and {sizes[1]} outputs; the base's has"
                f" {shapes[path][0]} and {shapes[path][1]}: was it trained on another model?"
            )


def check_values(folder: Path) -> None:
    """Read all weights of a folder, one tensor at a time in memory.

    Raises:
        InvalidAdapter: there is NaN or infinity in them.
    """
    for _ in _arrays(folder, _halves(folder)):
        pass


def write(adapter: Adapter, folder: Path, *, base_model: str | None = None) -> None:
    """Write an adapter into an existing folder, its weights as float32, as peft and `read` load it.

    Args:
        adapter: what to write; its scales must be those that its config gives.
        folder: where to write the two files.
        base_model: what the config names as its base; that of `adapter.config` by default.
    """
    arrays = {}
    for path, module in adapter.modules.items():
        arrays[f"{PREFIX}{path}.lora_A.weight"] = module.a
        arrays[f"{PREFIX}{path}.lora_B.weight"] = module.b
    for path, module in adapter.embeddings.items():
        arrays[f"{PREFIX}{path}.lora_embedding_A"] = module.a
        arrays[f"{PREFIX}{path}.lora_embedding_B"] = module.b
    for path, module in {**adapter.modules, **adapter.embeddings}.items():
        if not math.isclose(module.scale, adapter.config.scale_of(path), rel_tol=1e-9):
            raise ValueError(
                f"{path} has scale {module.scale}, its config gives {adapter.config.scale_of(path)}"
            )
    write_config(
        adapter.config,
        folder,
        paths=[*adapter.modules, *adapter.embeddings],
        base_model=base_model or adapter.config.base_model,
    )
    tensor_file.write(folder / WEIGHTS, arrays)


def folded(adapter: Adapter) -> Adapter:
    """Return an adapter that computes the same with one rank and one scale, and no patterns.

    Some engines take both from the config and from nowhere else. Where ranks differ, the smaller A
    and B get rows and columns of zeros; where scales differ, all but the commonest go into B.
    """
    import numpy as np

    modules = {**adapter.modules, **adapter.embeddings}
    rank = max(module.a.shape[0] for module in modules.values())
    scales = Counter(module.scale for module in modules.values() if module.scale)
    scale = scales.most_common(1)[0][0] if scales else 0.0

    def fold(path: str, module: LoraModule) -> LoraModule:
        missing = rank - module.a.shape[0]
        b = module.b if module.scale == scale else scaled(path, module.b, module.scale / scale)
        return LoraModule(
            np.pad(module.a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing))), scale
        )

    return Adapter(
        LoraConfig(rank, alpha=scale * rank, base_model=adapter.config.base_model),
        {path: fold(path, module) for path, module in adapter.modules.items()},
        {path: fold(path, module) for path, module in adapter.embeddings.items()},
    )


def scaled(path: str, b: "NDArray[np.float32]", factor: float) -> "NDArray[np.float32]":
    """Return B times a factor.

    Raises:
        InvalidAdapter: float32 can't hold it.
    """
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        product = b * np.float32(factor)
    if not np.isfinite(product).all():
        raise InvalidAdapter(
            f"{path} has a scale {factor:g} times that of other layers, which float32 can't hold; "
            "train it with one lora_alpha"
        )
    return product


@dataclass(frozen=True, slots=True)
class _Half:
    name: str
    tensor: tensor_file.Tensor
    is_embedding: bool


def _halves(folder: Path) -> dict[str, dict[str, _Half]]:
    """Return the tensors of each module, by path and then by `A` or `B`."""
    if not (folder / WEIGHTS).is_file():
        if any(folder.glob("adapter_model.bin")) or any(folder.glob("adapter_model.pt")):
            raise InvalidAdapter(
                f"the weights are a pickle, which is never loaded; save them as {WEIGHTS}"
            )
        raise AdapterNotFound(f"{folder} doesn't contain tensors: expected {WEIGHTS} in it")
    try:
        header = tensor_file.read_header(folder / WEIGHTS)
    except tensor_file.BrokenTensorFile as error:
        raise InvalidAdapter(str(error)) from error
    halves: dict[str, dict[str, _Half]] = {}
    for name, tensor in sorted(header.items()):
        match = _TENSOR_NAME.fullmatch(name.removeprefix(PREFIX))
        if not name.startswith(PREFIX) or match is None:
            raise InvalidAdapter(
                f"unexpected tensor {name!r}; expected {PREFIX}<module>.lora_A.weight and lora_B"
            )
        if tensor.dtype not in tensor_file.READABLE:
            raise InvalidAdapter(
                f"{name} is {tensor.dtype!r:.80}; expected one of {[*tensor_file.READABLE]}"
            )
        if len(tensor.shape) != 2 or min(tensor.shape) < 1:
            raise InvalidAdapter(f"{name} has shape {tensor.shape}; expected a matrix")
        path, half, embedding_half = match.groups()
        found = _Half(name, tensor, embedding_half is not None)
        if (half or embedding_half) in halves.setdefault(path, {}):
            raise InvalidAdapter(f"{path} is there as a linear layer and as an embedding")
        halves[path][half or embedding_half] = found
    if not halves:
        raise InvalidAdapter(f"{WEIGHTS} doesn't contain tensors")
    return halves


def _arrays(
    folder: Path, halves: Mapping[str, Mapping[str, _Half]]
) -> "Iterator[tuple[str, NDArray[np.float32]]]":
    tensors = {half.name: half.tensor for pair in halves.values() for half in pair.values()}
    try:
        yield from tensor_file.read_arrays(folder / WEIGHTS, tensors)
    except tensor_file.BrokenTensorFile as error:
        raise InvalidAdapter(str(error)) from error


def _shape(path: str, halves: Mapping[str, _Half], config: LoraConfig) -> ModuleShape:
    if missing := {"A", "B"} - halves.keys():
        raise InvalidAdapter(f"{path} has no lora_{missing.pop()}; both halves are needed")
    a, b, rank = halves["A"].tensor.shape, halves["B"].tensor.shape, config.rank_of(path)
    if a[0] != rank or b[1] != rank:
        raise InvalidAdapter(
            f"{path} has shapes A {a} and B {b}; expected (r, in) and (out, r) "
            f"with r = {rank} as the config says"
        )
    if halves["A"].is_embedding != halves["B"].is_embedding:
        raise InvalidAdapter(f"{path} is there as a linear layer and as an embedding")
    return ModuleShape(rank, a[1], b[0], halves["A"].is_embedding)
