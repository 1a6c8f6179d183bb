"""What the embedded engine makes of a model's folder, and of models that are served one by one."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
from random_models import IDS, make, reference

from strop.proxy.embedded import loading
from strop.proxy.embedded.engine import Engine
from strop.proxy.embedded.jobs import Sampled, Sampling
from strop.proxy.embedded.options import Options
from strop.proxy.embedded.protocol import Request, parse_chat, parse_completion


@pytest.mark.parametrize(
    ("config", "limit", "expected"),
    [
        ({"max_position_embeddings": 100}, None, 100),
        ({"max_position_embeddings": 100}, 50, 50),
        ({"max_position_embeddings": 100}, 500, 100),
        ({"text_config": {"max_position_embeddings": 100}}, 500, 100),
        # What the trainer takes then, too.
        ({"text_config": {"max_position_embeddings": 60}, "max_position_embeddings": 99}, None, 60),
        ({}, None, 8192),
        ({}, 50_000, 50_000),
    ],
)
def test_the_context_is_what_the_model_and_the_options_say(
    config: dict[str, Any], limit: int | None, expected: int
) -> None:
    """The smaller where both say something; where the model says nothing, the options alone."""
    assert expected == loading._max_model_len(config, limit)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('{"temperature": 0.6, "top_p": 0.95, "top_k": 20, "do_sample": true, "eos_token_id": 2}',
         Sampling(temperature=0.6, top_p=0.95, top_k=20)),
        ('{"min_p": 0.1, "repetition_penalty": 1.1}', Sampling(min_p=0.1, repetition_penalty=1.1)),
        ('{"presence_penalty": 1.5, "frequency_penalty": -1, "max_new_tokens": 5}',
         Sampling(presence_penalty=1.5, frequency_penalty=-1.0)),
        ('{"temperature": null, "top_k": -1}', Sampling()),
        # One that can't be doesn't keep the others from counting.
        ('{"temperature": "warm", "top_p": 0, "top_k": 40, "min_p": 2}', Sampling(top_k=40)),
        (f'{{"temperature": 1{"0" * 400}, "top_p": NaN, "top_k": 20.0}}', Sampling(top_k=20)),
        ("{}", Sampling()),
        ("[1]", Sampling()),
        ("none", Sampling()),
        (None, Sampling()),
    ],
)  # fmt: skip
def test_a_model_is_sampled_as_its_makers_say(
    tmp_path: Path, said: str | None, expected: Sampling
) -> None:
    """In generation_config.json, if there is one that says it."""
    if said is not None:
        (tmp_path / "generation_config.json").write_text(said)

    assert expected == loading._usual_sampling(tmp_path)


USUAL = Sampling(
    temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.5,
    frequency_penalty=-0.5,
)  # fmt: skip


@pytest.mark.parametrize(
    ("parse", "body"),
    [(parse_chat, {"messages": [{"role": "user"}]}), (parse_completion, {"prompt": "a"})],
)
def test_a_request_is_sampled_so_where_it_says_nothing(
    parse: Callable[[object, Sampling], Request], body: dict[str, Any]
) -> None:
    """In both dialects; a null says nothing."""
    neutral = {"temperature": 1, "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1,
               "presence_penalty": 0, "frequency_penalty": 0}  # fmt: skip

    assert USUAL == parse(body, USUAL).sampling
    assert USUAL == parse(body | dict.fromkeys(neutral), USUAL).sampling
    assert Sampling() == parse(body | neutral, USUAL).sampling


async def ask(engine: Engine, prompt: list[int]) -> list[tuple[int, float]]:
    """Return the ids of an answer with their logprobs."""
    body = {"model": "base", "prompt": prompt, "max_tokens": 12, "ignore_eos": True}
    exchange = engine.open(await engine.encode(parse_completion(body)))
    answer: list[tuple[int, float]] = []
    while len(answer) < 12:
        for _, event in await exchange.events() or ():
            if isinstance(event, Sampled):
                answer.append((event.token.id, event.token.logprob))
    engine.close(exchange)
    return answer


@pytest.mark.parametrize("num_rows", [2, 5])
async def test_a_model_that_cant_run_rows_together_runs_them_one_by_one(
    tmp_path: Path, num_rows: int
) -> None:
    """mlx-lm's Gemma 2 spreads masks over heads: where it has as many as rows, all is wrong.

    With other numbers of rows it fails.
    """
    mx.disable_compile()
    folder = make(tmp_path / "model", "Gemma2Config", head_dim=32, query_pre_attn_scalar=32)
    engine = Engine(Options(model=str(folder), served_name="base"))
    await engine.ready.wait()
    prompts = [IDS[: 8 * count] for count in range(1, num_rows + 1)]

    answers = await asyncio.gather(*(ask(engine, prompt) for prompt in prompts))

    await engine.stop()
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = reference(folder, [*prompt, *(token for token, _ in answer)])
        for at, (token, logprob) in enumerate(answer, len(prompt) - 1):
            assert abs(expected[at][token] - logprob) < 1e-3
