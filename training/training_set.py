"""What one run learns from and is judged by, as one value and one file: a resumed run has the same.

Does not know how it was collected. The file holds token ids of conversations, so it is its owner's
alone and goes when the run has ended.
"""

import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strop.adapters import durable
from strop.training.sequences import Answer, Tokens, Unit


@dataclass(frozen=True, slots=True)
class HeldOutTurn:
    """A held-out rated turn: its session's root, its mean rating, and the answers it credits."""

    root: str
    rating: float
    answers: tuple[Tokens, ...]

    @property
    def longest(self) -> int:
        """How many tokens its longest sequence has."""
        return max(len(tokens.ids) for tokens in self.answers)


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Everything that a run needs of the store and of the parent.

    Attributes:
        units: what is learned from.
        feedback: id and revision of every rating that `units` were made from.
        held_out: what the gate compares on.
        prompts: ids of recorded prompts, for fresh samples and the probe.
        counts: examples by kind, and what was left out or flagged, by reason.
        completions: the ids of all whose tokens may be in it; none where an older strop saved it.
    """

    units: tuple[Unit, ...]
    feedback: tuple[tuple[str, int], ...]
    held_out: tuple[HeldOutTurn, ...]
    prompts: tuple[tuple[int, ...], ...]
    counts: Mapping[str, float]
    completions: tuple[str, ...] = ()

    @property
    def longest(self) -> int:
        """How many tokens the longest sequence has that is learned from."""
        return max(len(answer.tokens.ids) for unit in self.units for answer in unit.answers)

    @property
    def num_bytes(self) -> int:
        """How much memory its sequences take."""
        learn = [answer.tokens for unit in self.units for answer in unit.answers]
        return num_bytes([*learn, *(one for turn in self.held_out for one in turn.answers)])


def num_bytes(sequences: Iterable[Tokens]) -> int:
    """Return how much memory the ids of `sequences` take; one that comes twice is there once."""
    return sum({id(one): one.ids.nbytes for one in sequences}.values())


def save(whole: TrainingSet, path: Path) -> None:
    """Write `whole` to `path`, which then has all of it or is as it was.

    The file is one that `numpy.savez` would write, but made without a second copy in memory.
    """
    answers = [answer for unit in whole.units for answer in unit.answers]
    held_out = [tokens for turn in whole.held_out for tokens in turn.answers]
    sequences = [*(answer.tokens for answer in answers), *held_out]
    meta = {
        "units": [
            [unit.kind, unit.advantage, unit.rating, len(unit.answers)] for unit in whole.units
        ],
        "held_out": [[turn.root, turn.rating, len(turn.answers)] for turn in whole.held_out],
        "num_prompts": [tokens.num_prompt for tokens in sequences],
        "feedback": whole.feedback,
        "counts": dict(whole.counts),
        "completions": whole.completions,
    }
    temporary = path.with_suffix(".part")
    with (
        os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file,
        zipfile.ZipFile(file, "w") as archive,
    ):
        _write(archive, "meta", [np.frombuffer(json.dumps(meta).encode(), np.uint8)], np.uint8)
        _write_rows(archive, "ids", [tokens.ids for tokens in sequences], np.int32)
        _write_rows(archive, "prompts", whole.prompts, np.int32)
        _write_rows(archive, "base", [answer.base for answer in answers], np.float32)
        _write_rows(archive, "sampler", [answer.sampler for answer in answers], np.float32)
        _write_rows(archive, "keep", [answer.keep for answer in answers], np.bool_)
        _write_rows(archive, "parent", [answer.parent for answer in answers], np.float32)
    durable.publish(temporary, path)


def load(path: Path) -> TrainingSet:
    """Return what `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(arrays["meta"].tobytes())
    num_prompts = meta["num_prompts"]
    sequences = [
        Tokens(ids, num_prompt)
        for ids, num_prompt in zip(_cut(arrays, "ids"), num_prompts, strict=True)
    ]
    of_each = [_cut(arrays, name) for name in ("base", "sampler", "parent", "keep")]
    answers = [Answer(*parts) for parts in zip(sequences, *of_each, strict=False)]
    units, held_out = [], []
    start = 0
    for kind, advantage, rating, num in meta["units"]:
        units.append(Unit(kind, advantage, tuple(answers[start : start + num]), rating))
        start += num
    for root, rating, num in meta["held_out"]:
        held_out.append(HeldOutTurn(root, rating, tuple(sequences[start : start + num])))
        start += num
    return TrainingSet(
        units=tuple(units),
        feedback=tuple((id_, revision) for id_, revision in meta["feedback"]),
        held_out=tuple(held_out),
        prompts=tuple(tuple(ids.tolist()) for ids in _cut(arrays, "prompts")),
        counts=meta["counts"],
        completions=tuple(meta.get("completions", ())),
    )


def _write_rows(
    archive: zipfile.ZipFile, name: str, rows: Sequence[Sequence[int] | NDArray[Any]], dtype: type
) -> None:
    """Write rows of any lengths as one array and the place where each ends."""
    _write(archive, name, rows, dtype)
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    _write(archive, f"{name}_ends", [ends], np.int64)


def _write(
    archive: zipfile.ZipFile, name: str, rows: Sequence[Sequence[int] | NDArray[Any]], dtype: type
) -> None:
    """Write one array, row after row."""
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": (sum(map(len, rows)),),
    }
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for row in rows:
            member.write(np.asarray(row, dtype).tobytes())


def _cut(arrays: Mapping[str, NDArray[Any]], name: str) -> list[NDArray[Any]]:
    ends = arrays[f"{name}_ends"].tolist()
    starts = [0, *ends]
    return [arrays[name][start:end] for start, end in zip(starts, ends, strict=False)]
