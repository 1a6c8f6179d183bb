"""What one engine of several holds is compared with what it should, whatever happens meanwhile."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from strop.adapters.swap import Release
from strop.proxy.alias import Alias
from strop.proxy.engines.base import AdapterControl, AdaptersFolder
from strop.proxy.engines.vllm import Vllm
from strop.proxy.errors import EngineNotReady
from strop.proxy.pairing import Pairings
from strop.proxy.residents import Residents
from strop.proxy.serving import Serving
from strop.proxy.store.store import Store
from strop.proxy.upstream import Upstream


class Leaving(AdapterControl):
    """A server that stops to answer checks as soon as it has said what it holds."""

    def __init__(self) -> None:
        self.held = {"tiny@v9": "/adapters/v9"}
        self.answers = True

    def members(self) -> Mapping[str, AdapterControl]:
        """Return itself while it answers."""
        return {"it": self} if self.answers else {}

    async def loaded(self) -> Mapping[str, str]:
        """Return what it holds."""
        self.answers = False
        return dict(self.held)

    async def unload(self, name: str) -> None:
        """Forget it."""
        del self.held[name]


@pytest.fixture
async def server() -> Leaving:
    """One that answers."""
    return Leaving()


@pytest.fixture
async def residents(server: Leaving, tmp_path: Path) -> AsyncIterator[Residents]:
    """What it holds."""
    engine = Vllm(Upstream("http://127.0.0.1:1"), adapters=AdaptersFolder(tmp_path))
    serving = Serving(engine, model_name="", accepts_any=False, check_interval_s=1.0)
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
