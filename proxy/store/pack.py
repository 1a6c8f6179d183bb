"""The packed form of texts and token arrays: one tag byte, then the bytes, plain or zstd.

Does not know what the bytes mean, or where they are kept.

    blob   = tag, payload
    tag    0: the payload is the bytes themselves    1: the payload is one zstd frame of them
    ints   int32, little-endian      floats   float32, little-endian
"""

import sys
import threading
from array import array
from typing import Final, Literal

import zstandard

RAW: Final = b"\x00"
ZSTD: Final = b"\x01"

LEVEL: Final = 1
MIN_ZSTD_BYTES: Final = 1024
"""Below this, zstd saves less than a row costs."""

ByteOrder = Literal["little", "big"]


class _Codec(threading.local):
    """One compressor and one decompressor per thread: zstd contexts can't be shared."""

    def __init__(self) -> None:
        self.compress = zstandard.ZstdCompressor(level=LEVEL).compress
        self.decompress = zstandard.ZstdDecompressor().decompress


_codec = _Codec()


def pack_bytes(data: bytes) -> bytes:
    """Return `data` as a blob, the shorter of its two forms."""
    if len(data) >= MIN_ZSTD_BYTES:
        frame = _codec.compress(data)
        if len(frame) < len(data):
            return ZSTD + frame
    return RAW + data


def unpack_bytes(blob: bytes) -> bytes:
    """Return what `pack_bytes` was given.

    Raises:
        ValueError: `blob` was not written by `pack_bytes`, or is damaged.
    """
    tag = blob[:1]
    if tag == RAW:
        return blob[1:]
    if tag != ZSTD:
        raise ValueError(f"expected a blob that begins with 0 or 1, got {tag!r}; it is damaged")
    try:
        return _codec.decompress(memoryview(blob)[1:])
    except zstandard.ZstdError as error:
        raise ValueError(f"expected a zstd frame after the tag: {error}; it is damaged") from error


def pack_ints(values: "array[int]", native: ByteOrder = sys.byteorder) -> bytes:
    """Return an array of C ints as a blob of little-endian int32; `native` is its byte order."""
    return _pack_array(values, "i", native)


def unpack_ints(blob: bytes, native: ByteOrder = sys.byteorder) -> "array[int]":
    """Return what `pack_ints` was given.

    Raises:
        ValueError: `blob` was not written by `pack_ints`, or is damaged.
    """
    values = array("i")
    _unpack_array(values, blob, native)
    return values


def pack_floats(values: "array[float]", native: ByteOrder = sys.byteorder) -> bytes:
    """Return an array of C floats as a blob of little-endian float32, every bit kept."""
    return _pack_array(values, "f", native)


def unpack_floats(blob: bytes, native: ByteOrder = sys.byteorder) -> "array[float]":
    """Return what `pack_floats` was given.

    Raises:
        ValueError: `blob` was not written by `pack_floats`, or is damaged.
    """
    values = array("f")
    _unpack_array(values, blob, native)
    return values


def _pack_array(values: "array[int] | array[float]", typecode: str, native: ByteOrder) -> bytes:
    if values.typecode != typecode or values.itemsize != 4:
        raise TypeError(f"expected an array({typecode!r}) of 4-byte items, got {values.typecode!r}")
    if native == "big":
        values = values[:]
        values.byteswap()
    return pack_bytes(values.tobytes())


def _unpack_array(values: "array[int] | array[float]", blob: bytes, native: ByteOrder) -> None:
    values.frombytes(unpack_bytes(blob))
    if native == "big":
        values.byteswap()
