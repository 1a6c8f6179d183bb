"""The prefix cache: the KV caches of earlier prompts and answers, for requests that resend them.

Knows no adapters: a key is the unique number of one version, which is never given to another, so
a cache can't be used with other weights than it was computed with; and the request's own salt.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from strop.proxy.embedded.batch import KVCache, can_trim, materialise, num_bytes, trim

_LEAST_TOKENS = 16  # shorter prefixes are recomputed as fast
_MOST_ENTRIES = 64  # each is compared with each new prompt


Key = tuple[int, str]


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    key: Key
    ids: "np.ndarray[tuple[int], np.dtype[np.int32]]"
    cache: KVCache
    num_bytes: int


class PrefixCache:
    """Keeps the most recently used caches up to a number of bytes.

    Args:
        max_bytes: 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: list[_Entry] = []  # oldest first

    def fetch(self, key: Key, prompt: Sequence[int]) -> tuple[KVCache | None, int]:
        """Return a cache of the longest known prefix of `prompt`, the caller's own, and its length.

        The last id of the prompt is never taken from the cache: its logits are needed.
        """
        ids = np.array(prompt, np.int32)
        best: _Entry | None = None
        length = _LEAST_TOKENS - 1
        for entry in self._entries:
            common = _common(entry.ids, ids[:-1]) if entry.key == key else 0
            if common > length and (common == len(entry.ids) or can_trim(entry.cache)):
                best, length = entry, common
        if best is None:
            return None, 0
        self._entries.remove(best)
        self._entries.append(best)
        cache = copy.deepcopy(best.cache)
        if length < len(best.ids):
            trim(cache, len(best.ids) - length)
        return cache, length

    def insert(self, key: Key, tokens: Sequence[int], cache: KVCache) -> None:
        """Keep `cache`, which holds `tokens`; it becomes the prefix cache's own."""
        entry = _Entry(key, np.array(tokens, np.int32), cache, num_bytes(cache))
        if len(tokens) < _LEAST_TOKENS or entry.num_bytes > self._max_bytes:
            return
        materialise(cache)
        # What is a prefix of the new entry has nothing to offer any more, if that can be trimmed.
        is_trimmable = can_trim(cache)
        self._entries = [
            old
            for old in self._entries
            if old.key != key
            or _common(old.ids, entry.ids) < len(old.ids)
            or (not is_trimmable and len(old.ids) < len(entry.ids))
        ]
        self._entries.append(entry)
        if len(self._entries) > _MOST_ENTRIES:
            self._entries.pop(0)
        self.shrink(self._max_bytes)

    @property
    def num_bytes(self) -> int:
        """The memory that is kept."""
        return sum(entry.num_bytes for entry in self._entries)

    def shrink(self, max_bytes: int) -> None:
        """Forget what was used longest ago, until no more than `max_bytes` are kept."""
        while self.num_bytes > max_bytes:
            self._entries.pop(0)

    def drop(self, version: int) -> None:
        """Forget everything of one version."""
        self._entries = [entry for entry in self._entries if entry.key[0] != version]


def _common(
    a: "np.ndarray[tuple[int], np.dtype[np.int32]]", b: "np.ndarray[tuple[int], np.dtype[np.int32]]"
) -> int:
    """Return the length of the common prefix."""
    length = min(len(a), len(b))
    differing = np.flatnonzero(a[:length] != b[:length])
    return int(differing[0]) if len(differing) else length
