"""The embedded engine under load, under leaving clients, and at its end."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from engine_process import EngineProcess
from waiting import LIMIT_S, until

from strop.proxy.embedded.options import Options

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def small(qwen3: Path) -> Iterator[EngineProcess]:
    """An engine for two answers at once and two more waiting, without a prefix cache."""
    running = EngineProcess(
        Options(
            model=str(qwen3), served_name="base", max_rows=2, max_queued=2, prefix_cache_bytes=0
        )
    )
    running.wait_until_ready()
    yield running
    assert 0 == running.end()


def counts(engine: EngineProcess) -> tuple[int, int]:
    """Return how many answers run, and how many tokens were generated so far."""
    lines = httpx.get(f"{engine.url}/metrics", timeout=LIMIT_S).text.splitlines()
    values = {line.split()[0]: int(line.split()[1]) for line in lines}
    return values["vllm:num_requests_running"], values["vllm:generation_tokens_total"]


def waiting(engine: EngineProcess) -> int:
    """Return how many answers wait."""
    lines = httpx.get(f"{engine.url}/metrics", timeout=LIMIT_S).text.splitlines()
    return next(int(line.split()[1]) for line in lines if "num_requests_waiting " in line)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_its_rows(small: EngineProcess, stream: bool) -> None:
    """A closed connection ends its answers, the waiting ones too, long before max_tokens."""
    _, before = counts(small)
    body = {"prompt": "Hello", "max_tokens": 4000, "ignore_eos": True, "n": 4, "stream": stream}

    async with small.client() as client:
        request = asyncio.create_task(client.post("/v1/completions", json=body))
        await until(lambda: asyncio.to_thread(counts, small), lambda seen: seen >= (4, before + 20))
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await until(lambda: asyncio.to_thread(counts, small), lambda seen: seen[0] == 0)

    _, after = counts(small)
    assert 20 <= after - before < 4 * 4000
    assert 3 == small.complete("Hello", max_tokens=3, ignore_eos=True)["usage"]["completion_tokens"]


async def test_more_than_the_queue_holds_is_refused(small: EngineProcess) -> None:
    """Answers beyond those that run and wait get 503 at once; what waits is answered."""
    async with small.client() as client:

        def ask(num_tokens: int) -> asyncio.Task[httpx.Response]:
            body = {"prompt": "Hello", "max_tokens": num_tokens, "ignore_eos": True}
            return asyncio.create_task(client.post("/v1/completions", json=body))

        # As long as can be: they run on while others come.
        running = [ask(4000) for _ in range(2)]
        await until(lambda: asyncio.to_thread(counts, small), lambda seen: seen[0] == 2)
        queued = [ask(5) for _ in range(2)]
        await until(lambda: asyncio.to_thread(waiting, small), lambda num: num == 2)
        refused = await ask(5)
        for one in running:
            one.cancel()
        answered = await asyncio.gather(*queued)

    assert 503 == refused.status_code
    assert "ServiceUnavailableError" == refused.json()["error"]["type"]
    assert [200] * 2 == [response.status_code for response in answered]


def test_more_than_it_ever_takes_is_refused_for_good(small: EngineProcess) -> None:
    """A request that no waiting would help is the client's mistake: a 400, which isn't retried."""
    body = {"prompt": ["Hello", "Bye"], "n": 3, "max_tokens": 1}

    answer = small.post("/v1/completions", body)

    assert (400, "n") == (answer.status_code, answer.json()["error"]["param"])
    assert 1 == small.complete("Hello", max_tokens=1)["usage"]["completion_tokens"]


async def test_a_slow_reader_holds_up_nobody(small: EngineProcess) -> None:
    """While one client doesn't read its long stream, another's request is answered."""
    body = {
        "prompt": "Hello", "max_tokens": 3000, "ignore_eos": True, "stream": True, "logprobs": 20,
    }  # fmt: skip

    async with (
        small.client() as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        await anext(response.aiter_raw())
        other = await client.post(
            "/v1/completions", json={"prompt": "Hi", "max_tokens": 50, "ignore_eos": True}
        )

    assert 50 == other.json()["usage"]["completion_tokens"]


def test_the_engine_ends_with_its_parent(qwen3: Path) -> None:
    """When the parent's end of the pipe closes, the process ends by itself, in order."""
    running = EngineProcess(Options(model=str(qwen3)))
    running.wait_until_ready()

    status = running.end()

    assert 0 == status
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{running.url}/health")


def test_sigterm_ends_the_engine_while_it_streams(qwen3: Path) -> None:
    """A running answer delays the end for the grace time at most."""
    running = EngineProcess(Options(model=str(qwen3), grace_s=1))
    running.wait_until_ready()
    body = {"prompt": "Hello", "max_tokens": 4000, "ignore_eos": True, "stream": True}

    with (
        httpx.Client(base_url=running.url, timeout=LIMIT_S) as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        next(response.iter_raw())
        os.kill(running.process.pid, signal.SIGTERM)
        status = running.process.wait(timeout=LIMIT_S)

    running.end()
    assert 0 == status
    assert "Traceback" not in running.log


async def test_who_waits_when_the_engine_ends_is_told(qwen3: Path) -> None:
    """After the grace time: JSON gets a 503, a stream an error event; the log has no traceback."""
    running = EngineProcess(Options(model=str(qwen3), grace_s=1))
    running.wait_until_ready()
    body = {"prompt": "Hello", "max_tokens": 4000, "ignore_eos": True, "n": 8}

    async with running.client() as client:
        asked = [
            asyncio.create_task(client.post("/v1/completions", json={**body, "stream": stream}))
            for stream in (False, True)
        ]
        await until(lambda: asyncio.to_thread(counts, running), lambda seen: seen >= (16, 1))
        os.kill(running.process.pid, signal.SIGTERM)
        whole, stream = await asyncio.gather(*asked)
    status = running.process.wait(timeout=LIMIT_S)

    running.end()
    assert (503, "ServiceUnavailableError") == (whole.status_code, whole.json()["error"]["type"])
    *_, last, rest = stream.text.split("\n\n")
    assert (503, "") == (json.loads(last.removeprefix("data: "))["error"]["code"], rest)
    assert 0 == status
    assert "Traceback" not in running.log


def test_a_model_that_cant_be_loaded_ends_the_process(tmp_path: Path) -> None:
    """Nothing to serve is exit status 1 with the reason in the log."""
    running = EngineProcess(Options(model=str(tmp_path)))

    status = running.process.wait(timeout=LIMIT_S)

    running.end()
    assert 1 == status
    assert f"can't serve {tmp_path}" in running.log


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process has mapped")
def test_torch_is_not_loaded_where_it_is_installed(engine: EngineProcess) -> None:
    """It would take a second and 190 MB, for nothing."""
    mapped = Path(f"/proc/{engine.process.pid}/maps").read_text()

    assert "libmlx" in mapped
    assert "libtorch" not in mapped
