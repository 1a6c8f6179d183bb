"""One run from its ratings to a published version: collect, train, evaluate, judge, write, publish.

Computes in a thread of its own; the store answers from another. What it has done is on disk, so
after a kill it goes on from there. Starts no process, and activates nothing.
"""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

from strop.adapters import peft
from strop.adapters.library import Library
from strop.adapters.manifest import Manifest
from strop.adapters.peft import InvalidAdapter
from strop.proxy.errors import StropError
from strop.proxy.store import layout, run_folder
from strop.proxy.store.run_records import RunUpdate
from strop.proxy.store.version_records import BASE
from strop.training import collection, figures, gate, make_probe, room, training_set
from strop.training.backends.base import BackendUnavailable, OutOfMemory, Policy, Weights
from strop.training.collection import Collected, Refused
from strop.training.gate import Verdict
from strop.training.loop import Loop, Step
from strop.training.measurement import Scored, measure
from strop.training.micro_batch import MicroBatch
from strop.training.mismatch import Mismatch
from strop.training.progress import Phase, Progress
from strop.training.publication import Publication
from strop.training.recipe import Recipe
from strop.training.reports import Reports
from strop.training.room import Room
from strop.training.rows import Target
from strop.training.run_row import RunRow, to_json
from strop.training.run_settings import RunSettings
from strop.training.stopping import Stopped, Stopping
from strop.training.tokenizer import BaseTokenizer
from strop.training.training_set import TrainingSet

EXPECTED: Final = (
    StropError,
    Refused,
    Mismatch,
    BackendUnavailable,
    OutOfMemory,
    ValueError,
)
"""What the machine, the data or a person is to blame for; the message says what to do."""

# How often a run says how far it has measured: a batch may take a moment.
_SAY_EVERY_S: Final = 2.0


class Pipeline:
    """One run. Everything but the constructor belongs to one thread.

    Args:
        home: strop's home.
        folder: the run's own, where its state is.
        row: its row, and the store.
        reports: where progress goes besides.
        stopping: asked where the run can stop.
    """

    def __init__(
        self, home: Path, folder: Path, row: RunRow, reports: Reports, stopping: Stopping
    ) -> None:
        self._home = home
        self._folder = folder
        self._row = row
        self._reports = reports
        self._stopping = stopping
        self._settings = RunSettings.of(row.run)
        self._recipe = Recipe(self._settings)
        self._library = Library(home / layout.ADAPTERS)
        self._publication = Publication(row, self._library)
        self._parent = row.run.parent or BASE

    def run(self) -> None:
        """Take the run to its end; its row then says how it ended.

        Raises:
            Stopped: it was asked to stop; it can be resumed.
            OSError, and those of `EXPECTED`: it can't be made, and the message says why.
        """
        manifest = self._publication.written_before()
        if manifest is None:
            self._row.update(RunUpdate(state="running"))
            manifest = self._make()
        state, reasons = self._publication.publish(manifest)
        self._reports.event("published", version=manifest.version, state=state, reasons=reasons)
        self._reports.say(f"{manifest.version}: {state}. {' '.join(reasons)}")

    def _make(self) -> Manifest:
        self._recipe.check_base(self._row.run.base, cache=self._home / layout.IDENTITIES)
        self._reports.event("backend", **asdict(self._recipe.chosen))
        if self._parent != BASE:
            self._library.verify(self._parent)
        collected = None
        whole = self._collected_before()
        if whole is not None:
            max_tokens = self._find_room(whole).max_tokens
        else:
            self._row.begin_anew()
            collected, max_tokens = self._collect_what_fits()
        micro_batch = MicroBatch(max_tokens)
        policy = self._open()
        try:
            if whole is None:
                assert collected is not None
                whole = self._measure(policy, collected, micro_batch)
            metrics = self._learn(policy, whole, micro_batch)
            measured, verdict = self._judge(policy, whole, micro_batch)
            self._phase("writing")
            # What is rejected is not served, and may not even have finite logprobs.
            probe = None
            if verdict.is_passed:
                probe = make_probe.make(policy, self._parent_weights, whole.prompts)
            self._stopping.check()
            save = policy.save_adapter
            return self._publication.write(save, whole, metrics, measured, verdict, probe)
        finally:
            policy.close()

    def _collected_before(self) -> TrainingSet | None:
        """Return what the run had collected before it was interrupted, if all of it still stands.

        Where something was deleted, withdrawn or revised since, the run begins anew.
        """
        file = self._folder / run_folder.SET_FILE
        if not file.exists():
            return None
        whole = training_set.load(file)
        if self._row.wait(self._still_stands(whole)):
            self._row.completions = whole.completions
            return whole
        # The state was learned from it, too.
        run_folder.clean(self._folder)
        self._reports.event("began_anew")
        self._reports.say("what was collected was deleted or changed since: the run begins anew")
        return None

    async def _still_stands(self, whole: TrainingSet) -> bool:
        ratings = self._row.store.training
        is_whole = await ratings.are_recorded(whole.completions)
        return bool(whole.completions) and is_whole and await ratings.still_stand(whole.feedback)

    def _collect_what_fits(self) -> tuple[Collected, int]:
        """Return what there is to learn from, and how many tokens of it to compute at once.

        One conversation that is too long for this machine doesn't keep the others from it.
        """
        context = self._recipe.files.context_length
        found = self._collect(context)
        try:
            space = self._find_room(found)
        except room.TooLong as error:
            self._reports.event("too_long", longest=error.longest, reason=str(error))
            # Not both at once; where it was raised they are known, too.
            del found
            error.__traceback__ = None
            try:
                found = self._collect(error.longest)
            except Refused:
                raise error from None
            self._reports.say(f"what has more than {error.longest:,} tokens is left out: {error}")
            space = self._find_room(found)
        return found.within(min(context, space.longest)), space.max_tokens

    def _find_room(self, collected: Collected | TrainingSet) -> Room:
        rank = self._recipe.preset.rank
        if self._parent != BASE:
            rank = peft.read_config(self._library.path_of(self._parent)).rank
        return room.find(self._recipe, rank, collected, self._reports, self._stopping)

    def _collect(self, context: int) -> Collected:
        self._phase("collecting")
        target = Target(
            base=self._row.run.base,
            context=context,
            tokenizer=BaseTokenizer(self._settings.base_path),
        )
        found = self._row.wait(
            collection.collect(
                self._row.store,
                self._parent,
                self._recipe.objective,
                target,
                seed=self._settings.seed,
                check=self._stopping.check,
            )
        )
        self._row.completions = found.completions
        self._row.update(RunUpdate(counts=to_json(found.counts)))
        self._reports.event("collected", **found.counts, warnings=found.warnings)
        for warning in found.warnings:
            self._reports.say(warning)
        return found

    def _open(self) -> Policy:
        """Open the policy at the parent's weights, and put on record what is in force."""
        parent = None if self._parent == BASE else self._library.path_of(self._parent)
        policy = self._recipe.open(parent)
        in_force = self._recipe.in_force(policy)
        self._row.update(RunUpdate(config=to_json(in_force)))
        self._reports.event("config", **in_force)
        return policy

    def _measure(
        self, policy: Policy, collected: Collected, micro_batch: MicroBatch
    ) -> TrainingSet:
        """Compute what the losses need of parent, base and samplers, and keep it for a resume."""
        self._phase("measuring")
        began_s, said_s = time.monotonic(), -math.inf

        def on_scored(now: Scored) -> None:
            nonlocal said_s
            self._stopping.check()
            now_s = time.monotonic()
            if now_s < said_s + _SAY_EVERY_S:
                return
            said_s = now_s
            eta_s = (now_s - began_s) * (1 / now.share - 1) if now.share else None
            scores: dict[str, float] = {
                "answers_measured": now.num,
                "answers_to_measure": now.num_all,
            }
            self._row.count(collected.counts | scores)
            self._reports.event("measuring", **scores, eta_s=eta_s)
            self._reports.progress(Progress("measuring", now.num, now.num_all, eta_s))

        measured = measure(
            policy,
            collected.learn,
            collected.advantages,
            self._parent,
            self._samplers(collected),
            micro_batch,
            on_scored,
        )
        agreement = measured.agreement
        counts = collected.counts | {
            "tokens_compared": agreement.num_tokens,
            "tokens_dropped": agreement.num_dropped,
            "answers_of_missing_versions": measured.num_gone,
            "mismatch_nats": round(agreement.difference, 6),
            "mismatch_bias_nats": round(agreement.bias, 6),
            "staleness_nats": round(measured.staleness, 6),
        }
        self._row.update(RunUpdate(counts=to_json(counts)))
        self._reports.event("measured", **asdict(agreement) | {"keep": None})
        whole = TrainingSet(
            units=measured.units,
            feedback=tuple(dict.fromkeys(pair for one in collected.learn for pair in one.feedback)),
            held_out=collected.held_out,
            prompts=tuple(tuple(ids.tolist()) for ids in collected.prompts),
            counts=counts,
            completions=collected.completions,
        )
        training_set.save(whole, self._folder / run_folder.SET_FILE)
        return whole

    def _samplers(self, collected: Collected) -> dict[str, Path]:
        """Return the folders of those who answered, but for the parent; a broken one is gone."""
        sampled = {row.version for one in collected.learn for row in one.rows} - {self._parent}
        whole = {}
        for version in sorted(sampled.intersection(self._library.versions_on_disk())):
            try:
                self._library.verify(version)
            except InvalidAdapter as error:
                self._reports.event("broken_version", version=version, reason=str(error))
                self._reports.say(f"{error}. What it answered counts as of a version that is gone")
            else:
                whole[version] = self._library.path_of(version)
        return whole

    def _learn(
        self, policy: Policy, whole: TrainingSet, micro_batch: MicroBatch
    ) -> dict[str, object]:
        """Take the steps; return what is to be remembered of them."""
        # A resumed objective has to see what it learns from, too.
        self._recipe.objective.select(whole.units)
        schedule = self._recipe.preset.schedule(len(whole.units), self._settings.seed)
        loop = Loop(
            policy,
            self._recipe.objective,
            whole.units,
            schedule,
            micro_batch,
            self._folder,
        )
        first = loop.resume()
        if first:
            self._reports.event("resumed", step=first)
        self._row.update(RunUpdate(num_steps=schedule.num_steps))
        began_s = time.monotonic()
        last: dict[str, float] = {}

        def on_step(step: Step) -> None:
            nonlocal last
            last = step.metrics
            took_s = (time.monotonic() - began_s) / (step.num - first)
            eta_s = took_s * (schedule.num_steps - step.num)
            self._row.step(step.num, step.metrics, eta_s)
            self._reports.step(step.num, step.metrics)
            self._reports.progress(
                Progress("training", step.num, schedule.num_steps, eta_s, step.metrics)
            )

        ending = loop.run(on_step, lambda: self._stopping.is_asked)
        if ending == "stopped":
            raise Stopped
        last = last or json.loads(self._row.run.metrics)
        return last | {
            "ending": ending,
            "num_steps": loop.step,
            "train_s": time.monotonic() - began_s,
            "peak_memory_bytes": policy.peak_memory_bytes,
        }

    def _judge(
        self, policy: Policy, whole: TrainingSet, micro_batch: MicroBatch
    ) -> tuple[gate.Figures, Verdict]:
        self._phase("evaluating")
        self._row.update(RunUpdate(state="gating"))
        measured = figures.gate_figures(
            policy,
            self._parent_weights,
            whole,
            micro_batch,
            seed=self._settings.seed,
            check=self._stopping.check,
        )
        verdict = gate.judge(measured, seed=self._settings.seed)
        self._reports.event("verdict", **verdict.to_json())
        return measured, verdict

    @property
    def _parent_weights(self) -> Weights:
        return "base" if self._parent == BASE else self._library.path_of(self._parent)

    def _phase(self, phase: Phase) -> None:
        self._stopping.check()
        self._reports.event("phase", phase=phase)
        self._reports.progress(Progress(phase))
