"""Who may ask: client keys, the admin key, and the hosts and origins that requests may name.

Does not know routes, and holds no state. Apart from `load_or_create_admin_key`, pure.
"""

import ipaddress
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from hmac import compare_digest
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from strop.proxy.errors import ConfigError, Forbidden, Unauthorized
from strop.proxy.store import layout

LOCAL_KEY_ID: Final = "local"
"""The key id of everyone where no client keys are configured."""
ADMIN_KEY_ID: Final = "admin"
CLI_AGENT: Final = "strop-cli"
"""The User-Agent of strop's own commands; it grants nothing, and names who acted in events."""

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/@\[\]]+?)\.?(?::[0-9]*)?")
_HIDDEN = "[hidden]"
# Shorter, an engine's key is a placeholder: ollama, EMPTY, lm-studio, dummy, sk-xxx.
_MIN_SECRET_CHARS = 12
_PLACEHOLDERS = frozenset(
    {"sk-no-key-required", "no-key-required", "no-key-needed", "llama-server"}
)
_CREDENTIALS = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]+", re.IGNORECASE)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^\s/?#@]+@")


class Caller(msgspec.Struct, frozen=True):
    """Who sent a request. An admin may rate any completion, others only those of their key."""

    key_id: str
    is_admin: bool = False


class Keys:
    """The keys that open the proxy.

    Args:
        client_keys: keys for `/v1`; with none, everyone is let in there.
        admin_key: the key for `/admin`, good for `/v1` too.
    """

    def __init__(self, client_keys: Iterable[str], admin_key: str) -> None:
        self._clients = [(key.encode(), key_id(key)) for key in client_keys]
        self._admin = admin_key.encode()

    def caller(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Return who sent a request to `/v1`.

        Raises:
            Unauthorized: client keys are configured, and none of them was sent.
        """
        given = _given_keys(headers)
        is_admin = any(compare_digest(key, self._admin) for key in given)
        if not self._clients:
            return Caller(LOCAL_KEY_ID, is_admin)
        # Every key is compared, so the time says nothing about which one is near.
        found = [
            identity
            for key in given
            for known, identity in self._clients
            if compare_digest(key, known)
        ]
        if found:
            return Caller(found[0], is_admin)
        if is_admin:
            return Caller(ADMIN_KEY_ID, is_admin=True)
        raise Unauthorized(
            "expected one of server.client_keys as `Authorization: Bearer <key>` or `x-api-key`;"
            f" got {_what_came(given)}; set it as the API key of your client"
        )

    def require_admin(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Let a request to `/admin` pass.

        Raises:
            Unauthorized: the admin key was not sent.
        """
        given = _given_keys(headers)
        if not any(compare_digest(key, self._admin) for key in given):
            raise Unauthorized(
                "expected the admin key as `Authorization: Bearer <key>`; got"
                f" {_what_came(given)}; it stands in {layout.ADMIN_KEY} in strop's home"
            )


class Doors:
    """The hosts and origins that requests may name.

    A page in a browser can make its own host name resolve to this machine (DNS rebinding), so on
    loopback only names that no such page can have are answered. On a public bind the client keys
    guard instead, and without `allowed_hosts` any host is answered.

    Args:
        bind: the host that the server listens on.
        allowed_hosts: further host names, without port.
        allowed_origins: origins that pages may have, as `https://host[:port]`.
    """

    def __init__(
        self, bind: str, allowed_hosts: Iterable[str] = (), allowed_origins: Iterable[str] = ()
    ) -> None:
        allowed = {host_name(host) for host in allowed_hosts}
        self._answers_any_host = is_public(bind) and not allowed
        own = bind.strip("[]")
        own = f"[{own}]" if ":" in own else own
        self._hosts = (allowed | _LOOPBACK_NAMES | {host_name(own)}) - {""}
        self._origins = {origin.lower() for origin in allowed_origins}

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Let a request pass whose Host and Origin are as they should be.

        Raises:
            Forbidden: they are not.
        """
        hosts, origins = [], []
        for name, value in headers:
            if name == b"host":
                hosts.append(value.decode("latin-1").strip().lower())
            elif name == b"origin":
                origins.append(value.decode("latin-1").strip().lower())
        if not self._answers_any_host and not (
            hosts and all(host_name(host) in self._hosts for host in hosts)
        ):
            raise Forbidden(
                f"expected a Host header that names this server; got {_quoted(hosts)}; if the name"
                " is yours, add it to server.allowed_hosts"
            )
        for origin in origins:
            if origin not in self._origins and origin.partition("://")[2] not in hosts:
                raise Forbidden(
                    f"expected no Origin header, or this server's own; got {_quoted(origins)}; add"
                    " it to server.allowed_origins if the server of that page passes its requests"
                    " on: strop sends no CORS headers, so the page itself can't call it"
                )


def without_keys(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return a request's headers without the keys that it was sent with."""
    return [header for header in headers if header[0] not in (b"authorization", b"x-api-key")]


def key_id(key: str) -> str:
    """Return the id of a client key: stable, and not the key."""
    return "key_" + blake2b(key.encode(), digest_size=6, person=b"strop key id").hexdigest()


def is_public(bind: str) -> bool:
    """Return whether a server that listens on `bind` can be reached from other machines."""
    if bind.lower() == "localhost":
        return False
    try:
        return not ipaddress.ip_address(bind.strip("[]")).is_loopback
    except ValueError:
        return True


def check_bind(bind: str, client_keys: Sequence[str]) -> None:
    """Refuse to be reachable by everyone.

    Raises:
        ConfigError: the bind is public, and there are no client keys.
    """
    if is_public(bind) and not client_keys:
        raise ConfigError(
            f"server.host = {bind!r} can be reached from other machines, and server.client_keys is"
            " empty; set client keys, or listen on 127.0.0.1"
        )


def load_or_create_admin_key(home: Path) -> str:
    """Return the admin key in the home, made at the first call (mode 0600).

    Raises:
        ConfigError: the file can't be read or written, or holds no key.
    """
    path = home / layout.ADMIN_KEY
    try:
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
            key = path.read_text(encoding="utf-8").strip()
        else:
            key = "strop-admin-" + secrets.token_urlsafe(32)
            try:
                with os.fdopen(file, "w", encoding="utf-8") as out:
                    out.write(key + "\n")
                    out.flush()
                    os.fsync(out.fileno())
            except OSError:
                # An empty one would be refused for ever, when there is room again too.
                path.unlink(missing_ok=True)
                raise
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"expected to keep an admin key in {path}, which can't be read or made: {error}; mend"
            " that, or choose another folder with --home"
        ) from error
    if not key:
        raise ConfigError(f"expected an admin key in {path}, got an empty file; delete it")
    return key


def secrets_of(client_keys: Iterable[str], engine_key: str) -> tuple[str, ...]:
    """Return the keys of the settings that no log may show.

    What a local engine is given because a client wants some key is a word like others: hosts and
    models are named so too.
    """
    is_secret = len(engine_key) >= _MIN_SECRET_CHARS and engine_key.lower() not in _PLACEHOLDERS
    return (*client_keys, engine_key) if is_secret else (*client_keys,)


def scrub(text: str, known_secrets: Iterable[str]) -> str:
    """Return `text` without the secrets given, and without what looks like credentials."""
    # The longest first: one secret may be the beginning of another.
    for secret in sorted(filter(None, known_secrets), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    text = _CREDENTIALS.sub(rf"\1 {_HIDDEN}", text)
    return _URL_CREDENTIALS.sub(f"{_HIDDEN}@", text)


def scrub_url(url: str) -> str:
    """Return `url` without its credentials, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return _HIDDEN
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl()


def host_name(host: str) -> str:
    """Return the host without its port, in lower case; an empty string where it names none."""
    found = _HOST.fullmatch(host.lower())
    return found[1] if found else ""


def _given_keys(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    keys = []
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer" and key.strip():
                keys.append(key.strip())
        elif name == b"x-api-key" and value.strip():
            keys.append(value.strip())
    return keys


def _what_came(given: Sequence[bytes]) -> str:
    return "another key" if given else "no key"


def _quoted(values: Sequence[str]) -> str:
    return ", ".join(f'"{value[:100]}"' for value in values[:4]) or "none"
