"""The JSON schemas of what strop's own endpoints take and give, for the OpenAPI document.

Plain values (JSON Schema 2020-12). Does not know the paths.
"""

from typing import Final, get_args

from strop.proxy import ratings
from strop.proxy.routes.adapter_schemas import ADAPTER_SCHEMAS
from strop.proxy.routes.schema_terms import (
    Schema,
    array_of,
    boolean,
    enum,
    integer,
    list_of,
    number,
    object_of,
    or_null,
    ref,
    string,
)
from strop.proxy.store.records import Dialect, FeedbackState, ParentBy, Scope, State

_OPENAI: Final = "https://platform.openai.com/docs/api-reference/"


def _relayed(path: str, *required: str, goes: str = "to the engine") -> Schema:
    return {
        "type": "object",
        "description": f"As OpenAI has it; goes {goes}.",
        "required": list(required),
        "externalDocs": {"url": _OPENAI + path},
    }


def _of_anthropic(*required: str) -> Schema:
    return {
        "type": "object",
        "description": "As Anthropic's API reference has it; by a chat completion.",
        "required": list(required),
    }


_RATING = {
    "description": "Stored as one number in [-1, 1]; stars 1 to 5 spread evenly over it.",
    "oneOf": [
        string(enum=["good", "bad", "up", "down", "true", "false"]),
        string('A number from -1 to 1 as text, as in "0.5".', pattern=r"^\s*[+-]?[0-9.]+\s*$"),
        boolean(),
        number(minimum=-1, maximum=1),
        object_of({"stars": number(minimum=1, maximum=5)}),
    ],
}
_CREATED = integer("Seconds since 1970.")
_COMMENT = or_null(string("Why.", maxLength=ratings.MAX_COMMENT_CHARS))
_CORRECTION = or_null(
    string("The answer that should have been given.", maxLength=ratings.MAX_CORRECTION_CHARS)
)
_TAGS = array_of(string(maxLength=ratings.MAX_TAG_CHARS), f"At most {ratings.MAX_TAGS}.")
_REVISION = {
    "rating": ref("Rating"),
    "comment": _COMMENT,
    "correction": _CORRECTION,
    "tags": or_null(_TAGS),
}
_COMPLETION = {
    "id": string("X-Strop-Completion-Id of the answer."),
    "object": {"const": "completion"},
    "created": _CREATED,
    "key_id": string("Of the client key; `local` where none are configured."),
    "session": string("The conversation."),
    "turn": string("The completion that began the turn."),
    "parent": or_null(string("The completion whose answer this request's history ends with.")),
    "dialect": enum(Dialect),
    "engine": string(),
    "model": string("As the client asked for it."),
    "version": string("What served it: `base` or an adapter version."),
    "state": enum(State, "How it ended."),
    "delivered": boolean("Whether the client was still there."),
    "stream": boolean(),
    "status": or_null(integer("The engine's HTTP status.")),
    "prompt_tokens": or_null(integer()),
    "completion_tokens": or_null(integer()),
    "total_ms": number(),
}
_ANYTHING: Schema = {}

SCHEMAS: Final[dict[str, Schema]] = {
    "Error": object_of(
        {
            "error": {
                **object_of(
                    {
                        "message": string("What was expected, what came, what to do."),
                        "type": string(),
                        "param": or_null(string("The field or parameter at fault.")),
                        "code": string(),
                    }
                ),
                "additionalProperties": True,
            }
        },
        "An OpenAI error object.",
    ),
    "Rating": _RATING,
    "NewFeedback": object_of(
        {
            "completion_id": string(
                "X-Strop-Completion-Id of an answer, or its `id` where that names only one.",
                minLength=1,
                maxLength=ratings.MAX_ID_CHARS,
            ),
            "choice": or_null(
                integer("Which answer.", minimum=0, maximum=ratings.MAX_CHOICE, default=0)
            ),
            **_REVISION,
            "rater": or_null(string("Who rates.", maxLength=ratings.MAX_RATER_CHARS)),
            "scope": {
                "type": ["string", "null"],
                "description": "This completion, or the whole turn it belongs to.",
                "enum": [*get_args(Scope), None],
                "default": "completion",
            },
            "id": or_null(
                string(
                    "Makes a retry safe; the same as the Idempotency-Key header.",
                    maxLength=ratings.MAX_ID_CHARS,
                )
            ),
        },
        optional=("choice", "comment", "correction", "tags", "rater", "scope", "id"),
    ),
    "Revision": object_of(
        _REVISION,
        "All of what the feedback says from now on; what is left out is taken away.",
        optional=("comment", "correction", "tags"),
    ),
    "Feedback": object_of(
        {
            "id": string(),
            "object": {"const": "feedback"},
            "created": _CREATED,
            "completion_id": string(),
            "choice": integer(),
            "rating": number(minimum=-1, maximum=1),
            "original": {"description": "The rating as it was given."},
            "comment": _COMMENT,
            "correction": _CORRECTION,
            "tags": _TAGS,
            "rater": string(),
            "source": string("By which way it came.", enum=["api", "header", "inline", "cli"]),
            "scope": enum(Scope),
            "state": enum(FeedbackState, "Only `standing` ones count."),
            "revision": integer("From 1; a PUT makes a new one."),
            "session": or_null(string("Null while pending.")),
            "note": or_null(string("Why strop itself withdrew it.")),
        }
    ),
    "FeedbackList": list_of("Feedback"),
    "CompletionSummary": object_of(
        {**_COMPLETION, "num_choices": integer(), "num_feedback": integer("Standing ones.")}
    ),
    "CompletionList": list_of("CompletionSummary"),
    "Completion": object_of(
        {
            **_COMPLETION,
            "parent_choice": or_null(integer()),
            "parent_by": {
                "type": ["string", "null"],
                "description": "How the parent was found.",
                "enum": [*get_args(ParentBy), None],
            },
            "served": string("The version's name in the engine."),
            "error": or_null(string()),
            "ttft_ms": or_null(number("Time to the first byte.")),
            "overhead_ms": number("Time that strop added."),
            "upstream_id": or_null(string("The answer's own id.")),
            "request_id": or_null(string("The client's X-Request-Id.")),
            "request": {"description": "The body that the client sent."},
            "choices": array_of(
                object_of(
                    {
                        "index": integer(),
                        "message": _ANYTHING,
                        "finish_reason": or_null(string()),
                    }
                )
            ),
            "snapshot": ref("Snapshot"),
            "feedback": array_of(ref("Feedback")),
        }
    ),
    "Snapshot": object_of(
        {
            "sampling": {
                "type": "object",
                "description": "Its parameters, as far as known.",
            },
            "prompt_ids": or_null(array_of(integer())),
            "prompt_text": or_null(string("As the engine showed it, where it gives no ids.")),
            "choices": array_of(
                object_of(
                    {
                        "index": integer(),
                        "token_ids": or_null(array_of(integer(), "Null where none were given.")),
                        "token_texts": or_null(
                            array_of(string(), "Of engines that give these, and no ids.")
                        ),
                        "logprobs": or_null(
                            array_of(or_null(number()), "Nats, one per sampled token.")
                        ),
                        "logprobs_source": or_null(string()),
                        "logprobs_kind": or_null(string("`raw` at T = 1, or `processed`.")),
                    }
                )
            ),
        },
        "What the trainer needs of an answer.",
    ),
    "Model": object_of(
        {
            "id": string("What requests may name as `model`."),
            "object": {"const": "model"},
            "created": _CREATED,
            "owned_by": {"const": "strop"},
            "root": string("The pinned name that it stands for now."),
            "parent": or_null(string("Of a pinned name, what that was trained from.")),
            "version": string("`base`, or an adapter version."),
            "max_model_len": or_null(integer("In tokens.")),
        }
    ),
    "ModelList": list_of("Model"),
    "Status": object_of({"status": string()}),
    "Readiness": object_of({"status": string(), "reasons": array_of(string())}),
    "Health": object_of(
        {
            "status": string(enum=["ok", "degraded", "draining"]),
            "version": string(),
            "uptime_s": number(),
            "engine": object_of(
                {
                    "label": string(),
                    "url": string("Without credentials."),
                    "ready": boolean(),
                    "reason": or_null(string("Why it is not ready, or what it fails at.")),
                    "version": or_null(string()),
                    "models": array_of(string()),
                    "capabilities": {"type": "object", "description": "What the engine can do."},
                    "shortfalls": array_of(string(), "What it can't do here, and what to set."),
                    "replicas": array_of(
                        object_of(
                            {
                                "url": string("Without credentials."),
                                "ready": boolean("Whether it is sent requests."),
                                "reason": or_null(string("Why it is not, or what it fails at.")),
                                "in_flight": integer(),
                            }
                        ),
                        "Each of several engines; of one alone, nothing.",
                    ),
                }
            ),
            "model": object_of(
                {
                    "name": or_null(string()),
                    "engine_name": or_null(string("What the engine calls the model of that name.")),
                    "base": or_null(string("The identity of its base, as adapters name it.")),
                    "active": or_null(string()),
                    "versions": array_of(string()),
                }
            ),
            "capture": object_of(
                {
                    "mode": string(enum=["best_effort", "required", "off"]),
                    "ok": boolean("Whether the store takes writes."),
                    "reason": or_null(string()),
                    "since": integer("When `ok` last changed, in seconds since 1970."),
                    "queued": integer("Writes that are not durable yet."),
                    "queued_bytes": integer(),
                    "lost": integer("Completions that could not be recorded."),
                }
            ),
            "in_flight": integer("Completions being relayed now."),
            "workers": array_of(
                object_of({"number": integer(), "pid": integer(), "in_flight": integer()}),
                "Each of several worker processes; of one alone, nothing.",
            ),
        }
    ),
    "About": object_of(
        {
            "name": {"const": "strop"},
            "version": string(),
            "openai_base_url": string(),
            "paths": {"type": "object"},
        }
    ),
    **ADAPTER_SCHEMAS,
    "ChatRequest": _relayed("chat/create", "messages"),
    "ChatCompletion": _relayed("chat/object"),
    "TextRequest": _relayed("completions/create", "prompt"),
    "TextCompletion": _relayed("completions/object"),
    "ResponsesRequest": _relayed("responses/create", "input", goes="as a chat completion"),
    "Response": _relayed("responses/object", goes="from a chat completion"),
    "MessagesRequest": _of_anthropic("messages", "max_tokens"),
    "Message": _of_anthropic("id", "content"),
    "MessagesError": object_of(
        {
            "type": {"const": "error"},
            "error": {
                **object_of({"type": string(), "message": string()}),
                "additionalProperties": True,
            },
        },
        "As Anthropic's API writes errors.",
    ),
    "CountRequest": _of_anthropic("messages"),
    "TokenCount": object_of({"input_tokens": integer()}),
    "EmbeddingsRequest": _relayed("embeddings/create", "input"),
    "Embeddings": _relayed("embeddings/object"),
}
