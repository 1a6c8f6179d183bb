"""Settings: their sources, their checks, and the manual that ships with them."""

import json
import re
import stat
import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from strop.proxy import configured_engine
from strop.proxy.errors import ConfigError
from strop.proxy.settings import settings, told
from strop.proxy.settings.kinds import Kind
from strop.proxy.settings.settings import KINDS, VARIABLES, Settings, load
from strop.proxy.store import layout

MANUAL = resources.files("strop.configs").joinpath("strop.toml").read_text(encoding="utf-8")


def write(home: Path, text: str) -> Path:
    path = home / layout.SETTINGS
    path.write_text(text, encoding="utf-8")
    return path


def manual_keys() -> dict[str, object]:
    sections = tomllib.loads(MANUAL)
    return {
        f"{name}.{key}": value for name, keys in sections.items() for key, value in keys.items()
    }


def manual_comments() -> dict[str, str]:
    """Return the comment lines directly above each key."""
    found: dict[str, str] = {}
    section, comment = "", list[str]()
    for line in MANUAL.splitlines():
        if line.startswith("["):
            section, comment = line.strip("[]"), []
        elif line.startswith("#"):
            comment.append(line.removeprefix("#").strip())
        elif " = " in line:
            found[f"{section}.{line.partition(' = ')[0]}"] = " ".join(comment)
            comment = []
        else:
            comment = []
    return found


def test_the_manual_has_every_key_at_its_default(tmp_path: Path) -> None:
    """The shipped strop.toml lists every key, no other, and changes nothing."""
    write(tmp_path, MANUAL)

    resolved = load(tmp_path)

    assert list(KINDS) == list(manual_keys())
    assert Settings() == resolved.settings
    assert {str(tmp_path / "strop.toml")} == set(resolved.origins.values())


@pytest.mark.parametrize("name", KINDS)
def test_the_manual_says_meaning_unit_default_and_range(name: str) -> None:
    """Above each key stand its meaning, its default, its unit, and its range."""
    kind = KINDS[name]
    default = manual_keys()[name]

    comment = manual_comments()[name]

    meaning, _, rest = comment.partition("Default: ")
    assert len(meaning) > 20
    assert rest.startswith(f"{default:g}" if isinstance(default, float) else shown(default))
    if kind.range:
        assert f"Range: {kind.range.least:g} to {kind.range.greatest:.0f}." in rest
    if kind.choices:
        assert "Range: " + ", ".join(f'"{choice}"' for choice in kind.choices) + "." in rest
    if name.endswith("_s"):
        assert "in seconds" in meaning
    if name.endswith("_bytes"):
        assert "in bytes" in meaning


def shown(default: object) -> str:
    return (
        {True: "true", False: "false"}[default]
        if isinstance(default, bool)
        else f"{default!r}".replace("'", '"')
    )


def test_defaults_hold_without_a_home() -> None:
    """Where nothing is set, every value is its default."""
    resolved = load(Path("/nonexistent"))

    assert Settings() == resolved.settings
    assert {"default"} == set(resolved.origins.values())


def test_flags_beat_the_environment_beats_the_file(tmp_path: Path) -> None:
    """Each source overrides those below it, and only where it says something."""
    path = write(
        tmp_path, "[server]\nport = 1\nhost = '::1'\ndrain_s = 1\n[log]\nlevel = 'debug'\n"
    )

    resolved = load(
        tmp_path,
        flags={"server.port": 3, "server.host": None},
        environ={"STROP_SERVER_PORT": "2", "STROP_SERVER_DRAIN_S": "2.5", "HOME": "/"},
    )

    server = resolved.settings.server
    assert (3, "::1", 2.5) == (server.port, server.host, server.drain_s)
    assert "debug" == resolved.settings.log.level
    assert "flag" == resolved.origins["server.port"]
    assert str(path) == resolved.origins["server.host"]
    assert "environment STROP_SERVER_DRAIN_S" == resolved.origins["server.drain_s"]
    assert "default" == resolved.origins["engine.url"]


def test_every_type_can_be_set_from_the_environment() -> None:
    """Variables give strings, numbers, booleans, choices, and lists parted by commas."""
    environ = {
        "STROP_ENGINE_URL": " http://127.0.0.1:8000/v1 ",
        "STROP_SERVER_MAX_BODY_BYTES": "4096",
        "STROP_ENGINE_IDLE_TIMEOUT_S": "5",
        "STROP_MODEL_ACCEPT_ANY": "True",
        "STROP_CAPTURE_MODE": "required",
        "STROP_SERVER_CLIENT_KEYS": "first-key-1, second-key,",
        "STROP_SERVER_ALLOWED_HOSTS": "",
        "STROP_CAPTURE_REDACT": r"sk-[a-z]{20,40}, \d{3,} ,b",
        "STROP_HOME": "/anywhere",
    }

    found = load(Path("/nonexistent"), environ=environ).settings

    assert "http://127.0.0.1:8000/v1" == found.engine.url
    assert 4096 == found.server.max_body_bytes
    assert 5.0 == found.engine.idle_timeout_s
    assert isinstance(found.engine.idle_timeout_s, float)
    assert found.model.accept_any is True
    assert "required" == found.capture.mode
    assert ("first-key-1", "second-key") == found.server.client_keys
    assert () == found.server.allowed_hosts
    assert ("sk-[a-z]{20,40}", r"\d{3,}", "b") == found.capture.redact


def test_each_key_has_one_variable() -> None:
    """No two keys share an environment variable, and none is the home's."""
    assert len(KINDS) == len(VARIABLES)
    assert settings.HOME_VARIABLE not in VARIABLES
    assert "engine.first_byte_timeout_s" == VARIABLES["STROP_ENGINE_FIRST_BYTE_TIMEOUT_S"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nprot = 1", "unknown key server.prot; did you mean server.port?"),
        ("[engine]\nport = 1", "unknown key engine.port; did you mean server.port?"),
        (
            "[server]\nkeep_alive_s = 60",
            "unknown key server.keep_alive_s; known are server.host, server.port, server.client_",
        ),
        ("[server]\nkeep_alive_s = 60", "; what only an older strop knew, take out"),
        ("[sever]\nport = 1", "unknown section [sever]; did you mean server?"),
        (
            "[qqqq]",
            "unknown section [qqqq]; known are server, engine, model, capture, adapters,"
            " training, log",
        ),
        ('[training]\nhours = "late"', 'expected two hours of the day, as in "22-6", got "late"'),
        ("[capture]\nredact = ['(x']", "expected regular expressions, but '(x' is none"),
        ("[capture]\nredact = ['\\d*']", "'\\\\d*' matches the empty text, so it is everywhere"),
        ('[engine]\nreplicas = ["here"]', "engine.replicas: expected http:// or https://"),
        ("port = 1", "unknown section [port]; did you mean server.port?"),
        ("server = 1", "expected [server] to be a section, got 1"),
        ("[server]\nport = '1'", 'server.port: expected an integer from 0 to 65,535, got "1"'),
        ("[server]\nport = 1.0", "server.port: expected an integer from 0 to 65,535, got 1.0"),
        ("[server]\nport = true", "server.port: expected an integer from 0 to 65,535, got true"),
        ("[server]\nport = 65536", "server.port: expected an integer from 0 to 65,535, got 65536"),
        ("[server]\ndrain_s = nan", "server.drain_s: expected a number from 0 to 86,400, got NaN"),
        ("[server]\ndrain_s = inf", "server.drain_s: expected a number from 0 to 86,400"),
        (f"[server]\ndrain_s = {10**400}", "server.drain_s: expected a number from 0 to 86,400"),
        ("[server]\nhost = 1979-05-27", 'server.host: expected a string, got "1979-05-27"'),
        ("[server]\nhost = ''", "server.host: expected a host or address to listen on"),
        ("[server]\nallowed_hosts = 'a'", "expected a list of strings, got"),
        ("[server]\nallowed_hosts = [1]", "expected a list of strings, got"),
        ("[server]\nallowed_hosts = ['http://a']", "server.allowed_hosts: expected host names"),
        ("[server]\nallowed_hosts = ['']", "server.allowed_hosts: expected host names"),
        (
            "[server]\nallowed_hosts = ['fd00::7']",
            "expected host names alone, as in `strop.lan` or",
        ),
        ("[server]\nallowed_origins = ['a.lan']", "server.allowed_origins: expected origins"),
        ("[model]\naccept_any = 1", "model.accept_any: expected true or false, got 1"),
        ("[capture]\nmode = 'on'", 'expected one of "best_effort", "required", "off", got "on"'),
        ("[engine]\nurl = 'localhost:8000'", "engine.url: expected http:// or https://"),
        ("[engine]\nurl = 'http://a:b'", "engine.url: expected http:// or https://"),
        ("[engine]\nurl = 'http://a/v1?key=1'", "engine.url: expected http:// or https://"),
        ("[engine]\nurl = 'http://a/?'", "engine.url: expected http:// or https://"),
        ("[engine]\nurl = 'http://a/#'", "engine.url: expected http:// or https://"),
        ("[engine]\nurl = 'https://v1/'", "a host (one named v1 with its port)"),
        ("[engine]\nreplicas = ['http://a', '']", "engine.replicas: expected http:// or https://"),
        ("[server\n", "expected a readable TOML file: "),
        (f"[server]\nport = {'[' * 5000}", "expected a readable TOML file: "),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, said: str) -> None:
    """An error names the file, the key, what was expected and what came, or the nearest key."""
    path = write(tmp_path, text)

    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load(tmp_path)

    assert caught.value.message.startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("STROP_SERVER_PRT", "1", "unknown variable STROP_SERVER_PRT; did you mean STROP_SERVER_P"),
        ("STROP_TRAINING_MAX_IN_FLIGHT", "3", "_IN_FLIGHT; known are STROP_TRAINING_ENABLED"),
        (
            "STROP_SERVER_PORT",
            "x",
            'STROP_SERVER_PORT: expected an integer from 0 to 65,535, got "x',
        ),
        ("STROP_SERVER_DRAIN_S", "nan", "STROP_SERVER_DRAIN_S: expected a number"),
        ("STROP_MODEL_ACCEPT_ANY", "maybe", "STROP_MODEL_ACCEPT_ANY: expected true or false"),
        ("STROP_MODEL_NAME", "\udcff", "STROP_MODEL_NAME: expected a string"),
    ],
)
def test_a_wrong_variable_is_explained(variable: str, text: str, said: str) -> None:
    """An error names the variable, what was expected and what came."""
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(Path("/nonexistent"), environ={variable: text})


def test_a_wrong_flag_is_explained() -> None:
    """Flags are checked as the file is."""
    with pytest.raises(ConfigError, match=r"flag: server\.port: expected an integer from 0 to"):
        load(Path("/nonexistent"), flags={"server.port": 70_000})
    with pytest.raises(ConfigError, match=r"flag: unknown key port; did you mean server\.port\?"):
        load(Path("/nonexistent"), flags={"port": 1})


def test_a_file_that_is_no_file_is_explained(tmp_path: Path) -> None:
    """A settings file that can't be read is an error, not a default."""
    (tmp_path / layout.SETTINGS).mkdir()

    with pytest.raises(ConfigError, match=r"strop\.toml: expected a readable TOML file"):
        load(tmp_path)


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    """No description, representation or error holds a secret."""
    write(tmp_path, "[server]\nclient_keys = ['hush-hush-1']\n[engine]\nkey = 'hush-hush-2'\n")

    resolved = load(tmp_path)
    described = {name: value for name, value, _ in resolved.describe()}

    assert "set" == described["server.client_keys"] == described["engine.key"]
    assert "hush" not in str(resolved.describe()) + repr(resolved)
    unset = {name: value for name, value, _ in load(Path("/nonexistent")).describe()}
    assert "not set" == unset["server.client_keys"] == unset["engine.key"]


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nclient_keys = ['hush']",
        "[server]\nclient_keys = 'hush-hush'",
        "[engine]\nurl = 'http://me:hush@host'",
    ],
)
def test_errors_show_no_secrets(tmp_path: Path, text: str) -> None:
    """An error about a secret says what was expected, and not what came."""
    write(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load(tmp_path)

    assert "expected" in caught.value.message
    assert "hush" not in caught.value.message


def test_every_key_is_described_with_its_origin() -> None:
    """`describe` gives every key as TOML would write it, and where it came from."""
    described = load(Path("/nonexistent"), flags={"server.allowed_hosts": ["a.lan"]}).describe()

    assert list(KINDS) == [name for name, _, _ in described]
    assert ("server.allowed_hosts", '["a.lan"]', "flag") in described
    assert ("model.accept_any", "false", "default") in described
    assert ("server.host", '"127.0.0.1"', "default") in described


def test_a_kind_without_marks_takes_any_value_of_its_type() -> None:
    """A number without a range may be any, and an integer is a number."""
    assert 7.0 == Kind.of(float).check(7)
    assert -1 == Kind.of(int).parse("-1")
    with pytest.raises(ValueError, match="a number"):
        Kind.of(float).check(value=True)


def test_the_home_is_the_variable_or_a_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STROP_HOME names the home; unset or empty, it is ~/.strop."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    assert tmp_path / ".strop" == settings.find_home({})
    assert tmp_path / ".strop" == settings.find_home({"STROP_HOME": ""})
    assert tmp_path / "x" == settings.find_home({"STROP_HOME": "~/x"})
    assert tmp_path / "y" == settings.find_home({"STROP_HOME": "y"})


def test_a_home_that_nobody_knows_is_explained() -> None:
    """No such user, or none of this number: then there is nothing that ~ stands for."""
    with pytest.raises(ConfigError, match="set STROP_HOME to a whole path"):
        settings.find_home({"STROP_HOME": "~nobody-of-that-name/x"})


def test_a_new_home_is_its_owners_alone(tmp_path: Path) -> None:
    """The home is made with mode 0700; one that exists keeps its mode."""
    home = tmp_path / "a" / "strop"
    other = tmp_path / "b"
    other.mkdir()
    other.chmod(0o755)

    settings.make_home(home)
    settings.make_home(home)
    settings.make_home(other)

    assert 0o700 == stat.S_IMODE(home.stat().st_mode)
    assert 0o755 == stat.S_IMODE(other.stat().st_mode)


def test_a_home_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    """A home under a file is an error that names the folder."""
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="expected to make the folder"):
        settings.make_home(tmp_path / "file" / "home")


@pytest.mark.parametrize("key", ["model.path", "model.base"])
def test_a_relative_folder_begins_where_it_was_said(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the file at its folder, from flags and the environment at the current one, or at ~."""
    home, here, users = tmp_path / "home", tmp_path / "here", tmp_path / "user"
    for folder in (home, here):
        (folder / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(users))
    section, name = key.split(".")
    (home / "strop.toml").write_text(f'[{section}]\n{name} = "models/mine"\n', encoding="utf-8")

    def value(**more: Any) -> object:
        return getattr(load(home, **more).settings.model, name)

    assert str(home / "models/mine") == value()
    assert str(here / "models/mine") == value(flags={key: "models/mine"})
    variable = f"STROP_{section}_{name}".upper()
    assert str(here / "models/mine") == value(environ={variable: "./models/mine"})
    assert str(users / "mine") == value(flags={key: "~/mine"})


@pytest.mark.parametrize("name", ["org/model", "gpt2", "mlx-community/Qwen3-0.6B"])
def test_what_is_no_folder_is_a_hub_id(name: str, tmp_path: Path) -> None:
    """Unless it looks like a path: then it is never fetched."""
    assert name == load(tmp_path, flags={"model.path": name}).settings.model.path
    for path in (f"./{name}", f"a/b/{name}", f"{name}/"):
        found = load(tmp_path, flags={"model.path": path}).settings
        assert Path(found.model.path).is_absolute()
        with pytest.raises(ConfigError, match="there is no folder /"):
            configured_engine.check(found)


def test_a_relative_preset_begins_where_it_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shipped one's name is that one, whatever lies there."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("mine.toml", "careful"):
        (home / name).touch()
    file = home / "strop.toml"
    file.write_text('[training]\npreset = "mine.toml"\n', encoding="utf-8")
    relative = load(home).settings.training.preset
    file.write_text('[training]\npreset = "careful"\n', encoding="utf-8")
    shipped = load(home).settings.training.preset

    assert (str(home / "mine.toml"), "careful") == (relative, shipped)
    for name in ("mine.toml", "presets/mine"):
        whole = re.escape(str(tmp_path / name))
        with pytest.raises(ConfigError, match=f"there is no such file, got .*{whole}"):
            load(home, flags={"training.preset": name})


def test_what_a_service_named_strop_gets_sets_nothing(tmp_path: Path) -> None:
    """Kubernetes' variables and those of Docker's links, by their values too."""
    given = {
        "STROP_PORT": "tcp://10.0.0.1:8484",
        "STROP_PORT_8484_TCP": "tcp://10.0.0.1:8484",
        "STROP_PORT_8484_TCP_PROTO": "tcp",
        "STROP_PORT_8484_TCP_PORT": "8484",
        "STROP_PORT_8484_TCP_ADDR": "10.0.0.1",
        "STROP_SERVICE_HOST": "10.0.0.1",
        "STROP_SERVICE_PORT": "8484",
        "STROP_SERVICE_PORT_HTTP": "8484",
        "STROP_VLLM_SERVICE_HOST": "10.0.0.2",
        "STROP_SERVER_PORT": "tcp://10.0.0.3:80",
    }

    assert Settings() == load(tmp_path, environ=given).settings
    for variable, text in (("STROP_PORT", "8484"), ("STROP_SERVICE_PORT", "tcp://a:1")):
        with pytest.raises(ConfigError, match=f"unknown variable {variable}"):
            load(tmp_path, environ={variable: text})


@pytest.mark.parametrize("url", ["http://a//v1", "http://a/v1/", "http://v1:80", "http://v1/v1"])
def test_a_url_may_end_in_v1(tmp_path: Path, url: str) -> None:
    """As OPENAI_BASE_URL does, put together from parts perhaps; a host is left without it."""
    write(tmp_path, f"[engine]\nurl = '{url}'")

    assert url == load(tmp_path).settings.engine.url


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As some editors write it."""
    (tmp_path / "strop.toml").write_text("[server]\nport = 9000\n", encoding="utf-8-sig")

    assert 9000 == load(tmp_path).settings.server.port


def test_a_key_is_what_is_between_its_spaces(tmp_path: Path) -> None:
    """No client could send them; and without them, it may be too short."""
    (tmp_path / "strop.toml").write_text(
        '[server]\nclient_keys = [" sk-12345678\\n"]\n', encoding="utf-8"
    )

    assert ("sk-12345678",) == load(tmp_path).settings.server.client_keys
    with pytest.raises(ConfigError, match="at least 8 characters"):
        load(tmp_path, flags={"server.client_keys": ["1234567 "]})


def test_settings_are_told_and_had_again_without_their_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another key is another value, and no value is the key; a hub id stays one."""
    flags = {"engine.key": "sk-one", "engine.kind": "openai", "engine.url": "http://a"}
    flags["model.base"] = "org/model"
    one = load(tmp_path, flags={**flags, "capture.redact": ["a", "b"]}).settings
    other = load(tmp_path, flags={**flags, "engine.key": "sk-other"}).settings

    said = json.loads(json.dumps(told.tell(one)))

    assert "sk-one" not in json.dumps(said)
    assert said["engine.key"] != told.tell(other)["engine.key"]
    (tmp_path / "org/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    again = told.settings_of({**said, "of.another": "strop"})
    assert replace(one, engine=replace(one.engine, key="")) == again
    with pytest.raises(ConfigError, match="the strop that serves: log"):
        told.settings_of({**said, "log.format": "of another release"})
