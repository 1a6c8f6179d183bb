"""Content codings: the bytes of an answer as they were before a server packed them.

Pure. RFC 9110, section 8.4. Does not know whose answer it is, or where it ends.
"""

import zlib
from collections.abc import Callable
from typing import Final

import zstandard

KNOWN: Final = ("gzip", "deflate", "zstd")
"""What can be unpacked."""

BROKEN: Final = (zlib.error, zstandard.ZstdError)
"""What an unpacker raises where the bytes are not in its coding."""


def unpacker(coding: str) -> Callable[[bytes], bytes] | None:
    """Return what unpacks a body piece by piece, given its Content-Encoding; None for others.

    It returns b"" where it needs more to tell.
    """
    name = coding.strip().lower()
    if name not in KNOWN:
        return None
    if name == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress
    return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress
