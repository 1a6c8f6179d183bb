"""What can be done at each path, as OpenAPI's path items.

Plain values. Does not know the schemas' insides; what is relayed refers to OpenAI's own documents.
"""

from typing import Any, Final

from strop.proxy.routes.completions import STATES, TRUTHS
from strop.proxy.routes.feedback import DIALECTS, FEEDBACK_STATES, FORMATS, SIGNS
from strop.proxy.routes.requests import DEFAULT_LIMIT, MAX_LIMIT
from strop.proxy.routes.schemas import Schema, ref, string

_KEY: Final[list[Schema]] = [{"clientKey": []}]
_ADMIN: Final[list[Schema]] = [{"adminKey": []}]

_BODY: Final = (400, 408, 413)

_SESSION = string("A label for this conversation. Without one, strop finds it by the history.")
_HEADERS: Final = [
    ("X-Strop-Session", _SESSION),
    (
        "X-Strop-Feedback",
        string('A rating for an earlier answer, or `undo`, as in `bad; comment="too long"`.'),
    ),
    (
        "X-Strop-Feedback-For",
        string("The completion that it rates; else the reply that this request's history ends in."),
    ),
    ("X-Request-Id", string("Recorded with the completion.")),
]
_ANSWER_HEADERS: Final = {
    "X-Strop-Completion-Id": "The completion's id: what to rate it by.",
    "X-Strop-Adapter": "What served it: `base`, or an adapter version.",
    "X-Strop-Overhead-Ms": "Time that strop added before the first byte.",
    "X-Strop-Feedback-Status": "What became of the X-Strop-Feedback header, where one came.",
}


RELAYED: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
"""What the application relays to the engine itself; POST only."""


def paths() -> Schema:
    """Return the path items."""
    return {
        "/": {"get": _get("What this is.", "About")},
        "/livez": {"get": _get("Whether the process answers.", "Status")},
        "/readyz": {
            "get": {
                **_get("Whether completions are served.", "Readiness"),
                "responses": {
                    "200": _answer("They are.", "Readiness"),
                    "503": _answer("They are not; `reasons` says why.", "Readiness"),
                },
            }
        },
        "/health": {"get": _get("How the engine, the model and the store are.", "Health")},
        "/metrics": {
            "get": {
                "summary": "Counters for Prometheus.",
                "security": [],
                "responses": {
                    "200": {
                        "description": "Prometheus' text format.",
                        "content": {"text/plain": {"schema": string()}},
                    }
                },
            }
        },
        "/openapi.json": {
            "get": {
                "summary": "This document.",
                "security": [],
                "responses": {
                    "200": {
                        "description": "OpenAPI 3.1.",
                        "content": _json({"type": "object"}),
                    }
                },
            }
        },
        "/v1/models": {
            "get": _operation(
                "The model names that requests may use.", 200, "ModelList", (401, 503)
            )
        },
        "/v1/models/{name}": {
            "parameters": [_path("name", "A model name; it may hold slashes.")],
            "get": _operation("One of them.", 200, "Model", (401, 404, 503)),
        },
        "/v1/feedback": {
            "post": {
                **_operation(
                    "Rate an answer.", 201, "Feedback", (*_BODY, 401, 404, 409, 503), "NewFeedback"
                ),
                "description": "Answered once the rating is durable. A rating of the same choice by"
                " the same rater supersedes the one before.",
                "parameters": [_header("Idempotency-Key", string("Makes a retry safe."))],
                "responses": {
                    "200": _answer("It came before, with the same idempotency id.", "Feedback"),
                    "201": _answer("It stands.", "Feedback"),
                    "202": _answer("Pending: its completion is still in flight.", "Feedback"),
                    **_refusals(*_BODY, 401, 403, 404, 409, 503),
                },
            },
            "get": {
                **_operation("Ratings, newest first.", 200, "FeedbackList", (400, 401, 503)),
                "parameters": [
                    *_paging(),
                    _query("completion_id", string()),
                    _query("session", string()),
                    _query("rater", string()),
                    _query("state", string(enum=list(FEEDBACK_STATES))),
                    _query("sign", string("Above or below 0.", enum=list(SIGNS))),
                    _since(),
                ],
            },
        },
        "/v1/feedback/export": {
            "get": {
                "summary": "Rated completions as training data.",
                "description": "JSON Lines, oldest first. kto, dpo and sft are TRL's formats; raw"
                " has all that is stored.",
                "security": _KEY,
                "parameters": [
                    {**_query("format", string(enum=list(FORMATS))), "required": True},
                    _query("dialect", string(enum=list(DIALECTS), default="chat")),
                    _query("session", string()),
                    _query("rater", string()),
                    _since(),
                ],
                "responses": {
                    "200": {
                        "description": "One example a line.",
                        "content": {"application/jsonl": {"schema": string()}},
                    },
                    **_refusals(400, 401, 403, 503),
                },
            }
        },
        "/v1/feedback/{id}": {
            "parameters": [_path("id", "The feedback.")],
            "get": _operation("One rating.", 200, "Feedback", (400, 401, 404, 503)),
            "put": _operation(
                "Revise it: all of what it says is replaced.",
                200,
                "Feedback",
                (*_BODY, 401, 404, 409, 503),
                "Revision",
            ),
            "delete": _operation("Withdraw it.", 200, "Feedback", (400, 401, 404, 503)),
        },
        "/admin/completions": {
            "get": {
                **_operation(
                    "Recorded completions, newest first.",
                    200,
                    "CompletionList",
                    (400, 401, 503),
                    security=_ADMIN,
                ),
                "parameters": [
                    *_paging(),
                    _query("key_id", string()),
                    _query("session", string()),
                    _query("state", string(enum=list(STATES))),
                    _query("model", string()),
                    _query("rated", string(enum=list(TRUTHS))),
                    _since(),
                ],
            }
        },
        "/admin/completions/{id}": {
            "parameters": [_path("id", "The completion.")],
            "get": _operation(
                "One completion, with its snapshot and its ratings.",
                200,
                "Completion",
                (400, 401, 404, 503),
                security=_ADMIN,
            ),
        },
        "/v1/chat/completions": {
            "post": _relayed("Answer a chat; recorded.", "ChatRequest", "ChatCompletion")
        },
        "/v1/completions": {
            "post": _relayed("Complete a text; recorded.", "TextRequest", "TextCompletion")
        },
        "/v1/embeddings": {
            "post": _operation(
                "Embed texts; passed through.",
                200,
                "Embeddings",
                (*_BODY, 401, 502, 503, 504),
                "EmbeddingsRequest",
            )
        },
    }


def _operation(
    summary: str,
    status: int,
    schema: str,
    errors: tuple[int, ...],
    takes: str | None = None,
    security: list[Schema] = _KEY,
) -> Schema:
    found: Schema = {"summary": summary, "security": security}
    if takes is not None:
        found["requestBody"] = {"required": True, "content": _json(ref(takes))}
    # The Host is checked on every path.
    found["responses"] = {str(status): _answer(summary, schema), **_refusals(403, *errors)}
    return found


def _relayed(summary: str, takes: str, gives: str) -> Schema:
    errors = (*_BODY, 401, 404, 502, 503, 504)
    operation = _operation(summary, 200, gives, errors, takes)
    operation["parameters"] = [_header(name, schema) for name, schema in _HEADERS]
    answer = operation["responses"]["200"]
    answer["headers"] = {
        name: {"description": what, "schema": string()} for name, what in _ANSWER_HEADERS.items()
    }
    answer["content"]["text/event-stream"] = {"schema": string("Where `stream` is true.")}
    return operation


def _get(summary: str, schema: str) -> Schema:
    return _operation(summary, 200, schema, (), security=[])


def _answer(description: str, schema: str) -> Schema:
    return {"description": description, "content": _json(ref(schema))}


def _refusals(*statuses: int) -> Schema:
    return {
        str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)
    }


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _parameter(place: str, name: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": place, "schema": schema}


def _query(name: str, schema: Schema) -> Schema:
    return _parameter("query", name, schema)


def _header(name: str, schema: Schema) -> Schema:
    return _parameter("header", name, schema)


def _path(name: str, description: str) -> Schema:
    return {**_parameter("path", name, string(description)), "required": True}


def _since() -> Schema:
    return _query("since", {"type": "number", "minimum": 0, "description": "Seconds since 1970."})


def _paging() -> list[Schema]:
    limits = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT}
    return [
        _query("limit", limits),
        _query("after", string("The last id of the page before.")),
    ]
