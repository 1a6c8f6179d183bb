"""The driver for a stock mlx_lm.server, against a real one."""

import contextlib
import json
from array import array
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import models
import pytest
from fake_engine import Call, FakeEngine
from fake_mlx_server import FakeMlxServer
from mlx_server_process import mlx_server
from openai import AsyncOpenAI, NotFoundError
from running import Running, running, settings_for
from transformers import AutoTokenizer
from waiting import LIMIT_S, until

from strop import configs
from strop.adapters import mlx
from strop.proxy import configured_engine, detection
from strop.proxy.engines.base import Ask
from strop.proxy.engines.calls import Calls, credentials
from strop.proxy.engines.mlx_server import MlxServer, as_openai_error
from strop.proxy.engines.mlx_server_adapters import MlxServerAdapters
from strop.proxy.engines.wanted import Wanted
from strop.proxy.errors import BadRequest, EngineNotReady, Unavailable, UpstreamError
from strop.proxy.upstream.upstream import Upstream
from strop.training.tokenizer import BaseTokenizer

MESSAGES: list[Any] = [{"role": "user", "content": "Hello there"}]
PROMPT = "def main(argv):\n    return"


@pytest.fixture(scope="module")
def server(qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all tests of this module: it takes seconds to start."""
    hub = tmp_path_factory.mktemp("hub")
    with mlx_server(qwen3, hub=hub) as url:
        yield url


@pytest.fixture
async def proxy(server: str, tmp_path: Path) -> AsyncIterator[Running]:
    """A proxy in front of it."""
    async with running(settings_for(server, kind="mlx_server"), tmp_path / "home") as proxy:
        yield proxy


def client_of(proxy: Running) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="strop", max_retries=0)


def unnamed(body: bytes) -> dict[str, Any]:
    """Return a JSON answer without what differs between any two."""
    read: dict[str, Any] = json.loads(body)
    for name in ("id", "created", "model"):
        read.pop(name)
    read["usage"].pop("prompt_tokens_details")
    return read


async def test_a_json_answer_has_a_snapshot_that_transformers_agrees_with(
    qwen3: Path, proxy: Running
) -> None:
    """Ids and raw logprobs of each sampled token, the end-of-text token's too; no prompt ids."""
    answer = await proxy.chat("Hello there", model="qwen3", temperature=1.0, max_tokens=24)

    completion = (await proxy.row()).completion
    (choice,) = completion.choices
    assert 200 == answer.status_code
    assert "logprobs" not in answer.json()["choices"][0]
    assert isinstance(choice.token_ids, array)
    assert completion.completion_tokens == len(choice.token_ids)
    assert completion.prompt_ids is None
    tokenizer = models.make_tokenizer()
    prompt_ids = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_dict=False
    )
    assert completion.prompt_tokens == len(prompt_ids)
    expected = models.reference_logprobs(qwen3, None, prompt_ids, choice.token_ids)
    assert pytest.approx(expected, abs=1e-4) == list(choice.logprobs or ())


async def test_logprobs_after_a_bias_are_not_taken_for_raw_ones(proxy: Running) -> None:
    """It computes them when the bias has been added."""
    await proxy.chat("Hello there", model="qwen3", max_tokens=2, logit_bias={"300": 100})

    (choice,) = (await proxy.row()).completion.choices
    assert "processed" == choice.logprobs_kind
    assert [0.0, 0.0] == pytest.approx(list(choice.logprobs or ()), abs=1e-3)


async def test_a_client_gets_what_the_server_sends_unasked(server: str, proxy: Running) -> None:
    """The logprobs that strop asks for are taken out again; the rest is the server's."""
    body = {"messages": MESSAGES, "temperature": 0.0, "max_tokens": 12}

    async with httpx.AsyncClient(base_url=server, timeout=LIMIT_S) as direct:
        expected = await direct.post("/v1/chat/completions", json=body)
    relayed = await proxy.chat("Hello there", model="qwen3", temperature=0.0, max_tokens=12)

    assert unnamed(expected.content) == unnamed(relayed.content)


async def test_a_stream_passes_without_a_snapshot_and_is_counted(proxy: Running) -> None:
    """Its usage, which strop asked for, stays strop's; the count tells the trainer if ids match."""
    async with client_of(proxy) as client:
        stream = await client.chat.completions.create(
            model="qwen3", messages=MESSAGES, temperature=0.0, max_tokens=8, stream=True
        )
        chunks = [chunk async for chunk in stream]

    completion = (await proxy.row()).completion
    (choice,) = completion.choices
    assert all(chunk.choices for chunk in chunks)
    assert 8 == completion.completion_tokens
    assert completion.prompt_tokens
    assert choice.token_ids is None
    assert choice.logprobs is None


async def test_options_that_do_not_name_the_usage_do_not_break_a_stream(proxy: Running) -> None:
    """The server fails on them in the middle of its stream."""
    answer = await proxy.chat(model="qwen3", max_tokens=4, stream=True, stream_options={})

    assert answer.text.endswith("data: [DONE]\n\n")
    assert '"usage"' not in answer.text


@pytest.mark.parametrize("usage", [False, True], ids=["bare", "usage"])
async def test_a_rechunked_stream_says_the_same_and_has_a_snapshot(
    server: str, usage: bool, tmp_path: Path
) -> None:
    """The answer is asked for as JSON and cut into the events of a stream."""
    settings = settings_for(server, kind="mlx_server", engine={"rechunk_streams": True})
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if usage else {}
    async with running(settings, tmp_path / "home") as proxy, client_of(proxy) as client:
        whole = await proxy.chat("Hello there", model="qwen3", temperature=0.0, max_tokens=8)
        stream = await client.chat.completions.create(
            model="qwen3",
            messages=MESSAGES,
            temperature=0.0,
            max_tokens=8,
            stream=True,
            **options,
        )
        chunks = [chunk async for chunk in stream]
        rows = await proxy.rows()

    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert whole.json()["choices"][0]["message"]["content"] == said
    assert [None] * (len(reasons) - 1) + ["length"] == reasons
    assert usage == any(chunk.usage for chunk in chunks)
    first, second = (row.completion.choices[0] for row in rows)
    assert first.token_ids == second.token_ids is not None
    assert pytest.approx(list(first.logprobs or ()), abs=1e-4) == list(second.logprobs or ())


async def test_a_text_completion_takes_a_number_of_logprobs(proxy: Running) -> None:
    """OpenAI's dialect has one; the server takes only true."""
    body = {"model": "qwen3", "prompt": PROMPT, "max_tokens": 4, "logprobs": 2}

    answer = await proxy.client.post("/v1/completions", json=body)

    (choice,) = (await proxy.row()).completion.choices
    assert 200 == answer.status_code
    assert 4 == len(answer.json()["choices"][0]["logprobs"]["content"])
    assert 4 == len(choice.token_ids or ())


async def test_a_list_of_one_prompt_is_that_prompt(proxy: Running) -> None:
    """As LangChain sends it; the server would try to read it as tokens, and answer nobody again."""
    body = {"model": "qwen3", "max_tokens": 4, "temperature": 0.0}

    answers = [
        await proxy.client.post("/v1/completions", json={**body, "prompt": prompt})
        for prompt in ([PROMPT], PROMPT)
    ]

    first, second = (answer.json()["choices"][0]["text"] for answer in answers)
    assert first == second


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ["a", "b"]},
        {"prompt": ""},
        {"prompt": [""]},
        {"prompt": "a", "stop": 5},
        {"prompt": "a", "stop": ["\ud83d"]},
        {"prompt": "a", "temperature": 1.0, "top_k": True},
        {"prompt": "a", "temperature": 1.0, "xtc_probability": 0.5, "xtc_threshold": 0.6},
        {"prompt": "a", "presence_penalty": 1.0, "presence_context_size": 2**31},
        {"messages": MESSAGES, "chat_template_kwargs": {"chat_template": ""}},
        {"messages": MESSAGES, "chat_template_kwargs": {"truncation": True, "max_length": 0}},
    ],
    ids=json.dumps,
)
async def test_what_would_end_the_servers_generation_is_refused(
    fields: dict[str, Any], proxy: Running
) -> None:
    """It would answer 404 to whatever comes then."""
    path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
    sent = json.dumps({"model": "qwen3", "max_tokens": 2, **fields})
    refused = await proxy.client.post(path, content=sent)
    answer = await proxy.chat(model="qwen3", max_tokens=2)

    assert (400, list(fields)[-1]) == (refused.status_code, refused.json()["error"]["param"])
    assert 200 == answer.status_code


@pytest.mark.parametrize(
    "fields",
    [
        {"xtc_probability": 0.5, "xtc_threshold": 0.5},
        {"xtc_probability": 0.0, "xtc_threshold": 0.9},
        {"presence_penalty": 1.0, "presence_context_size": 2**31 - 1},
        {"stop": ["\U0001f600"]},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
    ids=json.dumps,
)
async def test_what_comes_near_to_that_passes(fields: dict[str, Any], proxy: Running) -> None:
    """The largest that the server takes, what it doesn't read, and what templates do."""
    answer = await proxy.chat(model="qwen3", max_tokens=2, temperature=1.0, **fields)

    assert 200 == answer.status_code


@pytest.mark.parametrize("asked", [{"top_k": 0}, {"logit_bias": {"0": -1}}], ids=json.dumps)
async def test_tokens_beyond_the_vocabulary_are_refused_where_its_size_is_known(
    asked: dict[str, Any], qwen3: Path, server: str, tmp_path: Path
) -> None:
    """They would end the server's generation too; those within it pass."""
    size = json.loads((qwen3 / "config.json").read_bytes())["vocab_size"]
    beyond = {"top_k": size} if "top_k" in asked else {"logit_bias": {str(size): -1}}
    settings = settings_for(server, kind="mlx_server", model={"base": str(qwen3)})
    fields = {"model": "qwen3", "max_tokens": 2, "temperature": 1.0}

    async with running(settings, tmp_path / "home") as proxy:
        refused = await proxy.chat(**fields, **beyond)
        answer = await proxy.chat(**fields, **asked)

    assert (400, *asked) == (refused.status_code, refused.json()["error"]["param"])
    assert 200 == answer.status_code


@pytest.mark.parametrize(
    ("config", "is_refused"),
    [
        ({"vocab_size": 7}, True),
        ({"text_config": {"vocab_size": 7}}, True),
        ({}, False),
        (None, False),
    ],
)
async def test_how_many_tokens_there_are_is_said_by_the_base(
    config: dict[str, Any] | None, is_refused: bool, tmp_path: Path
) -> None:
    """That of a model with images in a part of its own; where nothing says it, requests pass."""
    file = tmp_path / "config.json"
    if config is None:
        # It can't be read.
        file.mkdir()
    else:
        file.write_text(json.dumps(config))
    settings = settings_for("http://127.0.0.1:1", kind="mlx_server", model={"base": str(tmp_path)})
    driver, _ = configured_engine.make(settings, tmp_path)

    with pytest.raises(BadRequest, match="7 tokens") if is_refused else contextlib.nullcontext():
        driver.plan(Ask("chat", b"{}", {"top_k": 7}, "default_model"))


async def test_alternatives_are_not_asked_for(proxy: Running) -> None:
    """With them the server reports another token than it sampled."""
    fields = {"model": "qwen3", "max_tokens": 6, "temperature": 0.0}
    await proxy.chat(**fields)
    answer = await proxy.chat(**fields, logprobs=True, top_logprobs=5)

    first, second = (row.completion.choices[0].token_ids for row in await proxy.rows())
    content = answer.json()["choices"][0]["logprobs"]["content"]
    assert list(first or ()) == list(second or ()) == [entry["id"] for entry in content]


async def test_alternatives_alone_do_not_spoil_the_snapshot(proxy: Running) -> None:
    """The server gives them without `logprobs` too, and with them the wrong ids."""
    fields = {"model": "qwen3", "max_tokens": 6, "temperature": 0.0}
    await proxy.chat(**fields)
    await proxy.chat(**fields, top_logprobs=5)

    first, second = (row.completion.choices[0] for row in await proxy.rows())
    assert list(first.token_ids or ()) == list(second.token_ids or ())
    assert pytest.approx(list(first.logprobs or ()), abs=1e-4) == list(second.logprobs or ())


async def test_a_text_stream_may_ask_for_logprobs(proxy: Running) -> None:
    """Its streams have none, and it refuses a number; a client is not refused for that."""
    body = {"model": "qwen3", "prompt": PROMPT, "max_tokens": 4, "logprobs": 2, "stream": True}

    answer = await proxy.client.post("/v1/completions", json=body)

    assert 200 == answer.status_code
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_a_prompt_has_as_many_tokens_as_the_trainer_makes_of_it(
    qwen3: Path, proxy: Running
) -> None:
    """Texts in parts, a developer, thoughts: by itself the server would read some otherwise."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    said = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}],
        },
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "done"}]},
    ]

    answer = await proxy.chat(model="qwen3", max_tokens=2, messages=said)

    rendered = BaseTokenizer(qwen3).encode_chat({"messages": said})
    assert 200 == answer.status_code
    assert len(rendered) == answer.json()["usage"]["prompt_tokens"]


async def test_nulls_are_left_out(proxy: Running) -> None:
    """Clients send them for what they don't set; the server refuses a null temperature."""
    answer = await proxy.chat(model="qwen3", max_tokens=2, temperature=None, stop=None)

    assert 200 == answer.status_code


async def test_its_errors_become_openais(proxy: Running) -> None:
    """It answers 404 with a bare text where a prompt can't be read."""
    async with client_of(proxy) as client:
        with pytest.raises(NotFoundError) as raised:
            await client.completions.create(model="qwen3", prompt=[5, 6], max_tokens=2)

    assert "invalid_request_error" == raised.value.type
    assert raised.value.body
    assert "upstream_error" == (await proxy.row()).completion.state


@pytest.mark.parametrize(
    ("status", "said", "message"),
    [
        (404, b"Not Found", "Not Found"),
        (400, b'{"error": "temperature must be of type float"}', "temperature must be of"),
        (500, b'{"error": {"message": "as OpenAI writes it"}}', "as OpenAI writes it"),
    ],
)
def test_an_error_in_any_form_has_a_message(status: int, said: bytes, message: str) -> None:
    """OpenAI's own form stays as it is."""
    assert message in json.loads(as_openai_error(status, said))["error"]["message"]


async def test_its_model_goes_by_its_folders_name(server: str, proxy: Running) -> None:
    """Not by a path of this machine; and no other model of the hub's cache is offered."""
    listed = (await proxy.client.get("/v1/models")).json()["data"]

    assert "qwen3" == listed[0]["id"]
    assert all(one["id"].startswith("qwen3") for one in listed)


async def test_it_is_found_by_what_it_says(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`strop engines` names its driver."""
    monkeypatch.setattr(detection, "TIMEOUT_S", LIMIT_S)

    (found,) = await detection.find([server])

    assert "mlx_server" == found.kind


async def test_weights_are_not_the_clients_to_choose() -> None:
    """The server would load any folder that a request names, and drop the model for it."""
    driver = MlxServer(Upstream("http://127.0.0.1:1"))
    fields = {"messages": MESSAGES, "adapters": "/anywhere"}

    with pytest.raises(BadRequest, match="adapters"):
        driver.plan(Ask("chat", json.dumps(fields).encode(), fields, "default_model"))


async def test_what_a_chat_lacks_is_not_added() -> None:
    """The server says best itself that there are no messages."""
    driver = MlxServer(Upstream("http://127.0.0.1:1"))

    plan = driver.plan(Ask("chat", b"{}", {}, "default_model"))

    assert "messages" not in json.loads(plan.body)


async def test_a_list_of_models_that_breaks_off_leaves_the_one_of_its_command_line() -> None:
    """So it does where there is no hub cache."""

    async def handler(call: Call) -> None:
        if call.request.path == "/health":
            return await call.json({"status": "ok"})
        if call.request.path == "/v1/models":
            return await call.answer(b"", framing="close", version="1.0")
        entry = {"id": 5, "logprob": -1.0}
        choice = {"index": 0, "text": "a", "logprobs": {"content": [entry]}}
        return await call.json({"system_fingerprint": "0.32.2-0.32.4-x", "choices": [choice]})

    async with FakeEngine(handler) as engine:
        upstream = Upstream(engine.url)
        driver = MlxServer(upstream)

        state = await driver.check()

        assert (("default_model",), "0.32.2") == (state.models, state.version)
        await upstream.aclose()


async def test_what_answers_with_a_page_is_no_server() -> None:
    """It would be ready, and its page recorded as what the model said."""

    async def handler(call: Call) -> None:
        await call.answer(b"<html></html>", headers=[("content-type", "text/html")])

    async with FakeEngine(handler) as engine:
        upstream = Upstream(engine.url)
        driver = MlxServer(upstream)

        with pytest.raises(EngineNotReady, match=r"a text completion from .*engine\.kind$"):
            await driver.check()

        await upstream.aclose()


# What follows swaps adapters, on the same server.


class Swapped:
    """The driver and its control, on the real server."""

    def __init__(self, url: str, base: Path, folder: Path, model: str = "") -> None:
        self.upstream = Upstream(url)
        self.control = MlxServerAdapters(
            Calls(self.upstream, []), base=base, folder=folder, convert=mlx.convert
        )
        self.driver = MlxServer(self.upstream, wanted=Wanted(model), adapters=self.control)

    async def say(self, served: str) -> tuple[int, dict[str, Any]]:
        """Answer a chat as `served`, through the driver's own request."""
        fields = {"messages": MESSAGES, "temperature": 0.0, "max_tokens": 6, "logprobs": True}
        plan = self.driver.plan(Ask("chat", json.dumps(fields).encode(), fields, served))
        target = b"/v1/chat/completions"
        headers = [(b"content-type", b"application/json")]
        exchange = self.upstream.exchange(b"POST", target, headers, plan.body)
        await exchange.start()
        body = await exchange.read_all(1 << 20)
        return exchange.status, json.loads(body)


@pytest.fixture
async def swapped(server: str, qwen3: Path, tmp_path: Path) -> AsyncIterator[Swapped]:
    """A driver that serves versions of `qwen3`."""
    swapped = Swapped(server, qwen3, tmp_path / "adapters-mlx")
    await swapped.driver.check()
    yield swapped
    await swapped.upstream.aclose()


async def test_a_version_is_served_as_peft_computes_it(
    qwen3: Path, peft_a: Path, swapped: Swapped
) -> None:
    """Converted, named in each request, and probed by generation from the prompt's ids."""
    prompt_ids = models.make_tokenizer().encode(PROMPT)
    control = swapped.control

    await control.prepare("qwen3@v1", peft_a)
    assert {} == await control.loaded()
    await control.load("qwen3@v1", peft_a)

    assert {"qwen3@v1": str(peft_a)} == await control.loaded()
    for uses_cache in (False, True):
        ids, logprobs = await control.generate("qwen3@v1", prompt_ids, 24, uses_cache=uses_cache)
        expected = models.reference_logprobs(qwen3, peft_a, prompt_ids, ids)
        plain = models.reference_logprobs(qwen3, None, prompt_ids, ids)
        assert pytest.approx(expected, abs=1e-4) == list(logprobs)
        assert pytest.approx(plain, abs=0.1) != list(logprobs)


async def test_versions_and_base_take_turns(peft_a: Path, peft_b: Path, swapped: Swapped) -> None:
    """One is held at a time: loading one displaces the other, unloading it gives the base back."""
    control, name = swapped.control, "qwen3"
    _, base = await swapped.say(name)

    await control.load("qwen3@v1", peft_a)
    _, first = await swapped.say("qwen3@v1")
    await control.load("qwen3@v2", peft_b)
    _, second = await swapped.say("qwen3@v2")
    with pytest.raises(Unavailable, match="one at a time"):
        await swapped.say("qwen3@v1")
    await control.unload("qwen3@v1")
    assert ["qwen3@v2"] == list(await control.loaded())
    await control.unload("qwen3@v2")
    _, again = await swapped.say(name)

    said = [json.dumps(one["choices"][0]["logprobs"]) for one in (base, first, second)]
    assert 3 == len(set(said))
    assert base["choices"] == again["choices"]


@pytest.fixture(scope="module")
def without_hub(qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server where there is no hub cache, so that its list of models breaks off."""
    with mlx_server(qwen3, hub=tmp_path_factory.mktemp("none") / "hub") as url:
        yield url


async def test_without_a_hub_cache_the_folder_that_is_named_has_versions(
    peft_a: Path, qwen3: Path, without_hub: str, tmp_path: Path
) -> None:
    """What is named can't be looked up there."""
    one = Swapped(without_hub, qwen3, tmp_path / "adapters-mlx", model=str(qwen3))
    state = await one.driver.check()
    await one.driver.verify(state.models[0])
    _, of_base = await one.say(state.models[0])

    await one.control.load("tiny@v1", peft_a)
    status, of_version = await one.say("tiny@v1")

    assert (1, ()) == (one.driver.capabilities.adapters, one.driver.shortfalls)
    assert 200 == status, of_version
    assert of_base["choices"] != of_version["choices"]
    await one.upstream.aclose()


async def test_without_a_hub_cache_it_is_said_what_to_name(
    peft_a: Path, qwen3: Path, without_hub: str, tmp_path: Path
) -> None:
    """As soon as it is asked, and where a version is to be loaded all the same."""
    one = Swapped(without_hub, qwen3, tmp_path / "adapters-mlx")
    state = await one.driver.check()
    await one.driver.verify(state.models[0])

    assert (("default_model",), 0) == (state.models, one.driver.capabilities.adapters)
    (shortfall,) = one.driver.shortfalls
    assert "none for want of a hub cache" in shortfall
    with pytest.raises(UpstreamError, match="name the folder that it serves"):
        await one.control.load("tiny@v1", peft_a)
    status, _ = await one.say("default_model")
    assert 200 == status
    await one.upstream.aclose()


async def test_a_server_started_anew_with_another_model_has_lost_its_versions(
    peft_a: Path, swapped: Swapped
) -> None:
    """It would be asked for them on that one, and answer."""
    await swapped.control.load("qwen3@v1", peft_a)

    swapped.control.serves("/another/model", "model")

    assert {} == await swapped.control.loaded()
    assert swapped.control.path_of("qwen3@v1") is None


async def test_a_server_that_was_restarted_has_lost_its_version(
    peft_a: Path, qwen3: Path, tmp_path: Path
) -> None:
    """Between two looks too; it is asked to load it again, and to show what it serves."""
    async with FakeEngine(FakeMlxServer()) as engine:
        one = Swapped(engine.url, qwen3, tmp_path / "adapters-mlx")
        await one.driver.check()
        await one.control.load("tiny@v1", peft_a)
        before = await one.control.loaded()

        await engine.stop()
        await until(lambda: not one.upstream.num_connections)
        await engine.start()
        fake = engine.handler = FakeMlxServer()

        assert ({"tiny@v1": str(peft_a)}, {}) == (before, await one.control.loaded())
        await one.control.load("tiny@v1", peft_a)
        assert 1 == fake.num_loads
        assert before == await one.control.loaded()
        await one.upstream.aclose()


async def test_a_server_that_was_away_has_lost_its_version_also_behind_a_key(
    peft_a: Path, qwen3: Path, tmp_path: Path
) -> None:
    """What asks for the key may close a connection that asks nothing, so there is none."""
    key = "k"
    async with FakeEngine(FakeMlxServer()) as engine:
        upstream = Upstream(engine.url)
        calls = Calls(upstream, credentials(key))
        control = MlxServerAdapters(
            calls, base=qwen3, folder=tmp_path / "adapters-mlx", convert=mlx.convert
        )
        driver = MlxServer(upstream, key=key, adapters=control)
        await driver.check()
        await control.load("tiny@v1", peft_a)
        assert 0 == upstream.num_connections
        await driver.check()
        before = await control.loaded()

        await engine.stop()
        with pytest.raises(UpstreamError):
            await driver.check()
        await engine.start()
        await driver.check()

        assert ({"tiny@v1": str(peft_a)}, {}) == (before, await control.loaded())
        await upstream.aclose()


async def test_what_can_not_be_converted_never_reaches_the_server(
    peft_a: Path, swapped: Swapped, tmp_path: Path
) -> None:
    """It would drop its model first, and then fail."""
    broken = tmp_path / "v9"
    broken.mkdir()
    for file in peft_a.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[:200])

    with pytest.raises(UpstreamError, match=r"qwen3@v9 can't be converted for mlx_lm\.server"):
        await swapped.control.load("qwen3@v9", broken)

    status, _ = await swapped.say("qwen3")
    assert 200 == status


async def test_a_prompt_of_another_model_is_not_passed_off_as_this_ones(
    server: str, tmp_path: Path
) -> None:
    """The server counts the prompt's tokens; where it reads others, the probe says so."""
    other = Swapped(server, configs.demo_model(), tmp_path / "adapters-mlx")
    await other.driver.check()
    prompt_ids = AutoTokenizer.from_pretrained(configs.demo_model()).encode(PROMPT)

    with pytest.raises(UpstreamError, match="the model that it serves"):
        await other.control.generate("qwen3", prompt_ids, 4, uses_cache=True)

    await other.upstream.aclose()
