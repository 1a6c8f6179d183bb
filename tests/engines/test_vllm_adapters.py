"""Adapter versions on a real vLLM: activated, proven, switched under load, lost and brought back.

`make test-vllm`.
"""

import asyncio
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import shelved
from running import Running, running, settings_for
from vllm_server import ADAPTERS, KEY, NAME, VllmServer, install_or_skip
from waiting import LIMIT_S, until

from strop.adapters import probe_codec
from strop.adapters.identity import identify
from strop.adapters.library import Library
from strop.adapters.probe_values import Probe
from strop.proxy.store import layout
from strop.proxy.store.records import StoredCompletion

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

# Longer than a block of the prefix cache, so that a stale one would show.
LONG = "Read this, and answer at length. " + "The strop keeps the blade sharp between uses. " * 12
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Adapter:
    """An adapter of the base, and what proves it."""

    folder: Path
    probe: Probe


@pytest.fixture(scope="module")
def adapters(
    qwen3: Path, peft_a: Path, peft_b: Path, peft_c: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Adapter]:
    """Three, with the probes that a training run would have made."""
    out = tmp_path_factory.mktemp("probes")

    def made(folder: Path) -> Adapter:
        path = out / folder.name
        command = [sys.executable, "-m", "strop.training.make_probe", "--base", str(qwen3)]
        command += ["--adapter", str(folder), "--out", str(path), "--backend", "torch"]
        subprocess.run(command, check=True)
        return Adapter(folder, probe_codec.from_json(json.loads(path.read_text("utf-8"))))

    return [made(folder) for folder in (peft_a, peft_b, peft_c)]


@pytest.fixture(scope="module")
def second(qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """Another vLLM of the same, for tests that kill it."""
    install_or_skip()
    server = VllmServer(qwen3, tmp_path_factory.mktemp("second") / "log", *ADAPTERS)
    server.start()
    server.wait_until_ready()
    yield server
    server.end()


@asynccontextmanager
async def proxy_of(
    servers: Sequence[VllmServer], adapters: Sequence[Adapter], base: Path, home: Path
) -> AsyncIterator[Running]:
    """Run a proxy before these servers, with these adapters as v1, v2, ..."""
    settings = settings_for(
        servers[0].url,
        engine={
            "key": KEY,
            "replicas": tuple(server.url for server in servers[1:]),
            "health_interval_s": 0.5,
        },
        model={"base": str(base)},
    )
    async with running(settings, home) as proxy:
        library, identity = Library(home / layout.ADAPTERS), identify(base, cache=None)
        for adapter in adapters:
            await shelved.publish(
                proxy.services.store,
                library,
                base=identity,
                write=shelved.copy_of(adapter.folder),
                probe=adapter.probe,
                is_fake=False,
            )
        yield proxy
        # Servers are shared, and names are for one set of weights.
        await proxy.services.swapper.activate("base", actor="test")
        controls = proxy.services.serving.engine.adapters
        assert controls is not None
        for control in controls.members().values():
            for name in await control.loaded():
                await control.unload(name)


async def activate(proxy: Running, version: str) -> httpx.Response:
    """Activate by the API."""
    key = (proxy.services.home / "admin.key").read_text("utf-8").strip()
    return await proxy.client.put(
        "/admin/adapters/active",
        json={"version": version},
        headers={"authorization": f"Bearer {key}"},
        timeout=LIMIT_S,
    )


class Reference:
    """transformers' logprobs for the base and each version, from weights loaded once."""

    def __init__(self, base: Path, adapters: Sequence[Adapter]) -> None:
        import warnings

        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft reads a renamed attribute
            first, *rest = adapters
            self._model = PeftModel.from_pretrained(model, first.folder, adapter_name="v1")
            for number, adapter in enumerate(rest, 2):
                self._model.load_adapter(adapter.folder, adapter_name=f"v{number}")
        self._model.eval()
        self.versions = ["base", *(f"v{n}" for n, _ in enumerate(adapters, 1))]

    def errors(self, row: StoredCompletion) -> Mapping[str, float]:
        """Return the largest difference of a completion's logprobs to each version's, in nats."""
        import torch

        completion = row.completion
        (choice,) = completion.choices
        assert completion.prompt_ids is not None
        assert choice.token_ids is not None
        assert choice.logprobs is not None
        ids = torch.tensor([[*completion.prompt_ids, *choice.token_ids]])
        sampled = torch.tensor(list(choice.token_ids))[:, None]
        recorded = torch.tensor(list(choice.logprobs))
        start, errors = len(completion.prompt_ids) - 1, {}
        for version in self.versions:
            with torch.no_grad():
                if version == "base":
                    with self._model.disable_adapter():
                        logits = self._model(ids).logits[0]
                else:
                    self._model.set_adapter(version)
                    logits = self._model(ids).logits[0]
            logprobs = logits.log_softmax(-1)[start : start + len(sampled)]
            errors[version] = float((logprobs.gather(1, sampled)[:, 0] - recorded).abs().max())
        return errors

    def version_of(self, row: StoredCompletion) -> str:
        """Return the one version that gave a completion every one of its logprobs."""
        errors = self.errors(row)
        near = [version for version, error in errors.items() if error < TOLERANCE]
        assert 1 == len(near), errors
        return near[0]


@pytest.fixture(scope="module")
def reference(qwen3: Path, adapters: list[Adapter]) -> Reference:
    """What each version answers."""
    return Reference(qwen3, adapters)


async def test_a_version_is_proven_and_then_serves(
    vllm: VllmServer, adapters: list[Adapter], reference: Reference, qwen3: Path, tmp_path: Path
) -> None:
    """Its logprobs are those of transformers and peft; a pin to the base gets the base."""
    async with proxy_of([vllm], adapters, qwen3, tmp_path / "home") as proxy:
        done = await activate(proxy, "v1")
        active = await proxy.chat(LONG, model=NAME, max_tokens=32)
        pinned = await proxy.chat(LONG, model=f"{NAME}@base", max_tokens=32)
        other = await proxy.chat(LONG, model=f"{NAME}@v2", max_tokens=32)
        rows = await proxy.rows()

    assert 200 == done.status_code, done.text
    assert "proven" == done.json()["probe"]["outcome"], done.text
    answers = (active, pinned, other)
    assert ["v1", "base", "v2"] == [answer.headers["x-strop-adapter"] for answer in answers]
    assert ["v1", "base", "v2"] == [reference.version_of(row) for row in rows]
    assert ["v1", "base", "v2"] == [row.completion.version for row in rows]


async def test_a_version_that_is_not_what_its_probe_says_is_not_served(
    vllm: VllmServer, adapters: list[Adapter], reference: Reference, qwen3: Path, tmp_path: Path
) -> None:
    """The one before serves on; and a rollback goes back further."""
    wrong = Adapter(adapters[2].folder, adapters[1].probe)
    async with proxy_of([vllm], [*adapters[:2], wrong], qwen3, tmp_path / "home") as proxy:
        await activate(proxy, "v1")
        await activate(proxy, "v2")
        refused = await activate(proxy, "v3")
        await proxy.chat(LONG, max_tokens=24)
        await proxy.services.swapper.rollback(actor="test")
        await proxy.chat(LONG, max_tokens=24)
        rows = await proxy.rows()

    assert 503 == refused.status_code
    assert "does not serve it" in refused.json()["error"]["message"]
    assert ["v2", "v1"] == [reference.version_of(row) for row in rows]


async def test_an_engine_that_outlives_a_home_serves_the_next_one_s_versions(
    vllm: VllmServer, adapters: list[Adapter], reference: Reference, qwen3: Path, tmp_path: Path
) -> None:
    """It keeps prompts by name and path: the next home's v1 gets nothing of the former's."""
    home, outcomes, served = tmp_path / "home", [], []
    for adapter in adapters[:2]:
        async with proxy_of([vllm], [adapter], qwen3, home) as proxy:
            done = await activate(proxy, "v1")
            outcomes.append(done.json()["probe"]["outcome"])
            for _ in range(2):
                await proxy.chat(LONG, max_tokens=24)
            rows = await proxy.rows()
            served += [reference.version_of(row) for row in rows]
        shutil.rmtree(home)

    assert ["proven", "proven"] == outcomes
    # By the reference's names: the first adapter, then the second.
    assert ["v1", "v1", "v2", "v2"] == served


@pytest.mark.parametrize("num_streams", [16, 32])
async def test_switches_under_load_cost_no_request_and_mix_no_versions(
    num_streams: int,
    vllm: VllmServer,
    adapters: list[Adapter],
    reference: Reference,
    qwen3: Path,
    tmp_path: Path,
) -> None:
    """Each stream is one version's from its first token to its last, and recorded as that."""
    async with proxy_of([vllm], adapters, qwen3, tmp_path / "home") as proxy:
        await activate(proxy, "v1")
        is_over, served = False, Counter[str]()

        async def streams(number: int) -> list[bytes]:
            said = []
            while not is_over:
                text = LONG if number % 2 else f"{number} {LONG}"
                answer = await proxy.chat(text, stream=True, max_tokens=64)
                assert 200 == answer.status_code
                served[answer.headers["x-strop-adapter"]] += 1
                said.append(answer.content)
            return said

        async def serves_more(version: str) -> None:
            enough = served[version] + num_streams // 2
            await until(lambda: served[version] >= enough, limit_s=300)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(streams(number)) for number in range(num_streams)]
            for version in ("v2", "v3", "base", "v1", "v2", "base", "v3"):
                done = await activate(proxy, version)
                assert 200 == done.status_code, done.text
                await serves_more(version)
            is_over = True
        answers = [one for task in tasks for one in task.result()]
        rows = await proxy.rows()

    assert all(answer.endswith(b"data: [DONE]\n\n") for answer in answers)
    assert len(answers) == len(rows)
    assert {"complete"} == {row.completion.state for row in rows}
    # Each costs as much as some requests: of each version, a few from all through the run.
    by_version: dict[str, list[StoredCompletion]] = {}
    for row in rows:
        by_version.setdefault(row.completion.version, []).append(row)
    assert {"base", "v1", "v2", "v3"} == set(by_version)
    checked = [row for some in by_version.values() for row in some[:: max(1, len(some) // 12)]]
    assert [row.completion.version for row in checked] == list(map(reference.version_of, checked))


async def chat_until_served(proxy: Running, **fields: Any) -> tuple[httpx.Response, list[int]]:
    """Ask until there is an answer; return it, and the statuses before it."""
    refused: list[int] = []
    while True:
        answer = await proxy.chat(LONG, **fields)
        if answer.status_code == 200:
            return answer, refused
        refused.append(answer.status_code)
        await asyncio.sleep(0.05)


async def stream(proxy: Running, has_begun: asyncio.Event) -> bytes:
    """Return a long stream; `has_begun` is set with its first bytes."""
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": LONG}],
        "stream": True,
        "max_tokens": 600,
        "ignore_eos": True,
    }
    content = b""
    async with proxy.client.stream("POST", "/v1/chat/completions", json=asked) as answer:
        async for piece in answer.aiter_bytes():
            content += piece
            has_begun.set()
    return content


async def test_an_engine_that_was_killed_serves_the_active_version_again(
    second: VllmServer, adapters: list[Adapter], reference: Reference, qwen3: Path, tmp_path: Path
) -> None:
    """It comes back without it: nothing is served before it is loaded and proven again."""
    async with proxy_of([second], adapters, qwen3, tmp_path / "home") as proxy:
        await activate(proxy, "v2")
        begun = [asyncio.Event() for _ in range(4)]
        cut = [asyncio.create_task(stream(proxy, one)) for one in begun]
        for one in begun:
            await one.wait()
        second.kill()
        broken = await asyncio.gather(*cut)
        second.start()
        answer, refused = await chat_until_served(proxy, max_tokens=32)
        rows = await proxy.rows()

    assert all(b'"error"' in one and b"[DONE]" not in one for one in broken)
    assert {502, 503} >= set(refused)
    assert "v2" == answer.headers["x-strop-adapter"]
    assert "v2" == reference.version_of(rows[-1])
    assert {"upstream_error"} == {row.completion.state for row in rows[:-1]}


async def test_an_engine_that_comes_later_is_found(
    second: VllmServer, adapters: list[Adapter], qwen3: Path, tmp_path: Path
) -> None:
    """The proxy starts without it, refuses, and serves once it is there."""
    second.end()
    settings = settings_for(second.url, engine={"key": KEY})
    async with running(settings, tmp_path / "home", ready=False) as proxy:
        refused = await proxy.chat(model=NAME)
        second.start()
        async with asyncio.timeout(300):
            await proxy.services.serving.wait_until_ready()
        served = await proxy.chat(model=NAME, max_tokens=4)

    assert (503, 200) == (refused.status_code, served.status_code)


async def test_a_replica_that_was_killed_is_left_out_and_let_in_again(
    vllm: VllmServer,
    second: VllmServer,
    adapters: list[Adapter],
    reference: Reference,
    qwen3: Path,
    tmp_path: Path,
) -> None:
    """Conversations go on with the other; back, it first gets the active version, and is proven."""
    second.wait_until_ready()

    async def ready(proxy: Running) -> list[bool]:
        health = (await proxy.client.get("/health")).json()["engine"]
        return [one["ready"] for one in health["replicas"]]

    async with proxy_of([vllm, second], adapters, qwen3, tmp_path / "home") as proxy:
        await until(lambda: ready(proxy), all)
        await activate(proxy, "v1")
        before = [await proxy.chat(f"{n} {LONG}", max_tokens=16) for n in range(6)]
        second.kill()
        meanwhile = [await proxy.chat(f"{n} {LONG}", max_tokens=16) for n in range(6)]
        left_out = await ready(proxy)
        await activate(proxy, "v3")
        second.start()
        await until(lambda: ready(proxy), all, limit_s=300)
        after = [await proxy.chat(f"new {n} {LONG}", max_tokens=16) for n in range(6)]
        rows = await proxy.rows()
        async with second.client() as engine:
            metrics = (await engine.get("/metrics")).text

    answers = [*before, *meanwhile, *after]
    assert [200] * 18 == [answer.status_code for answer in answers]
    assert [True, False] == left_out
    expected = ["v1"] * 12 + ["v3"] * 6
    assert expected == [reference.version_of(row) for row in rows]
    # It was started anew, so what it counts came since.
    finished = [one for one in metrics.splitlines() if one.startswith("vllm:request_success_total")]
    assert sum(float(one.rpartition(" ")[2]) for one in finished) > 0
