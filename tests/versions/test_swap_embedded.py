"""Switching on the real embedded engine: every token is one version's, and no request notices."""

import asyncio
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import models
import probes
import pytest
from engine_process import EngineProcess
from faults_report import Reached, scaled
from running import Running, running, settings_for
from shelved import copy_of, publish
from waiting import until

from strop.adapters.identity import identify
from strop.adapters.library import Library
from strop.proxy.configured_engine import EMBEDDED_ADAPTERS
from strop.proxy.embedded.options import Options
from strop.proxy.store.records import StoredCompletion
from strop.proxy.store.store import Store
from strop.proxy.versions import probe_job
from strop.proxy.versions.probe_job import ProbeCommand

pytestmark = pytest.mark.engine

TOLERANCE = 1e-3
WORDS = "the leather strap keeps a good blade sharp between its uses"


@pytest.fixture(scope="session")
def peft_d(qwen3: Path) -> Path:
    """A further adapter of rank 8."""
    return models.cached(
        "peft-d",
        lambda to: models.make_peft(
            qwen3, to, rank=8, alpha=16, targets=models.ALL_LINEAR, seed=4, scale=0.1
        ),
    )


@asynccontextmanager
async def embedded(
    home: Path, base: Path, probe_command: ProbeCommand | None = None
) -> AsyncIterator[Running]:
    """Run a proxy with the embedded engine as its child."""
    settings = settings_for("", kind="embedded", model={"path": str(base), "name": "tiny"})
    async with running(settings, home, probe_command=probe_command) as proxy:
        yield proxy


async def shelve(proxy: Running, base: Path, adapter: Path, **how: Any) -> str:
    """Add an adapter as a version, with its probe."""
    library = Library((proxy.services.home / "adapters").absolute())
    return await publish(
        proxy.services.store,
        library,
        base=identify(base, cache=None),
        write=copy_of(adapter),
        probe=how.pop("probe", None) or probes.probe_of(base, adapter),
        **how,
    )


def errors_of(
    row: StoredCompletion, base: Path, adapters: dict[str, Path | None]
) -> dict[str, float]:
    """Return how far a completion's logprobs are from those of each version, at most."""
    (choice,) = row.completion.choices
    assert row.completion.prompt_ids is not None
    assert choice.token_ids is not None
    assert choice.logprobs is not None
    errors = {}
    for version, adapter in adapters.items():
        model = probes.model_of(base, adapter)
        expected = probes.logprobs_of(model, row.completion.prompt_ids, choice.token_ids)
        pairs = zip(expected, choice.logprobs, strict=True)
        errors[version] = max(abs(one - other) for one, other in pairs)
    return errors


@pytest.mark.faults
async def test_streams_under_constant_switching_are_each_one_version_s(
    qwen3: Path,
    peft_a: Path,
    peft_b: Path,
    peft_c: Path,
    peft_d: Path,
    tmp_path: Path,
    reached: Reached,
) -> None:
    """32 streams, five versions in turn: no error, and no token of another version in any."""
    adapters: dict[str, Path | None] = {"base": None}
    async with embedded(tmp_path / "home", qwen3) as proxy:
        for adapter in (peft_a, peft_b, peft_c, peft_d):
            adapters[await shelve(proxy, qwen3, adapter)] = adapter
        swapper = proxy.services.swapper
        for version in adapters:
            await swapper.activate(version, actor="api")
        is_over = False
        num_switches = 0

        seen = Counter[str]()

        async def stream(number: int) -> None:
            while not is_over:
                text = f"{number}: {WORDS * (1 + number % 3)} {seen.total()}"
                length = 8 * (1 + number % 4)
                answer = await proxy.chat(text, stream=True, max_tokens=length, temperature=1.0)
                assert 200 == answer.status_code, answer.text
                assert answer.text.endswith("data: [DONE]\n\n")
                seen[answer.headers["x-strop-adapter"]] += 1

        streams = [asyncio.create_task(stream(number)) for number in range(32)]
        while num_switches < scaled(60) or {*adapters} - {*seen}:
            for version in adapters:
                await asyncio.gather(swapper.activate(version, actor="api"), asyncio.sleep(0.05))
                num_switches += 1
        is_over = True
        await asyncio.gather(*streams)

        assert 0 == proxy.services.serving.leases.total
        rows = await proxy.rows()
        assert {"complete"} == {row.completion.state for row in rows}
        assert seen == Counter(row.completion.version for row in rows)
        # Enough of each version: each row is scored by five models. By a token or two it can't be
        # told which it is of.
        checked = Counter[str]()
        for row in rows:
            version = row.completion.version
            if checked[version] == 12 or (row.completion.completion_tokens or 0) < 8:
                continue
            checked[version] += 1
            errors = errors_of(row, qwen3, adapters)
            assert errors.pop(version) < TOLERANCE
            assert min(errors.values()) > 0.01
        assert checked.keys() == adapters.keys()
        reached(switches=num_switches, streams=seen.total(), rescored=checked.total())


@pytest.mark.faults
async def test_more_versions_than_there_is_room_for_come_and_go_under_load(
    qwen3: Path,
    peft_a: Path,
    peft_b: Path,
    peft_c: Path,
    tmp_path: Path,
    reached: Reached,
) -> None:
    """Each is loaded and proven anew, and unloaded when nobody holds it; no stream notices."""
    files = {f"v{1 + at}": (peft_a, peft_b, peft_c)[at % 3] for at in range(EMBEDDED_ADAPTERS + 2)}
    async with embedded(tmp_path / "home", qwen3) as proxy:
        for adapter in files.values():
            await shelve(proxy, qwen3, adapter)
        services = proxy.services
        controls = services.serving.engine.adapters
        assert controls is not None
        (control,) = controls.members().values()
        is_over = False

        async def stream(number: int) -> None:
            while not is_over:
                pin = f"tiny@v{1 + number}" if number < 2 else "tiny"
                answer = await proxy.chat(WORDS, model=pin, stream=True, max_tokens=16)
                assert 200 == answer.status_code, answer.text
                assert answer.text.endswith("data: [DONE]\n\n")

        streams = [asyncio.create_task(stream(number)) for number in range(5)]
        for _ in range(scaled(1)):
            for version in files:
                await services.swapper.activate(version, actor="api")
        is_over = True
        await asyncio.gather(*streams)

        await until(control.loaded, lambda loaded: len(loaded) <= EMBEDDED_ADAPTERS)
        loaded = {version for version in files if services.swapper.loaded(version)}
        assert {f"tiny@{version}" for version in loaded} == {*await control.loaded()}
        rows = await proxy.rows()
        assert {"complete"} == {row.completion.state for row in rows}
        for row in rows[:: max(1, len(rows) // 30)]:
            version = row.completion.version
            error = errors_of(row, qwen3, {version: files.get(version)})[version]
            assert error < TOLERANCE
        reached(streams=len(rows), versions=len({row.completion.version for row in rows}))


async def test_a_long_conversation_goes_on_with_the_new_version_alone(
    qwen3: Path, peft_a: Path, peft_b: Path, tmp_path: Path
) -> None:
    """What the former version computed of it is not reused, though the prompt is the same."""
    async with embedded(tmp_path / "home", qwen3) as proxy:
        adapters: dict[str, Path | None] = {
            await shelve(proxy, qwen3, adapter): adapter for adapter in (peft_a, peft_b)
        }
        messages = [{"role": "user", "content": WORDS * 40}]
        for version in ("v1", "v2", "v1", "v2"):
            await proxy.services.swapper.activate(version, actor="api")
            body = {"model": "tiny", "messages": messages, "max_tokens": 16, "temperature": 0}
            answer = (await proxy.client.post("/v1/chat/completions", json=body)).json()
            messages += [answer["choices"][0]["message"], {"role": "user", "content": "go on"}]

        rows = await proxy.rows()
        assert ["v1", "v2", "v1", "v2"] == [row.completion.version for row in rows]
        assert all(len(row.completion.prompt_ids or ()) > 256 for row in rows)
        for row in rows:
            errors = errors_of(row, qwen3, adapters)
            assert errors.pop(row.completion.version) < TOLERANCE
            assert min(errors.values()) > 0.01


async def test_a_killed_engine_comes_back_with_the_active_version(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """Proven again, before it is ready; the base's identity is with each record."""
    async with embedded(tmp_path / "home", qwen3) as proxy:
        services = proxy.services
        await shelve(proxy, qwen3, peft_a)
        done = await services.swapper.activate("v1", actor="api")
        assert done.probe is not None
        assert "proven" == done.probe.outcome, done.probe
        pairing = await services.store.versions.pairing("embedded")
        assert pairing is not None
        assert (identify(qwen3, cache=None), True) == (pairing.base, pairing.error < 1e-4)
        assert services.process is not None
        assert services.process.pid is not None

        os.kill(services.process.pid, signal.SIGKILL)
        while services.serving.is_ready:
            services.serving.suspect()
            await asyncio.sleep(0.05)
        await services.serving.wait_until_ready()
        answer = await proxy.chat(max_tokens=8)

        assert (200, "v1") == (answer.status_code, answer.headers["x-strop-adapter"])
        row = await proxy.row()
        assert identify(qwen3, cache=None) == row.completion.base
        assert errors_of(row, qwen3, {"v1": peft_a})["v1"] < TOLERANCE


async def test_an_engine_that_outlives_a_home_serves_the_next_one_s_versions(
    qwen3: Path, peft_a: Path, peft_b: Path, tmp_path: Path
) -> None:
    """The next home at the same path has a v1 of other weights, active before strop starts."""
    home, identity = tmp_path / "home", identify(qwen3, cache=None)
    engine = EngineProcess(Options(model=str(qwen3), served_name="tiny"))
    try:
        engine.wait_until_ready()
        settings = settings_for(engine.url, model={"base": str(qwen3)})
        async with running(settings, home) as proxy:
            await shelve(proxy, qwen3, peft_a)
            await proxy.services.swapper.activate("v1", actor="api")
            former = await answer_of(proxy)
        shutil.rmtree(home)
        home.mkdir(mode=0o700)
        store = await Store.open(home / "strop.db")
        # Without a probe, nothing but its path tells it from the former.
        await publish(
            store,
            Library(home / "adapters"),
            base=identity,
            write=copy_of(peft_b),
            is_fake=False,
        )
        await store.versions.activate("v1", actor="api")
        await store.close()

        async with running(settings, home) as proxy:
            latter = await answer_of(proxy)
    finally:
        engine.end()

    assert ("v1", "v1") == (former.completion.version, latter.completion.version)
    assert errors_of(former, qwen3, {"v1": peft_a})["v1"] < TOLERANCE
    assert errors_of(latter, qwen3, {"v1": peft_b})["v1"] < TOLERANCE
    assert errors_of(latter, qwen3, {"v1": peft_a})["v1"] > 0.01


async def answer_of(proxy: Running) -> StoredCompletion:
    """Ask the active version something, and return the record."""
    answer = await proxy.chat(WORDS, max_tokens=8)
    assert 200 == answer.status_code, answer.text
    return await proxy.row()


async def test_an_imported_adapter_is_proven_by_the_probe_that_was_made_of_it(
    tmp_path: Path, qwen3: Path, peft_a: Path
) -> None:
    """A job of its own makes it, beside the engine; no force is needed then."""
    async with embedded(tmp_path / "home", qwen3, probe_job.command) as proxy:
        swapper = proxy.services.swapper

        made = await swapper.import_adapter(peft_a, actor="cli")
        done = await swapper.activate(made.id, actor="cli")

    assert ("ready", None) == (made.state, made.reason)
    assert done.probe is not None
    assert "proven" == done.probe.outcome


async def test_another_adapter_s_probe_is_refused_by_the_real_engine(
    qwen3: Path, peft_a: Path, peft_b: Path, tmp_path: Path
) -> None:
    """Files that are whole and are not what was proven in training."""
    async with embedded(tmp_path / "home", qwen3) as proxy:
        await shelve(proxy, qwen3, peft_b, probe=probes.probe_of(qwen3, peft_a))

        answer = await proxy.chat(model="tiny@v1", max_tokens=4)

        assert (503, "activation_failed") == (answer.status_code, answer.json()["error"]["code"])
        assert "does not serve it" in answer.json()["error"]["message"]
        assert "base" == (await proxy.chat(max_tokens=4)).headers["x-strop-adapter"]
