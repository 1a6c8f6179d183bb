"""Switching on a real mlx_lm.server, which holds one version at a time."""

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import probes
import pytest
from held_answers import HeldAnswers
from mlx_server_process import mlx_server
from ports import held_port
from running import Running, running, settings_for
from shelved import copy_of, publish
from waiting import until

from strop.adapters.identity import identify
from strop.adapters.library import Library
from strop.proxy.errors import ActivationFailed
from strop.proxy.settings.settings import Settings

TEXTS = (
    "def main(argv):\n    return",
    "Which of these is a prime number? 4, 6, 7, 9.",
    "import json\nimport shutil\n\nclass ArgumentParser:\n    def add(self, name):\n" * 8,
)


@pytest.fixture(scope="module")
def server(qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all tests of this module."""
    with mlx_server(qwen3, hub=tmp_path_factory.mktemp("hub")) as url:
        yield url


def settings(url: str, base: Path, **engine: Any) -> Settings:
    """Return settings, with a few of the engine's."""
    model = {"base": str(base), "name": "tiny"}
    return settings_for(url, kind="mlx_server", engine=engine, model=model)


async def shelve(proxy: Running, base: Path, adapter: Path, probed: Path | None = None) -> str:
    """Add an adapter as a version; its probe is of prompts that are texts."""
    tokenizer = models.make_tokenizer()
    prompts = tuple(tuple(tokenizer.encode(text)) for text in TEXTS)
    return await publish(
        proxy.services.store,
        Library((proxy.services.home / "adapters").absolute()),
        base=identify(base, cache=None),
        write=copy_of(adapter),
        probe=probes.probe_of(base, probed or adapter, prompts=prompts),
    )


async def assert_served_by(proxy: Running, base: Path, adapter: Path | None) -> None:
    """Ask for an answer, and compare its logprobs with those of transformers and peft."""
    answer = await proxy.chat("Hello there", temperature=0.0, max_tokens=12)
    assert 200 == answer.status_code, answer.text
    row = (await proxy.rows())[-1]
    (choice,) = row.completion.choices
    prompt_ids = models.make_tokenizer().apply_chat_template(
        [{"role": "user", "content": "Hello there"}], add_generation_prompt=True, return_dict=False
    )
    model = probes.model_of(base, adapter)
    expected = probes.logprobs_of(model, prompt_ids, choice.token_ids or ())
    assert pytest.approx(expected, abs=1e-4) == list(choice.logprobs or ())


async def test_a_version_is_proven_and_serves_and_the_base_comes_back(
    server: str, qwen3: Path, peft_a: Path, peft_b: Path, tmp_path: Path
) -> None:
    """By generation alone, cold and warm, from prompts that go as text."""
    async with running(settings(server, qwen3), tmp_path / "home") as proxy:
        for adapter in (peft_a, peft_b):
            await shelve(proxy, qwen3, adapter)
        swapper = proxy.services.swapper

        for version, adapter in (("v1", peft_a), ("v2", peft_b), ("v1", peft_a)):
            done = await swapper.activate(version, actor="api")
            assert done.probe is not None
            assert "proven" == done.probe.outcome, done.probe
            assert done.pause_ms > 0
            await assert_served_by(proxy, qwen3, adapter)
        await swapper.activate("base", actor="api")
        await assert_served_by(proxy, qwen3, None)

        kept = {one.name for one in (tmp_path / "home" / "adapters-mlx").iterdir()}
        assert kept
        assert kept <= {it.name for it in (tmp_path / "home" / "adapters").iterdir()}


async def test_another_adapter_s_probe_is_refused_and_the_base_serves_on(
    server: str, qwen3: Path, peft_a: Path, peft_b: Path, tmp_path: Path
) -> None:
    """What the server then serves is asked, not assumed."""
    async with running(settings(server, qwen3), tmp_path / "home") as proxy:
        await shelve(proxy, qwen3, peft_b, probed=peft_a)

        with pytest.raises(ActivationFailed):
            await proxy.services.swapper.activate("v1", actor="api")

        await assert_served_by(proxy, qwen3, None)


async def test_a_server_that_outlives_a_home_serves_the_next_one_s_versions(
    server: str, qwen3: Path, peft_a: Path, peft_b: Path, tmp_path: Path
) -> None:
    """It keeps weights and caches by path, and the same path never has other weights."""
    home = tmp_path / "home"
    for adapter in (peft_a, peft_b):
        async with running(settings(server, qwen3), home) as proxy:
            await shelve(proxy, qwen3, adapter)
            await proxy.services.swapper.activate("v1", actor="api")
            await assert_served_by(proxy, qwen3, adapter)
        shutil.rmtree(home)


async def test_requests_meanwhile_wait_and_none_fails(
    server: str, qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """Those under way finish on the version that they began with."""
    async with (
        HeldAnswers(server) as wire,
        running(settings(wire.url, qwen3), tmp_path / "home") as proxy,
    ):
        await shelve(proxy, qwen3, peft_a)
        leases = proxy.services.serving.leases

        async def ask(number: int) -> Any:
            return await proxy.chat(f"question {number}", max_tokens=200, stream=number % 2 == 0)

        # None ends before all have begun.
        wire.hold()
        before = [asyncio.create_task(ask(number)) for number in range(4)]
        await until(lambda: leases.total == 4)
        switching = asyncio.create_task(proxy.services.swapper.activate("v1", actor="api"))
        await until(lambda: proxy.services.serving.is_held)
        after = [asyncio.create_task(ask(number)) for number in range(4)]
        wire.let_go()
        await switching

        served = [one.headers["x-strop-adapter"] for one in await asyncio.gather(*before, *after)]
        assert ["base"] * 4 + ["v1"] * 4 == served


async def test_after_the_server_restarts_the_active_version_is_proven_again(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """It would load it by itself, and nothing would have shown that it did."""
    hub = tmp_path / "hub"
    hub.mkdir()
    with held_port() as port, contextlib.ExitStack() as first:
        url = first.enter_context(mlx_server(qwen3, hub=hub, port=port))
        often = settings(url, qwen3, health_interval_s=0.1)
        async with running(often, tmp_path / "home") as proxy:
            await shelve(proxy, qwen3, peft_a)
            await proxy.services.swapper.activate("v1", actor="api")
            (before,) = proxy.services.swapper.loaded("v1")
            first.close()
            with mlx_server(qwen3, hub=hub, port=port):
                await until(lambda: before not in proxy.services.swapper.loaded("v1"))
                await proxy.services.serving.wait_until_ready()

                assert 1 == len(proxy.services.swapper.loaded("v1"))
                await assert_served_by(proxy, qwen3, peft_a)


async def test_after_strop_restarts_the_active_version_is_loaded_and_proven_again(
    server: str, qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """The server doesn't know it; the store does."""
    async with running(settings(server, qwen3), tmp_path / "home") as proxy:
        await shelve(proxy, qwen3, peft_a)
        await proxy.services.swapper.activate("v1", actor="api")

    async with running(settings(server, qwen3), tmp_path / "home") as proxy:
        await assert_served_by(proxy, qwen3, peft_a)
        assert "v1" == (await proxy.rows())[-1].completion.version
