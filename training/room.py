"""How many tokens a run computes at once: what the device has room for, after a little wait.

Estimates are `memory`'s. Opens no model, and handles no `OutOfMemory`: that is `micro_batch`'s.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from strop.training import memory
from strop.training.backends import Choice
from strop.training.backends.base import OutOfMemory
from strop.training.backends.base_files import BaseFiles
from strop.training.collection import Collected, Refused
from strop.training.figures import MAX_SAMPLE_TOKENS
from strop.training.presets import Preset
from strop.training.recipe import Recipe
from strop.training.reports import Reports
from strop.training.stopping import Stopping
from strop.training.training_set import TrainingSet

_WAIT_S: Final = 30.0
_POLL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Room:
    """What there is room for: tokens computed at once, and of the longest sequence by itself."""

    max_tokens: int
    longest: int


class TooLong(Refused):
    """Not even the longest sequence fits; up to `longest` tokens do, with a little to spare."""

    def __init__(self, message: str, longest: int) -> None:
        super().__init__(message)
        self.longest = longest


def now(base: Path, chosen: Choice, preset: Preset, *, quantize_base: bool) -> Room:
    """Return how much to compute at once with the memory that is free now, training or not.

    Args:
        base: the base's folder.
        chosen: what computes.
        preset: the most that is wanted at once, and the rank of a LoRA.
        quantize_base: whether the base is held in 4 bits.

    Raises:
        OutOfMemory: not even the base fits.
    """
    needed = memory.estimate(base, chosen, rank=preset.rank, quantize_base=quantize_base)
    free = memory.free_bytes(chosen.device)
    longest = min(BaseFiles(base).context_length, needed.longest(free))
    if not longest:
        raise OutOfMemory(needed.advice(free, MAX_SAMPLE_TOKENS))
    return Room(min(preset.micro_batch_tokens, needed.max_tokens(free, longest)), longest)


def find(
    recipe: Recipe,
    rank: int,
    collected: Collected | TrainingSet,
    reports: Reports,
    stopping: Stopping,
) -> Room:
    """Return how much to compute at once.

    Args:
        recipe: says what computes, and the most that is wanted at once.
        rank: of the LoRA that is trained.
        collected: what it learns from; what that takes is no longer free.
        reports: is told what that takes, what is needed besides, and what is free.
        stopping: asked while it waits.

    Raises:
        TooLong: not even the longest sequence fits.
        Stopped: it was asked to stop.
    """
    settings, chosen, preset = recipe.settings, recipe.chosen, recipe.preset
    longest = collected.longest
    needed = memory.estimate(
        settings.base_path, chosen, rank=rank, quantize_base=settings.quantize_base
    )
    deadline_s = time.monotonic() + _WAIT_S
    while True:
        free = memory.free_bytes(chosen.device)
        does_fit = needed.fits(free, longest)
        # Another program may have taken it for a moment only.
        if does_fit or time.monotonic() > deadline_s:
            break
        stopping.check()
        time.sleep(_POLL_S)
    reports.event(
        "memory",
        collected_bytes=collected.num_bytes,
        needed_bytes=needed.total(longest, longest),
        free_bytes=free,
        longest=longest,
    )
    if not does_fit:
        raise TooLong(
            needed.advice(free, longest), needed.longest_of(free, recipe.files.context_length)
        )
    fits = needed.max_tokens(free, longest)
    return Room(min(preset.micro_batch_tokens, fits), needed.longest(free))
