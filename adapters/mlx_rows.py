"""What mlx-lm's models give for several sequences at once, and whether it is what each gives alone.

For the engine and the trainer alike. Imports mlx; knows no LoRA and no requests. Written against
mlx-lm 0.32.2. Letter: V vocabulary.
"""

import logging
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator

_TOLERANCE = 1.0  # nats: more than bf16 rounds, less than what a wrong mask does
_LIKELY = 10.0  # nats below the likeliest token; beyond that roundings are larger
_SHORT, _LONG = 3, 24  # tokens: beside the long prompt the short one is padded

log = logging.getLogger(__name__)


class Float32Logits:
    """A model whose logits are float32, so that logprobs keep more digits than bf16 has."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        """Return the model's logits as float32."""
        logits: mx.array = self._model(*args, **kwargs).astype(mx.float32)
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def rows_are_independent(model: Any) -> bool:
    """Return whether the tokens after a prompt are as likely beside longer prompts as alone.

    Of some of mlx-lm's models they aren't (Gemma 2, Mamba), which are written for one sequence at a
    time: with several they fail, or attend to padding and say nothing.

    Raises:
        Exception: whatever the model raises on one sequence.
    """
    vocab_size = model(mx.array([[0]])).shape[-1]  # Lazy: only the shape is looked at.
    short, long = (
        [(7 * at * at + 3 * at) % vocab_size for at in range(1, length + 1)]
        for length in (_SHORT, _LONG)
    )
    alone_V = _first(model, [short])
    is_likely_V = alone_V > alone_V.max() - _LIKELY
    # A mask that is spread over the wrong axis fits where there are as many rows as heads.
    for others in ([long], [long, long]):
        try:
            beside_V = _first(model, [short, *others])
        except Exception as error:  # noqa: BLE001 - the edge of what a model can do
            log.warning("the model can't run several answers at once: %s", error)
            return False
        difference: Any = mx.where(is_likely_V, mx.abs(alone_V - beside_V), 0).max()
        if not difference.item() < _TOLERANCE:
            return False
    return True


def _first(model: Any, prompts: Sequence[list[int]]) -> mx.array:
    """Return the logprobs of what comes first after the first prompt, (V,)."""
    generator = BatchGenerator(
        Float32Logits(model),
        completion_batch_size=len(prompts),
        prefill_batch_size=len(prompts),
        # Its own is of the device that was the default when mlx-lm was imported.
        stream=mx.default_stream(mx.default_device()),
    )
    with closing(generator):
        first, *_ = generator.insert([*prompts], max_tokens=[1] * len(prompts))
        while True:
            _, responses = generator.next()
            for response in responses:
                if response.uid == first:
                    logprobs_V: mx.array = response.logprobs
                    return logprobs_V
