"""A probe as JSON, as the manifest holds it.

Judges nothing; `strop.adapters.probe` says what the values mean.
"""

import math
from collections.abc import Mapping
from typing import Any

from strop.adapters.probe_values import Item, Probe

_IDS = ("prompt_ids", "ids")
_PER_TOKEN = ("margins", "candidate", "parent", "base")


class InvalidProbe(ValueError):
    """The JSON is not a probe's."""


def to_json(probe: Probe) -> dict[str, Any]:
    """Return the probe as an object that JSON can hold, all floats exact."""
    items = [
        {
            "prompt_ids": list(item.prompt_ids),
            "ids": list(item.ids),
            "margins": list(item.margins),
            "candidate": list(item.candidate),
            "parent": None if item.parent is None else list(item.parent),
            "base": list(item.base),
        }
        for item in probe.items
    ]
    return {"dtype": probe.dtype, "items": items}


def from_json(raw: object) -> Probe:
    """Return the probe that `to_json` gave `raw` for.

    Raises:
        InvalidProbe: a member is missing, unknown or of the wrong kind, or lengths differ.
    """
    if not isinstance(raw, Mapping) or raw.keys() != {"dtype", "items"}:
        raise InvalidProbe("a probe must be an object with the members dtype and items")
    dtype, items = raw["dtype"], raw["items"]
    if not isinstance(dtype, str) or not isinstance(items, list):
        raise InvalidProbe("a probe's dtype must be a string and its items a list")
    return Probe(tuple(_item(place, item) for place, item in enumerate(items)), dtype)


def _item(place: int, raw: object) -> Item:
    where = f"item {place} of the probe"
    if not isinstance(raw, Mapping) or raw.keys() != {*_IDS, *_PER_TOKEN}:
        raise InvalidProbe(f"{where} must have the members {', '.join((*_IDS, *_PER_TOKEN))}")
    prompt_ids, ids = (_ids(where, key, raw[key]) for key in _IDS)
    if not prompt_ids:
        raise InvalidProbe(f"{where} has no prompt")
    numbers = {
        key: _numbers(where, key, raw[key], len(ids)) for key in _PER_TOKEN if key != "parent"
    }
    parent = raw["parent"]
    return Item(
        prompt_ids,
        ids,
        numbers["margins"],
        numbers["candidate"],
        None if parent is None else _numbers(where, "parent", parent, len(ids)),
        numbers["base"],
    )


def _ids(where: str, key: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(id_) is int and id_ >= 0 for id_ in value):
        raise InvalidProbe(f"{where}: {key} must be a list of token ids")
    return tuple(value)


def _numbers(where: str, key: str, value: object, length: int) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != length:
        raise InvalidProbe(f"{where}: {key} must be a list of {length} numbers, one for each id")
    if not all(type(number) in (int, float) and math.isfinite(number) for number in value):
        raise InvalidProbe(f"{where}: {key} must be finite numbers")
    return tuple(map(float, value))
