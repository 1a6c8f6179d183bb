"""The contract of training backends, torch and mlx alike: answers drawn and greedy ones."""

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_cases import SIZES, TOLERANCE, Open, backend, opened, save_random, sequences
from numpy.typing import NDArray

from strop.adapters import peft
from strop.training.backends import open_policy
from strop.training.backends.base import BASE, Policy, Weights
from strop.training.sequences import Floats, Tokens

__all__ = ["backend", "opened"]  # fixtures

PROMPTS = [tokens.ids.tolist() for tokens in sequences((5, 0), (20, 0), (1, 0), (11, 0))]
NEVER = 99_999  # no token of the vocabulary


@pytest.fixture
def endless(qwen3: Path, tmp_path: Path) -> Path:
    """`qwen3` with an end-of-text token that it can't say."""
    return ending_with(qwen3, tmp_path / "endless", [NEVER])


def ending_with(base: Path, folder: Path, ids: list[int]) -> Path:
    """Copy a base, and make its answers end with `ids`."""
    shutil.copytree(base, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    return folder


def rows_of(base: Path, adapter: Path | None, tokens: Tokens) -> NDArray[np.float64]:
    """Return the log-softmax (S, V) at each answer token by transformers and peft."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft reads a renamed attribute
            model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits = model(torch.tensor(tokens.ids[None].astype(np.int64))).logits[0].double()
    rows: NDArray[np.float64] = logits[tokens.num_prompt - 1 : -1].log_softmax(-1).numpy()
    return rows


def joined(prompt: Sequence[int], ids: Sequence[int]) -> Tokens:
    """Return a prompt and its answer."""
    return Tokens(np.array([*prompt, *ids], np.int32), len(prompt))


def test_greedy_is_the_best_token_at_each_step(opened: Open, endless: Path, peft_a: Path) -> None:
    """Ids, logprobs and margins are those of teacher forcing on the ids themselves."""
    prompt = PROMPTS[1]

    ids, logprobs, margins = opened(endless, peft_a).greedy(prompt, 40)

    rows = rows_of(endless, peft_a, joined(prompt, ids))
    best = np.sort(rows, axis=-1)[:, -2:]
    assert tuple(rows.argmax(-1)) == ids
    np.testing.assert_allclose(best[:, 1], logprobs, atol=TOLERANCE)
    np.testing.assert_allclose(best[:, 1] - best[:, 0], margins, atol=TOLERANCE)


def test_greedy_goes_on_past_the_end_and_sampling_does_not(
    opened: Open, endless: Path, tmp_path: Path
) -> None:
    """An answer ends with the end-of-text token, which is part of it."""
    ids, _, _ = opened(endless).greedy(PROMPTS[0], 12)
    end = ids[5]
    ending = ending_with(endless, tmp_path / "ending", [NEVER, end])
    policy = opened(ending)

    (answer,) = policy.sample([PROMPTS[0]], max_tokens=12, temperature=0, seed=0)

    assert {NEVER, end} == policy.end_ids
    assert ids[: ids.index(end) + 1] == answer.ids
    assert ids == policy.greedy(PROMPTS[0], 12)[0]


def test_sampling_at_temperature_0_is_greedy_whatever_the_batch(
    opened: Open, endless: Path, peft_a: Path
) -> None:
    """Prompts of unlike lengths don't change each other's answers."""
    policy = opened(endless, peft_a)

    answers = policy.sample(PROMPTS, max_tokens=15, temperature=0, seed=0)

    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids, logprobs, _ = policy.greedy(prompt, 15)
        assert ids == answer.ids
        np.testing.assert_allclose(logprobs, answer.logprobs, atol=TOLERANCE)


@pytest.mark.parametrize(("num", "num_heads"), [(2, 2), (3, 2), (2, 3)])
def test_a_model_that_mixes_rows_answers_one_by_one(
    opened: Open, tmp_path: Path, num: int, num_heads: int
) -> None:
    """mlx-lm's Gemma 2 spreads masks over heads: with as many rows all is wrong, else it fails."""
    from transformers import Gemma2Config

    heads = {"num_key_value_heads": num_heads, "num_attention_heads": 2 * num_heads}
    sizes = {**SIZES, **heads, "hidden_size": 32 * num_heads}
    base = save_random(tmp_path / "model", Gemma2Config(**sizes, query_pre_attn_scalar=16))
    policy = opened(base)

    answers = policy.sample(PROMPTS[:num], max_tokens=8, temperature=1, seed=0)

    asked = [joined(prompt, a.ids) for prompt, a in zip(PROMPTS[:num], answers, strict=True)]
    for tokens, answer in zip(asked, answers, strict=True):
        np.testing.assert_allclose(policy.logprobs([tokens])[0], answer.logprobs, atol=TOLERANCE)


def test_logprobs_and_entropies_are_those_at_temperature_1(
    opened: Open, endless: Path, peft_a: Path
) -> None:
    """At any temperature the raw logprobs are told, and the entropies of the whole rows."""
    policy = opened(endless, peft_a)

    answers = policy.sample(PROMPTS, max_tokens=10, temperature=0.7, seed=3)

    asked = [joined(prompt, a.ids) for prompt, a in zip(PROMPTS, answers, strict=True)]
    for tokens, answer, scored in zip(asked, answers, policy.logprobs(asked), strict=True):
        rows = rows_of(endless, peft_a, tokens)
        np.testing.assert_allclose(scored, answer.logprobs, atol=TOLERANCE)
        np.testing.assert_allclose(
            -(np.exp(rows) * rows).sum(-1), answer.entropies, atol=TOLERANCE, rtol=TOLERANCE
        )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_come_as_often_as_the_model_says(
    opened: Open, endless: Path, temperature: float
) -> None:
    """Of 2,000 first tokens, each comes within four standard errors of its share."""
    num, prompt = 2000, PROMPTS[0]

    answers = opened(endless).sample([prompt] * num, max_tokens=1, temperature=temperature, seed=11)

    (row,) = rows_of(endless, None, joined(prompt, [0]))
    shares = np.exp(row / temperature)
    shares /= shares.sum()
    counts = np.bincount([answer.ids[0] for answer in answers], minlength=len(shares))
    errors = np.sqrt(shares * (1 - shares) / num)
    likely = shares > 0.005
    assert likely.sum() >= 5
    assert (np.abs(counts / num - shares) < 4 * errors)[likely].all()
    assert counts[~likely].sum() / num < shares[~likely].sum() + 4 / np.sqrt(num)


def test_a_seed_gives_the_same_answers_again(opened: Open, endless: Path) -> None:
    """Equal calls give equal answers, also after others; another seed gives others."""
    policy = opened(endless)

    first, other, again = (ids_of(policy, seed) for seed in (1, 2, 1))

    assert first == again
    assert first != other


def test_weights_that_compute_no_number_answer_all_the_same(
    opened: Open, endless: Path, peft_a: Path, tmp_path: Path
) -> None:
    """So a gate can say what is wrong with them; the figures of their answers are no numbers."""
    whole = peft.read(peft_a)
    modules = {
        path: peft.LoraModule(1e30 * one.a, 1e30 * one.b, one.scale)
        for path, one in whole.modules.items()
    }
    peft.write(peft.Adapter(whole.config, modules), tmp_path)

    answers = opened(endless, tmp_path).sample(PROMPTS, max_tokens=3, temperature=1, seed=0)

    assert [3] * len(PROMPTS) == [len(answer.ids) for answer in answers]
    assert all(np.isnan(answer.logprobs).all() for answer in answers)


def test_mlx_samples_on_the_stream_that_is_waited_for(
    endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default one of the device that was chosen: not mlx-lm's own, which is of another."""
    import mlx.core as mx

    policy: Any = open_policy(endless, backend="mlx")
    kind, streams = type(policy._net.model), []
    compute = kind.__call__

    def noted(*args: Any, **options: Any) -> Any:
        streams.append(mx.default_stream(mx.default_device()))
        return compute(*args, **options)

    monkeypatch.setattr(kind, "__call__", noted)
    policy.sample([[5, 6]], max_tokens=2, temperature=1.0, seed=0)
    policy.greedy([5, 6], 2)

    assert len(streams) > 2
    assert [mx.default_stream(mx.default_device())] * len(streams) == streams


def test_no_prompts_have_no_answers(opened: Open, endless: Path) -> None:
    """Asking nothing is no error."""
    assert [] == opened(endless).sample([], max_tokens=8, temperature=1, seed=0)


def ids_of(policy: Policy, seed: int) -> list[tuple[int, ...]]:
    """Draw answers with a seed."""
    answers = policy.sample(PROMPTS, max_tokens=8, temperature=1, seed=seed)
    return [answer.ids for answer in answers]


def test_answers_of_other_weights(opened: Open, endless: Path, peft_a: Path, peft_c: Path) -> None:
    """The base and any adapter can be asked too."""
    policy = opened(endless, peft_a)

    cases: list[tuple[Weights, Path | None]] = [
        (BASE, None),
        (peft_c, peft_c),
        ("trained", peft_a),
    ]
    for weights, adapter in cases:
        ids, logprobs, _ = policy.greedy(PROMPTS[3], 8, weights)
        (answer,) = policy.sample(
            [PROMPTS[3]], max_tokens=8, temperature=0, seed=0, weights=weights
        )

        rows = rows_of(endless, adapter, joined(PROMPTS[3], ids))
        assert tuple(rows.argmax(-1)) == ids == answer.ids
        best: Floats = rows.max(-1)
        np.testing.assert_allclose(best, logprobs, atol=TOLERANCE)
