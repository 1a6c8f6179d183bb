"""Probes of real adapters on small models, made with transformers and peft as a trainer makes them.

Knows no engine.
"""

import functools
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from strop.adapters.probe import Item, Probe

NUM_TOKENS = 24
PROMPT_LENGTHS = (12, 30, 300)
# Ordinary tokens of `models.make_tokenizer`.
_LEAST_ID, _MOST_ID = 300, 900


@functools.cache
def model_of(base: Path, adapter: Path | None) -> Any:
    """Return a model in fp32, with an adapter if one is given."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft reads a renamed attribute
            model = PeftModel.from_pretrained(model, adapter)
    return model.eval()


def logprobs_of(model: Any, prompt: Sequence[int], ids: Sequence[int]) -> list[float]:
    """Return the raw logprob of each of `ids` after `prompt`."""
    import torch

    with torch.no_grad():
        rows = model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
    return [float(rows[len(prompt) - 1 + at, token]) for at, token in enumerate(ids)]


def _greedy(model: Any, prompt: Sequence[int]) -> tuple[list[int], list[float]]:
    """Return the greedy continuation, and at each step how far the best is from the second."""
    import torch

    ids: list[int] = []
    margins: list[float] = []
    for _ in range(NUM_TOKENS):
        with torch.no_grad():
            row = model(torch.tensor([[*prompt, *ids]])).logits[0, -1].log_softmax(-1)
        best, second = row.topk(2)[0].tolist()
        ids.append(int(row.argmax()))
        margins.append(best - second)
    return ids, margins


@functools.cache
def probe_of(
    base: Path,
    adapter: Path,
    parent: Path | None = None,
    prompts: tuple[tuple[int, ...], ...] = (),
) -> Probe:
    """Return the probe of `adapter`, with a prompt longer than a block of a prefix cache.

    Its prompts are `prompts`, where some are given: random ids are no text.
    """
    chance = random.Random(7)
    model = model_of(base, adapter)
    items = []
    for prompt in prompts or [
        tuple(chance.randrange(_LEAST_ID, _MOST_ID) for _ in range(length))
        for length in PROMPT_LENGTHS
    ]:
        ids, margins = _greedy(model, prompt)
        before = logprobs_of(model_of(base, parent), prompt, ids) if parent else None
        items.append(
            Item(
                prompt_ids=prompt,
                ids=tuple(ids),
                margins=tuple(margins),
                candidate=tuple(logprobs_of(model, prompt, ids)),
                parent=tuple(before) if before else None,
                base=tuple(logprobs_of(model_of(base, None), prompt, ids)),
            )
        )
    return Probe(tuple(items), "float32")
