"""What one engine of several holds is compared with what it should, whatever happens meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from unasked import Unasked

from strop.adapters.swap import Release
from strop.proxy.alias import Alias, Leases, Served
from strop.proxy.engines.base import AdapterControl, AdaptersFolder
from strop.proxy.engines.vllm import Vllm
from strop.proxy.errors import EngineNotReady, UpstreamError
from strop.proxy.serving import Serving
from strop.proxy.settings.settings import Settings
from strop.proxy.store.store import Store
from strop.proxy.upstream.upstream import Upstream
from strop.proxy.versions.pairing import Pairings
from strop.proxy.versions.residents import Residents


class Leaving(Unasked):
    """A server that stops to answer checks as soon as it has said what it holds.

    Attributes:
        refuses: whether it unloads nothing.
    """

    def __init__(self) -> None:
        self.held = {"tiny@v9": "/adapters/v9"}
        self.answers = True
        self.refuses = False

    def members(self) -> Mapping[str, AdapterControl]:
        """Return itself while it answers."""
        return {"it": self} if self.answers else {}

    async def loaded(self) -> Mapping[str, str]:
        """Return what it holds."""
        self.answers = False
        return dict(self.held)

    async def unload(self, name: str) -> None:
        """Forget it."""
        if self.refuses:
            raise UpstreamError("it is busy")
        del self.held[name]


@pytest.fixture
async def server() -> Leaving:
    """One that answers."""
    return Leaving()


@pytest.fixture
def leases() -> Leases:
    """The requests."""
    return Leases()


@pytest.fixture
async def residents(server: Leaving, leases: Leases, tmp_path: Path) -> AsyncIterator[Residents]:
    """What it holds."""
    engine = Vllm(Upstream("http://127.0.0.1:1"), adapters=AdaptersFolder(tmp_path), num_adapters=2)
    serving = Serving(engine, Settings(), leases=leases)
    serving.put(Alias.of_base("", ("tiny",), accepts_any=False))
    store = await Store.open(tmp_path / "strop.db")
    yield Residents(serving, server, Pairings(store, "vllm"), lambda _: None)
    await store.close()


async def test_a_server_that_leaves_while_it_is_compared_breaks_nothing(
    server: Leaving, residents: Residents
) -> None:
    """A check may find so at any time, and a request waits for the comparison."""
    lacking = await residents.reconcile(lambda _: True)

    assert set() == lacking
    assert {} == server.held


async def test_where_no_server_answers_nothing_is_lost_and_nothing_can_be_loaded(
    server: Leaving, residents: Residents, tmp_path: Path
) -> None:
    """A version would be forgotten, or taken for loaded everywhere since it is on all of none."""
    residents.add(Release("v1", "tiny@v1", tmp_path / "v1"), None)
    server.answers = False

    with pytest.raises(EngineNotReady):
        await residents.reconcile(lambda _: True)
    with pytest.raises(EngineNotReady):
        residents.targets()

    assert residents.get("v1") is not None


def hold(server: Leaving, residents: Residents, *versions: str) -> None:
    """Let the server hold these versions too."""
    for version in versions:
        server.held[f"tiny@{version}"] = f"/adapters/{version}"
        release = Release(version, f"tiny@{version}", Path("/adapters") / version)
        residents.add(release, None)


async def test_what_is_held_once_more_is_unloaded_when_that_has_ended(
    server: Leaving, leases: Leases, residents: Residents
) -> None:
    """A request that asks for what the engine lost gives its hold back for as long."""
    hold(server, residents, "v1", "v2", "v3")
    async with residents.lock:
        residents.make_room()
        (drain,) = residents.drains
        # By now it waits for the lock, since nobody holds the version.
        await asyncio.sleep(0)
        leases.take(Served("v1", "tiny@v1"))
    await asyncio.sleep(0)
    is_held = "tiny@v1" in server.held

    leases.release(Served("v1", "tiny@v1"))
    await drain

    assert is_held
    assert "tiny@v1" not in server.held


async def test_what_the_server_does_not_unload_is_served_still_and_makes_room_later(
    server: Leaving, residents: Residents
) -> None:
    """Else it would be in nobody's way, and in the server for good."""
    hold(server, residents, "v1", "v2")
    server.refuses = True
    with pytest.raises(UpstreamError):
        await residents.drop("v1")
    server.refuses = False
    is_served = "v1" in residents.alias().versions

    hold(server, residents, "v3")
    residents.make_room()
    await asyncio.gather(*residents.drains)

    assert is_served
    assert "tiny@v1" not in server.held
