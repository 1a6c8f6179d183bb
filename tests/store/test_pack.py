"""The packed form of texts and token arrays."""

import math
import random
import struct
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.proxy.store import pack


@given(st.binary(max_size=4096))
def test_bytes_come_back_exactly(data: bytes) -> None:
    """Whatever bytes go in come out again."""
    assert data == pack.unpack_bytes(pack.pack_bytes(data))


def test_a_long_text_is_compressed() -> None:
    """A text that zstd makes shorter is stored so, tag 1 before it."""
    text = b'{"role": "user", "content": "again and again"}' * 100

    blob = pack.pack_bytes(text)

    assert b"\x01" == blob[:1]
    assert len(blob) < len(text) / 10


def test_what_zstd_would_lengthen_is_stored_plainly() -> None:
    """Bytes without a pattern are stored as they are, tag 0 before them."""
    noise = random.Random(1).randbytes(4096)

    assert b"\x00" + noise == pack.pack_bytes(noise)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=300))
def test_ints_come_back_exactly(values: list[int]) -> None:
    """Every int32 comes back as it was."""
    assert array("i", values) == pack.unpack_ints(pack.pack_ints(array("i", values)))


@given(st.lists(st.floats(width=32), max_size=300))
def test_floats_come_back_with_every_bit(values: list[float]) -> None:
    """Every float32 comes back with its bits, infinities, NaN and minus zero among them."""
    packed = array("f", values)

    assert packed.tobytes() == pack.unpack_floats(pack.pack_floats(packed)).tobytes()


def test_logprobs_keep_minus_infinity_and_minus_zero() -> None:
    """The two edges of a logprob keep their value and their sign."""
    infinite, zero = pack.unpack_floats(pack.pack_floats(array("f", [-math.inf, -0.0])))

    assert -math.inf == infinite
    assert -1.0 == math.copysign(1.0, zero)


def test_arrays_are_little_endian() -> None:
    """Behind the tag stand little-endian int32 and float32, whatever the machine."""
    assert b"\x00" + struct.pack("<3i", 1, -2, 70_000) == pack.pack_ints(
        array("i", [1, -2, 70_000])
    )
    assert b"\x00" + struct.pack("<2f", -0.5, -3.25) == pack.pack_floats(array("f", [-0.5, -3.25]))


def test_a_big_endian_machine_writes_the_same_bytes() -> None:
    """What a big-endian machine holds in memory is swapped on its way in and out."""
    in_its_memory = array("i")
    in_its_memory.frombytes(struct.pack(">3i", 1, -2, 70_000))

    blob = pack.pack_ints(in_its_memory, native="big")

    assert b"\x00" + struct.pack("<3i", 1, -2, 70_000) == blob
    assert in_its_memory == pack.unpack_ints(blob, native="big")
    assert struct.pack(">3i", 1, -2, 70_000) == in_its_memory.tobytes()


@pytest.mark.parametrize("values", [array("f", [1.0]), array("q", [1]), array("h", [1])])
def test_an_array_of_another_type_is_refused(values: "array[int]") -> None:
    """Only an array of the type that will be read back is packed."""
    with pytest.raises(TypeError, match="expected an array"):
        pack.pack_ints(values)


@pytest.mark.parametrize("blob", [b"", b"\x02abc", b"\x01not zstd"])
def test_a_damaged_blob_is_said_to_be_damaged(blob: bytes) -> None:
    """A blob that the store can't have written is a ValueError, never other bytes."""
    with pytest.raises(ValueError, match="damaged"):
        pack.unpack_bytes(blob)
