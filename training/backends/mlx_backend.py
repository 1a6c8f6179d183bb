"""The MLX backend: mlx-lm's model, our own LoRA and AdamW; Apple Silicon, and CPU for small models.

Knows no objective and no store. The LoRA's weights are float32 whatever the base computes in.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path

import mlx.core as mx
import numpy as np

from strop.adapters import mlx_rows, peft
from strop.adapters.mlx import own_path
from strop.training.backends import lora, mlx_decoding, mlx_model, mlx_pieces
from strop.training.backends.base import (
    BASE,
    TRAINED,
    AdamWSettings,
    LoraSettings,
    Sampled,
    Weights,
)
from strop.training.backends.base_files import BaseFiles
from strop.training.backends.batch import Batch, pad
from strop.training.sequences import Floats, Tokens

_NUM_OTHERS = 2  # adapters besides the trained one that stay loaded
# The largest dL/dlogprob that a base in float16 is given: smaller ones vanish on their way back,
# and sums over thousands of tokens stay far below the largest float16.
_LARGEST_SLOPE = 2.0**-4

Arrays = dict[str, mx.array]
Gradient = Callable[[list[Floats]], list[Floats]]


class MlxPolicy:
    """A base in MLX with one trainable LoRA; `Policy` says what the methods do."""

    def __init__(
        self,
        base: BaseFiles,
        start: peft.Adapter | None,
        *,
        lora_settings: LoraSettings,
        adamw: AdamWSettings,
        device: str,
    ) -> None:
        mlx_model.pick_device(device)
        mlx_model.limit_cache()
        with mlx_model.memory_errors():
            model = mlx_model.load(base)
            self._shapes = mlx_model.linear_shapes(model)
            self._net = mlx_model.prepare(model)
        self._adapter = start or lora.fresh(self._shapes, lora_settings)
        self._check_fit(self._adapter)
        self._slots = mlx_model.Slots(model)
        self._checkpointing: mlx_model.Checkpointing | None = None
        if base.is_checkpointed:
            self._checkpointing = mlx_model.Checkpointing(model)
        self.dtype = str(self._net.dtype).removeprefix("mlx.core.")
        self.end_ids = base.end_ids
        self._parameters = _to_mlx(lora.arrays_of(self._adapter))
        self._others: dict[Path, tuple[peft.Adapter, Arrays]] = {}
        self._gradients: Arrays | None = None
        self._adamw = adamw
        self._means: Arrays = {k: mx.zeros_like(v) for k, v in self._parameters.items()}
        self._variances: Arrays = {k: mx.zeros_like(v) for k, v in self._parameters.items()}
        self._step = 0
        self._slots.put(self._adapter, self._parameters)

    def logprobs(self, sequences: Sequence[Tokens], weights: Weights = TRAINED) -> list[Floats]:
        """Return the logprobs of each sequence's answer ids."""
        batch = pad(sequences)
        with self._computing(weights):
            return batch.split(_to_numpy(self._net.logprobs(batch)))

    def accumulate(self, sequences: Sequence[Tokens], gradient: Gradient) -> None:
        """Add one micro-batch to the gradient."""
        batch = pad(sequences)
        with self._computing(TRAINED):
            trace = self._traced_once if self._checkpointing is None else self._traced_after
            found = trace(batch, gradient)
            if self._gradients is not None:
                found = {name: self._gradients[name] + found[name] for name in found}
            mx.eval(found)
        self._gradients = found

    def step(self, lr: float) -> float:
        """Take one AdamW step."""
        gradients = self._gradients or {k: mx.zeros_like(v) for k, v in self._parameters.items()}
        self._gradients = None
        with mlx_model.memory_errors():
            norm = math.sqrt(
                _to_numpy(mx.stack([mx.sum(mx.square(g)) for g in gradients.values()])).sum()
            )
            if math.isfinite(norm):
                self._update(gradients, lr, min(1.0, self._adamw.max_grad_norm / (norm + 1e-6)))
        return norm

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        weights: Weights = TRAINED,
    ) -> list[Sampled]:
        """Return one answer for each prompt."""
        with mlx_model.memory_errors(), self._using(weights):
            return mlx_decoding.sample(
                self._net.model,
                prompts,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                end_ids=self.end_ids,
                is_batched=self._is_batched,
            )

    def greedy(
        self, prompt: Sequence[int], num_tokens: int, weights: Weights = TRAINED
    ) -> tuple[tuple[int, ...], Floats, Floats]:
        """Return exactly `num_tokens` greedy ids, their logprobs and margins."""
        with mlx_model.memory_errors(), self._using(weights):
            return mlx_decoding.greedy(self._net.model, prompt, num_tokens)

    def save_adapter(self, folder: Path) -> None:
        """Write the LoRA as a PEFT folder."""
        arrays = {name: _to_numpy(array) for name, array in self._parameters.items()}
        peft.write(lora.with_arrays(self._adapter, arrays), folder)

    def save_state(self, folder: Path) -> None:
        """Write LoRA, optimizer and step count."""
        weights, means, variances = (
            {name: _to_numpy(array) for name, array in arrays.items()}
            for arrays in (self._parameters, self._means, self._variances)
        )
        lora.write_state(lora.State(self._step, weights, means, variances), folder)

    def load_state(self, folder: Path) -> None:
        """Go on from what `save_state` wrote."""
        state = lora.read_state(folder, like=lora.arrays_of(self._adapter))
        self._step = state.step
        self._gradients = None
        self._parameters = _to_mlx(state.weights)
        self._means, self._variances = _to_mlx(state.means), _to_mlx(state.variances)
        self._slots.put(self._adapter, self._parameters)

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory that MLX held in this process."""
        return int(mx.get_peak_memory())

    def close(self) -> None:
        """Free the model."""
        del self._net, self._slots, self._checkpointing, self._others, self._gradients
        del self._parameters, self._means, self._variances
        mx.clear_cache()

    def _traced_once(self, batch: Batch, gradient: Gradient) -> Arrays:
        """Return the gradients with one forward pass, which keeps all activations."""
        scale = 1.0

        def loss(parameters: Arrays) -> mx.array:
            self._slots.put(self._adapter, parameters)
            logprobs_N = self._net.logprobs(batch)
            # Computing them here ends nothing: what is traced keeps its inputs for the gradient.
            nonlocal scale
            wanted_N = batch.join(gradient(batch.split(_to_numpy(logprobs_N))))
            scale = self._scale_of(wanted_N)
            return (logprobs_N * mx.array(scale * wanted_N)).sum()

        found: Arrays = mx.grad(loss)(self._parameters)
        return _divided(found, scale)

    def _traced_after(self, batch: Batch, gradient: Gradient) -> Arrays:
        """Return the gradients with two forward passes, of which none keeps all activations.

        Logprobs computed inside of a trace would keep what checkpointing is to let go.
        """
        values = batch.split(_to_numpy(self._net.logprobs(batch)))
        slopes_N = batch.join(gradient(values))
        scale = self._scale_of(slopes_N)
        wanted_N = mx.array(scale * slopes_N)

        def loss(parameters: Arrays) -> mx.array:
            self._slots.put(self._adapter, parameters)
            return (self._net.logprobs(batch) * wanted_N).sum()

        with self._checkpointing or nullcontext():
            found: Arrays = mx.grad(loss)(self._parameters)
            mx.eval(found)
        return _divided(found, scale)

    def _scale_of(self, slopes_N: Floats) -> float:
        """Return what a loss is multiplied with, so that its gradient fits the base's dtype."""
        largest = float(np.abs(slopes_N).max(initial=0.0))
        if self.dtype != "float16" or not 0 < largest < math.inf:
            return 1.0
        # A power of two: nothing is rounded by it.
        return 2.0 ** math.floor(math.log2(_LARGEST_SLOPE / largest))

    def _update(self, gradients: Arrays, lr: float, clip: float) -> None:
        """Take the step as torch's AdamW does: decay apart from the gradient, biases corrected."""
        adamw = self._adamw
        self._step += 1
        rate = lr / (1 - adamw.beta1**self._step)
        root = (1 - adamw.beta2**self._step) ** 0.5
        for name, weight in self._parameters.items():
            gradient = clip * gradients[name]
            mean = adamw.beta1 * self._means[name] + (1 - adamw.beta1) * gradient
            square = mx.square(gradient)
            variance = adamw.beta2 * self._variances[name] + (1 - adamw.beta2) * square
            decayed = (1 - lr * adamw.weight_decay) * weight
            moved = rate * mean / (mx.sqrt(variance) / root + adamw.eps)
            self._parameters[name] = decayed - moved
            self._means[name], self._variances[name] = mean, variance
        mx.eval(self._parameters, self._means, self._variances)
        self._slots.put(self._adapter, self._parameters)

    @cached_property
    def _is_batched(self) -> bool:
        return mlx_rows.rows_are_independent(self._net.model)

    @contextmanager
    def _computing(self, weights: Weights) -> Iterator[None]:
        """Compute whole sequences with these weights for the time of the block."""
        pieces = mlx_pieces.attention_in_pieces()
        with mlx_model.memory_errors(), self._using(weights), pieces:
            yield

    @contextmanager
    def _using(self, weights: Weights) -> Iterator[None]:
        """Compute with these weights for the time of the block, then with the trained ones."""
        if weights == BASE:
            self._slots.put(None, {})
        elif weights != TRAINED:
            self._slots.put(*self._load(Path(weights)))
        try:
            yield
        finally:
            # A trace leaves its own placeholders behind, too.
            self._slots.put(self._adapter, self._parameters)

    def _check_fit(self, adapter: peft.Adapter) -> None:
        own = {path: own_path(path, self._shapes) for path in adapter.modules}
        shapes = {path: self._shapes[own[path]] for path in own if own[path] in self._shapes}
        peft.check_fit(adapter.modules, shapes)

    def _load(self, folder: Path) -> tuple[peft.Adapter, Arrays]:
        loaded = self._others.pop(folder, None)
        if loaded is None:
            adapter = peft.read(folder)
            self._check_fit(adapter)
            while len(self._others) >= _NUM_OTHERS:
                del self._others[next(iter(self._others))]
            loaded = (adapter, _to_mlx(lora.arrays_of(adapter)))
        self._others[folder] = loaded  # the one not used for the longest time stands first
        return loaded


def _divided(arrays: Arrays, scale: float) -> Arrays:
    return arrays if scale == 1.0 else {name: array / scale for name, array in arrays.items()}


def _to_mlx(arrays: Mapping[str, Floats]) -> Arrays:
    return {name: mx.array(array) for name, array in arrays.items()}


def _to_numpy(array: mx.array) -> Floats:
    return np.array(array, np.float32)
