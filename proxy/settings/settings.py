"""Settings: every key with its default, and where each value in force came from.

Reads one file, and acts on no setting. `configs/strop.toml` is the manual of the keys.
"""

import difflib
import os
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_type_hints

from strop import configs
from strop.proxy.auth import host_name, scrub
from strop.proxy.errors import ConfigError
from strop.proxy.settings import paths
from strop.proxy.settings.kinds import Kind, Range, Secret, is_base_url, parse_hours, shown
from strop.proxy.settings.service_variables import is_of_a_service
from strop.proxy.store import layout

HOME_VARIABLE: Final = "STROP_HOME"

_PREFIX = "STROP_"
_SECTION_IN = re.compile(r"STROP_[A-Z]+_|[a-z]+\.")
# Below it, two names have their section in common and little else.
_LIKENESS = 0.85
_Seconds = Annotated[float, Range(0.01, 86_400)]
_Bytes = Annotated[int, Range(1024, 2**31)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where strop listens, to whom, and for how long."""

    host: str = "127.0.0.1"
    port: Annotated[int, Range(0, 65_535)] = 8484
    client_keys: Annotated[tuple[str, ...], Secret(8)] = field(default=(), repr=False)
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: _Bytes = 32 * 2**20
    body_timeout_s: _Seconds = 30.0
    stall_timeout_s: _Seconds = 120.0
    drain_s: Annotated[float, Range(0, 86_400)] = 30.0
    workers: Annotated[int, Range(1, 64)] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The engine behind the proxy."""

    kind: Literal["", "embedded", "vllm", "mlx_server", "ollama", "llama_server", "openai"] = ""
    url: str = ""
    replicas: tuple[str, ...] = ()
    model: str = ""
    key: Annotated[str, Secret()] = field(default="", repr=False)
    adapters_dir: str = ""
    rechunk_streams: bool = False
    first_byte_timeout_s: _Seconds = 600.0
    idle_timeout_s: _Seconds = 300.0
    health_interval_s: _Seconds = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is served, and under which name."""

    name: str = ""
    path: str = ""
    base: str = ""
    accept_any: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """How answers are recorded."""

    mode: Literal["best_effort", "required", "off"] = "best_effort"
    on_disconnect: Literal["cancel", "finish"] = "cancel"
    synchronous: Literal["FULL", "NORMAL"] = "FULL"
    commit_timeout_s: _Seconds = 5.0
    max_answer_bytes: _Bytes = 32 * 2**20
    redact: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """How adapter versions are kept and swapped."""

    keep: Annotated[int, Range(2, 10_000)] = 10
    swap_hold_s: _Seconds = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """When ratings are learned from, how, and what becomes of the result."""

    enabled: bool = True
    ratings: Annotated[int, Range(2, 100_000)] = 32
    idle_s: Annotated[float, Range(0, 86_400)] = 0.0
    hours: str = ""
    promote: Literal["auto", "manual"] = "auto"
    objective: Literal["topr", "mispo", "reinforce", "sft", "kto", "dpo"] = "topr"
    preset: str = "balanced"
    backend: Literal["auto", "torch", "mlx"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    quantize_base: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What strop writes to its standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, by section."""

    server: Server = field(default_factory=Server)
    engine: Engine = field(default_factory=Engine)
    model: Model = field(default_factory=Model)
    capture: Capture = field(default_factory=Capture)
    adapters: Adapters = field(default_factory=Adapters)
    training: Training = field(default_factory=Training)
    log: Log = field(default_factory=Log)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings in force, and for each key, as `section.key`, where its value came from."""

    settings: Settings
    origins: Mapping[str, str]

    def describe(self) -> list[tuple[str, str, str]]:
        """Return key, value and origin of every setting; of secrets, only whether they are set."""
        return [
            (name, kind.shown(value_of(self.settings, name)), self.origins[name])
            for name, kind in KINDS.items()
        ]


def value_of(settings: Settings, name: str) -> object:
    """Return the value of the setting `name`, as `section.key`."""
    section, _, key = name.partition(".")
    value: object = getattr(getattr(settings, section), key)
    return value


_SECTIONS: Mapping[str, type[Any]] = get_type_hints(Settings)

KINDS: Final[Mapping[str, Kind]] = {
    f"{section}.{one.name}": Kind.of(hints[one.name])
    for section, holder in _SECTIONS.items()
    for hints in [get_type_hints(holder, include_extras=True)]
    for one in fields(holder)
}
"""What each key, as `section.key`, may be."""

VARIABLES: Final[Mapping[str, str]] = {
    _PREFIX + name.replace(".", "_").upper(): name for name in KINDS
}
"""The environment variable of each key."""


def find_home(environ: Mapping[str, str]) -> Path:
    """Return the folder where strop keeps its things: `STROP_HOME`, or `~/.strop`.

    Raises:
        ConfigError: as `absolute` has it.
    """
    return absolute(Path(environ.get(HOME_VARIABLE) or "~/.strop"))


def absolute(folder: Path) -> Path:
    """Return the whole path of `folder`, which may begin with `~`.

    Raises:
        ConfigError: nobody knows where that user's folder is.
    """
    try:
        return folder.expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(
            f"expected a folder, got {folder}, and no user's home for its ~; set {HOME_VARIABLE} to"
            " a whole path"
        ) from error


def home_hint(home: Path) -> str:
    """Return the option that names `home` in a command to copy, where it isn't the default."""
    return "" if home == find_home(os.environ) else f" --home {shlex.quote(str(home))}"


def make_home(home: Path) -> None:
    """Make the home folder, for its owner only; one that exists is left as it is.

    Raises:
        ConfigError: it can't be made.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"expected to make the folder {home}: {error}; set STROP_HOME") from error


def load(
    home: Path,
    *,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Resolved:
    """Return the settings in force: defaults < `strop.toml` in the home < environment < flags.

    A relative path in the file begins at the home, any other at the current folder.

    Args:
        home: the folder with the file; neither needs to exist.
        flags: values by `section.key`; None for a flag that was not given.
        environ: the environment variables; all that begin with `STROP_` must be known, but for
            those that a service named strop gets.

    Raises:
        ConfigError: a key is unknown, or a value is not what it must be.
    """
    values: dict[str, object] = {}
    origins = dict.fromkeys(KINDS, "default")
    given = [
        *_from_file(home / layout.SETTINGS),
        *_from_environment(environ or {}),
        *_from_flags(flags or {}),
    ]
    for name, value, origin in given:
        values[name], origins[name] = value, origin
    for name in values.keys() & paths.NAMES:
        is_in_file = origins[name] == str(home / layout.SETTINGS)
        folder = home if is_in_file else Path.cwd()
        values[name] = paths.resolved(name, str(values[name]), folder)
    settings = of(values)
    _check_forms(settings, origins)
    return Resolved(settings, origins)


def of(values: Mapping[str, object]) -> Settings:
    """Return the settings with these values, by `section.key`; the others are the defaults."""
    return Settings(
        **{
            section: holder(
                **{
                    name.partition(".")[2]: value
                    for name, value in values.items()
                    if name.partition(".")[0] == section
                }
            )
            for section, holder in _SECTIONS.items()
        }
    )


_Given = Iterator[tuple[str, object, str]]


def _from_file(path: Path) -> _Given:
    origin = str(path)
    try:
        # Some editors begin every file with a byte order mark, which TOML knows nothing of.
        sections = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected a readable TOML file: {error}") from error
    for section, keys in sections.items():
        if section not in _SECTIONS:
            known = _SECTIONS if isinstance(keys, dict) else KINDS
            raise ConfigError(f"{path}: unknown section [{section}]{_nearest(section, known)}")
        if not isinstance(keys, dict):
            raise ConfigError(f"{path}: expected [{section}] to be a section, got {shown(keys)}")
        for key, value in keys.items():
            name = f"{section}.{key}"
            yield name, checked(name, value, origin), origin


def _from_environment(environ: Mapping[str, str]) -> _Given:
    for variable, text in environ.items():
        if not variable.startswith(_PREFIX) or variable == HOME_VARIABLE:
            continue
        if is_of_a_service(variable, text):
            continue
        name = VARIABLES.get(variable)
        if name is None:
            raise ConfigError(
                f"environment: unknown variable {variable}{_nearest(variable, VARIABLES)}"
            )
        try:
            value = KINDS[name].parse(text)
        except ValueError:
            raise _wrong(name, text, f"environment: {variable}") from None
        yield name, value, f"environment {variable}"


def _from_flags(flags: Mapping[str, object]) -> _Given:
    for name, value in flags.items():
        if value is not None:
            yield name, checked(name, value, "flag"), "flag"


def checked(name: str, value: object, origin: str) -> object:
    """Return `value` as the setting `name` holds it, or raise a ConfigError that names `origin`."""
    if name not in KINDS:
        raise ConfigError(f"{origin}: unknown key {name}{_nearest(name, KINDS)}")
    try:
        return KINDS[name].check(value)
    except ValueError:
        raise _wrong(name, value, f"{origin}: {name}") from None


def _wrong(name: str, value: object, where: str) -> ConfigError:
    kind = KINDS[name]
    got = "another value, not shown since it is secret" if kind.secret else shown(value)
    return ConfigError(f"{where}: expected {kind.expected}, got {got}")


def _nearest(name: str, known: Mapping[str, object]) -> str:
    """Return a hint at the key that was meant: this name in another section, or one like it."""
    key = name.rpartition(".")[2]
    same = [one for one in known if one.rpartition(".")[2] == key]
    found = same or difflib.get_close_matches(name, known, n=1, cutoff=_LIKENESS)
    if found:
        return f"; did you mean {found[0]}?"
    section = _SECTION_IN.match(name)
    within = [one for one in known if section and one.startswith(section[0])]
    return f"; known are {', '.join(within or known)}; what only an older strop knew, take out"


def _check_forms(settings: Settings, origins: Mapping[str, str]) -> None:
    """Check the form of what are strings to their kind."""

    def wrong(name: str, expected: str) -> ConfigError:
        got = scrub(KINDS[name].shown(value_of(settings, name)), ())
        where = "" if origins[name] == "default" else f"{origins[name]}: "
        return ConfigError(f"{where}{name}: expected {expected}, got {got}")

    engine, server = settings.engine, settings.server
    if not server.host:
        raise wrong("server.host", "a host or address to listen on")
    if not all(map(host_name, server.allowed_hosts)):
        raise wrong("server.allowed_hosts", "host names alone, as in `strop.lan` or `[fd00::7]`")
    if any("://" not in one or one.count("/") > 2 for one in server.allowed_origins):
        raise wrong("server.allowed_origins", "origins, as in `https://strop.lan:8484`")
    urls = (engine.url,) if engine.url else ()
    for name, given in (("engine.url", urls), ("engine.replicas", engine.replicas)):
        if not all(map(is_base_url, given)):
            raise wrong(
                name,
                "http:// or https://, a host (one named v1 with its port), and at most a path; a"
                " key goes into engine.key",
            )
    for pattern in settings.capture.redact:
        if (why := _why_not_redacted(pattern)) is not None:
            raise wrong("capture.redact", f"regular expressions, but {pattern!r} {why}")
    preset = settings.training.preset
    if configs.preset_file(preset) is None:
        expected = f"one of {', '.join(configs.presets())}, or the path of a TOML file"
        if paths.looks_like_path(paths.PRESET, preset):
            expected += ", and there is no such file"
        raise wrong("training.preset", expected)
    if settings.training.hours:
        try:
            parse_hours(settings.training.hours)
        except ValueError:
            raise wrong("training.hours", 'two hours of the day, as in "22-6"') from None


def _why_not_redacted(pattern: str) -> str | None:
    """Return why what matches `pattern` can't be taken out of a text; None where it can."""
    try:
        found = re.compile(pattern).match("")
    except re.error as error:
        return f"is none ({error})"
    return None if found is None else "matches the empty text, so it is everywhere"
