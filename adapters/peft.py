"""PEFT LoRA folders: `adapter_config.json` and `adapter_model.safetensors`, read and validated.

Knows no model: whether names and shapes fit a base is for whoever holds the base. Imports no torch;
numpy only where tensors are read. Never reads a pickle.
"""

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_TENSOR_NAME = re.compile(r"(?P<path>.+)\.lora_(?P<half>[AB])\.weight")

# Settings that change what the weights mean, with the values that mean nothing special.
_UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "use_dora": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "fan_in_fan_out": (None, False),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
}
# These initialisations change the base itself, which the adapter then needs.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


class InvalidAdapter(ValueError):
    """The folder is not a PEFT LoRA adapter that can be served or trained on."""


class AdapterNotFound(InvalidAdapter):
    """There is no adapter at this path."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What `adapter_config.json` says, as far as it matters here."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    base_model: str | None

    def scale_of(self, path: str) -> float:
        """Return the multiplier of B·A for the module at `path`: alpha / r, or alpha / sqrt(r)."""
        rank = self.rank_of(path)
        alpha = _of_pattern(self.alpha_pattern, path, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def rank_of(self, path: str) -> int:
        """Return the rank of the module at `path`."""
        return _of_pattern(self.rank_pattern, path, self.rank)


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One adapted linear layer: y = Wx + scale · B(Ax); `a` is (r, in), `b` is (out, r)."""

    a: "NDArray[np.float32]"
    b: "NDArray[np.float32]"
    scale: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """A whole adapter, by the base's module paths, as `model.layers.0.self_attn.q_proj`."""

    config: LoraConfig
    modules: Mapping[str, LoraModule]


@dataclass(frozen=True, slots=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_config(folder: Path) -> LoraConfig:
    """Read and validate `adapter_config.json`.

    Raises:
        AdapterNotFound: the folder or the file isn't there.
        InvalidAdapter: the adapter is of a kind that is not supported, or the file is broken.
    """
    if not (folder / CONFIG).is_file():
        raise AdapterNotFound(f"No adapter found for {folder}: expected {CONFIG} in it")
    try:
        raw = json.loads((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise InvalidAdapter(f"{CONFIG} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InvalidAdapter(f"{CONFIG} must be a JSON object, got {type(raw).__name__}")
    if raw.get("peft_type") != "LORA":
        raise InvalidAdapter(f"peft_type must be LORA, got {raw.get('peft_type')!r}")
    for key, harmless in _UNSUPPORTED.items():
        if raw.get(key) not in harmless:
            raise InvalidAdapter(f"{key} = {raw[key]!r} is not supported; train without it")
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        raise InvalidAdapter(
            f"init_lora_weights = {init!r} changes the base; convert the adapter to plain LoRA"
        )
    base = raw.get("base_model_name_or_path")
    return LoraConfig(
        rank=_positive_int(raw.get("r"), "r"),
        alpha=_finite(raw.get("lora_alpha"), "lora_alpha"),
        rslora=bool(raw.get("use_rslora")),
        rank_pattern={
            key: _positive_int(value, f"rank_pattern[{key!r}]")
            for key, value in _pattern(raw, "rank_pattern").items()
        },
        alpha_pattern={
            key: _finite(value, f"alpha_pattern[{key!r}]")
            for key, value in _pattern(raw, "alpha_pattern").items()
        },
        base_model=base if isinstance(base, str) else None,
    )


def read(folder: Path) -> Adapter:
    """Read and validate a PEFT LoRA folder.

    Raises:
        AdapterNotFound: the folder or one of its two files isn't there.
        InvalidAdapter: anything else that keeps it from being used, with the reason.
    """
    config = read_config(folder)
    if not (folder / WEIGHTS).is_file():
        if any(folder.glob("adapter_model.bin")) or any(folder.glob("adapter_model.pt")):
            raise InvalidAdapter(
                f"the weights are a pickle, which is never loaded; save them as {WEIGHTS}"
            )
        raise AdapterNotFound(f"{folder} doesn't contain tensors: expected {WEIGHTS} in it")
    data = (folder / WEIGHTS).read_bytes()
    halves: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name, tensor in _header(data).items():
        match = _TENSOR_NAME.fullmatch(name.removeprefix(_PREFIX))
        if not name.startswith(_PREFIX) or match is None:
            raise InvalidAdapter(
                f"unexpected tensor {name!r}; expected {_PREFIX}<module>.lora_A.weight and lora_B"
            )
        halves.setdefault(match["path"], {})[match["half"]] = _array(data, name, tensor)
    if not halves:
        raise InvalidAdapter(f"{WEIGHTS} doesn't contain tensors")
    return Adapter(
        config, {path: _module(path, half, config) for path, half in sorted(halves.items())}
    )


def _module(path: str, half: "Mapping[str, NDArray[np.float32]]", config: LoraConfig) -> LoraModule:
    if missing := {"A", "B"} - half.keys():
        raise InvalidAdapter(f"{path} has no lora_{missing.pop()}; both halves are needed")
    a, b, rank = half["A"], half["B"], config.rank_of(path)
    if a.shape[0] != rank or b.shape[1] != rank:
        raise InvalidAdapter(
            f"{path} has shapes A {a.shape} and B {b.shape}; expected (r, in) and (out, r) "
            f"with r = {rank} as the config says"
        )
    return LoraModule(a, b, config.scale_of(path))


def _header(data: bytes) -> dict[str, _Tensor]:
    """Return the tensors that a safetensors file holds (huggingface/safetensors, "Format")."""
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else -1
    if not 0 < size <= min(_MAX_HEADER_BYTES, len(data) - 8):
        raise InvalidAdapter(f"{WEIGHTS} is not a whole safetensors file: header cut off or wrong")
    try:
        raw = json.loads(data[8 : 8 + size])
        raw.pop("__metadata__", None)
        tensors = {
            name: _Tensor(
                str(entry["dtype"]), tuple(map(int, entry["shape"])), *entry["data_offsets"]
            )
            for name, entry in raw.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidAdapter(f"{WEIGHTS} has a broken header: {error}") from error
    offset = 8 + size
    placed = {}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        item_bytes = _ITEM_BYTES.get(tensor.dtype)
        if item_bytes is None:
            raise InvalidAdapter(f"{name} is {tensor.dtype}; expected one of {[*_ITEM_BYTES]}")
        if len(tensor.shape) != 2 or min(tensor.shape) < 1:
            raise InvalidAdapter(f"{name} has shape {tensor.shape}; expected a matrix")
        length = tensor.shape[0] * tensor.shape[1] * item_bytes
        if tensor.start != end or tensor.end - tensor.start != length:
            raise InvalidAdapter(f"{WEIGHTS}: the bytes of {name} don't fit its shape")
        end = tensor.end
        placed[name] = _Tensor(tensor.dtype, tensor.shape, offset + tensor.start, offset + end)
    if offset + end != len(data):
        raise InvalidAdapter(
            f"{WEIGHTS} is {len(data)} bytes long, its header says {offset + end}: truncated?"
        )
    return placed


def _array(data: bytes, name: str, tensor: _Tensor) -> "NDArray[np.float32]":
    import numpy as np

    raw = memoryview(data)[tensor.start : tensor.end]
    if tensor.dtype == "BF16":
        # A bf16 is the upper half of the float32 of the same value.
        array = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        array = np.frombuffer(raw, "<f4" if tensor.dtype == "F32" else "<f2").astype(np.float32)
    if not np.isfinite(array).all():
        raise InvalidAdapter(f"{name} contains NaN or infinity")
    return array.reshape(tensor.shape)


def _of_pattern(pattern: Mapping[str, T], path: str, default: T) -> T:
    """Return the value of the first key that matches the end of `path`, as PEFT looks it up."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


def _pattern(raw: Mapping[str, Any], key: str) -> Mapping[str, object]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise InvalidAdapter(f"{key} must be an object, got {value!r}")
    for expression in value:
        try:
            re.compile(expression)
        except re.error as error:
            raise InvalidAdapter(f"{key} has the broken expression {expression!r}") from error
    return value


def _positive_int(value: object, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidAdapter(f"{key} must be an integer of at least 1, got {value!r}")
    return value


def _finite(value: object, key: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InvalidAdapter(f"{key} must be a finite number, got {value!r}")
    return float(value)
