"""Content codings: the bytes of an answer as they were before a server packed them.

Pure. RFC 9110, section 8.4. Does not know whose answer it is, or how its end is told.
"""

import zlib
from collections.abc import Callable
from typing import Final, Protocol

import zstandard

KNOWN: Final = ("gzip", "deflate", "zstd")
"""What can be unpacked."""

BROKEN: Final = (zlib.error, zstandard.ZstdError)
"""What an unpacker raises where the bytes are not in its coding."""

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

    def feed(self, data: bytes) -> bytes:
        """Return what the next piece says; b"" where it takes more to tell."""
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
