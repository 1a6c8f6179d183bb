"""A PEFT or mlx_lm adapter that someone else made: checked against a base, and copied.

Refuses what no engine could serve; an engine may serve less. Runs no model and knows no engine.
"""

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from strop.adapters import base_model, leftovers, peft

_MLX_WEIGHTS = "adapters.safetensors"
_MAX_BYTES = {peft.CONFIG: 2**20, peft.WEIGHTS: 16 * 2**30, _MLX_WEIGHTS: 16 * 2**30}
_COPY_BYTES = 2**20


def check_import(folder: Path, base: Path | None, *, max_rank: int) -> None:
    """Refuse an adapter that couldn't be served.

    Args:
        folder: a PEFT folder.
        base: the base that it must fit, in Hugging Face format; names and sizes are compared with
            its files' headers. Without, the engine will have to find out.
        max_rank: the largest rank the engine takes.

    Raises:
        AdapterNotFound: one of the two files isn't there.
        InvalidAdapter: it can't be served; the message says why.
        InvalidBase: `base` is broken.
    """
    for name in (peft.CONFIG, peft.WEIGHTS):
        if os.path.lexists(folder / name):
            with _plain_file(folder, name):
                pass
    _, shapes = peft.read_shapes(folder)
    rank = max(shape.rank for shape in shapes.values())
    if rank > max_rank:
        raise peft.InvalidAdapter(
            f"its rank is {rank}, the engine takes {max_rank} at most; start the engine with a "
            "higher limit, or train with a lower rank"
        )
    if base is not None:
        _check_fit(shapes, base)
    peft.check_values(folder)


def bring_in(source: Path, folder: Path, base: Path | None, *, max_rank: int) -> None:
    """Copy the adapter at `source` into the empty `folder`, and check the copy.

    The two files of an adapter are copied, by name, and nothing else that lies there; one of
    mlx_lm's becomes PEFT's. The base's own embedding and head, which peft saves with adapters of
    them, are left out. Where modules have ranks or scales of their own, the copy is one with a
    single rank and scale that computes the same, because engines that read both from the config
    serve the others wrongly, without a word.

    Raises:
        AdapterNotFound: one of the two files isn't there.
        InvalidAdapter: it can't be served; the message says why.
        InvalidBase: `base` is broken.
        OSError: it can't be read or written.
    """
    there = {name for name in _MAX_BYTES if os.path.lexists(source / name)}
    if there == {peft.CONFIG, _MLX_WEIGHTS}:
        _bring_in_mlx(source, folder, base)
    else:
        for name in (peft.CONFIG, peft.WEIGHTS):
            if name not in there:
                peft.read_shapes(source)  # says what is missing, and what is there instead
            _copy(source, folder, name)
    config = peft.read_config(folder)
    leftovers.remove(folder, base)
    check_import(folder, base, max_rank=max_rank)
    if config.rank_pattern or config.alpha_pattern:
        peft.write(peft.folded(peft.read(folder, with_embeddings=True)), folder)


def _bring_in_mlx(source: Path, folder: Path, base: Path | None) -> None:
    """Write the mlx_lm adapter at `source` into `folder` as PEFT."""
    if base is None:
        raise peft.InvalidAdapter(
            "it is one of mlx_lm's, whose layers are called as in PEFT for some models only; set "
            "model.base, so that it is known which this is"
        )
    from strop.adapters import from_mlx

    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        _copy(source, scratch, peft.CONFIG)
        _copy(source, scratch, _MLX_WEIGHTS)
        from_mlx.convert(scratch / peft.CONFIG, scratch / _MLX_WEIGHTS, base, folder)


def _copy(source: Path, folder: Path, name: str) -> None:
    with _plain_file(source, name) as original, (folder / name).open("xb") as copy:
        left = _MAX_BYTES[name]
        while chunk := original.read(min(_COPY_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise peft.InvalidAdapter(f"{name} grew while it was copied")
            copy.write(chunk)


@contextmanager
def _plain_file(folder: Path, name: str) -> Iterator[BinaryIO]:
    """Open a file that is no link, no device and not absurdly large."""
    path = _in_hub_cache(folder, name) or folder / name
    try:
        # Without O_NONBLOCK, a named pipe would hold us here until someone writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise peft.InvalidAdapter(
                f"{name} is a link; give a folder with the file itself (cp -RL makes one)"
            ) from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise peft.InvalidAdapter(f"{name} is not a plain file")
        if status.st_size > _MAX_BYTES[name]:
            raise peft.InvalidAdapter(
                f"{name} is {status.st_size} bytes long; expected {_MAX_BYTES[name]} at most"
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def _in_hub_cache(folder: Path, name: str) -> Path | None:
    """Return the blob that a file in a snapshot of Hugging Face's cache is a link to, if it is one.

    `<repository>/snapshots/<revision>/<name>` links to `<repository>/blobs/<digest>`.
    """
    snapshots = folder.absolute().parent
    if snapshots.name != "snapshots" or not (folder / name).is_symlink():
        return None
    blob = (folder / name).resolve()
    return blob if blob.parent == (snapshots.parent / "blobs").resolve() else None


def _check_fit(shapes: Mapping[str, peft.ModuleShape], base: Path) -> None:
    """Refuse modules that the base doesn't have, or has in other sizes."""
    sizes = base_model.layer_sizes(base)
    by_place: dict[str, list[str]] = {}
    for path in sizes:
        by_place.setdefault(_place(path), []).append(path)
    for path, shape in shapes.items():
        # Models of text and images name their blocks otherwise in memory than in their files.
        candidates = [path] if path in sizes else by_place.get(_place(path), [])
        if not candidates and path == "lm_head" and base_model.ties_head(base):
            candidates = [name for name in sizes if name.endswith("embed_tokens")]
        if path.startswith("layers.") and f"model.{path}" in sizes:
            raise peft.InvalidAdapter(
                f"it adapts {path}, which is model.{path} in the base {base}: it was trained on "
                "the blocks alone (AutoModel); train it on AutoModelForCausalLM"
            )
        if not candidates:
            raise peft.InvalidAdapter(
                f"it adapts {path}, which the base {base} doesn't have: was it trained on "
                "another model?"
            )
        adapted = (shape.num_out, shape.num_in)
        if shape.is_embedding:
            adapted = (shape.num_in, shape.num_out)
        found = [sizes[name] for name in candidates]
        if None not in found and adapted not in found:
            raise peft.InvalidAdapter(
                f"{path} is adapted as a layer of {adapted[1]} inputs and {adapted[0]} outputs; "
                f"that of the base {base} has {found[0]} as (outputs, inputs): was it trained on "
                "another model?"
            )


def _place(path: str) -> str:
    """Return the part of a module's path from its block on."""
    _, marker, rest = path.rpartition("layers.")
    return marker + rest if marker else path
