"""A request as the routes read it: who sent it, its JSON body, its query.

Knows no route, and answers nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from starlette.requests import Request

from strop.proxy.auth import CLI_AGENT, Caller
from strop.proxy.errors import BadRequest
from strop.proxy.intake import read_body
from strop.proxy.parts import Control, Front, Parts
from strop.proxy.wire import body as wire_body

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
# From here on, milliseconds don't fit into the store's integers.
END_OF_SINCE_S = 2**53

T = TypeVar("T", bound=str)


def services(request: Request) -> Parts:
    """Return the running parts of strop, as far as every process has them."""
    found: Parts = request.app.state.services
    return found


def front(request: Request) -> Front:
    """Return the parts that answer clients; only for routes of a process that does."""
    found: Front = request.app.state.services
    return found


def control(request: Request) -> Control:
    """Return the parts that decide; only for routes of the process that does."""
    found: Control = request.app.state.services
    return found


def caller(request: Request) -> Caller:
    """Return who sent a request to `/v1`.

    Raises:
        Unauthorized: client keys are configured, and none of them was sent.
    """
    return services(request).keys.caller(request.scope["headers"])


def actor(request: Request) -> str:
    """Return who asks for what is noted with a name: `cli` for strop's own commands, else `api`."""
    return "cli" if request.headers.get("user-agent") == CLI_AGENT else "api"


async def json_object(request: Request) -> dict[str, object]:
    """Return the JSON object in the body.

    Raises:
        BadRequest: it is none, too long or too late.
        ClientLeft: the client closed the connection before its end.
    """
    limits = services(request).settings.server
    return wire_body.parse(await read_body(request.receive, request.scope["headers"], limits))


class Fields:
    """The members of the JSON object in a request's body; made by `fields`."""

    def __init__(self, found: Mapping[str, object]) -> None:
        self._found = found

    def text(self, name: str) -> str | None:
        """Return a string; None where it is null or did not come.

        Raises:
            BadRequest: it is something else, or empty.
        """
        value = self._found.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            raise BadRequest(f"expected `{name}` to be a string, got {value!r:.100}", param=name)
        return value

    def required_text(self, name: str) -> str:
        """Return a string.

        Raises:
            BadRequest: there is none.
        """
        value = self.text(name)
        if value is None:
            raise BadRequest(f"expected `{name}`, a string", param=name)
        return value

    def integer(self, name: str, most: int) -> int | None:
        """Return an integer from 0 to `most`; None where it is null or did not come.

        Raises:
            BadRequest: it is something else.
        """
        value = self._found.get(name)
        if value is None or (type(value) is int and 0 <= value <= most):
            return value
        raise BadRequest(
            f"expected `{name}` to be an integer from 0 to {most}, got {value!r:.100}", param=name
        )

    def flag(self, name: str) -> bool | None:
        """Return true or false; None where it did not come.

        Raises:
            BadRequest: it is neither.
        """
        value = self._found.get(name)
        if name in self._found and not isinstance(value, bool):
            raise BadRequest(
                f"expected `{name}` to be true or false, got {value!r:.100}", param=name
            )
        return value if isinstance(value, bool) else None


async def fields(request: Request, *allowed: str, may_be_empty: bool = False) -> Fields:
    """Return the members of the JSON object in the body, of which only those `allowed` may stand.

    Args:
        request: the request.
        allowed: their names.
        may_be_empty: whether no body at all is an object without members.

    Raises:
        BadRequest: another member, or no object, too long or too late.
        ClientLeft: the client closed the connection before its end.
    """
    limits = services(request).settings.server
    raw = await read_body(request.receive, request.scope["headers"], limits)
    found = {} if may_be_empty and not raw else wire_body.parse(raw)
    for name in found:
        if name not in allowed:
            raise BadRequest(
                f"unknown field {_shown(name)}; allowed here: {', '.join(allowed) or 'none'}",
                param=name[:100],
            )
    return Fields(found)


class Query:
    """The query parameters of a request.

    Args:
        request: the request.
        allowed: the names that may stand in it, each once.

    Raises:
        BadRequest: another name, or one twice.
    """

    def __init__(self, request: Request, *allowed: str) -> None:
        self._values: dict[str, str] = {}
        for name, value in request.query_params.multi_items():
            if name not in allowed:
                raise BadRequest(
                    f"unknown query parameter {_shown(name)}; allowed here:"
                    f" {', '.join(allowed) or 'none'}",
                    param=name[:100],
                )
            if name in self._values:
                raise BadRequest(f"expected `{name}` once in the query, got it twice", param=name)
            self._values[name] = value

    def text(self, name: str) -> str | None:
        """Return a parameter as it came; None where it did not come."""
        return self._values.get(name)

    def one_of(self, name: str, allowed: Sequence[T]) -> T | None:
        """Return a parameter that is one of `allowed`; None where it did not come.

        Raises:
            BadRequest: it is something else.
        """
        value = self._values.get(name)
        if value is None:
            return None
        for one in allowed:
            if value == one:
                return one
        raise BadRequest(
            f"expected `{name}` to be one of {', '.join(allowed)}; got {_shown(value)}", param=name
        )

    def since_ms(self) -> int | None:
        """Return `since`, given in seconds since the epoch, in milliseconds.

        Raises:
            BadRequest: it is no such number.
        """
        value = self._values.get("since")
        if value is None:
            return None
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < END_OF_SINCE_S:
            raise BadRequest(
                f"expected `since` in seconds since 1970; got {_shown(value)}", param="since"
            )
        return int(1000 * seconds)

    def limit(self) -> int:
        """Return `limit`, the length of a page.

        Raises:
            BadRequest: it is no number from 1 to 100.
        """
        value = self._values.get("limit")
        if value is None:
            return DEFAULT_LIMIT
        is_number = value.isascii() and value.isdigit() and len(value) <= 3
        if not is_number or not 1 <= int(value) <= MAX_LIMIT:
            raise BadRequest(
                f"expected `limit` to be a number from 1 to {MAX_LIMIT}; got {_shown(value)}",
                param="limit",
            )
        return int(value)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "...")
