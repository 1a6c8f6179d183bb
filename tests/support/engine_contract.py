"""The drivers that the one contract is tried over, each with an engine to drive.

Knows how to start them, and nothing of what is asked of them: that is in `test_engine_contract`. To
add a driver, write a function that yields a `Started`, and a `Case` below.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import engine_process
import pytest
from fake_adapters import FakeAdapters
from fake_engine import FakeEngine
from fake_llama_server import FakeLlamaServer
from fake_ollama import FakeOllama, base_of
from fake_vllm import FakeVllm
from vllm_server import KEY, VllmServer


@dataclass(frozen=True)
class Started:
    """An engine that runs.

    Attributes:
        url: where.
        key: what it asks for; empty for nothing.
        fake: the engine, where it is a fake: it can be stopped, started, and told to hang.
    """

    url: str
    key: str = ""
    fake: FakeEngine | None = None


Start = Callable[[pytest.FixtureRequest], contextlib.AbstractAsyncContextManager[Started]]


@dataclass(frozen=True)
class Case:
    """A driver and an engine for it.

    Attributes:
        name: what a failing test says.
        kind: `engine.kind`.
        start: runs the engine.
        model: what it calls its model.
        wrong: a request that it refuses, and a part of what it says then.
        adapter: a fixture with the folder of an adapter; empty where it can't serve any.
        marks: of the tests.
        is_fake: whether `Started.fake` is there.
    """

    name: str
    kind: str
    start: Start
    model: str = "tiny"
    wrong: tuple[dict[str, Any], str] = ({"temperature": "hot"}, "temperature")
    adapter: str = ""
    marks: tuple[pytest.MarkDecorator, ...] = ()
    is_fake: bool = False


def fake(handler: Callable[[], Any], key: str = "") -> Start:
    """Return what runs a fake engine with this handler."""

    @contextlib.asynccontextmanager
    async def start(_: pytest.FixtureRequest) -> AsyncIterator[Started]:
        async with FakeEngine(handler()) as engine:
            yield Started(engine.url, key, engine)

    return start


@contextlib.asynccontextmanager
async def _embedded(request: pytest.FixtureRequest) -> AsyncIterator[Started]:
    yield Started(engine_process.shared(request.getfixturevalue("qwen3")).url)


@contextlib.asynccontextmanager
async def _mlx_server(request: pytest.FixtureRequest) -> AsyncIterator[Started]:
    yield Started(request.getfixturevalue("contract_mlx_server"))


@contextlib.asynccontextmanager
async def _vllm(request: pytest.FixtureRequest) -> AsyncIterator[Started]:
    server: VllmServer = request.getfixturevalue("vllm")
    yield Started(server.url, KEY)


def _ollama() -> FakeOllama:
    return FakeOllama(models={"tiny:latest": base_of("tiny")})


WRONG_TOP = ({"top_logprobs": 2}, "logprobs")
TOO_LONG = ({"messages": [{"role": "user", "content": "word " * 9000}]}, "context")

CASES = [
    Case(
        *("vllm-fake", "vllm", fake(FakeAdapters)),
        wrong=WRONG_TOP,
        adapter="some_folder",
        is_fake=True,
    ),
    Case(
        *("vllm", "vllm", _vllm),
        wrong=({"max_tokens": 5000}, "max_model_len"),
        adapter="peft_a",
        marks=(pytest.mark.vllm, pytest.mark.timeout(900)),
    ),
    Case(
        *("embedded", "vllm", _embedded),
        model="base",
        wrong=({"max_tokens": 99999}, "maximum context length"),
        adapter="peft_a",
        marks=(pytest.mark.engine,),
    ),
    Case(
        *("openai-fake", "openai", fake(lambda: FakeVllm(key="sk-1"), "sk-1")),
        wrong=WRONG_TOP,
        is_fake=True,
    ),
    Case("mlx_server", "mlx_server", _mlx_server, marks=(pytest.mark.engine,)),
    Case("ollama-fake", "ollama", fake(_ollama), wrong=TOO_LONG, is_fake=True),
    Case(
        *("llama_server-fake", "llama_server", fake(FakeLlamaServer)),
        wrong=TOO_LONG,
        is_fake=True,
    ),
]
