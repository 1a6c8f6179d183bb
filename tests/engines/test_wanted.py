"""Which of an engine's models is served: the one that is named, and no other in its place."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_llama_server
import fake_mlx_server
import httpx
import pytest
from fake_engine import FakeEngine, Handler, Request
from fake_llama_server import FakeLlamaServer
from fake_mlx_server import FakeMlxServer
from fake_ollama import FakeOllama, base_of
from fake_vllm import FakeVllm
from running import Running, running, settings_for
from waiting import until

from strop.proxy.engines.llama_server import LlamaServer
from strop.proxy.engines.openai import OpenAI
from strop.proxy.engines.vllm import Vllm
from strop.proxy.engines.wanted import Wanted
from strop.proxy.errors import EngineNotReady
from strop.proxy.upstream.upstream import Upstream


@dataclass(frozen=True)
class Case:
    """A kind of engine with models, what it calls one of them, and what strop calls that."""

    kind: str
    fake: Callable[[], Handler]
    wanted: str
    name: str
    others: tuple[str, ...] = ()


OLLAMA = {tag: base_of(tag) for tag in ("tiny:latest", "other:8b", "third:latest")}
CASES = [
    Case("vllm", lambda: FakeVllm(others=("b", "c")), "b", "b", ("tiny", "c")),
    Case("openai", lambda: FakeVllm(others=("b", "c")), "c", "c", ("tiny", "b")),
    Case("llama_server", FakeLlamaServer, fake_llama_server.MODEL_PATH, "tiny"),
    Case("mlx_server", FakeMlxServer, fake_mlx_server.MODEL_PATH, "tiny"),
    Case(
        "ollama",
        lambda: FakeOllama(models=OLLAMA),
        "other:8b",
        "other:8b",
        ("third", "third:latest", "tiny", "tiny:latest"),
    ),
    Case(
        "ollama",
        lambda: FakeOllama(models=OLLAMA),
        "third",
        "third",
        ("other:8b", "tiny", "tiny:latest"),
    ),
]


def chats_of(engine: FakeEngine) -> list[Request]:
    """Return the chats that it was asked for, among what else it was."""
    return [one for one in engine.requests if one.path == "/v1/chat/completions"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.wanted}")
@pytest.mark.parametrize("public", ["", "mine"])
async def test_the_model_that_is_named_serves_under_its_own_name_or_another(
    case: Case, public: str, tmp_path: Path
) -> None:
    """Unpinned requests get it; the engine's other models are served under their own names."""
    async with FakeEngine(case.fake()) as engine:
        settings = settings_for(
            engine.url, kind=case.kind, engine={"model": case.wanted}, model={"name": public}
        )
        async with running(settings, tmp_path / "home") as proxy:
            answer = await proxy.chat(model=public or case.name)
            asked = chats_of(engine)[-1].json()["model"]
            alias = proxy.services.serving.alias

    assert 200 == answer.status_code
    assert asked in (case.wanted, case.name)
    assert (public or case.name, case.name) == (alias.name, alias.base.name)
    assert sorted(case.others) == sorted(alias.others)


@pytest.mark.parametrize("kind", ["vllm", "openai", "llama_server", "mlx_server", "ollama"])
async def test_one_that_the_engine_lacks_is_refused(kind: str, tmp_path: Path) -> None:
    """Even where it is the only one that it has: it would be rated, and trained, as another."""
    case = next(case for case in CASES if case.kind == kind)
    settings = {"engine": {"model": "tinny"}, "model": {"name": "mine"}}
    async with (
        FakeEngine(case.fake()) as engine,
        running(
            settings_for(engine.url, kind=kind, **settings), tmp_path / "home", ready=False
        ) as proxy,
    ):
        refused = await refusal(proxy)
        health = (await proxy.client.get("/health")).json()

    message = refused.json()["error"]["message"]
    assert (503, "mine") == (refused.status_code, health["model"]["name"])
    assert "the engine has no model 'tinny', which engine.model (--model) names; it has " in message
    assert "tiny" in message.partition("it has ")[2]
    assert ("ollama pull tinny" in message) == (kind == "ollama")


async def refusal(proxy: Running) -> httpx.Response:
    """Return what a chat gets once the engine was asked for its models."""
    await until(lambda: "has no model" in proxy.services.serving.reason)
    return await proxy.chat(model="mine")


async def test_one_that_is_pulled_is_served_and_one_that_is_removed_no_more(
    tmp_path: Path,
) -> None:
    """Ollama's models come and go while it runs."""
    ollama = FakeOllama(models={"tiny:latest": base_of("tiny")})
    async with FakeEngine(ollama) as engine:
        settings = settings_for(
            engine.url, kind="ollama", engine={"model": "qwen3", "health_interval_s": 0.05}
        )
        async with running(settings, tmp_path / "home", ready=False) as proxy:
            await until(lambda: "ollama pull qwen3" in proxy.services.serving.reason)
            health = (await proxy.client.get("/health")).json()
            ollama.models["qwen3:latest"] = base_of("qwen3")
            await proxy.services.serving.wait_until_ready()
            answer = await proxy.chat(model="qwen3")
            del ollama.models["qwen3:latest"]
            await until(lambda: not proxy.services.serving.is_ready)
            reason = proxy.services.serving.reason

    assert "qwen3" == health["model"]["name"]
    assert (200, "qwen3") == (answer.status_code, answer.json()["model"])
    assert "it has tiny, tiny:latest: name one of them" in reason


@pytest.mark.parametrize("driver", [Vllm, OpenAI, LlamaServer])
async def test_a_list_in_another_order_says_nothing_new(driver: Callable[..., Any]) -> None:
    """Some make theirs of a set; the first serves on until it is gone."""
    fake = FakeVllm(base="a", others=("b", "c"))
    async with FakeEngine(fake) as engine:
        upstream = Upstream(engine.url)
        one = driver(upstream)
        found = [(await one.check()).models]
        fake.base, fake.others = "c", ("b", "a")
        found.append((await one.check()).models)
        fake.others = ("b",)
        found.append((await one.check()).models)
        await upstream.aclose()

    assert [("a", "b", "c"), ("a", "b", "c"), ("c", "b")] == found


async def test_a_name_for_clients_that_hides_another_model_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be left over from when it chose that one; who asks for it gets what serves."""
    async with FakeEngine(FakeVllm(others=("b",))) as engine:
        settings = settings_for(engine.url, engine={"model": "b"}, model={"name": "tiny"})
        async with running(settings, tmp_path / "home") as proxy:
            answer = await proxy.chat(model="tiny")
            shown = (await proxy.client.get("/v1/models/tiny")).json()

    assert ("b", "tiny@base") == (answer.json()["model"], shown["root"])
    (line,) = (one for one in caplog.records if "model.name hides" in one.message)
    assert ("b", "tiny") == (getattr(line, "model", ""), getattr(line, "answers_as", ""))


async def test_mlx_server_serves_the_folder_however_it_is_named(tmp_path: Path) -> None:
    """It lists the path without links, beside what it finds in the hub's cache."""
    folder, link = tmp_path / "tiny", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    async with FakeEngine(FakeMlxServer(listed=("org/other", str(folder)))) as engine:
        settings = settings_for(engine.url, kind="mlx_server", engine={"model": f"{link}/"})
        async with running(settings, tmp_path / "home") as proxy:
            await proxy.chat(model="tiny")
            asked = chats_of(engine)[-1].json()["model"]

    assert str(folder) == asked


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ((), "lists no models, so it can't be told whether it serves 'org/one'"),
        (("org/other",), "it has org/other: name one of them, or start it with a folder"),
    ],
)
async def test_mlx_server_that_does_not_list_it_is_not_taken_at_its_word(
    listed: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    """What its command line names may be any other."""
    async with FakeEngine(FakeMlxServer(listed=listed)) as engine:
        settings = settings_for(engine.url, kind="mlx_server", engine={"model": "org/one"})
        async with running(settings, tmp_path / "home", ready=False) as proxy:
            await proxy.services.serving.wait_until_asked()
            reason = proxy.services.serving.reason

    assert says in reason


@pytest.mark.parametrize(
    ("base", "listed", "asks_for"),
    [
        ("acme/mine", ("acme/other",), "default_model"),
        ("", ("acme/other",), "default_model"),
        ("acme/other", ("acme/mine", "acme/other"), "acme/other"),
        ("acme/other", ("acme/other", "/models/tiny"), "/models/tiny"),
    ],
)
async def test_mlx_server_is_asked_for_no_model_that_nobody_named(
    base: str, listed: tuple[str, ...], asks_for: str, tmp_path: Path
) -> None:
    """The only one of its list needn't be its own, which it would drop for that one."""
    async with FakeEngine(FakeMlxServer(listed=listed)) as engine:
        settings = settings_for(engine.url, kind="mlx_server", model={"base": base})
        async with running(settings, tmp_path / "home"):
            asked = {one.json()["model"] for one in engine.requests if one.method == "POST"}

    assert {asks_for} == asked


@pytest.mark.parametrize(("name", "first"), [("", "a"), ("b", "b"), ("mine", "a")])
def test_a_name_for_clients_chooses_where_the_engine_has_it(name: str, first: str) -> None:
    """And is a new name for the engine's first where it doesn't."""
    assert first == Wanted(name).among(["a", "b"])


def test_of_many_models_those_like_the_one_that_is_missing_are_said() -> None:
    """A service may list hundreds."""
    names = [f"model-{n}" for n in range(300)]

    with pytest.raises(EngineNotReady) as refused:
        Wanted("modell-299", is_required=True).among(names)

    said = refused.value.message
    assert "it has model-299, " in said
    assert said.endswith(" and 292 more: name one of them")


@pytest.mark.parametrize(
    ("named", "serves"),
    [
        ({}, None),
        ({"model": {"name": "mine"}}, None),
        ({"model": {"name": "third"}}, "third"),
        ({"engine": {"model": "other:8b"}, "model": {"name": "mine"}}, "other:8b"),
    ],
    ids=str,
)
async def test_of_several_that_ollama_has_none_is_taken_for_the_base(
    named: dict[str, dict[str, Any]], serves: str | None, qwen3: Path, tmp_path: Path
) -> None:
    """Its newest is what was pulled last: versions of another would be trained, and put upon it."""
    model = {**named.get("model", {}), "base": str(qwen3)}
    async with FakeEngine(FakeOllama(models=dict(OLLAMA))) as engine:
        settings = settings_for(
            engine.url, kind="ollama", engine=named.get("engine", {}), model=model
        )
        async with running(settings, tmp_path / "home", ready=False) as proxy:
            serving = proxy.services.serving
            await serving.wait_until_asked()
            reason = serving.reason
            name = serving.alias.base.name if serves else None

    assert serves == name
    said = "Ollama has tiny, other:8b, third: say which of them model.base is, as in --model tiny"
    assert (said in reason) == (serves is None)


@pytest.mark.parametrize(
    ("named", "others", "serves"),
    [
        ({}, ("b",), None),
        ({"name": "mine"}, ("b",), None),
        ({"name": "b"}, ("b",), "b"),
        ({}, (), "tiny"),
    ],
    ids=str,
)
async def test_of_several_that_llama_server_lists_none_is_taken_for_the_base(
    named: dict[str, Any],
    others: tuple[str, ...],
    serves: str | None,
    qwen3: Path,
    tmp_path: Path,
) -> None:
    """As a router it serves each of them, in any order; the only one is taken at its word."""
    async with FakeEngine(FakeLlamaServer(others=others)) as engine:
        model = {**named, "base": str(qwen3)}
        settings = settings_for(engine.url, kind="llama_server", model=model)
        async with running(settings, tmp_path / "home", ready=False) as proxy:
            serving = proxy.services.serving
            await serving.wait_until_asked()
            reason = serving.reason
            name = serving.alias.base.name if serves else None

    assert serves == name
    said = "the engine has tiny, b: say which of them model.base is, as in --model tiny"
    assert (said == reason) == (serves is None)


async def test_without_a_base_llama_server_s_first_serves(tmp_path: Path) -> None:
    """Nothing is taken for what is trained then."""
    async with FakeEngine(FakeLlamaServer(others=("b",))) as engine:
        settings = settings_for(engine.url, kind="llama_server")
        async with running(settings, tmp_path / "home") as proxy:
            assert ("tiny", None) == (
                proxy.services.serving.alias.name,
                proxy.services.serving.base,
            )


async def test_what_is_served_in_the_place_of_a_model_that_is_gone_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody asked for the other one."""
    ollama = FakeOllama(models=dict(OLLAMA))
    async with FakeEngine(ollama) as engine:
        settings = settings_for(engine.url, kind="ollama", engine={"health_interval_s": 0.05})
        async with running(settings, tmp_path / "home") as proxy:
            del ollama.models["tiny:latest"]
            await until(lambda: proxy.services.serving.alias.name != "tiny")

    (line,) = (one for one in caplog.records if "another model" in one.message)
    assert ("other:8b", "tiny") == (getattr(line, "model", ""), getattr(line, "before", ""))


async def test_a_name_for_clients_chooses_ollama_s_model_once_it_is_pulled(tmp_path: Path) -> None:
    """Until then another answers under it, which strop serves without a base to train."""
    ollama = FakeOllama(models={"tiny:latest": base_of("tiny")})
    async with FakeEngine(ollama) as engine:
        settings = settings_for(
            engine.url,
            kind="ollama",
            engine={"health_interval_s": 0.05},
            model={"name": "qwen3:8b"},
        )
        async with running(settings, tmp_path / "home") as proxy:
            serving = proxy.services.serving
            before = serving.alias.base.name
            ollama.models = {"qwen3:8b": base_of("qwen3"), **ollama.models}
            await until(lambda: serving.alias.base.name != before)
            await proxy.chat(model="qwen3:8b")

    (asked,) = chats_of(engine)
    assert ("tiny", "qwen3:8b") == (before, asked.json()["model"])
