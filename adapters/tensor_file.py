"""Safetensors files: the header, single tensors, and writing (huggingface/safetensors, "Format").

Does not know what the tensors are for. Reads a header without the tensors behind it; imports numpy
only where tensors are read.
"""

import json
import operator
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]

# Some 100,000 tensors. The format allows 100 MB, which takes 10 s and 2.4 GiB to read where it is
# made to.
_MAX_HEADER_BYTES = 2**24
_ITEM_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 1),
}
_MAX_NAME_CHARS = 512
_COPY_BYTES = 2**20
READABLE = ("F32", "F16", "BF16")


class BrokenTensorFile(ValueError):
    """The file is not a whole safetensors file, or holds what can't be read."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies in its file: bytes `start` to `end`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, in the order of their bytes, which are not read.

    Raises:
        BrokenTensorFile: header and file don't fit together; a truncated file never does.
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if size > _MAX_HEADER_BYTES and size <= num_bytes - 8:
            raise BrokenTensorFile(
                f"{path.name} has a header of {size} bytes; expected {_MAX_HEADER_BYTES} at most"
            )
        if not 0 < size <= num_bytes - 8:
            raise BrokenTensorFile(
                f"{path.name} is not a whole safetensors file: header cut off or wrong"
            )
        header = file.read(size)
    try:
        raw = json.loads(header)
        raw.pop("__metadata__", None)
        tensors = {
            name: Tensor(
                str(entry["dtype"]),
                tuple(map(operator.index, entry["shape"])),
                *map(operator.index, entry["data_offsets"]),
            )
            for name, entry in raw.items()
        }
        placed = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end))
        return _checked(path.name, placed, 8 + size, num_bytes)
    except BrokenTensorFile:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BrokenTensorFile(f"{path.name} has a broken header: {error}") from error


def _checked(
    file_name: str, placed: list[tuple[str, Tensor]], offset: int, num_bytes: int
) -> dict[str, Tensor]:
    """Return tensors with offsets in the file, once they fill it without gap or overlap."""
    end = 0
    tensors = {}
    for name, tensor in placed:
        # What is printed in errors must not steer a terminal, nor be half a character.
        if len(name) > _MAX_NAME_CHARS or not name.isprintable():
            raise BrokenTensorFile(
                f"{file_name} has a name of {len(name)} characters, expected {_MAX_NAME_CHARS}"
                f" printable ones at most: {name[:80]!r}"
            )
        # Other dtypes may be of less than a byte; their length is taken as it is said.
        item_bytes = _ITEM_BYTES.get(tensor.dtype)
        length = tensor.end - tensor.start
        fits = item_bytes is None or length == prod(tensor.shape) * item_bytes
        if tensor.start != end or length < 0 or min(tensor.shape, default=0) < 0 or not fits:
            raise BrokenTensorFile(f"{file_name}: the bytes of {name} don't fit its shape")
        end = tensor.end
        tensors[name] = Tensor(tensor.dtype, tensor.shape, offset + tensor.start, offset + end)
    if offset + end != num_bytes:
        raise BrokenTensorFile(
            f"{file_name} is {num_bytes} bytes long, its header says {offset + end}: truncated?"
        )
    return tensors


def read_arrays(
    path: Path, tensors: Mapping[str, Tensor]
) -> "Iterator[tuple[str, NDArray[np.float32]]]":
    """Give tensors of `path` one after the other, as float32, every value exact.

    Raises:
        BrokenTensorFile: one is of no dtype of `READABLE`, or holds NaN or infinity.
    """
    import numpy as np

    with path.open("rb") as file:
        for name, tensor in tensors.items():
            if tensor.dtype not in READABLE:
                raise BrokenTensorFile(
                    f"{name} is {tensor.dtype!r:.80}; expected one of {READABLE}"
                )
            file.seek(tensor.start)
            data = file.read(tensor.end - tensor.start)
            if len(data) != tensor.end - tensor.start:
                raise BrokenTensorFile(f"{path.name} became shorter while it was read")
            if tensor.dtype == "BF16":
                # A bf16 is the upper half of the float32 of the same value.
                array = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                kind = "<f4" if tensor.dtype == "F32" else "<f2"
                array = np.frombuffer(data, kind).astype(np.float32)
            if not np.isfinite(array).all():
                raise BrokenTensorFile(f"{name} contains NaN or infinity")
            yield name, array.reshape(tensor.shape)


def select(source: Path, target: Path, names: Mapping[str, str]) -> None:
    """Write the tensors of `source` that `names` has to the new file `target`, by their new names.

    Byte for byte, whatever their dtypes.

    Raises:
        BrokenTensorFile: `source` is none.
    """
    chosen = {name: each for name, each in read_header(source).items() if name in names}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in chosen.items():
        length = tensor.end - tensor.start
        header[names[name]] = _entry(tensor.dtype, tensor.shape, end, end + length)
        end += length
    with source.open("rb") as original, _create(target, header) as copy:
        for tensor in chosen.values():
            original.seek(tensor.start)
            left = tensor.end - tensor.start
            while left and (chunk := original.read(min(left, _COPY_BYTES))):
                copy.write(chunk)
                left -= len(chunk)


def write(path: Path, arrays: "Mapping[str, NDArray[np.float32]]") -> None:
    """Write float32 tensors to `path`; equal tensors give equal bytes."""
    import numpy as np

    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in sorted(arrays.items()):
        header[name] = _entry("F32", array.shape, end, end + 4 * array.size)
        end += 4 * array.size
    with _create(path, header) as file:
        for _, array in sorted(arrays.items()):
            file.write(np.ascontiguousarray(array, "<f4").tobytes())


def _entry(dtype: str, shape: tuple[int, ...], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def _create(path: Path, header: Mapping[str, object]) -> BinaryIO:
    """Return the file, opened where its tensors begin."""
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the tensors begin at a multiple of eight
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    file = os.fdopen(os.open(path, flags, 0o600), "wb")
    file.write(struct.pack("<Q", len(encoded)) + encoded)
    return file
