"""Which headers cross the proxy, in each direction.

Pure. Names are lower-case bytes, as ASGI gives them; order and repeats are kept. Hop-by-hop:
RFC 9110, section 7.6.1.
"""

from collections.abc import Collection, Iterable

Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Host and Content-Length are the upstream connection's own. Accept-Encoding goes, or the answer
# that is recorded would be compressed. X-Request-Id is recorded here, and strop's own is sent. What
# says where a request came from, or who sent it, is nobody's business behind the proxy.
_REQUEST_STAYS = _HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"accept-encoding",
    b"expect",
    b"authorization",
    b"x-api-key",
    b"cookie",
    b"origin",
    b"referer",
    b"forwarded",
    b"via",
    b"true-client-ip",
    b"x-client-ip",
    b"x-real-ip",
    b"x-remote-user",
    b"x-request-id",
}
# What servers in front say of who came, and how; and what is said to strop.
_STAYING = (
    b"x-strop-",
    b"x-forwarded-",
    b"x-auth-request-",
    b"x-authentik-",
    b"cf-",
    b"remote-",
    b"tailscale-user-",
)
_RESPONSE_STAYS = _HOP_BY_HOP | {b"content-length"}


def to_engine(client: Collection[tuple[bytes, bytes]], credentials: Headers) -> Headers:
    """Return a request's headers for the engine, with `credentials` in place of the client's."""
    stays: Collection[bytes] = _REQUEST_STAYS
    for name, value in client:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            # A client may name further headers that are for this connection only.
            stays = _REQUEST_STAYS | {token.strip() for token in value.lower().split(b",")}
    kept = [
        (name, value)
        for name, value in client
        if name not in stays and not name.startswith(_STAYING)
    ]
    kept += credentials
    return kept


def to_client(engine: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return an engine's response headers for the client."""
    return [
        (name, value)
        for name, value in engine
        if name not in _RESPONSE_STAYS and not name.startswith(b"x-strop-")
    ]


def is_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether the body behind `headers` is a stream of events."""
    kind = first(headers, b"content-type") or b""
    # Media types are case-insensitive (RFC 9110, section 8.3.1).
    return kind.partition(b";")[0].strip().lower() == b"text/event-stream"


def first(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """Return the first value under `name`, or None."""
    for key, value in headers:
        if key == name:
            return value
    return None
