"""`adapter_config.json` of a PEFT LoRA folder: read, validated and written.

Refuses what is not plain LoRA. Knows no tensors and no model.
"""

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

CONFIG = "adapter_config.json"

_MAX_CONFIG_BYTES = 2**20
_MAX_PATTERN_KEYS = 4096
_MAX_PATTERN_CHARS = 500
_MAX_FLOAT32 = (2 - 2**-23) * 2.0**127
# What lets one expression try many ways. Each may multiply its time by the length of a path.
_REPEAT = re.compile(r"[*+{]|(?<!\()\?")
_MAX_PATH = 256
_MAX_WAYS = 2**20
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_IN_BLOCK = re.compile(r"(?P<blocks>.+?)\.(?P<layer>\d+)\.(?P<inner>.+)")

# Settings that change what the weights mean, with the values that mean nothing special.
_UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "fan_in_fan_out": (None, False),
    "ensure_weight_tying": (None, False),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
}
# These initialisations change the base itself, which the adapter then needs.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class InvalidAdapter(ValueError):
    """The folder is not a PEFT LoRA adapter that can be served or trained on."""


class AdapterNotFound(InvalidAdapter):
    """There is no adapter at this path."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What `adapter_config.json` says, as far as it matters here."""

    rank: int
    alpha: float
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    base_model: str | None = None

    def scale_of(self, path: str) -> float:
        """Return the multiplier of B·A for the module at `path`: alpha / r, or alpha / sqrt(r)."""
        rank = self.rank_of(path)
        alpha = _of_pattern(self.alpha_pattern, path, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def rank_of(self, path: str) -> int:
        """Return the rank of the module at `path`."""
        return _of_pattern(self.rank_pattern, path, self.rank)


def read_config(folder: Path) -> LoraConfig:
    """Read and validate `adapter_config.json`.

    Raises:
        AdapterNotFound: the folder or the file isn't there.
        InvalidAdapter: the adapter is of a kind that is not supported, or the file is broken.
    """
    if not (folder / CONFIG).is_file():
        raise AdapterNotFound(f"No adapter found for {folder}: expected {CONFIG} in it")
    if (size := (folder / CONFIG).stat().st_size) > _MAX_CONFIG_BYTES:
        raise InvalidAdapter(f"{CONFIG} is {size} bytes long; expected {_MAX_CONFIG_BYTES} at most")
    try:
        raw = json.loads((folder / CONFIG).read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(f"{CONFIG} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InvalidAdapter(f"{CONFIG} must be a JSON object, got {type(raw).__name__}")
    if raw.get("peft_type") != "LORA":
        raise InvalidAdapter(f"peft_type must be LORA, got {_said(raw.get('peft_type'))}")
    for key, harmless in _UNSUPPORTED.items():
        if raw.get(key) not in harmless:
            raise InvalidAdapter(f"{key} = {_said(raw[key])} is not supported; train without it")
    for key, value in raw.items():
        # Each variant of LoRA that peft has added is switched on by a setting called so.
        if key.startswith("use_") and key != "use_rslora" and value not in (None, False):
            raise InvalidAdapter(
                f"{_said(key)} = {_said(value)} is not supported; train without it"
            )
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        raise InvalidAdapter(
            f"init_lora_weights = {_said(init)} changes the base; convert the adapter to plain LoRA"
        )
    base = raw.get("base_model_name_or_path")
    return LoraConfig(
        rank=_positive_int(raw.get("r"), "r"),
        alpha=_finite(raw.get("lora_alpha"), "lora_alpha"),
        rslora=bool(raw.get("use_rslora")),
        rank_pattern={
            key: _positive_int(value, f"rank_pattern[{key!r}]")
            for key, value in _pattern(raw, "rank_pattern").items()
        },
        alpha_pattern={
            key: _finite(value, f"alpha_pattern[{key!r}]")
            for key, value in _pattern(raw, "alpha_pattern").items()
        },
        base_model=base if isinstance(base, str) else None,
    )


def write_config(
    config: LoraConfig, folder: Path, *, paths: Sequence[str], base_model: str | None
) -> None:
    """Write the config of an adapter of the modules at `paths`, as peft loads it."""
    raw = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": _plain(config.alpha),
        "use_rslora": config.rslora,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": {key: _plain(value) for key, value in config.alpha_pattern.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": False,
        "modules_to_save": None,
        **_targets(paths),
    }
    text = json.dumps(raw, indent=2, sort_keys=True, allow_nan=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _targets(paths: Sequence[str]) -> dict[str, object]:
    """Return the config's targets that mean exactly `paths`.

    The usual form, layer numbers and the names of what is adapted in each, where it says the same;
    some engines read nothing else.
    """
    places = [_IN_BLOCK.fullmatch(path) for path in paths]
    layers = {int(place["layer"]) for place in places if place}
    names = {place["inner"].rpartition(".")[2] for place in places if place}
    inner = {place["inner"] for place in places if place}
    if all(places) and len(paths) == len(layers) * len(inner) and len(inner) == len(names):
        return {"target_modules": sorted(names), "layers_to_transform": sorted(layers)}
    return {"target_modules": sorted(paths), "layers_to_transform": None}


def _plain(number: float) -> int | float:
    """Return an integral number as an integer, which is how most tools write and read alpha."""
    return int(number) if float(number).is_integer() else number


def _of_pattern(pattern: Mapping[str, T], path: str, default: T) -> T:
    """Return the value of the first key that matches the end of `path`, as PEFT looks it up."""
    for key, value in pattern.items():
        if _compiled(key).match(path):
            return value
    return default


@functools.lru_cache(maxsize=_MAX_PATTERN_KEYS)
def _compiled(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")


def _pattern(raw: Mapping[str, Any], key: str) -> Mapping[str, object]:
    value = raw.get(key) or {}
    if not isinstance(value, dict) or len(value) > _MAX_PATTERN_KEYS:
        raise InvalidAdapter(
            f"{key} must be an object of at most {_MAX_PATTERN_KEYS} members, got {_said(value)}"
        )
    num_ways = 0
    for expression in value:
        # Foreign expressions must not be able to search for years, nor all of them together.
        num_ways += _num_ways(expression)
        if (
            len(expression) > _MAX_PATTERN_CHARS
            or num_ways > _MAX_WAYS
            or _REPEATED_GROUP.search(expression)
        ):
            raise InvalidAdapter(
                f"{key} has an expression that may take too long: {expression[:80]!r}; use few "
                "with at most two repetitions, none of a group, and few groups with alternatives"
            )
        try:
            _compiled(expression)
        except (re.error, OverflowError) as error:
            raise InvalidAdapter(f"{key} has the broken expression {expression!r}") from error
    return value


def _num_ways(expression: str) -> int:
    """Return an upper bound of the ways in which an expression may try to match a path."""
    num_choices = 1 + expression.count("|")
    return int(
        _MAX_PATH ** len(_REPEAT.findall(expression)) * num_choices ** max(expression.count("("), 1)
    )


def _said(value: object) -> str:
    """Return a foreign value for an error: it may be a megabyte long."""
    return repr(value)[:80]


def _positive_int(value: object, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidAdapter(f"{key} must be an integer of at least 1, got {_said(value)}")
    return value


def _finite(value: object, key: str) -> float:
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        number = math.inf
    if isinstance(value, bool) or not abs(number) <= _MAX_FLOAT32:
        raise InvalidAdapter(f"{key} must be a number within float32, got {_said(value)}")
    return number
