"""JSON bodies: bytes to values and back, keeping whatever JSON can hold.

Does not know what the bodies mean.
"""

import json
import math

import msgspec
import orjson

from strop.proxy.errors import BadRequest

# orjson would make floats of integers beyond 64 bits.
_decode = msgspec.json.Decoder().decode


def parse(body: bytes) -> dict[str, object]:
    """Return the JSON object in `body`.

    msgspec refuses what some clients send, lone surrogates for one; the standard library's parser
    then decides.

    Raises:
        BadRequest: the body is not JSON, or not an object.
    """
    value = loads(body)
    if not isinstance(value, dict):
        raise BadRequest(
            f"expected a JSON object as the request body, got {_kind(value)}; send"
            ' {"model": ..., ...} with Content-Type: application/json'
        )
    return value


def loads(body: bytes) -> object:
    """Return the JSON value in `body`; see `parse`."""
    try:
        return _decode(body)
    except (ValueError, RecursionError):
        try:
            return json.loads(body, parse_constant=_refuse, parse_float=_finite)
        except RecursionError:
            reason = "it is nested too deeply"
        except ValueError as error:
            reason = str(error)
    raise BadRequest(f"the request body is not JSON: {reason}; got {len(body)} bytes")


def dumps(value: object) -> bytes:
    """Return `value`, as `loads` gave it, as JSON.

    Raises:
        BadRequest: it is nested too deeply.
    """
    try:
        # A copy: orjson's own bytes keep all the room that it wrote in, up to eight times as much.
        return b"".join((orjson.dumps(value), b""))
    except TypeError:
        try:
            return json.dumps(value, separators=(",", ":")).encode()
        except RecursionError:
            raise BadRequest("the request body is nested too deeply; flatten it") from None


def is_text(written: bytes) -> bool:
    """Return whether what `dumps` wrote holds no half of a surrogate pair, which is no character.

    JSON allows it, and many readers don't.
    """
    if b"\\ud" not in written:
        return True
    try:
        orjson.loads(written)
    except orjson.JSONDecodeError:
        return False
    return True


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _finite(digits: str) -> float:
    """Return a number that can be written again: orjson writes an infinite one as null."""
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits} is out of range")
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {list: "an array", str: "a string", bool: "a boolean", int: "a number"}
    return kinds.get(type(value), "a number")
