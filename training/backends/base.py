"""What the trainer asks of a framework: one base model with one trainable LoRA on it.

Knows neither torch nor mlx, no objective and no store.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np

from strop.training.sequences import Floats, Tokens

BASE: Literal["base"] = "base"
TRAINED: Literal["trained"] = "trained"

Weights = Path | Literal["base", "trained"]
"""Which weights to compute with: a PEFT folder, the base alone, or the LoRA being trained."""


class BackendUnavailable(Exception):
    """What was asked for can't compute here; the message says what to install or set."""


class OutOfMemory(Exception):
    """The device has too little memory for this call; a smaller micro-batch may fit.

    The message says what to do where none does.

    Attributes:
        what: what happened, in a few words.
        excess: what there is too much of in one sequence that can't be computed alone.
        advice: what to do then.
    """

    what: ClassVar[str] = "no memory is left"
    excess: ClassVar[str] = "needs more memory than there is"
    advice: ClassVar[str] = (
        "free some, set training.device to one that has more, or take the base in 4 bits"
        " (training.quantize_base on CUDA; for MLX, a model.base that mlx-lm has quantised)"
    )

    @classmethod
    def of(cls, what: str) -> "OutOfMemory":
        """Return the error for `what` happened, in our words or in a framework's."""
        # Behind this torch explains how to tune its allocator.
        said = (what.partition(" If reserved")[0].splitlines() or [""])[0].rstrip(" .")
        return cls(f"{said or cls.what}: {cls.advice}")


class CutShort(OutOfMemory):
    """The system ended this call's work on the GPU, which it needs for the display.

    Handled as if memory had run out: a smaller micro-batch takes less time at once.
    """

    what = "macOS cut short what the GPU computed"
    excess = "keeps the GPU for longer than macOS lets it while the display is on"
    advice = (
        'let the display sleep while a run trains (training.hours = "22-6" starts runs at night),'
        ' or set training.device to "cpu", which is slower'
    )


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """A fresh LoRA: on all linear layers of the blocks, A random, B zero.

    Equal settings give equal weights, whichever backend makes them.
    """

    rank: int = 8
    alpha: float = 16.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class AdamWSettings:
    """The optimizer; `lr` is the peak, given anew at each step."""

    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class Sampled:
    """One sampled answer: ids, the end-of-text token included, logprobs at T = 1, entropies."""

    ids: tuple[int, ...]
    logprobs: Floats
    entropies: Floats

    @classmethod
    def of(cls, steps: Sequence[tuple[int, float, float]]) -> "Sampled":
        """Return the answer of tokens that were drawn: id, logprob and entropy of each."""
        ids, logprobs, entropies = zip(*steps, strict=True)
        return cls(ids, np.array(logprobs, np.float32), np.array(entropies, np.float32))


class Policy(Protocol):
    """A base with one trainable LoRA. For one thread only; `close` frees it.

    Attributes:
        dtype: what the base computes in: `float32`, `bfloat16` or `float16`.
        end_ids: the ids with which an answer ends.
    """

    dtype: str
    end_ids: frozenset[int]

    def logprobs(self, sequences: Sequence[Tokens], weights: Weights = TRAINED) -> list[Floats]:
        """Return the logprobs of each sequence's answer ids, without keeping a graph.

        Raises:
            OutOfMemory: they don't fit together.
        """
        ...

    def accumulate(
        self, sequences: Sequence[Tokens], gradient: Callable[[list[Floats]], list[Floats]]
    ) -> None:
        """Add one micro-batch to the gradient of the trainable LoRA.

        Computes the logprobs of `sequences` under it, calls `gradient` with them, and carries what
        that returns, dL/dlogprob for each, into the weights. Nothing is added where it raises.

        Raises:
            OutOfMemory: they don't fit together.
        """
        ...

    def step(self, lr: float) -> float:
        """Clip, take one AdamW step with the accumulated gradient, forget it; return its norm.

        The norm is that before clipping. Where it is not finite, no step is taken.

        Raises:
            OutOfMemory: what the optimizer keeps doesn't fit.
        """
        ...

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        weights: Weights = TRAINED,
    ) -> list[Sampled]:
        """Return one answer for each prompt; greedy at temperature 0.

        An answer ends after an id of `end_ids`, which is part of it, or after `max_tokens`. The
        same call gives the same answers.

        Raises:
            OutOfMemory: they don't fit together.
        """
        ...

    def greedy(
        self, prompt: Sequence[int], num_tokens: int, weights: Weights = TRAINED
    ) -> tuple[tuple[int, ...], Floats, Floats]:
        """Return exactly `num_tokens` greedy ids, going on past an end-of-text token.

        With them their logprobs, and at each step the best logprob less the second best.
        """
        ...

    def save_adapter(self, folder: Path) -> None:
        """Write the LoRA as `adapter_config.json` and `adapter_model.safetensors` into `folder`."""
        ...

    def save_state(self, folder: Path) -> None:
        """Write LoRA, optimizer and step count, so that `load_state` goes on exactly there."""
        ...

    def load_state(self, folder: Path) -> None:
        """Go on from what `save_state` wrote.

        Raises:
            ValueError: it is of another LoRA or broken; nothing has changed then.
        """
        ...

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory that was held so far."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...
