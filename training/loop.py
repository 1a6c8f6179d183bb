"""The training loop: units into optimizer steps, with the state on disk to go on after a kill.

Knows no store and no model: a policy computes, an objective says which way, and the caller hears
of each step.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np

from strop.adapters import durable
from strop.proxy.store import run_folder
from strop.training.backends.base import TRAINED, OutOfMemory, Policy
from strop.training.batching import Rows, learning_rate, pack, plan_steps
from strop.training.divergence import kl_of
from strop.training.means import Means
from strop.training.micro_batch import MicroBatch
from strop.training.objectives.base import Objective
from strop.training.sequences import Floats, Kind, Loss, Tokens, Unit

Ending = Literal["finished", "kl_stop", "stopped"]

# Of a run's time, at most about a twentieth goes into saving its state.
_SAVE_EVERY: Final = 20.0
# The KL's running mean remembers about this many steps.
_KL_STEPS: Final = 4
_LOOP_FILE: Final = "loop.json"
# The answers of a unit that a version sampled. What people wrote, as the preferred answer of a pair
# may be, is far from the parent, and it is right to go there.
_SAMPLED: Final[Mapping[Kind, slice]] = {
    "rating": slice(None),
    "correction": slice(0),
    "pair": slice(1, None),
}


@dataclass(frozen=True, slots=True)
class Schedule:
    """How far a run goes.

    Attributes:
        num_steps: optimizer steps at most.
        batch_size: units a step, at most.
        lr: the peak learning rate.
        warmup_steps: steps until it is reached.
        kl_stop: the running mean of the KL to the parent, nats a token, that ends the run early.
        seed: of the order of the units.
    """

    num_steps: int
    batch_size: int
    lr: float
    warmup_steps: int
    kl_stop: float
    seed: int


@dataclass(frozen=True, slots=True)
class Step:
    """An optimizer step that was taken, counted from 1, and its metrics by name."""

    num: int
    metrics: dict[str, float]


class Loop:
    """One run's steps. Belongs to the thread that made the policy.

    Args:
        policy: starts at the parent's weights.
        objective: the loss.
        units: what is learned from, at least one.
        schedule: how far to go.
        micro_batch: how much the device takes at once.
        folder: where the state is kept.
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        units: Sequence[Unit],
        schedule: Schedule,
        micro_batch: MicroBatch,
        folder: Path,
    ) -> None:
        self._policy = policy
        self._objective = objective
        self._units = units
        self._schedule = schedule
        self._micro_batch = micro_batch
        self._folder = folder
        self._step = 0
        self._kl: float | None = None

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        return self._step

    def resume(self) -> int:
        """Go on from the newest whole state in the folder, if there is one; return its step."""
        states = run_folder.states(self._folder)
        if states:
            state = json.loads((states[-1] / _LOOP_FILE).read_bytes())
            self._policy.load_state(states[-1])
            self._step = state["step"]
            self._kl = state["kl"]
            # There may be less room now than there was then.
            self._micro_batch.max_tokens = min(self._micro_batch.max_tokens, state["max_tokens"])
        return self._step

    def run(self, on_step: Callable[[Step], None], is_stopping: Callable[[], bool]) -> Ending:
        """Take the steps that are left; `is_stopping` is asked, and `on_step` told, at each border.

        However it ends, the state on disk is that of the last step.

        Raises:
            OutOfMemory: one unit alone doesn't fit.
        """
        schedule = self._schedule
        plan = plan_steps(
            len(self._units),
            num_steps=schedule.num_steps,
            batch_size=schedule.batch_size,
            seed=schedule.seed,
        )
        saved_s, save_took_s, saved_step = time.monotonic(), 0.0, self._step
        ending: Ending = "finished"
        while self._step < len(plan):
            # A KL that is no number is beyond every bound.
            if self._kl is not None and not self._kl <= schedule.kl_stop:
                ending = "kl_stop"
                break
            if is_stopping():
                ending = "stopped"
                break
            on_step(self._take(plan[self._step]))
            if time.monotonic() - saved_s > _SAVE_EVERY * save_took_s:
                began_s = time.monotonic()
                self._save()
                saved_s, saved_step = time.monotonic(), self._step
                save_took_s = saved_s - began_s
        if saved_step != self._step:
            self._save()
        return ending

    def _take(self, indices: Sequence[int]) -> Step:
        began_s = time.monotonic()
        schedule = self._schedule
        units = [self._units[i] for i in indices]
        if self._objective.needs_step:
            self._objective.prepare(units, self._logprobs(units))
        means = self._accumulate(indices)
        lr = learning_rate(
            self._step, schedule.num_steps, peak=schedule.lr, warmup_steps=schedule.warmup_steps
        )
        norm = self._policy.step(lr)
        self._step += 1
        metrics = means.values()
        self._follow(metrics.get("kl_parent"))
        num_tokens = sum(len(tokens.ids) for tokens in _sequences(units))
        took_s = max(time.monotonic() - began_s, 1e-9)
        if self._kl is not None:
            metrics["kl_parent_mean"] = self._kl
        metrics |= {
            "gradient_norm": norm,
            "lr": lr,
            "tokens_per_s": num_tokens / took_s,
            "step_s": took_s,
        }
        return Step(self._step, metrics)

    def _follow(self, kl: float | None) -> None:
        """Take a step's KL into its running mean; a step of corrections alone has none."""
        if kl is not None:
            self._kl = kl if self._kl is None else self._kl + (kl - self._kl) / _KL_STEPS

    def _logprobs(self, units: Sequence[Unit]) -> list[tuple[Floats, ...]]:
        flat = self._micro_batch.logprobs(self._policy, _sequences(units), TRAINED)
        return _grouped(units, flat)

    def _accumulate(self, indices: Sequence[int]) -> Means:
        """Add the gradient of a step's units, in micro-batches that fit; return their metrics."""
        means = Means()
        left = list(indices)
        while left:
            sizes = [_rows(self._units[i]) for i in left]
            batch = [left[i] for i in pack(sizes, self._micro_batch.max_tokens)[0]]
            units = [self._units[i] for i in batch]
            if self._is_too_big(units):
                added = self._add_one_by_one(units[0], len(indices))
            else:
                try:
                    added = self._add_together(units, len(indices))
                except OutOfMemory as error:
                    self._micro_batch.halve(_sequences(units), error)
                    continue
            means.update(added)
            left = [i for i in left if i not in batch]
        return means

    def _is_too_big(self, units: Sequence[Unit]) -> bool:
        """Return whether this is one unit of several answers that don't fit together."""
        is_one_of_several = len(units) == 1 and len(units[0].answers) > 1
        return is_one_of_several and _rows(units[0]).num_padded > self._micro_batch.max_tokens

    def _add_together(self, units: Sequence[Unit], num_units: int) -> Means:
        means = Means()

        def gradient(flat: list[Floats]) -> list[Floats]:
            grouped = _grouped(units, flat)
            losses = [self._loss(*one) for one in zip(units, grouped, strict=True)]
            for _, metrics in losses:
                means.update(metrics)
            return [_shared(one, num_units) for loss, _ in losses for one in loss.gradients]

        self._policy.accumulate(_sequences(units), gradient)
        return means

    def _add_one_by_one(self, unit: Unit, num_units: int) -> Means:
        """Add one unit whose answers don't fit together: first their logprobs, then each alone."""
        (logprobs,) = self._logprobs([unit])
        loss, metrics = self._loss(unit, logprobs)
        for answer, gradient in zip(unit.answers, loss.gradients, strict=True):
            scaled = [_shared(gradient, num_units)]
            try:
                self._policy.accumulate([answer.tokens], partial(_given, scaled))
            except OutOfMemory as error:
                self._micro_batch.halve([answer.tokens], error)
        return metrics

    def _loss(self, unit: Unit, logprobs: tuple[Floats, ...]) -> tuple[Loss, Means]:
        loss = self._objective(unit, logprobs)
        means = Means()
        means.add("loss", loss.value)
        for name, value in loss.metrics.items():
            means.add(name, value)
        answers = [*zip(unit.answers, logprobs, strict=True)]
        for answer, now in answers[_SAMPLED[unit.kind]]:
            ratios = (now - answer.parent)[answer.keep].astype(np.float64)
            means.add("kl_parent", float(kl_of(ratios).sum()), len(ratios))
        return loss, means

    def _save(self) -> None:
        """Write the state beside the one before, and only then remove that."""
        name = f"{run_folder.STATE_PREFIX}{self._step:08d}"
        temporary = self._folder / f".{name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(mode=0o700)
        self._policy.save_state(temporary)
        state = {"step": self._step, "kl": self._kl, "max_tokens": self._micro_batch.max_tokens}
        (temporary / _LOOP_FILE).write_text(json.dumps(state))
        before = run_folder.states(self._folder)
        durable.publish(temporary, self._folder / name)
        for folder in before:
            shutil.rmtree(folder)


def _shared(gradient: Floats, num_units: int) -> Floats:
    """Return one unit's part of the gradient of a mean over units."""
    return np.divide(gradient, num_units, dtype=np.float32)


def _given(gradients: list[Floats], _: list[Floats]) -> list[Floats]:
    return gradients


def _sequences(units: Sequence[Unit]) -> list[Tokens]:
    return [answer.tokens for unit in units for answer in unit.answers]


def _rows(unit: Unit) -> Rows:
    return Rows(max(len(answer.tokens.ids) for answer in unit.answers), len(unit.answers))


def _grouped(units: Sequence[Unit], flat: Sequence[Floats]) -> list[tuple[Floats, ...]]:
    """Return one tuple per unit of what is there for each of its answers."""
    rest = iter(flat)
    return [tuple(next(rest) for _ in unit.answers) for unit in units]
