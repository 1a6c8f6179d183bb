"""Importing adapters that others made: what fits comes in, and what doesn't is refused by name."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strop.adapters import peft
from strop.adapters.importing import bring_in, check_import
from strop.adapters.peft import AdapterNotFound, InvalidAdapter


@pytest.fixture
def foreign(peft_a: Path, tmp_path: Path) -> Path:
    """A writable copy of an adapter of rank 8, as someone else might give it."""
    return Path(shutil.copytree(peft_a, tmp_path / "foreign"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty folder to copy to."""
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / peft.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / peft.WEIGHTS)
    change(tensors)
    save_file(
        {name: np.ascontiguousarray(each) for name, each in tensors.items()}, folder / peft.WEIGHTS
    )


def test_an_adapter_is_copied_by_name(qwen3: Path, foreign: Path, target: Path) -> None:
    """The two files as they are, and nothing of what else lies there."""
    (foreign / "adapter_model.bin").write_bytes(b"a pickle")
    (foreign / "optimizer.pt").write_bytes(b"another")
    (foreign / "checkpoint-7").mkdir()
    (foreign / "notes").symlink_to("/etc/hostname")

    bring_in(foreign, target, qwen3, max_rank=8)

    assert {peft.CONFIG, peft.WEIGHTS} == {path.name for path in target.iterdir()}
    for name in (peft.CONFIG, peft.WEIGHTS):
        assert (foreign / name).read_bytes() == (target / name).read_bytes()


def test_a_quantised_base_is_compared_too(qwen3_4bit: Path, foreign: Path) -> None:
    """Its layers have the sizes of the plain ones."""
    check_import(foreign, qwen3_4bit, max_rank=8)


def test_without_a_base_only_the_adapter_itself_is_checked(foreign: Path) -> None:
    """The engine finds out the rest."""
    check_import(foreign, None, max_rank=8)


def widen(tensors: dict[str, np.ndarray]) -> None:
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    tensors[name] = np.pad(tensors[name], ((0, 0), (0, 64)))


def add_block(tensors: dict[str, np.ndarray]) -> None:
    for name in [*tensors]:
        if ".layers.0." in name:
            tensors[name.replace(".layers.0.", ".layers.3.")] = tensors[name]


def add_router(tensors: dict[str, np.ndarray]) -> None:
    prefix = "base_model.model.model.layers.0.mlp.gate"
    tensors[f"{prefix}.lora_A.weight"] = np.ones((8, 128), np.float32)
    tensors[f"{prefix}.lora_B.weight"] = np.ones((4, 8), np.float32)


def leave_out_the_head(tensors: dict[str, np.ndarray]) -> None:
    for name in [*tensors]:
        tensors[name.replace("model.model.layers", "model.layers")] = tensors.pop(name)


def poison(tensors: dict[str, np.ndarray]) -> None:
    next(iter(tensors.values()))[0, 0] = math.nan


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (widen, "up_proj is adapted as a layer of 192 inputs and 256 outputs"),
        (add_block, r"adapts model\.layers\.3\.mlp\.down_proj, which the base .* doesn't have"),
        (leave_out_the_head, "which is model.layers.0.mlp.down_proj in the base"),
        (add_router, r"adapts model\.layers\.0\.mlp\.gate, which"),
        (poison, "NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    qwen3: Path,
    foreign: Path,
    target: Path,
    change: Callable[[dict[str, np.ndarray]], None],
    says: str,
) -> None:
    """Another model's names or sizes, and numbers that are none."""
    change_tensors(foreign, change)

    with pytest.raises(InvalidAdapter, match=says):
        bring_in(foreign, target, qwen3, max_rank=8)


def test_another_models_adapter_is_refused(tmp_path: Path, foreign: Path) -> None:
    """Of the same names and other sizes: the message says both."""
    from safetensors.numpy import save_file

    sizes = {"q_proj": (64, 64), "k_proj": (64, 64), "v_proj": (64, 64), "o_proj": (64, 64)}
    other = {
        f"model.layers.{n}.self_attn.{name}.weight": sizes[name] for name in sizes for n in range(3)
    }
    other |= {
        f"model.layers.{n}.mlp.{name}_proj.weight": (64, 64)
        for name in ("up", "gate", "down")
        for n in range(3)
    }
    save_file(
        {name: np.zeros(size, np.float32) for name, size in other.items()},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')

    with pytest.raises(InvalidAdapter, match="was it trained on another model"):
        check_import(foreign, tmp_path, max_rank=8)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"peft_type": "LOHA"}, "peft_type"),
    ],
)
def test_what_is_not_plain_lora_is_refused(
    qwen3: Path, foreign: Path, changes: dict[str, Any], says: str
) -> None:
    """By the name of the setting."""
    change_config(foreign, **changes)

    with pytest.raises(InvalidAdapter, match=says):
        check_import(foreign, qwen3, max_rank=8)


def test_a_rank_beyond_the_engines_is_refused(qwen3: Path, foreign: Path) -> None:
    """Both are said."""
    with pytest.raises(InvalidAdapter, match="its rank is 8, the engine takes 7"):
        check_import(foreign, qwen3, max_rank=7)


def only_pickle(folder: Path) -> None:
    (folder / peft.WEIGHTS).rename(folder / "adapter_model.bin")


def truncate(folder: Path) -> None:
    data = (folder / peft.WEIGHTS).read_bytes()
    (folder / peft.WEIGHTS).write_bytes(data[:-1])


def link(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).rename(folder / "original")
        (folder / name).symlink_to(folder / "original")

    return change


def dangle(folder: Path) -> None:
    (folder / peft.WEIGHTS).unlink()
    (folder / peft.WEIGHTS).symlink_to(folder / "nowhere")


def make_folder(folder: Path) -> None:
    (folder / peft.WEIGHTS).unlink()
    (folder / peft.WEIGHTS).mkdir()


def make_pipe(folder: Path) -> None:
    (folder / peft.WEIGHTS).unlink()
    os.mkfifo(folder / peft.WEIGHTS)


def swell(folder: Path) -> None:
    os.truncate(folder / peft.WEIGHTS, 16 * 2**30 + 1)


def swell_config(folder: Path) -> None:
    os.truncate(folder / peft.CONFIG, 2**20 + 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (only_pickle, "pickle, which is never loaded"),
        (truncate, "truncated"),
        (link(peft.WEIGHTS), "adapter_model.safetensors is a link"),
        (link(peft.CONFIG), "adapter_config.json is a link"),
        (dangle, "adapter_model.safetensors is a link"),
        (make_folder, "not a plain file"),
        (make_pipe, "not a plain file"),
        (swell, "bytes long; expected 17179869184 at most"),
        (swell_config, "adapter_config.json is 1048577 bytes long"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused(
    qwen3: Path, foreign: Path, target: Path, change: Callable[[Path], None], says: str
) -> None:
    """Pickles, cut off files, links, folders, pipes and absurd sizes, before they are read."""
    change(foreign)

    with pytest.raises(InvalidAdapter, match=says):
        bring_in(foreign, target, qwen3, max_rank=8)
    with pytest.raises(InvalidAdapter, match=says):
        check_import(foreign, qwen3, max_rank=8)


def in_hub_cache(foreign: Path, cache: Path, blobs: str) -> Path:
    """Return a snapshot with the files of `foreign`, as links to a folder beside the snapshots."""
    snapshot = cache / "models--org--lora" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / blobs).mkdir()
    for name in (peft.CONFIG, peft.WEIGHTS):
        (foreign / name).rename(snapshot.parents[1] / blobs / f"digest of {name}")
        (snapshot / name).symlink_to(Path("..") / ".." / blobs / f"digest of {name}")
    return snapshot


def test_what_the_hubs_cache_holds_comes_in(
    qwen3: Path, foreign: Path, target: Path, tmp_path: Path
) -> None:
    """Where `hf download` says that it is: a folder of links to the cache's blobs."""
    snapshot = in_hub_cache(foreign, tmp_path / "hub", "blobs")

    bring_in(snapshot, target, qwen3, max_rank=8)

    check_import(snapshot, qwen3, max_rank=8)
    for name in (peft.CONFIG, peft.WEIGHTS):
        assert not (target / name).is_symlink()
        assert (snapshot / name).read_bytes() == (target / name).read_bytes()


def test_a_link_out_of_the_hubs_cache_is_refused(
    qwen3: Path, foreign: Path, target: Path, tmp_path: Path
) -> None:
    """As anywhere else."""
    snapshot = in_hub_cache(foreign, tmp_path / "hub", "elsewhere")

    with pytest.raises(InvalidAdapter, match="is a link"):
        bring_in(snapshot, target, qwen3, max_rank=8)


@pytest.mark.parametrize("name", [peft.CONFIG, peft.WEIGHTS])
def test_what_is_not_there_is_told_apart(
    qwen3: Path, foreign: Path, target: Path, name: str
) -> None:
    """The message names the folder that was asked for, not the copy."""
    (foreign / name).unlink()

    with pytest.raises(AdapterNotFound, match=str(foreign)):
        bring_in(foreign, target, qwen3, max_rank=8)


def test_ranks_and_scales_of_their_own_are_folded(qwen3: Path, foreign: Path, target: Path) -> None:
    """Engines that read one rank and one alpha from the config would serve it wrongly."""
    change_config(foreign, alpha_pattern={"q_proj": 32})
    before = peft.read(foreign)

    bring_in(foreign, target, qwen3, max_rank=8)

    after = peft.read(target)
    assert 8 == after.config.rank
    assert ({}, {}) == (after.config.rank_pattern, after.config.alpha_pattern)
    assert {2.0} == {module.scale for module in after.modules.values()}
    for path, module in before.modules.items():
        np.testing.assert_allclose(
            module.scale * module.b, after.modules[path].scale * after.modules[path].b, rtol=1e-6
        )


def add_embedding(tensors: dict[str, np.ndarray]) -> None:
    prefix = "base_model.model.model.embed_tokens.lora_embedding"
    tensors[f"{prefix}_A"] = np.ones((8, 1280), np.float32)
    tensors[f"{prefix}_B"] = np.ones((128, 8), np.float32)


def add_head(tensors: dict[str, np.ndarray]) -> None:
    prefix = "base_model.model.lm_head"
    tensors[f"{prefix}.lora_A.weight"] = np.ones((8, 128), np.float32)
    tensors[f"{prefix}.lora_B.weight"] = np.ones((1280, 8), np.float32)


def test_what_some_engine_serves_comes_in(qwen3: Path, foreign: Path, target: Path) -> None:
    """An adapted embedding, and a head that shares its weights with it."""
    change_tensors(foreign, add_embedding)
    change_tensors(foreign, add_head)

    bring_in(foreign, target, qwen3, max_rank=8)

    _, shapes = peft.read_shapes(target)
    assert {"model.embed_tokens", "lm_head"} < set(shapes)


def test_single_experts_come_in(tmp_path: Path, target: Path) -> None:
    """Where the base's files have them as layers of their own."""
    from safetensors.numpy import save_file

    path = "model.layers.0.mlp.experts.3.up_proj"
    base, source = tmp_path / "base", tmp_path / "source"
    base.mkdir()
    source.mkdir()
    save_file({f"{path}.weight": np.zeros((32, 16), np.float32)}, base / "model.safetensors")
    (base / "config.json").write_text('{"model_type": "qwen3_moe"}')
    module = peft.LoraModule(np.ones((2, 16), np.float32), np.ones((32, 2), np.float32), 1.0)
    peft.write(peft.Adapter(peft.LoraConfig(2, 2.0), {path: module}), source)

    bring_in(source, target, base, max_rank=8)

    assert {path} == set(peft.read_shapes(target)[1])


def test_blocks_may_be_called_otherwise_in_memory_than_on_disk(
    tmp_path: Path, target: Path
) -> None:
    """As in models of text and images; sizes still have to fit."""
    from safetensors.numpy import save_file

    base = tmp_path / "base"
    base.mkdir()
    save_file(
        {
            "language_model.model.layers.0.self_attn.q_proj.weight": np.zeros((32, 16), np.float32),
            "vision_tower.encoder.layers.0.self_attn.q_proj.weight": np.zeros((8, 8), np.float32),
        },
        base / "model.safetensors",
    )
    (base / "config.json").write_text("{}")

    for outputs, fits in ((32, True), (33, False)):
        source, to = tmp_path / f"source-{outputs}", tmp_path / f"to-{outputs}"
        source.mkdir()
        to.mkdir()
        module = peft.LoraModule(
            np.ones((2, 16), np.float32), np.ones((outputs, 2), np.float32), 1.0
        )
        path = "model.language_model.layers.0.self_attn.q_proj"
        peft.write(peft.Adapter(peft.LoraConfig(2, 2.0), {path: module}), source)
        if fits:
            bring_in(source, to, base, max_rank=8)
        else:
            with pytest.raises(InvalidAdapter, match="16 inputs and 33 outputs"):
                bring_in(source, to, base, max_rank=8)
