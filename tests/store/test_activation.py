"""An activation whose store fails: nothing of it is written later, and nothing is blamed for it."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from fake_adapters import FakeAdapters
from fake_engine import Call
from store_values import MODEL, database_in
from swapped import swapped
from waiting import until

from strop.adapters.probe import Judgement
from strop.proxy.errors import StoreUnavailable
from strop.proxy.store.store import Store
from strop.proxy.versions.pairing import Pairings

SOON = {"commit_timeout_s": 0.05}


class Locked:
    """Another program that holds the write lock of a home's database."""

    def __init__(self, home: Path) -> None:
        self._other = sqlite3.connect(database_in(home), isolation_level=None)

    def take(self) -> None:
        self._other.execute("BEGIN IMMEDIATE")

    def give_back(self) -> None:
        if self._other.in_transaction:
            self._other.execute("ROLLBACK")

    def close(self) -> None:
        self._other.close()


async def nothing(_: str) -> None:
    """Do nothing before a version is loaded."""


class Locking(FakeAdapters):
    """An engine beside which the database is locked from a version's loading to its unloading."""

    lock: Locked | None = None

    async def _load(self, call: Call) -> None:
        if self.lock is not None:
            self.lock.take()
        await super()._load(call)

    async def _unload(self, call: Call) -> None:
        await super()._unload(call)
        if self.lock is not None:
            self.lock.give_back()


@pytest.mark.parametrize("num_adapters", [2, 1], ids=["beside", "in place"])
async def test_what_cannot_be_recorded_in_time_is_not_active_later(
    tmp_path: Path, num_adapters: int
) -> None:
    """The version before serves on, and is what the store says, also once the lock is gone."""
    home, fake = tmp_path / "home", FakeAdapters()
    async with swapped(home, fake=fake, capture=SOON, num_adapters=num_adapters) as it:
        first, second = await it.publish(), await it.publish()
        await it.swapper.activate(first, actor="api")
        lock = Locked(home)

        async def take(name: str) -> None:
            if name.endswith(second):
                lock.take()

        fake.before_load = take
        with pytest.raises(StoreUnavailable, match="another program holds its write lock"):
            await it.swapper.activate(second, actor="api")
        lock.close()
        fake.before_load = nothing
        # What was queued before it is written by now.
        await it.proxy.services.store.versions.set_kept(first, True)

        assert (first, first) == (await it.active(), await it.served())
        assert [f"tiny@{first}"] == [*fake.adapters]
        done = await it.swapper.activate(second, actor="api")
        assert (first, second, second) == (done.previous, await it.active(), await it.served())


async def test_a_store_that_fails_is_not_the_versions_fault(tmp_path: Path) -> None:
    """Where a failure of it was noted, it would never be promoted by itself."""
    home, fake = tmp_path / "home", Locking()
    async with swapped(home, fake=fake, capture=SOON) as it:
        version = await it.publish()
        fake.lock = Locked(home)

        with pytest.raises(StoreUnavailable):
            await it.swapper.activate(version, actor="gate")
        fake.lock.close()
        fake.lock = None

        assert ["created", "passed", "activating"] == await it.events(version)
        await it.swapper.activate(version, actor="gate")
        assert version == await it.served()


async def test_a_switch_that_is_recorded_as_strop_ends_is_gone_on_with(tmp_path: Path) -> None:
    """Nobody waits for the record any more, and it is written: the next start serves it."""
    home, fake = tmp_path / "home", FakeAdapters()
    async with swapped(home, fake=fake) as it:
        version = await it.publish()
        lock = Locked(home)

        async def take(_: str) -> None:
            lock.take()

        fake.before_load = take
        activating = asyncio.create_task(it.swapper.activate(version, actor="api"))
        await until(lambda: it.swapper.progress and it.swapper.progress.step == "switching")
        ending = asyncio.create_task(it.swapper.aclose())
        await asyncio.wait([activating])
        lock.close()
        await ending

    assert activating.cancelled()
    async with swapped(home, fake=FakeAdapters()) as it:
        assert (version, version) == (await it.active(), await it.served())


async def test_a_pairing_that_cannot_be_kept_fails_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it was shown by serves already; it is kept when it is shown again."""
    store = await Store.open(database_in(tmp_path), busy_timeout_s=0.02)
    pairings = Pairings(store, "vllm")
    pairings.measured(0.01)
    shown = Judgement("proven", "", {}, 0)

    lock = Locked(tmp_path)
    lock.take()
    await pairings.note(MODEL, shown)
    lock.close()
    none = await store.versions.pairing("vllm")
    await pairings.note(MODEL, shown)
    kept = await store.versions.pairing("vllm")
    await store.close()

    assert "a pairing was not kept" in caplog.text
    assert none is None
    assert kept is not None
    assert (MODEL, 0.01) == (kept.base, kept.error)
