"""How far a run is, in numbers and on one line.

Pure. Doesn't print, and asks no clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Phase = Literal["collecting", "measuring", "training", "evaluating", "writing"]

_BAR: Final = 16
# In this order, as far as the line is wide enough.
_SHOWN: Final = (
    ("loss", "loss", "{:.3f}"),
    ("kl_parent", "kl", "{:.4f}"),
    ("logprob_liked", "liked", "{:+.2f}"),
    ("logprob_disliked", "disliked", "{:+.2f}"),
    ("kept", "kept", "{:.0%}"),
    ("tokens_per_s", "tokens/s", "{:.3g}"),
)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is; `eta_s` is the time that is left, None where nobody can know."""

    phase: Phase
    step: int = 0
    num_steps: int = 0
    eta_s: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


def line(now: Progress, width: int) -> str:
    """Return `now` on one line of at most `width` characters."""
    if not now.num_steps:
        return now.phase[:width]
    done = now.step * _BAR // now.num_steps
    parts = [
        f"{now.phase} {now.step}/{now.num_steps} [{'#' * done}{'.' * (_BAR - done)}]",
        *([f"{duration(now.eta_s)} left"] if now.eta_s is not None else []),
        *(f"{name} {shown.format(now.metrics[key])}" for key, name, shown in _SHOWN
          if key in now.metrics),
    ]  # fmt: skip
    text = parts[0]
    for part in parts[1:]:
        if len(text) + 2 + len(part) > width:
            break
        text += f"  {part}"
    return text[:width]


def duration(seconds: float) -> str:
    """Return a time in its largest unit, as in `8 s`, `4 min`, `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
