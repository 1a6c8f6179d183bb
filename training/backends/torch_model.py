"""A base model in torch, and from token ids to logprobs with as little memory as that takes.

Knows no LoRA, no optimizer and no sampling. Letters: B sequences, T positions, H hidden size, N
answer tokens, V vocabulary.
"""

import ctypes
import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from strop.training.backends.base import BackendUnavailable, OutOfMemory
from strop.training.backends.base_files import BaseFiles
from strop.training.backends.batch import MLP_ROWS, MLPS, Batch
from strop.training.backends.logit_scales import heads

log = logging.getLogger(__name__)

# Logits are computed and kept for about this many numbers at a time: 256 MiB in float32.
_CHUNK = 2**26
# Below, handing work to a second thread costs more than it saves, six times on a busy machine.
_ONE_THREAD = 5_000_000
# Of glibc's malloc: from this size on, an array is mapped by itself.
_M_MMAP_THRESHOLD, _MAPPED_BYTES = -3, 2**18
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "cublasCreate",
)


def pick_device(wanted: str) -> torch.device:
    """Return the device for the setting `training.device`.

    Raises:
        BackendUnavailable: torch doesn't see the one that is asked for.
    """
    has = {"cuda": _has_cuda(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        wanted = next((name for name, there in has.items() if there), "cpu")
    elif not has.get(wanted, True):
        raise BackendUnavailable(
            f"training.device = {wanted!r}, but torch {torch.__version__} finds none here that it"
            ' can use; set it to "auto" or "cpu", or install a torch made for that device'
        )
    return torch.device(wanted)


def _has_cuda() -> bool:
    """Whether there is a GPU that this torch has code for: of one too old it only warns."""
    if not torch.cuda.is_available():
        return False
    archs = [] if torch.version.hip else torch.cuda.get_arch_list()
    return not archs or runs_on(torch.cuda.get_device_capability(), archs)


def runs_on(capability: tuple[int, int], archs: Sequence[str]) -> bool:
    """Return whether code for one of `archs` runs on a GPU of this compute capability.

    Binaries (`sm_86`) run on the same major version from their minor one on, PTX (`compute_90`) on
    whatever is newer, and what is specific to an architecture (`sm_90a`) on that one alone (CUDA
    C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility").
    """
    for arch in archs:
        kind, _, number = arch.partition("_")
        digits = number.rstrip("af")
        version = (int(digits[:-1]), int(digits[-1]))
        is_older = version <= capability and (kind == "compute" or version[0] == capability[0])
        if version == capability or (is_older and not number.endswith("a")):
            return True
    return False


def pick_dtype(base: BaseFiles, device: torch.device) -> torch.dtype:
    """Return what the base computes in: bf16 on a GPU for a base in 16 bits, else float32."""
    if device.type == "cpu" or base.dtype == "float32":
        return torch.float32
    # GPUs before Ampere emulate it, slowly, in half of the memory that float32 takes.
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=True):
        return torch.float32
    return torch.bfloat16


def load(base: BaseFiles, device: torch.device, *, quantize: bool) -> Any:
    """Return the base as transformers loads it, frozen, from its folder alone.

    Raises:
        BackendUnavailable: transformers can't load it here, with its reason.
    """
    if base.is_mlx_quantized:
        raise BackendUnavailable(
            f"{base.folder} is quantised for MLX, which torch can't load; set training.backend to"
            ' "mlx", or model.base to the original model'
        )
    transformers_logging.disable_progress_bar()
    options: dict[str, Any] = {} if device.type == "cpu" else {"device_map": {"": device}}
    dtype = pick_dtype(base, device)
    if quantize:
        options["quantization_config"] = _four_bits(dtype)
    # Of a model for images too, the one for text alone has other paths than its files and engines.
    is_for_images = base.config.get("model_type") in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    kind = AutoModelForImageTextToText if is_for_images else AutoModelForCausalLM
    try:
        model = kind.from_pretrained(
            base.folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **options,
        )
    except (ImportError, ValueError, OSError) as error:
        raise BackendUnavailable(f"transformers can't load {base.folder}: {error}") from error
    model.requires_grad_(False)
    model.eval()
    return model


def _four_bits(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def limit_threads(num_weights: int) -> None:
    """Let torch compute with as many threads as a model of this size can use."""
    if num_weights < _ONE_THREAD:
        torch.set_num_threads(1)
    elif hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(min(torch.get_num_threads(), len(os.sched_getaffinity(0))))


def map_large_arrays() -> None:
    """Let each large array on a CPU be given back as soon as it is freed, where malloc is glibc's.

    By itself it keeps all up to 32 MiB in one heap, whose holes come to several times what is used.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise `OutOfMemory` for what torch raises where memory runs out."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory.of(str(error)) from None
    except RuntimeError as error:
        if any(phrase in str(error) for phrase in _OUT_OF_MEMORY):
            raise OutOfMemory.of(str(error)) from None
        raise


@dataclass(frozen=True, slots=True)
class TorchModel:
    """A frozen base on its device.

    Attributes:
        model: transformers' own.
        decoder, head: its parts, hidden states (..., H) and logits (..., V), where the one after
            the other is all the model does; else None.
        chunk: how many logits there are at a time.
    """

    model: Any
    device: torch.device
    decoder: Any
    head: Callable[[torch.Tensor], torch.Tensor] | None
    chunk: int = _CHUNK

    def logprobs(self, batch: Batch) -> torch.Tensor:
        """Return the logprobs of the answer tokens, float32 (N,), with a graph where one is kept.

        The logits of a chunk are computed again in the backward pass, so they never are there all
        at once.
        """
        ids_BT = torch.from_numpy(batch.ids).to(self.device)
        rows_N = torch.from_numpy(batch.rows).to(self.device)
        targets_N = torch.from_numpy(batch.targets).to(self.device)
        if self.head is None:
            return _of_targets(self._whole_logits(ids_BT, batch, rows_N), targets_N)
        hidden_BTH = self.decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
        hidden_NH = hidden_BTH.flatten(0, 1)[rows_N]
        num_rows = max(1, self.chunk // self.model.config.get_text_config().vocab_size)
        if len(targets_N) <= num_rows:
            return _of_targets(self.head(hidden_NH), targets_N)
        chunks = zip(hidden_NH.split(num_rows), targets_N.split(num_rows), strict=True)
        return torch.cat(
            [
                checkpoint(self._score, *chunk, use_reentrant=False, preserve_rng_state=False)
                for chunk in chunks
            ]
        )

    def _score(self, hidden_NH: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        assert self.head is not None
        return _of_targets(self.head(hidden_NH), targets_N)

    def _whole_logits(
        self, ids_BT: torch.Tensor, batch: Batch, rows_N: torch.Tensor
    ) -> torch.Tensor:
        """Return the logits of the predictors, (N, V), by the model's own forward."""
        length = ids_BT.shape[1]
        kept = {"logits_to_keep": batch.num_last} if keeps_last(self.model) else {}
        logits_BTV = self.model(input_ids=ids_BT, use_cache=False, **kept).logits
        num_kept = logits_BTV.shape[1]
        sequence_N, position_N = rows_N // length, rows_N % length
        return logits_BTV[sequence_N, position_N - (length - num_kept)]


def prepare(model: Any, device: torch.device, *, is_checkpointed: bool) -> TorchModel:
    """Return a loaded model ready for use, its parts found and tried."""
    if is_checkpointed:
        map_large_arrays()
        _checkpoint_blocks(model)
    decoder, head = _parts(model, device)
    if head is None:
        log.info("this model does more than its head after the last block: logits are kept whole")
    return TorchModel(model, device, decoder, head)


def keeps_last(model: Any) -> bool:
    """Whether the model's forward can return the logits of the last positions alone."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _checkpoint_blocks(model: Any) -> None:
    """Keep only what goes into each block; all else is computed again in the backward pass.

    There, an MLP computes some positions after others.
    """
    for block in _blocks(model):
        _replace_forward(block, _checkpointed)
        for mlp in (getattr(block, name, None) for name in MLPS):
            if isinstance(mlp, torch.nn.Module):
                _replace_forward(mlp, _in_pieces)


def _replace_forward(module: Any, change: Callable[[Callable[..., Any]], Any]) -> None:
    # Of its class: a method of its own would keep the module alive after the model is freed.
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {"forward": change(kind.forward)})


def _in_pieces(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def call(mlp: Any, hidden_BTH: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        num_rows = max(1, MLP_ROWS // len(hidden_BTH))
        if args or kwargs or hidden_BTH.dim() != 3 or num_rows >= hidden_BTH.shape[1]:
            return forward(mlp, hidden_BTH, *args, **kwargs)
        again = _checkpointed(functools.partial(forward, mlp))
        # As a whole is, in one stretch: experts view all positions as one dimension.
        owns = hidden_BTH.split(num_rows, dim=1)
        pieces = [again(one.contiguous()) for one in owns]
        # Some that have experts return how they chose them, too, which no block passes on.
        alone = isinstance(pieces[0], torch.Tensor)
        firsts = pieces if alone else [piece[0] for piece in pieces]
        # Llama 4's come back as (B·T, H).
        whole = torch.cat([a.reshape(b.shape) for a, b in zip(firsts, owns, strict=True)], dim=1)
        return whole if alone else (whole, *pieces[0][1:])

    return call


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Nothing is random in a block, so there is no state to restore.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return call


def _blocks(model: Any) -> list[Any]:
    """Return the model's blocks: the longest list of modules in its decoder."""
    lists = [m for m in _decoder(model).modules() if isinstance(m, torch.nn.ModuleList)]
    return [*max(lists, key=len, default=[])]


def _decoder(model: Any) -> Any:
    return model.get_decoder() if hasattr(model, "get_decoder") else model


def _parts(
    model: Any, device: torch.device
) -> tuple[Any, Callable[[torch.Tensor], torch.Tensor] | None]:
    """Return decoder and head, if logits are the one after the other, capped or scaled at most.

    The head returned does that too. Tried rather than read from the config alone: what models do
    with logits has a name for each.
    """
    head = model.get_output_embeddings()
    ids_1T = torch.arange(8, device=device)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        whole = model(input_ids=ids_1T, use_cache=False).logits
        try:
            hidden = _decoder(model)(input_ids=ids_1T, use_cache=False).last_hidden_state
            for one in heads(head, model.config.get_text_config(), torch.tanh):
                parts = one(hidden)
                if parts.shape == whole.shape and torch.allclose(parts, whole, 1e-5, 1e-5):
                    return _decoder(model), one
        except (AttributeError, TypeError, RuntimeError):
            pass
    return None, None


def _of_targets(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Return the log-softmax of each row at its target."""
    logits_NV = logits_NV.float()
    return logits_NV.gather(-1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(-1)
