"""The memory of the embedded engine's KV caches: what rows take, who waits, and who goes back."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.models import cache as mlx_cache
from waiting import LIMIT_S, until

from strop.proxy.embedded import admission, lora, memory
from strop.proxy.embedded.engine import Engine, Exchange
from strop.proxy.embedded.errors import BadRequest, EngineError
from strop.proxy.embedded.jobs import Job, Sampled, Started
from strop.proxy.embedded.memory import Footprint, measure, room
from strop.proxy.embedded.options import Options
from strop.proxy.embedded.protocol import parse_completion

T = TypeVar("T")

TOKEN_BYTES = 3 * 2 * 2 * 32 * 4  # of `qwen3`: blocks, keys and values, heads, width, fp32
MEMORY = 2000 * TOKEN_BYTES  # two rows of 600 tokens, with the 256 that each grows into
PROMPT = list(range(3, 63))

WIDTH = 64


class Writer:
    """A model that writes as many keys and values as it is given tokens, and no more."""

    def __init__(self, make: Callable[[], list[Any]]) -> None:
        self.make_cache = make

    def __call__(self, ids: mx.array, cache: list[Any]) -> None:
        """Write to each cache."""
        for part in cache:
            for one in getattr(part, "caches", [part]):
                if isinstance(one, mlx_cache.ArraysCache):
                    one[0] = mx.zeros((1, 5, WIDTH))
                else:
                    keys = mx.zeros((1, 2, ids.shape[1], WIDTH), mx.bfloat16)
                    one.update_and_fetch(keys, keys[..., : WIDTH // 2])


CACHES: dict[str, Callable[[], list[Any]]] = {
    "full": lambda: [mlx_cache.KVCache() for _ in range(3)],
    "quantised": lambda: [mlx_cache.QuantizedKVCache(group_size=32, bits=8)],
    "rotating": lambda: [mlx_cache.RotatingKVCache(max_size=300), mlx_cache.KVCache()],
    "chunked": lambda: [mlx_cache.ChunkedKVCache(300)],
    "recurrent": lambda: [mlx_cache.ArraysCache(1), mlx_cache.KVCache()],
    "listed": lambda: [mlx_cache.CacheList(mlx_cache.ArraysCache(1), mlx_cache.KVCache())],
}


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("length", [1, 255, 900])
def test_a_footprint_is_what_the_models_own_caches_take(kind: str, length: int) -> None:
    """Exact but for the block of 256 tokens that is taken before it is full."""
    model = Writer(CACHES[kind])
    cache = model.make_cache()

    model(mx.zeros((1, length)), cache)
    for part in cache:
        if kind == "chunked":
            part.maybe_trim_front()
    for _ in range(3):
        model(mx.zeros((1, 1)), cache)
    footprint = measure(model)
    taken = sum(part.nbytes for part in cache)

    assert taken <= footprint.num_bytes(length + 3)
    assert footprint.num_bytes(length + 3) - taken <= footprint.num_bytes(257) - footprint.fixed


def test_a_footprint_says_how_long_a_row_may_be() -> None:
    """One token more would take more than that; what doesn't grow has no limit."""
    footprint = Footprint(100, ((10, float("inf")), (1000, 64)))

    longest = footprint.longest(500_000)

    assert footprint.num_bytes(longest) <= 500_000 < footprint.num_bytes(longest + 1)
    assert Footprint(100, ((10, 64),)).longest(5000) > 10**9
    assert 0 == Footprint(100, ()).longest(99)


def test_memory_that_holds_no_token_is_refused() -> None:
    """The engine doesn't start, and says what it needs."""
    with pytest.raises(ValueError, match=r"kv_cache_bytes of at least \d+"):
        room(Writer(CACHES["full"]), 1000)


def test_without_a_number_there_is_memory_for_a_short_chat_at_least() -> None:
    """However little the weights leave."""
    assert 2048 <= room(Writer(CACHES["full"]), None).longest


def test_a_container_has_the_memory_that_its_files_say(tmp_path: Path) -> None:
    """Of either version; a file that names no number, or can't be read, is no limit."""
    names = ("memory.max", "memory.limit_in_bytes", "odd")
    for name, text in zip(names, ("max\n", "1048576\n", ""), strict=True):
        (tmp_path / name).write_text(text)

    limits = memory._limits([tmp_path, *(tmp_path / name for name in (*names, "missing"))])

    assert [1 << 20] == [*limits]


@asynccontextmanager
async def serving(model: Path, max_bytes: int | None, **options: Any) -> AsyncIterator[Engine]:
    """Run an engine in this process that has so many bytes for KV caches."""
    mx.disable_compile()
    engine = Engine(Options(str(model), served_name="base", kv_cache_bytes=max_bytes, **options))
    await engine.ready.wait()
    assert engine.failure is None
    yield engine
    await engine.stop()


@dataclass
class Answer:
    """What came of one request's answers, by choice."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[float]] = field(default_factory=dict)
    finish: dict[int, str] = field(default_factory=dict)
    cached: int = 0
    num_started: int = 0


async def jobs_of(engine: Engine, **fields: Any) -> list[Job]:
    """Return what a greedy request asks of the engine."""
    body = {"model": "base", "prompt": PROMPT, "ignore_eos": True, "temperature": 0, **fields}
    return await engine.encode(parse_completion(body))


async def start(engine: Engine, **fields: Any) -> Exchange:
    """Hand a greedy request over to the engine."""
    return engine.open(await jobs_of(engine, **fields))


async def follow(engine: Engine, exchange: Exchange) -> Answer:
    """Return the whole answer."""
    answer = Answer()
    while len(answer.finish) < exchange.num_rows:
        for _, event in await exchange.events() or ():
            if isinstance(event, Started):
                answer.cached = event.cached_tokens
                answer.num_started += 1
            elif isinstance(event, Sampled):
                answer.tokens.setdefault(event.choice, []).append(event.token.id)
                answer.logprobs.setdefault(event.choice, []).append(event.token.logprob)
                if event.finish:
                    answer.finish[event.choice] = event.finish
    exchange.is_complete = True
    engine.close(exchange)
    return answer


async def ask(engine: Engine, **fields: Any) -> Answer:
    """Return the answer to one request."""
    return await follow(engine, await start(engine, **fields))


def held(engine: Engine) -> int:
    """Return the bytes that mlx-lm's caches really have; a row that waits there shares others'.

    Reads what is private down to mlx-lm's own arrays: the engine says what it reckons with, and
    this is what that is held against.
    """
    worker = engine.worker
    num_bytes = worker._prefix.num_bytes
    for group in worker._groups:
        for stack in group._batch._stacks.values():
            for batch in (stack._generator._prompt_batch, stack._generator._generation_batch):
                num_bytes += sum(int(part.nbytes) for part in batch.prompt_cache)
    return num_bytes


def watch(engine: Engine, of: Callable[[Engine], T]) -> list[T]:
    """Return a list that gets `of` the engine after each step."""
    seen: list[T] = []
    deliver = engine.worker._sink

    def look(events: Any) -> None:
        seen.append(of(engine))
        deliver(events)

    engine.worker._sink = look
    return seen


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 1, "seed": 7, "top_p": 0.9},
        {"presence_penalty": 1, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
        {"ignore_eos": False, "min_tokens": 119},
        {"ignore_eos": False, "structured_outputs": {"regex": "[a-z ]{500,}"}},
        {"n": 3, "temperature": 1, "seed": 3},
    ],
    ids=["greedy", "seeded", "penalties", "min_tokens", "form", "several"],
)
async def test_answers_that_outgrow_the_memory_are_those_of_an_engine_that_has_enough(
    qwen3: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The youngest waits and goes on where it was: same tokens, same logprobs, none twice."""
    monkeypatch.setattr(admission, "_AHEAD", 16)  # Else answers had to be long.
    most = 1100 * TOKEN_BYTES  # three rows of 110 tokens, and their blocks
    requests = [{"prompt": [*PROMPT, 70 + at], "max_tokens": 120, **fields} for at in range(3)]
    async with serving(qwen3, None) as engine:
        expected = await asyncio.gather(*(ask(engine, **request) for request in requests))

    async with serving(qwen3, most) as engine:
        seen = watch(engine, held)
        answers = await asyncio.gather(*(ask(engine, **request) for request in requests))
        metrics = engine.metrics()

    assert metrics["vllm:num_preemptions_total"] > 0
    assert max(seen) <= most
    for one, other in zip(expected, answers, strict=True):
        assert (one.tokens, one.finish) == (other.tokens, other.finish)
        assert 1 == other.num_started
        for choice, logprobs in one.logprobs.items():
            assert logprobs == pytest.approx(other.logprobs[choice], abs=1e-4)


async def test_who_waits_is_let_in_by_age(qwen3: Path) -> None:
    """A short request doesn't pass a long one that waits before it; all are answered."""
    begun: list[str] = []

    async def run(engine: Engine, name: str, exchange: Exchange) -> None:
        await exchange.events()
        begun.append(name)
        await follow(engine, exchange)

    async with serving(qwen3, MEMORY, prefix_cache_bytes=0) as engine:
        sizes = {"first": 900, "long": 1300, "short": 20, "last": 30}
        exchanges = {
            name: await start(engine, prompt=PROMPT[:1] * size, max_tokens=60)
            for name, size in sizes.items()
        }
        await asyncio.gather(*(run(engine, name, each) for name, each in exchanges.items()))
        metrics = engine.metrics()

    assert [*sizes] == begun
    assert 0 == metrics["vllm:num_preemptions_total"]


async def test_who_waits_for_another_answer_to_end_takes_no_memory(qwen3: Path) -> None:
    """It finds in the prefix cache what that one left there, and counts as waiting."""
    async with serving(qwen3, None, max_rows=1) as engine:
        seen = watch(engine, Engine.metrics)
        jobs = [await jobs_of(engine, max_tokens=200) for _ in range(2)]
        exchanges = [engine.open(each) for each in jobs]
        answers = [await follow(engine, each) for each in exchanges]

    metrics = next(one for one in seen if one["vllm:num_requests_waiting"])
    assert (1, 1) == (metrics["vllm:num_requests_running"], metrics["vllm:num_requests_waiting"])
    assert metrics["strop:kv_cache_used_bytes"] <= (len(PROMPT) + 200 + 256) * TOKEN_BYTES
    assert [0, len(PROMPT) - 1] == [answer.cached for answer in answers]


async def test_versions_dont_wait_for_each_others_answers(qwen3: Path, peft_a: Path) -> None:
    """Where there is memory, each generates as many answers at once as it may."""
    async with serving(qwen3, None, max_rows=1) as engine:
        await engine.load("v1", str(peft_a))
        first, second = [await start(engine, max_tokens=1000) for _ in range(2)]
        answer = await ask(engine, model="v1", max_tokens=5)
        metrics = engine.metrics()
        for each in (first, second):
            each.leave()
            engine.close(each)

    assert 5 == len(answer.tokens[0])
    assert 1 == metrics["vllm:num_requests_waiting"]


async def test_a_prompt_that_never_fits_is_refused_at_once(qwen3: Path) -> None:
    """It is told what fits, and how to get more; what it asks of the answer is cut instead."""
    async with serving(qwen3, MEMORY) as engine:
        limit = engine.max_model_len
        with pytest.raises(BadRequest, match=rf"{limit} tokens.*{limit} input.*kv-cache") as error:
            await start(engine, prompt=[5] * limit, max_tokens=1)
        answer = await ask(engine, prompt=[5] * (limit - 4), max_tokens=2000)

    assert 2000 - 256 == limit
    assert "input_tokens" == error.value.param
    assert (4, "length") == (len(answer.tokens[0]), answer.finish[0])


@pytest.mark.parametrize(("prompt", "n"), [([5, 6] * 450, 4), ([5], 9)], ids=["long", "short"])
async def test_several_answers_that_dont_fit_together_are_given_one_after_another(
    qwen3: Path, prompt: list[int], n: int
) -> None:
    """A request isn't refused for its `n`."""
    async with serving(qwen3, None) as engine:
        expected = await ask(engine, prompt=prompt, n=n, max_tokens=20)

    async with serving(qwen3, MEMORY) as engine:
        seen = watch(engine, held)
        answer = await ask(engine, prompt=prompt, n=n, max_tokens=20)

    assert expected.tokens == answer.tokens
    assert {*range(n)} == {*answer.finish}
    assert max(seen) <= MEMORY


async def test_the_prefix_cache_gives_way_first(qwen3: Path) -> None:
    """Nobody waits for memory that only holds what was asked before."""
    async with serving(qwen3, MEMORY) as engine:
        first = await ask(engine, prompt=[5, 6] * 300, max_tokens=30)
        again = await ask(engine, prompt=[5, 6] * 300, max_tokens=30)
        exchange = await start(engine, prompt=[8, 9] * 700, max_tokens=30)
        await exchange.events()
        metrics = engine.metrics()
        await follow(engine, exchange)
        last = await ask(engine, prompt=[5, 6] * 300, max_tokens=30)

    assert [0, 599, 0] == [answer.cached for answer in (first, again, last)]
    assert (0, 0) == (metrics["vllm:num_requests_waiting"], metrics["vllm:num_preemptions_total"])
    assert MEMORY == metrics["strop:kv_cache_max_bytes"] >= metrics["strop:kv_cache_used_bytes"]


async def test_who_leaves_the_line_makes_way(qwen3: Path) -> None:
    """A waiting request whose client has gone holds up nobody behind it."""
    may_go = threading.Event()

    def stop(engine: Engine) -> tuple[int, int]:
        """Let the engine stand still while one waits; return how many run, and tokens so far."""
        if engine.worker.num_waiting:
            may_go.wait(LIMIT_S)
        return engine.worker.num_rows, engine.worker.num_generated

    async with serving(qwen3, MEMORY) as engine:
        seen = watch(engine, stop)
        sizes = ((300, 400), (1600, 10), (60, 10))
        first, gone, last = [
            await jobs_of(engine, prompt=[5] * length, max_tokens=num) for length, num in sizes
        ]
        running, waiting = engine.open(first), engine.open(gone)
        await until(lambda: engine.worker.num_waiting)
        waiting.leave()
        engine.close(waiting)
        behind = engine.open(last)
        may_go.set()
        answers = await asyncio.gather(follow(engine, running), follow(engine, behind))

    assert [400, 10] == [len(answer.tokens[0]) for answer in answers]
    # The last one ran beside the first.
    assert any(num_rows == 2 and num_tokens < 400 for num_rows, num_tokens in seen)


async def test_a_version_that_is_unloaded_answers_who_waits_for_it(
    qwen3: Path, peft_a: Path
) -> None:
    """Like those that run; its memory goes with the last of them."""
    async with serving(qwen3, MEMORY) as engine:
        await engine.load("v1", str(peft_a))
        expected = await ask(engine, model="v1", max_tokens=10)
        first = await start(engine, prompt=[5] * 1500, max_tokens=200)
        waiting = await start(engine, model="v1", max_tokens=10)
        await first.events()
        await engine.unload("v1")
        answers = await asyncio.gather(follow(engine, first), follow(engine, waiting))

        await until(lambda: len(engine.worker._groups) <= 1)

    assert expected.tokens == answers[1].tokens
    assert 200 == len(answers[0].tokens[0])


async def test_a_version_that_breaks_fails_who_was_sent_back(qwen3: Path, peft_a: Path) -> None:
    """A request of which one answer waits is failed whole, once, and others go on."""
    weights = {
        "model.layers.0.self_attn.q_proj": lora.Weights(mx.zeros((128, 2)), mx.zeros((2, 128)), 1.0)
    }
    mx.eval(*(each for one in weights.values() for each in (one.a, one.b)))
    async with serving(qwen3, MEMORY) as engine:
        await asyncio.wrap_future(engine.worker.add_version("breaking", weights))
        engine.versions["breaking"] = ""
        await engine.load("other", str(peft_a))
        exchange = await start(engine, model="breaking", prompt=[5] * 900, n=3, max_tokens=300)
        while not engine.metrics()["vllm:num_preemptions_total"]:
            await exchange.events()
        weights["model.layers.0.self_attn.q_proj"] = lora.Weights(
            mx.zeros((3, 2)), mx.zeros((2, 128)), 1.0
        )
        await engine.unload("other")  # After which weights are set anew.
        with pytest.raises(EngineError, match="matmul"):
            await follow(engine, exchange)
        engine.close(exchange)
        answer = await ask(engine, max_tokens=5)
        metrics = engine.metrics()

    assert 5 == len(answer.tokens[0])
    assert 0 == metrics["vllm:num_requests_waiting"]


async def test_who_can_not_be_sent_back_is_told(
    qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for ever for an answer that broke on its way into the line."""
    monkeypatch.setattr(admission, "_AHEAD", 16)  # Else answers had to be long.

    def fail(_batches: BatchGenerator, _uids: list[int]) -> None:
        raise RuntimeError("no such row")

    async with serving(qwen3, MEMORY, prefix_cache_bytes=0) as engine:
        jobs = [await jobs_of(engine, prompt=[at] * 700, max_tokens=100) for at in (5, 6)]
        with monkeypatch.context() as patch:
            patch.setattr(BatchGenerator, "remove", fail)
            for exchange in [engine.open(each) for each in jobs]:
                with pytest.raises(EngineError, match="no such row"):
                    await follow(engine, exchange)
                engine.close(exchange)
        answer = await ask(engine, max_tokens=5)

    assert 5 == len(answer.tokens[0])
