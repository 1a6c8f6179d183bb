"""A real vLLM that parses tool calls and reasoning, behind a real strop. `make test-vllm`."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import scripted_models
import vllm_pairs
from running import Running, running, settings_for
from vllm_server import KEY, NAME, VllmServer

from strop.proxy.engines.base import AdaptersFolder
from strop.proxy.engines.vllm import Vllm
from strop.proxy.upstream.upstream import Upstream

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
TOOLS: list[Any] = scripted_models.TOOLS


@pytest.fixture
async def proxy(parsing_vllm: VllmServer, tmp_path: Path) -> AsyncIterator[Running]:
    """A proxy before it."""
    settings = settings_for(parsing_vllm.url, engine={"key": KEY})
    async with running(settings, tmp_path / "home") as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's own client of the proxy."""
    async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0) as client:
        yield client


async def snapshot(proxy: Running, tokenizer_of: Path) -> str:
    """Return the text that the only completion's ids spell; each must have its logprob."""
    from transformers import AutoTokenizer

    (choice,) = (await proxy.row()).completion.choices
    assert choice.token_ids is not None
    assert choice.logprobs is not None
    assert len(choice.token_ids) == len(choice.logprobs)
    return str(AutoTokenizer.from_pretrained(tokenizer_of).decode(choice.token_ids))


async def test_a_client_gets_what_vllm_would_send_it(parsing_vllm: VllmServer) -> None:
    """With parsers on too, byte for byte, and where the client wants no reasoning."""
    upstream = Upstream(parsing_vllm.url)
    driver = Vllm(upstream, key=KEY)
    await driver.verify(NAME)
    async with parsing_vllm.client() as engine:
        pairs = await vllm_pairs.record(driver, engine, NAME)
    await upstream.aclose()
    vllm_pairs.keep(pairs)

    assert driver.hides_ids
    for pair in pairs:
        assert vllm_pairs.in_order(pair.plain) == vllm_pairs.in_order(
            vllm_pairs.restored(driver, pair)
        )


async def test_its_logprobs_are_recorded_as_what_they_are(
    proxy: Running, parsing_vllm: VllmServer, tmp_path: Path
) -> None:
    """Processed; and that it loads no adapters is said."""
    upstream = Upstream(parsing_vllm.url)
    driver = Vllm(upstream, key=KEY, adapters=AdaptersFolder(tmp_path))
    await driver.verify(NAME)
    await upstream.aclose()
    await proxy.chat(max_tokens=4)
    health = (await proxy.client.get("/health")).json()["engine"]
    (choice,) = (await proxy.row()).completion.choices

    assert ("processed", "processed") == (driver.capabilities.logprobs_kind, choice.logprobs_kind)
    assert 0 == driver.capabilities.adapters
    assert any("--enable-lora" in what for what in health["shortfalls"])


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_a_tool_call_is_parsed_and_its_markup_recorded(
    choice: Any, proxy: Running, client: openai.AsyncOpenAI, scripted: Path
) -> None:
    """In JSON: the client gets the call, the snapshot has every token of it."""
    answer = await client.chat.completions.create(
        model=NAME, messages=HELLO, tools=TOOLS, tool_choice=choice, temperature=0
    )

    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call, openai.types.chat.ChatCompletionMessageFunctionToolCall)
    expected = scripted_models.CALL
    assert (expected["name"], expected["arguments"]) == (
        call.function.name,
        json.loads(call.function.arguments),
    )
    assert "tool_calls" == answer.choices[0].finish_reason
    assert json.dumps(expected["arguments"]) in await snapshot(proxy, scripted)


async def test_a_streamed_tool_call_is_whole(
    proxy: Running, client: openai.AsyncOpenAI, scripted: Path
) -> None:
    """Events without text, which vLLM sends only for the ids, are not passed on."""
    stream = await client.chat.completions.create(
        model=NAME, messages=HELLO, tools=TOOLS, temperature=0, stream=True
    )
    arguments, deltas = "", []
    async for chunk in stream:
        (one,) = chunk.choices
        deltas.append(one.delta)
        for call in one.delta.tool_calls or ():
            arguments += (call.function.arguments or "") if call.function else ""

    assert scripted_models.CALL["arguments"] == json.loads(arguments)
    silent = [one for one in deltas[1:-1] if not (one.content or one.tool_calls)]
    assert [] == silent
    spelled = await snapshot(proxy, scripted)
    assert spelled.startswith("<tool_call>")
    (choice,) = (await proxy.row()).completion.choices
    assert "tool_calls" in json.loads(choice.message)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("wanted", [True, False], ids=["shown", "hidden"])
async def test_reasoning_is_recorded_whether_the_client_wants_it_or_not(
    wanted: bool, stream: bool, proxy: Running, client: openai.AsyncOpenAI, scripted: Path
) -> None:
    """Without `include_reasoning` vLLM gives no ids: it is asked for, and taken out again."""
    answer: Any = await client.chat.completions.create(
        model=NAME,
        messages=HELLO,
        temperature=0,
        stream=stream,
        extra_body={"include_reasoning": wanted},
    )
    if stream:
        chunks = [chunk.choices[0].delta async for chunk in answer]
        thought = "".join(getattr(delta, "reasoning", None) or "" for delta in chunks)
        said = "".join(delta.content or "" for delta in chunks)
    else:
        message = answer.choices[0].message
        thought, said = message.reasoning or "", message.content

    assert scripted_models.ANSWER == said.strip()
    assert (scripted_models.THOUGHT if wanted else "") == thought.strip()
    spelled = await snapshot(proxy, scripted)
    assert f"<think>\n{scripted_models.THOUGHT}\n</think>" in spelled


async def test_an_answer_in_a_form_without_reasoning_is_left_to_the_engine(
    proxy: Running, parsing_vllm: VllmServer
) -> None:
    """It has no snapshot, rather than being another answer."""
    ask = {
        "model": NAME,
        "messages": HELLO,
        "temperature": 0,
        "max_tokens": 40,
        "response_format": {"type": "json_object"},
        "include_reasoning": False,
    }
    relayed = await proxy.client.post("/v1/chat/completions", json=ask)
    async with parsing_vllm.client() as engine:
        direct = await engine.post("/v1/chat/completions", json=ask)

    assert vllm_pairs.masked(direct.text) == vllm_pairs.masked(relayed.text)
    (choice,) = (await proxy.row()).completion.choices
    assert (None, None) == (choice.token_ids, choice.logprobs)
