"""The torch backend: transformers' model, our own LoRA, torch's AdamW; CPU, CUDA and MPS.

Knows no objective and no store. The LoRA's weights are float32 whatever the base computes in.
"""

import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from strop.adapters import peft
from strop.training.backends import lora, torch_decoding, torch_lora, torch_model
from strop.training.backends.base import (
    BASE,
    TRAINED,
    AdamWSettings,
    LoraSettings,
    Sampled,
    Weights,
)
from strop.training.backends.base_files import BaseFiles
from strop.training.backends.batch import pad
from strop.training.sequences import Floats, Tokens

Tensors = dict[str, torch.Tensor]

_NUM_OTHERS = 2  # adapters besides the trained one that stay loaded


class TorchPolicy:
    """A base in torch with one trainable LoRA; `Policy` says what the methods do."""

    def __init__(
        self,
        base: BaseFiles,
        start: peft.Adapter | None,
        *,
        lora_settings: LoraSettings,
        adamw: AdamWSettings,
        device: str,
        quantize_base: bool,
    ) -> None:
        self._device = torch_model.pick_device(device)
        if self._device.type == "cpu":
            torch_model.limit_threads(base.num_weights)
        with torch_model.memory_errors():
            model = torch_model.load(base, self._device, quantize=quantize_base)
            self._shapes = torch_lora.linear_shapes(model)
            self._net = torch_model.prepare(
                model, self._device, is_checkpointed=base.is_checkpointed
            )
            text_shapes = torch_lora.trained_on_text(model, self._shapes)
            self._adapter = start or lora.fresh(text_shapes, lora_settings)
            peft.check_fit(self._adapter.modules, self._shapes)
            self._slots = torch_lora.Slots(model)
            self._parameters = {
                name: tensor.requires_grad_()
                for name, tensor in self._to_torch(lora.arrays_of(self._adapter)).items()
            }
        self.dtype = str(torch_model.pick_dtype(base, self._device)).removeprefix("torch.")
        self.end_ids = base.end_ids
        self._others: dict[Path, tuple[peft.Adapter, Tensors]] = {}
        self._gradients: list[torch.Tensor] | None = None
        self._max_grad_norm = adamw.max_grad_norm
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=0.0,
            betas=(adamw.beta1, adamw.beta2),
            eps=adamw.eps,
            weight_decay=adamw.weight_decay,
        )
        self._step = 0
        self._slots.put(self._adapter, self._parameters)

    def logprobs(self, sequences: Sequence[Tokens], weights: Weights = TRAINED) -> list[Floats]:
        """Return the logprobs of each sequence's answer ids."""
        batch = pad(sequences)
        with torch_model.memory_errors(), self._using(weights), torch.no_grad():
            return batch.split(self._net.logprobs(batch).cpu().numpy())

    def accumulate(
        self, sequences: Sequence[Tokens], gradient: Callable[[list[Floats]], list[Floats]]
    ) -> None:
        """Add one micro-batch to the gradient."""
        batch = pad(sequences)
        parameters = [*self._parameters.values()]
        with torch_model.memory_errors():
            logprobs_N = self._net.logprobs(batch)
            values = batch.split(logprobs_N.detach().cpu().numpy())
            wanted_N = torch.from_numpy(batch.join(gradient(values))).to(self._device)
            # An expert that no token went to has no gradient.
            found = torch.autograd.grad(
                logprobs_N, parameters, wanted_N, allow_unused=True, materialize_grads=True
            )
        if self._gradients is None:
            self._gradients = [*found]
        else:
            torch._foreach_add_(self._gradients, found)

    def step(self, lr: float) -> float:
        """Take one AdamW step."""
        gradients = self._gradients or [torch.zeros_like(p) for p in self._parameters.values()]
        self._gradients = None
        parameters = [*self._parameters.values()]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        # The first step makes the moments, two more LoRAs.
        with torch_model.memory_errors():
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._max_grad_norm))
            if np.isfinite(norm):
                for group in self._optimizer.param_groups:
                    group["lr"] = lr
                self._optimizer.step()
                self._step += 1
        self._optimizer.zero_grad(set_to_none=True)
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
        with torch_model.memory_errors(), self._using(weights), torch.no_grad():
            return torch_decoding.sample(
                self._net,
                prompts,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                end_ids=self.end_ids,
            )

    def greedy(
        self, prompt: Sequence[int], num_tokens: int, weights: Weights = TRAINED
    ) -> tuple[tuple[int, ...], Floats, Floats]:
        """Return exactly `num_tokens` greedy ids, their logprobs and margins."""
        with torch_model.memory_errors(), self._using(weights), torch.no_grad():
            return torch_decoding.greedy(self._net, prompt, num_tokens)

    def save_adapter(self, folder: Path) -> None:
        """Write the LoRA as a PEFT folder."""
        peft.write(lora.with_arrays(self._adapter, _to_numpy(self._parameters)), folder)

    def save_state(self, folder: Path) -> None:
        """Write LoRA, optimizer and step count."""
        means, variances = (
            {
                name: self._optimizer.state[parameter].get(moment, torch.zeros_like(parameter))
                for name, parameter in self._parameters.items()
            }
            for moment in ("exp_avg", "exp_avg_sq")
        )
        weights = _to_numpy(self._parameters)
        state = lora.State(self._step, weights, _to_numpy(means), _to_numpy(variances))
        lora.write_state(state, folder)

    def load_state(self, folder: Path) -> None:
        """Go on from what `save_state` wrote."""
        state = lora.read_state(folder, like=lora.arrays_of(self._adapter))
        with torch_model.memory_errors():
            means, variances = self._to_torch(state.means), self._to_torch(state.variances)
        self._step = state.step
        self._gradients = None
        self._optimizer.state.clear()
        for name, parameter in self._parameters.items():
            with torch.no_grad():
                parameter.copy_(torch.tensor(state.weights[name]))
            if state.step:
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(state.step)),
                    "exp_avg": means[name],
                    "exp_avg_sq": variances[name],
                }

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory held: of the GPU, or of this process.

        MPS counts no peak: there it is what the driver holds, what torch has freed and keeps too.
        """
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        if self._device.type == "mps":
            return int(torch.mps.driver_allocated_memory())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def close(self) -> None:
        """Free the model."""
        del self._net, self._slots, self._others, self._parameters, self._optimizer
        del self._gradients
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

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
            self._slots.put(self._adapter, self._parameters)

    def _load(self, folder: Path) -> tuple[peft.Adapter, Tensors]:
        loaded = self._others.pop(folder, None)
        if loaded is None:
            adapter = peft.read(folder)
            peft.check_fit(adapter.modules, self._shapes)
            while len(self._others) >= _NUM_OTHERS:
                del self._others[next(iter(self._others))]
            loaded = (adapter, self._to_torch(lora.arrays_of(adapter)))
        self._others[folder] = loaded  # the one not used for the longest time stands first
        return loaded

    def _to_torch(self, arrays: Mapping[str, Floats]) -> Tensors:
        return {name: torch.tensor(array, device=self._device) for name, array in arrays.items()}


def _to_numpy(tensors: Mapping[str, torch.Tensor]) -> dict[str, Floats]:
    return {
        name: tensor.detach().to("cpu", torch.float32, copy=True).numpy()
        for name, tensor in tensors.items()
    }
