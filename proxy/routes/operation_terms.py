"""The makers of OpenAPI operations: what they take, what they give, how they refuse.

Plain values. Knows no path.
"""

from typing import Any, Final

from strop.proxy.routes.requests import DEFAULT_LIMIT, END_OF_SINCE_S, MAX_LIMIT
from strop.proxy.routes.schema_terms import Schema, ref, string

CLIENT: Final[list[Schema]] = [{"clientKey": []}]
"""The security of what clients may do."""

ADMIN: Final[list[Schema]] = [{"adminKey": []}]
"""The security of what only the owner may do."""

BODY: Final = (400, 408, 413, 415)
"""The statuses with which a body is refused."""

ERRORS: Final = {
    400: "The request can't be understood; `param` names what is wrong in it.",
    401: "The key is missing or wrong.",
    403: "The Host or Origin is another server's.",
    404: "There is no such thing, or it belongs to another key.",
    408: "The body came too slowly.",
    409: "It contradicts what is stored; `code` says how.",
    413: "The body is too long.",
    415: "The body is compressed.",
    502: "The engine broke the exchange.",
    503: "Not now: the engine or the store is not ready, or strop is stopping.",
    504: "The engine was too slow.",
}
"""What each status says that is an error."""


def operation(
    summary: str,
    status: int,
    schema: str,
    errors: tuple[int, ...],
    takes: str | None = None,
    security: list[Schema] = CLIENT,
) -> Schema:
    """Return an operation that answers with `schema`, or refuses with one of `errors`."""
    found: Schema = {"summary": summary, "security": security}
    if takes is not None:
        found["requestBody"] = {"required": True, "content": json_content(ref(takes))}
    # The Host is checked on every path.
    found["responses"] = {str(status): answer(summary, schema), **refusals(403, *errors)}
    return found


def answer(description: str, schema: str) -> Schema:
    """Return a response with `schema` as its JSON."""
    return {"description": description, "content": json_content(ref(schema))}


def refusals(*statuses: int) -> Schema:
    """Return the error responses of `statuses`."""
    return {
        str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)
    }


def refusal(status: int, schema: str) -> Schema:
    """Return the error response of `status`."""
    headers: Schema = {
        "X-Strop-Error-Source": {
            "description": "`proxy` on strop's own errors, else absent.",
            "schema": {"const": "proxy"},
        }
    }
    if status == 503:
        headers["Retry-After"] = {
            "description": "Seconds after which it may be otherwise, on strop's own errors.",
            "schema": {"type": "integer"},
        }
    return {**answer(ERRORS[status], schema), "headers": headers}


def json_content(schema: Schema) -> Schema:
    """Return JSON content."""
    return {"application/json": {"schema": schema}}


def _parameter(place: str, name: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": place, "schema": schema}


def query(name: str, schema: Schema) -> Schema:
    """Return a query parameter."""
    return _parameter("query", name, schema)


def header(name: str, schema: Schema) -> Schema:
    """Return a header parameter."""
    return _parameter("header", name, schema)


def path(name: str, description: str) -> Schema:
    """Return a path parameter."""
    return {**_parameter("path", name, string(description)), "required": True}


def since() -> Schema:
    """Return the parameter `since`."""
    bounds = {"minimum": 0, "exclusiveMaximum": END_OF_SINCE_S}
    return query("since", {"type": "number", **bounds, "description": "Seconds since 1970."})


def paging() -> list[Schema]:
    """Return the parameters of a list's pages."""
    limits = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT}
    return [
        query("limit", limits),
        query("after", string("The last id of the page before.")),
    ]
