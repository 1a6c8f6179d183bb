"""Answers of a model in torch, drawn token by token with a KV cache.

Knows no LoRA: whoever calls has chosen the weights. Letters: B sequences, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from strop.training.backends.base import Sampled
from strop.training.backends.torch_model import TorchModel, keeps_last
from strop.training.sequences import Floats


class Decoding:
    """Prompts under continuation; `logits_BV`, float32, says what may come next."""

    def __init__(self, model: TorchModel, prompts: Sequence[Sequence[int]]) -> None:
        length = max(map(len, prompts))
        self._model: Any = model.model
        self._cache: Any = None  # made by the model, whichever kind it needs
        self._keep = {"logits_to_keep": 1} if keeps_last(self._model) else {}
        # Padded on the left, so that every sequence goes on at the same position of the cache.
        ids_BT = np.zeros((len(prompts), length), np.int64)
        mask_BT = np.zeros_like(ids_BT)
        for row, mask, prompt in zip(ids_BT, mask_BT, prompts, strict=True):
            row[length - len(prompt) :] = prompt
            mask[length - len(prompt) :] = 1
        self._is_padded = not mask_BT.all()
        self._mask_BT = torch.from_numpy(mask_BT).to(model.device)
        positions_BT = (self._mask_BT.cumsum(1) - 1).clamp(min=0)
        self.logits_BV = self._forward(torch.from_numpy(ids_BT).to(model.device), positions_BT)

    def feed(self, tokens_B: torch.Tensor) -> None:
        """Put one more token behind each sequence."""
        positions_B1 = self._mask_BT.sum(1, keepdim=True)
        self._mask_BT = torch.nn.functional.pad(self._mask_BT, (0, 1), value=1)
        self.logits_BV = self._forward(tokens_B[:, None], positions_B1)

    def _forward(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor) -> torch.Tensor:
        output = self._model(
            input_ids=ids_BT,
            # Without padding there is nothing to mask, which lets faster attention run.
            attention_mask=self._mask_BT if self._is_padded else None,
            position_ids=positions_BT,
            past_key_values=self._cache,
            use_cache=True,
            **self._keep,
        )
        self._cache = output.past_key_values
        logits_BV: torch.Tensor = output.logits[:, -1].float()
        return logits_BV


def sample(
    model: TorchModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    end_ids: frozenset[int],
) -> list[Sampled]:
    """Return one answer for each prompt, as `Policy.sample` says."""
    if not prompts:
        return []
    generator = torch.Generator(model.device).manual_seed(seed)
    decoding = Decoding(model, prompts)
    drawn: list[list[tuple[int, float, float]]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    while True:
        logprobs_BV = decoding.logits_BV.log_softmax(-1)
        if temperature == 0:
            tokens_B = logprobs_BV.argmax(-1)
        else:
            # What computes NaN says anything: drawing from it raises, and on CUDA loses the device.
            weights_BV = (logprobs_BV / temperature).softmax(-1).nan_to_num(nan=1.0)
            tokens_B = torch.multinomial(weights_BV, 1, generator=generator)[:, 0]
        chosen_B = logprobs_BV.gather(-1, tokens_B[:, None])[:, 0]
        entropies_B = torch.special.entr(logprobs_BV.exp()).sum(-1)
        steps = zip(tokens_B.tolist(), chosen_B.tolist(), entropies_B.tolist(), strict=True)
        for row, step in enumerate(steps):
            if row in running:
                drawn[row].append(step)
                if step[0] in end_ids or len(drawn[row]) == max_tokens:
                    running.remove(row)
        if not running:
            return [Sampled.of(steps) for steps in drawn]
        decoding.feed(tokens_B)


def greedy(
    model: TorchModel, prompt: Sequence[int], num_tokens: int
) -> tuple[tuple[int, ...], Floats, Floats]:
    """Return a greedy continuation, as `Policy.greedy` says."""
    decoding = Decoding(model, [prompt])
    ids, logprobs, margins = [], [], []
    while True:
        best, next_best = decoding.logits_BV[0].log_softmax(-1).topk(2)
        (logprob, second), token = best.tolist(), next_best[:1]
        ids.append(int(token))
        logprobs.append(logprob)
        margins.append(logprob - second)
        if len(ids) == num_tokens:
            return tuple(ids), np.array(logprobs, np.float32), np.array(margins, np.float32)
        decoding.feed(token)
