"""The embedded engine's owner thread, run inside the test: failures in generation, and memory."""

import asyncio
import gc
import json
import math
import shutil
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
from waiting import LIMIT_S, until

from strop.proxy.embedded import app, completions, lora, prefix, prompts, worker
from strop.proxy.embedded.batch import Batch
from strop.proxy.embedded.completions import Completions
from strop.proxy.embedded.engine import Engine
from strop.proxy.embedded.jobs import Job
from strop.proxy.embedded.options import Options
from strop.proxy.embedded.protocol import parse_completion
from strop.proxy.embedded.stack import has_gpu_failed
from strop.proxy.embedded.worker import Worker

LAYER = "model.layers.0.self_attn.q_proj"
LONG = "A prompt that is long enough to be cached. " * 2


@pytest.fixture
async def engine(qwen3: Path) -> AsyncIterator[Engine]:
    """An engine in this process, ready."""
    mx.disable_compile()
    running = Engine(Options(model=str(qwen3), served_name="base"))
    await running.ready.wait()
    assert running.failure is None
    yield running
    await running.stop()


class Call:
    """One request to the application: its status, and its body as it comes."""

    def __init__(self, engine: Engine, **body: Any) -> None:
        self.status = 0
        self.body = b""
        self.changed = asyncio.Event()
        self._request = json.dumps({"prompt": "Hello", "ignore_eos": True, **body}).encode()
        app = Completions(lambda: engine, parse_completion)
        self.task = asyncio.create_task(app({"type": "http"}, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if not self._request:
            await asyncio.Event().wait()
        body, self._request = self._request, b""
        return {"type": "http.request", "body": body, "more_body": False}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message["body"]
            self.changed.set()


def zeros(num_in: int, value: float = 0.0) -> lora.Weights:
    """Weights that change nothing, or fit no layer of the base if `num_in` is not 128."""
    a, b = mx.full((num_in, 2), value), mx.zeros((2, 128))
    mx.eval(a, b)  # Streams are thread-local: the worker can't compute what this thread began.
    return lora.Weights(a, b, 1.0)


async def add(engine: Engine, name: str, weights: dict[str, lora.Weights]) -> None:
    """Serve weights that no check has seen."""
    await asyncio.wrap_future(engine.worker.add_version(name, weights))
    engine.versions[name] = ""


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_in_generation_is_answered_and_the_engine_goes_on(
    engine: Engine, stream: bool
) -> None:
    """Before the first token it is a 500 error object, in JSON and streams alike."""
    await add(engine, "broken", {LAYER: zeros(3)})

    call = Call(engine, model="broken", stream=stream, max_tokens=3)
    beside = Call(engine, model="base", max_tokens=20)
    await asyncio.gather(call.task, beside.task)
    again = Call(engine, model="base", max_tokens=3)
    await again.task

    assert [500, 200, 200] == [call.status, beside.status, again.status]
    error = json.loads(call.body)["error"]
    assert ("InternalServerError", 500) == (error["type"], error["code"])
    assert "matmul" in error["message"]
    assert 20 == json.loads(beside.body)["usage"]["completion_tokens"]


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"stream": True}, {"presence_penalty": 1}])
async def test_logits_that_are_no_numbers_fail_the_request_alone(
    engine: Engine, fields: dict[str, Any]
) -> None:
    """Nothing is sampled from them, and nothing of them stays in the prefix cache."""
    weights = {LAYER: zeros(128, math.nan)}
    prompt = "A prompt that is long enough to be cached. " * 2
    await add(engine, "broken", weights)

    call = Call(engine, model="broken", prompt=prompt, max_tokens=3, **fields)
    beside = Call(engine, model="base", prompt=prompt, max_tokens=20)
    await asyncio.gather(call.task, beside.task)
    weights[LAYER] = zeros(128)
    again = Call(engine, model="broken", prompt=prompt, max_tokens=3, logprobs=0)
    await again.task

    assert [500, 200, 200] == [call.status, beside.status, again.status]
    assert "no finite numbers" in json.loads(call.body)["error"]["message"]
    assert 0 == json.loads(again.body)["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert None not in json.loads(again.body)["choices"][0]["logprobs"]["token_logprobs"]


async def test_prompt_logprobs_that_are_no_numbers_fail_the_request(engine: Engine) -> None:
    """A score that is no number is an error, not a null."""
    await add(engine, "broken", {LAYER: zeros(128, math.nan)})

    call = Call(engine, model="broken", prompt="Some words", max_tokens=1, prompt_logprobs=0)
    await call.task

    assert 500 == call.status
    assert "no finite numbers" in json.loads(call.body)["error"]["message"]


async def test_stopping_leaves_what_is_queued(engine: Engine) -> None:
    """Who stops it waits for one command and one step, however much there is to do."""
    ran: list[int] = []
    may_go = threading.Event()

    def command(number: int) -> None:
        may_go.wait(LIMIT_S)
        ran.append(number)

    for number in range(100):
        engine.worker._call(partial(command, number))

    stopping = asyncio.create_task(engine.stop())
    await until(lambda: engine.worker._is_stopping)
    may_go.set()
    await stopping

    assert not engine.worker.is_alive()
    assert len(ran) <= 1


async def test_a_prompt_that_takes_long_to_encode_holds_up_nobody(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are answered while it is read, though it is refused in the end."""
    ended = []
    is_answered, jobs = threading.Event(), prompts.jobs

    def slowly(request: Any, loaded: Any) -> list[Job]:
        if len(request.prompts[0]) > 100:
            is_answered.wait(LIMIT_S)
        return jobs(request, loaded)

    monkeypatch.setattr(prompts, "jobs", slowly)

    async def run(name: str, prompt: str) -> None:
        call = Call(engine, model="base", prompt=prompt, max_tokens=1)
        await call.task
        ended.append((name, call.status))
        is_answered.set()

    await asyncio.gather(run("book", "words and " * 120_000), run("word", "Hello"))

    assert [("word", 200), ("book", 400)] == ended


async def test_a_stream_that_stands_still_says_that_it_lives(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comments come between its events, which clients pass over; JSON has nothing of it."""
    monkeypatch.setattr(completions, "_QUIET_S", 0.0)

    stream = Call(engine, model="base", stream=True, max_tokens=20)
    whole = Call(engine, model="base", max_tokens=20)
    await asyncio.gather(stream.task, whole.task)

    parts = stream.body.decode().split("\n\n")
    assert {"data", ""} == {part.split(":")[0] for part in parts}
    assert ": waiting" in parts
    assert 21 == stream.body.count(b"data: ")
    assert 20 == json.loads(whole.body)["usage"]["completion_tokens"]


async def test_an_error_midway_ends_only_the_streams_of_its_version(engine: Engine) -> None:
    """A running stream ends with an error event and no [DONE]; those of others end whole."""
    weights = {LAYER: zeros(128)}
    await add(engine, "breaking", weights)

    call = Call(engine, model="breaking", stream=True, max_tokens=4000)
    beside = Call(engine, model="base", stream=True, max_tokens=400)
    await call.changed.wait()
    weights[LAYER] = zeros(3)
    await asyncio.gather(call.task, beside.task)

    *_, last, rest = call.body.decode().split("\n\n")
    assert (200, "") == (call.status, rest)
    assert 500 == json.loads(last.removeprefix("data: "))["error"]["code"]
    assert beside.body.endswith(b"data: [DONE]\n\n")
    assert 401 == beside.body.count(b"data: ")


GPU_FAILED = (
    "[METAL] Command buffer execution failed: Insufficient Memory "
    "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"
)


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Let one use of the GPU raise, by a function of MLX, as Metal does where work has failed."""
    function = getattr(owner, name)

    def fail(*_: Any) -> None:
        monkeypatch.setattr(owner, name, function)
        raise RuntimeError(GPU_FAILED)

    monkeypatch.setattr(owner, name, fail)


def fail_in_the_last_group(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each group in turn say all it has; the GPU fails in the last one."""
    worker._share_memory()
    for group in worker._groups:
        if group is worker._groups[-1]:
            fail_once(monkeypatch, mx, "async_eval")
        while group.is_busy:
            worker._step(group)


@pytest.mark.parametrize("name", ["async_eval", "random.key"])
async def test_where_the_gpu_fails_nothing_is_kept_that_it_may_not_have_computed(
    engine: Engine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so late, and not of whose work: all that runs fails, and all prefixes go."""
    models = ["base", "other"]
    await add(engine, "other", {LAYER: zeros(128)})
    asked: dict[str, Any] = {"prompt": "A prompt that is long enough to be cached. " * 2}

    async def cached() -> list[int]:
        calls = [Call(engine, model=model, max_tokens=3, **asked) for model in models]
        await asyncio.gather(*(call.task for call in calls))
        usages = [json.loads(call.body)["usage"] for call in calls]
        return [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]

    await cached()
    assert min(await cached()) > 0
    calls = [Call(engine, model=model, stream=True, max_tokens=4000) for model in models]
    await asyncio.gather(*(call.changed.wait() for call in calls))
    owner, _, function = name.rpartition(".")
    fail_once(monkeypatch, getattr(mx, owner) if owner else mx, function)
    # Its keys are made where it is let in.
    calls.append(Call(engine, model="base", max_tokens=3, seed=1))
    await asyncio.gather(*(call.task for call in calls))

    for call in calls[:2]:
        assert b"Insufficient Memory" in call.body.split(b"\n\n")[-2]
    assert [0, 0] == await cached()


async def test_where_the_gpu_fails_what_nobody_has_been_told_yet_is_not_told(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that ends in the step in which Metal says so may be of what it didn't compute."""
    await add(engine, "other", {LAYER: zeros(128)})
    worker, may_go = engine.worker, threading.Event()

    def step() -> None:
        fail_in_the_last_group(worker, monkeypatch)

    worker._call(partial(may_go.wait, LIMIT_S))
    calls = [Call(engine, model=model, max_tokens=3) for model in ("base", "other")]
    await until(lambda: engine._num_rows == 2)
    worker._call(step)
    may_go.set()
    await asyncio.gather(*(call.task for call in calls))

    assert [500, 500] == [call.status for call in calls]
    assert all(b"Insufficient Memory" in call.body for call in calls)


@pytest.mark.parametrize("told", [[False, False], [True, False], [False, True]])
def test_that_the_gpu_failed_too_is_found_behind_any_error(
    told: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever stream is told of it; nobody who comes later is."""
    left = [*told]

    def synchronize(_: object) -> None:
        if left.pop(0):
            raise RuntimeError(GPU_FAILED)

    monkeypatch.setattr(mx, "synchronize", synchronize)

    assert any(told) == has_gpu_failed(ValueError("[matmul] shapes don't fit"))
    assert [] == left


async def test_unloading_frees_what_loading_took(engine: Engine, peft_a: Path) -> None:
    """A version's weights and caches are given back once it is idle, without another request."""
    await Call(engine, model="base", max_tokens=30).task
    gc.collect()  # earlier tests' engines
    before = mx.get_active_memory()

    for number in range(3):
        await engine.load(f"v{number}", str(peft_a))
        await Call(engine, prompt="A long prompt. " * 20, model=f"v{number}", max_tokens=30).task
        loaded = mx.get_active_memory()
        await engine.unload(f"v{number}")
        await until(mx.get_active_memory, lambda num_bytes: num_bytes <= before)

        assert before < loaded


async def test_an_idle_engine_keeps_nothing_that_answers_have_freed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training run begins where nobody asks for anything, and may need that memory."""
    monkeypatch.setattr(worker, "_IDLE_S", 0.0)
    gc.collect()  # earlier tests' engines

    for _ in range(2):
        await Call(engine, model="base", max_tokens=20).task

        await until(mx.get_cache_memory, lambda num_bytes: num_bytes == 0)


@pytest.mark.parametrize(
    ("manifest", "loads"),
    [
        ({"base": "ours"}, True),
        ({"version": "v1"}, True),
        ({"base": "another"}, False),
        ([], False),
    ],
)
def test_an_adapter_of_another_base_is_refused(
    peft_a: Path, tmp_path: Path, manifest: object, loads: bool
) -> None:
    """Where the folder's manifest names a base, it must be this one."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((peft_a / name).read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    shapes = {
        path: lora.LinearShape(weights.a.shape[0], weights.b.shape[1], mx.float32)
        for path, weights in all_weights(peft_a).items()
    }

    if loads:
        assert lora.prepare(tmp_path, shapes, max_rank=8, base_identity="ours")
    else:
        with pytest.raises(ValueError, match=r"manifest"):
            lora.prepare(tmp_path, shapes, max_rank=8, base_identity="ours")


def all_weights(folder: Path) -> dict[str, lora.Weights]:
    """Return an adapter's weights, whatever the base."""
    from strop.adapters import peft

    return {
        path: lora.Weights(mx.array(module.a.T), mx.array(module.b.T), module.scale)
        for path, module in peft.read(folder).modules.items()
    }


@pytest.mark.parametrize(
    ("has_layers", "num_more", "max_rank", "says"),
    [
        (False, 0, 8, "no linear layer"),
        (True, 64, 8, "inputs"),
        (True, 0, 7, "max_lora_rank 7"),
    ],
)
def test_an_adapter_that_doesnt_fit_is_refused(
    peft_a: Path, has_layers: bool, num_more: int, max_rank: int, says: str
) -> None:
    """Names, shapes and rank are checked against the base before anything is served."""
    shapes = {
        path: lora.LinearShape(each.a.shape[0], each.b.shape[1] + num_more, mx.float32)
        for path, each in all_weights(peft_a).items()
        if has_layers
    }

    with pytest.raises(ValueError, match=says):
        lora.prepare(peft_a, shapes, max_rank=max_rank, base_identity=None)


@pytest.mark.parametrize(
    ("owner", "name", "asked"),
    [
        (prefix, "materialise", {"prompt": LONG}),
        (mx.random, "key", {"prompt": LONG, "n": 2, "seed": 1}),
        (Batch, "remove", {"model": "broken"}),
    ],
    ids=["its end is kept", "its rows begin", "it is broken off"],
)
async def test_whoever_is_at_work_in_a_step_that_fails_is_told(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, asked: dict[str, Any]
) -> None:
    """Also whose rows that step has taken away, or not made yet."""
    await add(engine, "broken", {LAYER: zeros(128, math.nan)})
    fail_once(monkeypatch, owner, name)

    call = Call(engine, **{"model": "base", "max_tokens": 3, **asked})
    async with asyncio.timeout(LIMIT_S):
        await call.task

    assert 500 == call.status
    assert b"Insufficient Memory" in call.body


@pytest.mark.parametrize("n", [1, 2])
async def test_where_the_gpu_fails_so_does_what_waits_to_go_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """What it has drawn may be of what the GPU didn't compute."""
    worker, may_go = engine.worker, threading.Event()
    waiting: list[int] = []

    def step() -> None:
        worker._share_memory()
        (group,) = worker._groups
        for _ in range(4):
            worker._step(group)
        left = group.withdraw(max(group.places()))
        worker._admission.add(left, group)
        fail_once(monkeypatch, mx, "async_eval")
        worker._events.clear()  # told
        worker._step(group)
        waiting.append(worker._admission.num_rows)

    worker._call(partial(may_go.wait, LIMIT_S))
    calls = [Call(engine, model="base", max_tokens=8, n=n) for _ in range(3 - n)]
    await until(lambda: engine._num_rows == 2)
    worker._call(step)
    may_go.set()
    await asyncio.gather(*(call.task for call in calls))

    assert {500} == {call.status for call in calls}
    assert [0] == waiting


async def test_a_job_that_is_let_in_in_part_leaves_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its second answer can't begin, the first doesn't go on."""
    rows, key, asked = [], mx.random.key, []

    def fail(seed: int) -> Any:
        asked.append(seed)
        if len(asked) == 2:
            raise ValueError("no key")
        return key(seed)

    admit = engine.worker._admit

    def noted(group: Any, coming: Any) -> None:
        admit(group, coming)
        rows.append(group.num_rows)

    monkeypatch.setattr(mx.random, "key", fail)
    monkeypatch.setattr(engine.worker, "_admit", noted)
    call = Call(engine, model="base", prompt=[5], n=2, seed=1, max_tokens=9)
    await call.task

    assert 500 == call.status
    assert [0] == rows


async def test_where_the_gpu_fails_who_has_failed_already_is_told_why_and_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """His error is his own: of logits that are no numbers, in the same step."""
    await add(engine, "broken", {LAYER: zeros(128, math.nan)})
    await add(engine, "other", {LAYER: zeros(128)})
    worker, may_go = engine.worker, threading.Event()
    told: list[int] = []

    def step() -> None:
        fail_in_the_last_group(worker, monkeypatch)
        told.extend(number for number, _ in worker._events)

    worker._call(partial(may_go.wait, LIMIT_S))
    calls = [Call(engine, model=model, max_tokens=3) for model in ("broken", "other")]
    await until(lambda: engine._num_rows == 2)
    worker._call(step)
    may_go.set()
    await asyncio.gather(*(call.task for call in calls))

    assert b"no finite numbers" in calls[0].body
    assert b"Insufficient Memory" in calls[1].body
    assert len(told) == len(set(told)) == 2


async def test_what_a_request_leaves_out_is_as_the_models_makers_say(
    qwen3: Path, tmp_path: Path
) -> None:
    """With a temperature of 0 in generation_config.json answers are alike; unless one is sent."""
    mx.disable_compile()
    folder = shutil.copytree(qwen3, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"temperature": 0.0}')
    engine = Engine(Options(model=str(folder), served_name="base"))
    await engine.ready.wait()

    async def texts(**sent: Any) -> set[str]:
        calls = [Call(engine, max_tokens=8, **sent) for _ in range(3)]
        await asyncio.gather(*(call.task for call in calls))
        return {json.loads(call.body)["choices"][0]["text"] for call in calls}

    unsaid, greedy, warm = await texts(), await texts(temperature=0), await texts(temperature=1)
    [card] = app._models(engine, 0)["data"]
    await engine.stop()

    assert (1, 3) == (len(unsaid), len(warm))
    assert greedy == unsaid
    assert {"temperature": 0.0} == card["sampling"]
