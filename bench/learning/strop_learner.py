"""strop as a learner: what `strop.training.pipeline` does, with the same code.

Leaves out the store, the memory estimate, the probe and the manifest.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from bench.learning.demo import BACKEND
from bench.learning.learner import Learned, Lesson
from bench.learning.ratings import BASE_ID
from strop.proxy.store.run_records import Prior
from strop.training import advantages, examples, figures, gate, objectives, presets
from strop.training.backends import open_policy
from strop.training.backends.base import BASE, Policy
from strop.training.backends.base_files import BaseFiles
from strop.training.collection import NUM_JUDGING, refusal
from strop.training.examples import Example
from strop.training.loop import Loop
from strop.training.measurement import Measured, measure
from strop.training.micro_batch import MicroBatch
from strop.training.objectives.base import Objective, Settings
from strop.training.presets import Preset
from strop.training.rows import Target
from strop.training.tokenizer import BaseTokenizer
from strop.training.training_set import TrainingSet

Advantages = Callable[[Sequence[Example], Prior], list[float]]


@dataclass(slots=True)
class StropLearner:
    """strop's own training, with another objective or other numbers where an arm says so.

    Attributes:
        objective: makes the loss.
        preset: the preset's name.
        changes: fields of the preset, or of its objective's settings, that are other here.
        lr_scale: the peak learning rate over the preset's.
        advantages: strop's own, unless an arm brings another baseline.
        has_gate: whether the gate decides.
    """

    objective: Callable[[Settings], Objective]
    preset: str = presets.DEFAULT
    changes: Mapping[str, Any] = field(default_factory=dict)
    lr_scale: float = 1.0
    advantages: Advantages = advantages.advantages
    has_gate: bool = True

    def learn(self, lesson: Lesson) -> Learned:
        """Collect, measure, take the steps, and ask the gate where there is one."""
        preset = changed(presets.load(self.preset, BaseFiles(lesson.base).config), self.changes)
        preset = replace(preset, lr=self.lr_scale * preset.lr)
        objective = self.objective(preset.objective)
        found = examples.make(lesson.turns, _target(lesson))
        learn = objective.select(found.examples)
        if reason := refusal(found, learn, objective.name):
            return Learned("refused", reasons=(reason,))
        policy = open_policy(
            lesson.base,
            start=lesson.versions.get(lesson.parent),
            lora=preset.lora(lesson.seed),
            adamw=preset.adamw,
            backend=BACKEND,
            device="cpu",
        )
        try:
            micro_batch = MicroBatch(preset.micro_batch_tokens)
            began_s = time.process_time()
            measured = measure(
                policy,
                learn,
                self.advantages(learn, lesson.prior),
                lesson.parent,
                lesson.versions,
                micro_batch,
            )
            num_steps = _train(policy, objective, measured, preset, micro_batch, lesson)
            adapter = lesson.folder / "adapter"
            adapter.mkdir()
            policy.save_adapter(adapter)
            cpu_s = time.process_time() - began_s
            reasons = _objections(policy, lesson, measured, micro_batch) if self.has_gate else ()
        finally:
            policy.close()
        if reasons:
            return Learned("rejected", None, reasons, num_steps, cpu_s)
        return Learned("trained", adapter, (), num_steps, cpu_s)

    def close(self) -> None:
        """End nothing."""


def strop(name: str, **given: Any) -> StropLearner:
    """Return strop with one of its own objectives."""
    return StropLearner(partial(objectives.make, name), **given)


def changed(preset: Preset, changes: Mapping[str, Any]) -> Preset:
    """Return `preset` with other fields, of its objective's settings too.

    Raises:
        ValueError: there is no such field.
    """
    of_objective = {name: changes[name] for name in changes if hasattr(preset.objective, name)}
    own = {name: changes[name] for name in changes if hasattr(preset, name)}
    if unknown := changes.keys() - own.keys() - of_objective.keys():
        raise ValueError(f"expected fields of a preset, got {', '.join(sorted(unknown))}")
    return replace(preset, **own, objective=replace(preset.objective, **of_objective))


def _train(
    policy: Policy,
    objective: Objective,
    measured: Measured,
    preset: Preset,
    micro_batch: MicroBatch,
    lesson: Lesson,
) -> int:
    """Take the steps, and return how many."""
    objective.select(measured.units)
    schedule = preset.schedule(len(measured.units), lesson.seed)
    state = lesson.folder / "run"
    state.mkdir()
    loop = Loop(policy, objective, measured.units, schedule, micro_batch, state)
    loop.run(lambda _: None, lambda: False)
    return loop.step


def _objections(
    policy: Policy, lesson: Lesson, measured: Measured, micro_batch: MicroBatch
) -> tuple[str, ...]:
    """Return why the gate refuses the candidate; nothing where it doesn't."""
    # Each is a session of its own.
    held_out = tuple(
        one.as_held_out()
        for one in examples.make(lesson.held_out[-NUM_JUDGING:], _target(lesson)).examples
        if one.kind == "rating"
    )
    tokens = [
        *(answers for turn in held_out for answers in turn.answers),
        *(answer.tokens for unit in measured.units for answer in unit.answers),
    ]
    prompts = {tuple(one.ids[: one.num_prompt].tolist()): None for one in tokens}
    whole = TrainingSet(
        units=measured.units,
        feedback=(),
        held_out=held_out,
        prompts=tuple(prompts)[: figures.MAX_SAMPLES],
        counts={},
    )
    parent = lesson.versions.get(lesson.parent, BASE)
    found = figures.gate_figures(policy, parent, whole, micro_batch, seed=lesson.seed)
    verdict = gate.judge(found, seed=lesson.seed)
    return () if verdict.is_passed else verdict.reasons


def _target(lesson: Lesson) -> Target:
    return Target(BASE_ID, BaseFiles(lesson.base).context_length, BaseTokenizer(lesson.base))
