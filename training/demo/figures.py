"""Samples of a demo model's answers to the task, and the figures that describe them.

Knows how to read a transformers model, nothing of how it was made or of strop's engines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from strop.training.demo import task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer, as text, and its number of tokens, the one that ends it included."""

    question: task.Question
    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What samples have in common: shares in [0, 1], of all samples, and the longest one."""

    num_samples: int
    well_formed: float
    liked: float
    right: float
    max_tokens: int


def sample(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    questions: Sequence[task.Question],
    *,
    num_samples: int,
    seed: int,
    max_tokens: int = 64,
) -> list[Sample]:
    """Return `num_samples` answers at T = 1 to each question, each asked in a chat of its own."""
    import torch

    asked = [question for question in questions for _ in range(num_samples)]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question.text}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for question in asked
    ]
    encoded = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        ids_BT = model.generate(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_tokens,
        )
    samples = []
    for question, ids in zip(asked, ids_BT[:, encoded.input_ids.shape[1] :].tolist(), strict=True):
        length = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
        samples.append(Sample(question, tokenizer.decode(ids[:length]), min(length + 1, len(ids))))
    return samples


def summarise(samples: Sequence[Sample]) -> Figures:
    """Return the figures of `samples`, of which there must be one at least."""
    answers = [(one.question, task.parse(one.question, one.text)) for one in samples]
    well_formed = [(question, answer) for question, answer in answers if answer is not None]
    num_samples = len(samples)
    return Figures(
        num_samples=num_samples,
        well_formed=len(well_formed) / num_samples,
        liked=sum(task.bullets_and_not_rude(answer) for _, answer in well_formed) / num_samples,
        right=sum(answer.value == question.right for question, answer in well_formed) / num_samples,
        max_tokens=max(one.num_tokens for one in samples),
    )
