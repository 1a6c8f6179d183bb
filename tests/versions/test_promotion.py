"""What becomes of what a run made: activated once, or left, or rolled back later."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import fake_probe
import orjson
import pytest
from fake_swapper import FakeSwapper
from store_values import MODEL, OTHER_MODEL, database_in, learnable, rate, record

from strop.adapters.library import Library
from strop.adapters.rates import Rate
from strop.proxy.errors import (
    ActivationFailed,
    Conflict,
    EngineNotReady,
    NotFound,
    StoreUnavailable,
    StropError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from strop.proxy.settings.settings import Training
from strop.proxy.store.run_records import RunUpdate
from strop.proxy.store.store import Store
from strop.proxy.versions.activation import Progress
from strop.proxy.versions.displaced import START
from strop.proxy.versions.loading import BUSY, GONE
from strop.proxy.versions.probe_job import ProbeJob
from strop.proxy.versions.promotion import (
    IDLE_S,
    MAX_GONE,
    RETRY_AFTER_S,
    Promoter,
)
from strop.proxy.versions.shelf import Shelf

DIED = orjson.dumps({"reason": "it died", GONE: True})
HELD_UP = orjson.dumps({"reason": "answers take too long", BUSY: True})


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store."""
    made = await Store.open(database_in(tmp_path), synchronous="off")
    yield made
    await made.close()


async def passed(
    store: Store, parent: str | None = None, feedback: tuple[str, int] | None = None
) -> str:
    """Let a run pass, and return the version that it made."""
    run = await store.runs.create(
        objective="topr", preset="balanced", parent=parent, base=MODEL, requested_by="test"
    )
    await store.runs.update(run.id, RunUpdate(state="running"))
    made = await store.versions.reserve(base=MODEL, parent=parent, run=run.id)
    learned = () if feedback is None else (feedback,)
    await store.versions.publish(made.id, b"{}", learned, state="ready", actor="run")
    await store.runs.update(run.id, RunUpdate(state="gating"))
    await store.runs.update(run.id, RunUpdate(state="passed"))
    return made.id


def promoter(
    store: Store,
    swapper: FakeSwapper,
    promote: Literal["auto", "manual"] = "auto",
    retry_after_s: float = RETRY_AFTER_S,
) -> Promoter:
    """Return a promoter that follows at each call."""
    settings = Training(promote=promote)
    return Promoter(settings, store, swapper, follow_interval_s=0, retry_after_s=retry_after_s)


async def test_what_passed_is_activated_once(store: Store) -> None:
    """By `gate`; a person who goes back to its parent is not overruled."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    v1 = await passed(store)

    await decides.promote()
    await store.versions.activate("base", actor="api")
    await decides.promote()
    await promoter(store, swapper).promote()

    assert [(v1, "gate")] == swapper.activated


async def test_what_is_left_to_people_stays_ready(store: Store) -> None:
    """With training.promote = manual."""
    swapper = FakeSwapper(store)
    v1 = await passed(store)

    await promoter(store, swapper, "manual").promote()

    found = await store.versions.get(v1)
    assert found is not None
    assert (0, "ready") == (swapper.asked, found.state)


async def test_without_its_parent_active_it_stays_ready(store: Store) -> None:
    """Somebody activated another version while it was made."""
    swapper = FakeSwapper(store)
    v1 = await passed(store)
    await store.versions.activate(v1, actor="api")
    await passed(store, parent=v1)
    await store.versions.activate("base", actor="api")

    await promoter(store, swapper).promote()

    assert 0 == swapper.asked


@pytest.mark.parametrize("is_stale", [True, False])
async def test_what_was_relearned_takes_the_place_of_a_stale_version(
    store: Store, is_stale: bool
) -> None:
    """Made from the stale one's newest clean ancestor; a version that isn't stale stays."""
    swapper = FakeSwapper(store)
    learned = await learnable(store, 1)
    v1 = await passed(store)
    v2 = await passed(store, parent=v1, feedback=learned)
    v3 = await passed(store, parent=v2)
    await store.versions.activate(v3, actor="api")
    if is_stale:
        await store.withdraw(learned[0], None)
    v4 = await passed(store, parent=v1)

    await promoter(store, swapper).promote()

    assert ([(v4, "gate")] if is_stale else []) == swapper.activated


async def test_relearning_starts_from_what_is_there(store: Store) -> None:
    """Neither from what is stale, nor from what has no folder any more."""
    learned = await learnable(store, 1)
    v1 = await passed(store)
    v2 = await passed(store, parent=v1)
    v3 = await passed(store, parent=v2, feedback=learned)
    await store.withdraw(learned[0], None)
    clean = await store.versions.clean_ancestor(v3)

    await store.versions.mark_missing(v2, "no such folder", actor="start")

    assert (v2, v1) == (clean, await store.versions.clean_ancestor(v3))


async def test_relearning_starts_behind_what_was_removed(store: Store) -> None:
    """A version that a person kept is there, though the one between was deleted."""
    learned = await learnable(store, 1)
    v1 = await passed(store)
    v2 = await passed(store, parent=v1)
    v3 = await passed(store, parent=v2, feedback=learned)
    await store.versions.activate(v3, actor="api")
    await store.versions.remove(v2, actor="watch")

    await store.withdraw(learned[0], None)

    assert v1 == await store.versions.clean_ancestor(v3)


@pytest.mark.parametrize("is_removed", [True, False])
async def test_what_relearning_starts_from_stays(
    store: Store, is_removed: bool, tmp_path: Path
) -> None:
    """However old it is, and though what came behind it is gone."""
    learned = await learnable(store, 1)
    v1 = await passed(store)
    v2 = await passed(store, parent=v1)
    v3 = await passed(store, parent=v2, feedback=learned)
    v4 = await passed(store, parent=v3)
    await store.versions.activate(v4, actor="api")
    if is_removed:
        await store.versions.remove(v2, actor="watch")
    else:
        await store.versions.mark_missing(v2, "no such folder", actor="start")
    shelf = Shelf(
        store,
        Library(tmp_path / "adapters"),
        find_base=lambda: None,
        probes=ProbeJob(tmp_path, Training(), fake_probe.command()),
        num_kept=0,
        converted=tmp_path / "adapters-mlx",
    )
    before = await shelf.removable(base=MODEL, on_engines=())

    await store.withdraw(learned[0], None)

    assert (v1, v3) == before
    assert (v3,) == await shelf.removable(base=MODEL, on_engines=())

    # Another base is served for a while.
    await store.versions.activate("base", actor=START)

    assert (v3,) == await shelf.removable(base=OTHER_MODEL, on_engines=())


async def test_a_stale_version_is_not_promoted(store: Store) -> None:
    """A rating that it learned from was taken back while it was made."""
    swapper = FakeSwapper(store)
    learned = await learnable(store, 1)
    await store.withdraw(learned[0], None)
    await passed(store, feedback=learned)

    await promoter(store, swapper).promote()

    assert 0 == swapper.asked


async def test_a_rejected_or_failed_run_promotes_nothing(store: Store) -> None:
    """There is no version, or none that may serve."""
    swapper = FakeSwapper(store)
    run = await store.runs.create(
        objective="topr", preset="balanced", parent=None, base=MODEL, requested_by="test"
    )
    await promoter(store, swapper).promote()
    await store.runs.update(run.id, RunUpdate(state="failed"))

    await promoter(store, swapper).promote()

    assert 0 == swapper.asked


@pytest.mark.parametrize(
    "error",
    [
        EngineNotReady("it has not answered yet"),
        UpstreamUnreachable("it is being started again"),
        UpstreamTimeout("it is busy"),
        StoreUnavailable("the disk is full"),
    ],
)
async def test_an_engine_that_is_not_ready_is_waited_for(store: Store, error: StropError) -> None:
    """And an activation under way; then it is promoted."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    v1 = await passed(store)

    swapper.error = error
    await decides.promote()
    swapper.error, swapper.progress = None, Progress("v9", "loading", 0)
    await decides.promote()
    before = list(swapper.activated)
    swapper.progress = None
    await decides.promote()

    assert [] == before
    assert [(v1, "gate")] == swapper.activated


@pytest.mark.parametrize(
    "error", [ActivationFailed("the engine does not serve it"), Conflict("it has no probe")]
)
async def test_what_could_not_be_activated_is_not_tried_again(
    store: Store, error: StropError
) -> None:
    """Not at the next look; and after a restart not if the engine refused it."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    v1 = await passed(store)
    swapper.error = error

    await decides.promote()
    await decides.promote()
    await store.versions.add_event(v1, "activation_failed", actor="gate")
    await promoter(store, swapper).promote()

    assert 1 == swapper.asked


async def test_an_engine_that_goes_away_is_tried_again_but_not_for_ever(store: Store) -> None:
    """It may have been started again; or the version is what ends it."""
    await passed(store)
    swapper = FakeSwapper(store)
    swapper.error = ActivationFailed("the engine died")
    swapper.detail = DIED

    for _ in range(MAX_GONE + 2):
        await promoter(store, swapper).promote()

    assert MAX_GONE == swapper.asked


async def rated(
    store: Store,
    version: str,
    num_good: int,
    num_bad: int,
    at_ms: int | None = None,
    session: str | None = None,
) -> None:
    """Rate answers that a version gives then, or now; in one session, or in one each."""
    ratings = [1.0] * num_good + [-1.0] * num_bad
    now_ms = at_ms or (await store.versions.activation()).created_ms
    for number, rating in enumerate(ratings):
        id_ = f"cmp_{version}_{now_ms}_{session}_{number}"
        await record(store, id_, base=MODEL, version=version, created_ms=now_ms, session=session)
        await rate(store, id_, rating)


async def test_a_version_that_people_like_less_is_rolled_back(store: Store) -> None:
    """Once its whole interval lies below its parent's; by `watch`, and the reason has both."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    await rated(store, "base", 60, 40)
    v1 = await passed(store)
    await decides.promote()
    await rated(store, v1, 2, 17)
    await decides.follow()
    too_few = list(swapper.rolled_back)

    await rated_once_more(store, v1)
    await decides.follow()

    assert [] == too_few
    ((actor, reason),) = swapper.rolled_back
    assert "watch" == actor
    assert "v1 2 of 20 good in 20 sessions (0.03 to 0.26 at 90 %), and base 60 of 100" in reason
    assert "base" == (await store.versions.activation()).version


async def rated_once_more(store: Store, version: str) -> None:
    """Rate one more answer of a version as bad."""
    now_ms = (await store.versions.activation()).created_ms
    await record(store, "cmp_more", base=MODEL, version=version, created_ms=now_ms + 1)
    await rate(store, "cmp_more", -1.0)


async def test_what_goes_wrong_in_one_conversation_is_no_fault_of_a_version(store: Store) -> None:
    """However often it is said there: its answers are liked or not together."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    await rated(store, "base", 50, 14)
    v1 = await passed(store)
    await decides.promote()
    await rated(store, v1, 0, 30, session="one")
    await decides.follow()
    of_one = list(swapper.rolled_back)
    for session in ("two", "three", "four"):
        await rated(store, v1, 0, 10, session=session)

    await decides.follow()

    assert [] == of_one
    ((_, reason),) = swapper.rolled_back
    assert "v1 0 of 60 good in 4 sessions" in reason


async def test_a_version_that_people_like_as_much_stays(store: Store) -> None:
    """Overlapping intervals say nothing."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    await rated(store, "base", 12, 18)
    await passed(store)
    await decides.promote()
    await rated(store, "v1", 8, 22)

    await decides.follow()

    assert [] == swapper.rolled_back


async def test_what_people_think_later_is_no_fault_of_a_version(store: Store) -> None:
    """Neither what its parent was liked for long before, nor how its own answers are in the end."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    await rated(store, "base", 150, 0, at_ms=1)
    await rated(store, "base", 60, 140, at_ms=2)
    v1 = await passed(store)
    await decides.promote()
    now_ms = (await store.versions.activation()).created_ms
    await rated(store, v1, 60, 140, at_ms=now_ms)
    await rated(store, v1, 0, 150, at_ms=now_ms + 1)

    await decides.follow()

    assert [] == swapper.rolled_back


async def test_nothing_goes_to_and_fro(store: Store) -> None:
    """A person who activates again what was rolled back keeps it, however it is liked."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    await rated(store, "base", 60, 40)
    v1 = await passed(store)
    await decides.promote()
    await rated(store, v1, 0, 30)
    await decides.follow()

    await decides.promote()
    await store.versions.activate(v1, actor="cli")
    await rated(store, v1, 0, 30)
    await decides.follow()

    assert 1 == len(swapper.rolled_back)
    assert v1 == (await store.versions.activation()).version


async def test_what_a_person_chose_while_ratings_were_counted_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were those of another version."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    await rated(store, "base", 60, 40)
    v1 = await passed(store)
    await decides.promote()
    await rated(store, v1, 0, 30)
    v2 = await passed(store, parent=v1)
    count = store.training.rates_around

    async def rates_around(*args: Any, **how: Any) -> tuple[list[Rate], list[Rate]]:
        await store.versions.activate(v2, actor="api")
        return await count(*args, **how)

    # Where there are many ratings, counting takes as long as an activation.
    monkeypatch.setattr(store.training, "rates_around", rates_around)
    await decides.follow()

    assert [] == swapper.rolled_back


async def test_ratings_from_before_the_promotion_do_not_count(store: Store) -> None:
    """People who tried it by its pin asked for other things."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    await rated(store, "base", 60, 40)
    v1 = await passed(store)
    for number in range(30):
        await record(store, f"cmp_pin_{number}", base=MODEL, version=v1, created_ms=1000)
        await rate(store, f"cmp_pin_{number}", -1.0)
    await decides.promote()

    await decides.follow()

    assert [] == swapper.rolled_back


async def test_a_version_that_left_for_another_base_is_followed_on_when_it_is_back(
    store: Store,
) -> None:
    """By the ratings since it was promoted; one that a person chose is left alone then too."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    await rated(store, "base", 60, 40)
    v1 = await passed(store)
    await decides.promote()
    await rated(store, v1, 0, 30)
    await _leaves_and_is_back(store, v1)

    await decides.follow()
    await store.versions.activate(v1, actor="api")
    await _leaves_and_is_back(store, v1)
    await decides.follow()

    assert ["watch"] == [actor for actor, _ in swapper.rolled_back]
    assert v1 == (await store.versions.activation()).version


@pytest.mark.parametrize("chosen", [False, True])
async def test_who_chose_a_version_is_known_however_much_happened_since(
    store: Store, chosen: bool
) -> None:
    """Starts with other bases have left more events than a list shows."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    await rated(store, "base", 60, 40)
    v1 = await passed(store)
    await decides.promote()
    if chosen:
        await store.versions.activate("base", actor="api")
        await store.versions.activate(v1, actor="api")
    await rated(store, v1, 0, 30)
    for _ in range(60):
        await store.versions.add_event(v1, "unloaded", actor="watch")
    await _leaves_and_is_back(store, v1)

    await decides.follow()

    assert ([] if chosen else ["watch"]) == [actor for actor, _ in swapper.rolled_back]


async def _leaves_and_is_back(store: Store, version: str) -> None:
    await store.versions.activate("base", actor="start")
    await store.versions.activate(version, actor="start", kind="rolled_back")


async def test_what_passed_waits_until_it_is_known_what_serves(store: Store) -> None:
    """At a start after one with another base, its parent is active only then."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    v1 = await passed(store)
    await store.versions.activate(v1, actor="api")
    v2 = await passed(store, parent=v1)
    await store.versions.activate("base", actor="start")
    swapper.can_activate = False

    await decides.promote()
    await store.versions.activate(v1, actor="start", kind="rolled_back")
    swapper.can_activate = True
    await decides.promote()

    assert [(v2, "gate")] == swapper.activated


async def test_nothing_is_tried_while_the_engine_is_away(store: Store) -> None:
    """However long: what passed is activated, or rolled back, once it is there again."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    await rated(store, "base", 60, 40)
    v1 = await passed(store)

    swapper.can_activate = False
    for _ in range(2 * MAX_GONE):
        await decides.promote()
    swapper.can_activate = True
    await decides.promote()
    promoted = list(swapper.activated)
    await rated(store, v1, 0, 30)
    swapper.can_activate = False
    await decides.follow()
    num_away = len(swapper.rolled_back)
    swapper.can_activate = True
    await decides.follow()

    assert [(v1, "gate")] == promoted
    assert (0, 1) == (num_away, len(swapper.rolled_back))


@pytest.mark.parametrize(
    "error",
    [ActivationFailed("the base is gone"), Conflict("it is missing"), NotFound("no version")],
)
async def test_a_rollback_that_fails_is_not_tried_again(store: Store, error: StropError) -> None:
    """The engine can't serve the parent, or it is gone: that is for a person to see to."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper, retry_after_s=0)
    await rated(store, "base", 60, 40)
    v1 = await passed(store)
    await decides.promote()
    await rated(store, v1, 0, 30)
    swapper.error = error

    await decides.follow()
    await decides.follow()

    assert 2 == swapper.asked


async def test_a_rollback_while_the_engine_is_away_is_tried_again(store: Store) -> None:
    """Later, since requests may have been held for it."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper, retry_after_s=0)
    patient = promoter(store, swapper)
    await rated(store, "base", 60, 40)
    v1 = await passed(store)
    await decides.promote()
    await rated(store, v1, 0, 30)
    swapper.error, swapper.detail = ActivationFailed("the engine died"), DIED

    await decides.follow()
    await patient.follow()
    swapper.error = None
    await patient.follow()
    before = list(swapper.rolled_back)
    await decides.follow()

    assert [] == before
    assert 1 == len(swapper.rolled_back)


async def test_a_rollback_is_not_tried_for_ever(store: Store) -> None:
    """What the version before had against it when it was made active is not counted."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper, retry_after_s=0)
    await rated(store, "base", 60, 40)
    v1 = await passed(store)
    await store.versions.add_event("base", "activation_failed", actor="watch")
    await asyncio.sleep(0.002)  # the clock of the store counts in milliseconds
    await decides.promote()
    await rated(store, v1, 0, 30)
    swapper.error, swapper.detail = ActivationFailed("the engine died"), DIED

    for _ in range(MAX_GONE + 2):
        await decides.follow()

    assert 1 + MAX_GONE == swapper.asked


async def test_a_rollback_waits_for_an_activation_under_way(store: Store) -> None:
    """What comes of that may be another version."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    await rated(store, "base", 60, 40)
    v1 = await passed(store)
    await decides.promote()
    await rated(store, v1, 0, 30)

    swapper.progress = Progress("v9", "loading", 0)
    await decides.follow()
    before = list(swapper.rolled_back)
    swapper.progress = None
    await decides.follow()

    assert [] == before
    assert 1 == len(swapper.rolled_back)


async def test_a_rollback_that_another_activation_forestalls_is_tried_again(store: Store) -> None:
    """That one began when the rollback was about to, and fails."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    await rated(store, "base", 60, 40)
    v1 = await passed(store)
    await decides.promote()
    await rated(store, v1, 0, 30)

    swapper.rival = Progress("v9", "verifying", 0)
    await decides.follow()
    before = list(swapper.rolled_back)
    swapper.progress = None
    await decides.follow()

    assert [] == before
    assert 1 == len(swapper.rolled_back)


@pytest.mark.parametrize(("detail", "is_tried"), [(HELD_UP, True), (DIED, False)])
async def test_what_answers_held_up_is_tried_again_once_nobody_asks(
    store: Store, detail: bytes, is_tried: bool
) -> None:
    """Not between two answers; where the engine went away, a lull says nothing."""
    swapper = FakeSwapper(store)
    decides = promoter(store, swapper)
    v1 = await passed(store)
    swapper.error, swapper.detail = ActivationFailed("it failed"), detail
    await decides.promote()
    swapper.error = None

    await decides.promote(idle_s=IDLE_S / 2)
    before = list(swapper.activated)
    await decides.promote(idle_s=IDLE_S)

    assert [] == before
    assert ([(v1, "gate")] if is_tried else []) == swapper.activated


async def test_a_rollback_that_answers_held_up_is_tried_again_once_nobody_asks(
    store: Store,
) -> None:
    """Before its time: people like what serves less."""
    swapper = FakeSwapper(store)
    patient = promoter(store, swapper)
    await rated(store, "base", 60, 40)
    v1 = await passed(store)
    await patient.promote()
    await rated(store, v1, 0, 30)
    swapper.error, swapper.detail = ActivationFailed("it failed"), HELD_UP
    await patient.follow()
    swapper.error = None

    await patient.follow(idle_s=IDLE_S / 2)
    before = list(swapper.rolled_back)
    await patient.follow(idle_s=IDLE_S)

    assert [] == before
    assert 1 == len(swapper.rolled_back)
