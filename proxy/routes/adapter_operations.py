"""What can be done with adapter versions and training runs, as OpenAPI's path items.

Plain values. Does not know the schemas' insides.
"""

from functools import partial
from typing import Final

from strop.proxy.routes.operation_terms import ADMIN, BODY, operation, paging, path
from strop.proxy.routes.schema_terms import Schema

_operation: Final = partial(operation, security=ADMIN)


def paths() -> Schema:
    """Return the path items."""
    return {
        "/admin/adapters": {
            "get": _operation(
                "Adapter versions, newest first.", 200, "AdapterList", (400, 401, 503)
            ),
            "post": _operation(
                "Import a PEFT adapter.", 201, "Adapter", (*BODY, 401, 409, 503), "NewAdapter"
            ),
        },
        "/admin/adapters/active": {
            "put": {
                **_operation(
                    "Activate a version.",
                    200,
                    "Activation",
                    (*BODY, 401, 404, 409, 502, 503),
                    "NewActivation",
                ),
                "description": "Answered once it serves everywhere. Where it can't be shown to"
                " serve, the former version stays, and the error says why.",
            }
        },
        "/admin/adapters/rollback": {
            "post": {
                **_operation(
                    "Activate the version that was active before.",
                    200,
                    "Activation",
                    (*BODY, 401, 409, 502, 503),
                ),
                "description": "Also one that is stale, or can't be proven to serve: `stale` and"
                " `probe` say so.",
            }
        },
        "/admin/adapters/{version}": {
            "parameters": [path("version", "The version.")],
            "get": _operation("One of them.", 200, "Adapter", (400, 401, 404, 503)),
            "put": _operation(
                "Keep it, or let it go.", 200, "Adapter", (*BODY, 401, 404, 503), "AdapterChange"
            ),
            "delete": _operation(
                "Delete its files.", 200, "DeletedAdapter", (401, 404, 409, 502, 503)
            ),
        },
        "/admin/runs": {
            "get": {
                **_operation("Training runs, newest first.", 200, "RunList", (400, 401, 503)),
                "parameters": paging(),
            },
            "post": _operation("Train now.", 201, "Run", (*BODY, 401, 404, 409, 503), "NewRun"),
        },
        "/admin/runs/{id}": {
            "parameters": [path("id", "The run.")],
            "get": _operation(
                "One run, with the metrics of its steps.", 200, "Run", (400, 401, 404, 503)
            ),
            "delete": _operation("Stop it at its next step.", 200, "Run", (401, 404, 409, 503)),
        },
    }
