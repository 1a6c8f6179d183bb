"""What an adapter's file holds beside LoRA: copies of the base's layers, and names wrapped twice.

peft saves the base's embedding and head with each adapter of either, and after any change of the
vocabulary. Engines take neither; a copy that is the base's can go, and any other is a layer that
LoRA alone doesn't give.
"""

import re
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

from strop.adapters import base_model, tensor_file
from strop.adapters.peft import PREFIX, WEIGHTS, InvalidAdapter
from strop.adapters.tensor_file import Tensor

_COPY = re.compile(r"(?P<path>.+?)(?:\.base_layer)?\.(?P<kind>weight|bias)")
_CHUNK_BYTES = 2**24
# The relative step of bfloat16 and the smallest number of float16: what a cast may change.
_CAST_RELATIVE, _CAST_ABSOLUTE = 2.0**-8, 2.0**-24


def remove(folder: Path, base: Path | None) -> None:
    """Leave only LoRA in the adapter's file in `folder`, under the names that peft gives.

    What stays keeps its bytes; a file in which nothing else is stays as it is.

    Raises:
        InvalidAdapter: the file is broken, or holds a layer that isn't shown to be the base's.
        InvalidBase: `base` is broken.
    """
    try:
        header = tensor_file.read_header(folder / WEIGHTS)
        names = {}
        for name, tensor in header.items():
            inner = name
            while inner.startswith(PREFIX):
                inner = inner.removeprefix(PREFIX)
            copy = _COPY.fullmatch(inner)
            if copy is None or ".lora_" in inner or inner == name:
                names[name] = name if inner == name else PREFIX + inner
            else:
                _check_copy(folder / WEIGHTS, tensor, copy["path"], copy["kind"], base)
        if len(set(names.values())) < len(names):
            raise InvalidAdapter("a layer is there under two names, wrapped once and twice")
        if names != {name: name for name in header}:
            scratch = folder / f".{WEIGHTS}"
            tensor_file.select(folder / WEIGHTS, scratch, names)
            scratch.replace(folder / WEIGHTS)
    except tensor_file.BrokenTensorFile as error:
        raise InvalidAdapter(str(error)) from error


def _check_copy(file: Path, tensor: Tensor, path: str, kind: str, base: Path | None) -> None:
    """Raise InvalidAdapter unless a tensor of the adapter's file is the base's of that layer."""
    found = None if base is None else _find(base, path, kind)
    if found is None or {tensor.dtype, found[1].dtype} - {*tensor_file.READABLE}:
        raise InvalidAdapter(
            f"it holds a copy of {path}, which can't be compared with the base's (not known, or "
            "quantised); save it without: save_pretrained(folder, save_embedding_layers=False)"
        )
    if tensor.shape != found[1].shape or not _is_same(file, tensor, *found):
        raise InvalidAdapter(
            f"it brings a {path} of its own, {tensor.shape} where the base's is "
            f"{found[1].shape}, with other values or sizes: its vocabulary was changed, or it was "
            "trained on another base; only LoRA can be served"
        )


def _find(base: Path, path: str, kind: str) -> tuple[Path, Tensor] | None:
    """Return where the base has a layer, by its own name; a tied head is the embedding."""
    wanted = path.rpartition(".")[2]
    if wanted == "lm_head" and base_model.ties_head(base):
        wanted = "embed_tokens"
    for file in base_model.weight_files(base):
        for name, tensor in tensor_file.read_header(file).items():
            if f".{name}".endswith(f".{wanted}.{kind}"):
                return file, tensor
    return None


def _is_same(copy_file: Path, copy: Tensor, file: Path, original: Tensor) -> bool:
    """Return whether two tensors of one shape hold the same, but for a cast to fewer bits."""
    import numpy as np

    is_cast = copy.dtype not in ("F32", original.dtype)
    relative, absolute = (_CAST_RELATIVE, _CAST_ABSOLUTE) if is_cast else (0.0, 0.0)
    pairs = zip(_rows(copy_file, copy), _rows(file, original), strict=True)
    return all(np.allclose(ours, theirs, relative, absolute) for ours, theirs in pairs)


def _rows(file: Path, tensor: Tensor) -> "Iterator[tensor_file.Floats]":
    """Give a tensor some rows at a time: a head may be larger than the memory that is left."""
    num_rows, num_columns = tensor.shape[0], prod(tensor.shape[1:])
    row_bytes = (tensor.end - tensor.start) // max(num_rows, 1)
    step = max(_CHUNK_BYTES // max(4 * num_columns, 1), 1)
    rows: Mapping[str, Tensor] = {
        str(first): Tensor(
            tensor.dtype,
            (min(step, num_rows - first), num_columns),
            tensor.start + first * row_bytes,
            tensor.start + min(first + step, num_rows) * row_bytes,
        )
        for first in range(0, num_rows, step)
    }
    for _, array in tensor_file.read_arrays(file, rows):
        yield array
