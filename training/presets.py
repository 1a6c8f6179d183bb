"""Presets: how far one run may go, from TOML files in strop.configs or of the user's own.

Reads files; knows no run. What depends on the model's size is settled here, so a `Preset` is plain
numbers.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from strop.configs import presets as shipped
from strop.training.backends.base import AdamWSettings, LoraSettings
from strop.training.loop import Schedule
from strop.training.model_size import ModelSize, model_size
from strop.training.objectives.base import Settings

DEFAULT: Final = "balanced"

Steps = tuple[tuple[float, float], ...]
"""`(up_to, value)`, rising; the last `up_to` is infinite."""

# Smallest and largest value of each key; above 0 where the smallest is this.
_TINY: Final = 1e-12
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "lr": (_TINY, 1.0),
    "lr_by_total": (0.01, 10.0),
    "lr_by_sparsity": (0.01, 10.0),
    "rank": (1, 256),
    "alpha_over_rank": (0.1, 64.0),
    "beta": (0.0, 10.0),
    "kto_beta": (_TINY, 10.0),
    "dpo_beta": (_TINY, 10.0),
    "epochs": (1, 100),
    "batch_size": (1, 4096),
    "min_steps": (1, 100_000),
    "max_steps": (1, 100_000),
    "warmup": (0.0, 0.9),
    "kl_stop": (_TINY, 100.0),
    "max_grad_norm": (_TINY, 1000.0),
    "weight_decay": (0.0, 1.0),
    "micro_batch_tokens": (16, 1_000_000),
}
_FACTORS: Final = frozenset({"lr_by_total", "lr_by_sparsity"})
_WHOLE: Final = frozenset(
    {"rank", "epochs", "batch_size", "min_steps", "max_steps", "micro_batch_tokens"}
)


class InvalidPreset(ValueError):
    """A preset that isn't there, or doesn't say what a preset must."""


@dataclass(frozen=True, slots=True)
class Preset:
    """How far one run may go with one model.

    Attributes:
        name: of a shipped preset, or the path of the file.
        lr: the peak learning rate.
        rank: of a fresh LoRA.
        alpha: its alpha.
        epochs: how often each unit is seen, as far as `max_steps` allows.
        batch_size: units a step, before `min_steps` makes it smaller, or `max_steps` larger.
        min_steps: optimizer steps at least, as far as `epochs` allows.
        max_steps: optimizer steps at most.
        warmup: the share of the steps in which the rate rises.
        kl_stop: nats a token from the parent, running mean, that end the run.
        max_grad_norm: gradients are clipped to it.
        weight_decay: AdamW's.
        micro_batch_tokens: of one pass through the model, to begin with.
        objective: what the objective is set to.
    """

    name: str
    lr: float
    rank: int
    alpha: float
    epochs: int
    batch_size: int
    min_steps: int
    max_steps: int
    warmup: float
    kl_stop: float
    max_grad_norm: float
    weight_decay: float
    micro_batch_tokens: int
    objective: Settings

    @property
    def adamw(self) -> AdamWSettings:
        """The optimizer."""
        return AdamWSettings(max_grad_norm=self.max_grad_norm, weight_decay=self.weight_decay)

    def lora(self, seed: int) -> LoraSettings:
        """Return a fresh LoRA."""
        return LoraSettings(rank=self.rank, alpha=self.alpha, seed=seed)

    def schedule(self, num_units: int, seed: int) -> Schedule:
        """Return how far a run over `num_units` goes: `epochs` passes in `max_steps` at most."""
        num_seen = num_units * self.epochs
        batch_size = min(self.batch_size, max(1, num_seen // self.min_steps))
        batch_size = max(batch_size, _ceil(num_seen, self.max_steps))
        num_steps = min(self.max_steps, _ceil(num_units, batch_size) * self.epochs)
        return Schedule(
            num_steps=num_steps,
            batch_size=batch_size,
            lr=self.lr,
            warmup_steps=round(self.warmup * num_steps),
            kl_stop=self.kl_stop,
            seed=seed,
        )


def load(name_or_path: str, model_config: Mapping[str, object]) -> Preset:
    """Return a preset for the model with this config.json.

    Raises:
        InvalidPreset: there is none of that name or at that path, or a key is unknown or wrong; or
            a number depends on the model's size, which its config doesn't tell.
    """
    known = shipped()
    path = known.get(name_or_path, Path(name_or_path).expanduser())
    if not path.is_file():
        raise InvalidPreset(
            f"training.preset: expected {', '.join(known)} or the path of a TOML file; got"
            f" {name_or_path!r}, which is neither"
        )
    # What a file leaves out is as in the default.
    fields = {**_read(known[DEFAULT]), **_read(path)}
    needs_size = any(len(fields[key]) > 1 for key in fields.keys() - _FACTORS)
    size = _size(model_config, path) if needs_size else ModelSize(1, 1)

    def number(key: str, measure: float = size.active) -> float:
        return next(value for up_to, value in fields[key] if measure <= up_to)

    lr = number("lr")
    if len(fields["lr"]) > 1:
        # A plain rate is meant for one model, and taken as it is.
        lr *= number("lr_by_total", size.total) * number("lr_by_sparsity", size.sparsity)
    rank = int(number("rank"))
    return Preset(
        name=name_or_path,
        lr=lr,
        rank=rank,
        alpha=rank * number("alpha_over_rank"),
        epochs=int(number("epochs")),
        batch_size=int(number("batch_size")),
        min_steps=int(number("min_steps")),
        max_steps=int(number("max_steps")),
        warmup=number("warmup"),
        kl_stop=number("kl_stop"),
        max_grad_norm=number("max_grad_norm"),
        weight_decay=number("weight_decay"),
        micro_batch_tokens=int(number("micro_batch_tokens")),
        objective=Settings(
            beta=number("beta"), kto_beta=number("kto_beta"), dpo_beta=number("dpo_beta")
        ),
    )


def _read(path: Path) -> dict[str, Steps]:
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidPreset(f"{path}: expected a TOML file; {error}") from error
    if unknown := sorted(fields.keys() - _RANGES.keys()):
        raise InvalidPreset(
            f"{path}: expected the keys {', '.join(_RANGES)}; got {', '.join(unknown)}"
        )
    return {key: _steps(f"{path}: {key}", key, value) for key, value in fields.items()}


def _steps(where: str, key: str, value: object) -> Steps:
    """Return a number, or rising steps of numbers, as steps.

    Raises:
        InvalidPreset: it is neither, or out of range.
    """
    if not isinstance(value, list):
        return ((math.inf, _number(where, value, key)),)
    bounds = [step.get("up_to", math.inf) if isinstance(step, dict) else None for step in value]
    is_rising = all(
        isinstance(low, int | float) and isinstance(high, int | float) and low < high
        for low, high in pairwise(bounds)
    )
    if bounds[-1:] != [math.inf] or not is_rising:
        raise InvalidPreset(
            f"{where}: expected a number, or steps {{ up_to = ..., value = ... }} whose `up_to`"
            f" rises and of which the last has none; got {value}"
        )
    return tuple((float(step.get("up_to", math.inf)), _number(where, step, key)) for step in value)


def _number(where: str, value: object, key: str) -> float:
    if isinstance(value, dict):
        if unknown := sorted(value.keys() - {"up_to", "value"}):
            raise InvalidPreset(f"{where}: expected up_to and value; got {', '.join(unknown)}")
        value = value.get("value")
    (low, high), is_whole = _RANGES[key], key in _WHOLE
    kinds = int if is_whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise InvalidPreset(
            f"{where}: expected {'a whole number' if is_whole else 'a number'}"
            f" {'above 0' if low == _TINY else f'from {low:g}'} up to {high:g}; got {value!r}"
        )
    return float(value)


def _size(model_config: Mapping[str, object], path: Path) -> ModelSize:
    try:
        return model_size(model_config)
    except ValueError as error:
        raise InvalidPreset(f"{path}: its numbers depend on the model's size. {error}") from error


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
