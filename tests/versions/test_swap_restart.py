"""After a restart, of strop or of the engine, what the store says serves, and nothing half made."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fake_adapters import FakeAdapters, Gate
from fake_engine import Call, FakeEngine
from running import running, settings_for
from shelved import publish
from swapped import swapped
from waiting import until

from strop.adapters import manifest
from strop.adapters.identity import identify
from strop.adapters.library import Library
from strop.proxy.errors import Conflict
from strop.proxy.store.store import Store


async def test_strop_loads_and_proves_the_active_version_before_it_is_ready(
    tmp_path: Path,
) -> None:
    """Until then requests get 503, and nobody gets the base in its place."""
    home, gate = tmp_path / "home", Gate()
    async with FakeEngine(FakeAdapters()) as engine:
        async with swapped(home, engine=engine) as it:
            await it.publish()
            await it.swapper.activate("v1", actor="api")
        fake = FakeAdapters(before_answer=gate)
        engine.handler = fake
        async with swapped(home, fake=fake, engine=engine, ready=False) as it:
            await gate.reached.wait()

            answer = await it.proxy.chat()
            error = answer.json()["error"]
            assert (503, "engine_not_ready") == (answer.status_code, error["code"])
            assert "v1, the active version of tiny" in error["message"]
            assert 503 == (await it.proxy.client.get("/readyz")).status_code
            gate.opened.set()
            await it.proxy.services.serving.wait_until_ready()

            assert "v1" == await it.served()
            assert {"tiny@v1"} == {*fake.probed} - {"tiny"}


async def test_what_the_engine_still_holds_is_proven_and_not_loaded_again(tmp_path: Path) -> None:
    """Names of this home that nothing needs are unloaded; other homes' stay."""
    home, fake = tmp_path / "home", FakeAdapters()
    async with FakeEngine(fake) as engine:
        async with swapped(home, engine=engine, fake=fake) as it:
            await it.publish()
            await it.swapper.activate("v1", actor="api")
        fake.adapters["tiny@v7"] = str(it.library.path_of("v7"))
        fake.adapters["theirs"] = "/elsewhere/v7"
        fake.probed.clear()
        async with swapped(home, engine=engine, fake=fake) as it:
            assert "v1" == await it.served()

            assert {"tiny@v1", "theirs"} == {*fake.adapters}
            assert ["tiny@v7"] == fake.unloaded
            assert "tiny@v1" in fake.probed


async def test_it_is_known_whether_anything_can_be_activated(tmp_path: Path) -> None:
    """Not while the engine gives no answer; but where it lacks the active version."""
    async with swapped(tmp_path / "home") as it:
        await it.publish()
        await it.swapper.activate("v1", actor="api")
        answers, is_ready = it.engine.handler, it.proxy.services.serving.wait_until_ready

        async def is_away(call: Call) -> None:
            await call.json({"error": "loading"}, 503)

        it.engine.handler = is_away
        await until(lambda: not it.swapper.can_activate)
        it.engine.handler = answers
        await is_ready()
        is_back = it.swapper.can_activate
        shutil.rmtree(it.library.path_of("v1"))
        it.fake.restart()
        await until(lambda: not it.proxy.services.serving.is_ready)

        assert is_back
        assert it.swapper.can_activate


async def test_an_engine_that_restarts_gets_the_active_version_again(tmp_path: Path) -> None:
    """Meanwhile requests are answered by it or get 503; others are loaded when asked for."""
    async with swapped(tmp_path / "home") as it:
        for version in (await it.publish(), await it.publish()):
            await it.swapper.activate(version, actor="api")
        it.fake.loads.clear()
        it.fake.probed.clear()

        it.fake.restart()
        meanwhile = await asyncio.gather(*(it.proxy.chat() for _ in range(20)))
        await it.proxy.services.serving.wait_until_ready()

        for answer in meanwhile:
            if answer.status_code == 503:
                assert "engine_not_ready" == answer.json()["error"]["code"]
            else:
                assert (200, "v2") == (answer.status_code, answer.headers["x-strop-adapter"])
        assert "v2" == await it.served()
        assert ["tiny@v2"] == it.fake.loads
        assert "tiny@v2" in it.fake.probed
        assert "v1" == await it.served("tiny@v1")
        states = {row.completion.state for row in await it.proxy.rows()}
        assert {"complete"} == states


async def test_a_request_under_way_when_the_engine_forgets_is_asked_again_once(
    tmp_path: Path,
) -> None:
    """Its version is loaded and proven first; it is one record."""
    # Too seldom to find out before the request does.
    async with swapped(tmp_path / "home", health_interval_s=3600) as it:
        await it.publish()
        await it.swapper.activate("v1", actor="api")
        it.fake.restart()

        assert "v1" == await it.served()

        assert ["tiny@v1", "tiny@v1"] == it.fake.loads
        row = await it.proxy.row()
        assert ("complete", 200) == (row.completion.state, row.completion.status)


async def test_a_pin_that_finds_the_active_version_gone_is_served_and_that_comes_back(
    tmp_path: Path,
) -> None:
    """The probe can't ask for what is gone, which is no fault of the version that is pinned."""
    # Too seldom to find out before the request does.
    async with swapped(tmp_path / "home", health_interval_s=3600) as it:
        for _ in range(2):
            await it.publish()
        await it.swapper.activate("v2", actor="api")
        it.fake.restart()

        pinned = await it.served("tiny@v1")
        await it.proxy.services.serving.wait_until_ready()

        assert ("v1", "v2") == (pinned, await it.served())
        assert "activation_failed" not in await it.events("v1")


async def test_a_404_for_what_the_engine_has_is_the_clients(tmp_path: Path) -> None:
    """Nothing is asked twice, and the engine's answer passes as it is."""

    class Forgetful(FakeAdapters):
        """Answers chats with 404, whatever it has."""

        async def _complete(self, call: Call, *, is_chat: bool) -> None:
            if is_chat and self.adapters:
                error = {"message": "no such tool", "type": "NotFoundError", "code": 404}
                await call.json({"error": error}, 404)
                return
            await super()._complete(call, is_chat=is_chat)

    async with swapped(tmp_path / "home", fake=Forgetful()) as it:
        await it.publish()
        await it.swapper.activate("v1", actor="api")

        answer = await it.proxy.chat()

        assert (404, "no such tool") == (answer.status_code, answer.json()["error"]["message"])
        asked = [r for r in it.engine.requests if b'"messages"' in r.body and b"v1" in r.body]
        assert 1 == len(asked)
        assert "v1" == answer.headers["x-strop-adapter"]


async def test_an_active_version_that_can_not_be_served_any_more_is_said_and_not_replaced(
    tmp_path: Path,
) -> None:
    """Requests get 503 with the reason; activating another version mends it."""
    home = tmp_path / "home"
    async with swapped(home) as it:
        await it.publish()
        await it.swapper.activate("v1", actor="api")
        file = it.library.path_of("v1") / "adapter_model.safetensors"
    file.write_bytes(b"something else")

    async with swapped(home, ready=False) as it:
        serving = it.proxy.services.serving
        await until(lambda: "was changed" in serving.reason)
        answer = await it.proxy.chat()
        assert (503, "engine_not_ready") == (answer.status_code, answer.json()["error"]["code"])
        assert "adapter_model.safetensors of v1 was changed" in answer.json()["error"]["message"]
        assert "base" == await it.served("tiny@base")

        await it.swapper.activate("base", actor="api")

        assert ("base", {}) == (await it.served(), it.fake.adapters)
        await serving.wait_until_ready()


async def test_the_base_serves_where_the_engine_has_another_one_now(
    qwen3: Path, tmp_path: Path
) -> None:
    """An adapter of one model means nothing to another; the store says what was done and why."""
    home = tmp_path / "home"
    async with swapped(home) as it:
        await it.publish()
        await it.swapper.activate("v1", actor="api")
    async with swapped(home, base=qwen3) as it:
        assert ("base", "base") == (await it.served(), await it.active())
        (event, *_) = await it.proxy.services.store.versions.list_events("base", limit=1)
        assert ("activated", "start") == (event.kind, event.actor)
        assert b"another base" in event.detail
        identity = identify(qwen3, cache=None)
        assert [identity] == [row.completion.base for row in await it.proxy.rows()]


async def test_rows_and_folders_agree_after_a_start(tmp_path: Path) -> None:
    """Unfinished candidates fail, lost folders are missing, unknown folders go."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    library = Library(home / "adapters")
    store = await Store.open(home / "strop.db")
    whole = await publish(store, library)
    lost = await publish(store, library)
    library.remove(lost)
    candidate = (await store.versions.reserve(base="sha256:" + "b" * 64)).id
    await store.close()
    (library.folder / "v9").mkdir()
    (library.folder / ".unfinished-abc").mkdir()

    async with swapped(home) as it:
        states = {one: (await it.version(one)).state for one in (whole, lost, candidate)}

        assert {whole: "ready", lost: "missing", candidate: "rejected"} == states
        assert [library.path_of(whole)] == [*library.folder.iterdir()]


async def _home_of_three(home: Path) -> Library:
    """v1 retired, v2 active, v3 ready."""
    async with swapped(home) as it:
        for _ in range(3):
            await it.publish()
        for version in ("v1", "v2"):
            await it.swapper.activate(version, actor="api")
        return it.library


async def test_folders_that_are_put_back_are_versions_again_at_the_next_start(
    tmp_path: Path,
) -> None:
    """As where the database alone was restored first: the same states, and the same one serves."""
    home = tmp_path / "home"
    library = await _home_of_three(home)
    shutil.move(library.folder, tmp_path / "away")
    async with swapped(home, ready=False) as it:
        lost = {one: (await it.version(one)).state for one in ("v1", "v2", "v3")}
    shutil.copytree(tmp_path / "away", library.folder, dirs_exist_ok=True)

    async with swapped(home) as it:
        states = {one: (await it.version(one)).state for one in ("v1", "v2", "v3")}

        assert {"missing"} == {*lost.values()}
        assert {"v1": "retired", "v2": "active", "v3": "ready"} == states
        assert ("v2", "v1") == (await it.served(), await it.served("tiny@v1"))
        assert ["missing", "found"] == (await it.events("v3"))[-2:]
        await it.swapper.activate("v3", actor="api")


async def test_a_folder_that_is_put_back_while_strop_runs_is_found_when_it_is_asked_for(
    tmp_path: Path,
) -> None:
    """Neither the active version, nor a pin, nor an activation needs a restart."""
    home = tmp_path / "home"
    library = await _home_of_three(home)
    shutil.move(library.folder, tmp_path / "away")
    async with swapped(home, ready=False) as it:
        await it.proxy.services.serving.wait_until_asked()
        assert 503 == (await it.proxy.chat()).status_code
        with pytest.raises(Conflict, match="v3 is missing: its folder is gone; put back"):
            await it.swapper.activate("v3", actor="api")
        assert 409 == (await it.proxy.chat(model="tiny@v1")).status_code
        shutil.copytree(tmp_path / "away", library.folder, dirs_exist_ok=True)

        assert "v1" == await it.served("tiny@v1")
        await it.swapper.activate("v3", actor="api")

        assert ("v3", "v1") == (await it.served(), await it.served("tiny@v1"))
        assert "retired" == (await it.version("v1")).state


async def test_a_copy_from_before_its_probe_was_made_gets_that_probe_again(tmp_path: Path) -> None:
    """The database has it; without, the version could be served by force only."""
    home = tmp_path / "home"
    library = await _home_of_three(home)
    shutil.move(library.path_of("v3"), away := tmp_path / library.path_of("v3").name)
    async with swapped(home) as it:
        assert "missing" == (await it.version("v3")).state
    made = manifest.loads((away / manifest.FILE).read_bytes())
    (away / manifest.FILE).write_bytes(manifest.dumps(replace(made, probe=None)))
    shutil.move(away, library.folder)

    async with swapped(home) as it:
        assert "v3" == await it.served("tiny@v3")
        assert made == it.library.read_manifest("v3")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        ("other weights", "adapter_model.safetensors of v1 was changed"),
        ("another home's", "another home's v1"),
        ("no manifest", "its folder is gone"),
    ],
)
async def test_what_is_put_back_otherwise_than_it_was_stays_missing_and_says_why(
    tmp_path: Path, harm: str, says: str
) -> None:
    """Other weights, another home's version of this number, half of it; no pin reads it again."""
    home = tmp_path / "home"
    library = await _home_of_three(home)
    back = library.path_of("v1")
    shutil.move(back, tmp_path / "v1-away")
    async with swapped(home) as it:
        assert "missing" == (await it.version("v1")).state
    if harm == "another home's":
        async with swapped(tmp_path / "theirs") as it:
            await it.publish()
            theirs = it.library.path_of("v1")
            shutil.copytree(theirs, library.folder / theirs.name)
    else:
        shutil.copytree(tmp_path / "v1-away", back)
        if harm == "other weights":
            (back / "adapter_model.safetensors").write_bytes(b"something else")
        else:
            (back / "manifest.json").unlink()

    async with swapped(home) as it:
        row = await it.version("v1")

        assert "missing" == row.state
        assert says in (row.reason or "")
        with pytest.raises(Conflict, match=says):
            await it.swapper.activate("v1", actor="api")
        assert 409 == (await it.proxy.chat(model="tiny@v1")).status_code
        shutil.rmtree(library.path_of("v1"))
        shutil.copytree(tmp_path / "v1-away", back)
        assert 409 == (await it.proxy.chat(model="tiny@v1")).status_code
        await it.swapper.activate("v1", actor="api")
        assert "v1" == await it.served()


async def test_what_a_run_will_finish_is_left_to_it(tmp_path: Path) -> None:
    """A candidate of an unfinished run is no leftover."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    store = await Store.open(home / "strop.db")
    run = await store.runs.create(
        objective="topr", preset="careful", parent=None, base="sha256:b", requested_by="api"
    )
    candidate = (await store.versions.reserve(base="sha256:b", run=run.id)).id
    await store.close()

    async with swapped(home) as it:
        assert "candidate" == (await it.version(candidate)).state


async def test_an_engine_without_adapters_serves_its_base(tmp_path: Path) -> None:
    """What was active with another engine waits for it, and can't be activated here."""
    home = tmp_path / "home"
    async with FakeEngine(FakeAdapters()) as engine:
        async with swapped(home, engine=engine) as it:
            await it.publish()
            await it.swapper.activate("v1", actor="api")
        async with running(settings_for(engine.url, kind="openai"), home) as proxy:
            answer = await proxy.chat()

            assert (200, "base") == (answer.status_code, answer.headers["x-strop-adapter"])
            with pytest.raises(Conflict, match="serves no adapters"):
                await proxy.services.swapper.activate("v1", actor="api")
            assert 404 == (await proxy.chat(model="tiny@v1")).status_code
            assert "v1" == (await proxy.services.store.versions.activation()).version
