"""What can be done with adapter versions and training runs, as OpenAPI's path items.

Plain values. Does not know the schemas' insides.
"""

from strop.proxy.routes.operation_terms import ADMIN, BODY, operation, paging, path
from strop.proxy.routes.schema_terms import Schema


def paths() -> Schema:
    """Return the path items."""
    return {
        "/admin/adapters": {
            "get": operation(
                "Adapter versions, newest first.",
                200,
                "AdapterList",
                (400, 401, 503),
                security=ADMIN,
            ),
            "post": operation(
                "Import a PEFT adapter.",
                201,
                "Adapter",
                (*BODY, 401, 409, 503),
                "NewAdapter",
                security=ADMIN,
            ),
        },
        "/admin/adapters/active": {
            "put": {
                **operation(
                    "Activate a version.",
                    200,
                    "Activation",
                    (*BODY, 401, 404, 409, 502, 503),
                    "NewActivation",
                    security=ADMIN,
                ),
                "description": "Answered once it serves everywhere. Where it can't be shown to"
                " serve, the former version stays, and the error says why.",
            }
        },
        "/admin/adapters/rollback": {
            "post": operation(
                "Activate the version that was active before.",
                200,
                "Activation",
                (*BODY, 401, 409, 502, 503),
                security=ADMIN,
            )
        },
        "/admin/adapters/{version}": {
            "parameters": [path("version", "The version.")],
            "get": operation("One of them.", 200, "Adapter", (400, 401, 404, 503), security=ADMIN),
            "put": operation(
                "Keep it, or let it go.",
                200,
                "Adapter",
                (*BODY, 401, 404, 503),
                "AdapterChange",
                security=ADMIN,
            ),
            "delete": operation(
                "Delete its files.",
                200,
                "DeletedAdapter",
                (401, 404, 409, 502, 503),
                security=ADMIN,
            ),
        },
        "/admin/runs": {
            "get": {
                **operation(
                    "Training runs, newest first.",
                    200,
                    "RunList",
                    (400, 401, 503),
                    security=ADMIN,
                ),
                "parameters": paging(),
            },
            "post": operation(
                "Train now.",
                201,
                "Run",
                (*BODY, 401, 404, 409, 503),
                "NewRun",
                security=ADMIN,
            ),
        },
        "/admin/runs/{id}": {
            "parameters": [path("id", "The run.")],
            "get": operation(
                "One run, with the metrics of its steps.",
                200,
                "Run",
                (400, 401, 404, 503),
                security=ADMIN,
            ),
            "delete": operation(
                "Stop it at its next step.", 200, "Run", (401, 404, 409, 503), security=ADMIN
            ),
        },
    }
