"""One arm with one seed: rounds of chatting, rating and training, each version measured.

From round two on each arm samples from its own version. As in strop, what isn't learned from stays
fresh: after a rejection the next run has those ratings too.
"""

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.learning import conditions
from bench.learning.arms import Arm
from bench.learning.conditions import Condition
from bench.learning.demo import Demo, Said, Worth
from bench.learning.learner import Learned, Learner, Lesson
from bench.learning.ratings import prior, turn
from strop.proxy.store.held_out import is_held_out
from strop.proxy.store.run_records import RatedTurn
from strop.training.backends.base import BASE, Policy
from strop.training.demo import task
from strop.training.demo.task import Question

NUM_RATINGS: Final = 40
NUM_ROUNDS: Final = 8


@dataclass(frozen=True, slots=True)
class Round:
    """The version that serves after one round, and how it came about; `num_good` of 40 ratings."""

    worth: Worth
    num_good: int
    learned: Learned


@dataclass(frozen=True, slots=True)
class Played:
    """The base as measured, then each round."""

    base: Worth
    rounds: tuple[Round, ...]


def play(demo: Demo, arm: Arm, condition: Condition, seed: int) -> Played:
    """Return what one arm makes of 8 rounds of 40 ratings."""
    learner = arm.learner()
    with tempfile.TemporaryDirectory(prefix="bench-learning-") as folder:
        try:
            return _Play(demo, arm, condition, seed, learner, Path(folder)).run()
        finally:
            learner.close()


class _Play:
    def __init__(
        self, demo: Demo, arm: Arm, condition: Condition, seed: int, learner: Learner, home: Path
    ) -> None:
        self._demo = demo
        self._arm = arm
        self._condition = condition
        self._rater = condition.rater
        self._seed = seed
        self._learner = learner
        self._home = home
        self._rng = random.Random(seed)
        self._asked, self._held_out_questions = task.split(seed=seed)
        self._versions: dict[str, Path] = {}
        self._parent: str = BASE
        self._fresh: list[RatedTurn] = []
        self._held_out: list[RatedTurn] = []
        self._rated: list[RatedTurn] = []

    def run(self) -> Played:
        base = self._measure(0)
        rounds = [self._round(number) for number in range(1, NUM_ROUNDS + 1)]
        return Played(base, tuple(rounds))

    def _round(self, number: int) -> Round:
        turns = self._chat(number)
        for one in turns:
            if self._learner.has_gate and is_held_out(one.root):
                self._held_out.append(one)
            else:
                self._fresh.append(one)
                self._rated.append(one)
        folder = self._home / f"run{number}"
        folder.mkdir()
        lesson = Lesson(
            base=self._demo.base,
            parent=self._parent,
            versions=self._versions,
            turns=self._fresh,
            held_out=self._held_out,
            prior=prior(self._rated),
            folder=folder,
            seed=self._seed_of(number, 2),
        )
        learned = self._learner.learn(lesson)
        if learned.adapter is not None:
            self._parent = f"v{number}"
            self._versions[self._parent] = learned.adapter
            self._fresh = []
        num_good = sum(one.feedback[0].rating > 0 for one in turns)
        return Round(self._measure(number), num_good, learned)

    def _chat(self, number: int) -> list[RatedTurn]:
        """Ask the version that serves, and rate what it says."""
        policy = self._demo.open(self._versions.get(self._parent))
        said = self._demo.ask(policy, self._draw(), self._seed_of(number, 0))
        before = [self._before(policy, one) for one in said]
        policy.close()
        turns = []
        for index, (one, others) in enumerate(zip(said, before, strict=True)):
            rating = self._rater.rate(one.question, one.text, self._rng)
            correction = None
            if self._arm.is_corrected and rating < 0:
                correction = conditions.correct(self._rater, one.question, one.text, self._rng)
            id_ = f"{self._seed}_{number}_{index}"
            turns.append(
                turn([*others, one], rating, id_=id_, version=self._parent, correction=correction)
            )
        return turns

    def _before(self, policy: Policy, said: Said) -> list[Said]:
        """Return the turn's answers before the one that is rated."""
        others = self._rng.choices(self._asked, k=self._condition.num_answers - 1)
        texts = conditions.in_style_of(said.question, said.text, others, self._rng)
        return self._demo.write(policy, texts)

    def _draw(self) -> Sequence[Question]:
        if self._arm.asks_twice:
            return self._rng.sample(self._asked, NUM_RATINGS // 2) * 2
        return self._rng.sample(self._asked, NUM_RATINGS)

    def _measure(self, number: int) -> Worth:
        policy = self._demo.open(self._versions.get(self._parent))
        worth = self._demo.measure(
            policy, self._held_out_questions, self._rater, self._seed_of(number, 1)
        )
        policy.close()
        return worth

    def _seed_of(self, number: int, use: int) -> int:
        """Return a seed of its own for each use in each round."""
        return (self._seed * 1000 + number) * 10 + use
