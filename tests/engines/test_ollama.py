"""The driver for Ollama, against a fake that behaves as its source says."""

import asyncio
import json
import re
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fake_ollama import FakeOllama, base_of
from fake_ollama_model import FakeOllamaModel
from models import make_tokenizer
from openai import AsyncOpenAI, BadRequestError
from running import Running, running, settings_for
from waiting import LIMIT_S, until

from strop.adapters.identity import identify
from strop.proxy.engines.ollama import Ollama, version_of
from strop.proxy.engines.wanted import Wanted
from strop.proxy.errors import EngineNotReady
from strop.proxy.upstream.upstream import Upstream
from strop.training import rows
from strop.training.rows import Target
from strop.training.tokenizer import BaseTokenizer

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture
def ollama() -> FakeOllama:
    """An Ollama with two models."""
    return FakeOllama(models={"tiny:latest": base_of("tiny"), "other:8b": base_of("other")})


@pytest.fixture
async def engine(ollama: FakeOllama) -> AsyncIterator[FakeEngine]:
    """Where it listens."""
    async with FakeEngine(ollama) as engine:
        yield engine


@pytest.fixture
async def proxy(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[Running]:
    """A proxy in front of it."""
    async with running(settings_for(engine.url, kind="ollama"), tmp_path / "home") as proxy:
        yield proxy


def client_of(proxy: Running) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="strop", max_retries=0)


def masked(body: bytes) -> bytes:
    """Return an answer without what differs between any two."""
    return re.sub(rb'"(created|id)":("[^"]*"|\d+)', rb'"\1":0', body)


REQUESTS: list[dict[str, Any]] = [
    {},
    {"logprobs": True, "top_logprobs": 0},
    {"max_tokens": 3},
    {"stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": False}},
]


@pytest.mark.parametrize("has_parser", [False, True], ids=["plain", "parser"])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("fields", REQUESTS, ids=str)
async def test_a_client_gets_what_ollama_sends_unasked(
    has_parser: bool,
    stream: bool,
    fields: dict[str, Any],
    ollama: FakeOllama,
    engine: FakeEngine,
    proxy: Running,
) -> None:
    """Byte for byte: logprobs, usage, and events that are there for them alone."""
    ollama.has_parser = has_parser
    body = {"model": "tiny", "messages": MESSAGES, **fields, "stream": stream}

    async with httpx.AsyncClient(base_url=engine.url, timeout=LIMIT_S) as direct:
        expected = await direct.post("/v1/chat/completions", json=body)
    relayed = await proxy.client.post("/v1/chat/completions", json=body)

    assert masked(expected.content) == masked(relayed.content)
    completion = (await proxy.row()).completion
    assert completion.prompt_tokens
    assert completion.completion_tokens


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_text_completion_comes_through_too(
    stream: bool, engine: FakeEngine, proxy: Running
) -> None:
    """Its logprobs are asked for by a number."""
    body = {"model": "tiny", "prompt": "a", "stream": stream}

    async with httpx.AsyncClient(base_url=engine.url, timeout=LIMIT_S) as direct:
        expected = await direct.post("/v1/completions", json=body)
    relayed = await proxy.client.post("/v1/completions", json=body)

    assert masked(expected.content) == masked(relayed.content)
    assert 1 == engine.requests[-1].json()["logprobs"]


async def answers(proxy: Running, number: int = 24) -> list[tuple[str, Any, int | None]]:
    """Ask for some; return the text, the choice, and how many tokens Ollama says it has."""
    for one in range(number):
        await proxy.chat(f"question {one}", stream=one % 2 == 0)
    found = []
    for row in await proxy.rows():
        (choice,) = row.completion.choices
        text = json.loads(choice.message)["content"]
        found.append((text, choice, row.completion.completion_tokens))
    return found


@pytest.mark.parametrize("drops_end", [False, True], ids=["with end", "without end"])
async def test_logprobs_are_kept_only_where_each_token_has_one(
    drops_end: bool, ollama: FakeOllama, proxy: Running
) -> None:
    """Ollama leaves out tokens that end inside a character: the others are not the whole answer."""
    ollama.drops_end = drops_end

    found = await answers(proxy)

    assert {True, False} == {"🙂" in text for text, _, _ in found}
    for text, choice, num_tokens in found:
        assert choice.token_ids is None
        if "🙂" in text:
            assert choice.logprobs is None
            assert choice.token_texts is None
        else:
            assert isinstance(choice.logprobs, array)
            assert num_tokens == len(choice.logprobs) + drops_end
            assert len(choice.logprobs) == len(choice.token_texts)
            assert text == "".join(choice.token_texts)


async def test_text_that_is_not_ascii_keeps_its_logprobs_where_all_are_there(
    ollama: FakeOllama, proxy: Running
) -> None:
    """Without the end's own, the texts of all tokens together say so."""
    ollama.drops_end = True

    found = await answers(proxy, 40)

    kept = [choice.logprobs is not None for text, choice, _ in found if "你" in text]
    assert any(kept)
    assert {False} == {choice.logprobs is not None for text, choice, _ in found if "🙂" in text}


@pytest.mark.parametrize("drops_end", [False, True], ids=["with end", "without end"])
async def test_the_tokens_of_thoughts_are_kept_too(
    drops_end: bool, ollama: FakeOllama, proxy: Running
) -> None:
    """With those that part them from the answer, in the order in which they were sampled."""
    ollama.thinks, ollama.drops_end = True, drops_end

    await answers(proxy, 40)

    kept = set()
    for row in await proxy.rows():
        (choice,) = row.completion.choices
        said = json.loads(choice.message)
        whole = f"{said['reasoning']}</think>{said['content']}"
        kept.add((choice.token_texts is not None, "🙂" in whole, whole.isascii()))
        assert choice.token_texts is None or whole == "".join(choice.token_texts)
    assert {(True, False, True), (True, False, False), (False, True, False)} == kept


async def test_an_id_in_a_body_names_no_answer(proxy: Running) -> None:
    """It is one of 999 numbers."""
    await proxy.chat(model="tiny")

    assert (await proxy.row()).completion.upstream_id is None


async def test_the_new_name_of_the_limit_is_heeded(engine: FakeEngine, proxy: Running) -> None:
    """Ollama knows `max_tokens` alone, and would go on."""
    async with client_of(proxy) as client:
        answer = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_completion_tokens=2
        )

    assert "length" == answer.choices[0].finish_reason
    assert 2 == engine.requests[-1].json()["max_tokens"]


@pytest.mark.parametrize("model", ["tiny", "tiny:latest", "other:8b"])
async def test_every_model_is_served_under_the_names_that_ollama_takes(
    model: str, engine: FakeEngine, proxy: Running
) -> None:
    """`latest` may be left out."""
    answer = await proxy.chat(model=model)

    assert 200 == answer.status_code
    assert model in ("tiny", "tiny:latest", "other:8b")
    assert engine.requests[-1].json()["model"].split(":")[0] == model.split(":")[0]


async def test_the_model_with_versions_does_not_change_with_a_pull(ollama: FakeOllama) -> None:
    """The newest when strop starts, or the one that the settings name."""
    async with FakeEngine(ollama) as engine:
        upstream = Upstream(engine.url)
        driver, named = Ollama(upstream), Ollama(upstream, wanted=Wanted("other:8b"))
        before = await driver.check()

        ollama.models = {"new:latest": base_of("new"), **ollama.models}

        after = await driver.check()
        assert ("tiny", "tiny") == (before.models[0], after.models[0])
        assert ("tiny:latest",) == before.synonyms == after.synonyms
        assert before.digest == after.digest
        assert "new" in after.models
        assert "other:8b" == (await named.check()).models[0]
        await upstream.aclose()


async def test_without_a_model_it_is_not_ready() -> None:
    """The reason says how to get one."""
    async with FakeEngine(FakeOllama(models={})) as engine:
        upstream = Upstream(engine.url)
        with pytest.raises(EngineNotReady, match="ollama pull"):
            await Ollama(upstream).check()
        await upstream.aclose()


async def test_another_server_is_not_taken_for_it() -> None:
    """One that answers, but with no version."""
    async with FakeEngine(lambda call: call.json({})) as engine:
        upstream = Upstream(engine.url)
        with pytest.raises(EngineNotReady, match=r"engine\.kind"):
            await Ollama(upstream).check()
        await upstream.aclose()


@pytest.mark.parametrize(
    ("version", "missing"), [("0.33.0", ""), ("0.12.10", "0.12.11"), ("0.12.11", "")]
)
async def test_what_its_version_lacks_is_said(version: str, missing: str) -> None:
    """Logprobs are there from 0.12.11 on."""
    async with FakeEngine(FakeOllama(version=version)) as engine:
        upstream = Upstream(engine.url)
        driver = Ollama(upstream)
        await driver.check()
        await driver.verify("tiny")

        assert bool(missing) == bool(driver.shortfalls)
        assert missing in " ".join(driver.shortfalls)
        assert driver.capabilities.logprobs == (not missing)
        await upstream.aclose()


@pytest.mark.parametrize(
    ("said", "expected"),
    [("0.33.0-rc2", (0, 33, 0)), ("0.9.1", (0, 9, 1)), ("0.0.0", (65536, 0, 0))],
)
def test_a_version_is_read_as_numbers(said: str, expected: tuple[int, ...]) -> None:
    """A build from source has none, and counts as new."""
    assert expected == version_of(said)


async def test_an_error_in_a_stream_is_no_answer(ollama: FakeOllama, proxy: Running) -> None:
    """It comes behind a status of 200; the client sees it, and no [DONE]."""
    ollama.fails_at = 2

    answer = await proxy.chat(stream=True)

    completion = (await proxy.row()).completion
    assert 200 == answer.status_code
    assert "llama-server process has terminated" in answer.text
    assert "[DONE]" not in answer.text
    assert "upstream_error" == completion.state


async def test_a_context_overflow_reaches_the_client_as_ollama_words_it(
    ollama: FakeOllama, proxy: Running
) -> None:
    """As its own error object, with its status."""
    ollama.num_context = 100
    async with client_of(proxy) as client:
        with pytest.raises(BadRequestError, match="exceeds the available context size"):
            await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "word " * 200}]
            )

    assert "upstream_error" == (await proxy.row()).completion.state


async def test_a_chat_that_ollama_shortens_is_not_learned_from_as_it_was_asked(
    qwen3: Path, tmp_path: Path
) -> None:
    """It leaves the oldest messages out and says nothing; the prompt's count tells."""
    fake = FakeOllamaModel(folder=qwen3, num_context=100)
    target = Target(identify(qwen3, cache=None), 4096, BaseTokenizer(qwen3))
    question, answer = {"role": "user", "content": "word " * 9}, {"role": "assistant"}
    chats = [[question], [question, {**answer, "content": "word " * 90}, question]]
    async with FakeEngine(fake) as engine:
        settings = settings_for(
            engine.url, kind="ollama", model={"base": str(qwen3), "name": "tiny"}
        )
        async with running(settings, tmp_path / "home") as proxy:
            for messages in chats:
                said = await proxy.chat(messages=messages, max_tokens=4)
                assert 200 == said.status_code

            whole, shortened = [row.completion for row in await proxy.rows()]

    (prompt, _), (same_prompt, _) = fake.sampled
    assert prompt == same_prompt
    assert tuple(make_tokenizer().encode(prompt)) == rows.read_prompt(whole, target)
    assert rows.LeftOut.PROMPT_DIFFERS == rows.read(shortened, 0, target)


async def test_a_client_that_leaves_ends_its_request(ollama: FakeOllama, proxy: Running) -> None:
    """Ollama frees the runner for others."""
    started = asyncio.Event()

    async def hang(number: int) -> None:
        if number == 1:
            started.set()
            await asyncio.Event().wait()

    ollama.before_event = hang
    task = asyncio.create_task(proxy.chat(stream=True))
    await started.wait()
    task.cancel()

    assert "client_cancelled" == (await proxy.row()).completion.state


async def test_ollama_comes_back(tmp_path: Path) -> None:
    """While it is gone, requests get an error at once; then they are served again."""
    async with FakeEngine(FakeOllama()) as engine:
        settings = settings_for(engine.url, kind="ollama", engine={"health_interval_s": 0.01})
        async with running(settings, tmp_path / "home") as proxy:
            await engine.stop()
            lost = await proxy.chat()
            await engine.start()
            await proxy.services.serving.wait_until_ready()
            back = await proxy.chat()

            assert lost.status_code in (502, 503)
            assert 200 == back.status_code


async def test_what_its_weights_are_kept_in_is_that_of_the_model_it_has_now(
    ollama: FakeOllama, engine: FakeEngine
) -> None:
    """A pull may bring another under the same name; how far a probe may be off hangs on it."""
    upstream = Upstream(engine.url)
    driver = Ollama(upstream)
    await driver.check()
    await driver.verify("tiny")

    ollama.quantization = "Q8_0"
    await driver.check()

    assert "q8_0" == driver.capabilities.dtype
    await upstream.aclose()


async def test_a_pull_beside_it_leaves_what_serves_alone(
    ollama: FakeOllama, engine: FakeEngine, tmp_path: Path
) -> None:
    """The new model is served too, and nothing is loaded or proven again."""
    settings = settings_for(engine.url, kind="ollama", engine={"health_interval_s": 0.01})
    async with running(settings, tmp_path / "home") as proxy:
        serving = proxy.services.serving
        before = serving.alias

        ollama.models = {"new:latest": base_of("new"), **ollama.models}
        await until(lambda: "new" in serving.alias.others)

        assert (before.base, before.active) == (serving.alias.base, serving.alias.active)
        assert dict(before.versions) == dict(serving.alias.versions)
        assert 200 == (await proxy.chat(model="new")).status_code
