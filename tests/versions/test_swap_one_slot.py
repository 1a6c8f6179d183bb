"""An engine that holds one version at a time: requests wait while it changes, and none fails."""

import asyncio
from pathlib import Path

import pytest
from fake_adapters import BASE_WEIGHTS, FakeAdapters, Gate
from fake_engine import Call
from shelved import BASE
from swapped import swapped
from waiting import until

from strop.proxy.errors import ActivationFailed
from strop.proxy.settings.settings import Training
from strop.proxy.store.run_records import RunUpdate
from strop.proxy.versions.promotion import Promoter


async def test_running_requests_finish_and_new_ones_wait_for_the_new_version(
    tmp_path: Path,
) -> None:
    """Sixteen streams under way, sixteen requests meanwhile: no error, and the pause is said."""
    gate = Gate()

    async def third_event(number: int) -> None:
        if number == 3:
            await gate("")

    fake = FakeAdapters(before_event=third_event)
    async with swapped(tmp_path / "home", fake=fake, num_adapters=1) as it:
        await it.publish()
        leases = it.proxy.services.serving.leases
        running = [asyncio.create_task(it.proxy.chat(stream=True)) for _ in range(16)]
        await until(lambda: leases.count("base") == 16)

        switching = asyncio.create_task(it.swapper.activate("v1", actor="api"))
        await until(lambda: it.swapper.progress and it.swapper.progress.step == "draining")
        waiting = [asyncio.create_task(it.proxy.chat()) for _ in range(16)]
        await asyncio.sleep(0.05)
        assert (16, []) == (leases.total, fake.loads)
        gate.opened.set()
        done = await switching

        former, later = await asyncio.gather(*running), await asyncio.gather(*waiting)
        assert {("base", 200)} == {(a.headers["x-strop-adapter"], a.status_code) for a in former}
        assert {("v1", 200)} == {(a.headers["x-strop-adapter"], a.status_code) for a in later}
        assert all("[DONE]" in answer.text for answer in former)
        assert done.pause_ms > 0
        assert ["verifying", "converting", "draining", "loading", "probing", "switching"] == [
            *done.timings_ms
        ]
        assert [] == fake.displaced
        metrics = (await it.proxy.client.get("/metrics")).text
        assert "strop_swap_pause_seconds_count 1.0" in metrics


async def test_a_pin_to_what_is_not_loaded_is_a_conflict(tmp_path: Path) -> None:
    """The base too, while a version displaces it; an unknown version is unknown all the same."""
    async with swapped(tmp_path / "home", num_adapters=1) as it:
        await it.publish()
        await it.publish()
        await it.swapper.activate("v1", actor="api")

        answers = [await it.proxy.chat(model=f"tiny@{one}") for one in ("v1", "v2", "base", "v9")]

        assert [200, 409, 409, 404] == [answer.status_code for answer in answers]
        assert "version_not_served" == answers[1].json()["error"]["code"]
        assert ["tiny", "tiny@v1"] == it.proxy.services.serving.alias.names()


async def test_a_failed_probe_brings_the_version_before_back(tmp_path: Path) -> None:
    """It is loaded again before anybody goes on."""
    async with swapped(tmp_path / "home", num_adapters=1) as it:
        await it.publish()
        await it.publish()
        await it.swapper.activate("v1", actor="api")
        it.fake.weights_of = lambda name, folder: BASE_WEIGHTS if "v2" in name else folder

        with pytest.raises(ActivationFailed, match="serves the base"):
            await it.swapper.activate("v2", actor="api")

        assert ("v1", "v1") == (await it.served(), await it.active())
        assert ["tiny@v1", "tiny@v2", "tiny@v1"] == it.fake.loads
        assert {"tiny@v1"} == {*it.fake.adapters}


async def test_the_base_is_activated_by_unloading(tmp_path: Path) -> None:
    """And a rollback loads the version again, and proves it."""
    async with swapped(tmp_path / "home", num_adapters=1) as it:
        await it.publish()
        await it.swapper.activate("v1", actor="api")

        await it.swapper.activate("base", actor="api")
        assert ("base", {}) == (await it.served(), it.fake.adapters)
        done = await it.swapper.rollback(actor="api")

        assert ("v1", "proven") == (await it.served(), done.probe and done.probe.outcome)
        assert [] == it.fake.displaced


async def test_answers_that_take_too_long_stop_the_switch_and_not_the_requests(
    tmp_path: Path,
) -> None:
    """Nothing was loaded yet, so those that waited go on as before."""
    gate = Gate()

    async def first_event(_: int) -> None:
        await gate("")

    fake = FakeAdapters()
    async with swapped(tmp_path / "home", fake=fake, num_adapters=1, hold_s=0.2) as it:
        fake.before_event = first_event
        await it.publish()
        running = asyncio.create_task(it.proxy.chat(stream=True))
        await gate.reached.wait()

        with pytest.raises(ActivationFailed, match=r"adapters\.swap_hold_s = 0\.2 s"):
            await it.swapper.activate("v1", actor="api")

        assert ("base", []) == (await it.served(), fake.loads)
        gate.opened.set()
        assert "[DONE]" in (await running).text


async def test_a_promotion_that_answers_hold_up_is_tried_again(tmp_path: Path) -> None:
    """It says nothing about the version; a failure of its own would settle it."""
    gate = Gate()

    async def first_event(_: int) -> None:
        await gate("")

    fake, manual = FakeAdapters(), Training(promote="manual")
    # By hand: strop's own promoter looks now and then.
    async with swapped(
        tmp_path / "home", fake=fake, num_adapters=1, hold_s=0.2, training=manual
    ) as it:
        store = it.proxy.services.store
        run = await store.runs.create(
            objective="topr", preset="balanced", parent=None, base=BASE, requested_by="test"
        )
        await store.runs.update(run.id, RunUpdate(state="running"))
        await it.publish(run=run.id)
        await store.runs.update(run.id, RunUpdate(state="gating"))
        await store.runs.update(run.id, RunUpdate(state="passed"))
        promoter = Promoter(Training(), store, it.swapper, retry_after_s=0)
        fake.before_event = first_event
        running = asyncio.create_task(it.proxy.chat(stream=True))
        await gate.reached.wait()

        await promoter.promote()
        held_up = await it.active()
        gate.opened.set()
        await running
        await promoter.promote()

        assert ("base", "v1") == (held_up, await it.active())
        kinds = [kind for kind in await it.events("v1") if kind.startswith("activat")]
        assert ["activating", "activation_failed", "activating", "activated"] == kinds


async def test_who_waits_for_longer_than_allowed_gets_503(tmp_path: Path) -> None:
    """With the time after which to try again."""
    gate = Gate()
    fake = FakeAdapters(before_load=gate)
    async with swapped(tmp_path / "home", fake=fake, num_adapters=1, hold_s=0.2) as it:
        await it.publish()
        switching = asyncio.create_task(it.swapper.activate("v1", actor="api"))
        await gate.reached.wait()

        answer = await it.proxy.chat()

        assert (503, "switching_versions") == (answer.status_code, answer.json()["error"]["code"])
        assert "2" == answer.headers["retry-after"]
        gate.opened.set()
        await switching
        assert "v1" == await it.served()


async def test_a_restarted_engine_gets_the_active_version_again(tmp_path: Path) -> None:
    """In its one slot, proven, before anybody is answered by its base."""
    async with swapped(tmp_path / "home", num_adapters=1) as it:
        await it.publish()
        await it.swapper.activate("v1", actor="api")

        it.fake.restart()
        await until(lambda: it.fake.loads == ["tiny@v1", "tiny@v1"])
        await it.proxy.services.serving.wait_until_ready()

        assert "v1" == await it.served()
        assert [] == it.fake.displaced


class Slow(FakeAdapters):
    """Takes its time to say that it lacks a version."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    async def _complete(self, call: Call, *, is_chat: bool) -> None:
        if is_chat and call.request.json()["model"] != self.base:
            await self.gate("")
        await super()._complete(call, is_chat=is_chat)


async def test_a_request_whose_version_was_lost_and_then_replaced_may_be_sent_again(
    tmp_path: Path,
) -> None:
    """The engine's 404 is for good, to a client; this passes."""
    fake = Slow()
    # Too seldom to find out before the request does.
    async with swapped(tmp_path / "home", fake=fake, num_adapters=1, health_interval_s=3600) as it:
        for _ in range(2):
            await it.publish()
        await it.swapper.activate("v1", actor="api")
        it.fake.restart()
        asking = asyncio.create_task(it.proxy.chat())
        await fake.gate.reached.wait()
        switching = asyncio.create_task(it.swapper.activate("v2", actor="api"))
        await until(lambda: it.swapper.progress and it.swapper.progress.step == "draining")

        fake.gate.opened.set()
        answer = await asking
        await switching

        error = answer.json()["error"]
        assert (503, "engine_not_ready") == (answer.status_code, error["code"])
        assert "has lost v1, and v2 has taken its place; try again soon" in error["message"]
        assert "v2" == await it.served()


async def test_requests_that_find_their_version_gone_do_not_wait_for_each_other(
    tmp_path: Path,
) -> None:
    """It is loaded and proven again, once, and then they are answered."""
    fake = Slow()
    # Too seldom to find out before the requests do.
    async with swapped(tmp_path / "home", fake=fake, num_adapters=1, health_interval_s=3600) as it:
        await it.publish()
        await it.swapper.activate("v1", actor="api")
        leases = it.proxy.services.serving.leases
        it.fake.restart()
        asking = [asyncio.create_task(it.proxy.chat()) for _ in range(4)]
        # Who comes once it is known would not be served.
        await until(lambda: leases.count("v1") == 4)

        fake.gate.opened.set()
        answers = await asyncio.gather(*asking)

        assert [(200, "v1")] * 4 == [
            (answer.status_code, answer.headers["x-strop-adapter"]) for answer in answers
        ]
        assert ["tiny@v1"] * 2 == it.fake.loads
        assert 0 == leases.total


async def test_a_pin_of_the_active_version_that_the_engine_lost_is_not_ready(
    tmp_path: Path,
) -> None:
    """As without the pin: to activate what is active already would not help."""
    async with swapped(tmp_path / "home", num_adapters=1) as it:
        version = await it.publish()
        await it.swapper.activate(version, actor="api")
        it.fake.load_error = "no more memory"
        it.fake.restart()
        await until(lambda: "no more memory" in it.proxy.services.serving.alias.why_not)

        unpinned = await it.proxy.chat(model="tiny")
        pinned = await it.proxy.chat(model=f"tiny@{version}")

    assert (503, "engine_not_ready") == (pinned.status_code, pinned.json()["error"]["code"])
    assert unpinned.json() == pinned.json()
