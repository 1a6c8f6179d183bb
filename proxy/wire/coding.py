"""Content codings: the bytes of an answer as they were before a server packed them.

Pure. RFC 9110, section 8.4. Does not know whose answer it is, or how its end is told.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import zstandard

KNOWN: Final = ("gzip", "deflate", "zstd")
"""What can be unpacked."""

BROKEN: Final = (zlib.error, zstandard.ZstdError)
"""What an unpacker raises where the bytes are not in its coding."""

# Unpacked, it goes on in pieces of about so much.
_PIECE_BYTES: Final = 256 * 1024
# A few hundred bytes may say a gigabyte. Of so many zstd makes 8 MiB, a 128 KiB block of four each.
_SLICE_BYTES: Final = 256

# What some servers fill up with behind a part; no part begins so.
_PADDING: Final = b"\0\r\n"


class _Part(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class Unpacker:
    """Unpacks one body, which may be several parts in a row, each packed by itself.

    Args:
        make: makes what unpacks one part.
    """

    def __init__(self, make: Callable[[], _Part]) -> None:
        self._make = make
        self._part: _Part | None = None

    @property
    def is_whole(self) -> bool:
        """Whether what came ends where a part does. Nothing does too: it was not packed."""
        return self._part is None or self._part.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next piece says, bit by bit; nothing where it takes more to tell."""
        said, num_bytes = [], 0
        for at in range(0, len(data), _SLICE_BYTES):
            said.append(self._feed(data[at : at + _SLICE_BYTES]))
            num_bytes += len(said[-1])
            if num_bytes >= _PIECE_BYTES:
                yield b"".join(said)
                said, num_bytes = [], 0
        if num_bytes:
            yield b"".join(said)

    def _feed(self, data: bytes) -> bytes:
        said = []
        if self.is_whole:
            data = data.lstrip(_PADDING)
        while data:
            if self._part is None or self._part.eof:
                self._part = self._make()
            said.append(self._part.decompress(data))
            data = self._part.unused_data.lstrip(_PADDING)
        return b"".join(said)


def unpacker(coding: str) -> Unpacker | None:
    """Return what unpacks a body, given its Content-Encoding; None for one that isn't `KNOWN`."""
    name = coding.strip().lower()
    if name not in KNOWN:
        return None
    if name == "zstd":
        return Unpacker(zstandard.ZstdDecompressor().decompressobj)
    return Unpacker(lambda: zlib.decompressobj(zlib.MAX_WBITS | 32))
