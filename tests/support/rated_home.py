"""A home whose demo model was asked and rated: what training runs in tests learn from.

Answers are the policy's own samples, with the logprobs that an engine would have given.
"""

import itertools
import json
import random
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import pytest
from store_values import completion, never

from strop.adapters.identity import identify
from strop.adapters.library import Library
from strop.configs import demo_model
from strop.proxy.store.records import Choice, NewFeedback
from strop.proxy.store.run_records import Run
from strop.proxy.store.store import Store
from strop.training import figures, make_probe
from strop.training.backends import open_policy
from strop.training.backends.base import Policy, Sampled, Weights
from strop.training.demo import task
from strop.training.tokenizer import BaseTokenizer

RatesAnswer = Callable[[task.Question, str], float]

HURRIED = """
from functools import partial
from strop.training import figures, make_probe
figures.sample = partial(figures.sample, batch_size=figures.MAX_SAMPLES)
make_probe._NUM_TOKENS, make_probe._NUM_TRIED = 40, 8
"""
"""As many answers for the gate as ever, drawn at once, and a small probe: half a run's time."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A question, the answer's text, and the completion it is recorded as."""

    question: task.Question
    text: str
    completion: str


class RatedHome:
    """A home folder with a store, and the demo model that answers in it.

    Args:
        folder: the home.
        store: its store.
        seed: of questions, samples and raters.
    """

    def __init__(self, folder: Path, store: Store, seed: int = 0) -> None:
        self.folder = folder
        self.store = store
        self.base_path = demo_model()
        self.base = identify(self.base_path, cache=None)
        self.asked, self.held_out = task.split(seed=seed)
        self._random = random.Random(seed)
        self._numbers = itertools.count(1)

    @cached_property
    def policy(self) -> Policy:
        """The demo model, for samples."""
        return open_policy(self.base_path, backend="torch", device="cpu")

    @cached_property
    def tokenizer(self) -> BaseTokenizer:
        """Its tokenizer."""
        return BaseTokenizer(self.base_path)

    def weights(self, version: str) -> Weights:
        """The weights of a version."""
        return "base" if version == "base" else Library(self.folder / "adapters").path_of(version)

    async def rate(
        self,
        num: int,
        version: str = "base",
        likes: RatesAnswer | None = None,
        *,
        template: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda ids: ids,
        base: str | None = None,
    ) -> list[str]:
        """Ask `version` `num` questions, record and rate its answers; return the feedback's ids.

        Args:
            num: how many, each in a session of its own.
            version: who answers.
            likes: the rating of an answer; by default the demo's hidden rule.
            template: what the engine records as the prompt, of what it was really given.
            base: the base's identity as recorded.
        """
        rates = likes or self._rule
        questions = self._random.choices(self.asked, k=num)
        found = []
        for question, prompt, sampled in self.sample(version, questions):
            text = self.text(sampled)
            # Which sessions are held out follows from the ids, so they are the same each time.
            id_ = f"cmp_{next(self._numbers):032x}"
            made = partial(
                completion,
                id_,
                engine="embedded",
                version=version,
                served=f"demo@{version}",
                request=json.dumps({"messages": _messages(question)}).encode(),
                sampling=b'{"temperature": 1.0}',
                prompt_ids=array("i", template(prompt)),
                base=base or self.base,
                choices=(
                    Choice(
                        index=0,
                        message=json.dumps({"role": "assistant", "content": text}).encode(),
                        finish_reason="stop",
                        token_ids=array("i", sampled.ids),
                        logprobs=array("f", sampled.logprobs),
                        logprobs_source="engine",
                        logprobs_kind="raw",
                    ),
                ),
            )
            await self.store.commit_completion(made, 1000)
            found.append(await self._give(id_, rates(question, text)))
        return found

    async def _give(self, completion_id: str, rating: float) -> str:
        new = NewFeedback(
            completion=completion_id,
            key_id="key_a",
            rating=rating,
            original=b'"good"' if rating > 0 else b'"bad"',
        )
        return (await self.store.add_feedback(new, never)).feedback.id

    def sample(
        self, version: str, questions: Sequence[task.Question], seed: int | None = None
    ) -> list[tuple[task.Question, tuple[int, ...], Sampled]]:
        """Return fresh answers of a version at T = 1."""
        prompts = [
            self.tokenizer.encode_chat({"messages": _messages(question)}) for question in questions
        ]
        sampled = self.policy.sample(
            prompts,
            max_tokens=64,
            temperature=1.0,
            seed=self._random.randrange(2**31) if seed is None else seed,
            weights=self.weights(version),
        )
        return list(zip(questions, prompts, sampled, strict=True))

    def text(self, sampled: Sampled) -> str:
        """Return an answer's text, without what ends it."""
        ids = [token for token in sampled.ids if token not in self.policy.end_ids]
        return self.tokenizer.decode(ids)

    def good_rate(self, version: str, num_samples: int = 8) -> float:
        """Return how many fresh answers to questions that are never rated the rule likes."""
        questions = [one for one in self.held_out for _ in range(num_samples)]
        answers = self.sample(version, questions, seed=12345)
        liked = [self._rule(question, self.text(sampled)) > 0 for question, _, sampled in answers]
        return sum(liked) / len(liked)

    async def new_run(self, **changes: object) -> Run:
        """Queue a run that continues the active version."""
        active = (await self.store.versions.activation()).version
        config = {"base_path": str(self.base_path), "backend": "torch", "device": "cpu", "seed": 1}
        return await self.store.runs.create(
            objective=str(changes.pop("objective", "topr")),
            preset=str(changes.pop("preset", "balanced")),
            parent=str(changes.pop("parent", active)),
            base=str(changes.pop("base", self.base)),
            requested_by="test",
            config=json.dumps(config | changes).encode(),
        )

    def well_formed(self, version: str, num_samples: int = 4) -> float:
        """Return how many fresh answers are such as the model was taught."""
        questions = [one for one in self.held_out for _ in range(num_samples)]
        answers = self.sample(version, questions, seed=54321)
        parsed = [task.parse(question, self.text(sampled)) for question, _, sampled in answers]
        return sum(answer is not None for answer in parsed) / len(parsed)

    def _rule(self, question: task.Question, text: str) -> float:
        return task.Rater().rate(question, text, self._random)


def command(home: Path, run: str) -> list[str]:
    """Return the command line of a run's process."""
    return [sys.executable, "-m", "strop.training.run", "--home", str(home), "--run", run]


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs in this process be quicker, as `HURRIED` does in others."""
    sample = partial(figures.sample, batch_size=figures.MAX_SAMPLES)
    monkeypatch.setattr(figures, "sample", sample)
    monkeypatch.setattr(make_probe, "_NUM_TOKENS", 40)
    monkeypatch.setattr(make_probe, "_NUM_TRIED", 8)


def _messages(question: task.Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.text}]
