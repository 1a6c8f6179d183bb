"""What docker/ says of the code is true. Nothing is built or started here."""

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from strop.proxy import auth, child
from strop.proxy.cli.root import main
from strop.proxy.engines.base import AdaptersFolder
from strop.proxy.errors import ConfigError
from strop.proxy.routes.health import ROUTES
from strop.proxy.settings import settings

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
DOCKERFILES = ("Dockerfile", "Dockerfile.trainer")
COMPOSE_FILES = ("compose.vllm.yaml", "compose.ollama.yaml")
HOME = "/var/lib/strop"

# What a person puts into docker/.env before they start one.
EXPORTED = {
    "STROP_SERVER_CLIENT_KEYS": "a-key-of-enough-characters",
    "MODEL": "Qwen/Qwen3-4B",
    "BASE": "",
}


def instructions(name: str) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions, comments and line breaks taken out."""
    text = (DOCKER / name).read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(line[0], line[1]) for line in lines]


def of_kind(name: str, kind: str) -> list[str]:
    return [rest for found, rest in instructions(name) if found == kind]


def compose(name: str) -> dict[str, Any]:
    """Return a compose file, its variables filled in."""
    read = filled_in(yaml.safe_load((DOCKER / name).read_text(encoding="utf-8")))
    assert isinstance(read, dict)
    return read


def filled_in(value: Any) -> Any:
    """Return what compose makes of a value: variables are filled in after YAML is read."""
    if isinstance(value, dict):
        return {key: filled_in(one) for key, one in value.items()}
    if isinstance(value, list):
        return [filled_in(one) for one in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)(?::[?-][^}]*)?\}", lambda found: EXPORTED[found[1]], value)
    return value


def environment(dockerfile: str) -> dict[str, str]:
    """Return what ENV sets."""
    (line,) = of_kind(dockerfile, "ENV")
    return dict(pair.split("=", 1) for pair in shlex.split(line))


def services() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each service of each compose file."""
    for name in COMPOSE_FILES:
        for service, described in compose(name)["services"].items():
            yield name, service, described


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_is_there_and_not_ignored(name: str) -> None:
    """And each package that setuptools installs is among it."""
    ignored = (DOCKER / f"{name}.dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [
        source
        for line in of_kind(name, "COPY")
        if not line.startswith("--from")
        for source in line.split()[:-1]
    ]

    assert all((ROOT / source).exists() for source in copied)
    assert {f"!{source.removeprefix('./')}" for source in copied} <= set(ignored)
    folders = re.findall(r'^"strop\.\w+" = "(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert folders
    assert set(folders) <= set(copied)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_does_not_run_as_root(name: str) -> None:
    """The last word on the user is strop's, whom the image makes."""
    (user,) = of_kind(name, "USER")

    assert "strop" == user
    assert any(f"useradd --uid 1000 --create-home {user}" in run for run in of_kind(name, "RUN"))


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_are_pinned(name: str) -> None:
    """To a version of Python that strop runs on, down to the patch."""
    for line in of_kind(name, "FROM"):
        found = re.match(r"python:3\.(\d+)\.\d+-slim-\w+( AS \w+)?$", line)
        assert found is not None, line
        assert int(found[1]) >= 11


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_s_settings_are_strop_s(name: str, tmp_path: Path) -> None:
    """Its home is the volume, its port the one that strop listens on by default."""
    environ = {key: one for key, one in environment(name).items() if key.startswith("STROP_")}

    resolved = settings.load(tmp_path, environ=environ).settings

    assert [HOME] == of_kind(name, "VOLUME")
    assert Path(HOME) == settings.find_home(environ)
    assert [str(settings.Settings().server.port)] == of_kind(name, "EXPOSE")
    with pytest.raises(ConfigError, match="client_keys"):
        auth.check_bind(resolved.server.host, resolved.server.client_keys)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_health_check_asks_a_route_that_exists(name: str) -> None:
    """One that does not depend on the engine."""
    (check,) = of_kind(name, "HEALTHCHECK")
    found = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", check)

    assert found is not None
    assert settings.Settings().server.port == int(found[1])
    assert "/livez" == found[2]
    assert found[2] in {route.path for route in ROUTES}


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_command_is_one_of_strop_s(name: str) -> None:
    """`strop serve`, without options: the environment has them."""
    assert ['["strop"]'] == of_kind(name, "ENTRYPOINT")
    assert ['["serve"]'] == of_kind(name, "CMD")
    assert 0 == CliRunner().invoke(main, ["serve", "--help"]).exit_code


def test_the_trainer_is_the_proxy_and_more() -> None:
    """The same instructions, but for what is installed and where models are."""
    kinds = [[kind for kind, _ in instructions(name)] for name in DOCKERFILES]
    assert kinds[0] == [kind for kind in kinds[1] if kind != "ARG"]

    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", " ".join(of_kind("Dockerfile.trainer", "RUN")))
    known = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{extra} = [" in known for extra in extras.split(","))


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_strop_s_environment_is_strop_s(name: str, tmp_path: Path) -> None:
    """Every variable is a setting, every value is in its range, and strop would start with them."""
    service = compose(name)["services"]["strop"]
    dockerfile = Path(service["build"]["dockerfile"]).name
    mine = {**environment(dockerfile), **service["environment"]}
    environ = {key: one for key, one in mine.items() if key.startswith("STROP_")}

    resolved = settings.load(tmp_path, environ=environ).settings

    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert (DOCKER / service["build"]["context"]).resolve() == ROOT
    auth.check_bind(resolved.server.host, resolved.server.client_keys)
    assert service["ports"] == [f"127.0.0.1:{resolved.server.port}:{resolved.server.port}"]
    grace_s = float(service["stop_grace_period"].removesuffix("s"))
    assert grace_s > resolved.server.drain_s + child.STOP_TIMEOUT_S


def test_the_line_that_runs_strop_without_compose_is_whole(tmp_path: Path) -> None:
    """Pasted as it is: its settings are strop's, and answers under way may finish."""
    readme = (DOCKER / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    (line,) = re.findall(r"^    docker run (.*)$", readme, re.MULTILINE)
    words = shlex.split(line)
    given = list(itertools.pairwise(words))
    environ = environment("Dockerfile") | {
        "STROP_SERVER_CLIENT_KEYS": EXPORTED["STROP_SERVER_CLIENT_KEYS"],
        **dict(value.split("=", 1) for option, value in given if option == "-e"),
    }
    environ = {key: one for key, one in environ.items() if key.startswith("STROP_")}

    server = settings.load(tmp_path, environ=environ).settings.server

    auth.check_bind(server.host, server.client_keys)
    assert "strop" == words[-1]
    assert ("-p", f"127.0.0.1:{server.port}:{server.port}") in given
    assert ("-v", f"strop:{HOME}") in given
    (stop_s,) = [float(value) for option, value in given if option == "--stop-timeout"]
    assert stop_s > server.drain_s + child.STOP_TIMEOUT_S


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_strop_finds_its_engine_and_nobody_else_does(name: str) -> None:
    """By the service's name and the port it exposes; none is published."""
    found = compose(name)["services"]
    environ = found["strop"]["environment"]
    host, _, port = environ["STROP_ENGINE_URL"].removeprefix("http://").partition(":")

    assert [port] == found[host]["expose"]
    assert "ports" not in found[host]
    assert {host: {"condition": "service_healthy"}} == found["strop"]["depends_on"]


def test_vllm_sees_the_adapters_where_strop_says_that_it_does() -> None:
    """And can't write them."""
    found = compose("compose.vllm.yaml")["services"]
    mine = dict(one.split(":")[:2] for one in found["strop"]["volumes"])
    theirs = dict(one.split(":")[:2] for one in found["vllm"]["volumes"])
    there = found["strop"]["environment"]["STROP_ENGINE_ADAPTERS_DIR"]

    assert (f"{HOME}/adapters", there) == (mine["adapters"], theirs["adapters"])
    assert "adapters:/adapters:ro" in found["vllm"]["volumes"]
    folder = AdaptersFolder(Path(mine["adapters"]), there)
    assert f"{there}/v3" == folder.seen(Path(mine["adapters"]) / "v3")


def test_vllm_is_started_as_strop_needs_it() -> None:
    """With the routes that load adapters, and room for two versions."""
    vllm = compose("compose.vllm.yaml")["services"]["vllm"]

    assert {"--enable-lora", "--max-loras=2", "--port=8000"} <= set(vllm["command"])
    assert "True" == vllm["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"]


def test_the_trainer_finds_the_models_where_the_volume_is() -> None:
    """`model.base` is looked up in the hub's cache, which `HF_HOME` names."""
    hub = environment("Dockerfile.trainer")["HF_HOME"]
    for name in COMPOSE_FILES:
        assert f"hub:{hub}" in compose(name)["services"]["strop"]["volumes"]


def test_services_are_pinned_and_checked_and_their_volumes_are_declared() -> None:
    """No image is whatever is newest, and each engine says when it is ready."""
    for name, service, described in services():
        image = described.get("image")
        if image is not None:
            assert re.search(r":v?\d+\.\d+\.\d+$", image), image
            assert described["healthcheck"]["test"][0] == "CMD", service
        declared = compose(name)["volumes"]
        assert {one.split(":")[0] for one in described["volumes"]} <= set(declared)


def test_every_file_is_told_of() -> None:
    """In the README's table."""
    readme = (DOCKER / "README.md").read_text(encoding="utf-8")
    # What its owner has started with is no part of it.
    here = {one.name for one in DOCKER.iterdir()} - {"README.md", ".env"}

    assert here == set(re.findall(r"^\| `([\w.]+)`", readme, re.MULTILINE)) | {
        f"{name}.dockerignore" for name in DOCKERFILES
    }
