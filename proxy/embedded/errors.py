"""The errors of the embedded engine, as vLLM's error objects.

Apart from the proxy's tree: these are an engine's own answers, which the proxy passes through.

    EngineError               500 InternalServerError
    ├── BadRequest            400 BadRequestError
    │   ├── InvalidInput      400 InvalidUserInput
    │   └── MethodNotAllowed  405 BadRequestError
    ├── Unauthorized          401 AuthenticationError
    ├── Forbidden             403 ForbiddenError
    ├── NotFound              404 NotFoundError
    └── Overloaded            503 ServiceUnavailableError
"""

from typing import ClassVar

import orjson


class EngineError(Exception):
    """Any error that a client is told; `param` names the field at fault."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "InternalServerError"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def body(self) -> bytes:
        """Return the error object as JSON."""
        return orjson.dumps(
            {
                "error": {
                    "message": self.message,
                    "type": self.type,
                    "param": self.param,
                    "code": self.status,
                }
            }
        )


class BadRequest(EngineError):
    """The request can't be served as it is."""

    status = 400
    type = "BadRequestError"


class InvalidInput(BadRequest):
    """A load or unload request names something that can't be."""

    type = "InvalidUserInput"


class MethodNotAllowed(BadRequest):
    """The path exists, with another method."""

    status = 405


class Unauthorized(EngineError):
    """The request lacks the engine's key."""

    status = 401
    type = "AuthenticationError"


class Forbidden(EngineError):
    """A web page asks."""

    status = 403
    type = "ForbiddenError"


class NotFound(EngineError):
    """There is no such model, adapter or path."""

    status = 404
    type = "NotFoundError"


class Overloaded(EngineError):
    """The engine is not ready, is stopping, or has too much to do."""

    status = 503
    type = "ServiceUnavailableError"


def unknown_model(name: str) -> NotFound:
    """Return the error for a model name that is not served."""
    return NotFound(f"The model `{name}` does not exist.", param="model")
