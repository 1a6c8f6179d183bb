"""What every driver must do, tried over all of them: see `engine_contract`."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_contract
import openai
import pytest
from engine_contract import Case, Started
from fake_engine import Call, FakeEngine
from held_answers import HeldAnswers
from mlx_server_process import mlx_server
from running import Running, running, settings_for
from waiting import until

from strop.proxy.engines.base import Ask, Capabilities, Engine
from strop.proxy.errors import BadRequest
from strop.proxy.settings.settings import Settings

MESSAGES: list[Any] = [{"role": "user", "content": "Hello there"}]


def params(those: Callable[[Case], object]) -> list[Any]:
    """Return the cases that are among `those`, for parametrize."""
    cases = [case for case in engine_contract.CASES if those(case)]
    return [pytest.param(case, id=case.name, marks=case.marks) for case in cases]


@pytest.fixture(params=params(lambda _: True))
def case(request: pytest.FixtureRequest) -> Case:
    """One driver."""
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def contract_mlx_server(qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One mlx_lm.server for all tests of this module."""
    with mlx_server(qwen3, hub=tmp_path_factory.mktemp("hub")) as url:
        yield url


@pytest.fixture
def some_folder(tmp_path: Path) -> Path:
    """A folder that a fake takes for an adapter."""
    return tmp_path


@pytest.fixture
async def started(case: Case, request: pytest.FixtureRequest) -> AsyncIterator[Started]:
    """Its engine."""
    async with case.start(request) as started:
        yield started


@pytest.fixture
def settings(case: Case, started: Started) -> Settings:
    """What a person would set to use it."""
    engine = {"key": started.key, "health_interval_s": 0.1}
    return settings_for(started.url, kind=case.kind, engine=engine)


@pytest.fixture
async def proxy(settings: Settings, tmp_path: Path) -> AsyncIterator[Running]:
    """A proxy before it."""
    async with running(settings, tmp_path / "home") as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's own client of the proxy."""
    async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def engine_of(proxy: Running) -> Engine:
    return proxy.services.serving.engine


async def name_of(client: openai.AsyncOpenAI) -> str:
    """Return the model name that clients use."""
    return (await client.models.list()).data[0].id


async def test_a_json_answer_is_relayed_and_recorded(
    proxy: Running, client: openai.AsyncOpenAI
) -> None:
    """The client's text is the record's, and so is the usage."""
    answer = await client.chat.completions.create(
        model=await name_of(client), messages=MESSAGES, max_tokens=16
    )

    row = (await proxy.row()).completion
    said = json.loads(row.choices[0].message)["content"]
    assert said
    assert answer.choices[0].message.content == said
    assert ("complete", True, False) == (row.state, row.delivered, row.stream)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        row.prompt_tokens,
        row.completion_tokens,
    )


async def test_a_stream_is_relayed_and_recorded(proxy: Running, client: openai.AsyncOpenAI) -> None:
    """Piece by piece, with nothing in it that the client did not ask for."""
    stream = await client.chat.completions.create(
        model=await name_of(client), messages=MESSAGES, max_tokens=16, stream=True
    )
    said = ""
    async for chunk in stream:
        for choice in chunk.choices:
            said += choice.delta.content or ""
            assert choice.logprobs is None
            assert not getattr(choice, "token_ids", None)

    row = (await proxy.row()).completion
    assert said
    assert said == json.loads(row.choices[0].message)["content"]
    assert ("complete", True, True) == (row.state, row.delivered, row.stream)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("dialect", ["chat", "completions"])
async def test_a_snapshot_has_what_the_driver_declares(
    dialect: str, stream: bool, proxy: Running, client: openai.AsyncOpenAI
) -> None:
    """And never a logprob that is made up: one for each id, or none at all."""
    model: Any = await name_of(client)
    if dialect == "chat":
        answer: Any = await client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=12, stream=stream
        )
    else:
        answer = await client.completions.create(
            model=model, prompt="Hello there", max_tokens=12, stream=stream
        )
    if stream:
        [None async for _ in answer]

    row, can = (await proxy.row()).completion, engine_of(proxy).capabilities
    (choice,) = row.choices
    has_logprobs = can.logprobs and (can.stream_logprobs or not stream) and can.is_local
    if not can.may_drop_tokens and can.is_local:
        assert has_logprobs == (choice.logprobs is not None)
        assert (can.token_ids and has_logprobs) == (choice.token_ids is not None)
        assert (can.prompt_ids and can.token_ids) == (row.prompt_ids is not None)
    if choice.logprobs is not None:
        assert "engine" == choice.logprobs_source
        assert can.logprobs_kind == choice.logprobs_kind
        assert all(value <= 0 for value in choice.logprobs)
        assert len(choice.logprobs) == len(choice.token_ids or choice.logprobs)


async def test_the_model_has_one_name_and_its_base_can_be_pinned(
    case: Case, proxy: Running, client: openai.AsyncOpenAI
) -> None:
    """Any other is unknown, and the error lists those there are."""
    name = await name_of(client)
    pinned = await client.chat.completions.with_raw_response.create(
        model=f"{name}@base", messages=MESSAGES, max_tokens=4
    )

    assert "base" == pinned.headers["x-strop-adapter"]
    with pytest.raises(openai.NotFoundError, match=f"{name}@base"):
        await client.chat.completions.create(model="nobody", messages=MESSAGES)
    assert 1 == len(await proxy.rows())


async def test_an_engines_error_is_an_openai_error_in_its_own_words(
    case: Case, proxy: Running, client: openai.AsyncOpenAI
) -> None:
    """Which the client raises as what it is; it is recorded."""
    fields, said = case.wrong
    model = await name_of(client)
    with pytest.raises(openai.APIStatusError, match=said) as refused:
        await client.chat.completions.create(model=model, messages=MESSAGES, extra_body=fields)

    assert refused.value.response.headers.get("x-strop-error-source") is None
    assert isinstance(refused.value.body, dict)
    row = (await proxy.row()).completion
    assert ("upstream_error", refused.value.status_code) == (row.state, row.status)
    assert said in (row.error or "")


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_client_that_leaves_is_noticed(
    stream: bool, started: Started, settings: Settings, tmp_path: Path
) -> None:
    """The engine loses its connection, and what there was is recorded as what it is."""
    async with HeldAnswers(started.url) as wire:
        # No look at the engine is among what is kept.
        engine = replace(settings.engine, url=wire.url, health_interval_s=3600.0)
        settings = replace(settings, engine=engine)
        async with running(settings, tmp_path / "home") as proxy:
            wire.hold()
            name = proxy.services.serving.alias.name
            asked = asyncio.create_task(proxy.chat(model=name, max_tokens=9, stream=stream))
            await until(lambda: proxy.services.relay.num_calls)
            asked.cancel()

            row = (await proxy.row()).completion
            assert ("client_cancelled", False) == (row.state, row.delivered)
            await wire.left.wait()


async def test_the_weights_are_chosen_by_the_model_name_alone(proxy: Running) -> None:
    """Engines of one's own take no field that chooses others."""
    engine = engine_of(proxy)
    fields = {"model": "x", "messages": MESSAGES, "lora_request": {"lora_path": "/etc"}}
    ask = Ask("chat", json.dumps(fields).encode(), fields, served="x")

    if engine.capabilities.is_local:
        with pytest.raises(BadRequest, match="lora_request"):
            engine.plan(ask)
    else:
        assert b"lora_request" in engine.plan(ask).body


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_nothing_that_the_client_asked_for_is_lost(stream: bool, proxy: Running) -> None:
    """Its fields go on, under the same names and with the same values, or those that mean it."""
    served = proxy.services.serving.alias.active.name
    fields = {
        "model": served,
        "messages": MESSAGES,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["END"],
        "max_tokens": 7,
        "user": "somebody",
        "stream": stream,
    }
    engine = engine_of(proxy)
    raw = json.dumps(fields).encode()

    sent = json.loads(engine.plan(Ask("chat", raw, fields, served=served)).body)

    # How the engine calls its base, and whether it is asked for a stream, is the driver's.
    del fields["stream"], fields["model"]
    assert fields == {name: sent.get(name) for name in fields}


async def test_a_clients_key_stays_here(settings: Settings, proxy: Running) -> None:
    """The engine gets its own, if one is set."""
    sent = engine_of(proxy).headers([(b"authorization", b"Bearer a-clients"), (b"accept", b"*/*")])

    own = b"Bearer " + settings.engine.key.encode()
    given = [value for name, value in sent if name == b"authorization"]
    assert given == ([own] if settings.engine.key else [])
    assert (b"accept", b"*/*") in sent


async def test_a_good_engine_falls_short_of_nothing(case: Case, proxy: Running) -> None:
    """What it declares is what it was found to do; /health says so."""
    health = (await proxy.client.get("/health")).json()["engine"]

    can: Capabilities = engine_of(proxy).capabilities
    adapters = [what for what in health["shortfalls"] if "adapter" in what]
    assert [] == [what for what in health["shortfalls"] if what not in adapters]
    assert can.token_ids == health["capabilities"]["token_ids"]
    assert not (can.stream_logprobs and not can.logprobs)
    assert (engine_of(proxy).adapters is not None) or can.adapters == 0


@pytest.mark.parametrize("case", params(lambda case: case.is_fake), indirect=True)
async def test_an_engine_may_come_later_and_go(
    case: Case, started: Started, settings: Settings, tmp_path: Path
) -> None:
    """Absent, requests are refused and nothing breaks; back, they are served."""
    engine = started.fake
    assert engine is not None
    await engine.stop()
    async with running(settings, tmp_path / "late", ready=False) as proxy:
        first = await proxy.chat(model=case.model)
        await engine.start()
        await proxy.services.serving.wait_until_ready()
        name = proxy.services.serving.alias.name
        second = await proxy.chat(model=name)
        await engine.stop()
        third = await proxy.chat(model=name)
        await engine.start()
        await proxy.services.serving.wait_until_ready()
        fourth = await until(
            lambda: proxy.chat(model=name), lambda answer: answer.status_code == 200
        )

    statuses = [answer.status_code for answer in (first, second, third, fourth)]
    assert [503, 200, 200] == [statuses[0], statuses[1], statuses[3]]
    assert statuses[2] in (502, 503)


async def test_what_is_no_engine_is_said(case: Case, tmp_path: Path) -> None:
    """Another server at its address, for instance one that wants another key."""

    async def handler(call: Call) -> None:
        await call.json({"error": {"message": "who are you?"}}, 401)

    async with FakeEngine(handler) as other:
        settings = settings_for(other.url, kind=case.kind, engine={"key": "wrong"})
        async with running(settings, tmp_path / "other", ready=False) as proxy:
            await until(lambda: proxy.services.serving.reason.startswith("expected"))
            refused = await proxy.chat(model=case.model)

    assert (503, "engine_not_ready") == (refused.status_code, refused.json()["error"]["code"])
    assert "401" in refused.json()["error"]["message"]


@pytest.mark.parametrize("case", params(lambda case: case.adapter), indirect=True)
async def test_versions_are_loaded_asked_and_unloaded(
    case: Case, proxy: Running, request: pytest.FixtureRequest
) -> None:
    """Each call may be made again; what is loaded is listed with its folder."""
    controls = engine_of(proxy).adapters
    assert controls is not None
    (control,) = controls.members().values()
    folder: Path = request.getfixturevalue(case.adapter)
    name = f"contract@{proxy.services.home.parent.name}"
    base = proxy.services.serving.alias.base.name

    await control.prepare(name, folder)
    await control.load(name, folder)
    await control.load(name, folder)
    loaded = await control.loaded()
    answers = [
        await control.generate(one, range(5, 300), 8, uses_cache=uses_cache)
        for one in (base, name)
        for uses_cache in (False, True)
    ]
    await control.unload(name)
    await control.unload(name)

    assert str(folder) == loaded[name]
    assert name not in await control.loaded()
    assert [(8, 8)] * 4 == [(len(ids), len(logprobs)) for ids, logprobs in answers]
    for cold, warm in (answers[:2], answers[2:]):
        assert cold[0] == warm[0]
        assert cold[1] == pytest.approx(warm[1], abs=1e-4)
    assert answers[0][1] != pytest.approx(answers[2][1], abs=1e-2)
