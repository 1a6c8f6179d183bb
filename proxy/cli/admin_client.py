"""The running proxy as its owner's commands reach it: found by its home, asked with its admin key.

Knows no command and prints nothing.
"""

import http.client
import json
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from strop.proxy.auth import CLI_AGENT
from strop.proxy.command_line import to_copy
from strop.proxy.errors import ConfigError, NotFound, StropError
from strop.proxy.home import serving_url
from strop.proxy.store import layout

STATUS_TIMEOUT_S: Final = 5.0
# An activation answers when traffic has moved, which may need a large file to be read first.
CALL_TIMEOUT_S: Final = 900.0


class Refused(StropError):
    """The proxy said no; the message is its own."""


def ask_health(url: str) -> dict[str, Any] | None:
    """Return what the proxy at `url` says of itself; None where it doesn't answer."""
    try:
        _, health = _call(url, "GET", "/health", {}, None, STATUS_TIMEOUT_S)
    except (OSError, http.client.HTTPException, ValueError):
        return None
    return health if isinstance(health, dict) else None


def call(
    home: Path, method: str, path: str, body: object = None, *, unknown: str = ""
) -> dict[str, Any]:
    """Return what the proxy that serves from `home` answers to the owner.

    Raises:
        ConfigError: none serves.
        NotFound: there is nothing under that name; with `unknown` as its message.
        Refused: it answers with an error.
    """
    url = serving_url(home)
    if url is None:
        raise ConfigError(
            f"strop does not serve from {home}; start it with: {to_copy('serve', home)}"
        )
    try:
        key = (home / layout.ADMIN_KEY).read_text(encoding="ascii").strip()
        status, answer = _call(
            url,
            method,
            path,
            {"Authorization": f"Bearer {key}", "User-Agent": CLI_AGENT},
            body,
            CALL_TIMEOUT_S,
        )
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Refused(f"expected an answer from {url}, got none: {error}") from error
    if status == NotFound.status and unknown:
        raise NotFound(unknown)
    if status >= 400:
        raise Refused(str(answer.get("error", {}).get("message", answer)))
    found: dict[str, Any] = answer
    return found


def _call(
    url: str, method: str, path: str, headers: dict[str, str], body: object, timeout_s: float
) -> tuple[int, Any]:
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=timeout_s)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()
