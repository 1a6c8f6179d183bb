"""The JSON schemas of adapter versions and training runs, for the OpenAPI document.

Plain values. Does not know the paths.
"""

from typing import Final

from strop.adapters.swap import Step
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
from strop.proxy.store.run_records import RunState
from strop.proxy.store.version_records import EventKind, Origin, VersionState

_CREATED: Final = integer("Seconds since 1970.")
_SECONDS: Final = or_null(integer("Seconds since 1970."))
_NUMBERS: Final[Schema] = {"type": "object"}
_LIKED: Final[Schema] = {
    **object_of(
        {
            "value": number("The share of good ratings."),
            "num_good": integer(),
            "num": integer("How many ratings, but for those of 0."),
            "low": number("Where the true share lies, at 90 %: from here"),
            "high": number("to here."),
        },
        "How people rated what it answered.",
    ),
    "type": ["object", "null"],
}

ADAPTER_SCHEMAS: Final[dict[str, Schema]] = {
    "Adapter": object_of(
        {
            "id": string("`v` and a number that is never used again."),
            "object": {"const": "adapter"},
            "created": _CREATED,
            "state": enum(VersionState),
            "stale": or_null(string("Why: a rating that it learned from was taken back.")),
            "reason": or_null(string("Why it is rejected, missing, or was not activated.")),
            "kept": boolean("Whether it is kept, however many newer ones there are."),
            "parent": string("What it was trained on from: a version, or `base`."),
            "base": string("The identity of the base."),
            "run": or_null(string("The run that made it.")),
            "origin": enum(Origin),
            "num_ratings": integer("How many ratings it learned from."),
            "metrics": {**_NUMBERS, "description": "Of the run that made it."},
            "verdict": {"type": ["object", "null"], "description": "The gate's."},
            "liked": _LIKED,
            "loaded": array_of(
                object_of(
                    {
                        "engine": string(),
                        "since": _CREATED,
                        "leases": integer("Requests that it is answering."),
                        "draining": boolean("Whether it goes once it has answered them."),
                    }
                )
            ),
            "events": array_of(ref("AdapterEvent"), "Newest first."),
        }
    ),
    "AdapterEvent": object_of(
        {
            "version": string(),
            "created": _CREATED,
            "kind": enum(EventKind),
            "actor": string("Who: run, api, cli, gate, watch, start or feedback."),
            "detail": {"type": "object", "description": "From, reason, timings, as they apply."},
        }
    ),
    "AdapterList": {
        **list_of("Adapter"),
        "properties": {
            **list_of("Adapter")["properties"],
            "active": string("The version that unpinned requests get."),
            "previous": or_null(string("Where a rollback goes.")),
            "base_liked": _LIKED,
            "activating": {
                **object_of({"version": string(), "step": enum(Step), "since": _CREATED}),
                "type": ["object", "null"],
            },
        },
    },
    "NewAdapter": object_of({"path": string("The absolute path of a PEFT folder.")}),
    "AdapterChange": object_of({"kept": boolean()}),
    "DeletedAdapter": object_of(
        {"id": string(), "object": {"const": "adapter"}, "deleted": {"const": True}}
    ),
    "NewActivation": object_of(
        {
            "version": string("As in `v3`, or `base`."),
            "force": boolean("Even if it is stale, or can't be proven to serve."),
        },
        optional=("force",),
    ),
    "Activation": object_of(
        {
            "object": {"const": "adapter.activation"},
            "version": string(),
            "previous": string(),
            "stale": or_null(string("Why the version is stale, if it is; see Adapter.")),
            "timings_ms": {**_NUMBERS, "description": "By step."},
            "pause_ms": number("How long requests were held back."),
            "probe": {
                **object_of(
                    {
                        "outcome": string(
                            enum=["proven", "indistinguishable", "unproven", "failed"]
                        ),
                        "reason": string(),
                        "errors": _NUMBERS,
                        "num_tokens": integer(),
                    }
                ),
                "type": ["object", "null"],
            },
        }
    ),
    "Run": object_of(
        {
            "id": string(),
            "object": {"const": "run"},
            "created": _CREATED,
            "started": _SECONDS,
            "finished": _SECONDS,
            "state": enum(RunState),
            "cancelling": boolean("Whether it was asked to stop."),
            "objective": string(),
            "preset": string(),
            "parent": string("The version that it continues, or `base`."),
            "base": string("The identity of the base."),
            "requested_by": string(),
            "version": or_null(string("What it made.")),
            "step": integer(),
            "num_steps": integer(),
            "eta_s": or_null(number("About how long its steps still take.")),
            "counts": {"type": "object", "description": "Examples, and what was left out."},
            "metrics": {"type": "object", "description": "Of the last step, and the gate's."},
            "reasons": array_of(string(), "The verdict's, or why it failed."),
            "config": {"type": "object", "description": "Every setting in force."},
            "steps": array_of({"type": "object"}, "The metrics of each step; not in lists."),
        },
        optional=("steps",),
    ),
    "RunList": {
        **list_of("Run"),
        "properties": {
            **list_of("Run")["properties"],
            "waits_for": string("What the next run waits for."),
        },
    },
    "NewRun": object_of(
        {
            "objective": or_null(string("What is minimised.")),
            "preset": or_null(string("careful, balanced, aggressive, or a file.")),
            "parent": or_null(string("The version to continue; else the active one.")),
            "seed": or_null(integer("Of what is drawn; else another each time.")),
        },
        optional=("objective", "preset", "parent", "seed"),
    ),
}
