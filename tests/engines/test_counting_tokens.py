"""A prompt is counted as the model would read it, where the engine can tell."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import engine_process
import httpx
import pytest
from fake_engine import Call, FakeEngine
from fake_llama_server import FakeLlamaServer
from fake_vllm import FakeVllm
from llamacpp_server import EXACT, gguf, llama_server
from running import Running, running, settings_for
from vllm_server import KEY

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
TOOL = {"name": "f", "description": "Adds.", "input_schema": {"type": "object", "properties": {}}}


def ask(text: str = "Hello there", **fields: Any) -> dict[str, Any]:
    """Return a request to count; with `max_tokens` it is one to answer."""
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **fields}


@asynccontextmanager
async def fake(handler: Callable[[Call], Any], home: Path, **engine: Any) -> AsyncIterator[Running]:
    """Run a proxy in front of a fake engine."""
    async with FakeEngine(handler) as server:
        settings = settings_for(server.url, **engine, model={"name": "tiny"})
        async with running(settings, home / "home") as proxy:
            yield proxy


@pytest.fixture(
    params=[
        *("fake_vllm", "fake_llama_server", "fake_llama_router"),
        pytest.param("embedded", marks=pytest.mark.engine),
        pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.timeout(900)]),
        pytest.param("llama_server", marks=pytest.mark.llamacpp),
    ]
)
async def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    """A proxy in front of each engine that can count."""
    qwen3 = request.getfixturevalue("qwen3")
    model = {"name": "tiny"}
    match request.param:
        case "fake_vllm":
            async with fake(FakeVllm(), tmp_path) as proxy:
                yield proxy
        case "fake_llama_server" | "fake_llama_router":
            others = ("/models/b.gguf",) if request.param == "fake_llama_router" else ()
            async with fake(FakeLlamaServer(others), tmp_path, kind="llama_server") as proxy:
                yield proxy
        case "embedded":
            settings = settings_for(engine_process.shared(qwen3).url, model=model)
            async with running(settings, tmp_path / "home") as proxy:
                yield proxy
        case "vllm":
            url = request.getfixturevalue("parsing_vllm").url
            settings = settings_for(url, engine={"key": KEY}, model=model)
            async with running(settings, tmp_path / "home") as proxy:
                yield proxy
        case _:
            with llama_server(gguf(qwen3), *EXACT) as url:
                settings = settings_for(url, kind="llama_server", model=model)
                async with running(settings, tmp_path / "home") as proxy:
                    yield proxy


def counted(answer: httpx.Response) -> int:
    """Return the count."""
    assert 200 == answer.status_code, answer.text
    (count,) = answer.json().values()
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"system": "Be brief."},
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": {"type": "none"}},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    ],
    ids=["bare", "system", "tools", "no_tools", "thinking"],
)
async def test_a_count_is_what_an_answer_says_it_read(
    proxy: Running, fields: dict[str, Any]
) -> None:
    """To the token, whatever the request holds; nothing is recorded of it."""
    found = await proxy.client.post(f"{COUNT}?beta=true", json=ask(**fields))
    assert [] == await proxy.rows()

    answer = await proxy.client.post(MESSAGES, json=ask(**fields, max_tokens=1))
    usage = answer.json()["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == counted(found)


async def test_a_history_that_ends_in_an_answer_is_counted(proxy: Running) -> None:
    """An answer can't be begun for the model, but nobody asks for that."""
    asked = ask(tools=[TOOL])
    called = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    said = [{"type": "text", "text": "Hello yourself."}, called]
    answered = {**asked, "messages": [*asked["messages"], {"role": "assistant", "content": said}]}

    short = counted(await proxy.client.post(COUNT, json=asked))
    long = counted(await proxy.client.post(COUNT, json=answered))

    assert short < long


async def test_commands_and_what_they_were_answered_are_not_counted(tmp_path: Path) -> None:
    """The model never reads them."""
    async with fake(FakeVllm(), tmp_path) as proxy:
        plain = await proxy.client.post(COUNT, json=ask())
        rated = ask()
        rated["messages"] = [{"role": "user", "content": "/rl status"}, *rated["messages"]]

        assert counted(plain) == counted(await proxy.client.post(COUNT, json=rated))


async def test_a_version_that_is_not_loaded_is_counted_as_its_base(tmp_path: Path) -> None:
    """They read alike, and nothing is loaded for it."""
    async with fake(FakeVllm(), tmp_path) as proxy:
        plain = await proxy.client.post(COUNT, json=ask())
        pinned = await proxy.client.post(COUNT, json=ask(model="tiny@v7"))

        assert counted(plain) == counted(pinned)


@pytest.mark.parametrize(
    ("fields", "status", "kind", "words"),
    [
        ({"model": "other"}, 404, "not_found_error", "does not exist here"),
        ({"messages": "x"}, 400, "invalid_request_error", "expected `messages`"),
        ({"mcp_servers": [{}]}, 400, "invalid_request_error", "connects to no MCP servers"),
    ],
)
async def test_what_can_not_be_counted_is_refused_as_the_api_does(
    tmp_path: Path, fields: dict[str, Any], status: int, kind: str, words: str
) -> None:
    """And says that strop did."""
    async with fake(FakeVllm(), tmp_path) as proxy:
        answer = await proxy.client.post(COUNT, json=ask(**fields))

    said = answer.json()
    assert (status, "error", kind) == (answer.status_code, said["type"], said["error"]["type"])
    assert words in said["error"]["message"]
    assert "proxy" == answer.headers["x-strop-error-source"]


async def test_an_engine_that_can_not_count_says_which_can(tmp_path: Path) -> None:
    """A client then does without; a 5xx it would ask again."""
    async with fake(FakeVllm(), tmp_path, kind="openai") as proxy:
        answer = await proxy.client.post(COUNT, json=ask())

    assert (404, True) == (answer.status_code, "vLLM" in answer.json()["error"]["message"])


@pytest.mark.parametrize(("status", "expected"), [(400, 400), (404, 404), (500, 502), (200, 502)])
async def test_an_engine_that_fails_to_count_says_why(
    tmp_path: Path, status: int, expected: int
) -> None:
    """What is wrong with the prompt is the client's to mend; a route may be missing in old ones."""
    vllm = FakeVllm()

    async def handler(call: Call) -> None:
        if call.request.path == "/tokenize":
            await call.json({"error": {"message": "no such role"}}, status)
        else:
            await vllm(call)

    async with fake(handler, tmp_path) as proxy:
        answer = await proxy.client.post(COUNT, json=ask())

    assert expected == answer.status_code
    assert expected == 404 or "no such role" in answer.json()["error"]["message"]


async def test_counting_asks_for_the_clients_key(tmp_path: Path) -> None:
    """As all of `/v1` does."""
    async with FakeEngine(FakeVllm()) as engine:
        settings = settings_for(engine.url, server={"client_keys": ("secret",)})
        async with running(settings, tmp_path / "home") as proxy:
            refused = await proxy.client.post(COUNT, json=ask())
            let_in = await proxy.client.post(COUNT, json=ask(), headers={"x-api-key": "secret"})

    assert (401, "authentication_error") == (
        refused.status_code,
        refused.json()["error"]["type"],
    )
    assert counted(let_in) > 0
