"""Adapter versions: reserved, published, removed; which is active, and where a rollback goes."""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from store_values import MODEL, OTHER_MODEL, database_in, learnable, version

from strop.proxy.errors import Conflict, NotFound
from strop.proxy.store import database
from strop.proxy.store.run_records import RunUpdate
from strop.proxy.store.store import Store
from strop.proxy.store.version_records import (
    Activation,
    Pairing,
    Version,
    VersionEvent,
    version_num,
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await Store.open(database_in(tmp_path), synchronous="off")
    yield made
    await made.close()


async def states(store: Store) -> dict[str, str]:
    return {one.id: one.state for one in reversed(await store.versions.list())}


async def kinds(store: Store, id_: str | None = None) -> list[tuple[str, str]]:
    """What happened, the first first."""
    events = await store.versions.list_events(id_, limit=1000)
    return [(one.version, one.kind) for one in reversed(events)]


async def run(store: Store, **changes: str | None) -> str:
    given: dict[str, Any] = {
        "objective": "topr",
        "preset": "balanced",
        "parent": None,
        "base": MODEL,
    }
    return (await store.runs.create(**{**given, **changes}, requested_by="cli")).id


async def test_a_reserved_version_is_a_candidate(store: Store) -> None:
    """Reserving gives the next number; nothing is said of it until it is published."""
    first = await store.versions.reserve(base=MODEL)
    second = await store.versions.reserve(base=MODEL, origin="import")

    expected = Version("v2", 2, second.created_ms, None, MODEL, None, "import", "candidate")
    assert ("v1", expected) == (first.id, second)
    assert expected == await store.versions.get("v2")
    assert [] == await kinds(store)


async def test_a_published_version_comes_back_as_it_was(store: Store) -> None:
    """Its parent, base, run, manifest and reason are read back equal."""
    parent = await version(store)
    made_by = await run(store, parent=parent.id)
    candidate = await store.versions.reserve(base=MODEL, parent=parent.id, run=made_by)

    published = await store.versions.publish(
        candidate.id, b'{"metrics":{"kl":0.01}}', state="ready", actor="gate", reason="naïve 日本"
    )

    assert ("v1", MODEL, made_by, "run", "ready", None, False) == (
        published.parent, published.base, published.run, published.origin, published.state,
        published.stale, published.is_kept,
    )  # fmt: skip
    assert (b'{"metrics":{"kl":0.01}}', "naïve 日本") == (published.manifest, published.reason)
    assert published == await store.versions.get("v2")


async def test_the_run_says_which_version_it_made(store: Store) -> None:
    """From the reservation on."""
    made_by = await run(store)

    candidate = await store.versions.reserve(base=MODEL, run=made_by)

    found = await store.runs.get(made_by)
    assert found is not None
    assert candidate.id == found.version


async def test_a_resumed_run_gets_its_candidate_again(store: Store) -> None:
    """One run makes one version; a new one only where the first was given up."""
    made_by = await run(store)
    first = await store.versions.reserve(base=MODEL, run=made_by)

    again = await store.versions.reserve(base=MODEL, run=made_by)
    await store.versions.fail(first.id, "its folder was never finished", actor="start")
    another = await store.versions.reserve(base=MODEL, run=made_by)

    assert (first, "v2") == (again, another.id)
    assert {"v1": "rejected", "v2": "candidate"} == await states(store)


async def test_a_run_that_is_over_makes_no_version(store: Store) -> None:
    """Nor does one that isn't there."""
    made_by = await run(store)
    await store.runs.update(made_by, RunUpdate(state="failed"))

    with pytest.raises(Conflict, match="isn't over"):
        await store.versions.reserve(base=MODEL, run=made_by)
    with pytest.raises(NotFound, match="'run_none'"):
        await store.versions.reserve(base=MODEL, run="run_none")


async def test_a_run_that_ends_unpublished_takes_its_candidate_along(store: Store) -> None:
    """No candidate outlives its run; what was published stays as it is."""
    failed = await run(store)
    await store.versions.reserve(base=MODEL, run=failed)
    await store.runs.update(failed, RunUpdate(state="failed"))
    passed = await run(store)
    await store.versions.reserve(base=MODEL, run=passed)
    await store.versions.publish("v2", b"{}", state="ready", actor="gate")
    await store.runs.update(passed, RunUpdate(state="running"))
    await store.runs.update(passed, RunUpdate(state="gating"))

    await store.runs.update(passed, RunUpdate(state="passed"))

    given_up = await store.versions.get("v1")
    assert given_up is not None
    assert f"{failed} failed" == given_up.reason
    assert {"v1": "rejected", "v2": "ready"} == await states(store)


async def test_only_what_was_ready_of_the_same_base_is_continued_from(store: Store) -> None:
    """A candidate, a rejected version and one of another base are no parents."""
    await store.versions.reserve(base=MODEL)
    await store.versions.reserve(base=MODEL)
    await store.versions.fail("v2", "no", actor="gate")
    await version(store)

    with pytest.raises(Conflict, match="v1 is candidate"):
        await store.versions.reserve(base=MODEL, parent="v1")
    with pytest.raises(Conflict, match="v2 is rejected"):
        await run(store, parent="v2")
    with pytest.raises(Conflict, match="of the base cdcdcdcd, but v3 is of abababab"):
        await store.versions.reserve(base=OTHER_MODEL, parent="v3")
    with pytest.raises(NotFound, match="'v9'"):
        await store.versions.reserve(base=MODEL, parent="v9")
    assert None is (await store.versions.reserve(base=MODEL, parent="base")).parent


async def test_only_a_candidate_is_published_or_failed(store: Store) -> None:
    """What a version was judged to be once, it stays."""
    await version(store)

    with pytest.raises(Conflict, match="expected a candidate, but v1 is ready"):
        await store.versions.publish("v1", b"{}", state="rejected", actor="gate")
    with pytest.raises(Conflict, match="expected a candidate, but v1 is ready"):
        await store.versions.fail("v1", "no", actor="gate")


async def test_what_is_not_there_is_said(store: Store) -> None:
    """Unknown ids, and such as are none, are NotFound; asked for, they are None."""
    for id_ in ("v1", "base", "v0", "v01", "v-1", "x", "", "v99999999999999999999"):
        assert await store.versions.get(id_) is None
        with pytest.raises(NotFound, match=f"no version '{id_}'"):
            await store.versions.set_kept(id_, True)
    with pytest.raises(NotFound):
        await store.versions.activate("v1", actor="api")
    with pytest.raises(NotFound):
        await store.versions.add_event("v1", "unloaded", actor="api")


def test_an_id_is_v_and_a_number() -> None:
    """Written in one way only."""
    assert [3, 1200] == [version_num(id_) for id_ in ("v3", "v1200")]
    assert [None] * 5 == [version_num(id_) for id_ in ("v03", "v٣", "V3", "v3 ", "3")]


async def test_events_tell_what_happened(store: Store) -> None:
    """Publishing says where a version comes from and what was found; each step has its event."""
    made_by = await run(store)
    await store.versions.reserve(base=MODEL, run=made_by)
    await store.versions.publish("v1", b"{}", state="ready", actor="gate", reason="all passed")
    await store.versions.reserve(base=MODEL, parent="v1")
    await store.versions.publish("v2", b"{}", state="rejected", actor="gate", reason="collapsed")
    for state in ("ready", "rejected"):
        imported = await store.versions.reserve(base=MODEL, origin="import")
        await store.versions.publish(imported.id, b"{}", state=state, actor="cli")
    await store.versions.mark_missing("v3", "no such folder", actor="start")
    await store.versions.remove("v3", actor="cli")

    assert [
        ("v1", "created"), ("v1", "passed"), ("v2", "created"), ("v2", "rejected"),
        ("v3", "imported"), ("v4", "imported"), ("v4", "rejected"), ("v3", "missing"),
        ("v3", "removed"),
    ] == await kinds(store)  # fmt: skip
    rejected, created = await store.versions.list_events("v2")
    assert {"reason": "collapsed"} == json.loads(rejected.detail)
    assert {"parent": "v1", "num_feedback": 0} == json.loads(created.detail)
    assert "gate" == rejected.actor


async def test_an_event_of_ones_own_is_kept(store: Store) -> None:
    """What the swap has to say stands among the others, of versions and of the base."""
    await version(store)
    detail = b'{"timings_ms":{"load":12.5},"reason":"it does not load"}'

    added = await store.versions.add_event("v1", "activation_failed", actor="api", detail=detail)
    await store.versions.add_event("base", "activating", actor="start")

    assert VersionEvent("v1", added.created_ms, "activation_failed", "api", detail) == added
    assert added == (await store.versions.list_events("v1", limit=1))[0]
    assert [("base", "activating")] == await kinds(store, "base")
    assert [] == await kinds(store, "x")
    assert 2 == len(await store.versions.list_events(limit=2))


async def test_numbers_are_never_given_again(store: Store) -> None:
    """Removed versions are gone from every list, and the next one still has a number of its own."""
    for _ in range(3):
        await version(store)
    for id_ in ("v3", "v2"):
        await store.versions.remove(id_, actor="cli")

    made = await version(store)

    assert "v4" == made.id
    assert {"v1": "ready", "v4": "ready"} == await states(store)
    assert await store.versions.get("v3") is None
    with pytest.raises(NotFound):
        await store.versions.remove("v3", actor="cli")
    with pytest.raises(NotFound):
        await store.versions.activate("v3", actor="cli")


PROBE = b'{"prompt_ids":[9151,9152,9153]}'
MANIFEST = b'{"run":"run_1","probe":%b,"created_ms":1,"digest":"of it"}' % PROBE


def kept_manifests(folder: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(database_in(folder))) as connection:
        rows = connection.execute("SELECT manifest FROM versions ORDER BY num").fetchall()
    return [manifest for (manifest,) in rows]


async def test_what_is_removed_keeps_no_probe(store: Store, tmp_path: Path) -> None:
    """What people asked stands in it; what else is known of the version stays."""
    for _ in range(2):
        made = await store.versions.reserve(base=MODEL)
        await store.versions.publish(made.id, MANIFEST, state="ready", actor="gate")

    await store.versions.remove("v1", actor="cli")

    assert ['{"run":"run_1","created_ms":1}', MANIFEST.decode()] == kept_manifests(tmp_path)


async def test_a_manifest_that_is_damaged_goes_whole(store: Store, tmp_path: Path) -> None:
    """What stands in it can't be told; it hinders nothing."""
    await version(store)
    await store._writer.submit(lambda c: c.execute("UPDATE versions SET manifest = '{\"probe'"))

    await store.versions.remove("v1", actor="cli")

    assert ["{}"] == kept_manifests(tmp_path)


async def test_what_was_removed_before_loses_its_probe_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the database is brought up to date; the files have it no more once strop has ended."""
    scripts = database.migrations()
    large = MANIFEST.replace(b"[", b"[" + b"9151," * 5000)
    with monkeypatch.context() as older:
        older.setattr(database, "migrations", lambda: scripts[:5])
        connection = database.connect(database_in(tmp_path))
    row = (1, MODEL, "run", "retired", large.decode())
    damaged = (*row[:-1], '{"probe')
    for removed in ((*row, 2), (*row, None), (*damaged, 2)):
        connection.execute(
            "INSERT INTO versions (created_ms, base, origin, state, manifest, removed_ms)"
            " VALUES (?, ?, ?, ?, ?, ?)", removed,
        )  # fmt: skip
    connection.close()
    before = database_in(tmp_path).read_bytes().count(b"9151,")

    await (await Store.open(database_in(tmp_path))).close()

    assert ['{"run":"run_1","created_ms":1}', large.decode(), "{}"] == kept_manifests(tmp_path)
    assert before == 2 * database_in(tmp_path).read_bytes().count(b"9151,") > 0
    assert not Path(f"{database_in(tmp_path)}-wal").exists()


async def test_what_is_active_or_being_made_cannot_be_removed(store: Store) -> None:
    """The error says what to do first; once another one is active, it can."""
    await version(store, is_active=True)
    await store.versions.reserve(base=MODEL)

    with pytest.raises(Conflict, match="v1 is active; activate another version first"):
        await store.versions.remove("v1", actor="cli")
    with pytest.raises(Conflict, match="v2 is being made; cancel its run"):
        await store.versions.remove("v2", actor="cli")
    await store.versions.activate("base", actor="cli")
    await store.versions.remove("v1", actor="cli")

    assert {"v2": "candidate"} == await states(store)


async def test_a_base_is_called_as_the_newest_run_called_it(store: Store) -> None:
    """Its folder may have moved since the first; an imported version knows of none."""
    for folder in ("/old/small", "/new/small-4bit"):
        config = json.dumps({"base_path": folder}).encode()
        made_by = await store.runs.create(
            objective="topr",
            preset="balanced",
            parent=None,
            base=MODEL,
            requested_by="cli",
            config=config,
        )
        await store.versions.reserve(base=MODEL, run=made_by.id)
        await store.runs.update(made_by.id, RunUpdate(state="failed"))
    await store.versions.reserve(base=MODEL, origin="import")
    await store.versions.reserve(base=OTHER_MODEL, origin="import")

    names = await store.versions.base_names()

    assert {
        MODEL: f"small-4bit ({MODEL[7:15]})",
        OTHER_MODEL: OTHER_MODEL[7:15],
    } == names


async def test_a_version_is_kept_and_let_go(store: Store) -> None:
    """The mark is kept, and nothing else changes."""
    made = await version(store)

    kept = await store.versions.set_kept("v1", True)
    let_go = await store.versions.set_kept("v1", False)

    assert (True, made) == (kept.is_kept, let_go)


async def test_what_is_kept_goes_only_once_it_is_let_go(store: Store) -> None:
    """Whoever removes it; and by itself it may have been chosen to go before it was kept."""
    await version(store)
    await store.versions.set_kept("v1", True)

    for actor in ("watch", "cli"):
        with pytest.raises(Conflict, match="v1 is kept; let it go first"):
            await store.versions.remove("v1", actor=actor)
    await store.versions.set_kept("v1", False)
    await store.versions.remove("v1", actor="cli")

    assert {} == await states(store)


async def test_a_missing_version_says_why(store: Store) -> None:
    """The newest reason; a rejected one needs no folder, and a candidate has none yet."""
    await version(store)
    await store.versions.reserve(base=MODEL)
    await store.versions.reserve(base=MODEL)
    await store.versions.fail("v3", "collapsed", actor="gate")

    first = await store.versions.mark_missing("v1", "no such folder", actor="start")
    again = await store.versions.mark_missing("v1", "still none", actor="start")
    rejected = await store.versions.mark_missing("v3", "no such folder", actor="start")

    assert ("missing", "no such folder") == (first.state, first.reason)
    assert replace(first, reason="still none") == again
    assert ["missing"] == [kind for _, kind in await kinds(store, "v1") if kind == "missing"]
    assert ("rejected", "collapsed") == (rejected.state, rejected.reason)
    with pytest.raises(Conflict, match="v2 is a candidate"):
        await store.versions.mark_missing("v2", "no such folder", actor="start")


async def test_what_was_missing_is_found_as_what_it_would_be_now(store: Store) -> None:
    """With what was said of it before; the one on top of the stack serves again."""
    for _ in range(3):
        await version(store)
    for one in ("v1", "v2"):
        await store.versions.activate(one, actor="api")
    before = await store.versions.list()
    for one in ("v1", "v2", "v3"):
        await store.versions.mark_missing(one, "no such folder", actor="start")
        await store.versions.mark_missing(one, "still none", actor="watch")

    for one in ("v1", "v2", "v3"):
        await store.versions.mark_found(one, actor="start")
    again = await store.versions.mark_found("v3", actor="start")

    assert {"v1": "retired", "v2": "active", "v3": "ready"} == await states(store)
    assert before == await store.versions.list()
    assert before[0] == again
    assert 1 == [kind for _, kind in await kinds(store, "v3")].count("found")


async def test_what_gets_its_probe_is_the_same_version_and_no_reason_is_left(store: Store) -> None:
    """Also once it was missing, before and after; where it can get none, it says why."""
    await store.versions.reserve(base=MODEL)
    await store.versions.publish("v1", b"{}", state="ready", actor="cli", reason="later")
    await store.versions.mark_missing("v1", "no such folder", actor="start")
    before = await store.versions.mark_found("v1", actor="start")

    probed = await store.versions.amend("v1", b'{"probe": 1}', reason=None, actor="watch")
    await store.versions.mark_missing("v1", "no such folder", actor="start")
    found = await store.versions.mark_found("v1", actor="start")
    failed = await store.versions.amend("v1", b"{}", reason="no torch", actor="watch")

    assert replace(before, reason=None, manifest=b'{"probe": 1}') == probed == found
    assert ("later", "no torch") == (before.reason, failed.reason)
    assert 2 == [kind for _, kind in await kinds(store, "v1")].count("probed")


async def test_only_a_version_with_its_folder_gets_a_probe(store: Store) -> None:
    """It may have been lost while the probe was made."""
    await version(store)
    for _ in range(2):
        await store.versions.reserve(base=MODEL)
    await store.versions.fail("v2", "collapsed", actor="gate")
    await store.versions.mark_missing("v1", "no such folder", actor="start")
    before = await store.versions.list()

    for id_, state in (("v1", "missing"), ("v2", "rejected"), ("v3", "candidate")):
        with pytest.raises(Conflict, match=f"{id_} is {state}"):
            await store.versions.amend(id_, b"{}", reason=None, actor="watch")
    with pytest.raises(NotFound):
        await store.versions.amend("v9", b"{}", reason=None, actor="watch")

    assert before == await store.versions.list()


async def test_what_was_missing_while_another_was_activated_is_retired(store: Store) -> None:
    """One version is active, whichever folders come back."""
    for _ in range(2):
        await version(store)
    await store.versions.activate("v1", actor="api")
    await store.versions.mark_missing("v1", "no such folder", actor="start")
    await store.versions.activate("v2", actor="api")

    await store.versions.mark_found("v1", actor="start")

    assert {"v1": "retired", "v2": "active"} == await states(store)
    assert "v1" == (await store.versions.activation()).previous


async def test_before_the_first_activation_the_base_is_active(store: Store) -> None:
    """Since the beginning of time, with nowhere to roll back to."""
    assert Activation("base", None, 0, "start") == await store.versions.activation()


async def test_one_version_is_active(store: Store) -> None:
    """Activating one retires the one before; the base too can be activated."""
    for _ in range(3):
        await version(store)

    await store.versions.activate("v1", actor="api")
    second = await store.versions.activate("v2", actor="gate")
    before = await states(store)
    third = await store.versions.activate("base", actor="cli")

    assert ("v2", "v1", "gate") == (second.version, second.previous, second.actor)
    assert {"v1": "retired", "v2": "active", "v3": "ready"} == before
    assert ("base", "v2", "cli") == (third.version, third.previous, third.actor)
    assert {"v1": "retired", "v2": "retired", "v3": "ready"} == await states(store)
    assert third == await store.versions.activation()


async def test_activations_have_events_on_both_sides(store: Store) -> None:
    """What was active says what followed, the new one where it came from, and what came with it."""
    await version(store)
    await version(store)
    await store.versions.activate("v1", actor="api", detail=b'{"timings_ms":{"load":3}}')
    await store.versions.activate("v2", actor="api")
    await store.versions.activate("v1", actor="watch", kind="rolled_back")

    found = [
        (one.version, one.kind, json.loads(one.detail))
        for one in reversed(await store.versions.list_events())
        if one.kind in ("activated", "deactivated", "rolled_back")
    ]
    assert [
        ("base", "deactivated", {"to": "v1"}),
        ("v1", "activated", {"from": "base", "timings_ms": {"load": 3}}),
        ("v1", "deactivated", {"to": "v2"}),
        ("v2", "activated", {"from": "v1"}),
        ("v2", "deactivated", {"to": "v1"}),
        ("v1", "rolled_back", {"from": "v2"}),
    ] == found


async def test_activating_what_is_active_changes_nothing(store: Store) -> None:
    """No second activation, no event, and a rollback goes where it went."""
    await version(store, is_active=True)
    await version(store)
    first = await store.versions.activate("v2", actor="api")
    events = await kinds(store)

    again = await store.versions.activate("v2", actor="cli")

    assert first == again
    assert events == await kinds(store)


async def test_only_what_is_ready_or_retired_is_activated(store: Store) -> None:
    """A candidate, a rejected and a missing version are refused, and nothing changes."""
    await version(store, is_active=True)
    await store.versions.reserve(base=MODEL)
    await store.versions.reserve(base=MODEL)
    await store.versions.fail("v3", "no", actor="gate")
    await version(store)
    await store.versions.mark_missing("v4", "gone", actor="start")

    for id_, state in (("v2", "candidate"), ("v3", "rejected"), ("v4", "missing")):
        with pytest.raises(Conflict, match=f"{id_} is {state}"):
            await store.versions.activate(id_, actor="api")
    assert "v1" == (await store.versions.activation()).version
    assert "active" == (await states(store))["v1"]


async def roll_back(store: Store) -> str:
    """Roll back; return what is active then."""
    target = (await store.versions.activation()).previous
    assert target is not None
    return (await store.versions.activate(target, actor="api", kind="rolled_back")).version


async def activate(store: Store, *ids: str) -> None:
    for id_ in ids:
        await store.versions.activate(id_, actor="api")


async def test_repeated_rollbacks_go_further_back(store: Store) -> None:
    """Not to and fro: each goes to what was active before the version that it lands on."""
    for _ in range(4):
        await version(store)
    await activate(store, "v1", "v2", "v3")

    below = (await store.versions.activation()).below
    twice = [await roll_back(store), await roll_back(store)]
    await activate(store, "v4")
    then = [await roll_back(store), await roll_back(store)]

    assert ["v2", "v1"] == twice
    assert ["v1", "base"] == then
    last = await store.versions.activation()
    assert (("v2", "v1", "base"), ()) == (below, last.below)
    assert last.previous is None


async def test_a_version_that_was_active_twice_is_rolled_back_to_in_turn(store: Store) -> None:
    """Each activation has its own place, also where the same version has several."""
    for _ in range(2):
        await version(store)
    await activate(store, "v1", "v2", "v1")

    found = [await roll_back(store) for _ in range(3)]

    assert ["v2", "v1", "base"] == found


async def test_a_rollback_can_leave_out_what_lies_between(store: Store) -> None:
    """It may go to any version below, and goes on from there; not to one that wasn't active."""
    for _ in range(4):
        await version(store)
    await activate(store, "v1", "v2", "v3")

    with pytest.raises(Conflict, match="v4 was not"):
        await store.versions.activate("v4", actor="api", kind="rolled_back")
    found = await store.versions.activate("v1", actor="api", kind="rolled_back")

    assert ("v1", "base") == (found.version, found.previous)


async def test_a_rollback_passes_over_what_is_gone(store: Store) -> None:
    """Removed and missing versions, and then what is active already, are no way back."""
    for _ in range(3):
        await version(store)
    await activate(store, "v1", "v2", "v3", "v2", "v3")

    await store.versions.mark_missing("v2", "gone", actor="start")
    without_v2 = (await store.versions.activation()).previous
    await store.versions.remove("v1", actor="cli")
    without_v1 = (await store.versions.activation()).previous

    assert ("v1", "base") == (without_v2, without_v1)


async def test_a_missing_version_that_is_active_can_be_left(store: Store) -> None:
    """It stays missing, and what is activated instead is the only active one."""
    await version(store, is_active=True)
    await version(store)
    await store.versions.mark_missing("v1", "gone", actor="start")

    with pytest.raises(Conflict, match="v1 is active"):
        await store.versions.remove("v1", actor="cli")
    found = await store.versions.activate("v2", actor="api")

    assert ("v2", "base") == (found.version, found.previous)
    assert {"v1": "missing", "v2": "active"} == await states(store)


async def test_activations_at_once_leave_one_active(store: Store) -> None:
    """Whatever comes last is active, alone, and all of them lie below it."""
    for _ in range(5):
        await version(store)

    await asyncio.gather(*(store.versions.activate(f"v{n}", actor="api") for n in (1, 2, 3, 4, 5)))

    assert ["active"] == [state for state in (await states(store)).values() if state == "active"]
    assert "active" == (await states(store))[(await store.versions.activation()).version]


async def test_a_database_holds_one_active_version(store: Store, tmp_path: Path) -> None:
    """The schema itself refuses a second one."""
    await version(store, is_active=True)
    await version(store)

    with (
        sqlite3.connect(database_in(tmp_path)) as other,
        pytest.raises(sqlite3.IntegrityError, match="UNIQUE"),
    ):
        other.execute("UPDATE versions SET state = 'active'")
    other.close()


async def test_what_is_active_is_known_after_a_restart(tmp_path: Path) -> None:
    """Versions, the activation and what lies below it are read from the file."""
    first = await Store.open(database_in(tmp_path))
    await learnable(first, 1)
    await version(first, is_active=True)
    await version(first, is_active=True)
    expected = await first.versions.activation(), await states(first)
    await first.close()

    second = await Store.open(database_in(tmp_path), is_server=True)
    found = await second.versions.activation(), await states(second)
    await second.close()

    assert expected == found
    assert ("v2", "v1") == (found[0].version, found[0].previous)


async def test_an_engines_pairing_is_replaced_and_forgotten(store: Store) -> None:
    """One for each engine; forgetting one that isn't there is no error."""
    first = Pairing("vllm", "sha256:1", MODEL, 0.002, 1)
    second = Pairing("vllm", "sha256:2", OTHER_MODEL, 0.003, 2)

    await store.versions.set_pairing(first)
    await store.versions.set_pairing(second)
    found = await store.versions.pairing("vllm")
    await store.versions.remove_pairing("vllm")
    await store.versions.remove_pairing("vllm")

    assert second == found
    assert await store.versions.pairing("vllm") is None
