"""What the KV caches of answers take, by their length, and how much memory there is for them.

Knows no requests: which answers run with it is for `admission`.
"""

import bisect
import contextlib
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, make_prompt_cache

from strop.proxy.embedded.batch import KVCache

_BLOCK = 256  # tokens by which mlx-lm's caches grow; the last block is held before it is full
_LONGEST = 1 << 40  # tokens: a row of any length fits

# Of what the weights leave. The rest is for adapters, activations, and the layer that is held twice
# while rows join and leave.
_SHARE = 0.8
_LEAST_TOKENS = 2048  # for which there is room by default, however little memory is left

# Of the container that this process is in; the second is what older kernels and hosts have.
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory of one row's KV cache.

    Attributes:
        fixed: bytes at any length: what is recurrent.
        growing: bytes per token, each with the most tokens that are kept of it; infinity for all.
    """

    fixed: int
    growing: tuple[tuple[int, float], ...]

    def num_bytes(self, length: int) -> int:
        """Return what a row of `length` tokens takes, with the block that it grows into."""
        return self.fixed + sum(
            size * (int(min(length, window)) + _BLOCK) for size, window in self.growing
        )

    def longest(self, max_bytes: int) -> int:
        """Return how many tokens a row may have, to take no more than `max_bytes`."""
        return bisect.bisect_right(range(1, _LONGEST), max_bytes, key=self.num_bytes)


@dataclass(frozen=True, slots=True)
class Room:
    """The memory for KV caches: of all rows that run, and of the prefix cache.

    Attributes:
        footprint: of one row.
        max_bytes: for all of them together.
        longest: how many tokens a row may have that has it all.
    """

    footprint: Footprint
    max_bytes: int
    longest: int


def measure(model: Any) -> Footprint:
    """Return the footprint of this model's rows, read off the cache of a single token."""
    cache: KVCache = make_prompt_cache(model)
    model(mx.array([[0]]), cache=cache)  # Lazy: only the shapes are looked at.
    fixed, growing = 0, Counter[float]()
    for part in _parts(cache):
        keys = getattr(part, "keys", None)
        if keys is not None:
            array = keys if isinstance(keys, mx.array) else keys[0]  # quantised: with its scales
            window = getattr(part, "max_size", None) or getattr(part, "chunk_size", None)
            growing[window or math.inf] += part.nbytes // array.shape[-2]
        elif isinstance(part, ArraysCache):
            fixed += part.nbytes
        else:  # What is not known may grow with each token.
            growing[math.inf] += part.nbytes
    return Footprint(fixed, tuple((size, window) for window, size in growing.items() if size))


def room(model: Any, max_bytes: int | None) -> Room:
    """Return the room for this model's rows, which is loaded already.

    Args:
        model: mlx-lm's.
        max_bytes: None for what the machine has.

    Raises:
        ValueError: there is none for a single token.
    """
    footprint = measure(model)
    if max_bytes is None:
        least = footprint.num_bytes(_LEAST_TOKENS)
        max_bytes = int(_SHARE * (_machine() - mx.get_active_memory()))
        if max_bytes < least:
            _log.warning(
                "the weights leave little memory for KV caches; they get %d bytes, and may not "
                "find them: use a smaller or quantised model",
                least,
            )
            max_bytes = least
    longest = footprint.longest(max_bytes)
    if not longest:
        raise ValueError(
            f"expected kv_cache_bytes of at least {footprint.num_bytes(1)}, which a single token "
            f"takes, got {max_bytes}; give more"
        )
    return Room(footprint, max_bytes, longest)


def _machine() -> int:
    """Return how much memory this process may use, in bytes."""
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    told = mx.device_info().get("total_memory")  # CUDA
    if isinstance(told, int):
        return told
    # Of a machine without a GPU, half: others use it as well.
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *_limits(_LIMITS)]) // 2


def _limits(paths: Iterable[Path]) -> Iterator[int]:
    """Yield the numbers of bytes in those of these files that there are and that have one."""
    for path in paths:
        # It is no reason not to serve that a container's can't be read.
        with contextlib.suppress(OSError, ValueError):
            yield int(path.read_text())  # "max" where there is no limit


def _parts(cache: Any) -> Iterator[Any]:
    for part in cache:
        if hasattr(part, "caches"):
            yield from _parts(part.caches)
        else:
            yield part
