"""The estimate of a run's memory, what is free, and what is said where it doesn't fit."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from backend_cases import backend, kept_bytes, pull, sequences
from hypothesis import given
from hypothesis import strategies as st

from strop.training import memory
from strop.training.backends import base_files, open_policy
from strop.training.backends.base import BackendUnavailable
from strop.training.memory import GIB, Estimate

__all__ = ["backend"]  # a fixture

SMALL = Estimate(
    weights=1000, lora=100, runtime=10, per_token=5, per_pair=0, per_logits=5, max_logits=1200
)


def test_a_total_by_hand() -> None:
    """Base, LoRA and runtime, and a fifth more than activations and logits."""
    assert 1110 + 1.2 * (20 * 5 + 20 * 5) == SMALL.total(20, 20)
    # The logits come in chunks.
    assert 1110 + 1.2 * (1000 * 5 + 1200) == SMALL.total(1000, 1000)


def test_attention_scores_grow_with_the_longest_sequence() -> None:
    """Where they are kept, two sequences of 10 take less than one of 20."""
    scores = Estimate(0, 0, 0, per_token=0, per_pair=10, per_logits=0, max_logits=0)

    assert 2 * scores.total(20, 10) == scores.total(20, 20)


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
        return memory.estimate(
            base, backend=backend, device=device, rank=8, quantize_base=quantize_base
        ).weights

    whole = weights(qwen3, "torch", "cpu")
    assert whole == pytest.approx((qwen3 / "model.safetensors").stat().st_size, rel=0.01)
    assert whole == weights(qwen3_bf16, "torch", "cpu")
    assert whole / 2 == weights(qwen3_bf16, "torch", "cuda") == weights(qwen3_bf16, "mlx", "gpu")
    assert weights(qwen3_4bit, "mlx", "gpu") < whole / 5
    quantized = weights(qwen3_bf16, "torch", "cuda", quantize_base=True)
    assert weights(qwen3_bf16, "torch", "cuda") / 4 < quantized < whole / 2


def test_quantised_weights_are_counted_one_by_one(qwen3: Path, qwen3_4bit: Path) -> None:
    """Whatever they are packed into; and it is said how they are held."""
    whole, packed = base_files.BaseFiles(qwen3), base_files.BaseFiles(qwen3_4bit)

    assert whole.num_weights == packed.num_weights
    assert ("float32", "quantised to 4 bits by MLX") == (whole.precision, packed.precision)


def test_a_lora_counts_once_for_each_copy(qwen3: Path) -> None:
    """Seven copies of float32: weights, gradients, moments, and versions to compare with."""
    found = memory.estimate(qwen3, backend="torch", device="cpu", rank=8)

    sides = (128 + 128) + 2 * (128 + 64) + (128 + 128) + 3 * (128 + 256)
    assert 7 * 4 * 8 * 3 * sides == found.lora


def test_the_estimate_is_near_to_what_torch_keeps(llama: Path) -> None:
    """More than what is kept for the backward pass, which adds its own, but not four times it."""
    kept = kept_bytes("torch", open_policy(llama, backend="torch"), sequences((5, 995)))

    needed = memory.estimate(llama, backend="torch", device="cpu", rank=8)
    grown = needed.total(1000, 1000) - needed.total(0, 1000)
    assert kept < grown < 4 * kept


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
    needed = Estimate(16 * GIB, GIB, GIB, 2**20, 0, 0, 0)

    def advice(free: int) -> str | None:
        return memory.advice(
            needed, free, backend=backend, device=device, longest=2048, is_quantized=is_quantized
        )

    assert advice(24 * GIB) is None
    message = advice(12 * GIB)
    assert message is not None
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
        ({"max": "1000", "current": "2000"}, 0),
        ({"max": "99000000000", "current": "0"}, 8000 * 1024),
    ],
)  # fmt: skip
def test_a_containers_limit_counts(files: dict[str, str], free: int) -> None:
    """Free is what the machine has, but no more than the container may still take."""
    assert free == memory.parse_linux({"meminfo": MEMINFO, **files})


def test_free_pages_of_macos() -> None:
    """Pages that are free, or give way, count."""
    text = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               100.\n"
        "Pages active:                           90000.\n"
        "Pages inactive:                            20.\n"
        "Pages speculative:                          3.\n"
        '"Translation faults":                 12345678.\n'
        "Pages purgeable:                            1.\n"
    )

    assert 124 * 16384 == memory.parse_vm_stat(text)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    """There is nothing to estimate."""
    with pytest.raises(BackendUnavailable, match=r"config\.json"):
        memory.estimate(tmp_path, backend="torch", device="cpu", rank=8)
