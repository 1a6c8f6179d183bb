"""Adapter versions on Ollama, against a fake that shares one place in memory between them."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import models
import pytest
from fake_engine import FakeEngine
from fake_ollama import FakeOllama, Model, base_of
from fake_ollama_answers import Vocabulary, sample
from ollama_vocabulary import END_ID, vocabulary_of
from running import running, settings_for
from waiting import until

from strop.adapters import gguf
from strop.configs import installation
from strop.proxy.engines.base import Ask
from strop.proxy.engines.calls import Calls, credentials
from strop.proxy.engines.ollama import Ollama
from strop.proxy.engines.ollama_adapters import OllamaAdapters
from strop.proxy.engines.ollama_models import is_ours
from strop.proxy.errors import UpstreamError
from strop.proxy.upstream.upstream import Upstream

BASE = base_of("tiny")


def make_control(upstream: Upstream, base: Path, home: Path) -> OllamaAdapters:
    """Return the control of one home."""
    home.mkdir(exist_ok=True)
    return OllamaAdapters(
        Calls(upstream, []), base=base, convert=gguf.convert, notes=home / "ollama-models.json"
    )


@pytest.fixture
def ollama(qwen3: Path) -> FakeOllama:
    """An Ollama whose base is `qwen3`, as its tokens go."""
    return FakeOllama(models={"tiny:latest": BASE}, vocabulary=vocabulary_of(qwen3))


@pytest.fixture
async def engine(ollama: FakeOllama) -> AsyncIterator[FakeEngine]:
    """Where it listens."""
    async with FakeEngine(ollama) as engine:
        yield engine


@pytest.fixture
async def driver(engine: FakeEngine, qwen3: Path, tmp_path: Path) -> AsyncIterator[Ollama]:
    """The driver, with a control over `qwen3`, once Ollama has answered."""
    upstream = Upstream(engine.url)
    control = make_control(upstream, qwen3, tmp_path)
    driver = Ollama(upstream, adapters=control)
    await driver.check()
    yield driver
    await upstream.aclose()


def control_of(driver: Ollama) -> OllamaAdapters:
    assert driver.adapters is not None
    return driver.adapters


def ours(ollama: FakeOllama) -> list[tuple[str, Model]]:
    """Return the models that strop made."""
    return [(tag, model) for tag, model in ollama.models.items() if is_ours(tag)]


async def test_preparing_makes_a_model_and_changes_nothing_that_serves(
    ollama: FakeOllama, driver: Ollama, peft_a: Path
) -> None:
    """Of the base, with the adapter's file and samplers that cut nothing off; not loaded yet."""
    await control_of(driver).prepare("tiny@v1", peft_a)

    ((tag, model),) = ours(ollama)
    (digest,) = ollama.blobs
    assert tag.startswith("tiny-strop:v1-")
    assert (BASE.base, (digest.removeprefix("sha256:"),)) == (model.base, model.adapters)
    assert {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0} == dict(model.parameters)
    assert ollama.runner is None
    assert {"tiny@v1": str(peft_a)} == await control_of(driver).loaded()


async def test_loading_displaces_the_former_and_requests_name_the_models(
    ollama: FakeOllama, driver: Ollama, peft_a: Path, peft_b: Path
) -> None:
    """Clients never see these names, nor are they offered as models."""
    control = control_of(driver)

    await control.load("tiny@v1", peft_a)
    await control.load("tiny@v2", peft_b)

    tag = control.tag_of("tiny@v2")
    fields = {"messages": [], "model": "tiny"}
    assert tag is not None
    assert ollama.runner == ollama.models[tag]
    assert {"tiny@v1": str(peft_a), "tiny@v2": str(peft_b)} == await control.loaded()
    assert tag.encode() in driver.plan(Ask("chat", b"", fields, "tiny@v2")).body
    assert ("tiny",) == (await driver.check()).models


async def test_loading_again_makes_nothing_again(
    ollama: FakeOllama, driver: Ollama, peft_a: Path
) -> None:
    """Nor does another strop that shares this Ollama, for the same file."""
    control = control_of(driver)
    await control.load("tiny@v1", peft_a)
    made = dict(ollama.models)

    await control.load("tiny@v1", peft_a)

    assert made == ollama.models
    assert 1 == ollama.num_loads


async def test_two_homes_with_a_v1_each_do_not_meet(
    ollama: FakeOllama, driver: Ollama, peft_a: Path, peft_b: Path, qwen3: Path, tmp_path: Path
) -> None:
    """A model's name has a part of its file's digest."""
    other = make_control(driver.upstream, qwen3, tmp_path / "other")
    other.serves("tiny:latest")

    await control_of(driver).prepare("tiny@v1", peft_a)
    await other.prepare("tiny@v1", peft_b)

    assert 2 == len({model.adapters for _, model in ours(ollama)})


async def test_unloading_gives_the_base_back_and_deletes_the_model(
    ollama: FakeOllama, driver: Ollama, peft_a: Path, peft_b: Path
) -> None:
    """What is not loaded is deleted without touching what is."""
    control = control_of(driver)
    await control.load("tiny@v1", peft_a)
    await control.load("tiny@v2", peft_b)

    await control.unload("tiny@v1")
    assert ["tiny@v2"] == list(await control.loaded())
    assert ollama.runner is not None
    assert ollama.runner.adapters
    await control.unload("tiny@v2")
    await control.unload("tiny@v2")

    assert {} == await control.loaded()
    assert BASE == ollama.runner
    assert [] == ours(ollama)


async def test_requests_under_way_hold_up_a_load_and_are_not_cut(
    ollama: FakeOllama, driver: Ollama, peft_a: Path
) -> None:
    """Ollama waits for all of them; that is why strop holds new ones back meanwhile."""
    control, let_go = control_of(driver), asyncio.Event()
    await control.prepare("tiny@v1", peft_a)
    async with ollama._running(BASE):
        load = asyncio.create_task(control.load("tiny@v1", peft_a))
        await until(lambda: ollama._num_waiting)
        async with ollama._running(BASE):
            assert BASE == ollama.runner
            let_go.set()
        assert not load.done()
    await load

    assert ["tiny@v1"] == list(await control.loaded())


async def test_a_version_is_asked_by_text_and_answers_by_ids(
    ollama: FakeOllama, driver: Ollama, peft_a: Path, qwen3: Path
) -> None:
    """Each token's id is found by its text; the version and the base answer differently."""
    control = control_of(driver)
    await control.load("tiny@v1", peft_a)
    prompt_ids = models.make_tokenizer().encode("def main(argv):\n    return")

    ids, logprobs = await control.generate("tiny@v1", prompt_ids, 8, uses_cache=True)
    base_ids, _ = await control.generate("tiny", prompt_ids, 8, uses_cache=True)

    tag = control.tag_of("tiny@v1") or ""
    weights = ",".join((BASE.base, *ollama.models[tag].adapters))
    prompt = models.make_tokenizer().decode(prompt_ids)
    said = sample(weights, prompt, 8, ollama.vocabulary)
    # All but the token that ends the text, which has none.
    num_shown = len(said.ids) - (said.reason == "stop")
    assert (tuple(said.ids[:num_shown]), tuple(said.logprobs[:num_shown])) == (ids, logprobs)
    assert ids != base_ids


async def test_a_token_that_ends_inside_a_character_ends_what_can_be_told(
    ollama: FakeOllama, driver: Ollama, qwen3: Path
) -> None:
    """Ollama leaves it out, and none is made up: what comes is a prefix of what was sampled."""
    control = control_of(driver)
    ollama.vocabulary = vocabulary_of(qwen3, has_parts=True)
    tokenizer = models.make_tokenizer()
    first_part = ollama.vocabulary.pieces.index(b"\xf0")
    has_parts = set()
    for number in range(16):
        prompt = f"def question{number}"
        said = sample(BASE.base, prompt, 12, ollama.vocabulary)
        ends = [at for at, token in enumerate(said.ids) if token in (first_part, END_ID)]
        num_told = min(ends, default=len(said.ids))
        ids, logprobs = await control.generate(
            "tiny", tokenizer.encode(prompt), 12, uses_cache=True
        )

        assert tuple(said.ids[: len(ids)]) == ids
        assert tuple(said.logprobs[: len(ids)]) == logprobs
        assert num_told == len(ids)
        has_parts.add(first_part in said.ids)
    assert {True, False} == has_parts


async def test_a_prompt_that_is_read_otherwise_is_noticed(
    ollama: FakeOllama, driver: Ollama
) -> None:
    """Ollama counts the prompt's tokens: another model's tokenizer gives another number."""
    known = ollama.vocabulary
    ollama.vocabulary = Vocabulary(lambda text: [*text.encode()] * 9, known.pieces, known.end_id)

    with pytest.raises(UpstreamError, match="the model that it serves"):
        await control_of(driver).generate("tiny", [300, 301], 4, uses_cache=True)


async def test_a_count_without_what_was_cached_is_not_taken_for_another_model_s(
    ollama: FakeOllama, driver: Ollama
) -> None:
    """From 0.30.0 until ollama's pull request 16428 that is what it tells of a warm prompt."""
    ollama.counts_cached = False
    asked = [
        await control_of(driver).generate("tiny", [300, 301, 302], 4, uses_cache=True)
        for _ in range(2)
    ]

    assert asked[0] == asked[1]
    assert asked[0][0]


async def test_a_base_that_is_gone_is_not_downloaded(
    ollama: FakeOllama, driver: Ollama, peft_a: Path
) -> None:
    """To create a model from it would."""
    del ollama.models["tiny:latest"]

    with pytest.raises(UpstreamError, match="not found"):
        await control_of(driver).prepare("tiny@v1", peft_a)

    assert 0 == ollama.num_pulls


async def test_an_old_ollama_says_that_it_loads_none(
    ollama: FakeOllama, driver: Ollama, peft_a: Path
) -> None:
    """For most models it does from 0.30 on; what served before still does."""
    ollama.version = "0.29.0"
    control = control_of(driver)

    with pytest.raises(UpstreamError, match="loras are not yet implemented"):
        await control.load("tiny@v1", peft_a)

    await driver.check()
    await driver.verify("tiny")
    assert "0.30" in " ".join(driver.shortfalls)
    assert 0 == driver.capabilities.adapters


async def test_without_gguf_it_is_said_before_anything_is_trained(
    ollama: FakeOllama, qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a version could not be converted, none is made; and how to get gguf."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    async with FakeEngine(ollama) as engine:
        settings = settings_for(engine.url, kind="ollama", model={"base": str(qwen3)})
        async with running(settings, tmp_path) as proxy:
            health = (await proxy.client.get("/health")).json()["engine"]
            why_untrained = proxy.services.trainer.why_untrained()

    (shortfall,) = health["shortfalls"]
    assert shortfall.endswith(f" need the gguf package: {installation.install('strop[gguf]')}")
    assert 0 == health["capabilities"]["adapters"]
    assert why_untrained is not None
    assert why_untrained.endswith(shortfall)


async def test_a_broken_adapter_is_never_uploaded(
    ollama: FakeOllama, driver: Ollama, peft_a: Path, tmp_path: Path
) -> None:
    """The reason is the converter's."""
    broken = tmp_path / "v9"
    broken.mkdir()
    for file in peft_a.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[:200])

    with pytest.raises(UpstreamError, match="tiny@v9 can't be converted for Ollama"):
        await control_of(driver).load("tiny@v9", broken)

    assert {} == ollama.blobs


async def test_a_model_that_was_deleted_behind_strops_back_is_not_loaded(
    ollama: FakeOllama, driver: Ollama, peft_a: Path
) -> None:
    """So strop makes it again."""
    control = control_of(driver)
    await control.load("tiny@v1", peft_a)
    ollama.models = {"tiny:latest": BASE}

    assert {} == await control.loaded()
    await control.load("tiny@v1", peft_a)

    assert ["tiny@v1"] == list(await control.loaded())


async def test_a_version_that_another_model_pushed_out_is_not_lost(
    ollama: FakeOllama, driver: Ollama, peft_a: Path
) -> None:
    """Its next request brings it back, for minutes: the same process, so it is only kept again."""
    control = control_of(driver)
    ollama.models["other:latest"] = base_of("other")
    await control.load("tiny@v1", peft_a)
    tuned = ollama.runner

    for runner in (ollama.models["other:latest"], None):
        ollama.runner, ollama.is_kept = runner, False
        assert ["tiny@v1"] == list(await control.loaded())
        assert runner == ollama.runner
        ollama.runner = tuned
        assert ["tiny@v1"] == list(await control.loaded())

        assert ollama.is_kept


async def test_a_version_that_another_process_brought_back_is_lost(
    ollama: FakeOllama, engine: FakeEngine, driver: Ollama, peft_a: Path
) -> None:
    """Ollama was started anew, which ends all connections: it must be proven again."""
    control = control_of(driver)
    await control.load("tiny@v1", peft_a)
    tuned = ollama.runner

    await engine.stop()
    await until(lambda: not driver.upstream.num_connections)
    ollama.restart()
    await engine.start()
    ollama.runner = tuned
    assert {} == await control.loaded()
    await control.load("tiny@v1", peft_a)

    assert ["tiny@v1"] == list(await control.loaded())
    assert ollama.is_kept


async def test_with_a_key_only_a_kept_version_counts_as_never_away(
    ollama: FakeOllama, engine: FakeEngine, qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """What asks for it may end a silent connection: no other process can be told from this one."""
    upstream = Upstream(engine.url)
    control = OllamaAdapters(
        Calls(upstream, credentials("secret")),
        base=qwen3,
        convert=gguf.convert,
        notes=tmp_path / "ollama-models.json",
    )
    control.serves("tiny:latest")
    ollama.models["other:latest"] = base_of("other")
    await control.load("tiny@v1", peft_a)
    tuned = ollama.runner

    assert ["tiny@v1"] == list(await control.loaded())
    ollama.runner, ollama.is_kept = ollama.models["other:latest"], False
    assert ["tiny@v1"] == list(await control.loaded())
    ollama.runner = tuned
    assert {} == await control.loaded()
    await control.load("tiny@v1", peft_a)
    ollama.restart()
    assert {} == await control.loaded()
    await upstream.aclose()


async def test_a_version_whose_model_was_made_of_something_else_is_lost(
    ollama: FakeOllama, driver: Ollama, peft_a: Path
) -> None:
    """What it is made of has a digest: requests would get what nobody has proven."""
    control = control_of(driver)
    await control.load("tiny@v1", peft_a)
    tag = control.tag_of("tiny@v1") or ""

    ollama.models[tag] = replace(ollama.models[tag], base=base_of("newer").base)

    assert {} == await control.loaded()


async def test_a_version_is_made_again_of_a_base_that_was_pulled_again(
    ollama: FakeOllama, driver: Ollama, peft_a: Path, qwen3: Path, tmp_path: Path
) -> None:
    """Under its name, and until it is made; else it would stay on the weights from before."""
    await control_of(driver).prepare("tiny@v1", peft_a)
    ollama.models["tiny:latest"] = base_of("newer")
    later = make_control(driver.upstream, qwen3, tmp_path)
    later.serves("tiny:latest")
    ollama.create_error = "no space left on device"
    with pytest.raises(UpstreamError, match="no space left"):
        await later.prepare("tiny@v1", peft_a)
    ollama.create_error = None

    await later.prepare("tiny@v1", peft_a)

    ((_, model),) = ours(ollama)
    assert base_of("newer").base == model.base


async def test_what_an_earlier_strop_made_is_known(
    ollama: FakeOllama, driver: Ollama, peft_a: Path, qwen3: Path, tmp_path: Path
) -> None:
    """It noted no base: the model is made again when it is next used, and left to nobody."""
    await control_of(driver).prepare("tiny@v1", peft_a)
    notes = tmp_path / "ollama-models.json"
    known = json.loads(notes.read_text())
    notes.write_text(json.dumps({name: made[:2] for name, made in known.items()}))
    later = make_control(driver.upstream, qwen3, tmp_path)
    later.serves("tiny:latest")

    found = await later.loaded()
    await later.prepare("tiny@v1", peft_a)

    assert {"tiny@v1": str(peft_a)} == found
    assert known == json.loads(notes.read_text())
    assert 1 == len(ours(ollama))


async def test_what_was_made_is_known_after_a_restart(
    ollama: FakeOllama, driver: Ollama, peft_a: Path, qwen3: Path, tmp_path: Path
) -> None:
    """And found wanting where it was made of another base."""
    await control_of(driver).prepare("tiny@v1", peft_a)

    later = make_control(driver.upstream, qwen3, tmp_path)
    later.serves("tiny:latest")
    assert {"tiny@v1": str(peft_a)} == await later.loaded()
    ollama.models["other:latest"] = base_of("other")
    later.serves("other:latest")
    await later.prepare("tiny@v1", peft_a)

    tag = later.tag_of("tiny@v1") or ""
    assert base_of("other").base == ollama.models[tag].base
