"""Engines that run are told apart by what they say, and none is chosen by a guess."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from fake_engine import Call, FakeEngine, Handler
from fake_llama_server import FakeLlamaServer
from fake_ollama import FakeOllama
from fake_vllm import FakeVllm
from running import pass_time, settings_for
from waiting import LIMIT_S, until

from strop.proxy import detection
from strop.proxy.cli.root import main
from strop.proxy.detection import Found, Said
from strop.proxy.errors import ConfigError
from strop.proxy.settings.settings import Engine, Model, Settings

CARD = {"id": "m", "object": "model"}
VLLM = Found("vllm", "vLLM", "http://127.0.0.1:8000", "0.32.0", ("m",))
OLLAMA = Found("ollama", "Ollama", "http://127.0.0.1:11434", "0.33.0", ("tiny:latest",))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up nobody who answers, be it late."""
    monkeypatch.setattr(detection, "TIMEOUT_S", LIMIT_S)


def listed(**card: object) -> Said:
    return Said(200, payload={"object": "list", "data": [CARD | card]})


# As Ollama says that it has no model.
EMPTY = Said(200, "", {"object": "list", "data": None})
SAYINGS: list[tuple[str | None, dict[str, Said]]] = [
    ("vllm", {"/v1/models": listed(owned_by="vllm"), "/version": Said(200, "", {"version": "1"})}),
    ("openai", {"/v1/models": listed(owned_by="sglang")}),
    ("ollama", {"/v1/models": listed(), "/api/version": Said(200, "", {"version": "0.33.0"})}),
    ("ollama", {"/v1/models": EMPTY, "/api/version": Said(200, "", {"version": "0.33.0"})}),
    ("openai", {"/v1/models": listed(owned_by=["whoever"])}),
    (None, {"/v1/models": Said(200), "/api/version": Said(200, "", {"version": "0.6.36"})}),
    ("llama_server", {"/v1/models": Said(200, "llama.cpp", {"data": [CARD]})}),
    ("llama_server", {"/v1/models": Said(503, "llama.cpp")}),
    ("mlx_server", {"/v1/models": Said(200, "BaseHTTP/0.6 Python/3.11.7")}),
    ("vllm", {"/v1/models": listed(owned_by="strop"), "/version": Said(200, "", {"version": "1"})}),
    ("openai", {"/v1/models": listed(), "/api/v0/models": listed()}),
    ("openai", {"/v1/models": listed()}),
    (None, {"/v1/models": Said(404, "nginx")}),
    (None, {"/v1/models": Said(200, "", "hello")}),
    (None, {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "said"), SAYINGS)
def test_each_engine_is_known_by_what_it_says(kind: str | None, said: dict[str, Said]) -> None:
    """A web server that answers anything else is none."""
    found = detection.identify("http://127.0.0.1:8000", said)

    assert kind == (found.kind if found else None)


def test_the_models_that_strop_made_in_ollama_are_none_to_serve() -> None:
    """The newest, which Ollama lists first, is often one of a version."""
    cards = [CARD | {"id": tag} for tag in ("tiny-strop:v2-0123456789ab", "tiny:latest")]
    said = {
        "/v1/models": Said(200, "", {"data": cards}),
        "/api/version": Said(200, "", {"version": "0.33.0"}),
    }

    found = detection.identify("http://127.0.0.1:11434", said)

    assert OLLAMA == found
    assert found.command.endswith(" --model tiny:latest")


def test_adapters_are_no_models() -> None:
    """They are listed beside their base."""
    cards = [CARD | {"owned_by": "vllm"}, {"id": "m@v1", "parent": "m"}]

    found = detection.identify("http://x", {"/v1/models": Said(200, "", {"data": cards})})

    assert found is not None
    assert ("m",) == found.models


def test_what_only_embeds_texts_is_not_what_the_line_serves() -> None:
    """LM Studio lists it among the models that chat, and says of each which it is."""
    names = {"embed": "embeddings", "chat": "llm", "see": "vlm"}
    plain = [{"id": name} for name in names]
    typed = [{"id": name, "type": kind} for name, kind in names.items()]
    said = {
        "/v1/models": Said(200, "", {"data": plain}),
        "/api/v0/models": Said(200, "", {"data": typed}),
    }

    found = detection.identify("http://127.0.0.1:1234", said)

    assert found is not None
    assert ("chat", "see", "embed") == found.models
    line = "strop serve --engine openai --engine-url http://127.0.0.1:1234 --model chat"
    assert line == found.command
    assert "strop serve --model FOLDER" in found.does
    assert "unless its kind" not in found.does


@pytest.mark.parametrize(
    ("named", "num_lines"),
    [({}, 2), ({"engine": {"model": "b"}}, 1), ({"model": {"name": "b"}}, 1)],
    ids=["open", "model", "name"],
)
async def test_of_several_at_a_url_it_is_said_how_to_choose(
    named: dict[str, dict[str, Any]], num_lines: int
) -> None:
    """The first of the list serves else, whatever it is."""

    async def listing(call: Call) -> None:
        is_list = call.request.path == "/v1/models"
        await call.json({"data": [{"id": "a"}, {"id": "b"}]} if is_list else {})

    async with engines(listing) as (url,):
        settings = Settings(
            engine=Engine(url=url, **named.get("engine", {})),
            model=Model(**named.get("model", {})),
        )
        choice = await detection.detect(settings, at=" --home there")

    assert "openai" == choice.settings.engine.kind
    line = f"strop serve --engine openai --engine-url {url} --model a --home there"
    said = [f"  it lists 2 models; to say which one serves: {line}"]
    assert said[: num_lines - 1] == list(choice.says[1:])


@contextlib.asynccontextmanager
async def engines(*handlers: Handler) -> AsyncIterator[list[str]]:
    """Run these, and yield where each listens."""
    async with contextlib.AsyncExitStack() as stack:
        running = [await stack.enter_async_context(FakeEngine(one)) for one in handlers]
        yield [engine.url for engine in running]


async def web_page(call: Call) -> None:
    await call.answer(b"<html>", headers=[("content-type", "text/html")])


async def test_all_places_are_asked_and_what_is_no_engine_is_left_out() -> None:
    """In the order of the places; one where nobody listens costs nothing."""
    async with engines(FakeVllm(), web_page, FakeOllama(), FakeLlamaServer()) as urls:
        found = await detection.find([*urls, "http://127.0.0.1:1"])

    assert ["vllm", "ollama", "llama_server"] == [one.kind for one in found]
    assert ["0.32.0", "0.33.0", None] == [one.version for one in found]


async def silent(call: Call) -> None:
    await call.hang()


async def endless(call: Call) -> None:
    await call.head(200, [("content-type", "text/plain")])
    while True:
        await call.chunk(b"tick\n")
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("handler", [silent, endless])
async def test_a_server_that_never_answers_is_given_up(
    handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are still found."""
    answered: list[str] = []
    ask = detection._ask

    async def noted(client: httpx.AsyncClient, url: str) -> Said | None:
        said = await ask(client, url)
        answered.append(url)
        return said

    monkeypatch.setattr(detection, "_ask", noted)
    async with engines(handler, FakeVllm()) as urls:
        finding = asyncio.create_task(detection.find(urls))
        await until(lambda: len(answered) == len(detection._PATHS))
        pass_time(2 * detection.TIMEOUT_S)
        found = await finding

    assert ["vllm"] == [one.kind for one in found]


async def huge(call: Call) -> None:
    await call.head(200, [("content-type", "text/plain")])
    while True:
        await call.chunk(b" " * 2**20)


async def deep(call: Call) -> None:
    await call.answer(b"[" * 200_000, headers=[("content-type", "application/json")])


@pytest.mark.parametrize("handler", [huge, deep])
async def test_a_port_that_speaks_something_else_holds_nobody_up(handler: Handler) -> None:
    """Whatever listens there; the others are still found."""
    async with engines(handler, FakeVllm()) as urls:
        found = await detection.find([*urls, "http://127.0.0.1:99999", "http://\x00"])

    assert ["vllm"] == [one.kind for one in found]


def test_the_only_engine_is_taken_and_it_is_said_how_to_have_another() -> None:
    """The settings then name it."""
    choice = detection.choose(Settings(), [VLLM], at=" --home there")

    assert ("vllm", VLLM.url) == (choice.settings.engine.kind, choice.settings.engine.url)
    assert "vLLM" in choice.says[0]
    assert choice.says[-1].endswith(": strop serve --engine embedded --home there")


def test_of_several_none_is_taken_and_the_line_for_each_is_said() -> None:
    """A guess could record and train another model than was meant."""
    choice = detection.choose(Settings(), [VLLM, OLLAMA], at=" --home there")

    lines = [f"  {one.command} --home there" for one in (VLLM, OLLAMA)]
    assert (Settings(), lines) == (choice.settings, list(choice.says[1:]))


@pytest.mark.parametrize(
    "found",
    [
        Found("openai", "LM Studio", "http://127.0.0.1:1234", None, ("m",)),
        Found("ollama", "Ollama", "http://127.0.0.1:11434", "0.33.0", ()),
    ],
    ids=["not the person's own", "no model"],
)
def test_what_can_not_be_trained_or_serves_nothing_is_not_taken(found: Found) -> None:
    """So its own engine starts, and nothing is said."""
    assert detection.Choice(Settings()) == detection.choose(Settings(), [found])


@pytest.mark.parametrize(
    "settings",
    [Settings(engine=Engine(kind="embedded")), Settings(model=Model(path="some/model"))],
    ids=["kind", "model"],
)
async def test_what_the_settings_say_is_not_looked_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`engine.kind = "embedded"`, or a model for strop's own engine."""
    async with engines(FakeVllm()) as urls:
        monkeypatch.setattr(detection, "USUAL", tuple(urls))

        assert detection.Choice(settings) == await detection.detect(settings)


async def test_where_the_settings_say_nothing_the_usual_places_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `strop serve` does without any option."""
    async with engines(FakeVllm()) as urls:
        monkeypatch.setattr(detection, "USUAL", (*urls, "http://127.0.0.1:1"))

        choice = await detection.detect(Settings())

    assert ("vllm", urls[0]) == (choice.settings.engine.kind, choice.settings.engine.url)


async def test_a_url_without_a_kind_is_asked_what_it_is() -> None:
    """Whatever answers there is taken, under the URL as it was given."""
    async with engines(FakeOllama()) as (url,):
        settings = settings_for(f"{url}/v1", kind="")

        choice = await detection.detect(settings)

    assert ("ollama", f"{url}/v1") == (choice.settings.engine.kind, choice.settings.engine.url)


async def test_an_engine_is_asked_with_its_key() -> None:
    """Without it, it would not say what it serves."""
    async with engines(FakeVllm(key="right")) as (url,):
        settings = settings_for(url, kind="", engine={"key": "right"})

        choice = await detection.detect(settings)

    assert "vllm" == choice.settings.engine.kind


@pytest.mark.parametrize(("key", "wants"), [("", "wants a key"), ("wrong", "wants another key")])
async def test_an_engine_that_wants_a_key_first_is_said_to(key: str, wants: str) -> None:
    """Not to be none: something answers there."""
    async with engines(FakeVllm(key="right")) as (url,):
        settings = settings_for(url, kind="", engine={"key": key})

        with pytest.raises(ConfigError, match=f"{wants}.* as STROP_ENGINE_KEY"):
            await detection.detect(settings)


async def run(*arguments: str) -> tuple[int, str]:
    """Run `strop engines` in another thread: its own loop asks, this one answers."""
    result = await asyncio.to_thread(CliRunner().invoke, main, ["engines", *arguments])
    return result.exit_code, result.output


async def test_the_command_says_what_each_gives_and_the_line_that_serves_it() -> None:
    """For people."""
    async with engines(FakeVllm(), FakeOllama(models={}), FakeLlamaServer()) as urls:
        code, text = await run(*urls)

    assert 0 == code
    learns = ["--set model.base=MODEL" in one for one in text.split("\n\n")]
    assert [True, True, False] == learns
    assert f"vLLM 0.32.0 at {urls[0]}" in text
    assert f"strop serve --engine vllm --engine-url {urls[0]}" in text
    assert "no model yet" in text


async def test_the_command_speaks_json() -> None:
    """For scripts."""
    async with engines(FakeLlamaServer()) as urls:
        code, text = await run("--json", *urls)

    (one,) = json.loads(text)["data"]
    assert 0 == code
    assert ("llama_server", urls[0], "llama-server") == (one["kind"], one["url"], one["label"])


async def test_without_any_engine_the_command_exits_with_1() -> None:
    """And says where it looked."""
    code, text = await run("http://127.0.0.1:1")

    assert 1 == code
    assert "http://127.0.0.1:1" in text


async def test_strop_s_own_engine_is_offered_where_it_could_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without mlx-lm, as in an image, `strop serve` would only say what it lacks."""
    there = ModuleType("mlx_lm")
    there.__spec__ = ModuleSpec("mlx_lm", None)
    said = []

    for module in (there, None):
        monkeypatch.setitem(sys.modules, "mlx_lm", module)
        said.append((await run("http://127.0.0.1:1"))[1])

    assert ["strop's own:" in one for one in said] == [True, False]


async def test_the_command_takes_a_url_as_people_type_it() -> None:
    """Without its scheme, and with the /v1 of OPENAI_BASE_URL."""
    async with engines(FakeVllm()) as (url,):
        bare = await run(url.removeprefix("http://"))
        with_path = await run(f"{url}/v1/")

    assert (0, 0) == (bare[0], with_path[0])
    assert f"vLLM 0.32.0 at {url}\n" in bare[1]
    assert f"vLLM 0.32.0 at {url}\n" in with_path[1]


@pytest.mark.parametrize("url", ["http://[bad", "ftp://127.0.0.1", "127.0.0.1:99999", "http://"])
async def test_what_is_no_url_is_said(url: str) -> None:
    """In one line, and nothing is asked."""
    code, text = await run(url)

    assert 2 == code
    assert f"Error: expected URLs like http://127.0.0.1:8000, got {url!r}" == text.strip()


async def test_an_engine_that_wants_a_key_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by its URL it gets the key in the environment; a usual place does not."""
    # As the header's bytes look to the fake.
    seen = "schlüssel".encode().decode("latin-1")
    async with engines(FakeVllm(key=seen), FakeVllm()) as urls:
        monkeypatch.delenv("STROP_ENGINE_KEY", raising=False)
        without = await run(urls[0])
        monkeypatch.setenv("STROP_ENGINE_KEY", "wrong")
        wrong, both = await run(urls[0]), await run(*urls)
        monkeypatch.setenv("STROP_ENGINE_KEY", "schlüssel")
        right, as_json = await run(urls[0]), await run("--json", *urls)
        monkeypatch.setattr(detection, "USUAL", (urls[0],))
        usual = await run()

    wanted = f"something answers at {urls[0]} and wants a key"
    assert [1, 1, 0, 0, 0, 1] == [code for code, _ in (without, wrong, both, right, as_json, usual)]
    assert without == usual
    assert wanted in usual[1]
    assert f"STROP_ENGINE_KEY=... strop engines {urls[0]}" in usual[1]
    assert f"{urls[0]}, and not to the key in STROP_ENGINE_KEY" in wrong[1]
    assert f"vLLM 0.32.0 at {urls[1]}" in both[1]
    assert f"vLLM 0.32.0 at {urls[0]}" in right[1]
    assert urls == [one["url"] for one in json.loads(as_json[1])["data"]]


def test_the_line_for_ollama_names_one_of_its_models() -> None:
    """It serves all that it has; the first is as good as any."""
    assert (
        "strop serve --engine ollama --engine-url http://127.0.0.1:11434 --model tiny:latest"
        == (OLLAMA.command)
    )


def test_every_line_that_is_offered_names_an_engine_that_the_command_takes(tmp_path: Path) -> None:
    """`strop serve` knows each kind that detection finds."""
    for kind in detection._DOES:
        line = Found(kind, "x", "http://127.0.0.1:1", None, ()).command.split()
        result = CliRunner().invoke(main, ["config", *line[2:], "--home", str(tmp_path)])
        assert 0 == result.exit_code, result.output
