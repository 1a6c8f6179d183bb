"""A base model in MLX with places for LoRA, and from token ids to logprobs.

Knows no optimizer and no sampling. Letters: B sequences, T positions, H hidden size, N answer
tokens, V vocabulary.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.utils import load_model

from strop.adapters import peft
from strop.adapters.mlx import own_path
from strop.adapters.rope import flat_rope, turn_partly
from strop.training.backends.base import BackendUnavailable, CutShort, OutOfMemory
from strop.training.backends.base_files import BaseFiles
from strop.training.backends.batch import MLPS, Batch
from strop.training.backends.logit_scales import heads
from strop.training.backends.mlx_pieces import mlp_in_pieces

log = logging.getLogger(__name__)

# Logits are computed and kept for about this many numbers at a time: 256 MiB in float32.
_CHUNK = 2**26
_CACHE_BYTES = 2**29
_OUT_OF_MEMORY = ("out of memory", "OutOfMemory", "Insufficient Memory", "Unable to allocate",
                  "Attempting to allocate", "bad_alloc")  # fmt: skip
# What Metal says of work that macOS ended for the display's sake, and of what waited behind that.
_CUT_SHORT = ("Impacting Interactivity", "ImpactingInteractivity", "GPU Timeout", "ErrorTimeout",
              "SubmissionsIgnored", "InnocentVictim")  # fmt: skip


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise `OutOfMemory` for what MLX raises where memory runs out, or the GPU is taken away.

    Metal may say late that it has computed nothing: `eval` returns, and what uses the stream next
    raises. So the end of the block waits for the default stream, on which all of it has to run.
    """
    try:
        yield
        mx.synchronize()
    except (MemoryError, RuntimeError) as error:
        # What has failed besides is of this block too, and is not to be raised in another.
        with suppress(RuntimeError):
            mx.synchronize()
        told = str(error)
        if isinstance(error, MemoryError) or any(phrase in told for phrase in _OUT_OF_MEMORY):
            raise OutOfMemory.of(told) from None
        if any(phrase in told for phrase in _CUT_SHORT):
            raise CutShort.of(told) from None
        raise


def pick_device(wanted: str) -> None:
    """Compute on the device of the setting `training.device` from here on.

    Raises:
        BackendUnavailable: MLX has no such device.
    """
    if wanted == "cpu":
        mx.set_default_device(mx.cpu)
    elif wanted not in ("auto", "mps"):
        raise BackendUnavailable(
            f'training.device = {wanted!r}, but the MLX backend knows "auto" and "cpu" alone; set'
            ' training.backend to "torch" for the others'
        )


def limit_cache() -> None:
    """Let MLX keep no more than `_CACHE_BYTES` of what it has freed, or less where it did before.

    By itself it keeps nearly all of a Mac's memory, and buffers of one length are of no use to a
    batch of another: a run would take many times what it needs from the engine beside it.
    """
    before = mx.set_cache_limit(_CACHE_BYTES)
    mx.set_cache_limit(min(before, _CACHE_BYTES))


def load(base: BaseFiles) -> nn.Module:
    """Return the base as mlx-lm loads it, from its folder alone.

    Raises:
        BackendUnavailable: mlx-lm can't load it, with its reason.
    """
    try:
        model, _ = load_model(base.folder, model_config=flat_rope(base.config))
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise BackendUnavailable(f"mlx-lm can't load {base.folder}: {error}") from error
    turn_partly(model, base.config)
    model.freeze()
    model.eval()
    return model


class LoraLinear(nn.Module):  # type: ignore[misc]  # mlx has no types for it
    """A linear layer with a place for LoRA: `a` is (r, in) and `b` is (out, r), or None."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.a: mx.array | None = None
        self.b: mx.array | None = None
        self.scale = 0.0

    def __call__(self, x: mx.array) -> mx.array:
        """Return the layer's output with the LoRA that is there now, in the dtype of `x`.

        Engines round A and B to the base's dtype, so that is what is trained; the optimizer's
        copies stay float32.
        """
        y: mx.array = self.linear(x)
        if self.a is None or self.b is None:
            return y
        delta: mx.array = (x @ self.a.T.astype(x.dtype)) @ self.b.T.astype(x.dtype)
        return y + (self.scale * delta).astype(y.dtype)


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (inputs, outputs) of every linear layer, quantised ones included, but the head."""
    shapes = {}
    for path, module in model.named_modules():
        if path.rpartition(".")[2] == "lm_head":
            continue
        if isinstance(module, nn.QuantizedLinear):
            num_in = module.scales.shape[-1] * module.group_size
            shapes[path] = (num_in, module.weight.shape[0])
        elif isinstance(module, nn.Linear):
            num_out, num_in = module.weight.shape
            shapes[path] = (num_in, num_out)
    return shapes


class Slots:
    """The places for LoRA in one model. Any version may be in them, of any rank."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules: dict[str, LoraLinear] = {}

    def put(self, adapter: peft.Adapter | None, arrays: Mapping[str, mx.array]) -> None:
        """Make the model compute with an adapter whose weights are `arrays`; None is the base."""
        adapted = adapter.modules if adapter else {}
        if missing := adapted.keys() - self._modules.keys():
            linears = dict(self._model.named_modules())
            own = {path: own_path(path, linears) for path in missing}
            new = {path: LoraLinear(linears[own[path]]) for path in missing}
            self._model.update_modules(tree_unflatten([(own[p], new[p]) for p in missing]))
            self._modules.update(new)
        for path, module in self._modules.items():
            module.a, module.b = arrays.get(f"{path}.a"), arrays.get(f"{path}.b")
            if path in adapted:
                module.scale = adapted[path].scale


@dataclass(frozen=True, slots=True)
class MlxModel:
    """A frozen base.

    Attributes:
        model: mlx-lm's own.
        dtype: what it computes in.
        decoder, head: its parts, hidden states (..., H) and logits (..., V), where the one after
            the other is all the model does; else None.
        chunk: how many logits there are at a time.
    """

    model: Any
    dtype: Any
    decoder: Callable[[mx.array], mx.array] | None
    head: Callable[[mx.array], mx.array] | None
    chunk: int = _CHUNK

    def logprobs(self, batch: Batch) -> mx.array:
        """Return the logprobs of the answer tokens, float32 (N,), lazy.

        The logits of a chunk are computed again in the backward pass, so they never are there all
        at once.
        """
        ids_BT, rows_N, targets_N = (
            mx.array(each.astype(np.int32)) for each in (batch.ids, batch.rows, batch.targets)
        )
        if self.decoder is None or self.head is None:
            logits_BTV = self.model(ids_BT)
            return _of_targets(logits_BTV.flatten(0, 1)[rows_N], targets_N)
        hidden_NH = self.decoder(ids_BT).flatten(0, 1)[rows_N]
        width = self.head(hidden_NH[:1]).shape[-1]
        num_rows = max(1, self.chunk // width)
        if len(batch.targets) <= num_rows:
            return _of_targets(self.head(hidden_NH), targets_N)
        return mx.concatenate(
            [
                _checkpointed_score(self.head, targets_N[at : at + num_rows])(
                    hidden_NH[at : at + num_rows]
                )
                for at in range(0, len(batch.targets), num_rows)
            ]
        )


def prepare(model: nn.Module) -> MlxModel:
    """Return a loaded model ready for use, its parts found and tried.

    Tried rather than read from the config alone: what models do with logits, which the head here
    does too, has a name for each.
    """
    ids_1T = mx.arange(8)[None]
    whole = model(ids_1T)
    inner = getattr(model, "language_model", model)
    try:
        decoder = inner.model
        head = inner.lm_head if "lm_head" in inner else decoder.embed_tokens.as_linear
        hidden = decoder(ids_1T)
        for one in heads(head, getattr(inner, "args", None), mx.tanh):
            parts = one(hidden)
            if parts.shape == whole.shape and mx.allclose(parts, whole, 1e-5, 1e-5):
                return MlxModel(model, whole.dtype, decoder, one)
    except (AttributeError, TypeError, ValueError):
        pass
    log.info("this model does more than its head after the last block: logits are kept whole")
    return MlxModel(model, whole.dtype, None, None)


class Checkpointing:
    """Keeps only what goes into each block, and computes the rest again in the backward pass.

    There, an MLP computes some positions after others.

    Used as a context where a gradient is traced; elsewhere blocks compute as always.
    """

    def __init__(self, model: Any) -> None:
        self.is_on = False
        for block in model.layers:
            block.__class__ = self._checkpointed(type(block))
            for mlp in (block[name] for name in MLPS if name in block):
                mlp.__class__ = self._in_pieces(type(mlp))

    def __enter__(self) -> None:
        self.is_on = True

    def __exit__(self, *_: object) -> None:
        self.is_on = False

    def _checkpointed(self, kind: Any) -> type:
        def call(block: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.is_on:
                return kind.__call__(block, *args, **kwargs)

            def inner(lora: Any, *args: Any, **kwargs: Any) -> Any:
                block.update(lora)
                return kind.__call__(block, *args, **kwargs)

            return mx.checkpoint(inner)(block.trainable_parameters(), *args, **kwargs)

        return type(kind.__name__, (kind,), {"__call__": call})

    def _in_pieces(self, kind: Any) -> type:
        def call(mlp: Any, x_BTH: mx.array, *args: Any) -> Any:
            if not self.is_on or args:
                return kind.__call__(mlp, x_BTH, *args)
            return mlp_in_pieces(mlp, kind.__call__, x_BTH)

        return type(kind.__name__, (kind,), {"__call__": call})


def _checkpointed_score(
    head: Callable[[mx.array], mx.array], targets_N: mx.array
) -> Callable[[mx.array], mx.array]:
    """Return what scores the targets; they are no argument, which would ask for their gradient."""
    score: Callable[[mx.array], mx.array] = mx.checkpoint(
        lambda hidden_NH: _of_targets(head(hidden_NH), targets_N)
    )
    return score


def _of_targets(logits_NV: mx.array, targets_N: mx.array) -> mx.array:
    """Return the log-softmax of each row at its target."""
    logits_NV = logits_NV.astype(mx.float32)
    chosen_N1 = mx.take_along_axis(logits_NV, targets_N[:, None], axis=-1)
    logprobs_N: mx.array = chosen_N1[:, 0] - mx.logsumexp(logits_NV, axis=-1)
    return logprobs_N
