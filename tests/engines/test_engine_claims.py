"""What an engine claims and doesn't deliver is found when it is first reached, and said."""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_engine import SSE, Call, FakeEngine, Handler
from fake_vllm import FakeVllm
from running import running, settings_for
from waiting import LIMIT_S, until

from strop.proxy.engines import claims
from strop.proxy.engines.base import AdaptersFolder
from strop.proxy.engines.calls import Calls, credentials
from strop.proxy.engines.vllm import Vllm
from strop.proxy.errors import EngineNotReady, UpstreamError, UpstreamUnreachable
from strop.proxy.upstream.upstream import Upstream

Change = Callable[[dict[str, Any]], None]

SELDOM = {"health_interval_s": 3600}


def body(**choice: Any) -> bytes:
    """Return a chat answer of one token, forced."""
    whole = {
        "index": 0,
        "message": {"role": "assistant", "content": "!"},
        "logprobs": {"content": [{"token": "!", "logprob": -9.5, "bytes": [33]}]},
        "token_ids": [0],
        **choice,
    }
    return json.dumps({"choices": [whole], "prompt_token_ids": [1]}).encode()


def stream(**choice: Any) -> bytes:
    """Return the same as a stream."""
    return b"data: " + body(**choice) + b"\n\ndata: [DONE]\n\n"


def test_an_engine_that_delivers_all_falls_short_of_nothing() -> None:
    """Ids, the prompt's too, and raw logprobs."""
    found = claims.judge("chat", body(), stream(), body())

    assert claims.Found(True, True, True, True, "raw", hides_ids=False) == found


@pytest.mark.parametrize(
    ("logprob", "kind"),
    [(-9.5, "raw"), (-0.0001, "processed"), (0.0, "processed"), (7.2, "logits")],
)
def test_what_logprobs_are_shows_in_that_of_a_forced_token(logprob: float, kind: str) -> None:
    """Forced by a bias, it is certain where the bias counts; a logit may be anything."""
    forced = body(logprobs={"content": [{"token": "!", "logprob": logprob}]})

    assert kind == claims.judge("chat", forced, stream(), b"").kind


def test_an_engine_that_does_not_force_the_token_leaves_open_what_its_logprobs_are() -> None:
    """Another token was drawn, so its logprob says nothing."""
    assert claims.judge("chat", body(token_ids=[7]), stream(), b"").kind is None


def test_what_is_missing_in_streams_alone_is_missing() -> None:
    """Ids count where both have them, logprobs each for itself."""
    found = claims.judge("chat", body(), stream(token_ids=None, logprobs=None), b"")

    assert (False, True, False) == (found.token_ids, found.logprobs, found.stream_logprobs)


def test_ids_that_go_with_the_reasoning_are_noticed() -> None:
    """The engine gives them, but not where the client wants no reasoning."""
    assert claims.judge("chat", body(), stream(), body(token_ids=None)).hides_ids


class OldVllm(FakeVllm):
    """A vLLM from before `return_token_ids`: it accepts the field and does nothing."""

    async def __call__(self, call: Call) -> None:
        """Answer as if it had not been asked for ids, nor for adapters."""
        if call.request.path.endswith("_lora_adapter"):
            return await call.json({"detail": "Not Found"}, 404)
        if call.request.method == "POST":
            fields = {k: v for k, v in call.request.json().items() if k != "return_token_ids"}
            call.request = type(call.request)(
                *("POST", call.request.target, call.request.headers),
                json.dumps(fields).encode(),
            )
        return await super().__call__(call)


async def test_an_old_vllm_is_found_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log, in /health, and in each snapshot: there are no ids."""
    async with (
        FakeEngine(OldVllm()) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        await proxy.chat()
        health = (await proxy.client.get("/health")).json()["engine"]
        (choice,) = (await proxy.row()).completion.choices

    assert "vLLM 0.10.2 or newer" in health["shortfalls"][0]
    assert health["capabilities"]["token_ids"] is False
    assert "falls short" in caplog.text
    assert choice.token_ids is None
    assert choice.logprobs is not None


@dataclass
class Telling(FakeVllm):
    """One that says how it samples where a request doesn't, as strop's own engine does."""

    said: object = None

    def _cards(self) -> list[dict[str, object]]:
        own, *rest = super()._cards()
        other = {**own, "id": "other", "parent": own["id"], "sampling": {"temperature": 0.1}}
        return [other, {**own, "sampling": self.said}, *rest]


@pytest.mark.parametrize(
    ("said", "asked", "recorded"),
    [
        ({"temperature": 0.6, "top_k": 20}, {}, {"temperature": 0.6, "top_k": 20}),
        ({"temperature": 0.6}, {"temperature": None}, {"temperature": 0.6}),
        ({"temperature": 0.6, "top_k": 20}, {"temperature": 0, "top_p": 0.5},
         {"temperature": 0, "top_p": 0.5, "top_k": 20}),
        ({"top_k": 20, "temperature": True, "top_p": 10**30, "min_p": "0.1", "x": 2}, {},
         {"top_k": 20}),
        ("greedy", {}, {}),
    ],
)  # fmt: skip
async def test_the_record_has_how_it_was_sampled(
    tmp_path: Path, said: object, asked: dict[str, object], recorded: dict[str, object]
) -> None:
    """By what the client asked for, and for the rest by what the engine says that it does."""
    async with (
        FakeEngine(Telling(said=said)) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        await proxy.chat(**asked)
        completion = (await proxy.row()).completion

    assert recorded == json.loads(completion.sampling)


async def test_how_it_samples_is_read_whenever_it_is_looked_at() -> None:
    """It may be back with another model; and what is found out of the rest keeps it."""
    fake = Telling(said={"temperature": 0.6})
    seen = []
    async with FakeEngine(fake) as engine:
        upstream = Upstream(engine.url)
        driver = Vllm(upstream)
        for said in ({"temperature": 0.6}, {"temperature": 0.7}, None):
            fake.said = said
            await driver.check()
            await driver.verify("tiny")
            seen.append(driver.capabilities.sampling)
        await upstream.aclose()

    assert [{"temperature": 0.6}, {"temperature": 0.7}, {}] == seen


async def test_an_engine_without_the_adapter_routes_is_found_out() -> None:
    """It serves its bases, and strop says how to start it."""
    async with FakeEngine(OldVllm()) as engine:
        upstream = Upstream(engine.url)
        driver = Vllm(upstream, adapters=AdaptersFolder(Path("/adapters")))
        await driver.verify("tiny")
        await upstream.aclose()

    assert 0 == driver.capabilities.adapters
    assert any("--enable-lora" in what for what in driver.shortfalls)


@pytest.mark.parametrize("has_metrics", [True, False])
@pytest.mark.parametrize("has_lora", [True, False])
async def test_an_engine_with_the_adapter_routes_alone_is_found_out(
    has_lora: bool, has_metrics: bool
) -> None:
    """Without --enable-lora they load nothing. What is asked for that stays unloaded."""
    fake = FakeVllm(has_lora=has_lora, has_metrics=has_metrics)
    async with FakeEngine(fake) as engine:
        upstream = Upstream(engine.url)
        driver = Vllm(upstream, adapters=AdaptersFolder(Path("/adapters")))
        await driver.verify("tiny")
        await upstream.aclose()

    is_loud = any(asked.path == "/v1/load_lora_adapter" for asked in engine.requests)
    assert (2 if has_lora else 0, {}) == (driver.capabilities.adapters, fake.adapters)
    assert has_lora == (driver.shortfalls == ())
    assert is_loud == (not (has_lora and has_metrics))


async def test_logits_are_neither_asked_for_nor_kept(tmp_path: Path) -> None:
    """They are no logprobs; the ids are kept without them."""

    class Logits(FakeVllm):
        async def __call__(self, call: Call) -> None:
            if call.request.method == "POST" and call.request.json().get("stream"):
                logprobs = {"content": [{"token": "!", "logprob": 12.5, "bytes": [33]}]}
                return await call.answer(stream(logprobs=logprobs), headers=[("content-type", SSE)])
            return await super().__call__(call)

    async with (
        FakeEngine(Logits()) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        await proxy.chat()
        (choice,) = (await proxy.row()).completion.choices
        health = (await proxy.client.get("/health")).json()["engine"]

    assert choice.token_ids is not None
    assert choice.logprobs is None
    assert any("logits" in what for what in health["shortfalls"])


async def test_an_engine_without_a_chat_template_is_asked_for_text() -> None:
    """A base model answers chats with an error."""

    async def handler(call: Call) -> None:
        if call.request.path == "/v1/chat/completions":
            await call.json({"error": {"message": "no chat template"}}, 400)
        else:
            await FakeVllm()(call)

    async with FakeEngine(handler) as engine:
        upstream = Upstream(engine.url)
        found = await claims.find(Calls(upstream, []), "tiny")
        await upstream.aclose()

    assert found.token_ids
    assert found.stream_logprobs


async def test_an_engine_that_answers_nothing_is_taken_at_its_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A full one, say: it is asked again, but not at once, unless it has been away."""

    async def handler(call: Call) -> None:
        await call.json({"error": {"message": "no room"}}, 503)

    async with FakeEngine(handler) as engine:
        upstream = Upstream(engine.url)
        driver, verification = Vllm(upstream), claims.Verification()
        with caplog.at_level(logging.WARNING):
            await verification.attempt(driver, "tiny")
        num_asked = len(engine.requests)
        await verification.attempt(driver, "tiny")
        assert (False, num_asked) == (verification.is_done, len(engine.requests))
        assert driver.capabilities.token_ids

        engine.handler = FakeVllm()
        verification.forget()
        await verification.attempt(driver, "tiny")
        await upstream.aclose()

    assert num_asked > 0
    assert verification.is_done
    assert 1 == caplog.text.count("could not be verified")
    assert "no room" in caplog.records[0].__dict__["reason"]


class Dead(FakeVllm):
    """A vLLM whose engine is dead: its server goes on, and fails at all that it is asked."""

    async def __call__(self, call: Call) -> None:
        """Say that all is well, and answer nothing."""
        if call.request.method == "POST":
            return await call.json({"error": {"message": "EngineCore died"}}, 500)
        return await super().__call__(call)


async def test_an_engine_that_fails_at_everything_is_not_called_ready_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked all the same, there being no other; log and /health say what it fails at."""
    monkeypatch.setattr(claims, "RETRY_S", 0.0)

    often = {"health_interval_s": 0.05}
    with caplog.at_level(logging.INFO):
        async with (
            FakeEngine(Dead()) as engine,
            running(settings_for(engine.url, engine=often), tmp_path / "home") as proxy,
        ):
            answer = await proxy.chat()
            health = (await proxy.client.get("/health")).json()
            ready = await proxy.client.get("/readyz")
            await until(lambda: sum(one.path == "/version" for one in engine.requests) > 3)
            logged = [one.getMessage() for one in caplog.records]
            engine.handler = FakeVllm()
            await until(lambda: "engine ready" in [one.getMessage() for one in caplog.records])
            after = (await proxy.client.get("/health")).json()

    assert (500, 200) == (answer.status_code, ready.status_code)
    assert ("degraded", True) == (health["status"], health["engine"]["ready"])
    assert "EngineCore died" in health["engine"]["reason"]
    assert 1 == logged.count("engine in use, though it fails")
    assert "engine ready" not in logged
    assert ("ok", None) == (after["status"], after["engine"]["reason"])


async def test_an_engine_that_begins_to_fail_is_found_out(tmp_path: Path) -> None:
    """By the requests that fail there; its list of models says nothing of that."""
    async with (
        FakeEngine(FakeVllm()) as engine,
        running(settings_for(engine.url, engine=SELDOM), tmp_path / "home") as proxy,
    ):
        engine.handler = Dead()
        while (await proxy.client.get("/health")).json()["status"] == "ok":
            await proxy.chat()

        assert "EngineCore died" in proxy.services.serving.failure


async def test_an_engine_in_doubt_is_verified_again_and_what_it_lacks_is_not_said_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor is it asked each time that a request fails."""
    async with FakeEngine(OldVllm()) as engine:
        upstream = Upstream(engine.url)
        driver, verification = Vllm(upstream), claims.Verification()
        nums = []
        for _ in range(3):
            await verification.attempt(driver, "tiny")
            verification.doubt()
            nums.append(len(engine.requests))
        await upstream.aclose()

    assert 0 < nums[0] < nums[1] == nums[2]
    assert 1 == caplog.text.count("falls short")


async def test_an_engine_that_can_not_force_a_token_is_found_out_too() -> None:
    """But for what its logprobs are: a vLLM that decodes by speculation refuses a bias."""

    async def handler(call: Call) -> None:
        if b"logit_bias" in call.request.body:
            await call.json({"error": {"message": "not yet supported"}}, 400)
        else:
            await FakeVllm()(call)

    async with FakeEngine(handler) as engine:
        upstream = Upstream(engine.url)
        found = await claims.find(Calls(upstream, []), "tiny")
        await upstream.aclose()

    assert found.token_ids
    assert found.stream_logprobs
    assert found.kind is None


async def test_what_an_engine_refuses_is_said() -> None:
    """Also where it answers streams alone."""

    async def handler(call: Call) -> None:
        if call.request.json().get("stream"):
            await FakeVllm()(call)
        else:
            await call.json({"error": {"message": "streams only"}}, 400)

    async with FakeEngine(handler) as engine:
        upstream = Upstream(engine.url)
        with pytest.raises(UpstreamError, match=r"status 400.*streams only"):
            await claims.find(Calls(upstream, []), "tiny")
        await upstream.aclose()


async def _garbled(call: Call) -> None:
    await call.answer(b"no gzip", headers=[("content-encoding", "gzip")])


async def _broken(call: Call) -> None:
    await call.send(b"what?\r\n\r\n")


async def _hanging(call: Call) -> None:
    await call.hang()


@pytest.mark.parametrize(
    ("handler", "limit_s", "came"),
    [
        (_garbled, LIMIT_S, "decompressing"),
        (_broken, LIMIT_S, "HTTP"),
        (_hanging, 0.2, "none within 0.2 s"),
    ],
)
async def test_an_answer_that_can_not_be_had_is_the_engines_error(
    handler: Handler, limit_s: float, came: str
) -> None:
    """Whatever a proxy before it does to its answers; the reason is said once."""
    async with FakeEngine(handler) as engine:
        upstream = Upstream(engine.url)
        with pytest.raises(
            UpstreamUnreachable, match=f"^expected an answer from.*{came}"
        ) as caught:
            await Calls(upstream, []).ask("GET", "/v1/models", timeout_s=limit_s)
        await upstream.aclose()

    assert caught.value.message.startswith(f"expected an answer from {engine.url}")
    assert 1 == caught.value.message.count("expected")


async def test_a_key_may_be_any_text() -> None:
    """As bytes it goes out as it is."""
    async with FakeEngine(FakeVllm()) as engine:
        upstream = Upstream(engine.url)
        await Calls(upstream, credentials("schlüssel")).ask("GET", "/v1/models")
        await upstream.aclose()

    sent = engine.requests[0].header("authorization") or ""
    assert "Bearer schlüssel" == sent.encode("latin-1").decode()


async def test_an_engine_is_verified_again_when_it_comes_back(tmp_path: Path) -> None:
    """It may be another one by then."""
    async with (
        FakeEngine(OldVllm()) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        assert proxy.services.serving.engine.shortfalls
        await engine.stop()
        proxy.services.serving.suspect()
        await until(lambda: not proxy.services.serving.is_ready)
        engine.handler = FakeVllm()
        await engine.start()
        await proxy.services.serving.wait_until_ready()

        assert () == proxy.services.serving.engine.shortfalls


async def test_what_is_suspected_during_a_check_is_checked_again(tmp_path: Path) -> None:
    """The check under way may have passed what broke, and the next is far off."""
    checks: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    class Held(FakeVllm):
        async def __call__(self, call: Call) -> None:
            if call.request.path == "/version":
                checks.put_nowait(let_go := asyncio.Event())
                await let_go.wait()
            await super().__call__(call)

    async with (
        FakeEngine(FakeVllm()) as engine,
        running(settings_for(engine.url, engine=SELDOM), tmp_path / "home") as proxy,
    ):
        engine.handler = Held()
        proxy.services.serving.suspect()
        first = await checks.get()
        proxy.services.serving.suspect()
        first.set()
        (await checks.get()).set()


async def asked(engine: FakeEngine, verification: claims.Verification, driver: Vllm) -> bool:
    """Attempt a verification; return whether the engine was asked for it."""
    before = len(engine.requests)
    await verification.attempt(driver, "tiny")
    return len(engine.requests) > before


async def test_a_doubt_asks_an_engine_that_was_too_busy_and_not_one_that_is_known_to_fail() -> None:
    """That one is asked again in its time; what comes back is asked at once, and may be doubted."""

    async def full(call: Call) -> None:
        await call.json({"error": {"message": "no room"}}, 429)

    async with FakeEngine(Dead()) as engine:
        upstream = Upstream(engine.url)
        driver, verification = Vllm(upstream), claims.Verification()
        failing = [await asked(engine, verification, driver)]
        verification.doubt()
        failing.append(await asked(engine, verification, driver))
        verification.forget()
        failure = verification.failure
        engine.handler = full
        busy = [await asked(engine, verification, driver)]
        verification.doubt()
        busy.append(await asked(engine, verification, driver))
        verification.forget()
        engine.handler = FakeVllm()
        well = [await asked(engine, verification, driver)]
        verification.doubt()
        well.append(await asked(engine, verification, driver))
        await upstream.aclose()

    assert ([True, False], "", [True, True], [True, True]) == (failing, failure, busy, well)


async def test_what_an_engine_lacks_is_said_again_when_it_comes_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It may be another one."""
    async with FakeEngine(OldVllm()) as engine:
        upstream = Upstream(engine.url)
        driver, verification = Vllm(upstream), claims.Verification()
        for _ in range(2):
            await verification.attempt(driver, "tiny")
            verification.forget()
        await upstream.aclose()

    assert 2 == caplog.text.count("falls short")


@pytest.mark.parametrize("statuses", [(500, 400), (400, 500)])
async def test_an_engine_that_fails_at_what_it_does_not_refuse_fails(
    statuses: tuple[int, int],
) -> None:
    """Of chats and text completions, many have one alone."""

    async def handler(call: Call) -> None:
        status = statuses["chat" not in call.request.path]
        await call.json({"error": {"message": "no"}}, status)

    async with FakeEngine(handler) as engine:
        upstream = Upstream(engine.url)
        with pytest.raises(EngineNotReady):
            await Vllm(upstream).verify("tiny")
        await upstream.aclose()


class Partial(FakeVllm):
    """One that fails at what few clients ask for, or has other work than completions."""

    fails_at = b""
    status = 500

    async def __call__(self, call: Call) -> None:
        """Fail at that alone; 0 breaks off."""
        if call.request.path.endswith("completions") and self.fails_at in call.request.body:
            if not self.status:
                return call.reset()
            return await call.json({"error": {"message": "no"}}, self.status)
        return await super().__call__(call)


@pytest.mark.parametrize(
    ("fails_at", "status"),
    [
        (b"logit_bias", 500),
        (b"logit_bias", 0),
        (b"include_reasoning", 0),
        (b"", 501),
        (b"", 503),
        (b"", 504),
    ],
)
async def test_an_engine_is_well_that_fails_at_nothing_which_clients_need(
    fails_at: bytes, status: int
) -> None:
    """It can't force a token; or has embeddings alone (501), is full (503), or late (504)."""
    fake = Partial()
    fake.fails_at, fake.status = fails_at, status
    async with FakeEngine(fake) as engine:
        upstream = Upstream(engine.url)
        verification = claims.Verification()
        await verification.attempt(Vllm(upstream), "tiny")
        await upstream.aclose()

    assert ("", bool(fails_at)) == (verification.failure, verification.is_done)
