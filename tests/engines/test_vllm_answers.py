"""A real vLLM behind a real strop: answers, snapshots, errors and disconnects. `make test-vllm`."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import models
import openai
import pytest
import vllm_pairs
from running import Running, running, settings_for
from vllm_server import KEY, NAME, VllmServer
from waiting import until

from strop.proxy.engines.base import AdaptersFolder
from strop.proxy.engines.vllm import Vllm
from strop.proxy.store.records import StoredCompletion
from strop.proxy.upstream.upstream import Upstream

# The first test that needs a server waits for it, and for its installation.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.fixture
async def proxy(vllm: VllmServer, tmp_path: Path) -> AsyncIterator[Running]:
    """A proxy before it."""
    settings = settings_for(vllm.url, engine={"key": KEY})
    async with running(settings, tmp_path / "home") as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's own client of the proxy."""
    async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0) as client:
        yield client


async def compare_with_transformers(row: StoredCompletion, model: Path) -> int:
    """Check a snapshot against transformers; return how many tokens it has."""
    completion, num_tokens = row.completion, 0
    assert completion.prompt_ids is not None
    for choice in completion.choices:
        assert choice.token_ids is not None
        assert choice.logprobs is not None
        assert ("engine", "raw") == (choice.logprobs_source, choice.logprobs_kind)
        expected = await asyncio.to_thread(
            models.reference_logprobs, model, None, completion.prompt_ids, choice.token_ids
        )
        assert expected == pytest.approx(list(choice.logprobs), abs=1e-4)
        num_tokens += len(expected)
    return num_tokens


async def test_a_client_gets_what_vllm_would_send_it(vllm: VllmServer) -> None:
    """What the driver makes of an answer is byte for byte the answer to the client's own words."""
    upstream = Upstream(vllm.url)
    driver = Vllm(upstream, key=KEY)
    await driver.verify(NAME)
    async with vllm.client() as engine:
        pairs = await vllm_pairs.record(driver, engine, NAME)
    await upstream.aclose()
    vllm_pairs.keep(pairs)

    for pair in pairs:
        assert vllm_pairs.in_order(pair.plain) == vllm_pairs.in_order(
            vllm_pairs.restored(driver, pair)
        )


async def test_its_capabilities_are_what_it_delivers(vllm: VllmServer, tmp_path: Path) -> None:
    """Ids, raw logprobs, streams too, and adapters: nothing falls short."""
    upstream = Upstream(vllm.url)
    driver = Vllm(upstream, key=KEY, adapters=AdaptersFolder(tmp_path))
    state = await driver.check()
    await driver.verify(NAME)
    await upstream.aclose()

    assert ((NAME,), "0.32.0", 1024) == (state.models, state.version, state.max_model_len)
    assert () == driver.shortfalls
    can = driver.capabilities
    assert (can.token_ids, can.prompt_ids, can.logprobs, can.stream_logprobs) == (True,) * 4
    assert ("raw", 2, False) == (can.logprobs_kind, can.adapters, driver.hides_ids)


async def test_a_json_answer_is_the_engines_and_its_snapshot_is_right(
    proxy: Running, client: openai.AsyncOpenAI, vllm: VllmServer, qwen3: Path
) -> None:
    """Byte for byte but for ids and time; the logprobs are transformers' to 1e-4."""
    ask: dict[str, Any] = {"model": NAME, "messages": HELLO, "temperature": 0, "max_tokens": 48}
    relayed = await client.chat.completions.with_raw_response.create(**ask)
    async with vllm.client() as engine:
        direct = await engine.post("/v1/chat/completions", json=ask)

    assert vllm_pairs.masked(direct.text) == vllm_pairs.masked(relayed.text)
    assert 48 == await compare_with_transformers(await proxy.row(), qwen3)


async def test_a_stream_is_the_engines_and_its_snapshot_is_right(
    proxy: Running, client: openai.AsyncOpenAI, qwen3: Path
) -> None:
    """At T = 1 as well: raw logprobs don't depend on it."""
    stream = await client.chat.completions.create(
        model=NAME,
        messages=HELLO,
        stream=True,
        temperature=1.3,
        seed=5,
        max_tokens=48,
        stream_options={"include_usage": True},
    )
    text, usage = "", None
    async for chunk in stream:
        assert all(not getattr(choice, "token_ids", None) for choice in chunk.choices)
        assert all(choice.logprobs is None for choice in chunk.choices)
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage

    row = await proxy.row()
    assert usage is not None
    assert text == json.loads(row.completion.choices[0].message)["content"]
    num_tokens = await compare_with_transformers(row, qwen3)
    assert usage.completion_tokens == row.completion.completion_tokens == num_tokens
    assert usage.prompt_tokens == len(row.completion.prompt_ids or ())


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_other_dialects_have_the_same_snapshot(
    path: str, stream: bool, proxy: Running, qwen3: Path
) -> None:
    """Which vLLM itself doesn't give there."""
    ask = {"input": "Hello", "max_output_tokens": 48}
    if path == "/v1/messages":
        ask = {"messages": HELLO, "max_tokens": 48}
    answer = await proxy.client.post(
        path, json={"model": NAME, "temperature": 0, "stream": stream, **ask}
    )

    assert 200 == answer.status_code
    assert 48 == await compare_with_transformers(await proxy.row(), qwen3)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_each_of_several_choices_has_its_snapshot(
    stream: bool, proxy: Running, client: openai.AsyncOpenAI, qwen3: Path
) -> None:
    """In a stream they come mixed."""
    answer = await client.chat.completions.create(
        model=NAME,
        messages=HELLO,
        n=3,
        seed=1,
        max_tokens=16,
        stream=stream,
    )
    if stream:
        assert isinstance(answer, openai.AsyncStream)
        [None async for _ in answer]

    row = await proxy.row()
    assert [0, 1, 2] == [choice.index for choice in row.completion.choices]
    assert 3 == len({tuple(choice.token_ids or ()) for choice in row.completion.choices})
    assert 0 < await compare_with_transformers(row, qwen3)


async def test_a_client_that_asks_for_logprobs_gets_them(
    proxy: Running, client: openai.AsyncOpenAI
) -> None:
    """The ones that are recorded."""
    answer = await client.chat.completions.create(
        model=NAME,
        messages=HELLO,
        logprobs=True,
        top_logprobs=3,
        max_tokens=12,
        temperature=0,
    )

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    entries = logprobs.content or []
    assert 12 == len(entries)
    assert [3] * len(entries) == [len(entry.top_logprobs) for entry in entries]
    recorded = (await proxy.row()).completion.choices[0].logprobs
    assert [entry.logprob for entry in entries] == pytest.approx(list(recorded or ()), abs=1e-6)


@pytest.mark.parametrize("text", ["你好，世界", "😀 🎉 🚀", "Привет"])
async def test_characters_of_several_tokens_lose_none(
    text: str, proxy: Running, client: openai.AsyncOpenAI, qwen3: Path
) -> None:
    """Tokens without text make events of their own; the ids of all are recorded."""
    from transformers import AutoTokenizer

    stream = await client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": text}],
        stream=True,
        seed=2,
        max_tokens=64,
        extra_body={"ignore_eos": True},
    )
    said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    (choice,) = (await proxy.row()).completion.choices
    assert choice.token_ids is not None
    assert choice.logprobs is not None
    assert (64, 64) == (len(choice.token_ids), len(choice.logprobs))
    decoded = AutoTokenizer.from_pretrained(qwen3).decode(
        choice.token_ids, skip_special_tokens=True
    )
    assert decoded.rstrip("�") == said.rstrip("�")


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_text_completions_have_snapshots(
    stream: bool, proxy: Running, client: openai.AsyncOpenAI, qwen3: Path
) -> None:
    """The other dialect, where ids and logprobs stand elsewhere."""
    answer = await client.completions.create(
        model=NAME, prompt="def main(", max_tokens=24, seed=4, stream=stream
    )
    if isinstance(answer, openai.AsyncStream):
        said = "".join([chunk.choices[0].text async for chunk in answer])
    else:
        said = answer.choices[0].text

    row = await proxy.row()
    assert said == json.loads(row.completion.choices[0].message)["text"]
    assert 0 < await compare_with_transformers(row, qwen3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": [{"role": "user", "content": "word " * 2000}]},
        {"messages": HELLO, "max_tokens": 5000},
        {"messages": HELLO, "temperature": -1},
        {"messages": HELLO, "logprobs": True, "top_logprobs": 99},
        {"messages": HELLO, "seed": "x"},
        {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]},
    ],
    ids=["context", "max_tokens", "temperature", "top_logprobs", "seed", "tools"],
)
async def test_an_error_reaches_the_client_as_the_engine_words_it(
    wrong: dict[str, Any], proxy: Running, vllm: VllmServer
) -> None:
    """Status and body; it is recorded, with what it says."""
    ask = {"model": NAME, **wrong}
    async with vllm.client() as engine:
        direct = await engine.post("/v1/chat/completions", json=ask)
    relayed = await proxy.client.post("/v1/chat/completions", json=ask)

    assert (direct.status_code, direct.text) == (relayed.status_code, relayed.text)
    assert direct.status_code >= 400
    row = (await proxy.row()).completion
    assert ("upstream_error", direct.status_code) == (row.state, row.status)
    assert direct.json()["error"]["message"] == row.error


async def test_the_openai_client_raises_what_the_engine_means(
    client: openai.AsyncOpenAI,
) -> None:
    """A context that is too long is a bad request, an unknown model is not found."""
    with pytest.raises(openai.BadRequestError, match=r"context length|maximum"):
        await client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "word " * 2000}]
        )
    with pytest.raises(openai.NotFoundError, match=f"'nobody'.*{NAME}, {NAME}@base"):
        await client.chat.completions.create(model="nobody", messages=HELLO)


async def test_a_wrong_key_is_said(vllm: VllmServer, tmp_path: Path) -> None:
    """The engine's: requests get 503, and why. A client's: 401."""
    settings = settings_for(vllm.url, engine={"key": "another"}, server={"client_keys": ("a-key",)})
    async with running(settings, tmp_path / "home", ready=False) as proxy:
        body = {"model": NAME, "messages": HELLO}
        path = "/v1/chat/completions"
        keyed = {"authorization": "Bearer a-key"}
        await until(lambda: "401" in proxy.services.serving.reason)
        refused = await proxy.client.post(path, json=body, headers=keyed)
        unknown = await proxy.client.post(path, json=body, headers={"authorization": "Bearer b"})

        assert (503, 401) == (refused.status_code, unknown.status_code)
        assert "engine.key" in refused.json()["error"]["message"]


async def test_an_answer_can_be_rated_as_soon_as_it_is_there(
    proxy: Running, client: openai.AsyncOpenAI
) -> None:
    """By the engine's own id, and in the next message."""
    answer = await client.chat.completions.create(model=NAME, messages=HELLO, max_tokens=8)
    rated = await proxy.client.post(
        "/v1/feedback", json={"completion_id": answer.id, "rating": "good"}
    )
    said = {"role": "assistant", "content": answer.choices[0].message.content}
    messages = [*HELLO, said, {"role": "user", "content": "/rl bad too short"}]
    told = await client.chat.completions.create(model=NAME, messages=messages)

    assert 201 == rated.status_code
    assert (told.choices[0].message.content or "").startswith("[strop] ")
    assert 1 == len(await proxy.rows())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_an_answer_goes_by_the_id_of_its_completion(path: str, proxy: Running) -> None:
    """Unless the client has named its request: then by that."""
    asked = {"prompt": "Hello"} if path == "/v1/completions" else {"messages": HELLO}
    body = {"model": NAME, "max_tokens": 1, **asked}

    unnamed = await proxy.client.post(path, json=body)
    named = await proxy.client.post(path, json={**body, "request_id": "mine"})

    own = unnamed.headers["x-strop-completion-id"].removeprefix("cmp_")
    ids = [answer.json()["id"].partition("-")[2] for answer in (unnamed, named)]
    # A text completion's has its prompt's number behind it, in some versions.
    assert [own, "mine"] == [one.removesuffix("-0") for one in ids]


async def test_the_engines_own_routes_are_out_of_reach(proxy: Running, vllm: VllmServer) -> None:
    """Those that load weights, pause the server, or answer without a record."""
    async with vllm.client() as engine:
        routes = (await engine.get("/openapi.json")).json()["paths"]
    ours = {"/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"}
    ours |= {"/health", "/metrics", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"}
    theirs = [path for path in routes if path not in ours]
    assert {"/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/tokenize"} <= {*theirs}

    adapter = {"lora_name": "x", "lora_path": "/x", "name": "x", "src": "/x", "model": NAME}
    for path in theirs:
        for method in routes[path]:
            answer = await proxy.client.request(method, path, json=adapter)
            assert answer.status_code in (404, 405), (method, path)
            assert "proxy" == answer.headers.get("x-strop-error-source", "proxy")


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_client_that_leaves_frees_the_engine(
    stream: bool, proxy: Running, vllm: VllmServer
) -> None:
    """It stops sampling for it, long before the answer would have ended."""

    async def num_running(engine: httpx.AsyncClient) -> float:
        lines = (await engine.get("/metrics")).text.splitlines()
        line = next(one for one in lines if one.startswith("vllm:num_requests_running{"))
        return float(line.rpartition(" ")[2])

    long = {"max_tokens": 1000, "ignore_eos": True, "n": 16, "stream": stream}
    async with vllm.client() as engine:
        asked = asyncio.create_task(proxy.chat(**long))
        await until(lambda: num_running(engine))
        asked.cancel()
        await until(lambda: num_running(engine), lambda num: not num)

    row = (await proxy.row()).completion
    assert ("client_cancelled", False) == (row.state, row.delivered)
    assert all(len(choice.token_ids or ()) < 1000 for choice in row.choices)


async def test_what_would_end_the_engine_is_refused(proxy: Running) -> None:
    """Logprobs of a prompt, in a batch with others, where adapters can be loaded."""
    scored = await proxy.chat(prompt_logprobs=0)
    echoed = await proxy.client.post(
        "/v1/completions", json={"model": NAME, "prompt": "x", "echo": True, "logprobs": 1}
    )
    chatted = await proxy.chat(echo=True)

    assert (400, "echo") == (chatted.status_code, chatted.json()["error"]["param"])
    assert (400, "prompt_logprobs") == (scored.status_code, scored.json()["error"]["param"])
    assert (400, "echo") == (echoed.status_code, echoed.json()["error"]["param"])
