"""Who may ask: keys, hosts, origins, and what is hidden from logs."""

import re
import resource
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.proxy import auth
from strop.proxy.auth import Caller, Doors, Keys
from strop.proxy.errors import ConfigError, Forbidden, Unauthorized

ADMIN = "admin-key-of-the-test"
MINE, THEIRS = "client-key-1", "client-key-2"


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"localhost"), (b"authorization", b"Bearer " + key.encode())]


def test_without_client_keys_everyone_is_local() -> None:
    """What clients send as a key is ignored where none is configured."""
    keys = Keys((), ADMIN)

    assert Caller("local") == keys.caller([])
    assert Caller("local") == keys.caller(bearer("sk-dummy"))
    assert Caller("local", is_admin=True) == keys.caller(bearer(ADMIN))


def test_a_client_key_is_known_by_its_id() -> None:
    """Each key has its own caller, by either header and whatever stands beside it."""
    keys = Keys([MINE, THEIRS], ADMIN)

    assert Caller(auth.key_id(MINE)) == keys.caller(bearer(MINE))
    assert Caller(auth.key_id(THEIRS)) == keys.caller([(b"x-api-key", THEIRS.encode())])
    assert Caller(auth.key_id(MINE)) == keys.caller(
        [(b"authorization", b"bearer  " + MINE.encode()), (b"x-api-key", b"sk-other")]
    )
    assert Caller("admin", is_admin=True) == keys.caller(bearer(ADMIN))


@pytest.mark.parametrize(
    ("headers", "came"),
    [
        ([], "no key"),
        (bearer(""), "no key"),
        ([(b"authorization", b"Basic " + MINE.encode())], "no key"),
        ([(b"authorization", MINE.encode())], "no key"),
        ([(b"x-api-key", b" ")], "no key"),
        ([(b"cookie", MINE.encode())], "no key"),
        (bearer("client-key"), "another key"),
        (bearer(MINE + "1"), "another key"),
        (bearer(MINE.upper()), "another key"),
        ([(b"x-api-key", b"\xff\xfe")], "another key"),
    ],
)
def test_a_wrong_client_key_is_refused(headers: list[tuple[bytes, bytes]], came: str) -> None:
    """Without a configured key nothing is served, and the error doesn't repeat what came."""
    keys = Keys([MINE, THEIRS], ADMIN)

    with pytest.raises(Unauthorized, match=f"server.client_keys.*; got {came};") as caught:
        keys.caller(headers)

    assert MINE not in caught.value.message


@pytest.mark.parametrize("headers", [[], bearer(MINE), bearer("x"), bearer(ADMIN[:-1])])
def test_the_admin_routes_need_the_admin_key(headers: list[tuple[bytes, bytes]]) -> None:
    """No client key opens /admin, with client keys configured or without."""
    for keys in (Keys((), ADMIN), Keys([MINE], ADMIN)):
        keys.require_admin(bearer(ADMIN))
        with pytest.raises(Unauthorized, match=r"expected the admin key .*admin\.key"):
            keys.require_admin(headers)


def test_a_key_id_is_stable_and_tells_keys_apart() -> None:
    """The id of a key is the same in every version and process, and doesn't show the key."""
    assert "key_e234fe0866e4" == auth.key_id(MINE)
    assert auth.key_id(MINE) != auth.key_id(THEIRS)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8484",
        "localhost.",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:8484",
        "strop.lan:8484",
        "Strop.Lan",
        "[fd00::7]:8484",
    ],
)
@pytest.mark.parametrize("bind", ["127.0.0.1", "localhost", "::1"])
def test_on_loopback_local_and_allowed_names_are_answered(bind: str, host: str) -> None:
    """Names that no web page can have pass, with any port, and those that are configured."""
    doors = Doors(bind, allowed_hosts=["strop.LAN", "[FD00::7]"])

    doors.check([(b"host", host.encode())])


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [""],
        ["evil.example"],
        ["evil.example:8484"],
        ["localhost.evil.example"],
        ["127.0.0.1.evil.example"],
        ["[::1].evil.example"],
        ["localhost@evil.example"],
        ["::1"],
        ["0.0.0.0"],
        ["localhost", "evil.example"],
    ],
)
def test_on_loopback_other_names_are_refused(hosts: list[str]) -> None:
    """A request that names another host may come from a page whose name was rebound to us."""
    with pytest.raises(Forbidden, match=r"expected a Host header .* server\.allowed_hosts"):
        Doors("127.0.0.1").check([(b"host", host.encode()) for host in hosts])


def test_a_public_bind_answers_any_name_or_those_allowed() -> None:
    """Client keys guard a public bind; with allowed hosts, only these and local ones pass."""
    Doors("0.0.0.0").check([(b"host", b"anything.example")])
    Doors("192.0.2.7", ["strop.lan"]).check([(b"host", b"192.0.2.7:8484")])
    Doors("2001:db8::7", ["strop.lan"]).check([(b"host", b"[2001:db8::7]:8484")])
    Doors("[2001:db8::7]", ["strop.lan"]).check([(b"host", b"[2001:db8::7]:8484")])
    Doors("192.0.2.7", ["strop.lan"]).check([(b"host", b"strop.lan")])

    with pytest.raises(Forbidden, match=r"anything\.example"):
        Doors("192.0.2.7", ["strop.lan"]).check([(b"host", b"anything.example")])


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:8484", "HTTP://LOCALHOST:8484", "https://chat.lan:3000", "file://"],
)
def test_the_same_origin_and_allowed_ones_pass(origin: str) -> None:
    """Our own pages may call us, and those that are configured."""
    doors = Doors("127.0.0.1", allowed_origins=["https://Chat.lan:3000", "file://"])

    doors.check([(b"host", b"localhost:8484"), (b"origin", origin.encode())])


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://localhost",
        "http://localhost:3000",
        "http://evil.example",
        "http://chat.lan:3000",
        "https://chat.lan:3000.evil.example",
        "file://",
        "localhost:8484",
    ],
)
def test_other_origins_are_refused(origin: str) -> None:
    """A page from elsewhere can't call us, even by a name that is ours."""
    doors = Doors("127.0.0.1", allowed_origins=["https://chat.lan:3000"])

    says = r"expected no Origin header.* server\.allowed_origins.* sends no CORS headers"
    with pytest.raises(Forbidden, match=says):
        doors.check([(b"host", b"localhost:8484"), (b"origin", origin.encode())])


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_any_host_and_origin_pass_or_are_refused(host: bytes, origin: bytes) -> None:
    """No header breaks the check."""
    for bind in ("127.0.0.1", "0.0.0.0"):
        try:
            Doors(bind).check([(b"host", host), (b"origin", origin)])
        except Forbidden as error:
            assert error.message.startswith("expected ")  # noqa: PT017


@pytest.mark.parametrize(
    ("bind", "expected"),
    [
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("::1", False),
        ("[::1]", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("::", True),
        ("192.168.1.2", True),
        ("strop.lan", True),
        ("", True),
    ],
)
def test_a_bind_is_public_unless_it_is_loopback(bind: str, expected: bool) -> None:
    """Only loopback addresses and localhost are out of reach for other machines."""
    assert expected is auth.is_public(bind)


def test_a_public_bind_needs_client_keys() -> None:
    """Nobody is served to a whole network without a key."""
    auth.check_bind("127.0.0.1", ())
    auth.check_bind("0.0.0.0", (MINE,))

    with pytest.raises(ConfigError, match=r"server\.host = '0\.0\.0\.0' .* set client keys"):
        auth.check_bind("0.0.0.0", ())


def test_the_admin_key_is_made_once(tmp_path: Path) -> None:
    """The first call makes a key that only its owner reads; later calls give the same."""
    key = auth.load_or_create_admin_key(tmp_path)

    assert key == auth.load_or_create_admin_key(tmp_path)
    assert re.fullmatch(r"strop-admin-[\w-]{43}", key)
    assert 0o600 == stat.S_IMODE((tmp_path / "admin.key").stat().st_mode)


def test_an_admin_key_that_others_can_read_is_closed(tmp_path: Path) -> None:
    """A key file of one's own is taken, and its mode set to 0600."""
    path = tmp_path / "admin.key"
    path.write_text("  my-own-key \n")
    path.chmod(0o644)

    assert "my-own-key" == auth.load_or_create_admin_key(tmp_path)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_an_admin_key_that_is_none_is_explained(tmp_path: Path) -> None:
    """An empty or unreadable file is an error that names it, and never an open door."""
    path = tmp_path / "admin.key"

    path.write_text("\n")
    with pytest.raises(ConfigError, match="got an empty file; delete it"):
        auth.load_or_create_admin_key(tmp_path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"expected to keep an admin key in .*admin\.key"):
        auth.load_or_create_admin_key(tmp_path)
    with pytest.raises(ConfigError, match=r"expected to keep an admin key in .*admin\.key"):
        auth.load_or_create_admin_key(tmp_path / "missing")


def test_an_admin_key_that_could_not_be_written_is_made_later(tmp_path: Path) -> None:
    """A full disk leaves no empty file, which would be refused for ever."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(ConfigError, match="File too large"):
            auth.load_or_create_admin_key(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert auth.load_or_create_admin_key(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sent client-key-1 and client-key-12", "sent [hidden] and [hidden]"),
        ("Authorization: Bearer abc.DEF-1_2~3+4/5=", "Authorization: Bearer [hidden]"),
        ("authorization: basic dTpw, more", "authorization: basic [hidden], more"),
        ("GET http://me:pw@host:1/v1", "GET http://[hidden]@host:1/v1"),
        ("user@host /a", "user@host /a"),
        ("", ""),
    ],
)
def test_secrets_are_scrubbed(text: str, expected: str) -> None:
    """Known secrets and what looks like credentials are hidden from a text."""
    assert expected == auth.scrub(text, ["client-key-1", "client-key-12", ""])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("https://me:pw@host:1/v1?key=secret#x", "https://host:1/v1"),
        ("https://p@w@host/", "https://host/"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://[::1/v1?key=secret", "[hidden]"),
        ("/v1/models?key=secret", "/v1/models"),
    ],
)
def test_urls_are_scrubbed(url: str, expected: str) -> None:
    """A URL is shown without credentials, query and fragment."""
    assert expected == auth.scrub_url(url)


@pytest.mark.parametrize(
    "key", ["", "ollama", "EMPTY", "lm-studio", "sk-no-key-required", "a" * 11]
)
def test_a_placeholder_for_an_engines_key_is_no_secret(key: str) -> None:
    """Else hosts and words that are called so would be hidden in logs."""
    clients = ("12345678",)

    assert clients == auth.secrets_of(clients, key)
    assert (*clients, "sk-0123456789") == auth.secrets_of(clients, "sk-0123456789")
