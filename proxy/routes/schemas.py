"""The JSON schemas of what strop's own endpoints take and give, for the OpenAPI document.

Plain values (JSON Schema 2020-12). Does not know the paths.
"""

from typing import Any, Final, get_args

from strop.proxy import ratings
from strop.proxy.store.records import Dialect, FeedbackState, ParentBy, Scope, State

Schema = dict[str, Any]

_OPENAI: Final = "https://platform.openai.com/docs/api-reference/"


def string(description: str = "", **more: Any) -> Schema:
    """Return the schema of a string."""
    return {"type": "string", **({"description": description} if description else {}), **more}


def ref(name: str) -> Schema:
    """Return a reference to one of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def _number(description: str = "", **more: Any) -> Schema:
    return {**string(description, **more), "type": "number"}


def _integer(description: str = "", **more: Any) -> Schema:
    return {**string(description, **more), "type": "integer"}


def _boolean(description: str = "") -> Schema:
    return {**string(description), "type": "boolean"}


def _array(items: Schema, description: str = "") -> Schema:
    return {**string(description), "type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


def _object(properties: Schema, description: str = "", optional: tuple[str, ...] = ()) -> Schema:
    return {
        **string(description),
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _enum(union: Any, description: str = "") -> Schema:
    return string(description, enum=list(get_args(union)))


def _list(name: str) -> Schema:
    return _object(
        {
            "object": {"const": "list"},
            "data": _array(ref(name)),
            "has_more": _boolean("Whether older ones follow: ask again with `after`."),
        },
        "Newest first.",
    )


def _relayed(path: str, *required: str) -> Schema:
    return {
        "type": "object",
        "description": "As OpenAI has it; goes to the engine.",
        "required": list(required),
        "externalDocs": {"url": _OPENAI + path},
    }


_RATING = {
    "description": "Stored as one number in [-1, 1]; stars 1 to 5 spread evenly over it.",
    "oneOf": [
        string(enum=["good", "bad", "up", "down", "true", "false"]),
        string('A number from -1 to 1 as text, as in "0.5".', pattern=r"^\s*[+-]?[0-9.]+\s*$"),
        _boolean(),
        _number(minimum=-1, maximum=1),
        _object({"stars": _number(minimum=1, maximum=5)}),
    ],
}
_CREATED = _integer("Seconds since 1970.")
_COMMENT = _or_null(string("Why.", maxLength=ratings.MAX_COMMENT_CHARS))
_CORRECTION = _or_null(
    string("The answer that should have been given.", maxLength=ratings.MAX_CORRECTION_CHARS)
)
_TAGS = _array(string(maxLength=ratings.MAX_TAG_CHARS), f"At most {ratings.MAX_TAGS}.")
_REVISION = {
    "rating": ref("Rating"),
    "comment": _COMMENT,
    "correction": _CORRECTION,
    "tags": _or_null(_TAGS),
}
_COMPLETION = {
    "id": string("X-Strop-Completion-Id of the answer."),
    "object": {"const": "completion"},
    "created": _CREATED,
    "key_id": string("Of the client key; `local` where none are configured."),
    "session": string("The conversation."),
    "turn": string("The completion that began the turn."),
    "parent": _or_null(string("The completion whose answer this request's history ends with.")),
    "dialect": _enum(Dialect),
    "engine": string(),
    "model": string("As the client asked for it."),
    "version": string("What served it: `base` or an adapter version."),
    "state": _enum(State, "How it ended."),
    "delivered": _boolean("Whether the client was still there."),
    "stream": _boolean(),
    "status": _or_null(_integer("The engine's HTTP status.")),
    "prompt_tokens": _or_null(_integer()),
    "completion_tokens": _or_null(_integer()),
    "total_ms": _number(),
}
_ANYTHING: Schema = {}

SCHEMAS: Final[dict[str, Schema]] = {
    "Error": _object(
        {
            "error": {
                **_object(
                    {
                        "message": string("What was expected, what came, what to do."),
                        "type": string(),
                        "param": _or_null(string("The field or parameter at fault.")),
                        "code": string(),
                    }
                ),
                "additionalProperties": True,
            }
        },
        "An OpenAI error object.",
    ),
    "Rating": _RATING,
    "NewFeedback": _object(
        {
            "completion_id": string(
                "X-Strop-Completion-Id of an answer, or its `id` where that names only one.",
                maxLength=ratings.MAX_ID_CHARS,
            ),
            "choice": _or_null(
                _integer("Which answer.", minimum=0, maximum=ratings.MAX_CHOICE, default=0)
            ),
            **_REVISION,
            "rater": _or_null(string("Who rates.", maxLength=ratings.MAX_RATER_CHARS)),
            "scope": {
                "type": ["string", "null"],
                "description": "This completion, or the whole turn it belongs to.",
                "enum": [*get_args(Scope), None],
                "default": "completion",
            },
            "id": _or_null(
                string(
                    "Makes a retry safe; the same as the Idempotency-Key header.",
                    maxLength=ratings.MAX_ID_CHARS,
                )
            ),
        },
        optional=("choice", "comment", "correction", "tags", "rater", "scope", "id"),
    ),
    "Revision": _object(
        _REVISION,
        "All of what the feedback says from now on; what is left out is taken away.",
        optional=("comment", "correction", "tags"),
    ),
    "Feedback": _object(
        {
            "id": string(),
            "object": {"const": "feedback"},
            "created": _CREATED,
            "completion_id": string(),
            "choice": _integer(),
            "rating": _number(minimum=-1, maximum=1),
            "original": {"description": "The rating as it was given."},
            "comment": _COMMENT,
            "correction": _CORRECTION,
            "tags": _TAGS,
            "rater": string(),
            "source": string("By which way it came.", enum=["api", "header", "inline", "cli"]),
            "scope": _enum(Scope),
            "state": _enum(FeedbackState, "Only `standing` ones count."),
            "revision": _integer("From 1; a PUT makes a new one."),
            "session": _or_null(string("Null while pending.")),
            "note": _or_null(string("Why strop itself withdrew it.")),
        }
    ),
    "FeedbackList": _list("Feedback"),
    "CompletionSummary": _object(
        {**_COMPLETION, "num_choices": _integer(), "num_feedback": _integer("Standing ones.")}
    ),
    "CompletionList": _list("CompletionSummary"),
    "Completion": _object(
        {
            **_COMPLETION,
            "parent_choice": _or_null(_integer()),
            "parent_by": {
                "type": ["string", "null"],
                "description": "How the parent was found.",
                "enum": [*get_args(ParentBy), None],
            },
            "served": string("The version's name in the engine."),
            "error": _or_null(string()),
            "ttft_ms": _or_null(_number("Time to the first byte.")),
            "overhead_ms": _number("Time that strop added."),
            "upstream_id": _or_null(string("The answer's own id.")),
            "request_id": _or_null(string("The client's X-Request-Id.")),
            "request": {"description": "The body that the client sent."},
            "choices": _array(
                _object(
                    {
                        "index": _integer(),
                        "message": _ANYTHING,
                        "finish_reason": _or_null(string()),
                    }
                )
            ),
            "snapshot": ref("Snapshot"),
            "feedback": _array(ref("Feedback")),
        }
    ),
    "Snapshot": _object(
        {
            "sampling": {"type": "object", "description": "The parameters that were asked for."},
            "prompt_ids": _or_null(_array(_integer())),
            "choices": _array(
                _object(
                    {
                        "index": _integer(),
                        "token_ids": _or_null(_array(_integer(), "Null where none were given.")),
                        "logprobs": _or_null(
                            _array(_or_null(_number()), "Nats, one per sampled token.")
                        ),
                        "logprobs_source": _or_null(string()),
                        "logprobs_kind": _or_null(string("`raw` at T = 1, or `processed`.")),
                    }
                )
            ),
        },
        "What the trainer needs of an answer.",
    ),
    "Model": _object(
        {
            "id": string("What requests may name as `model`."),
            "object": {"const": "model"},
            "created": _CREATED,
            "owned_by": {"const": "strop"},
            "root": string("The pinned name that it stands for now."),
            "parent": _or_null(string("What that was trained from.")),
            "version": string("`base`, or an adapter version."),
            "max_model_len": _or_null(_integer("In tokens.")),
        }
    ),
    "ModelList": _list("Model"),
    "Status": _object({"status": string()}),
    "Readiness": _object({"status": string(), "reasons": _array(string())}),
    "Health": _object(
        {
            "status": string(enum=["ok", "degraded", "draining"]),
            "version": string(),
            "uptime_s": _number(),
            "engine": _object(
                {
                    "label": string(),
                    "url": string("Without credentials."),
                    "ready": _boolean(),
                    "reason": _or_null(string("Why it is not ready.")),
                    "version": _or_null(string()),
                    "models": _array(string()),
                    "capabilities": {"type": "object", "description": "What the engine can do."},
                }
            ),
            "model": _object(
                {
                    "name": _or_null(string()),
                    "active": _or_null(string()),
                    "versions": _array(string()),
                }
            ),
            "capture": _object(
                {
                    "mode": string(enum=["best_effort", "required", "off"]),
                    "ok": _boolean("Whether the store takes writes."),
                    "reason": _or_null(string()),
                    "since": _integer("When `ok` last changed, in seconds since 1970."),
                    "queued": _integer("Writes that are not durable yet."),
                    "queued_bytes": _integer(),
                    "lost": _integer("Completions that could not be recorded."),
                }
            ),
            "in_flight": _integer("Completions being relayed now."),
        }
    ),
    "About": _object(
        {
            "name": {"const": "strop"},
            "version": string(),
            "openai_base_url": string(),
            "paths": {"type": "object"},
        }
    ),
    "ChatRequest": _relayed("chat/create", "messages"),
    "ChatCompletion": _relayed("chat/object"),
    "TextRequest": _relayed("completions/create", "prompt"),
    "TextCompletion": _relayed("completions/object"),
    "EmbeddingsRequest": _relayed("embeddings/create", "input"),
    "Embeddings": _relayed("embeddings/object"),
}
