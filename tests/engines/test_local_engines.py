"""What holds for each engine that a person runs on this machine, whichever it is."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, Handler
from fake_llama_server import FakeLlamaServer
from fake_mlx_server import FakeMlxServer
from fake_ollama import FakeOllama
from openai import AsyncOpenAI
from running import Running, running, settings_for
from waiting import LIMIT_S

from strop.proxy import configured_engine
from strop.proxy.engines.base import Ask, Engine
from strop.proxy.errors import BadRequest, EngineNotReady, UpstreamError, UpstreamUnreachable

KINDS: dict[str, Callable[[], Any]] = {
    "mlx_server": FakeMlxServer,
    "ollama": FakeOllama,
    "llama_server": FakeLlamaServer,
}
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

every_kind = pytest.mark.parametrize("kind", KINDS)


def driver_for(url: str, kind: str) -> Engine:
    driver, _ = configured_engine.make(settings_for(url, kind=kind), Path("/none"))
    return driver


async def alias_of(proxy: Running) -> str:
    return proxy.services.serving.alias.name


def masked(body: bytes) -> bytes:
    return re.sub(rb'"(created|id|model)": ?("[^"]*"|\d+)', rb'"\1":0', body)


@every_kind
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("dialect", ["chat", "completions"])
async def test_an_answer_comes_through_as_it_is_and_is_recorded(
    kind: str, stream: bool, dialect: str, tmp_path: Path
) -> None:
    """Whole, with both counts, and with a logprob for each token where it has any."""
    async with (
        FakeEngine(KINDS[kind]()) as engine,
        running(settings_for(engine.url, kind=kind), tmp_path / "home") as proxy,
        httpx.AsyncClient(base_url=engine.url, timeout=LIMIT_S) as direct,
    ):
        path = "/v1/chat/completions" if dialect == "chat" else "/v1/completions"
        asked: Any = {"prompt": "a"}
        if dialect == "chat":
            asked = {"messages": [{"role": "user", "content": "a"}]}
        body = {**asked, "stream": stream, "max_tokens": 6}
        name = await alias_of(proxy)
        sent = proxy.services.serving.engine.plan(
            Ask("chat", b"", {**body, "model": name}, proxy.services.serving.alias.active.name)
        )
        model = httpx.Response(200, content=sent.body).json()["model"]

        expected = await direct.post(path, json={**body, "model": model})
        relayed = await proxy.client.post(path, json={**body, "model": name})

        assert masked(expected.content) == masked(relayed.content)
        completion = (await proxy.row()).completion
        (choice,) = completion.choices
        assert "complete" == completion.state
        assert completion.prompt_tokens
        assert completion.completion_tokens
        if choice.token_ids is not None:
            assert len(choice.token_ids) == len(choice.logprobs or ())


@every_kind
async def test_the_openai_package_is_served_and_its_answer_rated(kind: str, tmp_path: Path) -> None:
    """In JSON and in a stream, with tools and with logprobs."""
    async with (
        FakeEngine(KINDS[kind]()) as engine,
        running(settings_for(engine.url, kind=kind), tmp_path / "home") as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="strop", max_retries=0) as client,
    ):
        asked: Any = {
            "model": await alias_of(proxy),
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 6,
        }
        whole = await client.chat.completions.create(**asked)
        with_tools = await client.chat.completions.create(**asked, tools=[TOOL], stream=True)
        streamed = [chunk async for chunk in with_tools]
        scored = await client.chat.completions.create(**asked, logprobs=True)
        (newest, *_) = reversed(await proxy.rows())
        rated = await proxy.client.post(
            "/v1/feedback", json={"completion_id": newest.completion.id, "rating": "good"}
        )

        assert whole.choices[0].message.content
        assert whole.choices[0].logprobs is None
        assert streamed[-1].choices[0].finish_reason
        assert scored.choices[0].logprobs is not None
        assert 201 == rated.status_code


@every_kind
async def test_an_engine_that_is_away_at_the_start_is_served_once_it_comes(
    kind: str, tmp_path: Path
) -> None:
    """Until then requests are refused at once, and the reason says where it was looked for."""
    async with FakeEngine(KINDS[kind]()) as engine:
        await engine.stop()
        settings = settings_for(engine.url, kind=kind, engine={"health_interval_s": 0.01})
        async with running(settings, tmp_path / "home", ready=False) as proxy:
            await proxy.services.serving.wait_until_asked()
            refused = await proxy.chat()
            await engine.start()
            await proxy.services.serving.wait_until_ready()
            served = await proxy.chat(model=await alias_of(proxy))

    assert (503, "engine_not_ready") == (refused.status_code, refused.json()["error"]["code"])
    assert engine.url in refused.text
    assert 200 == served.status_code


@every_kind
async def test_an_engine_that_restarts_while_requests_run_breaks_only_those(
    kind: str, tmp_path: Path
) -> None:
    """They end with an error event and are recorded; later ones are served."""
    handler = KINDS[kind]()
    started, is_first = asyncio.Event(), True

    async def hang(number: int) -> None:
        if number == 1 and is_first:
            started.set()
            await asyncio.Event().wait()

    handler.before_event = hang
    settings_engine = {"health_interval_s": 0.01}
    async with FakeEngine(handler) as engine:
        settings = settings_for(engine.url, kind=kind, engine=settings_engine)
        async with running(settings, tmp_path / "home") as proxy:
            name = await alias_of(proxy)
            cut = asyncio.create_task(proxy.chat(model=name, stream=True))
            await started.wait()
            await engine.stop()
            broken, is_first = await cut, False
            await engine.start()
            served = await proxy.chat(model=name, stream=True)
            while served.status_code != 200:
                served = await proxy.chat(model=name, stream=True)

            assert "upstream_died" in broken.text
            assert "[DONE]" not in broken.text
            assert served.text.endswith("data: [DONE]\n\n")
            assert "upstream_error" == (await proxy.rows())[0].completion.state


@every_kind
async def test_a_client_that_leaves_is_recorded_as_such(kind: str, tmp_path: Path) -> None:
    """With what there was."""
    handler = KINDS[kind]()

    async def hang(number: int) -> None:
        if number == 2:
            await asyncio.Event().wait()

    handler.before_event = hang
    async with (
        FakeEngine(handler) as engine,
        running(settings_for(engine.url, kind=kind), tmp_path / "home") as proxy,
    ):
        messages = [{"role": "user", "content": "hi"}]
        asked = {"model": await alias_of(proxy), "messages": messages, "stream": True}
        async with proxy.client.stream("POST", "/v1/chat/completions", json=asked) as answer:
            said, pieces = b"", answer.aiter_bytes()
            while b"data: {" not in said:
                said += await anext(pieces)

        completion = (await proxy.row()).completion
        assert "client_cancelled" == completion.state
        (choice,) = completion.choices
        assert choice.token_ids is None


@every_kind
@pytest.mark.parametrize("field", ["adapters", "lora", "draft_model"])
async def test_a_request_does_not_choose_weights(kind: str, field: str) -> None:
    """What names files or weights on the engine's side is refused."""
    driver = driver_for("http://127.0.0.1:1", kind)

    with pytest.raises(BadRequest, match=field):
        driver.plan(Ask("chat", b"", {"messages": [], field: "/anywhere"}, "tiny"))


@every_kind
@pytest.mark.parametrize("status", [401, 503])
async def test_who_is_turned_away_is_not_ready(kind: str, status: int) -> None:
    """By a proxy before it that wants another key, for instance; the reason has the status."""

    async def turn_away(call: Any) -> None:
        await call.json({"error": {"message": "go away"}}, status)

    handler: Handler = turn_away
    async with FakeEngine(handler) as engine:
        driver = driver_for(engine.url, kind)
        with pytest.raises((EngineNotReady, UpstreamError), match=str(status)):
            await driver.check()
        await driver.upstream.aclose()


@every_kind
async def test_nobody_there_is_unreachable(kind: str) -> None:
    """The message says what to do, and says it once."""
    driver = driver_for("http://127.0.0.1:1", kind)

    with pytest.raises(UpstreamUnreachable, match=r"engine\.url") as caught:
        await driver.check()

    assert 1 == caught.value.message.count("expected")
