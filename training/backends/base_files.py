"""What a base model's folder says of itself: config, sizes, where answers end.

Reads JSON and the headers of weight files. Loads no model and knows no framework.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from strop.adapters import base_model, tensor_file
from strop.training.backends.base import BackendUnavailable

T = TypeVar("T")

_CHECKPOINTED_BYTES = 100_000_000


@dataclass(frozen=True)
class BaseFiles:
    """A folder in Hugging Face format."""

    folder: Path

    def check(self) -> None:
        """Check that config and weights are there and whole, before anything is loaded.

        Raises:
            BackendUnavailable: they aren't; the message names the file.
        """
        _ = self.config, self._tensors

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """`config.json`.

        Raises:
            BackendUnavailable: it isn't there, or isn't a JSON object.
        """
        return _read(base_model.read_config, self.folder)

    @cached_property
    def text_config(self) -> Mapping[str, Any]:
        """The config of the language model, which a model for images too has inside its own."""
        return base_model.text_config(self.config)

    @property
    def is_mlx_quantized(self) -> bool:
        """Whether its weights are quantised as only mlx-lm reads them."""
        return isinstance(self.config.get("quantization"), dict)

    @property
    def dtype(self) -> str:
        """What it says its weights are, `float32` where it doesn't."""
        named = self.text_config.get("dtype") or self.text_config.get("torch_dtype")
        return str(named).removeprefix("torch.") if named else "float32"

    @property
    def context_length(self) -> int:
        """The most tokens of prompt and answer together."""
        return base_model.context_length(self.config) or base_model.UNKNOWN_LENGTH

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The ids with which an answer ends, as engines read them from here."""
        generation = self._json("generation_config.json") or {}
        named = generation.get("eos_token_id") or self.text_config.get("eos_token_id")
        ids = [named] if isinstance(named, int) else named or []
        return frozenset(int(token) for token in ids) | self._tokenizer_end

    @property
    def precision(self) -> str:
        """What its weights are, for people: a dtype, or how they are quantised."""
        quantization = self.config.get("quantization")
        if isinstance(quantization, dict) and "bits" in quantization:
            return f"quantised to {quantization['bits']} bits by MLX"
        other = self.config.get("quantization_config")
        if isinstance(other, dict) and "quant_method" in other:
            return f"quantised by {other['quant_method']}"
        return self.dtype

    @cached_property
    def num_weights(self) -> int:
        """How many weights the files hold; those that MLX has packed are counted unpacked."""
        tensors = self._tensors
        num = sum(prod(tensor.shape) for tensor in tensors.values())
        for name, packed in tensors.items():
            module = name.removesuffix(".weight")
            if self.is_mlx_quantized and packed.dtype == "U32" and f"{module}.scales" in tensors:
                num += prod(packed.shape) * 32 // self._bits(module) - prod(packed.shape)
                added = [tensors.get(f"{module}.{each}") for each in ("scales", "biases")]
                num -= sum(prod(one.shape) for one in added if one is not None)
        return num

    @cached_property
    def num_weight_bytes(self) -> int:
        """How many bytes of tensors the weight files hold."""
        return sum(tensor.end - tensor.start for tensor in self._tensors.values())

    @cached_property
    def part_names(self) -> frozenset[str]:
        """What modules and their parts are called in the weight files."""
        return frozenset(part for name in self._tensors for part in name.split("."))

    @property
    def is_checkpointed(self) -> bool:
        """Whether backends compute its blocks' activations again in the backward pass.

        That takes a fraction of the memory and a third more time; a small model keeps them.
        """
        return self.num_weight_bytes > _CHECKPOINTED_BYTES

    def _bits(self, module: str) -> int:
        """Return how many bits a weight of a module that MLX has quantised takes."""
        quantization = self.config["quantization"]
        own = quantization.get(module)
        return int((own if isinstance(own, dict) else quantization)["bits"])

    @cached_property
    def _tensors(self) -> Mapping[str, tensor_file.Tensor]:
        return _read(base_model.read_headers, self.folder)

    @property
    def _tokenizer_end(self) -> frozenset[int]:
        """Return the id of the tokenizer's own end-of-text token."""
        named = (self._json("tokenizer_config.json") or {}).get("eos_token")
        text = named.get("content") if isinstance(named, dict) else named
        added = (self._json("tokenizer.json") or {}).get("added_tokens") or []
        return frozenset(token["id"] for token in added if token.get("content") == text)

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            read = json.loads(path.read_bytes())
        except ValueError as error:
            raise BackendUnavailable(f"{path} is not JSON: {error}") from error
        if not isinstance(read, dict):
            raise BackendUnavailable(f"{path} must be a JSON object, got {type(read).__name__}")
        return read


def _read(read: Callable[[Path], T], folder: Path) -> T:
    try:
        return read(folder)
    except base_model.InvalidBase as error:
        raise BackendUnavailable(str(error)) from error
