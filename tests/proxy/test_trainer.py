"""Training beside serving: runs start, are resumed, end and are stopped, as processes."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import fake_run
import pytest
from fake_swapper import FakeSwapper
from store_values import MODEL, database_in, learnable, rate, record, version
from waiting import LIMIT_S, until

from strop.proxy.alias import Leases, Served
from strop.proxy.errors import ActivationFailed, BadRequest, Conflict, NotFound, Unavailable
from strop.proxy.run_requests import Base, Wanted
from strop.proxy.settings.settings import Training
from strop.proxy.store import run_lock
from strop.proxy.store.run_records import Run, RunState, RunUpdate
from strop.proxy.store.store import Store
from strop.proxy.store.version_records import Activating
from strop.proxy.trainer import Trainer
from strop.proxy.versions import promotion
from strop.proxy.versions.loading import BUSY
from strop.proxy.versions.promotion import Promoter

SETTINGS = Training(ratings=4)


class Trained:
    """A trainer in a home, and what it is made with."""

    def __init__(self, home: Path, store: Store) -> None:
        self.home = home
        self.store = store
        self.swapper = FakeSwapper(store)
        self.base: Base | str = Base(home / "base", MODEL)
        self.leases = Leases()
        self.noted: list[tuple[str, str]] = []

    async def note_prompts(self, parent: str, base: str) -> None:
        self.noted.append((parent, base))

    def trainer(
        self, behaviour: str, settings: Training = SETTINGS, *, look_interval_s: float = 0.02
    ) -> Trainer:
        """Return a trainer whose runs behave so."""
        return Trainer(
            settings,
            self.home,
            self.store,
            Promoter(settings, self.store, self.swapper, follow_interval_s=0),
            note_prompts=self.note_prompts,
            base=lambda: self.base,
            leases=self.leases,
            command=fake_run.command(behaviour),
            look_interval_s=look_interval_s,
        )

    async def rate(self, num_good: int, num_bad: int, start: int = 0) -> None:
        """Rate answers of as many sessions, none of them held out."""
        ratings = [1.0] * num_good + [-1.0] * num_bad
        for number, rating in enumerate(ratings, start):
            await learnable(self.store, number, rating)

    async def begin_on_a_version(self, asked_by: str = "trigger") -> None:
        """Leave a run on an active v1 that a strop has begun which has ended."""
        await self.rate(3, 1)
        await version(self.store)
        await self.store.versions.activate("v1", actor="gate")
        trainer = self.trainer("waits", replace(SETTINGS, enabled=asked_by == "trigger"))
        async with watching(trainer):
            if asked_by != "trigger":
                await trainer.request(Wanted(), actor=asked_by)
            await until(self.store.runs.list, lambda runs: runs.data and runs.data[0].step)

    async def end_runs(
        self, *states: RunState, parent: str | None = None, base: str = MODEL
    ) -> None:
        """Leave runs that ended so, the last one last, after all ratings so far."""
        for state in states:
            made = await self.store.runs.create(
                objective="topr", preset="balanced", parent=parent, base=base, requested_by="api"
            )
            for next_ in ("running", "gating", state):
                await self.store.runs.update(made.id, RunUpdate(state=next_))

    async def run(self) -> Run:
        """Return the newest run."""
        return (await self.store.runs.list()).data[0]

    async def until(self, *states: RunState) -> Run:
        """Return the newest run once it is in one of these states."""
        runs = await until(
            self.store.runs.list, lambda runs: runs.data and runs.data[0].state in states
        )
        return runs.data[0]


@pytest.fixture
async def training(tmp_path: Path) -> AsyncIterator[Trained]:
    """A home with an empty store."""
    store = await Store.open(database_in(tmp_path), synchronous="off")
    yield Trained(tmp_path, store)
    await store.close()


@contextlib.asynccontextmanager
async def watching(trainer: Trainer) -> AsyncIterator[None]:
    """Let it watch for the length of the block."""
    task = asyncio.create_task(trainer.watch())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_enough_ratings_start_a_run(training: Trained) -> None:
    """With the settings' objective and preset, from the active version; it is promoted."""
    await training.rate(3, 1)

    async with watching(training.trainer("passes")):
        run = await training.until("passed")
        await until(lambda: training.swapper.activated)

    assert ("topr", "balanced", None, MODEL, "trigger") == (
        run.objective, run.preset, run.parent, run.base, run.requested_by,
    )  # fmt: skip
    assert [("base", MODEL)] == training.noted
    assert {
        "base_path": str(training.home / "base"),
        "backend": "auto",
        "device": "auto",
        "quantize_base": False,
    } == json.loads(run.config)
    assert [("v1", "gate")] == training.swapper.activated


async def test_what_answers_held_up_is_promoted_once_nobody_asks(
    training: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer says for how long nobody has; the other pause is ten minutes."""
    monkeypatch.setattr(promotion, "IDLE_S", 0.02)
    training.swapper.error = ActivationFailed("answers take too long")
    training.swapper.detail = json.dumps({BUSY: True}).encode()
    served = Served("base", "m@base")
    training.leases.take(served)
    await training.rate(3, 1)

    async with watching(training.trainer("passes")):
        await until(lambda: training.swapper.asked)
        training.swapper.error = None
        training.leases.release(served)
        await until(lambda: training.swapper.activated)

    assert 2 == training.swapper.asked


async def test_it_ends_in_the_very_moment_of_a_request(training: Trained) -> None:
    """Else a stop of strop waits for a trainer that looks for runs ever after."""
    trainer = training.trainer("waits", look_interval_s=LIMIT_S)
    watching = asyncio.create_task(trainer.watch())
    await until(lambda: trainer.decision.says, lambda says: says != "starting")

    await trainer.request(Wanted(), actor="api")
    watching.cancel()

    await until(watching.done)


async def test_too_few_ratings_start_none(training: Trained) -> None:
    """What it waits for is said."""
    await training.rate(2, 0)
    trainer = training.trainer("passes")

    async with watching(trainer):
        await until(lambda: trainer.decision.says != "starting")

    assert (
        "2 more ratings; 0 bad still to learn from: rate some bad ones too" == trainer.decision.says
    )
    assert () == (await training.store.runs.list()).data


async def test_what_is_waited_for_counts_the_newest_rating(training: Trained) -> None:
    """Whoever asks right after it need not wait for the next look."""
    await training.rate(1, 0)
    trainer = training.trainer("passes")

    async with watching(trainer):
        await until(lambda: trainer.decision.says != "starting")
    await training.rate(1, 1, start=1)

    assert "3 more ratings; 0 bad" in trainer.decision.says
    assert "1 more rating" == await trainer.waits_for()


async def test_why_a_run_failed_is_in_the_log(
    training: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    """As a warning: strop goes on without it."""
    trainer = training.trainer("fails")

    async with watching(trainer):
        asked = await trainer.request(Wanted(), actor="api")
        await training.until("failed")
        await until(lambda: "training run failed" in caplog.messages)

    line = next(one for one in caplog.records if one.message == "training run failed")
    assert ("WARNING", asked.id, "too little memory") == (
        line.levelname, getattr(line, "run", None), getattr(line, "reason", None),
    )  # fmt: skip


async def test_a_rejected_run_is_not_tried_again_with_the_same_ratings(training: Trained) -> None:
    """The next one waits for as many new ones, and then learns from all."""
    await training.rate(2, 2)
    trainer = training.trainer("rejects")

    async with watching(trainer):
        await training.until("rejected")
        await until(lambda: "more ratings" in trainer.decision.says)
        says = trainer.decision.says
        await training.rate(2, 2, start=4)
        await until(training.store.runs.list, lambda runs: len(runs.data) >= 2)
        await training.until("rejected")

    assert "4 more ratings, since the last run was rejected" == says
    assert [] == training.swapper.activated


async def test_rejected_again_and_again_it_tries_less_often(training: Trained) -> None:
    """Each run learns again from what the ones before it had; runs that failed judged nothing."""
    await training.rate(2, 2)
    await training.end_runs("rejected", "failed", "rejected", "cancelled", "rejected")
    trainer = training.trainer("passes")

    async with watching(trainer):
        await until(lambda: trainer.decision.says != "starting")
        says = trainer.decision.says
        await training.rate(8, 8, start=4)
        run = await training.until("passed")

    assert "16 more ratings, since the last 3 runs were rejected" == says
    assert "trigger" == run.requested_by


@pytest.mark.parametrize("ended", ["failed", "cancelled"])
async def test_what_was_not_judged_is_tried_again_as_soon_as_ever(
    training: Trained, ended: RunState
) -> None:
    """However often others were rejected before it: a full disk says nothing of the ratings."""
    await training.rate(2, 2)
    await training.end_runs("rejected", "rejected", "rejected", ended)
    trainer = training.trainer("passes")

    async with watching(trainer):
        await until(lambda: trainer.decision.says != "starting")

    assert "4 more ratings" == trainer.decision.says


@pytest.mark.parametrize("other", ["a run that passed", "another parent", "another base"])
async def test_only_what_was_rejected_in_a_row_and_from_here_counts(
    training: Trained, other: str
) -> None:
    """What another version, or the same one before it passed, was rejected for is over."""
    await training.rate(2, 2)
    made = await version(training.store)
    await training.end_runs("rejected", "rejected")
    if other == "a run that passed":
        await training.end_runs("passed")
    elif other == "another parent":
        await training.end_runs("rejected", parent=made.id)
    else:
        await training.end_runs("rejected", base="sha256:other")
    await training.end_runs("rejected")
    trainer = training.trainer("passes")

    async with watching(trainer):
        await until(lambda: trainer.decision.says != "starting")

    assert "4 more ratings, since the last run was rejected" == trainer.decision.says


@pytest.mark.parametrize(
    ("began_s_ago", "done", "waits"),
    [
        (3600, ["take", "release"], True),
        (3600, ["take"], True),
        (0, [], True),
        (3600, [], False),
    ],
    ids=["an answer", "an answer under way", "a start", "nothing"],
)
async def test_an_answer_between_two_looks_counts_as_somebody_asking(
    training: Trained,
    began_s_ago: float,
    done: list[str],
    waits: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However short it was, a run waits until nobody has asked for so long; so does a start."""
    await training.rate(2, 2)
    with monkeypatch.context() as patch:
        patch.setattr("strop.proxy.trainer.monotonic", lambda: monotonic() - began_s_ago)
        trainer = training.trainer("passes", Training(ratings=4, idle_s=600))
    served = Served("base", "m@base")
    for what in done:
        getattr(training.leases, what)(served)

    async with watching(trainer):
        await until(lambda: trainer.decision.says != "starting")
        says = trainer.decision.says

    assert waits == ("training.idle_s" in says)


async def test_what_can_not_be_trained_is_said(training: Trained) -> None:
    """By the trigger, and to whoever asks for a run."""
    training.base = "nothing can be trained before model.base is set"
    trainer = training.trainer("passes")

    async with watching(trainer):
        await until(lambda: trainer.decision.says == training.base)
        with pytest.raises(Unavailable, match=r"model\.base"):
            await trainer.request(Wanted(), actor="api")


async def test_a_run_that_is_asked_for_starts_at_once(training: Trained) -> None:
    """As it is asked for, however few ratings there are."""
    trainer = training.trainer("rejects")
    preset = training.home / "mine.toml"
    preset.write_text("lr = 1e-4\n", encoding="utf-8")

    async with watching(trainer):
        await trainer.request(Wanted("sft", str(preset), "base"), actor="cli")
        run = await training.until("rejected")

    assert ("sft", str(preset), None, "cli") == (
        run.objective, run.preset, run.parent, run.requested_by,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "error", "says"),
    [
        (Wanted(preset="bold"), BadRequest, "one of aggressive, balanced, careful, or"),
        (Wanted(preset="/none/mine.toml"), BadRequest, "or the path of a TOML file"),
        (Wanted(parent="v7"), NotFound, "no version 'v7'"),
    ],
)
async def test_a_run_that_can_not_be_made_is_refused(
    training: Trained, wanted: Wanted, error: type[Exception], says: str
) -> None:
    """Before anything starts, and nothing is queued."""
    with pytest.raises(error, match=says):
        await training.trainer("passes").request(wanted, actor="api")

    assert () == (await training.store.runs.list()).data


async def test_two_runs_at_once_are_one_too_many(training: Trained) -> None:
    """The second is refused while the first is not over."""
    trainer = training.trainer("waits")
    await trainer.request(Wanted(), actor="api")

    with pytest.raises(Conflict, match="one run at a time"):
        await trainer.request(Wanted(), actor="api")


async def test_a_run_is_cancelled_at_its_next_step(training: Trained) -> None:
    """Its process ends by itself; what it would have learned from stays fresh."""
    trainer = training.trainer("waits")
    async with watching(trainer):
        asked = await trainer.request(Wanted(), actor="api")
        await until(training.run, lambda run: run.step)

        cancelling = await trainer.cancel(asked.id)
        run = await training.until("cancelled")

    assert (True, "running") == (cancelling.is_cancelling, cancelling.state)
    assert asked.id == run.id


async def test_a_run_whose_parent_is_liked_less_and_rolled_back_is_stopped(
    training: Trained,
) -> None:
    """It would continue what people like less."""
    await training.rate(30, 1)
    parent = await version(training.store)
    await training.store.versions.activate(parent.id, actor="gate")
    at_ms = (await training.store.versions.activation()).created_ms

    async with watching(training.trainer("waits")):
        await until(training.store.runs.list, lambda runs: runs.data and runs.data[0].step)
        for number in range(20):
            id_ = f"cmp_of_parent_{number}"
            await record(training.store, id_, base=MODEL, version=parent.id, created_ms=at_ms)
            await rate(training.store, id_, -1.0)
        # From the base, another one may begin at once.
        runs = await until(
            training.store.runs.list, lambda runs: runs.data[-1].state == "cancelled"
        )

    run = runs.data[-1]
    assert (parent.id, "trigger") == (run.parent, run.requested_by)
    assert ["watch"] == [actor for actor, _ in training.swapper.rolled_back]


@pytest.mark.parametrize("is_running", [True, False])
async def test_a_run_is_stopped_whoever_rolled_its_parent_back(
    training: Trained, is_running: bool
) -> None:
    """A person, or strop just before it was killed; also where it waits for its base."""
    await training.begin_on_a_version()
    if is_running:
        async with watching(training.trainer("waits")):
            await until(lambda: run_lock.is_held(training.home / "runs"))
            await training.store.versions.activate("base", actor="api", kind="rolled_back")
            run = await training.until("cancelled")
    else:
        await training.store.versions.activate("base", actor="watch", kind="rolled_back")
        training.base = "model.base is no folder"
        async with watching(training.trainer("waits")):
            run = await training.until("cancelled")

    assert ("v1", "trigger") == (run.parent, run.requested_by)
    assert b'["v1, which it continued, was rolled back"]' == run.reasons


@pytest.mark.parametrize(
    ("asked_by", "kind"), [("api", "rolled_back"), ("trigger", "activated")], ids=["asked", "over"]
)
async def test_a_run_goes_on_that_a_person_may_still_want(
    training: Trained, asked_by: str, kind: Activating
) -> None:
    """Who asked for it can stop it, and who only activated something over its parent goes back."""
    await training.begin_on_a_version(asked_by)
    await training.store.versions.activate("base", actor="api", kind=kind)

    async with watching(training.trainer("passes")):
        run = await training.until("passed")

    assert ("v1", asked_by, False) == (run.parent, run.requested_by, run.is_cancelling)


@pytest.mark.parametrize(
    ("behaviour", "how"),
    [("dies", "exit 3"), ("killed", "killed by the system, mostly for lack of memory")],
)
async def test_a_run_whose_process_dies_is_resumed_and_given_up_in_the_end(
    training: Trained, behaviour: str, how: str
) -> None:
    """After three times it has failed, with the process's last words."""
    trainer = training.trainer(behaviour)

    async with watching(trainer):
        asked = await trainer.request(Wanted(), actor="api")
        run = await training.until("failed")

    log = (training.home / "runs" / asked.id / "output.log").read_text(encoding="utf-8")
    assert 3 == log.count(fake_run.LAST_WORDS)
    assert [f"its process died 3 times ({how}): {fake_run.LAST_WORDS}"] == json.loads(run.reasons)
    assert 0o600 == (training.home / "runs" / asked.id / "output.log").stat().st_mode & 0o777
    folders = (training.home / "runs", training.home / "runs" / asked.id)
    assert {0o700} == {folder.stat().st_mode & 0o777 for folder in folders}


async def test_stopping_strop_stops_the_process_and_not_the_run(training: Trained) -> None:
    """At the next start it goes on."""
    async with watching(trainer := training.trainer("waits")):
        asked = await trainer.request(Wanted(), actor="api")
        await until(training.run, lambda run: run.step)
    stopped = await training.run()
    is_free = not run_lock.is_held(training.home / "runs")

    async with watching(training.trainer("passes")):
        run = await training.until("passed")

    assert ("running", False, True) == (stopped.state, stopped.is_cancelling, is_free)
    assert asked.id == run.id


async def test_an_unfinished_run_goes_on_with_its_base_where_that_is_now(training: Trained) -> None:
    """It waits until there is one, and doesn't fail."""
    asked = await training.trainer("passes").request(Wanted(), actor="api")
    training.base = "model.base is no folder"
    trainer = training.trainer("passes")

    async with watching(trainer):
        await until(lambda: "model.base is no folder" in trainer.decision.says)
        says = trainer.decision.says
        training.base = Base(training.home / "moved", MODEL)
        run = await training.until("passed", "failed")

    assert f"{asked.id} can't go on yet: model.base is no folder" == says
    assert (asked.id, "passed") == (run.id, run.state)
    assert str(training.home / "moved") == json.loads(run.config)["base_path"]


async def test_an_unfinished_run_that_waits_for_its_base_can_be_cancelled(
    training: Trained,
) -> None:
    """Whoever is told that it can't go on may want to be rid of it."""
    asked = await training.trainer("waits").request(Wanted(), actor="api")
    await training.store.runs.update(asked.id, RunUpdate(state="running"))
    training.base = "model.base is no folder"
    trainer = training.trainer("waits")

    async with watching(trainer):
        await until(lambda: "can't go on yet" in trainer.decision.says)
        await trainer.cancel(asked.id)
        run = await training.until("cancelled")

    assert asked.id == run.id


async def test_an_unfinished_run_of_another_base_keeps_its_own(training: Trained) -> None:
    """Its ratings are of that one, whatever is served by now."""
    await training.trainer("passes").request(Wanted(), actor="api")
    own = str(training.home / "base")
    training.base = Base(training.home / "other", "sha256:other")

    async with watching(training.trainer("passes")):
        run = await training.until("passed", "failed")

    assert (MODEL, own) == (run.base, json.loads(run.config)["base_path"])


async def test_a_failed_run_of_another_base_holds_none_back(training: Trained) -> None:
    """It has tried none of the ratings that there are of this base."""
    await training.rate(2, 2)
    other = await training.store.runs.create(
        objective="topr", preset="balanced", parent=None, base="sha256:other", requested_by="api"
    )
    await training.store.runs.update(other.id, RunUpdate(state="failed"))

    async with watching(training.trainer("passes")):
        run = await training.until("passed")

    assert (MODEL, "trigger") == (run.base, run.requested_by)


async def test_what_was_tried_is_not_tried_again_for_a_run_of_another_base(
    training: Trained,
) -> None:
    """A run of this base has had these ratings, whatever came between."""
    await training.rate(2, 2)
    for base in (MODEL, "sha256:other"):
        run = await training.store.runs.create(
            objective="topr", preset="balanced", parent=None, base=base, requested_by="api"
        )
        for state in ("running", "failed"):
            await training.store.runs.update(run.id, RunUpdate(state=state))
    trainer = training.trainer("passes")

    async with watching(trainer):
        await until(lambda: trainer.decision.says != "starting")

    assert "4 more ratings" == trainer.decision.says


async def test_a_run_of_another_process_is_left_to_it(training: Trained) -> None:
    """A person trains in a terminal: it is shown, and what passed there is promoted then."""
    trainer, made = training.trainer("dies"), training.trainer("passes")
    asked = await trainer.request(Wanted(), actor="cli")
    (training.home / "runs").mkdir()

    with run_lock.hold(training.home / "runs", asked.id):
        async with watching(trainer):
            await until(lambda: f"{asked.id} is under way" == trainer.decision.says)
    async with watching(made):
        await until(lambda: training.swapper.activated)

    assert not (training.home / "runs" / asked.id / "output.log").read_bytes()
    assert [("v1", "gate")] == training.swapper.activated


async def test_what_goes_wrong_is_what_training_waits_for(
    training: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    """The watch goes on, and says the reason: to who asks each time, in the log once."""
    (training.home / "runs").write_text("no folder", encoding="utf-8")
    training.leases = AskedLeases()
    trainer = training.trainer("passes")
    asked = await trainer.request(Wanted(), actor="api")
    before = trainer.decision.says

    async with watching(trainer):
        says = await reasons(training, trainer)
        (training.home / "runs").unlink()
        run = await training.until("passed")

    assert f"{asked.id} begins next" == before
    assert ["a run can't begin yet: [Errno 20] Not a directory"] == [
        one.partition(": '")[0] for one in says
    ]
    assert says == waits(caplog)
    assert "passed" == run.state


async def test_a_run_that_is_due_and_can_not_be_made_is_warned_of_once(
    training: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it is tried: here the preset's file was removed while strop served."""
    await training.rate(3, 1)
    gone = str(training.home / "gone.toml")
    training.leases = AskedLeases()
    trainer = training.trainer("passes", replace(SETTINGS, preset=gone))

    async with watching(trainer):
        says = await reasons(training, trainer)

    assert [True] == [gone in one for one in says]
    assert says == waits(caplog)


class AskedLeases(Leases):
    """Counts how often it was asked: by the trainer once or twice a look."""

    num_asked = 0

    def idle_since(self, version: str | None = None) -> float:
        """Return what it does, and count that."""
        self.num_asked += 1
        return super().idle_since(version)


async def reasons(training: Trained, trainer: Trainer) -> list[str]:
    """What training is said to wait for during some looks, but for the first ones; each once."""
    assert isinstance(training.leases, AskedLeases)
    first, found = training.leases.num_asked + 6, list[str]()
    while training.leases.num_asked < first + 12:
        if training.leases.num_asked > first:
            found.append(await trainer.waits_for())
        # Each time something else has had its turn: a look is never passed over.
        await asyncio.sleep(0)
    return list(dict.fromkeys(found))


def waits(caplog: pytest.LogCaptureFixture) -> list[object]:
    """What the log says that training waits for."""
    lines = [one for one in caplog.records if one.message == "training waits"]
    return [getattr(one, "reason", None) for one in lines]


async def test_disabled_training_still_takes_requests(training: Trained) -> None:
    """The trigger is off; a person may train."""
    await training.rate(4, 4)
    trainer = training.trainer("rejects", Training(enabled=False))

    async with watching(trainer):
        await until(lambda: "training.enabled" in trainer.decision.says)
        asked: Any = await trainer.request(Wanted(), actor="api")
        run = await training.until("rejected")

    assert (asked.id, "api") == (run.id, run.requested_by)


@pytest.mark.parametrize("is_due", [False, True])
async def test_what_a_look_finds_says_nothing_of_a_run_that_was_asked_for_meanwhile(
    is_due: bool, training: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for it would be told of the one after it, and what that lacks."""
    if is_due:
        await training.rate(3, 1)
    trainer, said = training.trainer("waits"), list[str]()
    counts, looks, is_asked = training.store.training.fresh_counts, asyncio.Event(), asyncio.Event()

    async def slowly(*arguments: Any, **options: Any) -> Any:
        looks.set()
        await is_asked.wait()
        return await counts(*arguments, **options)

    async def note_prompts(*_: str) -> None:
        said.append(await trainer.waits_for())

    monkeypatch.setattr(training.store.training, "fresh_counts", slowly)
    monkeypatch.setattr(trainer, "_note_prompts", note_prompts)
    async with watching(trainer):
        await looks.wait()
        run = await trainer.request(Wanted(), actor="api")
        is_asked.set()
        await until(lambda: said)

    assert [f"{run.id} begins next"] == said
