"""The driver for llama-server, against a fake in its shapes and in its lane the real one."""

import re
from array import array
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import models
import pytest
from fake_engine import FakeEngine
from fake_llama_server import FakeLlamaServer
from llamacpp_server import EXACT, gguf, llama_server
from openai import AsyncOpenAI, BadRequestError
from running import Running, running, settings_for
from waiting import LIMIT_S

from strop.adapters.gguf import convert
from strop.proxy import detection
from strop.proxy.engines.llama_server import LlamaServer
from strop.proxy.errors import EngineNotReady
from strop.proxy.upstream.upstream import Upstream

MESSAGES: list[Any] = [{"role": "user", "content": "Hello there"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.llamacpp)])
async def url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Where a llama-server, or what speaks as it does, listens."""
    if request.param == "fake":
        async with FakeEngine(FakeLlamaServer()) as engine:
            yield engine.url
    else:
        with llama_server(gguf(request.getfixturevalue("qwen3")), *EXACT) as real:
            yield real


@pytest.fixture
async def proxy(url: str, tmp_path: Path) -> AsyncIterator[Running]:
    """A proxy in front of it."""
    async with running(settings_for(url, kind="llama_server"), tmp_path / "home") as proxy:
        yield proxy


def client_of(proxy: Running) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="strop", max_retries=0)


def masked(body: bytes) -> bytes:
    """Return an answer without what differs between any two, its sizes in floats included."""
    body = re.sub(rb'"timings":\{[^}]*\}', b'"timings":{}', body)
    body = re.sub(rb'"cached_tokens":\d+', b'"cached_tokens":0', body)
    return re.sub(rb'"(created|id)":("[^"]*"|\d+)', rb'"\1":0', body)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"stream_options": {"include_usage": True}}, {"tools": [TOOL]}],
    ids=["bare", "usage", "tools"],
)
async def test_a_client_gets_what_the_server_sends_unasked(
    url: str, proxy: Running, stream: bool, fields: dict[str, Any]
) -> None:
    """Byte for byte: the logprobs that strop asks for are taken out again."""
    body = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0, "stream": stream, **fields}
    if not stream:
        body.pop("stream_options", None)

    async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as direct:
        expected = await direct.post("/v1/chat/completions", json=body)
    relayed = await proxy.client.post("/v1/chat/completions", json={"model": "tiny", **body})

    assert masked(expected.content) == masked(relayed.content)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_text_completion_comes_through_too(url: str, proxy: Running, stream: bool) -> None:
    """Where it has no logprobs it has a null, unlike a chat."""
    body = {"prompt": "a", "max_tokens": 5, "temperature": 0, "stream": stream}

    async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as direct:
        expected = await direct.post("/v1/completions", json=body)
    relayed = await proxy.client.post("/v1/completions", json={"model": "tiny", **body})

    assert masked(expected.content) == masked(relayed.content)
    (choice,) = (await proxy.row()).completion.choices
    assert choice.token_ids is not None
    assert len(choice.token_ids) == len(choice.logprobs or ())


async def test_it_is_found_by_what_it_says(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`strop engines` names its driver."""
    monkeypatch.setattr(detection, "TIMEOUT_S", LIMIT_S)

    (found,) = await detection.find([url])

    assert "llama_server" == found.kind


async def test_the_openai_package_streams_and_the_snapshot_is_whole(proxy: Running) -> None:
    """Each sampled token has its id and its logprob, and both counts are known."""
    async with client_of(proxy) as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=6, temperature=0, stream=True
        )
        said = "".join([c.choices[0].delta.content or "" async for c in stream])

    completion = (await proxy.row()).completion
    (choice,) = completion.choices
    assert said
    assert isinstance(choice.token_ids, array)
    assert 6 == completion.completion_tokens == len(choice.token_ids) == len(choice.logprobs or ())
    assert completion.prompt_tokens
    assert completion.prompt_ids is None


@pytest.mark.llamacpp
async def test_logprobs_are_those_of_transformers(qwen3: Path, tmp_path: Path) -> None:
    """Raw log-softmax of the same ids, whatever the temperature."""
    prompt = "Hello the"
    with llama_server(gguf(qwen3), *EXACT) as url:
        async with running(settings_for(url, kind="llama_server"), tmp_path / "home") as proxy:
            for seed in range(8):
                body = {"model": "tiny", "prompt": prompt, "max_tokens": 12}
                await proxy.client.post(
                    "/v1/completions", json={**body, "temperature": 0.7, "seed": seed}
                )
            rows = await proxy.rows()
    # Where a token ended inside a character, the server's answer has no snapshot.
    whole = [one for row in rows for one in row.completion.choices if one.token_ids is not None]
    assert whole

    prompt_ids = models.make_tokenizer().encode(prompt)
    for choice in whole:
        expected = models.reference_logprobs(qwen3, None, prompt_ids, choice.token_ids or ())
        assert pytest.approx(expected, abs=1e-4) == list(choice.logprobs or ())


async def test_a_context_overflow_reaches_the_client_as_the_server_words_it(proxy: Running) -> None:
    """As its own error object, with its status; recorded as an upstream error."""
    async with client_of(proxy) as client:
        with pytest.raises(BadRequestError, match="exceeds the available context size") as raised:
            await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "word " * 900}]
            )

    assert "exceed_context_size_error" == raised.value.type
    assert "upstream_error" == (await proxy.row()).completion.state


async def test_an_answer_that_lacks_tokens_has_no_snapshot(tmp_path: Path) -> None:
    """The server leaves out tokens that end inside a character: its ids are not the answer's."""
    answered: list[tuple[bool, bool]] = []
    async with (
        FakeEngine(FakeLlamaServer()) as engine,
        running(settings_for(engine.url, kind="llama_server"), tmp_path / "home") as proxy,
    ):
        for number in range(12):
            await proxy.chat(f"question {number}", stream=number % 2 == 0)
        for row in await proxy.rows():
            (choice,) = row.completion.choices
            answered.append((b"\xf0\x9f\x99\x82" in choice.message, choice.token_ids is not None))

    assert {(True, False), (False, True)} == set(answered)


async def test_it_is_not_ready_while_it_reads_its_model(tmp_path: Path) -> None:
    """It answers 503 until then, and strop asks again."""
    handler = FakeLlamaServer(is_loading=True)
    async with FakeEngine(handler) as engine:
        upstream = Upstream(engine.url)
        driver = LlamaServer(upstream)
        with pytest.raises(EngineNotReady, match="503; it may be loading its model"):
            await driver.check()

        handler.is_loading = False

        assert ("tiny",) == (await driver.check()).models
        await upstream.aclose()


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (FakeLlamaServer(), ""),
        (FakeLlamaServer(gives_logprobs=False), "returns none"),
        (FakeLlamaServer(lora_scale=1.0), "--lora"),
        (FakeLlamaServer(lora_scale=0.0), ""),
        (FakeLlamaServer(others=("/models/b.gguf",), lora_scale=1.0), "--lora"),
    ],
    ids=["all", "no logprobs", "adapter", "adapter off", "adapter of a router's"],
)
async def test_what_it_claims_and_does_not_do_is_said(
    handler: FakeLlamaServer, expected: str
) -> None:
    """Logprobs that don't come, and weights that are not the base's."""
    async with FakeEngine(handler) as engine:
        upstream = Upstream(engine.url)
        driver = LlamaServer(upstream)
        await driver.check()

        await driver.verify("tiny")

        assert expected in " ".join(driver.shortfalls)
        assert bool(expected) == bool(driver.shortfalls)
        await upstream.aclose()


@pytest.mark.parametrize(("key", "status"), [("right", 200), ("wrong", 401)])
async def test_its_own_key_goes_in_place_of_the_clients(
    key: str, status: int, tmp_path: Path
) -> None:
    """A wrong one is refused as the server words it."""
    async with FakeEngine(FakeLlamaServer(key="right")) as engine:
        settings = settings_for(engine.url, kind="llama_server", engine={"key": key})
        async with running(settings, tmp_path / "home") as proxy:
            answer = await proxy.chat()

            assert status == answer.status_code
            assert ("Invalid API Key" in answer.text) == (status == 401)


@pytest.mark.llamacpp
@pytest.mark.parametrize("adapter", ["peft_a", "peft_b", "peft_c"])
async def test_an_adapter_file_is_what_peft_computes(
    adapter: str, qwen3: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The file that Ollama gets, in the llama-server that Ollama runs; rank-stabilised ones too."""
    folder: Path = request.getfixturevalue(adapter)
    file = tmp_path / "lora.gguf"
    convert(folder, qwen3, file)

    await _assert_is_served(gguf(qwen3), file, base=qwen3, adapter=folder)


@pytest.mark.llamacpp
async def test_an_adapter_of_a_llama_is_too(llama: Path, tmp_path: Path) -> None:
    """Its rotary halves are laid side by side."""
    folder = models.make_peft(
        llama, tmp_path / "peft", rank=8, alpha=16, targets=models.ALL_LINEAR, seed=4, scale=0.1
    )
    file = tmp_path / "lora.gguf"
    convert(folder, llama, file)

    await _assert_is_served(gguf(llama), file, base=llama, adapter=folder)


async def _assert_is_served(model: Path, file: Path, *, base: Path, adapter: Path) -> None:
    prompt = "Hello the"
    with llama_server(model, "--lora", str(file), *EXACT) as url:
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as client:
            body = {"prompt": prompt, "n_predict": 40, "return_tokens": True, "n_probs": 1}
            said = (await client.post("/completion", json={**body, "temperature": 1})).json()
    ids = said["tokens"]
    prompt_ids = models.make_tokenizer().encode(prompt)

    expected = models.reference_logprobs(base, adapter, prompt_ids, ids)
    plain = models.reference_logprobs(base, None, prompt_ids, ids)

    # Tokens that end inside a character have no entry.
    entries = deque(said["completion_probabilities"])
    errors, effects = [], []
    for token, adapted, unadapted in zip(ids, expected, plain, strict=True):
        if entries and entries[0]["id"] == token:
            errors.append(abs(entries.popleft()["logprob"] - adapted))
            effects.append(abs(unadapted - adapted))
    assert not entries
    assert max(errors) < 1e-4
    assert max(effects) > 0.1


async def test_a_routers_model_is_named_whatever_its_name_is() -> None:
    """A path has slashes, and a preset's name may have what a query reads otherwise."""
    handler = FakeLlamaServer(others=("a+b&c/d e:Q4",), lora_scale=1.0)
    async with FakeEngine(handler) as engine:
        upstream = Upstream(engine.url)
        driver = LlamaServer(upstream)
        await driver.check()

        await driver.verify("a+b&c/d e:Q4")

        assert "--lora" in " ".join(driver.shortfalls)
        await upstream.aclose()
