"""Several servers behind one name: who gets which request, and who is left out."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import SSE, Call, FakeEngine, Handler
from fake_vllm import FakeVllm
from hypothesis import given
from hypothesis import strategies as st
from running import Running, running, settings_for
from waiting import until

from strop.proxy.engines import claims
from strop.proxy.engines.base import AdaptersFolder, Ask, EngineState
from strop.proxy.engines.openai import OpenAI
from strop.proxy.engines.replicas import MAX_CONVERSATIONS, SLACK, Replicas, conversation_of
from strop.proxy.engines.vllm import Vllm
from strop.proxy.errors import EngineNotReady
from strop.proxy.upstream.upstream import Upstream


class Busy(Upstream):
    """An upstream that says it is as busy as it is told."""

    num = 0

    @property
    def num_busy(self) -> int:
        """As told."""
        return self.num


def replicas_of(number: int) -> tuple[Replicas, list[Busy]]:
    """Return that many replicas, all ready, and their connections."""
    upstreams = [Busy(f"http://127.0.0.1:{1 + at}") for at in range(number)]
    replicas = Replicas([OpenAI(one) for one in upstreams])
    for replica in replicas.replicas:
        replica.enter()
    return replicas, upstreams


def ask(text: str = "hi", *more: str) -> Ask:
    """Return a chat that began with `text`."""
    roles = ("user", "assistant")
    said = [{"role": roles[at % 2], "content": one} for at, one in enumerate((text, *more))]
    return Ask("chat", b"", {"messages": [{"role": "system", "content": "x"}, *said]})


def at(replicas: Replicas, one: Ask, session: str | None = None) -> int:
    """Return the number of the replica that is picked."""
    engine = replicas.pick(one, session)
    return [replica.engine for replica in replicas.replicas].index(engine)


async def test_new_conversations_take_turns_where_all_are_equally_busy() -> None:
    """Each gets its share, also when nothing runs at the same time."""
    replicas, _ = replicas_of(3)

    assert [0, 1, 2, 0, 1, 2] == [at(replicas, ask(f"chat {number}")) for number in range(6)]


async def test_a_new_conversation_goes_to_the_least_busy() -> None:
    """By the requests that strop has under way there."""
    replicas, upstreams = replicas_of(3)
    upstreams[0].num, upstreams[1].num, upstreams[2].num = 2, 1, 3

    assert 1 == at(replicas, ask())


async def test_a_conversation_stays_where_it_began() -> None:
    """However long it gets, and whoever is less busy."""
    replicas, upstreams = replicas_of(2)
    first = at(replicas, ask("hello"))
    upstreams[first].num = SLACK

    assert [first] * 2 == [
        at(replicas, ask("hello", "yes?", "go on")),
        at(replicas, ask("hello", "yes?", "go on", "so", "and then")),
    ]


async def test_a_conversation_moves_when_its_server_is_much_busier() -> None:
    """And stays where it went."""
    replicas, upstreams = replicas_of(2)
    first = at(replicas, ask("hello"))
    upstreams[first].num = SLACK + 1

    moved = at(replicas, ask("hello", "yes?", "go on"))
    upstreams[first].num = 0

    assert 1 - first == moved
    assert moved == at(replicas, ask("hello", "yes?", "go on", "so"))


async def test_versions_are_for_all_servers_or_for_none(tmp_path: Path) -> None:
    """One that was started without adapters can't serve what the others can."""
    folder = AdaptersFolder(tmp_path)
    able = Vllm(Upstream("http://127.0.0.1:1"), adapters=folder)
    unable = Vllm(Upstream("http://127.0.0.1:2"), adapters=folder)
    unable.capabilities = replace(unable.capabilities, adapters=0)
    replicas = Replicas([able, unable])
    for replica in replicas.replicas:
        replica.state = EngineState(("tiny",), None)

    assert 0 == replicas.capabilities.adapters


async def test_a_sessions_label_decides_over_how_it_began() -> None:
    """An agent's side requests share its prompt."""
    replicas, _ = replicas_of(2)

    first = at(replicas, ask("main"), "s1")
    other = at(replicas, ask("main"), "s2")

    assert 1 - first == other
    assert first == at(replicas, ask("make a title"), "s1")


async def test_one_that_is_out_or_suspect_gets_nothing() -> None:
    """Its conversations go elsewhere, and back only if they are new."""
    replicas, _ = replicas_of(2)
    first = at(replicas, ask())
    replicas.suspect(replicas.replicas[first].engine)
    suspected = at(replicas, ask())
    replicas.replicas[first].is_suspect = False

    assert [1 - first] * 2 == [suspected, at(replicas, ask())]
    replicas.replicas[suspected].leave("it broke")
    assert first == at(replicas, ask())


async def test_where_all_are_suspect_one_is_tried() -> None:
    """A request that fails says more than one that is not sent."""
    replicas, _ = replicas_of(2)
    for replica in replicas.replicas:
        replicas.suspect(replica.engine)

    assert at(replicas, ask()) in (0, 1)


async def test_where_none_is_in_the_error_says_why_for_each() -> None:
    """With its address."""
    replicas, _ = replicas_of(2)
    for replica in replicas.replicas:
        replica.leave("it serves another model", answers=True)

    with pytest.raises(EngineNotReady, match=r"127.0.0.1:1: it serves.*127.0.0.1:2: it serves"):
        replicas.pick(ask(), None)


async def test_conversations_not_heard_of_longest_are_forgotten() -> None:
    """Their number is bounded."""
    replicas, _ = replicas_of(2)
    first = at(replicas, ask("the first"))
    for number in range(MAX_CONVERSATIONS - 1):
        replicas.pick(ask(f"{number}"), None)
    assert first == at(replicas, ask("the first"))
    for number in range(MAX_CONVERSATIONS):
        replicas.pick(ask(f"again {number}"), None)

    assert MAX_CONVERSATIONS == len(replicas._conversations)
    assert conversation_of(ask("the first"), None) not in replicas._conversations


@pytest.mark.parametrize("content", ["x" * 10**6, [{"type": "text", "text": "x" * 10**6}]])
def test_a_conversation_is_remembered_by_little(content: object) -> None:
    """Agents put whole files into their first message, and many conversations are remembered."""
    key = conversation_of(
        Ask("chat", b"", {"messages": [{"role": "user", "content": content}]}), None
    )

    assert sys.getsizeof(key) < 100


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(messages=anything, content=anything, prompt=anything)
def test_whatever_a_client_sends_has_a_key(messages: Any, content: Any, prompt: Any) -> None:
    """Malformed requests too: the engine is to say what is wrong with them."""
    for fields in (
        {"messages": messages},
        {"messages": [{"role": "user", "content": content}]},
        {"messages": [content, {"role": "user"}]},
    ):
        hash(conversation_of(Ask("chat", b"", fields), None))
    hash(conversation_of(Ask("completions", b"", {"prompt": prompt}), None))


@asynccontextmanager
async def two(
    tmp_path: Path, fake: Handler | None = None, **options: Any
) -> AsyncIterator[tuple[list[FakeEngine], Running]]:
    """Run a proxy before two engines, of which the first may be another fake."""
    async with FakeEngine(fake or FakeVllm()) as one, FakeEngine(FakeVllm()) as other:
        engine = {"replicas": (other.url,), "health_interval_s": 0.05, **options}
        settings = settings_for(one.url, engine=engine)
        async with running(settings, tmp_path / "home") as proxy:
            yield [one, other], proxy


def num_completions(engine: FakeEngine) -> int:
    """Return how many requests of clients an engine got; strop's own have one token."""
    asked = [r.json() for r in engine.requests if r.path == "/v1/chat/completions"]
    return sum(one.get("max_tokens") != 1 for one in asked)


def num_verified(engine: FakeEngine) -> int:
    """Return how often an engine was asked for one token, as strop alone does."""
    asked = [r.json() for r in engine.requests if r.path == "/v1/chat/completions"]
    return sum(one.get("max_tokens") == 1 for one in asked)


async def ready(proxy: Running) -> list[bool]:
    """Return which replicas the proxy says are ready."""
    health = (await proxy.client.get("/health")).json()["engine"]
    return [one["ready"] for one in health["replicas"]]


async def test_requests_are_spread_and_conversations_stay(tmp_path: Path) -> None:
    """Each new conversation goes to one; what follows it goes there too."""
    # A check under way counts as a request.
    async with two(tmp_path, health_interval_s=3600) as (engines, proxy):
        await until(lambda: ready(proxy), all)
        for number in range(4):
            history = [{"role": "user", "content": f"chat {number}"}]
            for _ in range(3):
                answer = await proxy.chat(messages=history)
                history += [answer.json()["choices"][0]["message"]]
                history += [{"role": "user", "content": "and then?"}]

        assert [6, 6] == [num_completions(engine) for engine in engines]
        for engine in engines:
            bodies = [r.json() for r in engine.requests if r.path == "/v1/chat/completions"]
            began = [one["messages"][0]["content"] for one in bodies if one.get("max_tokens") != 1]
            assert 2 == len(set(began))


async def test_a_dead_replica_costs_no_request(tmp_path: Path) -> None:
    """What could not be sent there goes to another; when it is back, it gets requests again."""
    async with two(tmp_path) as (engines, proxy):
        await until(lambda: ready(proxy), all)
        await engines[0].stop()
        answers = [await proxy.chat(f"chat {number}") for number in range(6)]
        await until(lambda: ready(proxy), lambda now: now == [False, True])
        await engines[0].start()
        await until(lambda: ready(proxy), all)
        num_before = num_completions(engines[0])
        answers += [await proxy.chat(f"new chat {number}") for number in range(4)]

        assert [200] * 10 == [answer.status_code for answer in answers]
        assert num_completions(engines[0]) > num_before
        assert ["complete"] * 10 == [row.completion.state for row in await proxy.rows()]


@pytest.mark.parametrize("kind", ["openai", "vllm"])
async def test_embeddings_go_to_another_server_where_one_is_not_there(
    kind: str, tmp_path: Path
) -> None:
    """They are spread as new conversations are; who could not be reached is asked no more."""
    async with two(tmp_path, health_interval_s=3600, kind=kind) as (engines, proxy):
        for engine in engines:
            engine.handler = embedding(engine.handler)
        await until(lambda: ready(proxy), all)

        answers = [await embed(proxy) for _ in range(4)]
        spread = [num_embedded(engine) for engine in engines]
        await engines[0].stop()
        answers += [await embed(proxy) for _ in range(4)]
        left = [num_embedded(engine) for engine in engines]
        await engines[1].stop()
        refused = await embed(proxy)

        assert [200] * 8 == answers
        assert [[2, 2], [2, 6]] == [spread, left]
        assert 502 == refused
        assert 9 == proxy.services.metrics.registry.get_sample_value("strop_passed_requests_total")


def embedding(otherwise: Handler) -> Handler:
    """Return what answers requests for embeddings, and others as before."""

    async def answer(call: Call) -> None:
        if call.request.path == "/v1/embeddings":
            await call.json({"object": "list", "data": []})
        else:
            await otherwise(call)

    return answer


async def embed(proxy: Running) -> int:
    """Ask for an embedding, and return the status."""
    body = {"model": "tiny", "input": "hi"}
    return (await proxy.client.post("/v1/embeddings", json=body)).status_code


def num_embedded(engine: FakeEngine) -> int:
    """Return how many embeddings an engine was asked for."""
    return sum(request.path == "/v1/embeddings" for request in engine.requests)


@pytest.mark.parametrize("changed", [0, 1])
async def test_a_replica_that_serves_another_model_is_left_out(
    changed: int, tmp_path: Path
) -> None:
    """Whichever comes back with it; and /health and /metrics say so."""
    async with two(tmp_path) as (engines, proxy):
        await until(lambda: ready(proxy), all)
        engines[changed].handler = FakeVllm(base="another")
        await until(lambda: ready(proxy), lambda now: now == [changed != 0, changed != 1])
        health = (await proxy.client.get("/health")).json()["engine"]
        metrics = (await proxy.client.get("/metrics")).text
        answers = [await proxy.chat(f"chat {number}") for number in range(3)]

        assert "expected it to serve tiny, got another" in health["replicas"][changed]["reason"]
        assert f'strop_replica_ready{{url="{engines[changed].url}"}} 0.0' in metrics
        assert f'strop_replica_ready{{url="{engines[1 - changed].url}"}} 1.0' in metrics
        assert [200] * 3 == [answer.status_code for answer in answers]


async def test_with_all_replicas_gone_requests_fail_and_then_work(tmp_path: Path) -> None:
    """The engine is not ready when none is."""
    async with two(tmp_path) as (engines, proxy):
        for engine in engines:
            await engine.stop()
        refused = await proxy.chat()
        await until(lambda: proxy.client.get("/readyz"), lambda answer: answer.status_code != 200)
        await engines[1].start()
        await proxy.services.serving.wait_until_ready()
        served = await proxy.chat()

        assert refused.status_code in (502, 503)
        assert 200 == served.status_code


async def test_a_busy_replica_gets_fewer(tmp_path: Path) -> None:
    """A stream under way counts until it ends."""
    gate = asyncio.Event()

    async def wait(number: int) -> None:
        if number == 1:
            await gate.wait()

    # A check under way counts as a request.
    async with two(tmp_path, health_interval_s=3600) as (engines, proxy):
        await until(lambda: ready(proxy), all)
        engines[0].handler = engines[1].handler = FakeVllm(before_event=wait)
        streams = []
        # One conversation stays with its server; the others begin one after the other.
        for text in [*["one"] * 4, *"abcd"]:
            streams.append(asyncio.create_task(proxy.chat(text, stream=True)))
            await until(lambda: sum(map(num_completions, engines)) == len(streams))
        nums = [num_completions(engine) for engine in engines]
        gate.set()

        assert [200] * 8 == [(await stream).status_code for stream in streams]
    assert [4, 4] == nums


class Failing(FakeVllm):
    """A vLLM whose engine is dead: its server goes on, and fails at all that it is asked."""

    status = 500

    async def __call__(self, call: Call) -> None:
        """Say that all is well, and answer nothing."""
        if call.request.method == "POST":
            return await call.json({"error": {"message": "EngineCore died"}}, self.status)
        return await super().__call__(call)


class FailingStreams(Failing):
    """One that says so of a stream in the stream."""

    async def __call__(self, call: Call) -> None:
        """Begin a stream, and end it with an error."""
        if call.request.method == "POST" and call.request.json().get("stream"):
            events = b'data: {"error": {"message": "EngineCore died"}}\n\ndata: [DONE]\n\n'
            return await call.answer(events, headers=[("content-type", SSE)])
        return await super().__call__(call)


class Full(Failing):
    """One that takes no more now."""

    status = 429


class Breaking(FakeVllm):
    """One whose connections break off."""

    async def __call__(self, call: Call) -> None:
        """Say that all is well, and answer nothing."""
        if call.request.method == "POST":
            return call.reset()
        return await super().__call__(call)


class Late(FakeVllm):
    """One that is too busy to answer."""

    async def __call__(self, call: Call) -> None:
        """Say that all is well, and be long about the rest."""
        if call.request.method == "POST":
            return await call.hang()
        return await super().__call__(call)


class Odd(FakeVllm):
    """One that fails at certain requests."""

    async def __call__(self, call: Call) -> None:
        """Fail at what is odd."""
        if b"odd" in call.request.body:
            return await call.json({"error": {"message": "odd"}}, 500)
        return await super().__call__(call)


def said(caplog: pytest.LogCaptureFixture, message: str) -> list[str]:
    """Return the addresses that a line was logged of."""
    return [vars(one)["url"] for one in caplog.records if one.getMessage() == message]


@pytest.mark.parametrize(
    ("fake", "reason"), [(Failing(), "EngineCore died"), (Breaking(), "expected")]
)
async def test_a_replica_that_fails_at_everything_is_left_out_until_it_does_not(
    fake: Handler,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its list of models says nothing of that; the log says once why, and once that it is back."""
    monkeypatch.setattr(claims, "RETRY_S", 0.0)
    with caplog.at_level(logging.INFO):
        async with two(tmp_path, fake) as (engines, proxy):
            await until(lambda: ready(proxy), lambda now: now == [False, True])
            health = (await proxy.client.get("/health")).json()
            answers = [await proxy.chat(f"chat {number}") for number in range(4)]
            engines[0].handler = FakeVllm()
            await until(lambda: ready(proxy), all)

    assert reason in health["engine"]["replicas"][0]["reason"]
    assert ("ok", None) == (health["status"], health["engine"]["reason"])
    assert [200] * 4 == [answer.status_code for answer in answers]
    assert [engines[0].url] == said(caplog, "a replica is left out")
    assert [engines[1].url, engines[0].url] == said(caplog, "a replica serves")


@pytest.mark.parametrize("fake", [Failing(), FailingStreams()])
async def test_a_replica_that_begins_to_fail_is_left_out(fake: Handler, tmp_path: Path) -> None:
    """Several requests that fail there let it be verified again, at once."""
    async with two(tmp_path, health_interval_s=3600) as (engines, proxy):
        await until(lambda: ready(proxy), all)
        engines[0].handler = fake
        failing, _ = proxy.services.serving.engine.replicas
        # While it is verified, it may get requests again.
        while failing.is_in:
            await proxy.chat(stream=isinstance(fake, FailingStreams))

        answers = [await proxy.chat(f"chat {number}") for number in range(4)]

    assert [200] * 4 == [answer.status_code for answer in answers]


async def test_requests_that_fail_for_what_they_ask_leave_no_replica_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Both are verified again, and answer."""
    async with two(tmp_path, Odd(), health_interval_s=3600) as (engines, proxy):
        engines[1].handler = Odd()
        await until(lambda: ready(proxy), all)
        before = [num_verified(engine) for engine in engines]
        while any(before[at] == num_verified(engine) for at, engine in enumerate(engines)):
            await proxy.chat(f"odd {len(engines[0].requests)}")
        await until(lambda: ready(proxy), all)

    assert [] == said(caplog, "a replica is left out")


@pytest.mark.parametrize("fake", [Full(), Late()])
async def test_a_replica_that_is_too_busy_to_be_verified_is_not_left_out(
    fake: Handler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That says nothing of what it can do."""
    monkeypatch.setattr(claims, "TIMEOUT_S", 0.2)
    async with two(tmp_path, fake) as (engines, proxy):
        await until(lambda: ready(proxy), all)

    assert engines[0].url in said(caplog, "the engine could not be verified")
    assert [] == said(caplog, "a replica is left out")


async def test_where_all_replicas_fail_they_are_asked_and_it_is_said(tmp_path: Path) -> None:
    """There is none better, and people see what the engine answers."""
    async with two(tmp_path, health_interval_s=3600) as (engines, proxy):
        await until(lambda: ready(proxy), all)
        for engine in engines:
            engine.handler = Failing()
        answers = [await proxy.chat("chat")]
        while (health := (await proxy.client.get("/health")).json())["status"] == "ok":
            answers += [await proxy.chat(f"chat {len(answers)}")]
        answers += [await proxy.chat("and now?")]

    assert {500} == {answer.status_code for answer in answers}
    assert "degraded" == health["status"]
    assert "EngineCore died" in health["engine"]["reason"]


@pytest.mark.parametrize("kind", ["openai", "vllm"])
async def test_of_each_replica_that_goes_and_comes_back_a_line_is_logged(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One for each time, however often it is looked at meanwhile; also if it never was there."""
    with caplog.at_level(logging.INFO):
        async with two(tmp_path, kind=kind) as (engines, proxy):
            await until(lambda: ready(proxy), all)
            await engines[1].stop()
            await until(lambda: ready(proxy), lambda now: now == [True, False])
            num_looks = len(engines[0].requests)
            await until(lambda: len(engines[0].requests) > num_looks + 4)
            await engines[1].start()
            await until(lambda: ready(proxy), all)

    one, other = (engine.url for engine in engines)
    assert [other] == said(caplog, "a replica is left out")
    assert [one, other, other] == said(caplog, "a replica serves")


async def test_the_only_replica_that_is_there_may_fail(tmp_path: Path) -> None:
    """Then it is asked, and said to: of one that is gone nobody knows what it would answer."""
    async with two(tmp_path, health_interval_s=3600) as (engines, proxy):
        await until(lambda: ready(proxy), all)
        await engines[1].stop()
        engines[0].handler = Failing()
        number = 0
        while (health := (await proxy.client.get("/health")).json())["status"] == "ok":
            await proxy.chat(f"chat {number}")
            number += 1
        # More may have failed than it took, and then it is suspect for a moment.
        await until(lambda: ready(proxy), lambda now: now == [True, False])

    assert "EngineCore died" in health["engine"]["reason"]


class Picky(Odd):
    """One that also refuses certain requests, and is long about others."""

    async def __call__(self, call: Call) -> None:
        """Refuse what is bad, and never answer what is long."""
        if b"bad" in call.request.body:
            return await call.json({"error": {"message": "bad"}}, 400)
        if b"long" in call.request.body:
            return await call.hang()
        return await super().__call__(call)


async def test_what_says_nothing_of_an_engine_is_no_reason_to_check_it(tmp_path: Path) -> None:
    """A few that fail among others, refusals, and clients that leave; three that fail are, once."""
    async with FakeEngine(Picky()) as engine:
        settings = settings_for(engine.url, engine={"health_interval_s": 3600})
        async with running(settings, tmp_path / "home") as proxy:
            before = num_verified(engine)
            for text in ("odd", "odd", "even", "odd", "odd", "even", *["bad"] * 3):
                await proxy.chat(text)
            asking = [asyncio.create_task(proxy.chat(f"long {number}")) for number in range(3)]
            await until(lambda: sum(b"long" in one.body for one in engine.requests) == 3)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            states = [row.completion.state for row in await proxy.rows()]
            num_checks = sum(one.path == "/version" for one in engine.requests)
            for _ in range(3):
                await proxy.chat("odd")
            await until(lambda: num_verified(engine) > before)

    assert 3 == states.count("client_cancelled")
    assert (1, 2) == (num_checks, sum(one.path == "/version" for one in engine.requests))


async def test_a_replica_that_is_left_out_for_its_failures_is_not_asked_at_each_look(
    tmp_path: Path,
) -> None:
    """A dead engine has enough to do."""
    async with two(tmp_path, Failing()) as (engines, proxy):
        await until(lambda: ready(proxy), lambda now: now == [False, True])
        num_asked, num_looks = num_verified(engines[0]), len(engines[0].requests)
        await until(lambda: len(engines[0].requests) > num_looks + 8)

    assert 0 < num_asked == num_verified(engines[0])
