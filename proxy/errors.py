"""Every error strop answers with, as one tree, and the head and body of the answer that says it.

Does not know where an error is raised. Errors of an engine are not here: they pass through as the
engine wrote them.

    StropError                          500 internal_error
    ├── BadRequest                      400 invalid_request
    │   ├── HeadTooLarge                431 head_too_large
    │   ├── BodyTooLarge                413 body_too_large
    │   ├── BodyTimeout                 408 body_timeout
    │   └── BodyEncoded                 415 unsupported_content_encoding
    ├── Unauthorized                    401 invalid_api_key
    ├── Forbidden                       403 forbidden
    ├── NotFound                        404 not_found
    │   ├── UnknownModel                404 model_not_found
    │   │   └── VersionNotLoaded        404 model_not_found
    │   └── UnknownCompletion           404 completion_not_found
    ├── MethodNotAllowed                405 method_not_allowed
    ├── Conflict                        409 conflict
    │   ├── AmbiguousCompletion         409 ambiguous_completion_id
    │   ├── IdempotencyConflict         409 idempotency_conflict
    │   └── VersionNotServed            409 version_not_served
    ├── Unavailable                     503 unavailable
    │   ├── ShuttingDown                503 shutting_down
    │   ├── StoreUnavailable            503 store_unavailable
    │   ├── EngineNotReady              503 engine_not_ready
    │   ├── SwitchingVersions           503 switching_versions
    │   └── ActivationFailed            503 activation_failed
    ├── UpstreamError                   502 upstream_error
    │   ├── UpstreamUnreachable         502 upstream_unreachable
    │   ├── UpstreamDied                502 upstream_died
    │   └── UpstreamAborted             502 upstream_aborted
    ├── UpstreamTimeout                 504 upstream_timeout
    └── ConfigError                     500 config_error   (start-up and CLI only)
"""

import json
from collections.abc import Mapping
from typing import ClassVar

SOURCE_HEADER = (b"x-strop-error-source", b"proxy")

_FURTHER = {
    # Claude Code would ask with a wrong key again and again, silently, unless it is told not to.
    401: [(b"www-authenticate", b"Bearer"), (b"x-should-retry", b"false")],
    # RFC 9110, section 15.5.16.
    415: [(b"accept-encoding", b"identity")],
    503: [(b"retry-after", b"2")],
}


class StropError(Exception):
    """Any error of ours: a status, an OpenAI `type` and `code`, and a message that says what to do.

    Args:
        message: what was expected, what came, what to do.
        param: the request field at fault, if one is.
        detail: further members of the error object, JSON-able.

    Attributes:
        headers: what else the answer says, such as what became of a rating.

    Its class says `exit_status`, what a command ends with that it ends: 2 where what was typed or
    set is wrong, so that doing the same again ends so too.
    """

    exit_status: ClassVar[int] = 1
    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        detail: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.detail = dict(detail or {})
        self.headers: list[tuple[bytes, bytes]] = []


class BadRequest(StropError):
    """The request can't be understood."""

    exit_status = 2
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class HeadTooLarge(BadRequest):
    """The request line and headers are longer than strop takes."""

    status = 431
    code = "head_too_large"


class BodyTooLarge(BadRequest):
    """The request body is longer than `server.max_body_bytes`."""

    status = 413
    code = "body_too_large"


class BodyTimeout(BadRequest):
    """The request body did not arrive within `server.body_timeout_s`."""

    status = 408
    code = "body_timeout"


class BodyEncoded(BadRequest):
    """The request body is compressed."""

    status = 415
    code = "unsupported_content_encoding"


class Unauthorized(StropError):
    """The key is missing or wrong."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(StropError):
    """The caller may not do this: wrong Host or Origin, or another key's completion."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class NotFound(StropError):
    """There is nothing at this path, or under this id."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class UnknownModel(NotFound):
    """The model name is none of those served."""

    code = "model_not_found"


class VersionNotLoaded(UnknownModel):
    """The model name pins a version that the engine doesn't hold, and that may not even exist."""

    def __init__(self, message: str, *, version: str) -> None:
        super().__init__(message, param="model")
        self.version = version


class UnknownCompletion(NotFound):
    """No completion of this key has this id."""

    code = "completion_not_found"


class MethodNotAllowed(StropError):
    """The path exists, with another method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class Conflict(StropError):
    """The request contradicts what is stored."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class AmbiguousCompletion(Conflict):
    """An engine's id names several completions; the candidates are in the error."""

    code = "ambiguous_completion_id"


class IdempotencyConflict(Conflict):
    """The same idempotency id came before with another body."""

    code = "idempotency_conflict"


class VersionNotServed(Conflict):
    """The model name pins a version that can't be served beside the active one, or at all."""

    code = "version_not_served"


class Unavailable(StropError):
    """strop can't serve this now; trying again later may work."""

    status = 503
    code = "unavailable"


class ShuttingDown(Unavailable):
    """strop is stopping and takes no new requests."""

    code = "shutting_down"


class StoreUnavailable(Unavailable):
    """What must be durable can't be written."""

    code = "store_unavailable"


class EngineNotReady(Unavailable):
    """The engine is not there (yet)."""

    code = "engine_not_ready"


class SwitchingVersions(Unavailable):
    """An engine that serves one version at a time is changing it, or is too busy to."""

    code = "switching_versions"


class ActivationFailed(Unavailable):
    """A version could not be made to serve; the one before serves on."""

    code = "activation_failed"


class UpstreamError(StropError):
    """The engine broke the exchange."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"


class UpstreamUnreachable(UpstreamError):
    """No connection to the engine could be made."""

    code = "upstream_unreachable"


class UpstreamDied(UpstreamError):
    """The engine closed the connection, or spoke no HTTP, before its answer ended."""

    code = "upstream_died"


class UpstreamAborted(UpstreamError):
    """We gave up the exchange ourselves, for instance because the client left."""

    code = "upstream_aborted"


class UpstreamTimeout(StropError):
    """The engine did not answer, or stopped answering, within its time."""

    status = 504
    type = "timeout_error"
    code = "upstream_timeout"


class ConfigError(StropError):
    """A setting is wrong; said at start-up and by the CLI."""

    exit_status = 2
    code = "config_error"


def render(error: StropError) -> bytes:
    """Return the OpenAI error object for `error` as a JSON body."""
    said = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
        **error.detail,
    }
    # A request's own words may hold lone surrogates, which orjson refuses.
    text = json.dumps({"error": said}, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def head_of(error: StropError, body: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer that says `error` in `body`, which is JSON."""
    return [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        SOURCE_HEADER,
        *_FURTHER.get(error.status, ()),
        *error.headers,
    ]
