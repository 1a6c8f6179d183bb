"""Responses: JSON, and errors as OpenAI error objects.

Does not know which route answers.
"""

from collections.abc import Mapping

from starlette.responses import Response

from strop.proxy.errors import StropError, head_of, render
from strop.proxy.wire import body as wire_body


def json_response(value: object, status: int = 200) -> Response:
    """Return `value` as a JSON response."""
    return Response(wire_body.dumps(value), status, media_type="application/json")


def error_response(
    error: StropError, headers: Mapping[str, str] | None = None, *, body: bytes | None = None
) -> Response:
    """Return the response that says `error`, marked as strop's own; in `body`'s words if it has."""
    body = render(error) if body is None else body
    head = {name.decode(): value.decode() for name, value in head_of(error, body)}
    return Response(body, error.status, headers={**head, **(headers or {})})
