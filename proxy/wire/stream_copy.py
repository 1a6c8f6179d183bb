"""The copy of a stream that waits to be recorded; a long one is packed meanwhile.

Does not know what the bytes mean, or who records them.

With logprobs an event is 50 to 100 times as long as the text it brings, and streams are many at
once and last for minutes. Packed they take a seventh; those of fewer bytes than a block, which is
most, are left as they came.
"""

from collections.abc import Iterator
from typing import Final

import zstandard

BLOCK_BYTES: Final = 256 * 1024

_LEVEL: Final = 1


class StreamCopy:
    """What came of one stream so far; iterate over it for its bytes, block by block.

    Args:
        limit_bytes: how long a stream may be; of a longer one nothing is kept.

    Attributes:
        is_over_limit: whether it was longer.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.is_over_limit = False
        self._room_bytes = limit_bytes
        self._packs_at = limit_bytes - BLOCK_BYTES
        self._packed: list[bytes] = []
        self._pieces: list[bytes] = []

    def add(self, data: bytes) -> None:
        """Keep what came next."""
        self._room_bytes -= len(data)
        if self._room_bytes < 0:
            self.is_over_limit = True
            self._packed.clear()
            self._pieces.clear()
            return
        self._pieces.append(data)
        if self._room_bytes <= self._packs_at:
            frame = zstandard.compress(b"".join(self._pieces), _LEVEL)
            # A copy: zstandard's own bytes keep the room for what can't be packed.
            self._packed.append(b"".join((frame, b"")))
            self._pieces.clear()
            self._packs_at = self._room_bytes - BLOCK_BYTES

    def __iter__(self) -> Iterator[bytes]:
        for frame in self._packed:
            # In a context of its own: two threads may read at once.
            yield zstandard.decompress(frame)
        if self._pieces:
            yield b"".join(self._pieces)

    @property
    def head(self) -> bytes:
        """The first bytes, up to a block; b"" while there is none."""
        return next(iter(self), b"")

    @property
    def num_held_bytes(self) -> int:
        """How many bytes the copy takes now."""
        return sum(map(len, self._packed)) + sum(map(len, self._pieces))
