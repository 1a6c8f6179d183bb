"""What the embedded engine samples and reports, against transformers and peft on the same ids."""

import asyncio
import contextlib
import itertools
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import engine_process
import httpx
import pytest
from engine_process import EngineProcess

from strop.proxy.embedded.options import Options

pytestmark = pytest.mark.engine

TOLERANCE = 1e-4
TEXTS = (
    "Hello",
    "Grüße aus Köln, wie geht es dir heute?",
    "def main(argv):\n    return len(argv)",
    "你好，世界。今天天气很好。",
)
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 1},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1, "top_k": 20, "min_p": 0.01},
    {"temperature": 1, "presence_penalty": 1.5, "frequency_penalty": 0.7},
    {"temperature": 0.7, "repetition_penalty": 1.3, "logit_bias": {"300": 5, "301": -100}},
    {"temperature": 1, "seed": 7},
    {"temperature": 1, "n": 3},
    {"temperature": 1, "n": 2, "seed": 11, "top_p": 0.8, "min_tokens": 5},
)


class Reference:
    """Scores answers by transformers and peft in fp32, teacher forced."""

    def __init__(self, base: Path, adapter: Path | None) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self._model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if adapter is not None:
            from peft import PeftModel

            with warnings.catch_warnings():
                # peft asks transformers by a name that this one deprecates.
                warnings.simplefilter("ignore", FutureWarning)
                self._model = PeftModel.from_pretrained(self._model, adapter)
        self._model.eval()

    def logprobs(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """Return the log-softmax at T = 1 of each id of `answer` after `prompt`."""
        import torch

        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logprobs = self._model(ids).logits[0].log_softmax(-1)
        start = len(prompt) - 1
        return [float(logprobs[start + at, token]) for at, token in enumerate(answer)]


@pytest.fixture(scope="module")
def adapters(peft_a: Path, peft_b: Path, peft_c: Path) -> dict[str, Path | None]:
    """The adapters by the names that they are served as, and the base."""
    return {"base": None, "v1": peft_a, "v2": peft_b, "v3": peft_c}


@pytest.fixture(scope="module")
def references(qwen3: Path, adapters: dict[str, Path | None]) -> dict[str, Reference]:
    """The same models in transformers."""
    return {name: Reference(qwen3, path) for name, path in adapters.items()}


@pytest.fixture(scope="module")
def engine(qwen3: Path, adapters: dict[str, Path | None]) -> Iterator[EngineProcess]:
    """The shared engine with all versions loaded."""
    running = engine_process.shared(qwen3)
    with contextlib.ExitStack() as loaded:
        for name, path in adapters.items():
            if path is not None:
                loaded.enter_context(running.version(name, path))
        yield running


def max_error(reference: Reference, prompt: Sequence[int], answer: dict[str, Any]) -> float:
    """Return the largest difference between an answer's logprobs and the reference's."""
    expected = reference.logprobs(prompt, answer["ids"])
    found: list[float] = answer["logprobs"]
    assert len(expected) == len(found)
    return max(abs(a - b) for a, b in zip(expected, found, strict=True))


def answers_of(body: dict[str, Any]) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the prompt ids, and ids and logprobs of each choice, of a chat body."""
    return body["prompt_token_ids"], [
        {
            "ids": choice["token_ids"],
            "logprobs": [entry["logprob"] for entry in choice["logprobs"]["content"]],
        }
        for choice in body["choices"]
    ]


def merge(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a stream's ids and logprobs as the body of a JSON answer would hold them."""
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for part in event["choices"]:
            choice = choices.setdefault(
                part["index"], {"token_ids": [], "logprobs": {"content": []}}
            )
            choice["token_ids"] += part.get("token_ids") or []
            choice["logprobs"]["content"] += (part["logprobs"] or {"content": []})["content"]
    return {
        "prompt_token_ids": events[0]["prompt_token_ids"],
        "choices": [choices[index] for index in sorted(choices)],
    }


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a chat request, JSON or stream, as a JSON body's members."""
    response = await client.post("/v1/chat/completions", json=body)
    assert 200 == response.status_code, response.text
    if body.get("stream"):
        return merge(engine_process.parse_events(response.text))
    answer: dict[str, Any] = response.json()
    return answer


async def test_logprobs_equal_transformers_under_mixed_concurrent_load(
    engine: EngineProcess, references: dict[str, Reference]
) -> None:
    """Whatever runs beside it, each answer's logprobs are the raw ones of its own version."""
    asked = [
        {
            "model": name,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 12 + 5 * (number % 4),
            "logprobs": True,
            "return_token_ids": True,
            "stream": bool(number % 2),
            **sampling,
        }
        for number, (name, sampling, text) in enumerate(
            zip(
                itertools.islice(itertools.cycle(references), 36),
                itertools.cycle(SAMPLINGS),
                itertools.cycle(TEXTS),
                strict=False,
            )
        )
    ]

    async with engine.client() as client:
        bodies = await asyncio.gather(*(ask(client, body) for body in asked))

    checked: dict[str, int] = dict.fromkeys(references, 0)
    for body, answered in zip(asked, bodies, strict=True):
        prompt, answers = answers_of(answered)
        assert body.get("n", 1) == len(answers)
        for answer in answers:
            assert max_error(references[body["model"]], prompt, answer) < TOLERANCE
            checked[body["model"]] += len(answer["ids"])
    assert all(count > 100 for count in checked.values())


def test_versions_differ_by_far_more_than_the_tolerance(
    engine: EngineProcess, references: dict[str, Reference]
) -> None:
    """Scored under another version, an answer's logprobs are off: the parity test can fail."""
    prompt, (answer,) = answers_of(
        engine.chat(model="v1", max_tokens=30, logprobs=True, return_token_ids=True)
    )

    errors = {name: max_error(references[name], prompt, answer) for name in references}

    assert "v1" == min(errors, key=lambda name: errors[name])
    assert all(error > 0.1 for name, error in errors.items() if name != "v1")


@pytest.mark.parametrize("name", ["base", "v1", "v2", "v3"])
def test_prompt_logprobs_equal_transformers(
    engine: EngineProcess, references: dict[str, Reference], name: str
) -> None:
    """`prompt_logprobs` scores given ids with the version asked for, in chunks of any length."""
    ids = [(7 * at * at + 3 * at) % 1200 + 3 for at in range(300)]

    (choice,) = engine.complete(
        ids, model=name, max_tokens=1, prompt_logprobs=0, return_token_ids=True
    )["choices"]

    expected = references[name].logprobs(ids[:1], ids[1:])
    assert choice["prompt_logprobs"][0] is None
    scored = [
        entry[str(t)] for entry, t in zip(choice["prompt_logprobs"][1:], ids[1:], strict=True)
    ]
    assert max(abs(e - s["logprob"]) for e, s in zip(expected, scored, strict=True)) < TOLERANCE
    assert all(each["rank"] >= 1 for each in scored)


@pytest.mark.parametrize("name", ["base", "v1"])
def test_an_echoed_prompt_has_the_logprobs_of_transformers(
    engine: EngineProcess, references: dict[str, Reference], name: str
) -> None:
    """Those of the version asked for, of each of several prompts, and the answer's behind them."""
    prompts = [[(7 * at * at + 3 * at) % 1200 + 3 for at in range(size)] for size in (300, 2, 1)]

    answered = engine.complete(
        prompts, model=name, max_tokens=5, echo=True, logprobs=1, return_token_ids=True
    )

    for prompt, choice in zip(prompts, answered["choices"], strict=True):
        ids = [*prompt, *choice["token_ids"]]
        first, *found = choice["logprobs"]["token_logprobs"]
        assert first is None
        answer = {"ids": ids[1:], "logprobs": found}
        assert max_error(references[name], ids[:1], answer) < TOLERANCE


def test_rank_and_alternatives_of_prompt_logprobs_agree(engine: EngineProcess) -> None:
    """The alternatives come best first by rank, and the prompt's own token keeps its own."""
    ids = [300, 400, 500, 600]

    body = engine.complete(ids, max_tokens=1, prompt_logprobs=3)

    for token, entry in zip(ids[1:], body["choices"][0]["prompt_logprobs"][1:], strict=True):
        assert str(token) in entry
        by_rank = sorted(entry.values(), key=lambda each: each["rank"])
        assert by_rank == sorted(entry.values(), key=lambda each: -each["logprob"])
        assert [1, 2, 3] == [each["rank"] for each in by_rank[:3]]


def test_the_greedy_answer_of_a_cached_prompt_is_that_of_a_cold_one(
    engine: EngineProcess, references: dict[str, Reference]
) -> None:
    """A resent history is taken from the prefix cache, and the logprobs stay those of its ids."""
    messages = [{"role": "user", "content": "Tell me a story. " * 60}]
    asked = {"max_tokens": 40, "temperature": 0, "logprobs": True, "return_token_ids": True}

    cold = engine.chat(messages=messages, **asked)
    warm = engine.chat(messages=messages, **asked)
    longer = [
        *messages,
        {"role": "assistant", "content": cold["choices"][0]["message"]["content"]},
        {"role": "user", "content": "And then?"},
    ]
    continued = engine.chat(messages=longer, **asked)

    num_prompt = cold["usage"]["prompt_tokens"]
    assert num_prompt > 256
    assert 0 == cold["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert num_prompt - 1 == warm["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert continued["usage"]["prompt_tokens_details"]["cached_tokens"] >= num_prompt - 1
    assert cold["choices"][0]["token_ids"] == warm["choices"][0]["token_ids"]
    for body in (cold, warm, continued):
        prompt, (answer,) = answers_of(body)
        assert max_error(references["base"], prompt, answer) < TOLERANCE


def test_the_prefix_cache_of_one_version_is_never_used_for_another(
    engine: EngineProcess,
    references: dict[str, Reference],
    adapters: dict[str, Path | None],
) -> None:
    """A name that is loaded again with other weights starts cold: nothing of the old is reused."""
    messages = [{"role": "user", "content": "A long conversation goes on. " * 50}]
    asked = {
        "messages": messages,
        "max_tokens": 10,
        "temperature": 0,
        "logprobs": True,
        "return_token_ids": True,
    }
    first, second = adapters["v1"], adapters["v3"]
    assert first is not None
    assert second is not None

    with engine.version("again", first):
        warmed = [engine.chat(model="again", **asked) for _ in range(2)]
    with engine.version("again", second):
        other = [engine.chat(model="again", **asked) for _ in range(2)]
    base = engine.chat(model="base", **asked)

    cached = [body["usage"]["prompt_tokens_details"]["cached_tokens"] for body in warmed + other]
    assert [0, True, 0, True] == [cached[0], cached[1] > 256, cached[2], cached[3] > 256]
    assert 0 == base["usage"]["prompt_tokens_details"]["cached_tokens"]
    for name, bodies in (("v1", warmed), ("v3", other), ("base", [base])):
        for body in bodies:
            prompt, (answer,) = answers_of(body)
            assert max_error(references[name], prompt, answer) < TOLERANCE


async def test_a_request_keeps_its_version_when_that_is_unloaded_midway(
    engine: EngineProcess,
    references: dict[str, Reference],
    adapters: dict[str, Path | None],
) -> None:
    """Unloaded, and its name given to other weights, the running request ends as it began."""
    first, second = adapters["v1"], adapters["v3"]
    assert first is not None
    assert second is not None
    asked = {
        "model": "moving",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 300,
        "ignore_eos": True,
        "logprobs": True,
        "return_token_ids": True,
    }
    loading = {"lora_name": "moving", "lora_path": str(first)}
    events: list[dict[str, Any]] = []

    async with engine.client() as client:
        engine_process.expect_ok(await client.post("/v1/load_lora_adapter", json=loading))
        stream = client.stream("POST", "/v1/chat/completions", json={**asked, "stream": True})
        async with stream as response:
            lines = response.aiter_lines()
            while len(events) < 20:
                events += parse_line(await anext(lines))
            engine_process.expect_ok(
                await client.post("/v1/unload_lora_adapter", json={"lora_name": "moving"})
            )
            gone = await client.post("/v1/chat/completions", json=asked)
            loading["lora_path"] = str(second)
            engine_process.expect_ok(await client.post("/v1/load_lora_adapter", json=loading))
            other = await ask(client, asked)
            async for line in lines:
                events += parse_line(line)
        engine_process.expect_ok(
            await client.post("/v1/unload_lora_adapter", json={"lora_name": "moving"})
        )

    assert 404 == gone.status_code
    prompt, (answer,) = answers_of(merge(events))
    assert 300 == len(answer["ids"])
    assert max_error(references["v1"], prompt, answer) < TOLERANCE
    prompt, (answer,) = answers_of(other)
    assert max_error(references["v3"], prompt, answer) < TOLERANCE


def parse_line(line: str) -> list[dict[str, Any]]:
    """Return the event in a line of a stream, if there is one."""
    data = line.removeprefix("data: ")
    return [json.loads(data)] if data.startswith("{") else []


def test_a_long_answer_stays_exact_to_its_end(
    engine: EngineProcess, references: dict[str, Reference]
) -> None:
    """After a thousand tokens the logprobs still are those of the ids."""
    prompt, (answer,) = answers_of(
        engine.chat(
            model="v2", max_tokens=1000, ignore_eos=True, logprobs=True, return_token_ids=True
        )
    )

    assert 1000 == len(answer["ids"])
    assert max_error(references["v2"], prompt, answer) < TOLERANCE


def test_a_bf16_base_serves_adapters_close_to_fp32(
    qwen3_bf16: Path, peft_a: Path, references: dict[str, Reference]
) -> None:
    """A bf16 base casts the adapter and stays nearest to the version that it serves."""
    engine = EngineProcess(Options(model=str(qwen3_bf16), served_name="base"))
    engine.wait_until_ready()

    try:
        with engine.version("v1", peft_a):
            prompt, (answer,) = answers_of(
                engine.chat(
                    model="v1",
                    max_tokens=200,
                    ignore_eos=True,
                    logprobs=True,
                    return_token_ids=True,
                )
            )
    finally:
        status = engine.end()

    errors = mean_errors(references, prompt, answer)
    assert 0 == status
    assert "v1" == min(errors, key=lambda name: errors[name])
    assert errors["v1"] < 0.2
    assert errors["base"] > 0.5


def test_a_quantised_base_serves_adapters(
    qwen3_4bit: Path, peft_a: Path, references: dict[str, Reference]
) -> None:
    """A 4-bit base with the adapter is nearer to the version that it serves than to others."""
    engine = EngineProcess(Options(model=str(qwen3_4bit), served_name="base"))
    engine.wait_until_ready()

    try:
        with engine.version("v1", peft_a):
            prompt, (answer,) = answers_of(
                engine.chat(model="v1", max_tokens=40, logprobs=True, return_token_ids=True)
            )
    finally:
        status = engine.end()

    errors = mean_errors(references, prompt, answer)
    assert 0 == status
    assert "v1" == min(errors, key=lambda name: errors[name])


def mean_errors(
    references: dict[str, Reference], prompt: Sequence[int], answer: dict[str, Any]
) -> dict[str, float]:
    """Return the mean difference from each reference."""
    return {
        name: sum(
            abs(a - b)
            for a, b in zip(
                reference.logprobs(prompt, answer["ids"]), answer["logprobs"], strict=True
            )
        )
        / len(answer["ids"])
        for name, reference in references.items()
    }
