"""Where serving listens, and what it tells people."""

import asyncio
import contextlib
import logging
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import Call, FakeEngine
from fake_vllm import FakeVllm
from ports import free_port
from running import running, settings_for
from waiting import until

from strop.configs import demo_model
from strop.proxy import open_files
from strop.proxy.app import App
from strop.proxy.engines.base import EngineState
from strop.proxy.errors import ConfigError, EngineNotReady, StropError
from strop.proxy.http_server import listen, url_of
from strop.proxy.serve import banner, check_is_other, say_when_ready, serve
from strop.proxy.settings.settings import Log, Model, Settings


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8484"),
        ("localhost", "http://localhost:8484"),
        ("::1", "http://[::1]:8484"),
        ("[::1]", "http://[::1]:8484"),
        ("0.0.0.0", "http://127.0.0.1:8484"),
        ("::", "http://[::1]:8484"),
    ],
)
def test_the_url_of_an_address_can_be_opened(host: str, url: str) -> None:
    """Also that of a listener on every address; an IPv6 one has its brackets once."""
    assert url == url_of(host, 8484)


def test_a_port_is_taken_from_the_start() -> None:
    """Of two that start at once, one is told so, though neither has accepted anything yet."""
    with listen("127.0.0.1", 0) as first, pytest.raises(ConfigError, match="is strop running"):
        listen("127.0.0.1", first.getsockname()[1])


def test_a_port_that_another_has_on_every_address_is_taken_on_a_mac_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There both can be bound, and clients of the other would come to this one."""

    class Shared(socket.socket):
        """As macOS lets two have one port."""

        def bind(self, address: Any, /) -> None:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Shared)
    monkeypatch.setattr(sys, "platform", "darwin")
    with Shared() as first:
        first.bind(("0.0.0.0", 0))
        first.listen()

        with pytest.raises(ConfigError, match="is strop running"):
            listen("127.0.0.1", first.getsockname()[1])
    listen("127.0.0.1", 0).close()


@pytest.mark.parametrize(
    "engine",
    [
        {"url": "http://127.0.0.1:8484"},
        {"url": "http://localhost:8484/v1"},
        {"url": "http://10.0.0.1:8000", "replicas": ("http://[::1]:8484",)},
    ],
    ids=str,
)
def test_strop_is_not_its_own_engine(engine: dict[str, Any]) -> None:
    """It would answer itself that it isn't ready, for good."""
    with pytest.raises(ConfigError, match="which is where strop itself listens"):
        check_is_other(settings_for("", engine=engine), "http://127.0.0.1:8484")


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:8485", "http://strop.lan:8484"])
def test_another_strop_may_be_the_engine(url: str) -> None:
    """On another port, or another machine; strop's own engine has no address yet."""
    check_is_other(settings_for(url), "http://127.0.0.1:8484")


def test_an_engine_that_would_be_strop_itself_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which address strop has is known once it listens there, and is free again then."""
    # They would be those of the whole test process.
    monkeypatch.setattr(open_files, "hold_standard", lambda: None)
    monkeypatch.setattr(open_files, "raise_limit", lambda: None)
    port = free_port()
    settings = settings_for(f"http://localhost:{port}", kind="openai", server={"port": port})

    with pytest.raises(ConfigError, match="which is where strop itself listens"):
        serve(settings, tmp_path)

    listen("127.0.0.1", port).close()


def test_an_address_of_another_machine_is_explained() -> None:
    """Nothing listens there that could be stopped (192.0.2.0/24 is for examples; RFC 5737)."""
    with pytest.raises(ConfigError, match=r"192\.0\.2\.7:0: .*; choose another address"):
        listen("192.0.2.7", 0)


@pytest.mark.parametrize("error", [ConfigError("full"), OSError("full")])
@pytest.mark.parametrize("stage", ["startup", "shutdown"])
async def test_why_strop_cannot_start_or_stop_in_order_is_told_to_the_server(
    stage: str, error: StropError | OSError
) -> None:
    """It logs that as one line; told of the wrong stage, it would log a fault of strop's."""

    @contextlib.asynccontextmanager
    async def failing() -> AsyncIterator[Any]:
        if stage == "shutdown":
            yield object()
        raise error

    async def receive() -> MutableMapping[str, Any]:
        return {}

    async def send(message: MutableMapping[str, Any]) -> None:
        told.append(message)

    async def no_routes(*_: object) -> None:
        raise AssertionError("nobody asks for anything")

    told: list[MutableMapping[str, Any]] = []
    await App(failing(), lambda _: no_routes)({"type": "lifespan"}, receive, send)

    assert {"type": f"lifespan.{stage}.failed", "message": "full"} == told[-1]


_STOPS = """
import contextlib
from strop.proxy import logs
from strop.proxy.app import App
from strop.proxy.errors import StoreUnavailable
from strop.proxy.http_server import Alone, uvicorn_config
from strop.proxy.settings.settings import Log, Settings

@contextlib.asynccontextmanager
async def services(error):
    yield
    if error is not None:
        raise error

logs.set_up(Log())
for error in (None, StoreUnavailable("the disk is full"), OSError("no disk"), ValueError("a bug")):
    server = Alone(uvicorn_config(Settings(), App(services(error), lambda _: None)))
    server.should_exit = True
    server.run(sockets=[])
    print(server.exit_status)
"""


def test_a_stop_that_fails_says_why_and_is_no_success() -> None:
    """Whatever fails: whoever starts strop again after a failure knows of it."""
    result = subprocess.run(
        [sys.executable, "-c", _STOPS], capture_output=True, text=True, check=True
    )

    assert ["0", "1", "1", "1"] == result.stdout.split()
    assert all(why in result.stderr for why in ("the disk is full", "no disk", "a bug"))


def test_a_serving_process_imports_nothing_that_only_training_or_a_terminal_needs() -> None:
    """Each worker would have its own of it, for as long as it runs."""
    unneeded = "{'torch', 'mlx', 'transformers', 'numpy', 'peft'}"
    script = (
        "import sys, strop.proxy.cli.root, strop.proxy.serve, strop.proxy.workers.process;"
        f" print(sorted({unneeded} & set(sys.modules)))"
    )

    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert "[]\n" == result.stdout


async def test_strop_serves_whoever_reads_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As `strop serve | head` does, which leaves after a few lines."""
    reader, writer = os.pipe()
    os.close(reader)
    async with (
        FakeEngine(FakeVllm()) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        with os.fdopen(writer, "w") as unread:
            monkeypatch.setattr(sys, "stdout", unread)
            await say_when_ready(proxy.services, proxy.url)
            monkeypatch.undo()

    assert "standard output takes nothing" in caplog.text


async def test_whoever_starts_strop_is_told_that_ratings_would_be_lost_to_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """At once, where a person reads it and in the log: what comes before it is mended is lost."""
    caplog.set_level(logging.WARNING, "strop.proxy.serve")
    async with (
        FakeEngine(FakeVllm()) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        await say_when_ready(proxy.services, proxy.url)

    reason = (
        "nothing can be trained before model.base is set: a folder or a downloaded hub id of the"
        " same model in Hugging Face format; what is answered until then is never learned from,"
        " however it is rated"
    )
    assert f"\n  {reason}\n" in capsys.readouterr().out
    assert [("ratings teach nothing", reason)] == warnings(caplog)


async def test_where_the_log_is_json_nothing_else_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A container's two outputs are one log; where strop serves, a line of it says."""
    caplog.set_level(logging.INFO, "strop.proxy.serve")
    model = {"base": str(demo_model())}
    async with FakeEngine(FakeVllm()) as engine:
        settings = replace(settings_for(engine.url, model=model), log=Log(format="json"))
        async with running(settings, tmp_path / "home") as proxy:
            await say_when_ready(proxy.services, proxy.url)
            url = proxy.url

    said: list[Any] = [one for one in caplog.records if one.name == "strop.proxy.serve"]
    assert [("strop serves", url, "base")] == [(one.message, one.url, one.version) for one in said]
    assert "" == capsys.readouterr().out


async def test_the_engine_that_was_found_is_in_a_json_log_too(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In place of the lines for people; that the port is taken ends the start after it."""
    # They would be those of the whole test process.
    monkeypatch.setattr(open_files, "hold_standard", lambda: None)
    monkeypatch.setattr(open_files, "raise_limit", lambda: None)
    caplog.set_level(logging.INFO, "strop.proxy.serve")
    async with FakeEngine(FakeVllm()) as engine:
        with listen("127.0.0.1", 0) as taken:
            server = {"port": taken.getsockname()[1]}
            settings = settings_for(engine.url, kind="", server=server)
            with pytest.raises(ConfigError, match="is strop running"):
                await asyncio.to_thread(
                    serve, replace(settings, log=Log(format="json")), tmp_path / "home"
                )

    assert [f"found vLLM at {engine.url}"] == caplog.messages
    assert "" == capsys.readouterr().out


async def test_each_reason_to_wait_for_the_engine_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is loading may turn out to lack the model, which no waiting mends."""
    caplog.set_level(logging.WARNING, "strop.proxy.serve")

    async def loads(call: Call) -> None:
        await call.json({"error": "loading"}, 503)

    async with FakeEngine(loads) as engine:
        settings = settings_for(
            engine.url,
            engine={"model": "mine", "health_interval_s": 0.05},
            model={"base": str(demo_model())},
        )
        async with running(settings, tmp_path / "home", ready=False) as proxy:
            telling = asyncio.create_task(say_when_ready(proxy.services, proxy.url))
            await until(lambda: len(warnings(caplog)) == 1)
            num_asked = len(engine.requests)
            await until(lambda: len(engine.requests) > 1 + num_asked)
            engine.handler = FakeVllm()
            await until(lambda: len(warnings(caplog)) == 2)
            engine.handler = FakeVllm(others=("mine",))
            await telling

    (loading, first), (lacking, second) = warnings(caplog)
    assert "waiting for the engine" == loading == lacking
    assert "may be loading its model" in str(first)
    assert "the engine has no model 'mine'" in str(second)


class Refuses:
    """Who should make the engine serve a version, and can't, until it may."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.may = False

    async def keep(self, state: EngineState) -> None:  # noqa: ARG002  # the protocol's
        self.num_asked += 1
        if not self.may:
            raise EngineNotReady(f"v{self.num_asked} can't be served")

    async def bring(self, version: str) -> None:
        """Never asked."""

    async def reload(self, version: str, asked_at: float) -> bool:  # noqa: ARG002  # the protocol's
        """Never asked."""
        return False


async def test_an_engine_that_answers_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Why it isn't ready all the same, the watch says: nobody says it twice."""
    caplog.set_level(logging.WARNING, "strop.proxy")
    async with FakeEngine(FakeVllm()) as engine:
        settings = settings_for(
            engine.url, engine={"health_interval_s": 0.05}, model={"base": str(demo_model())}
        )
        async with running(settings, tmp_path / "home") as proxy:
            serving, refuses = proxy.services.serving, Refuses()
            serving.keeper = refuses
            await until(lambda: refuses.num_asked > 1)
            telling = asyncio.create_task(say_when_ready(proxy.services, proxy.url))
            num_asked = refuses.num_asked
            await until(lambda: refuses.num_asked > 2 + num_asked)
            refuses.may = True
            await telling

    assert [] == warnings(caplog)
    assert "engine not ready" in caplog.messages


async def test_whoever_starts_strop_with_a_base_is_not_told_that_it_lacks_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """What is rated is learned from."""
    caplog.set_level(logging.WARNING, "strop.proxy.serve")
    model = {"base": str(demo_model())}
    async with (
        FakeEngine(FakeVllm()) as engine,
        running(settings_for(engine.url, model=model), tmp_path / "home") as proxy,
    ):
        await say_when_ready(proxy.services, proxy.url)

    assert "trained" not in capsys.readouterr().out
    assert [] == warnings(caplog)


def warnings(caplog: pytest.LogCaptureFixture) -> list[tuple[str, object]]:
    """What the start warned of, and why."""
    found = [one for one in caplog.records if one.name == "strop.proxy.serve"]
    return [(one.message, getattr(one, "reason", None)) for one in found]


@pytest.mark.parametrize(
    ("model", "said"), [("acme/Large-3B", "acme/Large-3B"), ("", None)], ids=["hub", "demo"]
)
async def test_a_model_that_may_be_fetched_first_is_named_while_strop_waits(
    model: str, said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Then the wait may be long, and for the network."""
    caplog.set_level(logging.INFO)
    asked = asyncio.Event()

    async def wait() -> None:
        asked.set()
        await asyncio.Event().wait()

    services: Any = SimpleNamespace(
        serving=SimpleNamespace(engine=None, wait_until_ready=wait),
        process=object(),
        settings=Settings(model=Model(path=model)),
        home=tmp_path,
    )
    telling = asyncio.create_task(say_when_ready(services, "http://127.0.0.1:1"))
    await asked.wait()
    telling.cancel()

    (line,) = caplog.records
    assert "waiting for the engine to load its model" == line.message
    assert said == getattr(line, "from_the_hub", None)


def test_the_commands_to_copy_name_a_home_that_is_not_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed as they are, they rate what this strop has recorded, where no PATH has it too."""
    monkeypatch.setenv("STROP_HOME", str(tmp_path / "default"))

    def said(home: Path, *, is_demo: bool = False, model: str = "tiny") -> str:
        return banner(
            url="http://127.0.0.1:8484",
            model=model,
            engine_model="tiny",
            version="base",
            engine="embedded",
            home=home,
            is_demo=is_demo,
            needs_key=False,
            why_untrained=None,
        )

    def commands(text: str) -> list[str]:
        return [line.strip() for line in text.splitlines() if line.startswith("    ")]

    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))

    other = tmp_path / "other"
    assert [
        f"strop good --home {other}",
        f"strop bad --home {other} -m 'too long'",
        f"strop completions list --home {other}",
        f"strop status --home {other}",
    ] == commands(said(other))[3:]
    assert "strop bad -m 'too long'" in commands(said(tmp_path / "default"))
    assert 2 == said(other, is_demo=True).count(f"    strop serve --home {other} --")
    assert "\nstrop serves tiny (base), by embedded\n" in said(other)
    assert ", by embedded, whose tiny answers as my\n" in said(other, model="my")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(Path(sys.executable).parents[1])
    assert "bin/strop bad -m 'too long'" in commands(said(tmp_path / "default"))
    # One command a line and nothing behind it: zsh takes a comment for arguments.
    for command in commands(said(other, is_demo=True)):
        assert command.split()[0] in ("export", "curl", "bin/strop")
        assert "#" not in shlex.split(command)
