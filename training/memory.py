"""How much memory a run takes at its peak, and how much is free.

An estimate from the base's config, some tens of percent off: it is to say before a run starts
what to set, not to replace the handling of `OutOfMemory`. Imports torch or mlx only to ask a GPU.
"""

import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from strop.training.backends import Choice, whole
from strop.training.backends.base_files import BaseFiles
from strop.training.backends.batch import MLP_ROWS, MOST_SCORES

GIB = 2**30

# What torch and MLX take by themselves: libraries and buffers, on a GPU its context.
_RUNTIME = {"cpu": 400 * 2**20, "cuda": 700 * 2**20, "gpu": 900 * 2**20}
# Numbers held per token of a block in its backward pass, in units of the hidden size, in 32 and 16
# bits (norms compute in 32), and of the intermediate size: from measured peaks of random models
# with the ratios of Llama and Qwen3-4B, LoRA on seven layers.
_HIDDEN_UNITS = {"torch": (16, 26), "mlx": (36, 50)}
_INTERMEDIATE_UNITS = {"torch": 6, "mlx": 18}
# Copies of a block's attention scores where it holds them, in 32 and 16 bits (torch's softmax is in
# 32): MLX has no fused backward pass for them, and torch none for some models.
_SCORES = {"torch": (4, 6), "mlx": (5, 5)}
# Numbers in float32 that torch holds per token for a head of linear attention, and for each number
# of its key and value: transformers computes it in chunks.
_LINEAR, _LINEAR_UNITS = 300, 14
# Copies of the LoRA: weights, two gradients, two moments, two versions to compare with.
_LORA_COPIES = 7
# Logits, their gradient and one temporary; no more of them at once than a chunk.
_LOGITS_COPIES, _LOGITS_CHUNK = 3, 2**26
_MARGIN = 1.2
# Of the container that this process is in, cgroup v2 and v1: a kernel counts memory in one of them.
_LINUX_FILES = (
    ("meminfo", "proc/meminfo"),
    ("max", "sys/fs/cgroup/memory.max"),
    ("current", "sys/fs/cgroup/memory.current"),
    ("stat", "sys/fs/cgroup/memory.stat"),
    ("max", "sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ("current", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ("stat", "sys/fs/cgroup/memory/memory.stat"),
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run takes on its device, in bytes, and how that grows with the micro-batch.

    Attributes:
        chosen: what computes, and on which device.
        is_quantized: whether torch holds the base in 4 bits.
        weights: the frozen base.
        lora: the LoRA, its optimizer, and the versions it is compared with.
        runtime: the framework itself.
        per_token: activations for each token of a micro-batch, padding included.
        per_row: those of an MLP, for each token that goes through it at a time.
        max_rows: how many these are at most.
        per_pair: attention scores, or a mask, for each pair of positions of one sequence.
        max_pairs: what these take at most.
        per_logits: logits for each answer token of a micro-batch.
        max_logits: what the logits take at most.
    """

    chosen: Choice
    is_quantized: bool
    weights: int
    lora: int
    runtime: int
    per_token: int
    per_row: int
    max_rows: int
    per_pair: int
    max_pairs: int
    per_logits: int
    max_logits: int

    def total(self, num_tokens: int, longest: int) -> int:
        """Return the peak with micro-batches of `num_tokens`, in sequences of up to `longest`."""
        activations = num_tokens * self.per_token + min(num_tokens, self.max_rows) * self.per_row
        scores = min(num_tokens * longest * self.per_pair, self.max_pairs)
        logits = min(num_tokens * self.per_logits, self.max_logits)
        held = activations + scores + logits
        return self.weights + self.lora + self.runtime + int(_MARGIN * held)

    def fits(self, free: int, longest: int) -> bool:
        """Return whether a sequence of `longest` tokens fits into `free` bytes alone."""
        return self.total(longest, longest) <= free

    def max_tokens(self, free: int, longest: int) -> int:
        """Return the largest micro-batch, in tokens, that fits into `free` bytes; 0 if none does.

        `longest` is that of the longest sequence, which a micro-batch must hold.
        """
        if not self.fits(free, longest):
            return 0
        return _largest(longest, lambda num: self.total(num, longest) <= free, at_most=free)

    def longest_of(self, free: int, context: int) -> int:
        """Return how many tokens a conversation may have, of at most `context`, to be learned from.

        Where memory decides, a little less than `longest`: what is free goes up and down.
        """
        longest = self.longest(free)
        return context if longest >= context else longest * 9 // 10

    def longest(self, free: int) -> int:
        """Return the most tokens of a sequence that fits into `free` bytes alone; 0 if none does.

        Of activations that take nothing, as many as there are bytes.
        """
        return _largest(0, lambda num: self.fits(free, num), at_most=free)

    def advice(self, free: int, longest: int) -> str:
        """Return what to set where a sequence of `longest` tokens doesn't fit into `free` bytes."""
        device = self.chosen.device
        options = []
        if self.chosen.name == "torch" and device == "cuda":
            if not self.is_quantized:
                options.append("set training.quantize_base = true, which holds the base in 4 bits")
            options.append(
                "give the engine a lower share of the GPU's memory (vLLM: --gpu-memory-utilization)"
            )
            options.append('set training.device = "cpu"')
        elif self.chosen.name == "mlx":
            options.append("set model.base to a model that mlx-lm has quantised to 4 bits")
        else:
            options.append('set training.device = "cuda" where there is a GPU')
        options.append("choose a smaller model")
        total = self.total(longest, longest)
        return (
            f"about {gib(total)} of memory are needed ({gib(self.weights)} for the base,"
            f" {gib(self.lora)} for the LoRA, the rest for a conversation of {longest:,} tokens),"
            f" but {gib(free)} are free on {device}: {', or '.join(options)}"
        )


def estimate(base: Path, chosen: Choice, *, rank: int, quantize_base: bool = False) -> Estimate:
    """Return the estimate for a LoRA of `rank` on all linear layers of `base`.

    Args:
        base: a folder in Hugging Face format.
        chosen: what computes, and on which device.
        rank: of the LoRA.
        quantize_base: whether torch holds the base in 4 bits.

    Raises:
        BackendUnavailable: the folder is no model folder.
    """
    files = BaseFiles(base)
    sizes = _Sizes.of(files)
    is_mlx = chosen.name == "mlx"
    is_wide = files.dtype == "float32" or (not is_mlx and chosen.device == "cpu")
    item = 4 if is_wide else 2
    weights = files.num_weight_bytes if is_mlx else files.num_weights * item
    if quantize_base:
        # Half a byte and its scales; embedding and head stay as they are.
        outside = files.num_weights - sizes.num_layers * sizes.block_weights
        weights = int(0.56 * (files.num_weights - outside)) + outside * item
    # Checkpointed, one block is there at a time, and what goes into each.
    num_blocks = 1 if files.is_checkpointed else sizes.num_layers
    per_token = num_blocks * _HIDDEN_UNITS[chosen.name][not is_wide] * sizes.hidden * item
    per_row = num_blocks * _INTERMEDIATE_UNITS[chosen.name] * sizes.intermediate * item
    if files.is_checkpointed:
        per_token += sizes.num_layers * sizes.hidden * item
    if not is_mlx and not whole.has_fused_linear(chosen.device):
        per_token += (
            num_blocks * 4 * sizes.linear_heads * (_LINEAR + _LINEAR_UNITS * sizes.linear_width)
        )
    scores = num_blocks * _SCORES[chosen.name][not is_wide] * item
    in_pieces = is_mlx and not whole.has_scores_in_mlx(files.text_config)
    if is_mlx or whole.has_scores_in_torch(files.text_config, chosen.device):
        per_pair = sizes.num_heads * scores
    else:
        # Of one window there is a mask, as bits and as numbers, for all blocks.
        per_pair = 1 + item if whole.has_windows(files.text_config) else 0
    has_pieces = files.is_checkpointed and not whole.has_mlps(files)
    return Estimate(
        chosen=chosen,
        is_quantized=quantize_base,
        weights=weights,
        lora=_LORA_COPIES * 4 * rank * sizes.num_layers * sizes.lora_sides,
        runtime=_RUNTIME.get(chosen.device, _RUNTIME["cpu"]),
        per_token=per_token,
        per_row=per_row,
        max_rows=MLP_ROWS if has_pieces else sys.maxsize,
        per_pair=per_pair,
        max_pairs=scores * MOST_SCORES if in_pieces else sys.maxsize,
        per_logits=_LOGITS_COPIES * 4 * sizes.vocabulary,
        max_logits=_LOGITS_COPIES * 4 * _LOGITS_CHUNK,
    )


def free_bytes(device: str) -> int:
    """Return how much memory can be taken now: of the GPU, or of the machine and its container."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    if sys.platform == "darwin":
        told = subprocess.run(["/usr/bin/vm_stat"], capture_output=True, text=True, check=True)
        free = parse_vm_stat(told.stdout)
        return free if device == "cpu" else min(free, _metal_bytes(device))
    return parse_linux(read_linux(Path("/")))


def read_linux(root: Path) -> dict[str, str]:
    """Return what `parse_linux` takes, of the files that there are under `root`."""
    return {
        name: (root / path).read_text() for name, path in _LINUX_FILES if (root / path).is_file()
    }


def parse_linux(files: Mapping[str, str]) -> int:
    """Return the free bytes that /proc/meminfo, and a container's limit where it has one, leave.

    `files` are the texts of `meminfo` and of cgroup v2's `memory.max`, `current` and `stat`, by the
    last part of their names; of cgroup v1, what stands for these.
    """
    meminfo = dict(line.split(":", 1) for line in files["meminfo"].splitlines() if ":" in line)
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    limit = files.get("max", "max").strip()
    if limit == "max" or "current" not in files:
        return free
    stat = dict(line.split() for line in files.get("stat", "").splitlines())
    # Cached files count as used there, but give way. v1 has a line apart for groups within.
    inactive = stat.get("total_inactive_file", stat.get("inactive_file", "0"))
    used = int(files["current"]) - int(inactive)
    return min(free, max(0, int(limit) - used))


def _metal_bytes(device: str) -> int:
    """Return how much a process may use of a Mac's GPU; beyond, what it computes may fail."""
    if device == "mps":
        import torch

        return int(torch.mps.recommended_max_memory())
    import mlx.core as mx

    return int(mx.device_info(mx.gpu)["max_recommended_working_set_size"])


def parse_vm_stat(text: str) -> int:
    """Return the free bytes that macOS's vm_stat tells: pages that are free, or cached files'.

    Other inactive pages give way to the compressor or to swap alone. `File-backed pages` has the
    speculative ones, and active ones, which stay.
    """
    head, *lines = text.splitlines()
    page = int(head.partition("page size of ")[2].split()[0])
    counts = dict(line.rstrip(".").split(":", 1) for line in lines if ":" in line)
    unused = int(counts["Pages inactive"]) + int(counts["Pages speculative"])
    return page * (int(counts["Pages free"]) + min(unused, int(counts["File-backed pages"])))


def gib(num_bytes: int) -> str:
    """Return a number of bytes for people."""
    return f"{num_bytes / GIB:.1f} GiB"


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The sizes of a model of Llama's kind; of experts, those that one token goes through."""

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int
    linear_heads: int
    linear_width: int

    @classmethod
    def of(cls, files: BaseFiles) -> "_Sizes":
        config = files.text_config

        def number(*names: str, default: int) -> int:
            found = next((config[name] for name in names if config.get(name)), default)
            return int(found if isinstance(found, int | float) else default)

        hidden = number("hidden_size", "n_embd", "d_model", default=4096)
        intermediate = number("intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
        heads = number(
            *("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"),
            default=max(1, hidden // 128),
        )
        if experts := number("num_experts_per_tok", default=0):
            one = number("moe_intermediate_size", "intermediate_size", default=intermediate)
            intermediate = experts * one
        return cls(
            hidden=hidden,
            intermediate=intermediate,
            num_layers=number("num_hidden_layers", "n_layer", "n_layers", "num_layers", default=32),
            num_heads=heads,
            num_kv_heads=number("num_key_value_heads", default=heads),
            head_dim=number("head_dim", default=math.ceil(hidden / heads)),
            vocabulary=number("vocab_size", default=150_000),
            linear_heads=number("linear_num_value_heads", default=0),
            linear_width=sum(
                number(f"linear_{each}_head_dim", default=0) for each in ("key", "value")
            ),
        )

    @property
    def _layers(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a block's linear layers."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = [(self.hidden, queries), *[(self.hidden, keys)] * 2, (queries, self.hidden)]
        up = [(self.hidden, self.intermediate)] * 2
        return [*attention, *up, (self.intermediate, self.hidden)]

    @property
    def block_weights(self) -> int:
        """How many numbers a block's linear layers have."""
        return sum(num_in * num_out for num_in, num_out in self._layers)

    @property
    def lora_sides(self) -> int:
        """Inputs and outputs of a block's linear layers together."""
        return sum(map(sum, self._layers))


def _largest(least: int, fits: Callable[[int], bool], *, at_most: int) -> int:
    """Return the largest number that `fits`, which all below it do; `least` where none does."""
    low, high = least, max(least, at_most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
