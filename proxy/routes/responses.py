"""Responses: JSON, and errors as OpenAI error objects.

Does not know which route answers.
"""

from collections.abc import Mapping

from starlette.responses import Response

from strop.proxy.errors import SOURCE_HEADER, StropError, render
from strop.proxy.wire import body as wire_body

_SOURCE = {SOURCE_HEADER[0].decode(): SOURCE_HEADER[1].decode()}


def json_response(value: object, status: int = 200) -> Response:
    """Return `value` as a JSON response."""
    return Response(wire_body.dumps(value), status, media_type="application/json")


def error_response(
    error: StropError, headers: Mapping[str, str] | None = None, *, body: bytes | None = None
) -> Response:
    """Return the response that says `error`, marked as strop's own; in `body`'s words if it has."""
    further = {503: {"retry-after": "2"}, 401: {"www-authenticate": "Bearer"}}
    return Response(
        render(error) if body is None else body,
        error.status,
        headers={**_SOURCE, **further.get(error.status, {}), **(headers or {})},
        media_type="application/json",
    )
