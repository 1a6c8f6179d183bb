"""Members of a request in another dialect, read as what they have to be.

Pure. Each error names where in the client's JSON the fault stands. Does not know what the members
mean.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import NoReturn

from strop.proxy.errors import BadRequest


def refuse(
    path: str,
    expected: str,
    value: object,
    advice: str = "",
    detail: Mapping[str, object] | None = None,
) -> NoReturn:
    """Raise BadRequest: at `path` stands `value` where `expected` should.

    What is in `detail` stands beside it in the error object.
    """
    message = f"expected `{path}` to be {expected}, got {_shown(value)}"
    raise BadRequest(f"{message}; {advice}" if advice else message, param=path, detail=detail)


def object_in(value: object, path: str) -> Mapping[str, object]:
    """Return `value`, an object."""
    return value if isinstance(value, dict) else refuse(path, "an object", value)


def list_in(value: object, path: str) -> list[object]:
    """Return `value`, an array; null is an empty one."""
    if value is None:
        return []
    return value if isinstance(value, list) else refuse(path, "an array", value)


def objects_in(value: object, path: str) -> Iterator[tuple[Mapping[str, object], str]]:
    """Yield each object of `value`, an array or null, with its path."""
    for position, one in enumerate(list_in(value, path)):
        here = f"{path}[{position}]"
        yield object_in(one, here), here


def string(holder: Mapping[str, object], name: str, path: str) -> str:
    """Return the string that `holder`, at `path`, calls `name`."""
    value = holder.get(name)
    return value if isinstance(value, str) else refuse(f"{path}.{name}", "a string", value)


def optional_string(holder: Mapping[str, object], name: str, path: str) -> str | None:
    """Return the string that `holder` calls `name`, or None where it is null or missing."""
    return None if holder.get(name) is None else string(holder, name, path)


def name_in(holder: Mapping[str, object], name: str, path: str) -> str:
    """Return the string that `holder` calls `name`, which has to say something."""
    return string(holder, name, path) or refuse(f"{path}.{name}", "a name", "")


def others_in(holder: Mapping[str, object], path: str, known: Collection[str]) -> list[str]:
    """Return the paths of the members of `holder` that say something and are not `known`."""
    return [f"{path}.{name}" for name, value in holder.items() if value and name not in known]


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "an object"
    return "an array" if isinstance(value, list) else ascii(value)[:80]
