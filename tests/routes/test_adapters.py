"""/admin/adapters over the whole application, behind a fake engine that loads adapters."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fake_probe
import httpx
import pytest
import shelved
from fake_adapters import FakeAdapters, Gate
from routes_app import Running, running
from waiting import until

from strop.adapters.library import Library
from strop.configs import demo_model


class Versions:
    """A strop with versions, and its owner's requests."""

    def __init__(self, app: Running, fake: FakeAdapters, home: Path) -> None:
        self.app = app
        self.fake = fake
        self.library = Library(home / "adapters")

    async def publish(self, **how: Any) -> str:
        """Add a version."""
        return await shelved.publish(self.app.services.store, self.library, **how)

    async def ask(self, method: str, path: str = "", body: object = None) -> httpx.Response:
        """Send a request of the owner's."""
        return await self.app.client.request(
            method, f"/admin/adapters{path}", json=body, headers=self.app.admin
        )

    async def activate(self, version: str, **more: object) -> httpx.Response:
        """Activate a version."""
        return await self.ask("PUT", "/active", {"version": version, **more})

    async def served(self) -> str:
        """Return which version answers a request that pins none."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
        answer = await self.app.client.post("/v1/chat/completions", json=body)
        assert 200 == answer.status_code, answer.text
        return answer.headers["x-strop-adapter"]


@pytest.fixture
async def versions(tmp_path: Path) -> AsyncIterator[Versions]:
    """A strop that serves the base, and no version yet."""
    fake = FakeAdapters()
    async with running(tmp_path, vllm=fake) as app:
        yield Versions(app, fake, tmp_path)


def error_of(answer: httpx.Response) -> tuple[int, str, str]:
    """Return status, code and message of an error."""
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


async def test_there_are_none_at_first(versions: Versions) -> None:
    """The base is active, and there is nowhere to go back to."""
    found = (await versions.ask("GET")).json()

    assert {
        "object": "list",
        "data": [],
        "has_more": False,
        "active": "base",
        "previous": None,
        "base_liked": None,
        "activating": None,
    } == found


async def test_an_activation_answers_once_the_version_serves(versions: Versions) -> None:
    """With what was active before, how long each step took, and what the probe found."""
    v1 = await versions.publish()

    answer = await versions.activate(v1)

    done = answer.json()
    assert (200, "v1", "base") == (answer.status_code, done["version"], done["previous"])
    assert {"verifying", "loading", "probing", "switching"} <= set(done["timings_ms"])
    assert "proven" == done["probe"]["outcome"]
    assert "v1" == await versions.served()


async def test_versions_are_listed_newest_first(versions: Versions) -> None:
    """Each with its parent, where it is loaded, and its events; and which one is active."""
    v1 = await versions.publish()
    v2 = await versions.publish(parent=v1)
    for version in (v1, v2):
        await versions.activate(version)

    found = (await versions.ask("GET")).json()

    assert ("v2", "v1") == (found["active"], found["previous"])
    assert [("v2", "active", "v1"), ("v1", "retired", "base")] == [
        (one["id"], one["state"], one["parent"]) for one in found["data"]
    ]
    assert [["vllm"], ["vllm"]] == [
        [place["engine"] for place in one["loaded"]] for one in found["data"]
    ]
    assert ["deactivated", "activated", "activating", "passed", "created"] == [
        event["kind"] for event in found["data"][1]["events"]
    ]


async def test_events_say_who_from_where_and_how_long(versions: Versions) -> None:
    """`api` is anybody with the key, and `cli` strop's own commands."""
    v1 = await versions.publish()
    by_cli = {**versions.app.admin, "user-agent": "strop-cli"}

    await versions.app.client.put("/admin/adapters/active", json={"version": v1}, headers=by_cli)
    await versions.activate("base")

    events = (await versions.ask("GET", f"/{v1}")).json()["events"]
    found = {event["kind"]: event for event in events}
    assert ("cli", "base") == (found["activated"]["actor"], found["activated"]["detail"]["from"])
    assert "loading" in found["activated"]["detail"]["timings_ms"]
    assert ("api", "base") == (
        found["deactivated"]["actor"],
        found["deactivated"]["detail"]["to"],
    )


async def test_a_rollback_goes_to_the_version_before(versions: Versions) -> None:
    """With an empty body or none; and from the base there is nowhere to go."""
    v1 = await versions.publish()
    v2 = await versions.publish(parent=v1)
    for version in (v1, v2):
        await versions.activate(version)

    first = await versions.ask("POST", "/rollback")
    second = await versions.ask("POST", "/rollback", {})
    third = await versions.ask("POST", "/rollback")

    assert [("v1", "v2"), ("base", "v1")] == [
        (done.json()["version"], done.json()["previous"]) for done in (first, second)
    ]
    assert "base" == await versions.served()
    assert (
        409,
        "conflict",
        "expected a version to go back to, but none was active before",
    ) == error_of(third)


async def test_a_version_that_can_not_be_shown_to_serve_stays_out(versions: Versions) -> None:
    """503 with the reason, which its events have too; the former one serves on."""
    v1 = await versions.publish()
    v2 = await versions.publish(parent=v1)
    await versions.activate(v1)
    versions.fake.weights_of = lambda _name, _folder: str(versions.library.path_of(v1))

    status, code, message = error_of(await versions.activate(v2))

    assert (503, "activation_failed") == (status, code)
    assert "v2 can't be served: the engine was asked, and does not serve it" in message
    shown = (await versions.ask("GET", f"/{v2}")).json()
    assert ("ready", "activation_failed") == (shown["state"], shown["events"][0]["kind"])
    assert message == shown["events"][0]["detail"]["reason"]
    assert "v1" == await versions.served()


async def test_progress_is_shown_while_a_version_is_activated(versions: Versions) -> None:
    """The step that it is at; the same version joins it, and another one is refused."""
    v1, v2 = await versions.publish(), await versions.publish()
    gate = Gate()
    versions.fake.before_load = gate
    first = asyncio.create_task(versions.activate(v1))
    await gate.reached.wait()

    activating = (await versions.ask("GET")).json()["activating"]
    second = asyncio.create_task(versions.activate(v1))
    other = await versions.activate(v2)
    gate.opened.set()

    assert ("v1", "loading") == (activating["version"], activating["step"])
    assert (409, "conflict", "v1 is being activated; wait for it, then ask again") == error_of(
        other
    )
    assert [200, 200] == [(await one).status_code for one in (first, second)]
    assert [f"tiny@{v1}"] == versions.fake.loads


async def test_a_stale_version_is_activated_with_force_only(versions: Versions) -> None:
    """The message says what it learned from that was taken back, and what to do."""
    completion = await versions.app.record(base=shelved.BASE)
    given = (await versions.app.rate(completion)).json()["id"]
    v1 = await versions.publish(feedback=[(given, 1)])
    await versions.app.client.delete(f"/v1/feedback/{given}")

    refused = await versions.activate(v1)
    forced = await versions.activate(v1, force=True)

    status, code, message = error_of(refused)
    assert (409, "conflict") == (status, code)
    assert f"v1 is stale: v1 learned from {given}, which was withdrawn since" in message
    assert "(`train --relearn`)" in message
    assert 200 == forced.status_code
    shown = (await versions.ask("GET", f"/{v1}")).json()
    assert ("active", 1) == (shown["state"], shown["num_ratings"])
    assert "withdrawn" in shown["stale"]


async def test_a_rollback_to_a_stale_version_says_that_it_is_stale(versions: Versions) -> None:
    """It goes back all the same: what served then is worse."""
    completion = await versions.app.record(base=shelved.BASE)
    given = (await versions.app.rate(completion)).json()["id"]
    v1 = await versions.publish(feedback=[(given, 1)])
    v2 = await versions.publish()
    chosen = [(await versions.activate(version)).json()["stale"] for version in (v1, v2)]
    await versions.app.client.delete(f"/v1/feedback/{given}")

    back = (await versions.ask("POST", "/rollback")).json()
    again = (await versions.activate(v1, force=True)).json()

    assert [None, None] == chosen
    says = f"v1 learned from {given}, which was withdrawn since"
    assert [(v1, says), (v1, says)] == [(done["version"], done["stale"]) for done in (back, again)]
    assert v1 == await versions.served()


async def test_a_version_can_be_kept_and_let_go(versions: Versions) -> None:
    """The answer is the version as it is then."""
    v1 = await versions.publish()

    kept = await versions.ask("PUT", f"/{v1}", {"kept": True})
    let_go = await versions.ask("PUT", f"/{v1}", {"kept": False})

    assert [True, False] == [one.json()["kept"] for one in (kept, let_go)]


async def test_a_removed_version_is_gone_from_disk_and_list(versions: Versions) -> None:
    """The engine has let it go first; its number is never given again."""
    v1 = await versions.publish()
    await versions.activate(v1)
    await versions.activate("base")

    removed = await versions.ask("DELETE", f"/{v1}")

    assert (200, {"id": "v1", "object": "adapter", "deleted": True}) == (
        removed.status_code,
        removed.json(),
    )
    assert not versions.library.path_of(v1).exists()
    assert {} == versions.fake.adapters
    assert [] == (await versions.ask("GET")).json()["data"]
    assert 404 == (await versions.ask("GET", f"/{v1}")).status_code
    assert "v2" == await versions.publish()


async def test_an_active_version_is_not_removed(versions: Versions) -> None:
    """Another one has to serve first."""
    v1 = await versions.publish()
    await versions.activate(v1)

    refused = await versions.ask("DELETE", f"/{v1}")

    said = "v1 is active; activate another version first, or roll back"
    assert (409, "conflict", said) == error_of(refused)


async def test_a_version_that_is_kept_is_not_removed(versions: Versions) -> None:
    """Nor unloaded for it; the error says how it is let go."""
    v1 = await versions.publish()
    await versions.activate(v1)
    await versions.activate("base")
    await versions.ask("PUT", f"/{v1}", {"kept": True})

    refused = await versions.ask("DELETE", f"/{v1}")

    said = "v1 is kept; let it go first (`adapters keep v1 --release`)"
    assert (409, "conflict", said) == error_of(refused)
    assert ["tiny@v1"] == [*versions.fake.adapters]
    assert versions.library.path_of(v1).exists()


async def test_a_version_that_answers_is_not_removed(versions: Versions) -> None:
    """Leases show in the list; the request ends as it began."""
    v1 = await versions.publish()
    await versions.activate(v1)
    async with versions.app.in_flight():
        await versions.activate("base")

        shown = (await versions.ask("GET", f"/{v1}")).json()
        refused = await versions.ask("DELETE", f"/{v1}")

    assert 1 == shown["loaded"][0]["leases"]
    assert (409, "conflict", "1 requests hold v1; try again when they ended") == error_of(refused)


async def test_nothing_is_imported_while_another_model_serves(tmp_path: Path) -> None:
    """It would be compared with the base that no longer answers."""
    fake = FakeAdapters()
    base = str(demo_model())
    async with running(
        tmp_path, vllm=fake, model__base=base, engine__health_interval_s=0.05
    ) as app:
        versions = Versions(app, fake, tmp_path)
        fake.base = "another"
        await until(lambda: app.services.serving.why_unknown)
        status, code, message = error_of(await versions.ask("POST", "", {"path": str(tmp_path)}))

    assert (409, "conflict") == (status, code)
    assert message.startswith("the engine serves another now")


async def test_an_import_needs_to_know_the_base(versions: Versions, tmp_path: Path) -> None:
    """Without model.base nothing can be compared with the adapter."""
    status, code, message = error_of(await versions.ask("POST", "", {"path": str(tmp_path)}))

    assert (409, "conflict") == (status, code)
    assert "set model.base" in message


async def test_an_adapter_is_imported(tmp_path: Path, qwen3: Path, peft_a: Path) -> None:
    """201 and a version that is ready; without a probe it is activated with force only."""
    fake, home = FakeAdapters(), tmp_path / "home"
    home.mkdir()
    async with running(home, vllm=fake, model__base=str(qwen3)) as app:
        versions = Versions(app, fake, home)

        made = await versions.ask("POST", "", {"path": str(peft_a)})
        refused = await versions.activate("v1")
        forced = await versions.activate("v1", force=True)

    found = made.json()
    assert (201, "v1", "ready", "import", "base") == (
        made.status_code,
        found["id"],
        found["state"],
        found["origin"],
        found["parent"],
    )
    assert fake_probe.NO_PROBE == found["reason"]
    assert ["imported"] == [event["kind"] for event in found["events"]]
    status, code, message = error_of(refused)
    assert (409, "conflict") == (status, code)
    assert "v1 has no probe" in message
    assert (200, "unproven") == (forced.status_code, forced.json()["probe"]["outcome"])


async def test_what_is_no_adapter_is_not_imported(tmp_path: Path, qwen3: Path) -> None:
    """400 with the reason, and no version is made of it."""
    fake, home = FakeAdapters(), tmp_path / "home"
    home.mkdir()
    async with running(home, vllm=fake, model__base=str(qwen3)) as app:
        versions = Versions(app, fake, home)

        refused = await versions.ask("POST", "", {"path": str(tmp_path)})

        assert not list((home / "adapters").glob("v*"))
    status, code, message = error_of(refused)
    assert (400, "invalid_request") == (status, code)
    assert f"{tmp_path} can't be imported" in message


async def test_nothing_is_imported_while_the_base_is_broken(
    tmp_path: Path, qwen3: Path, peft_a: Path
) -> None:
    """409 with what is wrong with the base; the version that was begun is given up."""
    fake, home, base = FakeAdapters(), tmp_path / "home", tmp_path / "base"
    home.mkdir()
    shutil.copytree(qwen3, base)
    async with running(home, vllm=fake, model__base=str(base)) as app:
        versions = Versions(app, fake, home)
        (base / "config.json").unlink()

        refused = await versions.ask("POST", "", {"path": str(peft_a)})
        (found,) = (await versions.ask("GET", "")).json()["data"]

    status, code, message = error_of(refused)
    assert (409, "conflict") == (status, code)
    assert f"{base} has no config.json" in message
    assert "rejected" == found["state"]


async def test_how_people_rated_each_version_is_shown(tmp_path: Path, qwen3: Path) -> None:
    """The share of good ratings of its own answers, with its interval at 90 %."""
    fake, home = FakeAdapters(), tmp_path / "home"
    home.mkdir()
    async with running(home, vllm=fake, model__base=str(qwen3)) as app:
        versions, base = Versions(app, fake, home), app.services.serving.base
        assert base is not None
        await versions.publish(base=base)
        for version, rating in (("v1", "good"), ("v1", "bad"), ("base", "bad"), ("v1", 0)):
            await app.rate(await app.record(base=base, version=version), rating)

        found = (await versions.ask("GET")).json()

    liked = found["data"][0]["liked"]
    assert (0.5, 1, 2) == (liked["value"], liked["num_good"], liked["num"])
    assert 0 < liked["low"] < 0.5 < liked["high"] < 1
    assert (0, 1) == (found["base_liked"]["num_good"], found["base_liked"]["num"])


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("PUT", "/active", {}, (400, "expected `version`, a string")),
        ("PUT", "/active", {"version": 3}, (400, "expected `version` to be a string, got 3")),
        ("PUT", "/active", {"version": ""}, (400, "expected `version` to be a string, got ''")),
        (
            "PUT", "/active", {"version": "v1", "force": "yes"},
            (400, "expected `force` to be true or false, got 'yes'"),
        ),
        (
            "PUT", "/active", {"version": "v1", "wait": True},
            (400, "unknown field 'wait'; allowed here: version, force"),
        ),
        (
            "PUT", "/active", {"version": "v7"},
            (404, "no version 'v7'; list the versions to find its id"),
        ),
        ("POST", "/rollback", {"to": "v1"}, (400, "unknown field 'to'; allowed here: none")),
        ("POST", "", {}, (400, "expected `path`, a string")),
        (
            "POST", "", {"path": "here"},
            (400, "expected `path` to be an absolute path of a folder, got 'here'"),
        ),
        (
            "GET", "/v7", None,
            (404, "no version 'v7'; list the versions to find its id"),
        ),
        ("GET", "/v1?all=1", None, (400, "unknown query parameter 'all'; allowed here: none")),
        ("GET", "?limit=3", None, (400, "unknown query parameter 'limit'; allowed here: none")),
        ("PUT", "/v1", {}, (400, "expected `kept`, true or false")),
        ("PUT", "/v1", {"kept": 1}, (400, "expected `kept` to be true or false, got 1")),
        (
            "PUT", "/v7", {"kept": True},
            (404, "no version 'v7'; list the versions to find its id"),
        ),
        (
            "DELETE", "/v7", None,
            (404, "no version 'v7'; list the versions to find its id"),
        ),
        (
            "PATCH", "/v1", {},
            (405, "expected DELETE, GET, HEAD, PUT at /admin/adapters/v1, got PATCH"),
        ),
    ],
)  # fmt: skip
async def test_what_is_asked_wrongly_is_said(
    versions: Versions, method: str, path: str, body: object, expected: tuple[int, str]
) -> None:
    """What was expected, and what came."""
    await versions.publish()

    answer = await versions.ask(method, path, body)

    assert expected == (answer.status_code, answer.json()["error"]["message"])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/adapters/active", {"version": "v1"}),
        ("GET", "/adapters/v1", None),
        ("PUT", "/adapters/v1", {"kept": True}),
        ("DELETE", "/adapters/v1", None),
        ("POST", "chat", {"model": "tiny@v1", "messages": [{"role": "user", "content": "hi"}]}),
    ],
)
async def test_of_what_was_removed_it_is_said(
    versions: Versions, method: str, path: str, body: object
) -> None:
    """Runs and agents' settings name it still; that it never was would be untrue."""
    await versions.publish()
    assert 200 == (await versions.ask("DELETE", "/v1")).status_code
    url = "/v1/chat/completions" if path == "chat" else f"/admin{path}"
    headers = {} if path == "chat" else versions.app.admin

    answer = await versions.app.client.request(method, url, json=body, headers=headers)

    assert 404 == answer.status_code
    assert re.search(r"v1 was removed on \d{4}-\d\d-\d\d", answer.json()["error"]["message"])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("POST", ""),
        ("PUT", "/active"),
        ("POST", "/rollback"),
        ("GET", "/v1"),
        ("PUT", "/v1"),
        ("DELETE", "/v1"),
    ],
)
async def test_only_the_owner_may(versions: Versions, method: str, path: str) -> None:
    """401 without the admin key, before anything is looked at."""
    answer = await versions.app.client.request(method, f"/admin/adapters{path}")

    assert (401, "invalid_api_key") == (answer.status_code, answer.json()["error"]["code"])


async def test_an_engine_that_loads_none_says_so(tmp_path: Path) -> None:
    """409: the base serves, whatever is asked."""
    async with running(tmp_path) as app:
        await shelved.publish(app.services.store, Library(tmp_path / "adapters"))
        answer = await app.client.put(
            "/admin/adapters/active", json={"version": "v1"}, headers=app.admin
        )

    status, code, message = error_of(answer)
    assert (409, "conflict") == (status, code)
    assert "the engine vllm serves no adapters" in message
