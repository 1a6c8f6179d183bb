"""The OpenAPI 3.1 document of strop's endpoints, and the route that serves it.

Puts it together from `operations` and `schemas`; a test compares it with the routes.
"""

from functools import cache
from importlib.metadata import version
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from strop.proxy.routes import operations
from strop.proxy.routes.operation_terms import ERRORS, refusal
from strop.proxy.routes.schemas import SCHEMAS
from strop.proxy.wire import body


@cache
def document() -> bytes:
    """Return the document as JSON."""
    return body.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "strop",
                "version": version("strop"),
                "summary": "A local OpenAI-compatible proxy that learns from ratings.",
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [
                {"url": "/"},
                {
                    "url": "/s/{session}",
                    "description": "For clients that can't send headers.",
                    "variables": {"session": {"default": "my-session"}},
                },
            ],
            "paths": operations.paths(),
            "components": {
                "schemas": SCHEMAS,
                "responses": {str(status): refusal(status, "Error") for status in ERRORS},
                "securitySchemes": {
                    "clientKey": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "One of server.client_keys; none needed if that is empty.",
                    },
                    "adminKey": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "The key in admin.key in strop's home.",
                    },
                },
            },
        }
    )


async def show(_request: Request) -> Response:
    """GET /openapi.json."""
    return Response(document(), media_type="application/json")


ROUTES: Final = [Route("/openapi.json", show, methods=["GET"])]
