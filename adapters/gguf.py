"""PEFT folders as GGUF LoRA files, which llama.cpp and Ollama load (`llama-adapter.cpp`).

Needs the `gguf` package, which knows the names of tensors. Runs no model, and imports numpy only
where tensors are converted.
"""

import importlib.util
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strop.adapters import base_model, durable, peft
from strop.configs import installation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class _Architecture:
    """What llama.cpp makes of a model type: its own name for it, and what it does to q and k.

    Where `interleaves` is set, the two halves that rotary embeddings turn together lie side by side
    in each head, as in the original Llama; transformers keeps them apart.
    """

    name: str
    interleaves: bool = False


# Model types whose every linear layer llama.cpp's converter only renames, or interleaves: found by
# running it (commit 0c1e570) on a model of each.
_ARCHITECTURES: Mapping[str, _Architecture] = {
    "arcee": _Architecture("ARCEE", interleaves=True),
    "granite": _Architecture("GRANITE", interleaves=True),
    "llama": _Architecture("LLAMA", interleaves=True),
    "ministral3": _Architecture("MISTRAL3", interleaves=True),
    "mistral": _Architecture("LLAMA", interleaves=True),
    "mixtral": _Architecture("LLAMA", interleaves=True),
    "olmo": _Architecture("OLMO", interleaves=True),
    "smollm3": _Architecture("SMOLLM3", interleaves=True),
    "apertus": _Architecture("APERTUS"),
    "cohere": _Architecture("COMMAND_R"),
    "cohere2": _Architecture("COHERE2"),
    "ernie4_5": _Architecture("ERNIE4_5"),
    "exaone4": _Architecture("EXAONE4"),
    "gemma": _Architecture("GEMMA"),
    "gemma2": _Architecture("GEMMA2"),
    "gemma3_text": _Architecture("GEMMA3"),
    "glm": _Architecture("CHATGLM"),
    "glm4": _Architecture("GLM4"),
    "hunyuan_v1_dense": _Architecture("HUNYUAN_DENSE"),
    "nemotron": _Architecture("NEMOTRON"),
    "olmo2": _Architecture("OLMO2"),
    "olmo3": _Architecture("OLMO2"),
    "olmoe": _Architecture("OLMOE"),
    "phi": _Architecture("PHI2"),
    "phi3": _Architecture("PHI3"),
    "qwen2": _Architecture("QWEN2"),
    "qwen2_moe": _Architecture("QWEN2MOE"),
    "qwen3": _Architecture("QWEN3"),
    "qwen3_moe": _Architecture("QWEN3MOE"),
    "seed_oss": _Architecture("SEED_OSS"),
    "stablelm": _Architecture("STABLELM"),
    "starcoder2": _Architecture("STARCODER2"),
}
MODEL_TYPES = frozenset(_ARCHITECTURES)


def lacking() -> str:
    """Return what is not installed that `convert` needs, and how to get it; empty if all is."""
    return "" if importlib.util.find_spec("gguf") is not None else _needed()


def _needed() -> str:
    return (
        "adapters for Ollama and llama.cpp need the gguf package:"
        f" {installation.install('strop[gguf]')}"
    )


def convert(source: Path, base: Path, file: Path) -> None:
    """Write the PEFT adapter at `source`, of the base at `base`, to a new GGUF LoRA file.

    llama.cpp multiplies B·A by alpha / r with each tensor's own r: ranks stay as they are, and
    scales go into B where they differ. `file` appears whole or not at all.

    Raises:
        InvalidAdapter: the adapter is broken, or llama.cpp couldn't serve it.
        InvalidBase: the base's config is missing or broken.
        FileExistsError: `file` is there already.
        ImportError: the `gguf` package is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ImportError(_needed()) from error
    # It comes with gguf.
    import numpy as np

    config = base_model.read_config(base)
    architecture = _ARCHITECTURES.get(str(config.get("model_type")))
    if architecture is None:
        raise peft.InvalidAdapter(
            f"adapters of {config.get('model_type')} models can't be converted to GGUF; known are "
            f"{', '.join(sorted(MODEL_TYPES))}"
        )
    adapter = peft.read(source)
    arch = gguf.MODEL_ARCH[architecture.name]
    names = gguf.get_tensor_name_map(arch, base_model.number(config, "num_hidden_layers"))
    alpha = _common_alpha(adapter)
    arrays: dict[str, NDArray[Any]] = {}
    for path, module in sorted(adapter.modules.items()):
        name = names.get_name(path)
        if name is None or (path == "lm_head" and base_model.ties_head(base)):
            raise peft.InvalidAdapter(
                f"it adapts {path}, for which llama.cpp's {gguf.MODEL_ARCH_NAMES[arch]} models "
                "have no place; train it on attention and MLP layers"
            )
        b = peft.scaled(path, module.b, module.scale * module.a.shape[0] / alpha)
        if architecture.interleaves:
            b = _interleaved(path, b, config)
        arrays[f"{name}.weight.lora_a"] = np.ascontiguousarray(module.a, np.float32)
        arrays[f"{name}.weight.lora_b"] = np.ascontiguousarray(b, np.float32)
    if file.exists():
        raise FileExistsError(f"{file} exists; an adapter's file is never written again")
    handle, scratch = tempfile.mkstemp(prefix=".gguf-", dir=file.parent)
    os.close(handle)
    try:
        _write(Path(scratch), gguf.MODEL_ARCH_NAMES[arch], alpha, arrays)
        durable.publish(Path(scratch), file)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _write(path: Path, architecture: str, alpha: float, arrays: "Mapping[str, Any]") -> None:
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for name, array in arrays.items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _common_alpha(adapter: peft.Adapter) -> float:
    """Return scale · r where all modules have the same; else what makes the first one's B stay."""
    import numpy as np

    first = next(iter(adapter.modules.values()))
    # An alpha of 0 would mean "no alpha", a scale of 1.
    return float(np.float32(first.scale * first.a.shape[0])) or 1.0


def _interleaved(
    path: str, b: "NDArray[np.float32]", config: Mapping[str, Any]
) -> "NDArray[np.float32]":
    """Return B with its rows in llama.cpp's order, where `path` is a q or k projection."""
    if not path.endswith(("q_proj", "k_proj")):
        return b
    num_heads = base_model.number(config, "num_attention_heads")
    if path.endswith("k_proj") and config.get("num_key_value_heads") is not None:
        num_heads = base_model.number(config, "num_key_value_heads")
    num_out, rank = b.shape
    if num_out % (2 * num_heads):
        raise peft.InvalidAdapter(
            f"{path} has {num_out} outputs, not a multiple of twice the base's {num_heads} heads: "
            "was it trained on another model?"
        )
    halves = b.reshape(num_heads, 2, num_out // num_heads // 2, rank)
    return halves.swapaxes(1, 2).reshape(num_out, rank)
