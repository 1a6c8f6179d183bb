"""What a model read before the answers that it learns from, where the engine gives no ids of it."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from fake_ollama import FakeOllama, base_of
from fake_ollama_answers import Sampled
from ollama_vocabulary import vocabulary_of
from running import Running, running, settings_for
from store_values import rating

from strop.adapters.identity import identify
from strop.proxy.prompts import Prompts
from strop.proxy.store.records import Completion
from strop.training import rows
from strop.training.rows import Row, Target
from strop.training.tokenizer import BaseTokenizer


@dataclass
class Ollama(FakeOllama):
    """One whose template is another than the base's own.

    Attributes:
        sampled: all that was sampled, in order, with the prompt.
    """

    sampled: list[tuple[str, Sampled]] = field(default_factory=list)

    def prompt_of(self, messages: list[dict[str, Any]]) -> str:
        said = "".join(f"<|im_start|>{one['role']}: {one['content']}" for one in messages)
        return f"{said}<|im_start|>assistant:"

    async def sample(self, prompt: str, limit: int | None, temperature: float) -> Sampled:
        said = await super().sample(prompt, limit, temperature)
        self.sampled.append((prompt, said))
        return said


@pytest.fixture
def ollama(qwen3: Path) -> Ollama:
    """An Ollama whose only model has the tokens of `qwen3`, and thinks."""
    models = {"tiny:latest": base_of("tiny")}
    return Ollama(models=models, vocabulary=vocabulary_of(qwen3), thinks=True)


@pytest.fixture
async def engine(ollama: Ollama) -> AsyncIterator[FakeEngine]:
    """Where it listens."""
    async with FakeEngine(ollama) as engine:
        yield engine


@pytest.fixture
async def proxy(engine: FakeEngine, qwen3: Path, tmp_path: Path) -> AsyncIterator[Running]:
    """A proxy in front of it, which knows its base."""
    settings = settings_for(engine.url, kind="ollama", model={"base": str(qwen3)})
    async with running(settings, tmp_path / "home") as proxy:
        yield proxy


@pytest.fixture
def target(qwen3: Path) -> Target:
    """What is trained."""
    return Target(identify(qwen3, cache=None), 4096, BaseTokenizer(qwen3))


async def rated(proxy: Running, text: str = "one") -> str:
    """Ask `text`, and rate the answer; return its id."""
    answer = await proxy.chat(messages=[{"role": "user", "content": text}], max_tokens=8)
    id_ = answer.headers["x-strop-completion-id"]
    await proxy.services.store.add_feedback(rating(id_, key_id="local"), lambda _: False)
    return id_


async def note(proxy: Running, target: Target) -> None:
    await Prompts(proxy.services.store, proxy.services.serving).note("base", target.base)


async def recorded(proxy: Running, id_: str) -> Completion:
    found = await proxy.services.store.get_completion(id_)
    assert found is not None
    return found.completion


def num_asked(engine: FakeEngine) -> int:
    """How often it was asked for a prompt."""
    asked = [one.json() for one in engine.requests if one.path == "/v1/chat/completions"]
    return sum("_debug_render_only" in fields for fields in asked)


async def test_what_is_learned_from_is_what_the_model_read_and_sampled(
    ollama: Ollama, proxy: Running, target: Target
) -> None:
    """Not what the base's own template would make of the chat; thoughts and all."""
    id_ = await rated(proxy)
    ((prompt, said),) = ollama.sampled
    before = rows.read(await recorded(proxy, id_), 0, target)

    await note(proxy, target)
    row = rows.read(await recorded(proxy, id_), 0, target)

    assert rows.LeftOut.PROMPT_DIFFERS == before
    assert isinstance(row, Row)
    asked = [*ollama.vocabulary.encode(prompt)]
    assert [*asked, *said.thinking().ids] == row.tokens.ids.tolist()
    assert row.captured is not None
    assert pytest.approx(said.thinking().logprobs, abs=1e-4) == row.captured.tolist()


async def test_each_prompt_is_asked_for_once(
    engine: FakeEngine, proxy: Running, target: Target
) -> None:
    """Of what is rated: a run asks for no more than what is new since the last."""
    await proxy.chat(messages=[{"role": "user", "content": "not rated"}], max_tokens=8)
    for text in ("one", "two"):
        await rated(proxy, text)
    await note(proxy, target)
    num_first = num_asked(engine)
    await rated(proxy, "three")

    await note(proxy, target)

    assert (2, 3) == (num_first, num_asked(engine))


async def test_an_engine_that_shows_no_prompts_is_asked_once(
    ollama: Ollama, engine: FakeEngine, proxy: Running, target: Target
) -> None:
    """One that doesn't know the question answers the chat, with a token."""
    ollama.renders = False
    ids = [await rated(proxy, text) for text in ("one", "two")]

    for _ in range(2):
        await note(proxy, target)

    asked = [one.json() for one in engine.requests if one.path == "/v1/chat/completions"]
    assert [1] == [one["max_tokens"] for one in asked if "_debug_render_only" in one]
    assert [None, None] == [(await recorded(proxy, id_)).prompt_text for id_ in ids]


async def test_another_base_is_not_asked(
    engine: FakeEngine, proxy: Running, target: Target
) -> None:
    """Its template says nothing of what this one read."""
    await rated(proxy)

    await Prompts(proxy.services.store, proxy.services.serving).note("base", "another")

    assert 0 == num_asked(engine)
    assert target.base != "another"


async def test_a_chat_that_is_refused_meanwhile_does_not_hold_up_the_others(
    ollama: Ollama, proxy: Running, target: Target
) -> None:
    """It goes by the base's own template, as before."""
    ids = [await rated(proxy, text) for text in ("long " * 50, "one")]
    ollama.num_context = 40

    await note(proxy, target)

    long, short = [(await recorded(proxy, id_)).prompt_text for id_ in ids]
    assert long is None
    assert short is not None


async def test_an_engine_that_is_away_costs_no_run(
    engine: FakeEngine, proxy: Running, target: Target
) -> None:
    """Nothing is raised; the next run asks again."""
    id_ = await rated(proxy)
    await engine.stop()

    await note(proxy, target)

    assert (await recorded(proxy, id_)).prompt_text is None


async def test_a_prompt_that_holds_what_was_redacted_is_not_asked_for(
    engine: FakeEngine, qwen3: Path, target: Target, tmp_path: Path
) -> None:
    """What strop has is not what the model read."""
    settings = settings_for(
        engine.url, kind="ollama", model={"base": str(qwen3)}, capture={"redact": ("secret",)}
    )
    async with running(settings, tmp_path / "home") as proxy:
        id_ = await rated(proxy, "the secret")

        await note(proxy, target)

        assert 0 == num_asked(engine)
        assert "secret" not in json.dumps((await recorded(proxy, id_)).request.decode())
