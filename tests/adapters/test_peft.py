"""Reading PEFT LoRA folders, against peft itself and against broken ones."""

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strop.adapters import peft, tensor_file


@pytest.fixture
def copy_of_a(peft_a: Path, tmp_path: Path) -> Path:
    """A writable copy of an adapter."""
    return Path(shutil.copytree(peft_a, tmp_path / "adapter"))


def change_config(folder: Path, **changes: Any) -> None:
    """Write the folder's config with other settings."""
    path = folder / peft.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    """Return the folder's tensors as the safetensors library reads them."""
    from safetensors.numpy import load_file

    found: dict[str, np.ndarray] = load_file(folder / peft.WEIGHTS)
    return found


def write_tensors(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write other tensors into the folder."""
    from safetensors.numpy import save_file

    save_file(tensors, folder / peft.WEIGHTS)


def test_tensors_are_those_that_safetensors_reads(peft_a: Path) -> None:
    """Each module has its A and B, by the base's path, and no module is missing."""
    adapter = peft.read(peft_a)

    tensors = tensors_of(peft_a)
    assert len(tensors) == 2 * len(adapter.modules)
    assert 3 * 7 == len(adapter.modules)
    for path, module in adapter.modules.items():
        np.testing.assert_array_equal(
            tensors[f"base_model.model.{path}.lora_A.weight"], module.a, strict=True
        )
        np.testing.assert_array_equal(
            tensors[f"base_model.model.{path}.lora_B.weight"], module.b, strict=True
        )
    assert "model.layers.0.self_attn.q_proj" in adapter.modules


def test_the_scale_is_alpha_over_rank_or_its_root(peft_a: Path, peft_c: Path) -> None:
    """Plain LoRA: 16 / 8 = 2. Rank-stabilised: 16 / sqrt(16) = 4."""
    assert {2.0} == {module.scale for module in peft.read(peft_a).modules.values()}
    assert {4.0} == {module.scale for module in peft.read(peft_c).modules.values()}


def test_only_the_adapted_layers_are_there(peft_b: Path) -> None:
    """An adapter of two projections in two blocks has four modules."""
    assert [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
        "model.layers.2.self_attn.q_proj",
        "model.layers.2.self_attn.v_proj",
    ] == [*peft.read(peft_b).modules]


def test_patterns_give_modules_their_own_rank_and_alpha(copy_of_a: Path) -> None:
    """`rank_pattern` and `alpha_pattern` match the ends of paths, as in peft."""
    tensors = tensors_of(copy_of_a)
    for name in [*tensors]:
        if ".layers.1.mlp.up_proj." in name:
            tensors[name] = np.ascontiguousarray(
                tensors[name][:4] if "lora_A" in name else tensors[name][:, :4]
            )
    write_tensors(copy_of_a, tensors)
    change_config(
        copy_of_a, rank_pattern={r"layers\.1\.mlp\.up_proj": 4}, alpha_pattern={"q_proj": 32}
    )

    modules = peft.read(copy_of_a).modules

    assert (4, 16 / 4) == (
        modules["model.layers.1.mlp.up_proj"].a.shape[0],
        modules["model.layers.1.mlp.up_proj"].scale,
    )
    assert 32 / 8 == modules["model.layers.2.self_attn.q_proj"].scale
    assert 16 / 8 == modules["model.layers.2.self_attn.k_proj"].scale


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_exactly(copy_of_a: Path, dtype: str) -> None:
    """Every float16 and bfloat16 value is a float32 value, and is read as that."""
    import torch
    from safetensors.torch import load_file, save_file

    halves = {
        name: tensor.to(getattr(torch, dtype))
        for name, tensor in load_file(copy_of_a / peft.WEIGHTS).items()
    }
    save_file(halves, copy_of_a / peft.WEIGHTS)

    adapter = peft.read(copy_of_a)

    assert len(halves) == 2 * len(adapter.modules)
    for path, module in adapter.modules.items():
        expected = halves[f"base_model.model.{path}.lora_A.weight"].float().numpy()
        np.testing.assert_array_equal(expected, module.a, strict=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"r": 0}, "r must be"),
        ({"r": 4}, "r = 4"),
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"lora_alpha": math.nan}, "lora_alpha"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"lora_alpha": 1e39}, "lora_alpha must be a number within float32"),
        ({"use_qalora": True}, "use_qalora"),
        ({"use_what_peft_adds_next": {"block_size": 4}}, "use_what_peft_adds_next"),
        ({"kasa_config": {}}, "kasa_config"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern"),
        ({"rank_pattern": {"(a+)+": 4}}, "may take too long"),
        ({"rank_pattern": {"a*b*c*": 4}}, "may take too long"),
        ({"rank_pattern": {"q" * 501: 4}}, "may take too long"),
        ({"rank_pattern": {"a?" * 40 + "a" * 40: 4}}, "may take too long"),
        ({"alpha_pattern": {"(a|a)" * 40: 4}}, "may take too long"),
        ({"alpha_pattern": {f".*.*x{n}": 4 for n in range(17)}}, "may take too long"),
        ({"rank_pattern": {"a{99999999999}": 4}}, "the broken expression"),
        ({"alpha_pattern": {str(n): 4 for n in range(4097)}}, "at most 4096"),
        ({"rank_pattern": []}, None),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(
    copy_of_a: Path, changes: dict[str, Any], says: str | None
) -> None:
    """A setting that changes what the weights mean is refused; an empty one is not."""
    change_config(copy_of_a, **changes)

    if says is None:
        assert peft.read(copy_of_a).modules
    else:
        with pytest.raises(peft.InvalidAdapter, match=says):
            peft.read(copy_of_a)


def remove_b(tensors: dict[str, np.ndarray]) -> None:
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]


def poison(tensors: dict[str, np.ndarray]) -> None:
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"][3, 3] = math.nan


def overflow(tensors: dict[str, np.ndarray]) -> None:
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"][0, 0] = math.inf


def flatten(tensors: dict[str, np.ndarray]) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    tensors[name] = tensors[name].reshape(-1)


def add_embedding(tensors: dict[str, np.ndarray]) -> None:
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = np.zeros((8, 4), np.float32)


def add_whole_embedding(tensors: dict[str, np.ndarray]) -> None:
    add_embedding(tensors)
    tensors["base_model.model.model.embed_tokens.lora_embedding_B"] = np.zeros((4, 8), np.float32)


def adapt_twice(tensors: dict[str, np.ndarray]) -> None:
    add_whole_embedding(tensors)
    tensors["base_model.model.model.embed_tokens.lora_A.weight"] = np.zeros((8, 4), np.float32)


def rename(tensors: dict[str, np.ndarray]) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    tensors["transformer.q_proj.lora_A.weight"] = tensors.pop(name)


def use_doubles(tensors: dict[str, np.ndarray]) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    tensors[name] = tensors[name].astype(np.float64)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (remove_b, "has no lora_B"),
        (poison, "NaN or infinity"),
        (overflow, "NaN or infinity"),
        (flatten, "expected a matrix"),
        (add_embedding, "has no lora_B"),
        (add_whole_embedding, "the embedding model.embed_tokens"),
        (adapt_twice, "as a linear layer and as an embedding"),
        (rename, "unexpected tensor"),
        (use_doubles, "F64"),
        (dict.clear, "doesn't contain tensors"),
    ],
)
def test_wrong_tensors_are_refused(
    copy_of_a: Path, change: Callable[[dict[str, np.ndarray]], None], says: str
) -> None:
    """Tensors that can't be served are named before any engine sees them."""
    tensors = tensors_of(copy_of_a)
    change(tensors)
    write_tensors(copy_of_a, tensors)

    with pytest.raises(peft.InvalidAdapter, match=says):
        peft.read(copy_of_a)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 5000, -1])
def test_a_truncated_file_is_refused(copy_of_a: Path, kept: int) -> None:
    """Wherever the file is cut off, it is noticed."""
    path = copy_of_a / peft.WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(peft.InvalidAdapter):
        peft.read(copy_of_a)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [1, 1], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [1, -1], "data_offsets": [0, -4]}}',
        b'{"a": {"dtype": "F32", "shape": ["x", 1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": [1, 1], "data_offsets": ["0", "4"]}}',
        b'{"a": {"dtype": "F32", "shape": [1e999, 1], "data_offsets": [0, 4]}}',
    ],
)
def test_a_lying_header_is_refused(copy_of_a: Path, header: bytes) -> None:
    """Offsets and shapes that don't fit the file are an error of ours, not a crash."""
    (copy_of_a / peft.WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))

    with pytest.raises(peft.InvalidAdapter):
        peft.read(copy_of_a)


def test_a_header_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    """Its JSON may take 25 times its size, and no other work is done meanwhile."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**24 + 1) + b"{}".ljust(2**24 + 1))

    with pytest.raises(tensor_file.BrokenTensorFile, match="a header of 16777217 bytes"):
        tensor_file.read_header(path)


@pytest.mark.parametrize("numbers", ['"shape": [2.0, 1]', '"data_offsets": [0.0, 8.0]'])
def test_sizes_and_places_are_whole_numbers(tmp_path: Path, numbers: str) -> None:
    """A file can't be read from its byte 0.0 on, which would be found out only there."""
    header = f'{{"a": {{"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8], {numbers}}}}}'
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(8))

    with pytest.raises(tensor_file.BrokenTensorFile, match="broken header"):
        tensor_file.read_header(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [("[" * 100_000, "not JSON"), ("[]", "must be a JSON object"), (" " * 2**20 + "{}", "at most")],
)
def test_a_hostile_config_is_refused(copy_of_a: Path, text: str, says: str) -> None:
    """Nesting without end, other JSON, and a megabyte of it are errors of ours, not crashes."""
    (copy_of_a / peft.CONFIG).write_text(text)

    with pytest.raises(peft.InvalidAdapter, match=says):
        peft.read(copy_of_a)


@pytest.mark.parametrize(
    "changes",
    [
        {"modules_to_save": ["x" * 100_000]},
        {"peft_type": "x" * 100_000},
        {"use_" + "x" * 100_000: True},
        {"use_\ud800\x1b": True},
        {"rank_pattern": "\ud800" * 100_000},
        {"r": "x" * 100_000},
    ],
)
def test_an_error_is_no_longer_than_a_line(copy_of_a: Path, changes: dict[str, Any]) -> None:
    """What a stranger wrote is kept with the version, and shown in lists."""
    change_config(copy_of_a, **changes)

    with pytest.raises(peft.InvalidAdapter) as caught:
        peft.read(copy_of_a)

    assert len(str(caught.value)) < 250
    assert str(caught.value).isprintable()


def test_a_name_without_end_is_refused(copy_of_a: Path) -> None:
    """No layer of any model is called so, and it would stand in every message."""
    tensors = tensors_of(copy_of_a)
    write_tensors(copy_of_a, {**tensors, "x" * 10_000: next(iter(tensors.values()))})

    with pytest.raises(peft.InvalidAdapter) as caught:
        peft.read(copy_of_a)

    assert "a name of 10000 characters" in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("x\x1b]0;y\x07", "F32"),
        ("x\ud800", "F32"),
        ("base_model.model.x\x1b.lora_A.weight", "F32"),
        ("base_model.model.x.lora_A.weight", "\x1b\ud800" * 10_000),
    ],
)
def test_what_is_no_text_is_not_repeated(copy_of_a: Path, name: str, dtype: str) -> None:
    """It could steer the terminal that shows the error, or not be sent at all."""
    weights = copy_of_a / peft.WEIGHTS
    header = json.dumps({name: {"dtype": dtype, "shape": [2], "data_offsets": [0, 8]}}).encode()
    weights.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))

    with pytest.raises(peft.InvalidAdapter) as caught:
        peft.read(copy_of_a)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_a_pickle_is_never_read(copy_of_a: Path) -> None:
    """A folder with only a pickle is refused with the way out, and the pickle isn't opened."""
    (copy_of_a / peft.WEIGHTS).unlink()
    (copy_of_a / "adapter_model.bin").write_bytes(b"not even a pickle")

    with pytest.raises(peft.InvalidAdapter, match="pickle"):
        peft.read(copy_of_a)


def test_what_is_not_there_is_told_apart(copy_of_a: Path, tmp_path: Path) -> None:
    """A missing folder, config or weights file is `AdapterNotFound`."""
    (tmp_path / "empty").mkdir()
    (copy_of_a / peft.WEIGHTS).unlink()

    for folder in (tmp_path / "nowhere", tmp_path / "empty", copy_of_a):
        with pytest.raises(peft.AdapterNotFound):
            peft.read(folder)


def assert_equal(expected: peft.Adapter, adapter: peft.Adapter) -> None:
    """Compare two adapters, every weight exactly."""
    assert [*expected.modules] == [*adapter.modules]
    for path, module in expected.modules.items():
        np.testing.assert_array_equal(module.a, adapter.modules[path].a, strict=True)
        np.testing.assert_array_equal(module.b, adapter.modules[path].b, strict=True)
        assert math.isclose(module.scale, adapter.modules[path].scale, rel_tol=1e-12)


@pytest.fixture(params=["peft_a", "peft_b", "peft_c"])
def any_peft(request: pytest.FixtureRequest) -> Path:
    """Each of the adapters: all layers, some layers, rank-stabilised."""
    return Path(request.getfixturevalue(request.param))


def test_what_is_written_is_read_again(any_peft: Path, tmp_path: Path) -> None:
    """Weights, scales and what the config says; twice written, byte for byte the same."""
    adapter = peft.read(any_peft)
    folders = [tmp_path / name for name in ("one", "two")]

    for folder in folders:
        folder.mkdir()
        peft.write(adapter, folder, base_model="some/base")

    assert_equal(adapter, peft.read(folders[0]))
    assert "some/base" == peft.read_config(folders[0]).base_model
    for name in (peft.CONFIG, peft.WEIGHTS):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_peft_itself_loads_what_is_written(qwen3: Path, any_peft: Path, tmp_path: Path) -> None:
    """Its logprobs are those of the adapter that was read; nothing is missing or left over."""
    import models

    peft.write(peft.read(any_peft), tmp_path)

    ids = [7, 77, 777, 70, 700, 17, 170]
    assert models.reference_logprobs(qwen3, any_peft, ids[:2], ids[2:]) == pytest.approx(
        models.reference_logprobs(qwen3, tmp_path, ids[:2], ids[2:]), abs=1e-6
    )


def uneven(adapter: peft.Adapter) -> peft.Adapter:
    """Return an adapter with ranks and alphas of their own in some modules."""
    modules = dict(adapter.modules)
    up = modules["model.layers.1.mlp.up_proj"]
    modules["model.layers.1.mlp.up_proj"] = peft.LoraModule(up.a[:4], up.b[:, :4], 16 / 4)
    for path, module in modules.items():
        if path.endswith("q_proj"):
            modules[path] = peft.LoraModule(module.a, module.b, 32 / 8)
    config = peft.LoraConfig(
        8,
        16,
        rank_pattern={r"model\.layers\.1\.mlp\.up_proj": 4},
        alpha_pattern={"q_proj": 32},
    )
    return peft.Adapter(config, modules)


def test_patterns_are_written_and_peft_reads_them(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """An adapter with ranks and scales of its own modules computes the same, folded or not."""
    import models

    adapter = uneven(peft.read(peft_a))
    for name, each in (("as-it-is", adapter), ("folded", peft.folded(adapter))):
        (tmp_path / name).mkdir()
        peft.write(each, tmp_path / name)

    ids = [7, 77, 777, 70, 700, 17, 170]
    as_it_is, folded, plain = (
        models.reference_logprobs(qwen3, folder, ids[:2], ids[2:])
        for folder in (tmp_path / "as-it-is", tmp_path / "folded", peft_a)
    )
    assert as_it_is == pytest.approx(folded, abs=1e-5)
    assert as_it_is != pytest.approx(plain, abs=1e-2)


def test_folding_gives_one_rank_and_one_scale(peft_a: Path) -> None:
    """The commonest scale stays, so that most weights stay exactly as they are."""
    adapter = uneven(peft.read(peft_a))

    folded = peft.folded(adapter)

    assert (8, {}, {}) == (
        folded.config.rank,
        folded.config.rank_pattern,
        folded.config.alpha_pattern,
    )
    assert adapter.modules.keys() == folded.modules.keys()
    for path, module in folded.modules.items():
        before = adapter.modules[path]
        assert (8, 8, 2.0) == (module.a.shape[0], module.b.shape[1], module.scale)
        np.testing.assert_allclose(
            before.scale * (before.b @ before.a), module.scale * (module.b @ module.a), atol=1e-6
        )
        if before.scale == 2.0 and before.a.shape[0] == 8:
            np.testing.assert_array_equal(before.b, module.b)


def test_embeddings_fold_as_layers_do() -> None:
    """To the one rank and the one scale of all, and each computes the same."""
    layer = peft.LoraModule(np.ones((1, 3), np.float32), np.ones((4, 1), np.float32), 2.0)
    embedding = peft.LoraModule(np.ones((2, 5), np.float32), np.ones((3, 2), np.float32), 1.0)
    config = peft.LoraConfig(1, 2.0, rank_pattern={"e": 2})

    folded = peft.folded(peft.Adapter(config, {"a": layer, "b": layer}, {"e": embedding}))

    found = folded.embeddings["e"]
    assert (2, 4.0, 2.0) == (folded.config.rank, folded.config.alpha, found.scale)
    assert [(2, 5), (3, 2)] == [found.a.shape, found.b.shape]
    assert 2.0 * found.b @ found.a == pytest.approx(embedding.b @ embedding.a)


def test_a_scale_of_nothing_folds_to_nothing() -> None:
    """An alpha of 0 switches a module off, and stays so."""
    ones = np.ones((2, 2), np.float32)
    modules = {
        "a": peft.LoraModule(ones, ones, 0.0),
        "b": peft.LoraModule(ones, ones, 0.0),
        "c": peft.LoraModule(ones, ones, 3.0),
    }

    folded = peft.folded(peft.Adapter(peft.LoraConfig(2, 0.0), modules))

    assert (3.0, 0.0, 1.0) == (
        folded.modules["a"].scale,
        folded.modules["a"].b.max(),
        folded.modules["c"].b.max(),
    )


def test_scales_too_far_apart_do_not_fold() -> None:
    """B would be infinite, which no check of the original's values can show."""
    config = peft.LoraConfig(1, 1e-3, alpha_pattern={"b": 1e38})
    module = np.full((1, 1), 2.0, np.float32)
    modules = {
        path: peft.LoraModule(module, module, config.scale_of(path)) for path in ("a", "b", "c")
    }

    with pytest.raises(peft.InvalidAdapter, match=r"b has a scale 1e\+41 times that of"):
        peft.folded(peft.Adapter(config, modules))


def test_a_scale_that_the_config_does_not_give_is_not_written(peft_a: Path, tmp_path: Path) -> None:
    """Read again it would be another; that is a mistake of the caller's."""
    adapter = peft.read(peft_a)
    wrong = peft.Adapter(peft.LoraConfig(8, 8), adapter.modules)

    with pytest.raises(ValueError, match="has scale"):
        peft.write(wrong, tmp_path)


def test_sizes_are_known_without_the_weights(copy_of_a: Path) -> None:
    """The header is enough: NaN among the weights is not noticed, and not looked for."""
    tensors = tensors_of(copy_of_a)
    poison(tensors)
    write_tensors(copy_of_a, tensors)

    config, shapes = peft.read_shapes(copy_of_a)

    assert 8 == config.rank
    assert (
        peft.ModuleShape(8, 128, 256, is_embedding=False) == (shapes["model.layers.0.mlp.up_proj"])
    )


def test_an_adapted_embedding_is_read_where_it_is_asked_for(
    copy_of_a: Path, tmp_path: Path
) -> None:
    """It stands apart from the linear layers, and is written again as an embedding."""
    tensors = tensors_of(copy_of_a)
    name = "base_model.model.model.embed_tokens.lora_embedding"
    tensors[f"{name}_A"] = np.ones((8, 1280), np.float32)
    tensors[f"{name}_B"] = np.ones((128, 8), np.float32)
    write_tensors(copy_of_a, tensors)

    adapter = peft.read(copy_of_a, with_embeddings=True)
    (tmp_path / "again").mkdir()
    peft.write(adapter, tmp_path / "again")

    assert ["model.embed_tokens"] == [*adapter.embeddings]
    assert "model.embed_tokens" not in adapter.modules
    again = peft.read(tmp_path / "again", with_embeddings=True)
    assert (8, 1280) == again.embeddings["model.embed_tokens"].a.shape
    assert_equal(adapter, again)
