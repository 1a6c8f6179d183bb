"""The demo model in this process: questions as token ids, its answers, and what they are worth.

Knows no rating and trains nothing. Says nothing over HTTP: that is `strop demo`'s matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from strop.configs import demo_model
from strop.training.backends import open_policy
from strop.training.backends.base import BASE, TRAINED, Policy, Sampled
from strop.training.demo import task
from strop.training.demo.task import Question, Rater
from strop.training.sequences import Floats, Tokens
from strop.training.tokenizer import BaseTokenizer

BACKEND: Final = "torch"
MAX_TOKENS: Final = 64
NUM_SAMPLES: Final = 8  # of each held-out question
_BATCH_SIZE: Final = 256


@dataclass(frozen=True, slots=True)
class Said:
    """One answer; `text` lacks what ends the turn."""

    question: Question
    prompt_ids: tuple[int, ...]
    sampled: Sampled
    text: str


@dataclass(frozen=True, slots=True)
class Worth:
    """A version's fresh answers to held-out questions at T = 1.

    Attributes:
        good: the share that the rule likes.
        right: the share with the right fact.
        well_formed: the share that is an answer at all.
        kl_base: KL to the base, nats an answer.
        base_nll: nats a token under the base.
        entropy: of the version's next-token distribution, nats.
        length: tokens an answer.
    """

    good: float
    right: float
    well_formed: float
    kl_base: float
    base_nll: float
    entropy: float
    length: float


class Demo:
    """The demo model's folder and tokenizer."""

    def __init__(self) -> None:
        self.base: Path = demo_model()
        self.tokenizer = BaseTokenizer(self.base)
        self._prompts: dict[str, tuple[int, ...]] = {}

    def open(self, adapter: Path | None) -> Policy:
        """Return the base with `adapter` on it, or with a fresh LoRA, which changes nothing."""
        return open_policy(self.base, start=adapter, backend=BACKEND, device="cpu")

    def ask(self, policy: Policy, questions: Sequence[Question], seed: int) -> list[Said]:
        """Return one answer to each question, each in a chat of its own, by the trained LoRA."""
        prompts = [self._prompt(question) for question in questions]
        answers = policy.sample(prompts, max_tokens=MAX_TOKENS, temperature=1.0, seed=seed)
        return [
            Said(question, prompt, answer, self._text(policy, answer.ids))
            for question, prompt, answer in zip(questions, prompts, answers, strict=True)
        ]

    def write(self, policy: Policy, texts: Sequence[tuple[Question, str]]) -> list[Said]:
        """Return answers that were written, as if the trained LoRA had sampled them.

        Their logprobs are its own; their entropies are not known, and NaN.
        """
        prompts = [self._prompt(question) for question, _ in texts]
        answers = [self.tokenizer.encode_answer(text) for _, text in texts]
        logprobs: list[Floats] = []
        for start in range(0, len(texts), _BATCH_SIZE):
            chunk = slice(start, start + _BATCH_SIZE)
            pairs = zip(prompts[chunk], answers[chunk], strict=True)
            logprobs += policy.logprobs([_tokens(prompt, ids) for prompt, ids in pairs])
        return [
            Said(question, prompt, Sampled(ids, own, np.full_like(own, np.nan)), text)
            for (question, text), prompt, ids, own in zip(
                texts, prompts, answers, logprobs, strict=True
            )
        ]

    def measure(
        self, policy: Policy, held_out: Sequence[Question], rater: Rater, seed: int
    ) -> Worth:
        """Return what fresh answers to questions that were never rated are worth."""
        said = self.ask(policy, [q for q in held_out for _ in range(NUM_SAMPLES)], seed)
        parsed = [task.parse(one.question, one.text) for one in said]
        sequences = [_tokens(one.prompt_ids, one.sampled.ids) for one in said]
        own, base = (policy.logprobs(sequences, weights) for weights in (TRAINED, BASE))
        is_right = [
            answer is not None and answer.value == one.question.right
            for answer, one in zip(parsed, said, strict=True)
        ]
        num = len(said)
        return Worth(
            good=sum(rater.likes(one.question, one.text) for one in said) / num,
            right=sum(is_right) / num,
            well_formed=sum(answer is not None for answer in parsed) / num,
            kl_base=(_total(own) - _total(base)) / num,
            base_nll=-float(np.concatenate(base).mean(dtype=np.float64)),
            entropy=float(np.concatenate([one.sampled.entropies for one in said]).mean()),
            length=sum(len(one.sampled.ids) for one in said) / num,
        )

    def _prompt(self, question: Question) -> tuple[int, ...]:
        if question.text not in self._prompts:
            messages = [{"role": "user", "content": question.text}]
            self._prompts[question.text] = self.tokenizer.encode_chat({"messages": messages})
        return self._prompts[question.text]

    def _text(self, policy: Policy, ids: Sequence[int]) -> str:
        ends = len(ids) - (ids[-1] in policy.end_ids)
        return self.tokenizer.decode(ids[:ends])


def _tokens(prompt: Sequence[int], ids: Sequence[int]) -> Tokens:
    return Tokens(np.array([*prompt, *ids], np.int32), len(prompt))


def _total(rows: Sequence[Floats]) -> float:
    return float(np.concatenate(rows).sum(dtype=np.float64))
