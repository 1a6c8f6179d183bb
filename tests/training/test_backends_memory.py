"""The estimate of a run's memory, what is free, and what is said where it doesn't fit."""

import gc
import importlib.util
import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
from backend_cases import backend, kept_bytes, peak_bytes, pull, sequences
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from strop.configs import demo_model
from strop.training import memory, presets, room
from strop.training.backends import Choice, base_files, mlx_pieces, open_policy, torch_model, whole
from strop.training.backends.base import BackendUnavailable
from strop.training.backends.batch import MLP_ROWS
from strop.training.memory import GIB, Estimate
from strop.training.room import Room

__all__ = ["backend"]  # a fixture

CPU = Choice("torch", "cpu", "")
SMALL = Estimate(
    CPU,
    is_quantized=False,
    weights=1000,
    lora=100,
    runtime=10,
    per_token=5,
    per_row=0,
    max_rows=0,
    per_pair=0,
    max_pairs=0,
    per_logits=5,
    max_logits=1200,
)

EMPTY = replace(SMALL, weights=0, lora=0, runtime=0, per_token=0, per_logits=0)


def test_a_total_by_hand() -> None:
    """Base, LoRA and runtime, and a fifth more than activations and logits."""
    assert 1110 + 1.2 * (20 * 5 + 20 * 5) == SMALL.total(20, 20)
    # The logits come in chunks.
    assert 1110 + 1.2 * (1000 * 5 + 1200) == SMALL.total(1000, 1000)


def test_attention_scores_grow_with_the_longest_sequence() -> None:
    """Where they are kept, two sequences of 10 take less than one of 20."""
    scores = replace(EMPTY, per_pair=10, max_pairs=10**9)

    assert 2 * scores.total(20, 10) == scores.total(20, 20)


def test_what_comes_in_pieces_grows_up_to_one() -> None:
    """An MLP's activations, and the scores of an attention."""
    rows = replace(EMPTY, per_row=10, max_rows=15)
    pairs = replace(EMPTY, per_pair=10, max_pairs=2000)

    assert [120, 180, 180] == [rows.total(num, num) for num in (10, 15, 1000)]
    assert [1200, 2400, 2400] == [pairs.total(num, num) for num in (10, 15, 1000)]


@given(free=st.integers(0, 200_000), longest=st.integers(1, 500))
def test_the_largest_micro_batch_fits_and_one_more_token_does_not(free: int, longest: int) -> None:
    """Or none fits, where not even the longest sequence does."""
    most = SMALL.max_tokens(free, longest)

    if most:
        assert most >= longest
        assert SMALL.total(most, longest) <= free < SMALL.total(most + 1, longest)
    else:
        assert SMALL.total(longest, longest) > free


@given(free=st.integers(0, 200_000))
def test_the_longest_sequence_fits_and_a_longer_one_does_not(free: int) -> None:
    """By itself; none where not even the base does."""
    longest = SMALL.longest(free)

    assert SMALL.total(longest + 1, longest + 1) > free
    assert longest == 0 or SMALL.total(longest, longest) <= free


def test_where_memory_decides_a_conversation_may_have_a_little_less_than_fits() -> None:
    """And no more than the context, where that fits."""
    assert SMALL.longest(2000) == 74
    assert [74 * 9 // 10, 70] == [SMALL.longest_of(2000, num) for num in (75, 70)]


@pytest.mark.parametrize(("free", "expected"), [(300, (300, 300)), (10**9, (4096, 32_768))])
def test_there_is_room_for_what_is_free_and_no_more_than_is_wanted(
    free: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once up to what the preset wants; of one sequence up to the context."""
    needed = memory.estimate(demo_model(), CPU, rank=8)
    monkeypatch.setattr(memory, "free_bytes", lambda _: needed.total(free, free))
    preset = presets.load("balanced", base_files.BaseFiles(demo_model()).config)

    found = room.now(demo_model(), CPU, preset, quantize_base=False)

    assert Room(*expected) == found


@pytest.mark.parametrize("size", [0, 2**40])
def test_a_closed_policy_holds_no_weights(
    backend: str, llama: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpointed or not, they go at once: a GPU's memory is given back before any collection."""
    monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", size)
    policy: Any = open_policy(llama, backend=backend)
    policy.accumulate(sequences((5, 7)), pull)
    gc.collect()
    layer = weakref.ref(policy._net.model.model.layers[0].mlp.gate_proj)

    gc.disable()
    try:
        policy.close()
        is_held = layer() is not None
    finally:
        gc.enable()

    assert not is_held


# Importing torch and transformers takes seconds, so they are imported once: the first size is for
# a copy of the process, and the second one for the process itself.
FREED = """
import os, sys, torch
from pathlib import Path
from strop.training.backends import base_files, open_policy, torch_backend

base, first, second = sys.argv[1:]
if copy := os.fork():
    os.waitpid(copy, 0)
base_files._CHECKPOINTED_BYTES = int(second if copy else first)
policy = open_policy(Path(base), backend="torch")
# glibc maps what is this large by itself, and puts it into its heap from the second time on.
del (first := [torch.ones(7 * 2**20)])[:]
held = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before = held()
large = [(torch.ones(2**17), torch.ones(2**10)) for _ in range(320)]
small = [one for _, one in large]
del large
print(held() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc; glibc's heap alone has holes")
def test_what_torch_frees_goes_back_where_blocks_are_checkpointed(qwen3: Path) -> None:
    """Large arrays leave no holes in the heap, where smaller ones stay between them."""
    sizes = map(str, (0, 2**40))
    told = subprocess.check_output([sys.executable, "-c", FREED, str(qwen3), *sizes])

    checkpointed, whole = map(int, told.split())
    assert checkpointed < 2**23 < 2**26 < whole


@pytest.mark.parametrize(("before", "after"), [(2**40, 2**29), (2**20, 2**20)])
def test_mlx_keeps_little_of_what_it_has_freed(qwen3: Path, before: int, after: int) -> None:
    """Sequences of many lengths take what the longest one needs; a lower limit stays."""
    import mlx.core as mx

    original = mx.set_cache_limit(before)

    open_policy(qwen3, backend="mlx").close()

    assert after == mx.set_cache_limit(original)


def test_weights_count_as_they_are_held(qwen3: Path, qwen3_bf16: Path, qwen3_4bit: Path) -> None:
    """On a CPU torch holds float32, mlx what the files hold; in 4 bits only blocks shrink."""

    def weights(base: Path, backend: str, device: str, *, quantize_base: bool = False) -> int:
        chosen = Choice(backend, device, "")
        return memory.estimate(base, chosen, rank=8, quantize_base=quantize_base).weights

    whole = weights(qwen3, "torch", "cpu")
    assert whole == pytest.approx((qwen3 / "model.safetensors").stat().st_size, rel=0.01)
    assert whole == weights(qwen3_bf16, "torch", "cpu")
    assert whole / 2 == weights(qwen3_bf16, "torch", "cuda") == weights(qwen3_bf16, "mlx", "gpu")
    assert weights(qwen3_4bit, "mlx", "gpu") < whole / 5
    quantized = weights(qwen3_bf16, "torch", "cuda", quantize_base=True)
    assert weights(qwen3_bf16, "torch", "cuda") / 4 < quantized < whole / 2


def test_quantised_weights_are_counted_one_by_one(qwen3: Path, qwen3_4bit: Path) -> None:
    """Whatever they are packed into."""
    whole, packed = base_files.BaseFiles(qwen3), base_files.BaseFiles(qwen3_4bit)

    assert whole.num_weights == packed.num_weights


def test_each_layer_is_counted_by_the_bits_that_it_has(tmp_path: Path) -> None:
    """mlx-lm's mixed recipes give some layers more than the others."""
    quantization = {"bits": 4, "group_size": 32, "wide": {"bits": 8, "group_size": 32}}
    (tmp_path / "config.json").write_text(json.dumps({"quantization": quantization}))
    scales = np.ones((3, 2), np.float32)
    save_file(
        {
            "narrow.weight": np.zeros((3, 64 * 4 // 32), np.uint32),
            "wide.weight": np.zeros((3, 64 * 8 // 32), np.uint32),
            **{f"{name}.{each}": scales for name in ("narrow", "wide")
               for each in ("scales", "biases")},
            "norm.weight": np.ones(5, np.float32),
        },
        tmp_path / "model.safetensors",
    )  # fmt: skip

    assert 2 * 3 * 64 + 5 == base_files.BaseFiles(tmp_path).num_weights


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised by fp8"),
        ({"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}, "to 4 bits by MLX"),
    ],
)
def test_it_is_said_how_weights_are_held(
    tmp_path: Path, config: dict[str, object], said: str
) -> None:
    """By whom they were quantised; else their dtype."""
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert said in base_files.BaseFiles(tmp_path).precision


def test_a_lora_counts_once_for_each_copy(qwen3: Path) -> None:
    """Seven copies of float32: weights, gradients, moments, and versions to compare with."""
    found = memory.estimate(qwen3, CPU, rank=8)

    sides = (128 + 128) + 2 * (128 + 64) + (128 + 128) + 3 * (128 + 256)
    assert 7 * 4 * 8 * 3 * sides == found.lora


def test_the_estimate_is_near_to_what_torch_keeps(llama: Path) -> None:
    """More than what is kept for the backward pass, which adds its own, but not four times it."""
    kept = kept_bytes("torch", open_policy(llama, backend="torch"), sequences((5, 995)))

    needed = memory.estimate(llama, CPU, rank=8)
    grown = needed.total(1000, 1000) - needed.total(0, 1000)
    assert kept < grown < 4 * kept


def test_the_estimate_grows_as_the_peak_does(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a little faster, where blocks are checkpointed and compute in pieces."""
    monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", 0)
    for module in (memory, mlx_pieces, torch_model):
        monkeypatch.setattr(module, "MLP_ROWS", 32)
    for module in (memory, mlx_pieces):
        monkeypatch.setattr(module, "MOST_SCORES", 4 * 32 * 512)
    sizes = {"hidden_size": 80, "intermediate_size": 304, "head_dim": 32, "num_key_value_heads": 1}
    base = random_models.make(tmp_path, "Qwen3Config", **sizes)
    needed = memory.estimate(base, Choice(backend, "cpu", ""), rank=8)

    grown = (
        peak_bytes(backend, open_policy(base, backend=backend), sequences((8, length - 8)))
        for length in (256, 512)
    )

    measured = -next(grown) + next(grown)
    estimated = needed.total(512, 512) - needed.total(256, 256)
    assert measured < estimated < 2.5 * measured


@pytest.mark.parametrize(
    ("backend", "device", "is_quantized", "advised"),
    [
        ("torch", "cuda", False, "training.quantize_base = true"),
        ("torch", "cuda", True, "lower share of the GPU's memory"),
        ("torch", "cpu", False, 'training.device = "cuda"'),
        ("mlx", "gpu", False, "quantised to 4 bits"),
    ],
)
def test_what_to_set_where_it_does_not_fit(
    backend: str, device: str, is_quantized: bool, advised: str
) -> None:
    """The message has the figures, and what would help on this device."""
    needed = replace(
        EMPTY,
        chosen=Choice(backend, device, ""),
        is_quantized=is_quantized,
        weights=16 * GIB,
        lora=GIB,
        runtime=GIB,
        per_token=2**20,
    )

    message = needed.advice(12 * GIB, 2048)

    assert [True, False] == [needed.fits(free * GIB, 2048) for free in (24, 12)]
    assert advised in message
    assert "20.4 GiB" in message
    assert f"12.0 GiB are free on {device}" in message
    assert is_quantized is ("quantize_base" not in message) or device != "cuda"


def test_free_memory_of_this_machine() -> None:
    """There is some, and not more than a machine has."""
    assert 2**24 < memory.free_bytes("cpu") < 2**50


MEMINFO = "MemTotal:       16000 kB\nMemAvailable:    8000 kB\n"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8000 * 1024),
        ({"max": "max\n", "current": "5"}, 8000 * 1024),
        ({"max": "3000000\n", "current": "1000000\n"}, 2_000_000),
        ({"max": "3000000", "current": "1000000", "stat": "anon 1\ninactive_file 400000\n"},
         2_400_000),
        ({"max": "3000000", "current": "1000000",
          "stat": "inactive_file 4\ntotal_inactive_file 400000\n"}, 2_400_000),
        ({"max": "1000", "current": "2000"}, 0),
        ({"max": "99000000000", "current": "0"}, 8000 * 1024),
    ],
)  # fmt: skip
def test_a_containers_limit_counts(files: dict[str, str], free: int) -> None:
    """Free is what the machine has, but no more than the container may still take."""
    assert free == memory.parse_linux({"meminfo": MEMINFO, **files})


@pytest.mark.parametrize(
    ("folder", "limit", "used"),
    [("", "max", "current"), ("memory", "limit_in_bytes", "usage_in_bytes")],
    ids=["v2", "v1"],
)
def test_either_version_of_cgroups_has_the_limit(
    folder: str, limit: str, used: str, tmp_path: Path
) -> None:
    """Where a kernel has the one, it lacks the files of the other."""
    group = tmp_path / "sys/fs/cgroup" / folder
    texts = {limit: "3000000\n", used: "1000000\n", "stat": "inactive_file 400000\n"}
    for path, text in (
        (tmp_path / "proc/meminfo", MEMINFO),
        *((group / f"memory.{name}", text) for name, text in texts.items()),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert 2_400_000 == memory.parse_linux(memory.read_linux(tmp_path))


VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               100.
Pages active:                           90000.
Pages inactive:                            20.
Pages speculative:                          3.
Pages throttled:                            0.
Pages wired down:                        5000.
Pages purgeable:                            1.
"Translation faults":                12345678.
File-backed pages:                  {cached:6}.
Anonymous pages:                        70000.
"""


@pytest.mark.parametrize(("cached", "free"), [(15, 100 + 15), (60_000, 100 + 20 + 3)])
def test_free_pages_of_macos(cached: int, free: int) -> None:
    """Of the inactive ones, those that are no file's only go elsewhere; an active file's stay."""
    assert free * 16384 == memory.parse_vm_stat(VM_STAT.format(cached=cached))


@pytest.mark.parametrize(
    ("device", "metal", "free"),
    [("gpu", 1 << 40, 115 * 16384), ("gpu", 1 << 20, 1 << 20), ("cpu", 1 << 20, 115 * 16384)],
)
def test_on_a_macs_gpu_no_more_is_free_than_metal_gives_a_process(
    device: str, metal: int, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two thirds of an idle Mac's memory, or a little more; whatever else lies idle."""
    import mlx.core as mx

    told = subprocess.CompletedProcess([], 0, VM_STAT.format(cached=15))
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: told)
    monkeypatch.setattr(mx, "device_info", lambda _: {"max_recommended_working_set_size": metal})

    assert free == memory.free_bytes(device)


def test_torch_gets_no_more_of_a_macs_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks torch: mlx may not be there."""
    torch = pytest.importorskip("torch")
    told = subprocess.CompletedProcess([], 0, VM_STAT.format(cached=15))
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: told)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 1 << 20)

    assert 1 << 20 == memory.free_bytes("mps")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    """There is nothing to estimate."""
    with pytest.raises(BackendUnavailable, match=r"config\.json"):
        memory.estimate(tmp_path, CPU, rank=8)


WIDE = {"hidden_size": 32, "intermediate_size": 1024, "num_hidden_layers": 2}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("backend", "kind", "sizes", "num_sequences"),
    [
        ("mlx", "LlamaConfig", {}, 1),
        ("mlx", "LlamaConfig", {}, 4),
        ("mlx", "MixtralConfig", EXPERTS, 1),
        ("torch", "Lfm2Config",
         {"block_auto_adjust_ff_dim": False, "layer_types": ["full_attention"] * 2}, 1),
        ("torch", "LlamaConfig", {}, 4),
        ("torch", "GraniteMoeSharedConfig", {"shared_intermediate_size": 1024, **EXPERTS}, 1),
        ("torch", "RecurrentGemmaConfig", {"block_types": ["attention"]}, 1),
    ],
    indirect=["backend"],
)  # fmt: skip
def test_an_mlp_holds_one_piece_of_all_sequences(
    backend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    sizes: dict[str, Any],
    num_sequences: int,
) -> None:
    """By whatever name a block has it."""
    monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", 0)
    base = random_models.make(tmp_path, kind, **WIDE, **sizes)
    asked = sequences(*[(512 // num_sequences - 4, 4)] * num_sequences)
    peaks = []
    for rows in (64, 2048):
        for module in (mlx_pieces, torch_model):
            monkeypatch.setattr(module, "MLP_ROWS", rows)
        peaks.append(peak_bytes(backend, open_policy(base, backend=backend), asked))

    assert peaks[0] < 0.5 * peaks[1]


@pytest.mark.parametrize("num_sequences", [1, 4])
def test_mlx_holds_some_scores_forwards_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_sequences: int
) -> None:
    """Of all sequences and heads together."""
    import mlx.core as mx

    monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", 0)
    sizes = {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 4}
    base = random_models.make(
        tmp_path, "LlamaConfig", **sizes, intermediate_size=32, num_hidden_layers=1
    )
    asked = sequences(*[(800 // num_sequences - 4, 4)] * num_sequences)
    policy = open_policy(base, backend="mlx")
    peaks = []
    for most in (8 * 800 * 8, 2**40):
        monkeypatch.setattr(mlx_pieces, "MOST_SCORES", most)
        policy.logprobs(asked)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        policy.logprobs(asked)
        peaks.append(mx.get_peak_memory() - before)
        peaks.append(peak_bytes("mlx", policy, asked))

    assert peaks[0] < 0.4 * peaks[2]
    assert peaks[1] < 0.4 * peaks[3]


def test_what_an_estimate_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block where they are checkpointed, else all; more in 16 bits; scores that stay whole."""
    base = random_models.make(tmp_path / "plain", "Qwen3Config")
    mlx = Choice("mlx", "cpu", "")
    plain = memory.estimate(base, mlx, rank=8)
    monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", 0)
    saving = memory.estimate(base, mlx, rank=8)
    config = base / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "bfloat16"}))
    half = memory.estimate(base, mlx, rank=8)

    assert (plain.max_rows, saving.max_rows) == (sys.maxsize, MLP_ROWS)
    assert plain.per_row == 3 * saving.per_row
    assert plain.per_pair == 3 * saving.per_pair
    assert plain.max_pairs == 3 * saving.max_pairs
    assert saving.per_token == (36 + 3) * 128 * 4
    assert half.per_token == (50 + 3) * 128 * 2
    assert memory.estimate(base, CPU, rank=8).per_pair == 0


EAGER_KINDS = {
    "GptOssConfig": {"num_local_experts": 2, "num_experts_per_tok": 2},
    "Gemma2Config": {},
    "BloomConfig": {"n_layer": 3, "n_head": 8},
    "MptConfig": {"n_layers": 3, "n_heads": 8, "d_model": 64, "max_seq_len": 1024},
    "DeepseekV3Config": {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8,
                         "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 3,
                         "moe_intermediate_size": 16},
}  # fmt: skip


LINEAR = {"linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_num_key_heads": 4,
          "linear_num_value_heads": 8}  # fmt: skip


def test_linear_attention_counts_in_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as it takes, or a little more; not where a fused one is installed."""
    monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", 0)
    layers = ["linear_attention"] * 2 + ["full_attention"]
    base = random_models.make(tmp_path, "Qwen3_5TextConfig", layer_types=layers, **LINEAR)
    needed = memory.estimate(base, CPU, rank=8)
    policy = open_policy(base, backend="torch", device="cpu")

    grown = (peak_bytes("torch", policy, sequences((num - 8, 8))) for num in (512, 256))

    measured = next(grown) - next(grown)
    assert measured < needed.total(512, 512) - needed.total(256, 256) < 2.5 * measured
    cuda = Choice("torch", "cuda", "")
    chunked = memory.estimate(base, cuda, rank=8).per_token
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert chunked - memory.estimate(base, cuda, rank=8).per_token == 8 * (300 + 14 * 64) * 4


@pytest.mark.parametrize("kind", EAGER_KINDS)
def test_scores_count_where_torch_holds_them(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much as they take, or a little more."""
    monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", 0)
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 8}
    base = random_models.make(tmp_path, kind, **sizes, **EAGER_KINDS[kind])
    needed = memory.estimate(base, CPU, rank=8)
    policy = open_policy(base, backend="torch", device="cpu")

    grown = (peak_bytes("torch", policy, sequences((num - 8, 8))) for num in (512, 256))

    measured = next(grown) - next(grown)
    assert measured < needed.total(512, 512) - needed.total(256, 256) < 2.5 * measured


def test_models_that_hold_scores_in_torch_are_known() -> None:
    """As the installed transformers has them; what has no scores, or isn't a decoder, is left."""
    others = {
        "big_bird", "bigbird_pegasus", "blip", "falcon_mamba", "git", "got_ocr2", "mamba",
        "mamba2", "megatron-bert", "mvp", "prophetnet", "reformer", "rembert", "roformer", "rwkv",
        "trocr", "xlm", "xlnet", "xlstm",
    }  # fmt: skip
    from transformers.models.auto import configuration_auto, modeling_auto

    models = Path(configuration_auto.__file__).parents[1]

    def is_eager(model_type: str) -> bool:
        folder = models / configuration_auto.model_type_to_module_name(model_type)
        texts = [path.read_text() for path in folder.glob("modeling_*.py")]
        return texts != [] and not any("_supports_sdpa = True" in text for text in texts)

    found = {*filter(is_eager, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}

    assert found - others <= whole.EAGER


def described(folder: Path, *names: str, **config: object) -> Path:
    """Write what an estimate reads of a model whose weights have these names, to `folder`."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: np.ones(4, np.float32) for name in names}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("model_type", "names", "is_whole"),
    [
        ("llama", ["layers.0.mlp.up_proj.weight"], False),
        ("mixtral", ["layers.0.block_sparse_moe.gate.weight"], False),
        ("nemotron_h", ["layers.0.mixer.up_proj.weight"], True),
        ("opt", ["layers.0.fc1.weight"], True),
        ("longcat_flash", ["layers.0.mlps.0.up_proj.weight", "layers.0.mlp.router.weight"], True),
        ("bloom", ["h.0.mlp.dense_h_to_4h.weight"], True),
    ],
)
def test_an_mlp_counts_whole_where_it_computes_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    names: list[str],
    is_whole: bool,
) -> None:
    """Where a block has it by no name that backends know, or gives it more than positions."""
    monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", 0)

    found = memory.estimate(described(tmp_path, *names, model_type=model_type), CPU, rank=8)

    assert found.max_rows == (sys.maxsize if is_whole else MLP_ROWS)


@pytest.mark.parametrize(
    ("config", "is_whole"),
    [
        ({"model_type": "llama"}, False),
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, True),
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, True),
        ({"model_type": "deepseek_v2", "kv_lora_rank": 512}, False),
    ],
)
def test_scores_count_whole_where_mlx_computes_them_so(
    tmp_path: Path, config: dict[str, object], is_whole: bool
) -> None:
    """Where a model computes them by itself, or gives them to attention as a mask."""
    found = memory.estimate(described(tmp_path, "a", **config), Choice("mlx", "cpu", ""), rank=8)

    assert is_whole is (found.max_pairs == sys.maxsize)


@pytest.mark.parametrize(
    ("config", "device", "expected"),
    [
        ({"sliding_window": 512}, "cpu", 1 + 4),
        ({"sliding_window": 512}, "cuda", 1 + 2),
        ({"sliding_window": 512, "use_sliding_window": False}, "cpu", 0),
        ({"sliding_window": None}, "cpu", 0),
        ({"kv_lora_rank": 512}, "cuda", 0),
        ({"model_type": "gpt_oss", "sliding_window": 128}, "cuda", 6 * 2 * 8),
    ],
)
def test_what_torch_holds_for_each_pair_of_positions(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, object],
    device: str,
    expected: int,
) -> None:
    """A mask where attention has windows; scores where it isn't fused."""
    monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", 0)
    base = described(tmp_path, "a", dtype="bfloat16", num_attention_heads=8, **config)

    found = memory.estimate(base, Choice("torch", device, ""), rank=8)

    assert expected == found.per_pair
