"""Content codings: what a server packed comes out as it was, and whether that is all of it."""

import gzip
import zlib
from collections.abc import Callable

import pytest
import zstandard

from strop.proxy.wire import coding

PARTS = (b"one " * 100, b"", b"two")


def unpacked(unpacker: coding.Unpacker, packed: bytes, num_bytes: int) -> bytes:
    """Feed so many bytes at a time; return what they say."""
    pieces = [packed[at : at + num_bytes] for at in range(0, len(packed), num_bytes)]
    return b"".join(said for piece in pieces for said in unpacker.feed(piece))


packings = pytest.mark.parametrize(
    ("name", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("zstd", zstandard.compress)],
    ids=coding.KNOWN,
)


@packings
@pytest.mark.parametrize("num_bytes", [1, 7, 10_000])
def test_parts_in_a_row_are_one_body(
    num_bytes: int, name: str, pack: Callable[[bytes], bytes]
) -> None:
    """Some servers pack each piece by itself; they come cut anywhere."""
    packed = b"".join(map(pack, PARTS))
    unpacker = coding.unpacker(name)
    assert unpacker is not None

    said = unpacked(unpacker, packed, num_bytes)

    assert b"".join(PARTS) == said
    assert unpacker.is_whole


@packings
def test_a_body_is_whole_where_a_part_ends(name: str, pack: Callable[[bytes], bytes]) -> None:
    """And where there is nothing: not each server packs what is empty."""
    packed = [pack(part) for part in PARTS]
    unpacker = coding.unpacker(name)
    assert unpacker is not None

    found = [unpacker.is_whole]
    for byte in b"".join(packed):
        list(unpacker.feed(bytes([byte])))
        found.append(unpacker.is_whole)

    ends = [0, *(sum(map(len, packed[: num + 1])) for num in range(len(packed)))]
    assert ends == [at for at, is_whole in enumerate(found) if is_whole]


@packings
@pytest.mark.parametrize("num_bytes", [1, 10_000])
def test_what_fills_up_behind_a_part_is_no_other(
    num_bytes: int, name: str, pack: Callable[[bytes], bytes]
) -> None:
    """Other clients pass over it, and the answer before it is whole."""
    packed = b"".join(pack(part) + b"\0\0\r\n" for part in PARTS)
    unpacker = coding.unpacker(name)
    assert unpacker is not None

    said = unpacked(unpacker, packed, num_bytes)

    assert (b"".join(PARTS), True) == (said, unpacker.is_whole)


@packings
def test_what_becomes_very_much_comes_in_pieces(name: str, pack: Callable[[bytes], bytes]) -> None:
    """The largest is what zstd makes of the bytes that are unpacked at once."""
    num_bytes = 64 * 2**20
    unpacker = coding.unpacker(name)
    assert unpacker is not None

    sizes = list(map(len, unpacker.feed(pack(bytes(num_bytes)))))

    assert (num_bytes, True) == (sum(sizes), unpacker.is_whole)
    assert max(sizes) < 9 * 2**20
