"""An engine that serves another model than at the start, where none was named."""

from pathlib import Path

import pytest
from fake_engine import FakeEngine
from fake_vllm import FakeVllm
from running import running, settings_for
from waiting import until

from strop.proxy.settings.settings import Settings


class RootedVllm(FakeVllm):
    """Says of each model where its weights come from.

    Attributes:
        root: says so.
    """

    root = "org/tiny"

    def _cards(self) -> list[dict[str, object]]:
        return [{**card, "root": self.root} for card in super()._cards()]


def looked_at_often(engine: FakeEngine, base: Path, **options: object) -> Settings:
    """Return settings for an engine whose base is trained, and that is checked all the time."""
    return settings_for(
        engine.url, engine={"health_interval_s": 0.05, **options}, model={"base": str(base)}
    )


async def test_what_another_model_answers_is_not_of_the_base(
    qwen3: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its ratings would train the base; the one that it was is known again when it is back.

    What a run made of that one waits meanwhile: another would be said not to serve it.
    """
    vllm = FakeVllm()
    async with FakeEngine(vllm) as engine:
        settings = looked_at_often(engine, qwen3)
        async with running(settings, tmp_path / "home") as proxy:
            serving, trainer = proxy.services.serving, proxy.services.trainer
            reasons, are_promoted = [], []
            for name in ("tiny", "another", "tiny"):
                vllm.base = name
                await until(lambda: serving.is_ready and serving.alias.name == vllm.base)
                await proxy.chat(model=name)
                reasons.append(trainer.why_untrained())
                are_promoted.append(proxy.services.swapper.can_activate)
            bases = [row.completion.base for row in await proxy.rows()]

    known, none, again = bases
    assert known is not None
    assert (known, None) == (again, none)
    assert [True, False, True] == are_promoted
    first, told, last = reasons
    assert (None, None) == (first, last)
    assert told is not None
    assert "the engine serves another now" in told
    assert "let it serve tiny again, or start strop again with --model" in told
    (line,) = (one for one in caplog.records if hasattr(one, "reason") and one.reason in told)
    assert ("WARNING", "another") == (line.levelname, getattr(line, "model", ""))


async def test_another_name_for_the_same_weights_stays_the_base(
    qwen3: Path, tmp_path: Path
) -> None:
    """The engine says where its weights come from, whatever it is told to call them."""
    vllm = RootedVllm()
    async with FakeEngine(vllm) as engine:
        settings = looked_at_often(engine, qwen3)
        async with running(settings, tmp_path / "home") as proxy:
            serving = proxy.services.serving
            before = serving.base
            vllm.base = "mine"
            await until(lambda: serving.is_ready and serving.alias.name == "mine")
            await proxy.chat(model="mine")
            (row,) = await proxy.rows()

    assert before is not None
    assert before == row.completion.base


async def test_the_same_name_for_other_weights_is_not_the_base(qwen3: Path, tmp_path: Path) -> None:
    """As where vLLM starts again with another model under its --served-model-name."""
    vllm = RootedVllm()
    async with FakeEngine(vllm) as engine:
        settings = looked_at_often(engine, qwen3)
        async with running(settings, tmp_path / "home") as proxy:
            serving = proxy.services.serving
            await until(lambda: serving.base)
            before = serving.base
            vllm.root = "org/another"
            await until(lambda: serving.base is None)
            await proxy.chat(model="tiny")
            told = proxy.services.trainer.why_untrained()
            vllm.root = "org/tiny"
            await until(lambda: serving.base)
            await proxy.chat(model="tiny")
            bases = [row.completion.base for row in await proxy.rows()]

    assert [None, before] == bases
    assert told is not None
    assert "the engine serves another tiny now" in told
    assert "let it serve the one before again, or start strop again with --model" in told


async def test_each_of_several_engines_may_say_where_its_weights_are(
    qwen3: Path, tmp_path: Path
) -> None:
    """The path of the one that is left is no other model's."""
    here, there = RootedVllm(), RootedVllm()
    there.root = "/models/tiny"
    async with FakeEngine(here) as engine, FakeEngine(there) as other:
        settings = looked_at_often(engine, qwen3, replicas=(other.url,))
        async with running(settings, tmp_path / "home") as proxy:
            serving = proxy.services.serving
            first, second = serving.engine.replicas
            await until(lambda: serving.base and second.is_in)
            await engine.stop()
            await until(lambda: not first.is_in and second.is_in)
            await proxy.chat(model="tiny")
            (row,) = await proxy.rows()

    assert row.completion.base is not None
