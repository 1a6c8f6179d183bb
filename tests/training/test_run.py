"""Tests of training runs on the demo model: what they learn, refuse, publish and leave alone."""

import asyncio
import json
import os
import shutil
import signal
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rated_home import RatedHome, hurry
from store_values import database_in
from waiting import until

from strop.adapters import peft
from strop.adapters.library import Library
from strop.proxy.errors import StoreUnavailable
from strop.proxy.store import run_lock
from strop.proxy.store.run_records import Run
from strop.proxy.store.store import Store
from strop.proxy.store.training_store import TrainingStore
from strop.training import collection, memory, pipeline, room
from strop.training.backends import Choice
from strop.training.backends.base import Policy, Weights
from strop.training.loop import Ending, Loop, Step
from strop.training.micro_batch import MicroBatch
from strop.training.run import take
from strop.training.run_row import RunRow
from strop.training.sequences import Floats, Tokens
from strop.training.stopping import Stopping


@pytest.fixture
async def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RatedHome]:
    """An empty home, its store open, whose runs are quick."""
    hurry(monkeypatch)
    store = await Store.open(database_in(tmp_path))
    yield RatedHome(tmp_path, store)
    await store.close()


async def over(home: RatedHome, run: Run | None = None, **changes: object) -> Run:
    """Take a run, a new one by default, to its end in this process, and return its row."""
    run = run or await home.new_run(**changes)
    await take(home.folder, run.id)
    found = await home.store.runs.get(run.id)
    assert found is not None
    return found


async def num_fresh(home: RatedHome, version: str = "base") -> int:
    """How many ratings no version in a lineage has learned."""
    return (await home.store.training.fresh_counts(version, base=home.base)).total


def reasons(run: Run) -> str:
    """What a run says of its end."""
    return " ".join(json.loads(run.reasons))


def hold(monkeypatch: pytest.MonkeyPatch, let_go: threading.Event | None = None) -> None:
    """Keep the next run at its first step until it is asked to stop, or until `let_go` is set."""
    run = Loop.run

    def run_held(
        loop: Loop, on_step: Callable[[Step], None], is_stopping: Callable[[], bool]
    ) -> Ending:
        def is_stopping_held() -> bool:
            while loop.step and not (is_stopping() if let_go is None else let_go.is_set()):
                time.sleep(0.01)
            return is_stopping()

        monkeypatch.setattr(Loop, "run", run)
        return run(loop, on_step, is_stopping_held)

    monkeypatch.setattr(Loop, "run", run_held)


def of_three(rating: float, other: float) -> Any:
    """A person who rates every third answer one way, and the others the other way."""
    turn = iter(range(10**6))
    return lambda *_: rating if next(turn) % 3 == 0 else other


async def test_two_rounds_make_liked_answers_common(home: RatedHome) -> None:
    """After two rounds of ratings, answers to questions never rated are liked far more often."""
    before = home.good_rate("base")

    await home.rate(47)
    first = await over(home)
    assert first.version is not None, reasons(first)
    await home.store.versions.activate(first.version, actor="gate")
    await home.rate(47, first.version)
    second = await over(home)
    assert second.version is not None, reasons(second)

    assert ["passed", "passed"] == [first.state, second.state]
    assert home.good_rate(second.version) >= before + 0.3
    assert home.well_formed(second.version) >= 0.85


async def test_a_passed_run_publishes_a_whole_version(home: RatedHome) -> None:
    """The version has its files, where it comes from, the verdict, and a probe; nothing is left."""
    await home.rate(30)
    counted = await num_fresh(home)

    run = await over(home)

    assert ("passed", "v1") == (run.state, run.version)
    manifest = Library(home.folder / "adapters").verify("v1")
    assert (run.id, home.base, "topr", None) == (
        manifest.run, manifest.base, manifest.objective, manifest.parent,
    )  # fmt: skip
    assert counted == len(manifest.feedback)
    assert manifest.verdict is not None
    assert manifest.verdict["outcome"] in ("passed", "inconclusive")
    assert manifest.verdict["reasons"] == json.loads(run.reasons)
    assert manifest.probe is not None
    published = await home.store.versions.get("v1")
    assert published is not None
    assert ("ready", None) == (published.state, published.stale)
    left = {path.name for path in (home.folder / "runs" / run.id).iterdir()}
    assert {"log.jsonl"} == left


async def test_what_a_version_learned_is_fresh_no_more(home: RatedHome) -> None:
    """All fresh ratings train at once; those of held-out sessions never do."""
    await home.rate(40)
    counted = await num_fresh(home)

    run = await over(home)

    assert 25 < counted < 40
    assert counted == json.loads(run.counts)["examples"]
    assert 40 - counted == json.loads(run.counts)["held_out"]
    assert 0 == await num_fresh(home, "v1")
    assert counted == await num_fresh(home, "base")


async def test_a_run_says_what_it_did(home: RatedHome) -> None:
    """Each step has its metrics, and the row has what was in force."""
    await home.rate(30)

    run = await over(home)

    steps = await home.store.runs.list_steps(run.id)
    assert [*range(1, run.step + 1)] == [step.step for step in steps]
    wanted = {
        "loss", "kl_parent", "kl_base", "kept", "gradient_norm", "logprob_liked",
        "logprob_disliked", "tokens_per_s",
    }  # fmt: skip
    for step in steps:
        # A step may have no liked or no disliked answer.
        one_sided = {"logprob_liked", "logprob_disliked"}
        assert wanted - one_sided <= json.loads(step.metrics).keys()
    assert any(wanted <= json.loads(step.metrics).keys() for step in steps)
    config = json.loads(run.config)
    assert ("torch", "cpu", "float32", 1) == (
        config["backend"], config["device"], config["dtype"], config["seed"],
    )  # fmt: skip
    assert 0.99 == config["adamw"]["beta2"]
    assert -1 < json.loads(run.counts)["baseline"] < 0, "most are disliked"
    assert run.num_steps >= run.step
    assert run.eta_s is None
    assert "answers_measured" not in json.loads(run.counts)
    entries = [
        json.loads(line)
        for line in (home.folder / "runs" / run.id / "log.jsonl").read_text().splitlines()
    ]
    assert len(steps) == sum(entry["event"] == "step" for entry in entries)


async def test_three_ratings_train(home: RatedHome) -> None:
    """Three ratings with both signs are enough for `strop train`, and do no harm."""
    await home.rate(3, likes=of_three(1.0, -1.0))
    while not 3 <= await num_fresh(home):
        await home.rate(1, likes=lambda *_: -1.0)

    run = await over(home)

    assert "passed" == run.state
    assert "inconclusive" in json.loads(run.metrics)["verdict"]
    assert home.well_formed("v1") >= 0.85


@pytest.mark.parametrize(
    ("rating", "missing"), [(1.0, "rate some bad ones too"), (-1.0, "rate some good ones too")]
)
async def test_one_sign_alone_is_refused(home: RatedHome, rating: float, missing: str) -> None:
    """Good answers can't be compared with bad ones where one side is missing; nothing is used."""
    await home.rate(12, likes=lambda *_: rating)
    before = await num_fresh(home)

    run = await over(home)

    assert "failed" == run.state
    assert missing in reasons(run)
    assert run.version is None
    assert before == await num_fresh(home)


async def test_good_ratings_alone_train_by_imitation(home: RatedHome) -> None:
    """What only imitates needs no bad ones."""
    await home.rate(20, likes=lambda *_: 1.0)

    run = await over(home, objective="sft")

    assert "passed" == run.state


async def test_contradictory_ratings_do_no_harm(home: RatedHome) -> None:
    """Ratings that say nothing make no version that speaks worse."""
    coin = iter([1.0, -1.0] * 100)
    await home.rate(47, likes=lambda *_: next(coin))

    run = await over(home)

    assert run.state in ("passed", "rejected")
    assert run.version is not None
    assert home.well_formed(run.version) >= 0.85


async def test_answers_of_a_version_that_is_broken_count_by_what_the_engine_said(
    home: RatedHome,
) -> None:
    """As of one that is gone: nobody needs it any more, so it keeps no run from passing."""
    await home.rate(40)
    made = await over(home)
    await home.rate(40, "v1")
    (Library(home.folder / "adapters").path_of("v1") / "adapter_model.safetensors").write_bytes(b"")

    found = await over(home, parent="base")

    assert "v1" == made.version
    assert "passed" == found.state, reasons(found)
    assert 30 < json.loads(found.counts)["answers_of_missing_versions"] <= 40
    log = (home.folder / "runs" / found.id / "log.jsonl").read_text()
    assert "adapter_model.safetensors of v1 was changed after it was written" in log


async def test_a_collapsed_version_is_rejected(home: RatedHome, tmp_path: Path) -> None:
    """The gate says why, in the row, the version and its manifest; the ratings stay fresh."""
    await home.rate(30)
    before = await num_fresh(home)
    preset = tmp_path / "reckless.toml"
    preset.write_text("lr = 0.1\nkl_stop = 100.0\nepochs = 8\nmax_grad_norm = 1000.0\n")

    run = await over(home, preset=str(preset))

    assert ("rejected", "v1") == (run.state, run.version)
    assert "is sound" in reasons(run)
    assert before == await num_fresh(home)
    version = await home.store.versions.get("v1")
    assert version is not None
    assert "rejected" == version.state
    manifest = Library(home.folder / "adapters").read_manifest("v1")
    assert manifest.verdict is not None
    assert ("rejected", None) == (manifest.verdict["outcome"], manifest.probe)


async def test_a_large_batch_of_ratings_takes_no_more_steps_than_allowed(home: RatedHome) -> None:
    """With more ratings the batches grow; all of them train."""
    await home.rate(400)
    counted = await num_fresh(home)

    run = await over(home)

    assert "passed" == run.state
    assert run.num_steps <= 128
    assert counted == json.loads(run.counts)["examples"]
    assert 0 == await num_fresh(home, "v1")


async def test_without_ratings_a_run_is_refused(home: RatedHome) -> None:
    """There is nothing to learn, and the reason says so."""
    run = await over(home)

    assert "failed" == run.state
    assert ["there is no rating to learn from: nothing is rated yet"] == json.loads(run.reasons)


async def test_ratings_of_another_base_are_not_learned_from(home: RatedHome) -> None:
    """What the base said before its files changed is another model's."""
    await home.rate(12, base=f"sha256:{'0' * 64}")

    run = await over(home)

    assert "failed" == run.state
    assert "of 12 ratings 0 were learned from already" in reasons(run)
    assert "the base before its files changed" in reasons(run)


async def test_a_base_whose_files_changed_is_refused(home: RatedHome, tmp_path: Path) -> None:
    """A run is for one base; after its files changed it doesn't train another."""
    await home.rate(12)
    home.base_path = tmp_path / "changed"
    shutil.copytree(RatedHome(tmp_path, home.store).base_path, home.base_path)
    tokenizer = home.base_path / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("Paris", "Parma"))

    run = await over(home)

    assert "failed" == run.state
    assert "its files changed" in reasons(run)
    assert await num_fresh(home)


async def test_a_base_that_is_gone_is_said_so(home: RatedHome, tmp_path: Path) -> None:
    """With where it was, and what to do."""
    await home.rate(6)

    run = await over(home, base_path=str(tmp_path / "moved"))

    assert "failed" == run.state
    assert f"the base of this run was in {tmp_path / 'moved'}, and is not there" in reasons(run)


async def test_a_wrong_chat_template_stops_the_run(home: RatedHome) -> None:
    """Trainer and engine then disagree about the same version, and nothing is learned."""
    await home.rate(20, template=lambda ids: tuple(reversed(ids)))

    run = await over(home)

    assert "failed" == run.state
    assert "chat template" in reasons(run)
    assert await num_fresh(home)


async def test_a_full_disk_leaves_nothing_half_written(
    home: RatedHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run fails with the reason, no version is left, and its ratings stay fresh."""
    await home.rate(20)
    before = await num_fresh(home)

    def write_half(adapter: peft.Adapter, folder: Path) -> None:
        (folder / peft.WEIGHTS).write_bytes(bytes(1000))
        raise OSError(28, "No space left on device", str(folder))

    with monkeypatch.context() as disk:
        disk.setattr(peft, "write", write_half)
        run = await over(home)

    assert "failed" == run.state
    assert "No space left on device" in reasons(run)
    assert before == await num_fresh(home)
    assert [] == [*(home.folder / "adapters").iterdir()]
    failed = await home.store.versions.get("v1")
    assert failed is not None
    assert "rejected" == failed.state
    again = await over(home)
    assert ("passed", "v2") == (again.state, again.version)


async def test_a_rating_withdrawn_during_the_run_makes_the_version_stale(
    home: RatedHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version is published, says why it is stale, and is for nobody to promote by itself."""
    await home.rate(30)
    run = await home.new_run()
    turns = home.store.training.fresh_turns("base", base=home.base)
    feedback = (await anext(turns)).feedback[0].id
    is_withdrawn = threading.Event()
    hold(monkeypatch, is_withdrawn)

    taking = asyncio.create_task(over(home, run))
    await until(lambda: home.store.runs.list_steps(run.id))
    await home.store.withdraw(feedback, None)
    is_withdrawn.set()
    run = await taking

    assert "passed" == run.state
    assert feedback in reasons(run)
    version = await home.store.versions.get("v1")
    assert version is not None
    assert version.stale is not None


async def test_a_run_that_does_not_fit_into_memory_says_what_to_set(
    home: RatedHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It doesn't begin; a shortage that passes is waited out."""
    await home.rate(12, likes=of_three(1.0, -1.0))
    free = iter([1, 2**40])
    monkeypatch.setattr(room, "_POLL_S", 0.01)
    monkeypatch.setattr(memory, "free_bytes", lambda _: next(free))

    waited = await over(home)
    monkeypatch.setattr(room, "_WAIT_S", 0.0)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1)
    refused = await over(home)

    assert "passed" == waited.state
    assert "failed" == refused.state
    assert "of memory are needed" in reasons(refused)


async def test_the_memory_that_a_run_takes_is_that_of_the_lora_it_continues(
    home: RatedHome, tmp_path: Path
) -> None:
    """Whose rank is its own, whatever the preset has for a fresh one."""
    await home.rate(30)
    (tmp_path / "wide.toml").write_text("rank = 64\nlr = 1e-5\nepochs = 1\n")
    first = await over(home, preset=str(tmp_path / "wide.toml"))
    await home.store.versions.activate("v1", actor="gate")
    await home.rate(30, "v1")

    second = await over(home)

    told = [
        json.loads(line)
        for run in (first, second)
        for line in (home.folder / "runs" / run.id / "log.jsonl").read_text().splitlines()
    ]
    wide = memory.estimate(home.base_path, Choice("torch", "cpu", ""), rank=64)
    found = [one for one in told if one["event"] == "memory"]
    assert [wide.total(one["longest"], one["longest"]) for one in found] == [
        one["needed_bytes"] for one in found
    ]
    assert 2 == len(found)
    assert all(one["collected_bytes"] > 0 for one in found)


async def test_one_conversation_that_does_not_fit_into_memory_keeps_no_other_from_training(
    home: RatedHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out and counted, and stays fresh; held-out ones of its length are left out too."""
    await home.rate(20, likes=of_three(1.0, -1.0))
    short = await num_fresh(home)
    await home.rate(12, template=lambda ids: ids * 15)
    long = await num_fresh(home) - short
    needed = memory.estimate(home.base_path, Choice("torch", "cpu", ""), rank=8)
    monkeypatch.setattr(room, "_WAIT_S", 0.0)
    monkeypatch.setattr(memory, "free_bytes", lambda _: needed.total(150, 150))

    run = await over(home)

    assert "passed" == run.state, reasons(run)
    counts = json.loads(run.counts)
    assert 0 < long < 12
    assert (short, long, 20 - short) == (
        counts["examples"],
        counts["left out: longer than the context, or than fits into memory"],
        counts["held_out"],
    )
    assert long == await num_fresh(home, "v1")


async def test_a_cancelled_run_leaves_no_version(
    home: RatedHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at the next step, and its ratings stay fresh."""
    await home.rate(60)
    run = await home.new_run()
    hold(monkeypatch)

    taking = asyncio.create_task(over(home, run))
    await until(lambda: home.store.runs.list_steps(run.id))
    await home.store.runs.cancel(run.id)
    run = await taking

    assert ("cancelled", "cancelled by request") == (run.state, reasons(run))
    assert run.step < run.num_steps
    assert () == await home.store.versions.list()
    assert await num_fresh(home) > 30


async def test_what_was_collected_in_vain_is_let_go_before_the_rest_is_collected(
    home: RatedHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either may take as much as the model."""
    await home.rate(20, likes=of_three(1.0, -1.0))
    await home.rate(12, template=lambda ids: ids * 15)
    needed = memory.estimate(home.base_path, Choice("torch", "cpu", ""), rank=8)
    monkeypatch.setattr(room, "_WAIT_S", 0.0)
    monkeypatch.setattr(memory, "free_bytes", lambda _: needed.total(150, 150))
    collect = collection.collect
    kept: list[weakref.ref[Any]] = []
    alive: list[int] = []

    async def watched(*arguments: Any, **options: Any) -> Any:
        alive.append(sum(one() is not None for one in kept))
        found = await collect(*arguments, **options)
        kept.extend(weakref.ref(row.tokens.ids) for one in found.learn for row in one.rows)
        return found

    monkeypatch.setattr(collection, "collect", watched)

    run = await over(home)

    assert "passed" == run.state, reasons(run)
    assert [0, 0] == alive


async def test_a_run_says_how_far_it_has_measured_and_can_be_cancelled_then(
    home: RatedHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may be hours before the first step."""

    def long(
        self: MicroBatch,
        policy: Policy,
        sequences: Sequence[Tokens],
        weights: Weights,
        on_batch: Callable[[Sequence[Tokens]], None],
    ) -> list[Floats]:
        for _ in range(3000):
            on_batch(sequences[:1])
            time.sleep(0.01)
        raise AssertionError("it was asked to stop")

    monkeypatch.setattr(MicroBatch, "logprobs", long)
    monkeypatch.setattr(pipeline, "_SAY_EVERY_S", 0.0)
    await home.rate(30)
    run = await home.new_run()

    async def num_measured() -> int:
        known = await home.store.runs.get(run.id)
        assert known is not None
        return int(json.loads(known.counts).get("answers_measured", 0))

    taking = asyncio.create_task(over(home, run))
    await until(num_measured)
    await home.store.runs.cancel(run.id)
    run = await taking

    assert ("cancelled", 0) == (run.state, run.num_steps)
    log = (home.folder / "runs" / run.id / "log.jsonl").read_text().splitlines()
    told = [one for one in map(json.loads, log) if one["event"] == "measuring"]
    examples = json.loads(run.counts)["examples"]
    assert [*range(len(told))] == [one["answers_measured"] for one in told]
    assert {examples} == {one["answers_to_measure"] for one in told}
    assert [None] == [one["eta_s"] for one in told[:1]]
    assert all(one["eta_s"] > 0 for one in told[1:])


def test_counts_that_cannot_be_written_now_stop_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are for whoever watches."""

    def full(*_: object) -> None:
        raise StoreUnavailable("full")

    monkeypatch.setattr(RunRow, "update", full)
    object.__new__(RunRow).count({"answers_measured": 1})


@pytest.mark.parametrize("held_out", [False, True])
async def test_a_run_begins_anew_where_an_answer_it_collected_is_deleted(
    home: RatedHome, monkeypatch: pytest.MonkeyPatch, held_out: bool
) -> None:
    """Its version then knows none of it; one that it is judged by counts too."""
    await home.rate(60)
    run = await home.new_run()
    ratings = home.store.training
    turns = ratings.held_out_turns if held_out else partial(ratings.fresh_turns, "base")
    turn = await anext(turns(base=home.base))
    answer = turn.completions[0].completion.id
    hold(monkeypatch)

    taking = asyncio.create_task(over(home, run))
    await until(lambda: home.store.runs.list_steps(run.id))
    await home.store.deletion.completions([answer])
    run = await taking

    assert "passed" == run.state
    (version,) = await home.store.versions.list()
    assert version.stale is None
    learned = dict(Library(home.folder / "adapters").read_manifest(version.id).feedback)
    assert learned.keys().isdisjoint(one.id for one in turn.feedback)
    counts = json.loads(run.counts)
    assert 59 == counts["examples"] + counts["held_out"]
    folder = home.folder / "runs" / run.id
    assert {"log.jsonl"} == {path.name for path in folder.iterdir()}
    assert 1 == (folder / "log.jsonl").read_text().count('"began_anew"')
    steps = await home.store.runs.list_steps(run.id)
    assert [*range(1, run.step + 1)] == [one.step for one in steps]


async def test_what_was_deleted_goes_where_a_stop_comes_too(
    home: RatedHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether the run ever goes on."""
    await home.rate(60)
    run = await home.new_run()
    turn = await anext(home.store.training.fresh_turns("base", base=home.base))
    seen, ask, is_to_stop = TrainingStore.are_recorded, Stopping.ask, threading.Event()
    loop = asyncio.get_running_loop()

    def ask_and_let_go(stopping: Stopping) -> None:
        ask(stopping)
        is_to_stop.set()

    async def are_recorded(self: TrainingStore, completions: Sequence[str]) -> bool:
        is_whole = await seen(self, completions)
        if not is_whole:
            loop.call_soon(os.kill, os.getpid(), signal.SIGTERM)
            monkeypatch.setattr(TrainingStore, "are_recorded", seen)
        return is_whole

    monkeypatch.setattr(TrainingStore, "are_recorded", are_recorded)
    monkeypatch.setattr(Stopping, "ask", ask_and_let_go)
    hold(monkeypatch, is_to_stop)
    taking = asyncio.create_task(over(home, run))
    await until(lambda: home.store.runs.list_steps(run.id))
    await home.store.deletion.completions([turn.completions[0].completion.id])
    run = await taking

    assert "running" == run.state
    folder = home.folder / "runs" / run.id
    assert {"log.jsonl"} == {path.name for path in folder.iterdir()}


async def test_a_run_begins_anew_once_however_slowly_it_collects(
    home: RatedHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it has collected it is not asked of what the first attempt had."""
    await home.rate(60)
    run = await home.new_run()
    turn = await anext(home.store.training.fresh_turns("base", base=home.base))
    collect, num_collected = collection.collect, 0

    async def slowly(*arguments: Any, **options: Any) -> Any:
        nonlocal num_collected
        num_collected += 1
        if num_collected == 2:
            asked = num_asked
            await until(lambda: num_asked >= asked + 3)
        return await collect(*arguments, **options)

    seen, num_asked = TrainingStore.are_recorded, 0

    async def are_recorded(self: TrainingStore, completions: Sequence[str]) -> bool:
        nonlocal num_asked
        num_asked += 1
        return await seen(self, completions)

    monkeypatch.setattr(collection, "collect", slowly)
    monkeypatch.setattr(TrainingStore, "are_recorded", are_recorded)
    hold(monkeypatch)
    taking = asyncio.create_task(over(home, run))
    await until(lambda: home.store.runs.list_steps(run.id))
    await home.store.deletion.completions([turn.completions[0].completion.id])
    await taking

    assert 2 == num_collected


async def test_a_second_run_says_that_one_is_under_way(home: RatedHome) -> None:
    """One run goes at a time in a home."""
    await home.rate(12)
    (home.folder / "runs").mkdir()

    with run_lock.hold(home.folder / "runs", "run_other"):
        run = await over(home)

    assert "failed" == run.state
    assert "run_other is under way in this home already" in reasons(run)


@pytest.mark.parametrize("held_for", [run_lock.PROBE, run_lock.DELETION])
async def test_a_run_waits_while_a_probe_is_made_or_answers_are_deleted(
    home: RatedHome, held_for: str
) -> None:
    """That takes minutes, or a moment, and is no reason to fail."""
    await home.rate(30)
    run = await home.new_run()
    (home.folder / "runs").mkdir()

    with run_lock.hold(home.folder / "runs", held_for):
        taking = asyncio.create_task(take(home.folder, run.id, patience_s=0.0))
        done, _ = await asyncio.wait([taking], timeout=1.0)

    assert not done
    assert 0 == await taking
    found = await home.store.runs.get(run.id)
    assert found is not None
    assert "passed" == found.state


async def test_a_second_process_of_a_run_leaves_its_row_alone(home: RatedHome) -> None:
    """The first one is at it still."""
    await home.rate(12)
    run = await home.new_run()
    (home.folder / "runs").mkdir()

    with run_lock.hold(home.folder / "runs", run.id):
        status = await take(home.folder, run.id, patience_s=0.5)

    assert 1 == status
    assert (await home.store.runs.get(run.id)) == run


async def test_a_process_waits_for_one_that_is_at_the_same_run_and_ending(
    home: RatedHome,
) -> None:
    """After its parent's death the old one stops at its next step; the new one then goes on."""
    await home.rate(30)
    run = await home.new_run()
    (home.folder / "runs").mkdir()

    with run_lock.hold(home.folder / "runs", run.id):
        taking = asyncio.create_task(over(home, run))
        done, _ = await asyncio.wait([taking], timeout=0.5)

    assert not done
    assert "passed" == (await taking).state


async def test_the_conversations_of_a_run_that_was_given_up_are_deleted_by_the_next(
    home: RatedHome,
) -> None:
    """Whoever gave it up had no process at it, so nothing did so then. Its log stays."""
    runs = home.folder / "runs"
    state = runs / "run_old" / "state-00000003"
    state.mkdir(parents=True)
    log = runs / "run_old" / "log.jsonl"
    for path in (log, log.with_name("set.npz"), state / "loop.json"):
        path.touch()

    await over(home)

    assert [log] == [*log.parent.iterdir()]


async def test_a_run_that_is_over_is_not_taken_again(home: RatedHome) -> None:
    """Its row stays as it ended, and a run that isn't there is said to be missing."""
    run = await over(home)

    assert 0 == await take(home.folder, run.id)
    assert run == await home.store.runs.get(run.id)
    assert 1 == await take(home.folder, "run_none")
