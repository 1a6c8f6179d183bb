"""The copy of a stream holds every byte, and a long one takes little memory."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from strop.proxy.wire.stream_copy import BLOCK_BYTES, StreamCopy

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"so"},"token_ids":[%07d]}]}\n\n'
STREAM = b"".join(EVENT % number for number in range(3 * BLOCK_BYTES // len(EVENT)))


def copied(pieces: list[bytes], limit_bytes: int = len(STREAM)) -> StreamCopy:
    copy = StreamCopy(limit_bytes)
    for piece in pieces:
        copy.add(piece)
    return copy


@given(at=st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_every_byte_is_kept_however_the_stream_is_cut(at: list[int]) -> None:
    """Packed or not, and it may be read more than once."""
    edges = [0, *sorted(at), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in pairwise(edges) if a < b]

    copy = copied(pieces)

    assert STREAM == b"".join(copy)
    assert STREAM == b"".join(copy)
    assert copy.head
    assert STREAM.startswith(copy.head)


def test_a_long_stream_is_packed_and_a_short_one_is_not() -> None:
    """What waits for a block to be full is left as it came."""
    short = copied([STREAM[: BLOCK_BYTES - 1]])
    long = copied([STREAM[: BLOCK_BYTES // 2], STREAM[BLOCK_BYTES // 2 : BLOCK_BYTES]])

    assert BLOCK_BYTES - 1 == short.num_held_bytes
    assert long.num_held_bytes < BLOCK_BYTES // 5


def test_a_stream_over_the_limit_is_given_up_whole() -> None:
    """Half an answer is none; what comes after it is not taken for one either."""
    copy = copied([STREAM, b"x", b""])

    assert (True, b"", b"", 0) == (
        copy.is_over_limit,
        b"".join(copy),
        copy.head,
        copy.num_held_bytes,
    )


def test_a_copy_of_nothing_has_no_bytes() -> None:
    """Nor is it over any limit."""
    copy = copied([], 0)

    assert (False, b"", b"") == (copy.is_over_limit, b"".join(copy), copy.head)
