"""The members of a JSON body, read with their types and ranges.

Knows no request: which members there are is for `protocol`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from strop.proxy.embedded.errors import BadRequest


class Fields:
    """The members of a JSON body; null counts as absent.

    Args:
        body: the parsed body.

    Raises:
        BadRequest: from every method, naming the field.
    """

    def __init__(self, body: object) -> None:
        if not isinstance(body, dict):
            raise BadRequest(f"expected a JSON object as the body, got {type(body).__name__}")
        self._body: Mapping[str, Any] = {k: v for k, v in body.items() if v is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._body

    def get(self, name: str) -> Any:
        """Return a member as it came, None if absent."""
        return self._body.get(name)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a boolean."""
        value = self._body.get(name, default)
        if not isinstance(value, bool):
            raise wrong(name, "a boolean", value)
        return value

    def string(self, name: str) -> str:
        """Return a string that must be there."""
        value = self._body.get(name)
        if not isinstance(value, str):
            raise wrong(name, "a string", value)
        return value

    def integer(self, name: str, default: int | None = None, *, low: int, high: int) -> int | None:
        """Return an integer from `low` to `high`."""
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise wrong(name, f"an integer from {low} to {high}", value)
        return value

    def number(
        self, name: str, default: float, valid: Callable[[float], bool], expected: str
    ) -> float:
        """Return a finite number that `valid` accepts."""
        value = self._body.get(name, default)
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not math.isfinite(value)
            or not valid(value)
        ):
            raise wrong(name, expected, value)
        return float(value)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """Return an object, empty if absent."""
        value = self._body.get(name, {})
        if not isinstance(value, dict):
            raise wrong(name, "an object", value)
        return value

    def objects(self, name: str) -> tuple[Mapping[str, Any], ...]:
        """Return a list of objects, empty if absent."""
        value = self._body.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise wrong(name, "a list of objects", value)
        return tuple(value)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Return a list of token ids, empty if absent."""
        return token_ids(self._body.get(name, []), name)


def token_ids(value: object, name: str) -> tuple[int, ...]:
    """Return the value of the field `name` as token ids."""
    if not isinstance(value, list) or not all(
        isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in value
    ):
        raise wrong(name, "a list of token ids", value)
    return tuple(value)


def wrong(name: str, expected: str, value: object) -> BadRequest:
    """Return the error for a field that has another value than expected."""
    shown = "nothing" if value is None else repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return BadRequest(f"`{name}` must be {expected}, got {shown}", param=name)
