"""PEFT to MLX: mlx_lm's own models with a converted adapter, against transformers and peft."""

import errno
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from numpy.typing import NDArray

from strop.adapters import base_model, peft
from strop.adapters import mlx as mlx_lora
from strop.adapters.base_model import InvalidBase
from strop.adapters.peft import InvalidAdapter

mx = pytest.importorskip("mlx.core")
pytest.importorskip("torch")

IDS = np.random.default_rng(0).integers(3, 1280, 48)


def reference(base: Path, adapter: Path | None) -> NDArray[Any]:
    """Return the logprobs of the whole vocabulary after each of `IDS`, by transformers and peft."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft reads a renamed attribute
            model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits = model.eval()(torch.tensor(IDS[None])).logits[0]
    expected: NDArray[Any] = logits.log_softmax(-1).numpy()
    return expected


def served(base: Path, adapter: Path | None) -> NDArray[Any]:
    """Return the same by mlx_lm, as its server loads them."""
    from mlx_lm.utils import load

    model = load(str(base), adapter_path=None if adapter is None else str(adapter))[0]
    logits = model(mx.array(IDS[None]))[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def of_text(logprobs_TV: NDArray[Any]) -> NDArray[Any]:
    """Return the logprobs of the text's own tokens."""
    return logprobs_TV[np.arange(len(IDS) - 1), IDS[1:]]


def difference(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(a - b).max())


def base_difference(base: Path) -> float:
    """Return by how much mlx_lm differs from transformers without any adapter."""
    return difference(reference(base, None), served(base, None))


KINDS: Mapping[str, Mapping[str, Any]] = {
    "all layers": {"rank": 8, "alpha": 16, "targets": models.ALL_LINEAR, "scale": 0.1},
    "some layers": {
        "rank": 4,
        "alpha": 8,
        "targets": ("q_proj", "v_proj"),
        "layers": (1, 2),
        "scale": 0.2,
    },
    "first layer": {"rank": 4, "alpha": 8, "targets": ("o_proj",), "layers": (0,), "scale": 0.5},
    "rank-stabilised": {
        "rank": 16,
        "alpha": 16,
        "targets": models.ALL_LINEAR,
        "rslora": True,
        "scale": 0.05,
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_logprobs_are_pefts(
    request: pytest.FixtureRequest, architecture: str, kind: str, tmp_path: Path
) -> None:
    """All layers, some, the first, rank-stabilised: within 1e-4 nats, with effects of far more."""
    base = Path(request.getfixturevalue(architecture))
    source = models.make_peft(base, tmp_path / "peft", seed=1, **KINDS[kind])

    mlx_lora.convert(source, base, tmp_path / "mlx")

    expected, actual = reference(base, source), served(base, tmp_path / "mlx")
    assert difference(of_text(expected), of_text(actual)) < 1e-4
    # Of the unlikely tokens, as near as the bases are.
    assert difference(expected, actual) < 1e-4 + 3 * base_difference(base)
    assert difference(expected, reference(base, None)) > 0.5


def test_ranks_and_scales_of_their_own_are_folded(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """mlx_lm knows one of each; the rest is in A and B."""
    adapter = peft.read(peft_a)
    modules = dict(adapter.modules)
    path = "model.layers.1.mlp.up_proj"
    modules[path] = peft.LoraModule(modules[path].a[:4], modules[path].b[:, :4], 4.0)
    for name, module in modules.items():
        if name.endswith("q_proj"):
            modules[name] = peft.LoraModule(module.a, module.b, 4.0)
    config = peft.LoraConfig(
        8, 16, rank_pattern={r"1\.mlp\.up_proj": 4}, alpha_pattern={"q_proj": 32}
    )
    source = tmp_path / "peft"
    source.mkdir()
    peft.write(peft.Adapter(config, modules), source)

    mlx_lora.convert(source, qwen3, tmp_path / "mlx")

    expected = reference(qwen3, source)
    assert difference(expected, served(qwen3, tmp_path / "mlx")) < 1e-4
    assert difference(expected, reference(qwen3, peft_a)) > 0.1


def dequantised(quantised: Path, plain: Path, folder: Path) -> Path:
    """Write the weights that a quantised base computes with, in the plain base's format."""
    from mlx_lm.utils import load
    from safetensors.numpy import load_file, save_file

    shutil.copytree(plain, folder)
    weights = load_file(plain / "model.safetensors")
    for path, module in load(str(quantised))[0].named_modules():
        if hasattr(module, "scales"):
            weights[f"{path}.weight"] = np.array(
                mx.dequantize(
                    module.weight, module.scales, module.biases, module.group_size, module.bits
                )
            )
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_4_bit_base_loads_the_adapter_too(
    qwen3: Path, qwen3_4bit: Path, peft_a: Path, tmp_path: Path
) -> None:
    """Logprobs are those of peft on the same base with its 4-bit weights written out."""
    base = dequantised(qwen3_4bit, qwen3, tmp_path / "base")

    mlx_lora.convert(peft_a, qwen3_4bit, tmp_path / "mlx")

    expected = reference(base, peft_a)
    assert difference(expected, served(qwen3_4bit, tmp_path / "mlx")) < 1e-4
    assert difference(expected, reference(qwen3, peft_a)) > 0.1


# What a type needs beside the sizes that all have, to be as its published checkpoints are.
WINDOWED: Mapping[str, Any] = {"sliding_window": 16, "num_hidden_layers": 6}
EXPERTS: Mapping[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "cohere2": WINDOWED,
    "exaone4": WINDOWED,
    "gemma2": {"sliding_window": 64},  # longer than the text: mlx-lm's has no window
    "gemma3_text": WINDOWED,
    "granitemoe": EXPERTS,
    "mixtral": EXPERTS,
    "olmo3": WINDOWED,
    "olmoe": EXPERTS,
    "qwen3_moe": {**EXPERTS, "decoder_sparse_step": 1, "mlp_only_layers": []},
}
# Written into config.json as published: mlx-lm doesn't read where transformers 5 keeps them.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "cohere2": {"sliding_window_pattern": 4},
    "exaone4": {"sliding_window_pattern": "LLLG"},
    "gemma3_text": {"sliding_window_pattern": 6},
    "qwen3_moe": {"num_experts": 4},
}


def make_base(model_type: str, folder: Path) -> Path:
    """Write a small random model of a type."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        model_type,
        **{
            "vocab_size": models.VOCAB_SIZE,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 256,
            "initializer_range": 0.1,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **SPECIAL.get(model_type, {}),
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    models.save(folder, model, models.make_tokenizer())
    raw = json.loads((folder / "config.json").read_text())
    rope = raw.get("rope_parameters") or {}
    if "full_attention" in rope:
        raw["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            raw.setdefault(key, rope[key])
    raw.setdefault("rope_scaling", None)
    (folder / "config.json").write_text(json.dumps({**raw, **PUBLISHED.get(model_type, {})}))
    return folder


@pytest.mark.parametrize("model_type", sorted(mlx_lora.MODEL_TYPES - {"llama", "qwen3"}))
def test_every_known_model_type_computes_what_peft_does(model_type: str, tmp_path: Path) -> None:
    """All its linear layers adapted, the attention alone where there are experts."""
    base = make_base(model_type, tmp_path / "base")
    layers = {path for path in base_model.layer_sizes(base) if ".layers." in path}
    linear = sorted({path.rpartition(".")[2] for path in layers})
    source = models.make_peft(
        base,
        tmp_path / "peft",
        rank=4,
        alpha=8,
        targets=models.ATTENTION if "num_experts" in SPECIAL.get(model_type, {}) else linear,
        seed=1,
        scale=0.1,
    )

    mlx_lora.convert(source, base, tmp_path / "mlx")

    expected = reference(base, source)
    # Where the bases differ by themselves (another gelu), the adapted ones differ as much.
    tolerance = 1e-4 + 3 * base_difference(base)
    error = difference(expected, served(base, tmp_path / "mlx"))
    effect = difference(expected, reference(base, None))
    assert error < tolerance
    assert effect > 50 * tolerance


def adapter_of(path: str, folder: Path) -> Path:
    """Write an adapter of one module."""
    folder.mkdir()
    module = peft.LoraModule(np.ones((2, 16), np.float32), np.ones((64, 2), np.float32), 1.0)
    peft.write(peft.Adapter(peft.LoraConfig(2, 2.0), {path: module}), folder)
    return folder


QWEN3 = {"model_type": "qwen3", "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("path", "config", "says"),
    [
        ("model.layers.0.mlp.up_proj", {"model_type": "mamba", "num_hidden_layers": 2}, "of mamba"),
        ("model.layers.0.mlp.up_proj", {"model_type": "qwen3"}, "num_hidden_layers"),
        ("model.layers.0.mlp.experts.3.up_proj", QWEN3, "is one expert"),
        ("model.layers.2.mlp.up_proj", QWEN3, "it adapts block 2; the base has 2"),
        ("lm_head", {**QWEN3, "tie_word_embeddings": True}, "shares with its embedding"),
    ],
)
def test_what_mlx_lm_has_no_place_for_is_refused(
    path: str, config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """Its server would drop the model it serves before it found out."""
    source, base = adapter_of(path, tmp_path / "peft"), tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(config))

    with pytest.raises((InvalidAdapter, InvalidBase), match=says):
        mlx_lora.convert(source, base, tmp_path / "mlx")

    assert {"peft", "base"} == {each.name for each in tmp_path.iterdir()}


def test_a_head_that_is_tied_without_a_word_is_refused(qwen3: Path, tmp_path: Path) -> None:
    """The configs of Gemma leave it to the library; the weights have no head."""
    source, base = adapter_of("lm_head", tmp_path / "peft"), tmp_path / "base"
    shutil.copytree(qwen3, base)
    config = json.loads((base / "config.json").read_text())
    del config["tie_word_embeddings"]
    (base / "config.json").write_text(json.dumps(config))

    with pytest.raises(InvalidAdapter, match="shares with its embedding"):
        mlx_lora.convert(source, base, tmp_path / "mlx")


def test_what_does_not_reach_the_disk_is_not_there(
    qwen3: Path, peft_a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name without its bytes, after a power cut, would be taken for a converted version."""

    def fail(_: int) -> None:
        assert not (tmp_path / "mlx").exists()
        raise OSError(errno.EIO, "the disk fails")

    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(OSError, match="the disk fails"):
        mlx_lora.convert(peft_a, qwen3, tmp_path / "mlx")

    assert [] == [*tmp_path.iterdir()]


def test_a_folder_is_never_written_again(qwen3: Path, peft_a: Path, tmp_path: Path) -> None:
    """The server keeps what it computed under a path, whatever lies there now."""
    mlx_lora.convert(peft_a, qwen3, tmp_path / "mlx")

    with pytest.raises(FileExistsError):
        mlx_lora.convert(peft_a, qwen3, tmp_path / "mlx")

    assert ["mlx"] == [path.name for path in tmp_path.iterdir()]
