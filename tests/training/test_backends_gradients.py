"""The contract of training backends, torch and mlx alike: gradients, and memory that runs out."""

import dataclasses
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import random_models
from backend_cases import (
    SIZES,
    TOLERANCE,
    UNCLIPPED,
    Open,
    assert_close,
    backend,
    gradients_of,
    kept_bytes,
    opened,
    pull,
    save_random,
    sequences,
    state_of,
)

from strop.training.backends import base_files, mlx_pieces, open_policy, torch_model
from strop.training.backends.base import CutShort, OutOfMemory, Policy
from strop.training.sequences import Floats, Tokens

__all__ = ["backend", "opened"]  # fixtures


def test_gradients_are_those_of_autograd_through_peft(
    opened: Open, qwen3: Path, peft_c: Path, tmp_path: Path
) -> None:
    """dL/dlogprob is carried into A and B as autograd does in transformers and peft."""
    asked = sequences((5, 7), (20, 3), (1, 12))
    policy = opened(qwen3, peft_c, adamw=UNCLIPPED)

    policy.accumulate(asked, pull)
    found = gradients_of(policy, tmp_path / "state")

    assert_close(autograd(qwen3, peft_c, asked), found, TOLERANCE)


def autograd(base: Path, adapter: Path, asked: Sequence[Tokens]) -> dict[str, Floats]:
    """Return the gradient of `pull` by each array of the LoRA, by transformers and peft."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a renamed attribute
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    for tokens in asked:
        ids = torch.tensor(tokens.ids[None].astype(np.int64))
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        chosen = logprobs.gather(-1, ids[0, 1:, None])[tokens.num_prompt - 1 :, 0]
        chosen.backward(torch.tensor(pull([chosen.detach().numpy()])[0]))
    halves = {"lora_A.default.weight": "a", "lora_B.default.weight": "b"}
    return {
        f"{path.removeprefix('base_model.model.').partition('.lora_')[0]}.{half}": (
            weight.grad.numpy()
        )
        for path, weight in ((n, p) for n, p in model.named_parameters() if p.requires_grad)
        for ending, half in halves.items()
        if path.endswith(ending)
    }


def test_micro_batches_add_up(opened: Open, qwen3: Path, peft_a: Path, tmp_path: Path) -> None:
    """Three sequences one by one give the gradient of all of them together."""
    asked = sequences((5, 7), (20, 3), (1, 12))
    together, apart = (opened(qwen3, peft_a, adamw=UNCLIPPED) for _ in range(2))

    together.accumulate(asked, pull)
    for tokens in asked:
        apart.accumulate([tokens], pull)

    assert_close(
        gradients_of(together, tmp_path / "together"), gradients_of(apart, tmp_path / "apart"), 1e-5
    )


def test_checkpointed_blocks_and_a_head_in_chunks_change_no_gradient(
    opened: Open, qwen3: Path, peft_a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a large base does to save memory gives the same logprobs and gradients."""
    asked = sequences((5, 17), (20, 33))
    plain = opened(qwen3, peft_a, adamw=UNCLIPPED)
    monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", 0)
    saving: Any = opened(qwen3, peft_a, adamw=UNCLIPPED)
    saving._net = dataclasses.replace(saving._net, chunk=7 * models.VOCAB_SIZE)

    for policy in (plain, saving):
        policy.accumulate(asked, pull)

    for expected, found in zip(plain.logprobs(asked), saving.logprobs(asked), strict=True):
        np.testing.assert_allclose(expected, found, atol=1e-5)
    assert_close(
        gradients_of(plain, tmp_path / "plain"), gradients_of(saving, tmp_path / "saving"), 1e-5
    )


@pytest.mark.parametrize("rows", [0, 7, 40])
def test_pieces_change_no_gradient(
    opened: Open,
    backend: str,
    qwen3: Path,
    peft_a: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
) -> None:
    """Of MLPs, and on MLX of attention: some positions after others, the last ones fewer."""
    asked = sequences((5, 17), (20, 33))
    plain = opened(qwen3, peft_a, adamw=UNCLIPPED)
    monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", 0)
    for module in (mlx_pieces, torch_model):
        monkeypatch.setattr(module, "MLP_ROWS", 2 * rows)
    monkeypatch.setattr(mlx_pieces, "MOST_SCORES", 2 * 4 * 53 * rows)
    saving = opened(qwen3, peft_a, adamw=UNCLIPPED)

    for policy in (plain, saving):
        policy.accumulate(asked, pull)

    for expected, found in zip(plain.logprobs(asked), saving.logprobs(asked), strict=True):
        np.testing.assert_allclose(expected, found, atol=1e-5)
    assert_close(
        gradients_of(plain, tmp_path / "plain"), gradients_of(saving, tmp_path / "saving"), 1e-5
    )


EXPERTS = {
    "Qwen2MoeConfig": {
        "num_experts": 4,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
    },
    "GptOssConfig": {"num_local_experts": 4, "sliding_window": 16},
    "MixtralConfig": {"num_local_experts": 4},
    "GraniteMoeConfig": {"num_local_experts": 4},
    "GraniteMoeSharedConfig": {"num_local_experts": 4, "shared_intermediate_size": 48},
}


# What mlx-lm reads of a gpt-oss is quantised.
@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        ("torch", "Qwen2MoeConfig"),
        ("mlx", "Qwen2MoeConfig"),
        ("torch", "GptOssConfig"),
        ("torch", "MixtralConfig"),
        ("mlx", "MixtralConfig"),
        ("torch", "GraniteMoeSharedConfig"),
        ("mlx", "GraniteMoeConfig"),
    ],
    indirect=["backend"],
)
def test_mlps_with_experts_compute_in_pieces(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Which expert a token goes to is its own matter; some return that too."""
    import transformers

    config = getattr(transformers, kind)(**SIZES, **EXPERTS[kind], num_experts_per_tok=2)
    base = save_random(tmp_path / "base", config)
    asked = sequences((5, 17), (20, 33))
    plain = opened(base, adamw=UNCLIPPED)
    monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", 0)
    for module in (mlx_pieces, torch_model):
        monkeypatch.setattr(module, "MLP_ROWS", 16)
    saving = opened(base, adamw=UNCLIPPED)

    for policy in (plain, saving):
        policy.accumulate(asked, pull)

    assert_close(
        gradients_of(plain, tmp_path / "plain"), gradients_of(saving, tmp_path / "saving"), 1e-5
    )


@pytest.mark.parametrize("masked", ["causal", "window", "added", "keys", "no", "causal, sinks"])
def test_attention_in_pieces_is_attention(masked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forwards and backwards, under whatever mask a model uses."""
    import mlx.core as mx

    length, places = 23, np.arange(23)
    seen = (places[:, None] >= places) & (places[:, None] < places + 6)
    masks = {
        "window": mx.array(seen),
        "added": mx.array(np.where(seen, 0.0, -np.inf)[None, None], mx.float32),
        "keys": mx.array(places < 15)[None, None, None],
        "no": None,
    }
    options: dict[str, Any] = {"scale": 0.3, "mask": masks.get(masked, "causal")}
    if masked.endswith("sinks"):
        options["sinks"] = mx.array([0.5, -1.0, 2.0, 0.0])
    monkeypatch.setattr(mlx_pieces, "MOST_SCORES", 2 * 4 * length * 5)
    shapes = [(2, num_heads, length, 8) for num_heads in (4, 2, 2, 4)]
    *inputs, slopes = (mx.random.normal(shape, key=mx.random.key(sum(shape))) for shape in shapes)

    def computed() -> list[mx.array]:
        attend = mx.fast.scaled_dot_product_attention
        found, gradients = mx.vjp(lambda *arrays: attend(*arrays, **options), inputs, [slopes])
        mx.eval(found, gradients)
        return [*found, *gradients]

    expected = computed()
    with mlx_pieces.attention_in_pieces():
        found = computed()

    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), atol=1e-5)


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_a_small_gradient_does_not_vanish_in_float16(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_checkpointed: bool
) -> None:
    """A token of a long answer, in a step of many, moves the LoRA as far as its share says."""
    if is_checkpointed:
        monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", 0)
    asked, share = sequences((5, 17), (20, 33)), 2.0**-18
    base = in_float16(qwen3, tmp_path / "base")
    whole, small = (open_policy(base, backend="mlx", adamw=UNCLIPPED) for _ in range(2))

    whole.accumulate(asked, pull)
    small.accumulate(asked, lambda values: [share * slopes for slopes in pull(values)])

    assert "float16" == small.dtype
    expected = gradients_of(whole, tmp_path / "whole")
    found = gradients_of(small, tmp_path / "small")
    assert_close({name: share * array for name, array in expected.items()}, found, 1e-5)


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_a_lora_on_a_base_in_bf16_is_trained_in_float32(
    qwen3_bf16: Path,
    peft_a: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_checkpointed: bool,
) -> None:
    """As torch computes on a GPU: no small gradient vanishes, and no small step is rounded away."""
    import torch

    monkeypatch.setattr(torch_model, "pick_dtype", lambda *_: torch.bfloat16)
    if is_checkpointed:
        monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", 0)
    asked, share = sequences((5, 17), (20, 33)), 2.0**-18
    whole, small = (
        open_policy(qwen3_bf16, start=peft_a, backend="torch", adamw=UNCLIPPED) for _ in range(2)
    )

    whole.accumulate(asked, pull)
    small.accumulate(asked, lambda values: [share * slopes for slopes in pull(values)])
    expected = gradients_of(whole, tmp_path / "whole")
    found = gradients_of(small, tmp_path / "small")
    before = state_of(small, tmp_path / "before")
    small.accumulate(asked, pull)
    small.step(1e-6)
    after = state_of(small, tmp_path / "after")

    assert "bfloat16" == small.dtype
    assert_close({name: share * array for name, array in expected.items()}, found, 1e-5)
    # Their own numbers lie a hundred times as far apart in bf16.
    weights = [name for name in after if name.startswith("weight.")]
    assert weights
    assert all(0 < np.abs(after[name] - before[name]).max() < 1e-5 for name in weights)
    assert all(np.float32 == logprobs.dtype for logprobs in small.logprobs(asked))


def in_float16(base: Path, folder: Path) -> Path:
    """Write `base` to `folder` as float16, in which mlx-lm computes then."""
    import torch
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16).save_pretrained(folder)
    config = json.loads((base / "config.json").read_bytes()) | {"dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_checkpointed_blocks_keep_less(
    opened: Open, backend: str, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept for the backward pass is less than half of it where blocks are checkpointed."""
    asked = sequences((5, 200))
    plain = kept_bytes(backend, opened(llama), asked)
    monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", 0)

    checkpointed = kept_bytes(backend, opened(llama), asked)

    assert checkpointed < plain / 2


OUT_OF_MEMORY = {
    "torch": [
        "MPS backend out of memory (MPS allocated: 9.00 GB, max allowed: 9.07 GB)",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasGemmEx( handle, opa, ...)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    ],
    "mlx": [
        "[METAL] Command buffer execution failed: Insufficient Memory (00000008:...)",
        "[metal::malloc] Attempting to allocate 22000000000 bytes which is greater than the",
        "[malloc] Unable to allocate 9000000000 bytes.",
    ],
}


def test_memory_that_runs_out_is_out_of_memory(opened: Open, backend: str, qwen3: Path) -> None:
    """What the framework raises where it gets no memory is our one error, and training goes on."""
    asked = sequences((5, 7))
    policy = opened(qwen3)

    for error in (MemoryError(), *map(RuntimeError, OUT_OF_MEMORY[backend])):
        with pytest.raises(OutOfMemory):
            policy.accumulate(asked, failing_with(error))

    policy.accumulate(asked, pull)
    assert policy.step(0.01) > 0


@pytest.mark.parametrize(
    "said",
    [
        "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)",
        "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)",
        "Ignored (for causing prior/excessive GPU errors) "
        "(00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)",
        "in words of another language (00000002:kIOGPUCommandBufferCallbackErrorTimeout)",
    ],
)
def test_work_that_macos_cuts_short_may_pass_in_smaller_parts(qwen3: Path, said: str) -> None:
    """The GPU's time isn't memory: training goes on as after OutOfMemory, advice is another."""
    asked = sequences((5, 7))
    policy = open_policy(qwen3, backend="mlx")
    error = RuntimeError(f"[METAL] Command buffer execution failed: {said}.")

    with pytest.raises(CutShort, match=r"^\[METAL\] .* let the display sleep .*training\.hours"):
        policy.accumulate(asked, failing_with(error))

    policy.accumulate(asked, pull)
    assert policy.step(0.01) > 0


CUT_SHORT = (
    "[METAL] Command buffer execution failed: Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"
)


def tell_late(monkeypatch: pytest.MonkeyPatch, *held: str) -> list[str]:
    """Let who waits for MLX's work be told of errors, as on Metal; return those not told yet."""
    import mlx.core as mx

    synchronize, left = mx.synchronize, [*held]

    def tell(*args: Any) -> None:
        synchronize(*args)
        if left:
            raise RuntimeError(left.pop(0))

    monkeypatch.setattr(mx, "synchronize", tell)
    return left


def test_a_gradient_that_metal_says_late_that_it_never_computed_is_not_added(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`eval` returns, and what uses the stream next raises: that must not be another's work."""
    import mlx.core as mx

    parts = [sequences((5, 7)), sequences((20, 3)), sequences((1, 12))]
    policy, other = (open_policy(qwen3, backend="mlx", adamw=UNCLIPPED) for _ in range(2))
    held = tell_late(monkeypatch)
    evaluate = mx.eval

    def fail(found: dict[str, mx.array]) -> None:
        found.update({name: mx.zeros_like(array) for name, array in found.items()})
        held.append(CUT_SHORT)
        monkeypatch.setattr(mx, "eval", evaluate)

    policy.accumulate(parts[0], pull)
    monkeypatch.setattr(mx, "eval", fail)
    with pytest.raises(CutShort):
        policy.accumulate(parts[1], pull)
    for part in parts[1:]:
        policy.accumulate(part, pull)

    for part in parts:
        other.accumulate(part, pull)
    expected, found = (
        gradients_of(each, tmp_path / str(at)) for at, each in enumerate((other, policy))
    )
    assert_close(expected, found, TOLERANCE)


@pytest.mark.parametrize(
    "call",
    [
        lambda policy: policy.logprobs(sequences((5, 7))),
        lambda policy: policy.accumulate(sequences((5, 7)), pull),
        lambda policy: policy.step(0.01),
        lambda policy: policy.sample([[5, 6]], max_tokens=2, temperature=0.0, seed=0),
        lambda policy: policy.greedy([5, 6], 2),
    ],
    ids=["logprobs", "accumulate", "step", "sample", "greedy"],
)
def test_what_metal_says_late_is_said_of_the_call_that_failed(
    qwen3: Path, call: Callable[[Policy], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for its own work before it returns anything."""
    policy = open_policy(qwen3, backend="mlx")
    tell_late(monkeypatch, CUT_SHORT)

    with pytest.raises(CutShort):
        call(policy)

    call(policy)


def test_what_fails_behind_an_error_is_not_said_of_the_next_call(
    qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work that was begun with it is of the same micro-batch."""
    asked = sequences((5, 7))
    policy = open_policy(qwen3, backend="mlx")
    held = tell_late(monkeypatch, CUT_SHORT)

    with pytest.raises(CutShort):
        policy.accumulate(asked, failing_with(RuntimeError(CUT_SHORT)))

    assert [] == held
    policy.accumulate(asked, pull)


@pytest.mark.parametrize(("backend", "part"), [("torch", "_optimizer.step"), ("mlx", "_update")])
def test_an_optimizer_that_gets_no_memory_says_what_to_set(
    opened: Open, part: str, qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step makes the moments, where the device may just have been filled by another."""
    policy: Any = opened(qwen3)
    policy.accumulate(sequences((5, 7)), pull)

    def full(*_: Any) -> None:
        raise RuntimeError("[malloc] Unable to allocate: out of memory")

    owner, _, name = part.rpartition(".")
    monkeypatch.setattr(getattr(policy, owner) if owner else policy, name, full)

    with pytest.raises(OutOfMemory, match=r"Unable to allocate.* set training\.device"):
        policy.step(0.01)


def test_what_torch_says_of_its_allocator_is_left_out() -> None:
    """People are told how much was missing and what to set; not how torch could be tuned."""
    said = (
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 11.76 GiB"
        " of which 10.00 MiB is free. If reserved but unallocated memory is large try setting"
        " PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
    )

    message = str(OutOfMemory.of(said))

    assert (
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 11.76 GiB"
        " of which 10.00 MiB is free: free some, set training.device to one that has more, or take"
        " the base in 4 bits (training.quantize_base on CUDA; for MLX, a model.base that mlx-lm has"
        " quantised)"
    ) == message
    assert str(OutOfMemory.of("")).startswith("no memory is left: free some")


def failing_with(error: Exception) -> Callable[[list[Floats]], list[Floats]]:
    """Return a gradient that raises."""

    def fail(_: list[Floats]) -> list[Floats]:
        raise error

    return fail


def test_memory_that_torch_really_does_not_get(qwen3: Path) -> None:
    """An allocation that the machine refuses is recognised; MLX on a CPU dies of one."""
    import torch

    policy = open_policy(qwen3, backend="torch")

    with pytest.raises(OutOfMemory, match="allocate"):
        policy.accumulate(sequences((5, 7)), lambda _: [torch.empty(1 << 55).numpy()])


def test_other_errors_of_the_framework_come_through(opened: Open, qwen3: Path) -> None:
    """An error that has nothing to do with memory is not taken for one that has."""
    with pytest.raises(RuntimeError, match="shapes don't fit"):
        opened(qwen3).accumulate(sequences((5, 7)), failing_with(RuntimeError("shapes don't fit")))


def test_a_gradient_that_fails_adds_nothing(
    opened: Open, qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """Where the objective raises, its error comes through and the gradient stays as it was."""
    asked = sequences((5, 7))
    failing, plain = (opened(qwen3, peft_a, adamw=UNCLIPPED) for _ in range(2))
    for policy in (failing, plain):
        policy.accumulate(asked, pull)

    with pytest.raises(ZeroDivisionError, match="no loss"):
        failing.accumulate(asked, failing_with(ZeroDivisionError("no loss")))

    assert_close(gradients_of(plain, tmp_path / "a"), gradients_of(failing, tmp_path / "b"), 0.0)


def test_a_gradient_of_the_wrong_length_is_refused(opened: Open, qwen3: Path) -> None:
    """There must be one dL/dlogprob for each answer token."""
    with pytest.raises(ValueError, match="one value per answer token"):
        opened(qwen3).accumulate(sequences((5, 7)), lambda values: [values[0][:-1]])


@pytest.mark.parametrize("backend", ["mlx"], indirect=True)
def test_attention_whose_mask_is_computed_keeps_its_gradient(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSeek's adds the scores of rotated parts by its mask."""
    import transformers

    ranks = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    sizes = {**SIZES, **ranks, "num_key_value_heads": 4, "v_head_dim": 16, "head_dim": 8}
    config = transformers.DeepseekV3Config(**sizes, first_k_dense_replace=2)
    base = save_random(tmp_path / "base", config)
    asked = sequences((5, 17), (20, 33))
    plain = opened(base, adamw=UNCLIPPED)
    plain.accumulate(asked, pull)
    monkeypatch.setattr(mlx_pieces, "MOST_SCORES", 2 * 4 * 53 * 7)
    saving = opened(base, adamw=UNCLIPPED)
    saving.accumulate(asked, pull)

    assert_close(
        gradients_of(plain, tmp_path / "plain"), gradients_of(saving, tmp_path / "saving"), 1e-5
    )


def test_many_pieces_add_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits a sum of hundreds would lose what each of them adds."""
    import mlx.core as mx

    shapes = [(1, 1, 512, 8)] * 4
    *inputs, slopes = (
        mx.random.normal(shape, key=mx.random.key(at)) for at, shape in enumerate(shapes)
    )
    slopes = slopes * 0.3 + 0.5
    half = [one.astype(mx.bfloat16) for one in (*inputs, slopes)]
    monkeypatch.setattr(mlx_pieces, "MOST_SCORES", 512)

    def values(arrays: list[mx.array]) -> Any:
        attend = mx.fast.scaled_dot_product_attention
        _, found = mx.vjp(
            lambda *qkv: attend(*qkv, scale=0.3, mask="causal"), arrays[:3], arrays[3:]
        )
        return np.array(found[2].astype(mx.float32))

    expected = values([one.astype(mx.float32) for one in half])
    with mlx_pieces.attention_in_pieces():
        found = values(half)

    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
@pytest.mark.parametrize("kind", ["Llama4TextConfig", "BloomConfig"])
def test_mlps_of_their_own_kind_compute_in_pieces_or_whole(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Llama 4's returns all positions as one dimension; Bloom's takes the residual, too."""
    sizes = {"intermediate_size_mlp": 96, "num_local_experts": 4, "n_layer": 2, "n_head": 4}
    base = random_models.make(tmp_path / "base", kind, **sizes)
    asked = sequences((5, 27), (20, 12))
    plain = opened(base, adamw=UNCLIPPED)
    monkeypatch.setattr(base_files, "_CHECKPOINTED_BYTES", 0)
    monkeypatch.setattr(torch_model, "MLP_ROWS", 16)
    saving = opened(base, adamw=UNCLIPPED)

    for policy in (plain, saving):
        policy.accumulate(asked, pull)

    assert_close(
        gradients_of(plain, tmp_path / "plain"), gradients_of(saving, tmp_path / "saving"), 1e-5
    )


def test_attention_is_whole_again_behind_the_block() -> None:
    """Also where what is computed fails."""
    import mlx.core as mx

    attend = mx.fast.scaled_dot_product_attention

    def failing() -> None:
        with mlx_pieces.attention_in_pieces():
            assert mx.fast.scaled_dot_product_attention is not attend
            raise ValueError("fails")

    with pytest.raises(ValueError, match="fails"):
        failing()
    assert mx.fast.scaled_dot_product_attention is attend


def test_attention_to_other_positions_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Causal, of more keys than queries."""
    import mlx.core as mx

    monkeypatch.setattr(mlx_pieces, "MOST_SCORES", 16)
    queries, keys = mx.random.normal((1, 1, 8, 4)), mx.random.normal((1, 1, 12, 4))
    options: dict[str, Any] = {"scale": 1.0, "mask": "causal"}
    expected = mx.fast.scaled_dot_product_attention(queries, keys, keys, **options)
    with mlx_pieces.attention_in_pieces():
        found = mx.fast.scaled_dot_product_attention(queries, keys, keys, **options)

    np.testing.assert_allclose(np.array(expected), np.array(found), atol=1e-6)
