"""Traffic moves when the engine has shown that it serves the version, and not before."""

import asyncio
import contextlib
import functools
import json
import logging
import math
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import fake_adapters
import fake_probe
import pytest
import shelved
from fake_adapters import BASE_WEIGHTS, FakeAdapters, Gate
from fake_engine import Call, FakeEngine
from running import Running, running, settings_for
from store_values import rating
from swapped import swapped
from waiting import until

from strop.adapters import importing, manifest, probe_codec
from strop.adapters.library import Library
from strop.adapters.probe import Item, Probe
from strop.configs import demo_model
from strop.proxy import run_requests
from strop.proxy.engines.base import AdaptersFolder
from strop.proxy.engines.replicas import Replicas
from strop.proxy.engines.vllm import Vllm
from strop.proxy.errors import ActivationFailed, BadRequest, Conflict, EngineNotReady, NotFound
from strop.proxy.serving import Serving
from strop.proxy.store import run_lock
from strop.proxy.store.run_records import RunUpdate
from strop.proxy.upstream.upstream import Upstream
from strop.proxy.versions.loading import GONE


async def test_an_activated_version_answers_and_the_one_before_can_be_pinned(
    tmp_path: Path,
) -> None:
    """Each answer and each record says which version it is from."""
    async with swapped(tmp_path / "home") as it:
        first, second = await it.publish(), await it.publish()

        await it.swapper.activate(first, actor="api")
        done = await it.swapper.activate(second, actor="api")

        assert ("v2", "v1", "proven") == (
            done.version,
            done.previous,
            done.probe and done.probe.outcome,
        )
        assert ["verifying", "converting", "loading", "probing", "switching"] == [*done.timings_ms]
        assert 0 == done.pause_ms
        served = [await it.served(name) for name in ("tiny", "tiny@v1", "tiny@base")]
        assert ["v2", "v1", "base"] == served
        rows = [row.completion for row in await it.proxy.rows()]
        assert [("v2", "tiny@v2"), ("v1", "tiny@v1"), ("base", "tiny")] == [
            (row.version, row.served) for row in rows
        ]
        assert ("active", "retired") == (
            (await it.version("v2")).state,
            (await it.version("v1")).state,
        )
        listed = (await it.proxy.client.get("/v1/models")).json()["data"]
        assert ["tiny", "tiny@base", "tiny@v1", "tiny@v2"] == [one["id"] for one in listed]


async def test_the_base_can_be_activated_and_rolled_back_from(tmp_path: Path) -> None:
    """It is a version like any other, and needs no loading."""
    async with swapped(tmp_path / "home") as it:
        version = await it.publish()
        await it.swapper.activate(version, actor="api")

        done = await it.swapper.activate("base", actor="api")
        assert ("base", {"switching"}) == (await it.served(), {*done.timings_ms})
        back = await it.swapper.rollback(actor="cli")

        assert ("v1", "v1", "v1") == (back.version, await it.served(), await it.active())
        assert [
            *("created", "passed", "activating", "activated"),
            *("deactivated", "activating", "rolled_back"),
        ] == await it.events(version)
        # It was still loaded, and proven.
        assert ["tiny@v1"] == it.fake.loads


async def test_with_nothing_before_it_there_is_no_rollback(tmp_path: Path) -> None:
    """The error says so."""
    async with swapped(tmp_path / "home") as it:
        with pytest.raises(Conflict, match="none was active before"):
            await it.swapper.rollback(actor="api")


def serves_base(_name: str, _folder: str) -> str:
    return BASE_WEIGHTS


def serves_parent(name: str, folder: str) -> str:
    return folder.replace("/v2", "/v1")


@pytest.mark.parametrize("scores", [True, False], ids=["scores", "generates only"])
@pytest.mark.parametrize(
    ("lie", "said"), [(serves_base, "serves the base"), (serves_parent, "serves the parent")]
)
async def test_an_engine_that_serves_something_else_is_found_out(
    lie: Callable[[str, str], str], said: str, scores: bool, tmp_path: Path
) -> None:
    """It said that it had loaded the version; the one before serves on, and the record says why."""
    async with swapped(tmp_path / "home", scores=scores) as it:
        parent = await it.publish()
        version = await it.publish(parent=parent)
        await it.swapper.activate(parent, actor="api")
        it.fake.weights_of = lie

        with pytest.raises(ActivationFailed, match=said):
            await it.swapper.activate(version, actor="api")

        assert ("v1", "v1") == (await it.served(), await it.active())
        assert ["tiny@v2"] == it.fake.unloaded
        assert "tiny@v2" not in it.fake.adapters
        (event, *_) = await it.proxy.services.store.versions.list_events(version, limit=1)
        detail = json.loads(event.detail)
        assert ("activation_failed", "api") == (event.kind, event.actor)
        assert said in detail["reason"]
        assert "failed" == detail["probe"]["outcome"]
        assert "ready" == (await it.version(version)).state


async def test_a_prefix_cache_that_forgets_whose_it_is_is_found_out(tmp_path: Path) -> None:
    """Cold answers are right; warm ones come from what another version computed."""
    async with swapped(tmp_path / "home", fake=FakeAdapters(shares_cache=True)) as it:
        version = await it.publish()

        with pytest.raises(ActivationFailed, match="right with a cold prefix cache, wrong with a"):
            await it.swapper.activate(version, actor="api")

        assert "base" == await it.served()


async def test_a_version_close_to_its_parent_is_never_called_proven(tmp_path: Path) -> None:
    """It serves, and is said to be indistinguishable."""
    async with swapped(tmp_path / "home") as it:
        parent = await it.publish()
        folder = it.library.path_of("v2")
        made = fake_adapters.probe_of(folder)
        close = [
            Item(i.prompt_ids, i.ids, i.margins, i.candidate, i.candidate, i.base)
            for i in made.items
        ]
        version = await it.publish(parent=parent, probe=Probe(tuple(close), "float32"))

        done = await it.swapper.activate(version, actor="api")

        assert done.probe is not None
        assert ("indistinguishable", "v2") == (done.probe.outcome, await it.served())


async def test_an_engine_that_refuses_to_load_changes_nothing(tmp_path: Path) -> None:
    """Its own words are in the error."""
    async with swapped(tmp_path / "home") as it:
        version = await it.publish()
        it.fake.load_error = "LoRA rank 32 is greater than max_lora_rank 16."

        with pytest.raises(ActivationFailed, match="LoRA rank 32 is greater than max_lora_rank 16"):
            await it.swapper.activate(version, actor="api")
        it.fake.load_error = None

        assert "base" == await it.served()
        await it.swapper.activate(version, actor="api")
        assert "v1" == await it.served()
        metrics = (await it.proxy.client.get("/metrics")).text
        assert 'strop_activations_total{outcome="failed"} 1.0' in metrics
        assert 'strop_activations_total{outcome="switched"} 1.0' in metrics
        assert "strop_active_version 1.0" in metrics


async def test_one_changed_byte_is_refused_and_the_active_version_stays(tmp_path: Path) -> None:
    """The error names the file, and the version counts as missing from then on."""
    async with swapped(tmp_path / "home") as it:
        first, second = await it.publish(), await it.publish()
        await it.swapper.activate(first, actor="api")
        file = it.library.path_of(second) / "adapter_model.safetensors"
        data = bytearray(file.read_bytes())
        data[99] ^= 1
        file.write_bytes(data)

        with pytest.raises(ActivationFailed, match=r"adapter_model\.safetensors of v2 was changed"):
            await it.swapper.activate(second, actor="api")

        assert ("v1", "missing") == (await it.served(), (await it.version(second)).state)
        assert ["tiny@v1"] == it.fake.loads
        with pytest.raises(Conflict, match="v2 is missing"):
            await it.swapper.activate(second, actor="api", force=True)


async def test_the_same_version_joins_and_another_is_refused(tmp_path: Path) -> None:
    """One activation runs at a time; requests are served meanwhile."""
    gate = Gate()
    async with swapped(tmp_path / "home", fake=FakeAdapters(before_load=gate)) as it:
        first, second = await it.publish(), await it.publish()
        running = [asyncio.create_task(it.swapper.activate(first, actor="api")) for _ in range(2)]
        await gate.reached.wait()

        with pytest.raises(Conflict, match="v1 is being activated"):
            await it.swapper.activate(second, actor="api")
        progress = it.swapper.progress
        assert progress is not None
        assert ("v1", "loading") == (progress.version, progress.step)
        assert "base" == await it.served()
        gate.opened.set()

        one, other = await asyncio.gather(*running)
        assert one is other
        assert it.swapper.progress is None
        assert 1 == (await it.events(first)).count("activated")


async def test_an_activation_goes_on_without_the_one_who_asked(tmp_path: Path) -> None:
    """A closed connection is no reason to stop half way."""
    gate = Gate()
    async with swapped(tmp_path / "home", fake=FakeAdapters(before_load=gate)) as it:
        version = await it.publish()
        asked = asyncio.create_task(it.swapper.activate(version, actor="api"))
        await gate.reached.wait()

        asked.cancel()
        gate.opened.set()
        await until(lambda: it.swapper.progress is None)

        assert "v1" == await it.served()


async def test_what_can_not_be_activated_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Unknown, unfinished, rejected, and without a probe."""
    async with swapped(tmp_path / "home") as it:
        versions = it.proxy.services.store.versions
        candidate = await versions.reserve(base="sha256:" + "b" * 64)
        rejected = await versions.reserve(base="sha256:" + "b" * 64)
        await versions.publish(rejected.id, b"{}", state="rejected", reason="worse", actor="gate")
        unproven = await it.publish(is_fake=False)

        with pytest.raises(NotFound, match="v99"):
            await it.swapper.activate("v99", actor="api")
        for version, reason in (
            (candidate.id, "still being made"),
            (rejected.id, "rejected: worse"),
            (unproven, "has no probe"),
        ):
            with pytest.raises(Conflict, match=reason):
                await it.swapper.activate(version, actor="api")
        assert [] == it.fake.loads

        done = await it.swapper.activate(unproven, actor="api", force=True)
        assert done.probe is not None
        assert ("unproven", unproven) == (done.probe.outcome, await it.served())


async def test_what_is_not_the_persons_own_has_no_versions(tmp_path: Path) -> None:
    """Whatever model.base says, none is imported for it, as none is activated."""
    async with FakeEngine(FakeAdapters()) as engine:
        settings = settings_for(engine.url, kind="openai", model={"base": str(demo_model())})
        async with running(settings, tmp_path / "home") as proxy:
            swapper = proxy.services.swapper
            with pytest.raises(Conflict, match="the engine openai serves no adapters") as imported:
                await swapper.import_adapter(tmp_path, actor="api")
            with pytest.raises(Conflict) as activated:
                await swapper.activate("v1", actor="api")

    assert activated.value.message == imported.value.message


async def test_a_version_of_another_base_is_refused(tmp_path: Path) -> None:
    """Where the engine's base is known."""
    async with swapped(tmp_path / "home") as it:
        version = await it.publish()
        it.proxy.services.serving.identify("sha256:" + "c" * 64)

        with pytest.raises(Conflict, match="made for the base"):
            await it.swapper.activate(version, actor="api")


async def test_an_old_version_is_unloaded_when_its_last_request_has_ended(tmp_path: Path) -> None:
    """Until then it is draining: nobody new gets it, and nobody is cut off."""
    gate = Gate()

    async def third_event(number: int) -> None:
        if number == 3:
            await gate("")

    async with swapped(tmp_path / "home", fake=FakeAdapters(before_event=third_event)) as it:
        for _ in range(3):
            await it.publish()
        streams = []
        for version in ("v1", "v2"):
            await it.swapper.activate(version, actor="api")
            streams.append(asyncio.create_task(it.proxy.chat(stream=True)))
            await gate.reached.wait()
            gate.reached.clear()

        await it.swapper.activate("v3", actor="api")

        (loaded,) = it.swapper.loaded("v1")
        assert (1, True) == (loaded.leases, loaded.is_draining)
        assert {"tiny@v1", "tiny@v2", "tiny@v3"} == {*it.fake.adapters}
        assert {"base", "v2", "v3"} == {*it.proxy.services.serving.alias.versions}
        gate.opened.set()
        answers = await asyncio.gather(*streams)
        assert ["v1", "v2"] == [answer.headers["x-strop-adapter"] for answer in answers]
        assert all("[DONE]" in answer.text for answer in answers)
        await until(lambda: it.fake.unloaded == ["tiny@v1"])
        assert [] == it.swapper.loaded("v1")
        await until(lambda: it.events("v1"), lambda events: "unloaded" in events)


async def test_a_pinned_version_is_loaded_when_it_is_asked_for(tmp_path: Path) -> None:
    """After the same verification and probe; others don't wait for it, and nothing is switched."""
    gate = Gate()
    async with swapped(tmp_path / "home") as it:
        for _ in range(3):
            await it.publish()
        await it.swapper.activate("v3", actor="api")
        it.fake.before_load = gate
        pinned = [asyncio.create_task(it.served("tiny@v1")) for _ in range(3)]
        await gate.reached.wait()

        assert "v3" == await it.served()
        gate.opened.set()

        assert ["v1"] * 3 == await asyncio.gather(*pinned)
        assert ["tiny@v3", "tiny@v1"] == it.fake.loads
        assert ("v3", "v3") == (await it.served(), await it.active())
        # There is room for two: the one that was used least recently goes, and never the active.
        assert "v2" == await it.served("tiny@v2")
        await until(lambda: {"tiny@v2", "tiny@v3"} == {*it.fake.adapters})


async def test_how_long_loading_took_is_logged_as_facts_of_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Numbers, which the log's JSON keeps: of a fact that is an object it would keep the words."""
    with caplog.at_level(logging.INFO):
        async with swapped(tmp_path / "home") as it:
            await it.publish()
            await it.served("tiny@v1")

    (said,) = [vars(one) for one in caplog.records if one.getMessage() == "version loaded"]
    steps = ("verifying_ms", "converting_ms", "loading_ms", "probing_ms")
    assert ["v1", float, float, float, float] == [said["version"], *(type(said[s]) for s in steps)]


async def test_a_pinned_version_is_served_while_others_take_all_the_room(tmp_path: Path) -> None:
    """The one that a running request holds makes way, and is unloaded when that has ended."""
    gate = Gate()

    async def third_event(number: int) -> None:
        if number == 3:
            await gate("")

    async with swapped(tmp_path / "home", fake=FakeAdapters(before_event=third_event)) as it:
        for _ in range(3):
            await it.publish()
        await it.swapper.activate("v1", actor="api")
        held = asyncio.create_task(it.proxy.chat(model="tiny@v2", stream=True))
        await gate.reached.wait()

        assert "v3" == await it.served("tiny@v3")

        assert ["tiny@v1", "tiny@v2", "tiny@v3"] == it.fake.loads
        (loaded,) = it.swapper.loaded("v2")
        assert (1, True) == (loaded.leases, loaded.is_draining)
        gate.opened.set()
        answer = await held
        assert "v2" == answer.headers["x-strop-adapter"]
        assert "[DONE]" in answer.text
        await until(lambda: it.fake.unloaded == ["tiny@v2"])


async def test_a_version_is_loaded_where_requests_for_it_go(tmp_path: Path) -> None:
    """Of several servers one that came back may have nothing yet; until then it gets none."""
    home = tmp_path / "home"
    folder = AdaptersFolder((home / "adapters").absolute())
    async with FakeEngine(FakeAdapters()) as one, FakeEngine(FakeAdapters()) as other:
        driver = Replicas(
            [
                Vllm(Upstream(engine.url), adapters=folder, num_adapters=2, scores=True)
                for engine in (one, other)
            ]
        )
        async with running(settings_for(one.url), home, driver=driver) as proxy:
            await until(lambda: all(replica.is_in for replica in driver.replicas))
            swapper, library = proxy.services.swapper, Library(home / "adapters")
            await shelved.publish(proxy.services.store, library)
            await swapper.activate("v1", actor="api")

            both = [loaded.engine for loaded in swapper.loaded("v1")]
            driver.replicas[1].leave("it was restarted", answers=True)
            left = [loaded.engine for loaded in swapper.loaded("v1")]

    assert [one.url, other.url] == both
    assert [one.url] == left


@contextlib.asynccontextmanager
async def two_servers(
    home: Path, fakes: Sequence[FakeAdapters], num_versions: int
) -> AsyncIterator[tuple[Running, Replicas]]:
    """Run a proxy before two servers that are looked at when they are suspected, and not else."""
    folder = AdaptersFolder((home / "adapters").absolute())
    async with FakeEngine(fakes[0]) as one, FakeEngine(fakes[1]) as other:
        driver = Replicas(
            [Vllm(Upstream(each.url), adapters=folder, scores=True) for each in (one, other)]
        )
        settings = settings_for(one.url, engine={"health_interval_s": 3600})
        async with running(settings, home, driver=driver) as proxy:
            await until(lambda: all(replica.is_in for replica in driver.replicas))
            for _ in range(num_versions):
                await shelved.publish(proxy.services.store, Library(home / "adapters"))
            yield proxy, driver


async def look_until(proxy: Running, has_happened: Callable[[], bool]) -> None:
    """Let the servers be looked at until something has happened."""
    while not has_happened():
        proxy.services.serving.suspect()
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("how", ["activated", "pinned"])
async def test_a_server_that_lost_the_active_version_keeps_no_other_from_being_loaded(
    how: str, tmp_path: Path
) -> None:
    """It gets what it lacks first: the probe of the other asks for the active one too."""
    fakes = FakeAdapters(), FakeAdapters()
    async with two_servers(tmp_path / "home", fakes, 2) as (proxy, _):
        await proxy.services.swapper.activate("v1", actor="api")
        fakes[1].restart()

        if how == "activated":
            await proxy.services.swapper.activate("v2", actor="api")
        answer = await proxy.chat(model="tiny@v2")

        assert (200, "v2") == (answer.status_code, answer.headers["x-strop-adapter"])
        assert [{"tiny@v1", "tiny@v2"}] * 2 == [{*fake.adapters} for fake in fakes]


async def test_a_server_that_is_out_keeps_no_version_from_being_activated(tmp_path: Path) -> None:
    """The others serve it; this one gets it when it can serve what it should."""
    fakes = FakeAdapters(), FakeAdapters()
    async with two_servers(tmp_path / "home", fakes, 2) as (proxy, driver):
        swapper = proxy.services.swapper
        await swapper.activate("v1", actor="api")
        fakes[1].restart()
        fakes[1].load_error = "its disk is gone"

        await swapper.activate("v2", actor="api")

        assert [True, False] == [replica.is_in for replica in driver.replicas]
        assert {"v2"} == {(await proxy.chat()).headers["x-strop-adapter"] for _ in range(4)}
        fakes[1].load_error, driver.replicas[1].retry_at = None, 0.0
        await look_until(proxy, lambda: driver.replicas[1].is_in)
        assert {"tiny@v1", "tiny@v2"} == {*fakes[1].adapters}


async def test_where_a_server_breaks_off_an_activation_it_is_said_that_the_others_can_do_without(
    tmp_path: Path,
) -> None:
    """Who asks again gets the version: what is gone is left out by then."""

    class Breaking(FakeAdapters):
        """Breaks off where it is to load a version."""

        async def _load(self, call: Call) -> None:
            call.reset()

    async with two_servers(tmp_path / "home", (FakeAdapters(), Breaking()), 1) as (proxy, driver):
        with pytest.raises(ActivationFailed, match="; or ask again: the others"):
            await proxy.services.swapper.activate("v1", actor="api")
        driver.replicas[1].leave("it is gone", answers=True)
        driver.replicas[1].retry_at = math.inf

        await proxy.services.swapper.activate("v1", actor="api")

        assert "v1" == (await proxy.chat()).headers["x-strop-adapter"]


async def test_while_all_servers_are_out_a_version_is_loaded_on_those_that_answer(
    tmp_path: Path,
) -> None:
    """Another version may be what lets them in again."""
    fakes = FakeAdapters(), FakeAdapters()
    async with two_servers(tmp_path / "home", fakes, 1) as (proxy, driver):
        for replica in driver.replicas:
            replica.leave("it lacks a version", answers=True)
            replica.retry_at = math.inf

        await proxy.services.swapper.activate("v1", actor="api")

        assert [["tiny@v1"]] * 2 == [[*fake.adapters] for fake in fakes]


async def test_what_makes_room_leaves_a_server_that_is_out_too(tmp_path: Path) -> None:
    """It has no more room than the others, and may be looked at much later."""
    fakes = FakeAdapters(), FakeAdapters()
    async with two_servers(tmp_path / "home", fakes, 3) as (proxy, driver):
        versions = proxy.services.store.versions
        await proxy.services.swapper.activate("v1", actor="api")
        await proxy.chat(model="tiny@v2")
        driver.replicas[1].leave("it is slow", answers=True)
        driver.replicas[1].retry_at = math.inf

        await proxy.chat(model="tiny@v3")
        await until(
            lambda: versions.list_events("v2"),
            lambda events: "unloaded" in [event.kind for event in events],
        )

        assert [["tiny@v2"]] * 2 == [fake.unloaded for fake in fakes]


async def test_servers_whose_active_version_can_not_be_served_answer_for_the_others(
    tmp_path: Path,
) -> None:
    """As one alone does: who asks for the base gets it."""
    fakes = FakeAdapters(), FakeAdapters()
    async with two_servers(tmp_path / "home", fakes, 1) as (proxy, driver):
        await proxy.services.swapper.activate("v1", actor="api")
        folder = Library(tmp_path / "home" / "adapters").path_of("v1")
        (folder / "adapter_model.safetensors").write_bytes(b"something else")
        for replica, fake in zip(driver.replicas, fakes, strict=True):
            fake.restart()
            replica.leave("it was started anew")

        await look_until(proxy, lambda: "was changed" in proxy.services.serving.reason)
        answers = [await proxy.chat(model=model) for model in ("tiny", "tiny@base")]

        assert [503, 200] == [answer.status_code for answer in answers]


async def test_a_server_that_comes_back_and_can_not_show_what_it_serves_stays_out(
    tmp_path: Path,
) -> None:
    """Nobody has forced the version upon it."""

    class Terse(FakeAdapters):
        """Says too little to be judged by, once it was started anew."""

        async def _complete(self, call: Call, *, is_chat: bool) -> None:
            fields = call.request.json()
            if not is_chat and len(self.loads) > 1 and fields["max_tokens"] > 1:
                body = json.dumps({**fields, "max_tokens": 4}).encode()
                call.request = replace(call.request, body=body)
            await super()._complete(call, is_chat=is_chat)

    fakes = FakeAdapters(), Terse()
    async with two_servers(tmp_path / "home", fakes, 1) as (proxy, driver):
        await proxy.services.swapper.activate("v1", actor="api")
        fakes[1].restart()

        await look_until(proxy, lambda: "can be compared" in driver.replicas[1].reason)

        assert [True, False] == [replica.is_in for replica in driver.replicas]
        assert "tiny@v1" not in fakes[1].adapters


async def test_what_was_forced_upon_the_others_is_forced_upon_a_server_that_comes_back(
    tmp_path: Path,
) -> None:
    """Nothing can prove it there either."""
    fakes = FakeAdapters(), FakeAdapters()
    async with two_servers(tmp_path / "home", fakes, 0) as (proxy, driver):
        library = Library(tmp_path / "home" / "adapters")
        await shelved.publish(proxy.services.store, library, is_fake=False)
        await proxy.services.swapper.activate("v1", actor="api", force=True)
        fakes[1].restart()
        back = driver.replicas[1]

        await look_until(
            proxy, lambda: len(fakes[1].loads) == 2 and (back.is_in or "no probe" in back.reason)
        )

        assert (True, ["tiny@v1"]) == (back.is_in, [*fakes[1].adapters])


async def test_a_request_to_a_server_that_lost_its_version_is_asked_again(tmp_path: Path) -> None:
    """The others have it still; the client notices nothing."""
    fakes = FakeAdapters(), FakeAdapters()
    async with two_servers(tmp_path / "home", fakes, 1) as (proxy, _):
        await proxy.services.swapper.activate("v1", actor="api")
        fakes[1].restart()

        answers = [await proxy.chat(text) for text in ("one", "another")]

        assert [200, 200] == [answer.status_code for answer in answers]
        assert ["tiny@v1"] == [*fakes[1].adapters]


async def test_a_request_to_a_server_that_got_its_version_back_meanwhile_is_asked_again(
    tmp_path: Path,
) -> None:
    """Whoever finds out first that it was lost."""
    answering, loading = Gate(), Gate()

    class Restarted(FakeAdapters):
        """Loses what it has when it is asked, and takes its time to say so, and to load it."""

        async def _complete(self, call: Call, *, is_chat: bool) -> None:
            is_first = is_chat and not loading.opened.is_set()
            if is_first and call.request.json()["model"] != self.base:
                self.restart()
                self.before_load = loading
                await answering("")
            await super()._complete(call, is_chat=is_chat)

    fakes = Restarted(), Restarted()
    async with two_servers(tmp_path / "home", fakes, 1) as (proxy, _):
        await proxy.services.swapper.activate("v1", actor="api")
        asking = asyncio.create_task(proxy.chat())
        await answering.reached.wait()

        await look_until(proxy, loading.reached.is_set)
        leases = proxy.services.serving.leases
        answering.opened.set()
        await until(lambda: not leases.total)
        loading.opened.set()
        answer = await asking

        assert (200, "v1") == (answer.status_code, answer.headers["x-strop-adapter"])


async def test_a_pin_to_an_unknown_version_lists_what_there_is(tmp_path: Path) -> None:
    """As any other unknown model."""
    async with swapped(tmp_path / "home") as it:
        answer = await it.proxy.chat(model="tiny@v7")

        error = answer.json()["error"]
        assert (404, "model_not_found", "model") == (
            answer.status_code,
            error["code"],
            error["param"],
        )
        assert "tiny@base" in error["message"]


async def test_a_pin_that_fails_its_probe_is_refused_and_nothing_else_changes(
    tmp_path: Path,
) -> None:
    """It is unloaded again."""
    async with swapped(tmp_path / "home") as it:
        await it.publish()
        it.fake.weights_of = serves_base

        answer = await it.proxy.chat(model="tiny@v1")

        assert (503, "activation_failed") == (answer.status_code, answer.json()["error"]["code"])
        assert ("base", {}) == (await it.served(), it.fake.adapters)


async def test_a_client_that_leaves_while_its_pin_is_loaded_costs_no_record(
    tmp_path: Path,
) -> None:
    """Nothing reached the engine for it; the version is loaded all the same."""
    gate = Gate()
    async with swapped(tmp_path / "home", fake=FakeAdapters(before_load=gate)) as it:
        await it.publish()
        asked = asyncio.create_task(it.proxy.chat(model="tiny@v1"))
        await gate.reached.wait()
        asked.cancel()
        # Strop hears of it before the version is loaded.
        await until(lambda: not it.proxy.server.server_state.connections)
        gate.opened.set()

        await until(lambda: it.swapper.loaded("v1"))
        assert [] == await it.proxy.rows()


async def test_a_name_that_another_home_has_taken_is_made_longer(tmp_path: Path) -> None:
    """Two strops may share one engine; clients use the short name at each."""
    fake = FakeAdapters()
    fake.adapters["tiny@v1"] = "/another/home/adapters/v1"
    async with swapped(tmp_path / "home", fake=fake) as it:
        version = await it.publish()

        await it.swapper.activate(version, actor="api")

        assert ("v1", "v1") == (await it.served(), await it.served("tiny@v1"))
        (other,) = {*fake.adapters} - {"tiny@v1"}
        assert other.startswith("tiny@v1.")
        assert "/another/home/adapters/v1" == fake.adapters["tiny@v1"]
        await it.swapper.activate("base", actor="api")
        assert [] == fake.unloaded


class Heard:
    """Another process, which notes what is active when a switch waits for it."""

    def __init__(self, serving: Serving) -> None:
        self.served: list[str] = []
        self._serving = serving

    def tell(self) -> None:
        """Take note that there may be something else to serve."""

    async def have_moved(self) -> None:
        """Serve it."""
        self.served.append(self._serving.alias.active.name)


async def test_a_version_keeps_the_name_that_it_was_loaded_under(tmp_path: Path) -> None:
    """The other home may give the short one back; the engine doesn't know this version by it."""
    fake = FakeAdapters()
    fake.adapters["tiny@v1"] = "/another/home/adapters/v1"
    async with swapped(tmp_path / "home", fake=fake) as it:
        version = await it.publish()
        await it.swapper.activate(version, actor="api")
        await it.swapper.activate("base", actor="api")
        del fake.adapters["tiny@v1"]
        serving = it.proxy.services.serving
        serving.followers = heard = Heard(serving)

        await it.swapper.activate(version, actor="api")

        (name,) = fake.adapters
        assert [name] == heard.served


async def test_a_manifest_that_can_not_be_read_is_said(tmp_path: Path) -> None:
    """It may well be whole, so the version is not missing."""
    async with swapped(tmp_path / "home") as it:
        version = await it.publish()
        manifest = it.library.path_of(version) / "manifest.json"
        manifest.rename(tmp_path / "kept")
        manifest.mkdir()

        with pytest.raises(ActivationFailed, match=r"v1 can't be served: .*manifest\.json"):
            await it.swapper.activate(version, actor="api")

        assert 503 == (await it.proxy.chat(model="tiny@v1")).status_code
        manifest.rmdir()
        (tmp_path / "kept").rename(manifest)
        await it.swapper.activate(version, actor="api")
        assert "v1" == await it.served()


async def test_a_version_is_removed_from_the_engine_before_its_files_go(tmp_path: Path) -> None:
    """An engine that reads them again and finds none may end; the active one is never removed."""
    async with swapped(tmp_path / "home") as it:
        first, second = await it.publish(), await it.publish()
        await it.swapper.activate(first, actor="api")
        await it.swapper.activate(second, actor="api")

        with pytest.raises(Conflict, match="v2 is active"):
            await it.swapper.remove(second, actor="api")
        await it.swapper.remove(first, actor="api")

        assert (["tiny@v1"], ("v2",)) == (it.fake.unloaded, it.library.versions_on_disk())
        assert await it.proxy.services.store.versions.get(first) is None
        with pytest.raises(NotFound):
            await it.swapper.remove(first, actor="api")


async def test_what_is_not_removed_stays_loaded(tmp_path: Path) -> None:
    """A run goes on from it, or somebody keeps it."""
    async with swapped(tmp_path / "home") as it:
        first, second = await it.publish(), await it.publish()
        await it.swapper.activate(first, actor="api")
        await it.swapper.activate(second, actor="api")
        store = it.proxy.services.store
        row = await store.versions.get(first)
        assert row is not None
        run = await store.runs.create(
            objective="topr", preset="balanced", parent=first, base=row.base, requested_by="api"
        )

        with pytest.raises(Conflict, match=f"{run.id} continues v1"):
            await it.swapper.remove(first, actor="api")
        await store.runs.update(run.id, RunUpdate(state="cancelled"))
        await store.versions.set_kept(first, True)
        with pytest.raises(Conflict, match="v1 is kept"):
            await it.swapper.remove(first, actor="api")

        assert [] == it.fake.unloaded
        assert ("v1", "v2") == it.library.versions_on_disk()


async def test_a_version_is_removed_while_its_folder_can_not_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its volume may be away; nobody can ask for it again, and a start that finds it deletes it."""
    home = tmp_path / "home"
    async with swapped(home) as it:
        for _ in range(2):
            await it.publish()
        it.library.folder.rename(tmp_path / "away")

        await it.swapper.remove("v1", actor="api")

        assert ["v2"] == [row.id for row in await it.proxy.services.store.versions.list()]
        assert "a version's folder could not be deleted" in caplog.text
    (tmp_path / "away").rename(it.library.folder)
    async with swapped(home) as it:
        assert ("v2",) == it.library.versions_on_disk()


async def test_what_was_converted_of_a_removed_version_goes_too(tmp_path: Path) -> None:
    """Whichever engine serves when it is removed; what is of others stays."""
    home = tmp_path / "home"
    async with swapped(home) as it:
        names = [it.library.path_of(await it.publish()).name for _ in range(2)]
        for name in [*names, "v10-5d41402a"]:
            (home / "adapters-mlx" / name).mkdir(parents=True)
            (home / "adapters-mlx" / name / "adapters.safetensors").write_bytes(b"weights")

        await it.swapper.remove("v1", actor="api")

        left = {one.name for one in (home / "adapters-mlx").iterdir()}
        assert {names[1], "v10-5d41402a"} == left


async def test_a_version_that_a_request_holds_is_not_removed(tmp_path: Path) -> None:
    """The error says how many."""
    gate = Gate()

    async def first_event(_: int) -> None:
        await gate("")

    async with swapped(tmp_path / "home") as it:
        for _ in range(2):
            await it.publish()
        await it.swapper.activate("v1", actor="api")
        it.fake.before_event = first_event
        stream = asyncio.create_task(it.proxy.chat(stream=True))
        await gate.reached.wait()
        await it.swapper.activate("v2", actor="api")

        with pytest.raises(Conflict, match="1 requests hold v1"):
            await it.swapper.remove("v1", actor="api")
        gate.opened.set()
        await stream


async def test_versions_that_need_not_be_kept_are_deleted(tmp_path: Path) -> None:
    """Not the active one, the one before, what somebody keeps, what is loaded, and the newest."""
    async with swapped(tmp_path / "home", num_kept=1) as it:
        for _ in range(6):
            await it.publish()
        await it.proxy.services.store.versions.set_kept("v2", True)

        await it.swapper.activate("v1", actor="api")
        await until(lambda: it.library.versions_on_disk() == ("v1", "v2", "v6"))
        for _ in range(3):
            await it.publish()
        await it.swapper.activate("v6", actor="api")
        await until(lambda: it.library.versions_on_disk() == ("v1", "v2", "v6", "v9"))

        listed = await it.proxy.services.store.versions.list()
        assert ["v9", "v6", "v2", "v1"] == [row.id for row in listed]


async def test_what_a_run_continues_is_kept_until_it_is_over(tmp_path: Path) -> None:
    """However old it is: the run compares with it to the end, and what it makes is its child."""
    async with swapped(tmp_path / "home", num_kept=1) as it:
        for _ in range(4):
            await it.publish()
        await it.proxy.services.store.runs.create(
            objective="topr",
            preset="balanced",
            parent="v2",
            base=(await it.version("v2")).base,
            requested_by="cli",
        )

        await it.swapper.activate("v1", actor="api")
        await until(lambda: "v3" not in it.library.versions_on_disk())

        assert ("v1", "v2", "v4") == it.library.versions_on_disk()


async def test_a_pin_that_failed_is_not_probed_for_each_request(tmp_path: Path) -> None:
    """It is tried again when it is activated."""
    async with swapped(tmp_path / "home") as it:
        await it.publish()
        it.fake.weights_of = serves_base
        answers = [await it.proxy.chat(model="tiny@v1") for _ in range(3)]

        assert [503] * 3 == [answer.status_code for answer in answers]
        assert ["tiny@v1"] == it.fake.loads
        it.fake.weights_of = lambda _name, folder: folder
        await it.swapper.activate("v1", actor="api")
        assert "v1" == await it.served("tiny@v1")


async def test_a_pin_that_failed_keeps_nothing_of_the_requests_for_it(tmp_path: Path) -> None:
    """They may be large, and many."""
    async with swapped(tmp_path / "home") as it:
        await it.publish()
        it.fake.weights_of = serves_base
        depths = []
        for _ in range(5):
            with pytest.raises(ActivationFailed) as caught:
                await it.swapper.keeper.bring("v1")
            depths.append(len([*traceback.walk_tb(caught.value.__traceback__)]))

        assert depths[1] == depths[-1]


async def test_an_engine_that_restarts_before_the_probe_is_no_fault_of_the_version(
    tmp_path: Path,
) -> None:
    """It says that it has no such model; the event says that the engine was gone."""

    class Restarts(FakeAdapters):
        """Ends and begins again once it has loaded its first version."""

        async def _load(self, call: Call) -> None:
            await super()._load(call)
            if len(self.loads) == 1:
                self.restart()

    async with swapped(tmp_path / "home", fake=Restarts()) as it:
        await it.publish()

        with pytest.raises(ActivationFailed, match="has tiny@v1 no more: it was started anew"):
            await it.swapper.activate("v1", actor="gate")
        (failed, *_) = await it.proxy.services.store.versions.list_events("v1")
        await it.swapper.activate("v1", actor="gate")

        assert "activation_failed" == failed.kind
        assert json.loads(failed.detail)[GONE] is True
        assert "v1" == await it.served()


async def test_a_foreign_adapter_is_imported_and_served_when_forced(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """It has no probe; what can't be imported is refused and leaves no folder."""
    async with swapped(tmp_path / "home", base=qwen3) as it:
        version = await it.swapper.import_adapter(peft_a, actor="cli")
        assert ("v1", "ready", "import") == (version.id, version.state, version.origin)

        with pytest.raises(Conflict, match="no probe"):
            await it.swapper.activate("v1", actor="cli")
        await it.swapper.activate("v1", actor="cli", force=True)
        assert "v1" == await it.served()

        with pytest.raises(BadRequest, match="can't be imported"):
            await it.swapper.import_adapter(tmp_path / "nothing", actor="cli")
        assert ("v1",) == it.library.versions_on_disk()
        assert "rejected" == (await it.version("v2")).state


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ModuleNotFoundError("No module named 'numpy'", name="numpy"), "the package numpy.*pip"),
        (RuntimeError("broken"), "broken"),
        (OSError(5, "worn out"), "can't be imported.*worn out"),
    ],
)
async def test_an_import_that_fails_for_any_reason_is_over(
    raised: Exception,
    expected: str,
    qwen3: Path,
    peft_a: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where strop was installed without what trains, there is no numpy."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise raised

    monkeypatch.setattr(importing, "bring_in", fail)
    async with swapped(tmp_path / "home", base=qwen3) as it:
        with pytest.raises((BadRequest, Conflict, RuntimeError), match=expected):
            await it.swapper.import_adapter(peft_a, actor="cli")

        assert "rejected" == (await it.version("v1")).state
        assert () == it.library.versions_on_disk()


async def test_an_import_goes_on_without_the_one_who_asked(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """Else its number would be a candidate's that nobody makes, and nobody can remove."""

    def command(*job: Any) -> Sequence[str]:
        asking.cancel()
        return fake_probe.command()(*job)

    async with swapped(tmp_path / "home", base=qwen3, probe_command=command) as it:
        asking = asyncio.create_task(it.swapper.import_adapter(peft_a, actor="cli"))
        with pytest.raises(asyncio.CancelledError):
            await asking

        await until(lambda: it.version("v1"), lambda row: row.state != "candidate")

        assert "ready" == (await it.version("v1")).state


def _runs_of(home: Path) -> Path:
    """The folder of all runs, in a home that need not be there yet."""
    runs = home / "runs"
    runs.mkdir(mode=0o700, parents=True)
    return runs


@pytest.mark.parametrize("restarts", [False, True])
async def test_what_is_imported_while_a_run_trains_gets_its_probe_when_that_has_ended(
    qwen3: Path, peft_a: Path, tmp_path: Path, *, restarts: bool
) -> None:
    """Until then it is said what is awaited; a restart in between loses nothing."""
    home, written, fake = tmp_path / "home", tmp_path / "probe.json", FakeAdapters()
    run_once = functools.partial(
        swapped, home, base=qwen3, fake=fake, probe_command=fake_probe.command("writes", written)
    )
    async with contextlib.AsyncExitStack() as stack:
        with run_lock.hold(_runs_of(home), "run_1"):
            it = await stack.enter_async_context(run_once())
            made = await it.swapper.import_adapter(peft_a, actor="cli")
            assert run_requests.AWAITS_RUN == made.reason
            with pytest.raises(Conflict, match="its probe is made when the training run"):
                await it.swapper.activate("v1", actor="cli")
            if restarts:
                await stack.aclose()
                it = await stack.enter_async_context(run_once())
            probe = fake_adapters.probe_of(it.library.path_of("v1"))
            written.write_text(json.dumps(probe_codec.to_json(probe)), encoding="utf-8")
        row = await until(lambda: it.version("v1"), lambda row: row.reason != made.reason)

        done = await it.swapper.activate("v1", actor="cli")

        assert row.reason is None
        assert ("v1", "proven") == (await it.served(), done.probe and done.probe.outcome)
        assert it.library.verify("v1") == manifest.loads(row.manifest)
        assert 1 == (await it.events("v1")).count("probed")


async def test_what_was_missing_gets_the_probe_that_it_awaited_before(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """Once its folder is back, it waits as it did."""
    home = tmp_path / "home"
    with run_lock.hold(_runs_of(home), "run_1"):
        async with swapped(home, base=qwen3) as it:
            await it.swapper.import_adapter(peft_a, actor="cli")
            folder = it.library.path_of("v1").rename(tmp_path / "away")
        async with swapped(home, base=qwen3) as it:
            assert "missing" == (await it.version("v1")).state
    folder.rename(it.library.path_of("v1"))

    async with swapped(home, base=qwen3) as it:
        await until(lambda: it.events("v1"), lambda events: "probed" in events)

        assert ["missing", "found", "probed"] == (await it.events("v1"))[-3:]


async def test_why_an_awaited_probe_can_not_be_made_is_said_and_it_is_not_tried_again(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """Its base would be loaded again and again, in vain."""
    home = tmp_path / "home"
    runs = _runs_of(home)
    async with swapped(home, base=qwen3) as it:
        for version in ("v1", "v2"):
            with run_lock.hold(runs, "run_1"):
                await it.swapper.import_adapter(peft_a, actor="cli")
            await until(functools.partial(it.events, version), lambda events: "probed" in events)

        row = await it.version("v1")
        assert ("ready", fake_probe.NO_PROBE) == (row.state, row.reason)
        assert 1 == (await it.events("v1")).count("probed")


async def test_a_probe_that_was_written_before_strop_was_killed_counts(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """The file has it and the row doesn't: it is not made again."""
    home = tmp_path / "home"
    with run_lock.hold(_runs_of(home), "run_1"):
        async with swapped(home, base=qwen3) as it:
            await it.swapper.import_adapter(peft_a, actor="cli")
            it.library.add_probe("v1", fake_adapters.probe_of(it.library.path_of("v1")))
    async with swapped(home, base=qwen3, probe_command=fake_probe.command("dies")) as it:
        row = await until(lambda: it.version("v1"), lambda row: row.reason is None)

        assert manifest.loads(row.manifest).probe is not None


async def test_nothing_is_imported_before_the_engine_has_said_what_it_serves(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """Its base is not known yet, and there is nothing to set."""
    async with FakeEngine(FakeAdapters()) as engine:
        await engine.stop()
        async with swapped(tmp_path / "home", engine=engine, ready=False, base=qwen3) as it:
            with pytest.raises(EngineNotReady, match="try again when the engine is ready"):
                await it.swapper.import_adapter(peft_a, actor="cli")

            assert () == await it.proxy.services.store.versions.list()
        await engine.start()


async def test_a_path_that_is_no_utf_8_can_be_named_in_an_error(
    qwen3: Path, tmp_path: Path
) -> None:
    """The error is sent as that, also to other processes."""
    async with swapped(tmp_path / "home", base=qwen3) as it:
        with pytest.raises(BadRequest, match=r"\?/nothing can't be imported") as caught:
            await it.swapper.import_adapter(tmp_path / "\udcff" / "nothing", actor="cli")

        assert caught.value.message.encode()


async def test_a_stale_version_needs_force_and_a_pin_to_it_does_not(tmp_path: Path) -> None:
    """A rating that it learned from was taken back; whoever names it gets it all the same."""
    async with swapped(tmp_path / "home") as it:
        answer = await it.proxy.chat()
        store = it.proxy.services.store
        (row,) = await it.proxy.rows()
        assert answer.headers["x-strop-completion-id"] == row.completion.id
        new = rating(row.completion.id, key_id=row.completion.key_id)
        rated = await store.add_feedback(new, lambda _: False)
        await it.publish(feedback=[(rated.feedback.id, 1)])
        await store.withdraw(rated.feedback.id, None)

        with pytest.raises(Conflict, match="v1 is stale"):
            await it.swapper.activate("v1", actor="api")
        assert "v1" == await it.served("tiny@v1")
        await it.swapper.activate("v1", actor="api", force=True)

        assert "v1" == await it.served()


class Dies(FakeAdapters):
    """Its engine dies: its server fails at all but the list of models."""

    is_dead = False

    async def __call__(self, call: Call) -> None:
        """Fail, or answer as before."""
        if self.is_dead and call.request.method == "POST":
            return await call.json({"error": {"message": "EngineCore died"}}, 500)
        return await super().__call__(call)


async def test_a_server_that_fails_at_everything_holds_up_no_other(tmp_path: Path) -> None:
    """Nor what it still lists: only those files stay, since it may read them again."""
    fakes = FakeAdapters(), Dies()
    async with two_servers(tmp_path / "home", fakes, 5) as (proxy, driver):
        swapper, serving = proxy.services.swapper, proxy.services.serving
        await swapper.activate("v1", actor="api")
        fakes[1].is_dead = True
        serving.suspect(driver.replicas[1].engine)
        await look_until(proxy, lambda: not driver.replicas[1].is_in)

        for version in ("v2", "v3", "v4", "v5"):
            await swapper.activate(version, actor="api")
            await until(lambda: len(fakes[0].adapters) <= 2)
        await look_until(proxy, lambda: not swapper.loaded("v2"))
        with pytest.raises(Conflict, match="still lists v1"):
            await swapper.remove("v1", actor="api")
        await swapper.remove("v2", actor="api")

        assert serving.is_ready
        assert "v5" == (await proxy.chat()).headers["x-strop-adapter"]


async def test_a_server_that_fails_is_left_out_while_a_version_is_loaded(tmp_path: Path) -> None:
    """That may take minutes."""
    gate = Gate()
    fakes = FakeAdapters(before_load=gate), Dies()
    async with two_servers(tmp_path / "home", fakes, 1) as (proxy, driver):
        activating = asyncio.create_task(proxy.services.swapper.activate("v1", actor="api"))
        await gate.reached.wait()
        fakes[1].is_dead = True
        proxy.services.serving.suspect(driver.replicas[1].engine)

        await look_until(proxy, lambda: not driver.replicas[1].is_in)

        gate.opened.set()
        with contextlib.suppress(ActivationFailed):
            await activating


async def test_a_server_that_fails_is_asked_while_no_other_can_be(tmp_path: Path) -> None:
    """People see what it answers."""
    fakes = Dies(), FakeAdapters()
    async with two_servers(tmp_path / "home", fakes, 1) as (proxy, driver):
        await proxy.services.swapper.activate("v1", actor="api")
        failing, other = driver.replicas
        other.leave("it lacks a version", answers=True)
        other.retry_at = math.inf
        fakes[0].is_dead = True
        proxy.services.serving.suspect(failing.engine)
        await until(lambda: proxy.services.serving.failure)

        answer = await proxy.chat()

        assert (500, True) == (answer.status_code, failing.is_in)
