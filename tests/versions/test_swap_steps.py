"""The order of an activation's steps, and what is undone where one of them fails."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from strop.adapters.probe import Judgement, Probe
from strop.adapters.swap import NotProven, Release, Switch

PROBE = Probe((), "float32")
NEW = Release("v2", "m@v2", Path("/a/v2"), PROBE)
OLD = Release("v1", "m@v1", Path("/a/v1"), PROBE)
BASE = Release("base", "m")

PROVEN = Judgement("proven", "", {}, 24)
FAILED = Judgement("failed", "the engine serves the base", {}, 24)

Recorded = list[str]


class Broken(Exception):
    """What a failing effect raises."""


class FakeEffects:
    """Records every effect, and fails where it is told to."""

    def __init__(
        self,
        *,
        fails: str = "",
        error: type[BaseException] = Broken,
        judgement: Judgement = PROVEN,
    ) -> None:
        self.recorded: Recorded = []
        self._fails = fails
        self._error = error
        self._judgement = judgement

    def _do(self, what: str) -> None:
        self.recorded.append(what)
        if what == self._fails:
            raise self._error(what)

    async def verify(self) -> None:
        self._do("verify")

    async def hold(self) -> None:
        self._do("hold")

    def let_go(self) -> None:
        self._do("let go")

    async def flip(self, release: Release) -> None:
        self._do(f"flip to {release.version}")

    async def prepare(self, release: Release) -> None:
        self._do(f"prepare {release.version}")

    async def load(self, release: Release) -> None:
        self._do(f"load {release.version}")

    async def prove(self, release: Release) -> Judgement:
        self._do(f"prove {release.version}")
        return self._judgement

    async def unload(self, release: Release) -> None:
        self._do(f"unload {release.version}")


def switch_of(effects: FakeEffects, release: Release = NEW, *, unproven: bool = False) -> Switch:
    """Return a switch whose every effect is `effects`."""
    return Switch(release, effects.verify, [effects], may_be_unproven=unproven)


async def test_beside_another_a_version_is_loaded_and_proven_before_traffic_moves() -> None:
    """The version before is not touched."""
    effects, steps = FakeEffects(), Recorded()
    switch = switch_of(effects)
    switch.on_step = steps.append

    done = await switch.beside(effects)

    assert ["verify", "prepare v2", "load v2", "prove v2", "flip to v2"] == effects.recorded
    assert ["verifying", "converting", "loading", "probing", "switching"] == steps
    assert (steps, PROVEN) == ([*done.timings_ms], done.judgement)


@pytest.mark.parametrize(
    ("fails", "undone"),
    [
        ("verify", []),
        ("prepare v2", []),
        ("load v2", ["unload v2"]),
        ("prove v2", ["unload v2"]),
        ("flip to v2", ["unload v2"]),
    ],
)
async def test_beside_another_a_failure_leaves_nothing_loaded(fails: str, undone: Recorded) -> None:
    """Nothing follows what failed but its undoing."""
    effects = FakeEffects(fails=fails)

    with pytest.raises(Broken):
        await switch_of(effects).beside(effects)

    assert undone == effects.recorded[effects.recorded.index(fails) + 1 :]


async def test_in_place_the_files_are_made_before_requests_are_held() -> None:
    """So the pause is no longer than it must be."""
    effects = FakeEffects()

    done = await switch_of(effects).in_place(effects, OLD)

    assert [
        *("verify", "prepare v2", "hold", "load v2", "prove v2", "flip to v2", "let go"),
    ] == effects.recorded
    assert done.pause_ms > 0


@pytest.mark.parametrize(
    ("fails", "undone"),
    [
        ("verify", []),
        ("prepare v2", []),
        ("hold", ["let go"]),
        ("load v2", ["load v1", "let go"]),
        ("prove v2", ["load v1", "let go"]),
        ("flip to v2", ["load v1", "let go"]),
    ],
)
async def test_in_place_a_failure_brings_the_former_back_before_requests_go_on(
    fails: str, undone: Recorded
) -> None:
    """Whatever fails, nobody stays held."""
    effects = FakeEffects(fails=fails)

    with pytest.raises(Broken):
        await switch_of(effects).in_place(effects, OLD)

    assert undone == effects.recorded[effects.recorded.index(fails) + 1 :]


@pytest.mark.parametrize("at", ["load v2", "prove v2", "flip to v2"])
async def test_in_place_a_switch_that_is_cancelled_loads_nothing_back(at: str) -> None:
    """Strop stops then, and a model may take minutes; its next start sees what the engine holds."""
    effects = FakeEffects(fails=at, error=asyncio.CancelledError)

    with pytest.raises(asyncio.CancelledError):
        await switch_of(effects).in_place(effects, OLD)

    assert [at, "let go"] == effects.recorded[-2:]


@pytest.mark.parametrize("how", ["beside", "in_place"])
async def test_an_engine_that_serves_another_version_gets_no_traffic_for_it(how: str) -> None:
    """The judgement says what it serves."""
    effects = FakeEffects(judgement=FAILED)
    switch = switch_of(effects)

    with pytest.raises(NotProven, match="serves the base"):
        await (switch.beside(effects) if how == "beside" else switch.in_place(effects, OLD))

    assert "flip to v2" not in effects.recorded


async def test_a_version_without_a_probe_is_served_only_if_that_is_accepted() -> None:
    """It is unproven then, not proven."""
    without = Release("v2", "m@v2", Path("/a/v2"), None)

    with pytest.raises(NotProven, match="no probe"):
        await switch_of(FakeEffects(), without).load()
    done = await switch_of(FakeEffects(), without, unproven=True).load()

    assert done.judgement is not None
    assert "unproven" == done.judgement.outcome


async def test_a_failed_probe_is_never_accepted() -> None:
    """Accepting what is unproven does not accept what is shown to be wrong."""
    with pytest.raises(NotProven):
        await switch_of(FakeEffects(judgement=FAILED), unproven=True).load()


@pytest.mark.parametrize("places", [(0, 1), (1, 0)])
async def test_of_several_engines_the_least_sure_one_says_what_is_known(
    places: tuple[int, int],
) -> None:
    """A version is not proven while one engine can't tell it from its parent."""
    unsure = Judgement("indistinguishable", "too near", {}, 24)
    engines = [FakeEffects(judgement=PROVEN), FakeEffects(judgement=unsure)]
    switch = Switch(NEW, engines[0].verify, [engines[place] for place in places])

    done = await switch.load()

    assert unsure == done.judgement


async def test_the_base_needs_no_files_and_no_probe() -> None:
    """It is what the engine serves by itself."""
    effects = FakeEffects()

    await switch_of(effects, BASE).in_place(effects, OLD)

    assert ["verify", "hold", "load base", "flip to base", "let go"] == effects.recorded


@pytest.mark.parametrize(
    "wrong", [lambda: FakeEffects(fails="load v2"), lambda: FakeEffects(judgement=FAILED)]
)
async def test_of_several_engines_all_must_serve_the_version(
    wrong: Callable[[], FakeEffects],
) -> None:
    """Where one doesn't, it is unloaded from each."""
    good, bad, traffic = FakeEffects(), wrong(), FakeEffects()
    switch = Switch(NEW, good.verify, [good, bad])

    with pytest.raises((Broken, NotProven)):
        await switch.beside(traffic)

    assert [] == traffic.recorded
    assert ("unload v2", "unload v2") == (good.recorded[-1], bad.recorded[-1])
