"""Strop is killed at each step of an activation, and started again."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest
import swap_process
from fake_adapters import FakeAdapters
from fake_engine import FakeEngine
from swapped import swapped

pytestmark = pytest.mark.faults


async def killed_at(step: str, home: Path, url: str, version: str) -> None:
    """Begin to activate `version` in another process, which dies at `step`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, swap_process.__file__, str(home), url, version, step),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert -signal.SIGKILL == process.returncode, said.decode()


@pytest.mark.parametrize(
    "step", ["verifying", "converting", "loading", "probing", "switching", "done"]
)
async def test_after_a_kill_the_store_says_what_serves(step: str, tmp_path: Path) -> None:
    """Either the old version or the new one, whole and proven; nothing half loaded is left."""
    home, fake = tmp_path / "home", FakeAdapters()
    async with FakeEngine(fake) as engine:
        async with swapped(home, fake=fake, engine=engine) as it:
            for _ in range(2):
                await it.publish()
            await it.swapper.activate("v1", actor="api")

        await killed_at(step, home, engine.url, "v2")
        fake.probed.clear()

        async with swapped(home, fake=fake, engine=engine) as it:
            active = await it.active()
            assert active in ({"v2"} if step == "done" else {"v1", "v2"})
            if step not in ("switching", "done"):
                assert "v1" == active
            assert active == await it.served()
            assert {f"tiny@{active}"} == {*fake.adapters}
            assert f"tiny@{active}" in fake.probed
            states = {one: (await it.version(one)).state for one in ("v1", "v2")}
            other = "v2" if active == "v1" else "v1"
            assert "active" == states[active]
            assert states[other] in ("ready", "retired")

            await it.swapper.activate("v2", actor="api")
            assert "v2" == await it.served()
