"""PEFT to GGUF: what llama.cpp would add to each weight is what peft adds.

The reference for names and orders is llama.cpp's converter; here the files are read back with the
gguf package, and the order of rows undone as llama.cpp's rotary embedding takes them.
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from strop.adapters import gguf as gguf_lora
from strop.adapters import peft
from strop.adapters.base_model import InvalidBase
from strop.adapters.peft import InvalidAdapter

gguf = pytest.importorskip("gguf")

PLACES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def read_back(file: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return a file's values and tensors."""
    reader = gguf.GGUFReader(file)
    values = {name: field.contents() for name, field in reader.fields.items()}
    return values, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def applied(values: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], name: str) -> Any:
    """Return what llama.cpp adds to the weight `name`: alpha / r of the tensor, times B·A."""
    a = tensors[f"{name}.weight.lora_a"].astype(np.float32)
    b = tensors[f"{name}.weight.lora_b"].astype(np.float32)
    return values["adapter.lora.alpha"] / b.shape[1] * (b @ a)


def original_order(rows: NDArray[Any], num_heads: int) -> NDArray[Any]:
    """Undo the interleaving: within each head, row 2i and 2i+1 are i and half + i."""
    head_size = len(rows) // num_heads
    restored = np.empty_like(rows)
    for head in range(num_heads):
        for i in range(head_size // 2):
            for half in (0, 1):
                restored[head * head_size + half * head_size // 2 + i] = rows[
                    head * head_size + 2 * i + half
                ]
    return restored


@pytest.mark.parametrize("adapter", ["peft_a", "peft_b", "peft_c"])
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_what_is_added_to_each_weight_is_pefts(
    request: pytest.FixtureRequest, architecture: str, adapter: str, tmp_path: Path
) -> None:
    """Rank-stabilised and for some layers too; a Llama's q and k are in llama.cpp's order."""
    base, source = (Path(request.getfixturevalue(name)) for name in (architecture, adapter))
    file = tmp_path / "lora.gguf"

    gguf_lora.convert(source, base, file)

    values, tensors = read_back(file)
    modules = peft.read(source).modules
    assert ("adapter", "lora", architecture) == (
        values["general.type"],
        values["adapter.type"],
        values["general.architecture"],
    )
    assert 2 * len(modules) == len(tensors)
    for path, module in modules.items():
        _, _, layer, inner = path.split(".", 3)
        delta = applied(values, tensors, f"blk.{layer}.{PLACES[inner]}")
        if architecture == "llama" and inner == "self_attn.q_proj":
            delta = original_order(delta, 4)
        if architecture == "llama" and inner == "self_attn.k_proj":
            delta = original_order(delta, 2)
        np.testing.assert_allclose(module.scale * (module.b @ module.a), delta, atol=1e-6)


def test_weights_stay_exactly_as_they_are_where_they_can(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """With one scale for all, alpha says it and neither A nor B is touched."""
    gguf_lora.convert(peft_a, qwen3, tmp_path / "lora.gguf")

    values, tensors = read_back(tmp_path / "lora.gguf")
    assert 16 == values["adapter.lora.alpha"]
    for path, module in peft.read(peft_a).modules.items():
        _, _, layer, inner = path.split(".", 3)
        name = f"blk.{layer}.{PLACES[inner]}.weight"
        np.testing.assert_array_equal(module.a, tensors[f"{name}.lora_a"], strict=True)
        np.testing.assert_array_equal(module.b, tensors[f"{name}.lora_b"], strict=True)


def test_ranks_and_scales_of_their_own_are_kept(qwen3: Path, peft_a: Path, tmp_path: Path) -> None:
    """Each tensor pair has its own rank; scales go into B."""
    adapter = peft.read(peft_a)
    modules = dict(adapter.modules)
    up, down = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"
    modules[up] = peft.LoraModule(modules[up].a[:4], modules[up].b[:, :4], 4.0)
    modules[down] = peft.LoraModule(modules[down].a, modules[down].b, 0.0)
    config = peft.LoraConfig(
        8, 16, rank_pattern={r"1\.mlp\.up_proj": 4}, alpha_pattern={"1.mlp.down_proj": 0}
    )
    (tmp_path / "peft").mkdir()
    peft.write(peft.Adapter(config, modules), tmp_path / "peft")

    gguf_lora.convert(tmp_path / "peft", qwen3, tmp_path / "lora.gguf")

    values, tensors = read_back(tmp_path / "lora.gguf")
    assert (4, 256) == tensors["blk.1.ffn_up.weight.lora_b"].shape[::-1]
    for path, module in modules.items():
        _, _, layer, inner = path.split(".", 3)
        np.testing.assert_allclose(
            module.scale * (module.b @ module.a),
            applied(values, tensors, f"blk.{layer}.{PLACES[inner]}"),
            atol=1e-6,
        )


def test_an_adapter_without_effect_stays_one(qwen3: Path, peft_a: Path, tmp_path: Path) -> None:
    """An alpha of 0 would mean "no alpha", a scale of 1, to llama.cpp."""
    source = Path(shutil.copytree(peft_a, tmp_path / "peft"))
    config = json.loads((source / peft.CONFIG).read_text())
    (source / peft.CONFIG).write_text(json.dumps(config | {"lora_alpha": 0}))

    gguf_lora.convert(source, qwen3, tmp_path / "lora.gguf")

    values, tensors = read_back(tmp_path / "lora.gguf")
    assert values["adapter.lora.alpha"] != 0
    assert 0 == np.abs(applied(values, tensors, "blk.0.ffn_up")).max()


def adapter_of(path: str, folder: Path, *, outputs: int = 64) -> Path:
    """Write an adapter of one module."""
    folder.mkdir()
    module = peft.LoraModule(np.ones((2, 16), np.float32), np.ones((outputs, 2), np.float32), 1.0)
    peft.write(peft.Adapter(peft.LoraConfig(2, 2.0), {path: module}), folder)
    return folder


def base_of(folder: Path, **config: Any) -> Path:
    """Write a base's config."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("path", "config", "says"),
    [
        ("model.layers.0.mlp.up_proj", {"model_type": "mamba"}, "adapters of mamba models can't"),
        ("model.layers.0.mlp.up_proj", {}, "adapters of None models can't"),
        ("model.layers.0.mlp.experts.3.up_proj", LLAMA, "have no place"),
        ("model.layers.2.mlp.up_proj", LLAMA, r"it adapts model\.layers\.2\.mlp\.up_proj"),
        ("lm_head", {**LLAMA, "tie_word_embeddings": True}, "it adapts lm_head"),
        ("model.layers.0.self_attn.q_proj", {**LLAMA, "num_attention_heads": 24}, "24 heads"),
    ],
)
def test_what_llama_cpp_has_no_place_for_is_refused(
    path: str, config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """Unknown models, experts, blocks too many, and a head that is the embedding."""
    source, base = adapter_of(path, tmp_path / "peft"), base_of(tmp_path / "base", **config)

    with pytest.raises(InvalidAdapter, match=says):
        gguf_lora.convert(source, base, tmp_path / "lora.gguf")

    assert {"peft", "base"} == {each.name for each in tmp_path.iterdir()}


def test_a_head_of_its_own_is_converted(tmp_path: Path) -> None:
    """Where the base has one."""
    source = adapter_of("lm_head", tmp_path / "peft")
    base = base_of(tmp_path / "base", **LLAMA, tie_word_embeddings=False)

    gguf_lora.convert(source, base, tmp_path / "lora.gguf")

    assert {"output.weight.lora_a", "output.weight.lora_b"} == set(
        read_back(tmp_path / "lora.gguf")[1]
    )


def test_a_head_that_is_tied_without_a_word_is_refused(tmp_path: Path) -> None:
    """The configs of Gemma leave it to the library; the weights have no head."""
    from safetensors.numpy import save_file

    source = adapter_of("lm_head", tmp_path / "peft")
    base = base_of(tmp_path / "base", **{**LLAMA, "model_type": "gemma3_text"})
    save_file(
        {"model.embed_tokens.weight": np.ones((64, 16), np.float32)}, base / "model.safetensors"
    )

    with pytest.raises(InvalidAdapter, match="it adapts lm_head"):
        gguf_lora.convert(source, base, tmp_path / "lora.gguf")


@pytest.mark.parametrize("missing", ["num_hidden_layers", "num_attention_heads"])
def test_a_config_that_lacks_a_number_is_said_clearly(missing: str, tmp_path: Path) -> None:
    """Without it the order of rows is not known."""
    config = {key: value for key, value in LLAMA.items() if key != missing}
    source = adapter_of("model.layers.0.self_attn.q_proj", tmp_path / "peft")

    with pytest.raises(InvalidBase, match=missing):
        gguf_lora.convert(source, base_of(tmp_path / "base", **config), tmp_path / "lora.gguf")


def test_what_does_not_reach_the_disk_is_not_there(
    qwen3: Path, peft_a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name without its bytes, after a power cut, would be taken for a converted version."""

    def fail(_: int) -> None:
        assert not (tmp_path / "lora.gguf").exists()
        raise OSError(errno.EIO, "the disk fails")

    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(OSError, match="the disk fails"):
        gguf_lora.convert(peft_a, qwen3, tmp_path / "lora.gguf")

    assert [] == [*tmp_path.iterdir()]


def test_a_file_is_never_written_again(qwen3: Path, peft_a: Path, tmp_path: Path) -> None:
    """And a conversion that fails leaves none."""
    (tmp_path / "lora.gguf").write_bytes(b"another version's")

    with pytest.raises(FileExistsError):
        gguf_lora.convert(peft_a, qwen3, tmp_path / "lora.gguf")

    assert b"another version's" == (tmp_path / "lora.gguf").read_bytes()
    assert ["lora.gguf"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize("model_type", sorted(gguf_lora.MODEL_TYPES))
def test_every_model_type_has_places_for_its_layers(model_type: str) -> None:
    """llama.cpp's names are there for attention, which every one of them has."""
    architecture = gguf_lora._ARCHITECTURES[model_type]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.name], 2)

    fused = model_type == "phi3"
    for inner in ("qkv_proj",) if fused else ("q_proj", "k_proj", "v_proj"):
        name = names.get_name(f"model.layers.1.self_attn.{inner}")
        assert f"blk.1.attn_{inner.removesuffix('_proj')}" == name
