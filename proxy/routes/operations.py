"""What can be done at each path, as OpenAPI's path items.

Plain values. Does not know the schemas' insides; what is relayed refers to OpenAI's own documents.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from strop.proxy.routes import adapter_operations
from strop.proxy.routes.completions import STATES, TRUTHS
from strop.proxy.routes.feedback import DIALECTS, FEEDBACK_STATES, FORMATS, SIGNS
from strop.proxy.routes.operation_terms import (
    ADMIN,
    BODY,
    CLIENT,
    answer,
    header,
    json_content,
    operation,
    paging,
    path,
    query,
    refusal,
    refusals,
    since,
)
from strop.proxy.routes.schema_terms import Schema, string

_SESSION = string("A label for this conversation. Without one, strop finds it by the history.")
_HEADERS: Final = [
    ("X-Strop-Session", _SESSION),
    (
        "X-Strop-Feedback",
        string(
            'A rating for an earlier answer, as in `bad; comment="too long"`; or `undo`, to take'
            " back that, and no other answer's. Counts on requests for completions only."
        ),
    ),
    (
        "X-Strop-Feedback-For",
        string(
            "The completion that it is about; else the reply that this request's history ends in."
            " Of several choices, it is the one that the history ends in."
        ),
    ),
    ("X-Request-Id", string("Recorded with the completion.")),
]
_ANSWER_HEADERS: Final = {
    "X-Strop-Completion-Id": "The completion's id: what to rate it by.",
    "X-Strop-Adapter": "What served it: `base`, or an adapter version.",
    "X-Strop-Overhead-Ms": "Time that strop added before the first byte.",
    "X-Strop-Feedback-Status": "What became of the X-Strop-Feedback header, where one came.",
    "X-Accel-Buffering": "`no` on a stream, so that nginx passes each event on at once.",
}
_LEFT_OUT: Final = {
    "X-Strop-Left-Out": "What of the request no chat completion can carry, as paths in its JSON.",
}


RELAYED: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
)
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
                    "200": answer("They are.", "Readiness"),
                    "503": answer("They are not; `reasons` says why.", "Readiness"),
                    **refusals(403),
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
                    },
                    **refusals(403),
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
                        "content": json_content({"type": "object"}),
                    },
                    **refusals(403),
                },
            }
        },
        "/v1/models": {
            "get": operation("The model names that requests may use.", 200, "ModelList", (401, 503))
        },
        "/v1/models/{name}": {
            "parameters": [path("name", "A model name; it may hold slashes.")],
            "get": operation("One of them.", 200, "Model", (401, 404, 503)),
        },
        "/v1/feedback": {
            "post": {
                **operation(
                    "Rate an answer.", 201, "Feedback", (*BODY, 401, 404, 409, 503), "NewFeedback"
                ),
                "description": "Answered once the rating is durable. A rating of the same choice by"
                " the same rater supersedes the one before.",
                "parameters": [header("Idempotency-Key", string("Makes a retry safe."))],
                "responses": {
                    "200": answer("It came before, with the same idempotency id.", "Feedback"),
                    "201": answer("It stands.", "Feedback"),
                    "202": answer("Pending: its completion is still in flight.", "Feedback"),
                    **refusals(*BODY, 401, 403, 404, 409, 503),
                },
            },
            "get": {
                **operation("Ratings, newest first.", 200, "FeedbackList", (400, 401, 503)),
                "parameters": [
                    *paging(),
                    query("completion_id", string("As a rating names it.")),
                    query("session", string()),
                    query("rater", string()),
                    query("state", string(enum=list(FEEDBACK_STATES))),
                    query("sign", string("Above or below 0.", enum=list(SIGNS))),
                    since(),
                ],
            },
        },
        "/v1/feedback/export": {
            "get": {
                "summary": "Rated completions as training data.",
                "description": "JSON Lines, oldest first. kto, dpo and sft are TRL's formats; raw"
                " has all that is stored, and turns each rated answer with all those that its"
                " ratings credit. `since` goes by when a rating came: one that is revised,"
                " or joins its answer late, keeps that time, so only an export without it is"
                " complete.",
                "security": CLIENT,
                "parameters": [
                    {**query("format", string(enum=list(FORMATS))), "required": True},
                    query("dialect", string(enum=list(DIALECTS), default="chat")),
                    query(
                        "key_id",
                        string(
                            "Of one client key; with the admin key alone, which else gets those of"
                            " all keys, also where they name a session alike."
                        ),
                    ),
                    query("session", string()),
                    query("rater", string()),
                    since(),
                ],
                "responses": {
                    "200": {
                        "description": "One example a line.",
                        "content": {"application/jsonl": {"schema": string()}},
                    },
                    **refusals(400, 401, 403, 503),
                },
            }
        },
        "/v1/feedback/{id}": {
            "parameters": [path("id", "The feedback.")],
            "get": operation("One rating.", 200, "Feedback", (400, 401, 404, 503)),
            "put": operation(
                "Revise it: all of what it says is replaced.",
                200,
                "Feedback",
                (*BODY, 401, 404, 409, 503),
                "Revision",
            ),
            "delete": operation("Withdraw it.", 200, "Feedback", (400, 401, 404, 503)),
        },
        "/admin/completions": {
            "get": {
                **operation(
                    "Recorded completions, newest first.",
                    200,
                    "CompletionList",
                    (400, 401, 503),
                    security=ADMIN,
                ),
                "parameters": [
                    *paging(),
                    query("key_id", string()),
                    query("session", string()),
                    query("state", string(enum=list(STATES))),
                    query("model", string()),
                    query("rated", string(enum=list(TRUTHS))),
                    since(),
                ],
            }
        },
        "/admin/completions/{id}": {
            "parameters": [path("id", "The completion.")],
            "get": operation(
                "One completion, with its snapshot and its ratings.",
                200,
                "Completion",
                (400, 401, 404, 503),
                security=ADMIN,
            ),
        },
        **adapter_operations.paths(),
        "/v1/chat/completions": {
            "post": _relayed("Answer a chat; recorded.", "ChatRequest", "ChatCompletion")
        },
        "/v1/completions": {
            "post": _relayed("Complete a text; recorded.", "TextRequest", "TextCompletion")
        },
        "/v1/responses": {
            "post": _relayed(
                "Answer in OpenAI's Responses API, by a chat completion; recorded as one.",
                "ResponsesRequest",
                "Response",
                _LEFT_OUT,
            )
        },
        "/v1/messages": {
            "post": _refused_as_messages(
                _relayed(
                    "Answer in Anthropic's Messages API, by a chat completion; recorded as one.",
                    "MessagesRequest",
                    "Message",
                    _LEFT_OUT,
                )
            )
        },
        "/v1/messages/count_tokens": {
            "post": _refused_as_messages(
                operation(
                    "Count the tokens of a prompt, where the engine can; not recorded.",
                    200,
                    "TokenCount",
                    (*BODY, 401, 404, 502, 503),
                    "CountRequest",
                ),
                # The Host is checked before it is known what answers.
                but="403",
            )
        },
        "/v1/embeddings": {
            "post": operation(
                "Embed texts; passed through.",
                200,
                "Embeddings",
                # Not 415: what is compressed, the engine may understand.
                (400, 401, 404, 408, 413, 502, 503, 504),
                "EmbeddingsRequest",
            )
        },
    }


def _relayed(
    summary: str, takes: str, gives: str, further_headers: Mapping[str, str] = MappingProxyType({})
) -> Schema:
    errors = (*BODY, 401, 404, 502, 503, 504)
    found = operation(summary, 200, gives, errors, takes)
    found["parameters"] = [header(name, schema) for name, schema in _HEADERS]
    reply = found["responses"]["200"]
    reply["headers"] = {
        name: {"description": what, "schema": string()}
        for name, what in {**_ANSWER_HEADERS, **further_headers}.items()
    }
    reply["content"]["text/event-stream"] = {"schema": string("Where `stream` is true.")}
    return found


def _refused_as_messages(described: Schema, but: str = "") -> Schema:
    """Return an operation whose errors are as Anthropic's Messages API has them, `but` for one."""
    errors = [status for status, one in described["responses"].items() if "$ref" in one]
    described["responses"] |= {
        status: refusal(int(status), "MessagesError") for status in errors if status != but
    }
    return described


def _get(summary: str, schema: str) -> Schema:
    return operation(summary, 200, schema, (), security=[])
