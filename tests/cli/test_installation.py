"""The commands that run this strop, and that add an extra to it."""

import importlib.util
import os
import shlex
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from waiting import LIMIT_S

from strop.configs import installation


def test_the_command_works_anywhere_and_without_an_index_that_has_strop(tmp_path: Path) -> None:
    """As it is said, in a shell; this environment has all of the extra, so nothing is fetched."""
    command = f"{installation.install('strop[mlx]')} --dry-run --no-index"

    done = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )

    assert 0 == done.returncode, done.stderr
    assert "Would install" not in done.stdout + done.stderr


def test_the_versions_are_those_that_this_clone_was_tried_with() -> None:
    """Its constraints are named, which no wheel has."""
    words = shlex.split(installation.install("strop[gguf]"))

    assert [sys.executable, "-m", "pip", "install", "-c"] == words[:5]
    assert (Path(words[5]).name, Path(words[5]).is_file()) == ("constraints.txt", True)
    assert ["strop[gguf]"] == words[6:]


def test_what_lies_in_the_current_folder_is_none_of_strops(tmp_path: Path) -> None:
    """Neither a project's own modules, nor a clone of strop that is not this one."""
    clone = tmp_path / "strop" / "proxy"
    clone.mkdir(parents=True)
    for module in (tmp_path / "random.py", clone / "__init__.py"):
        module.write_text("raise SystemExit('a module of the current folder')")

    done = subprocess.run(
        [*installation.module("strop.proxy.cli"), "config"],
        cwd=tmp_path,
        env=os.environ | {"STROP_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )

    assert (0, "") == (done.returncode, done.stderr)


def test_each_process_of_strops_is_started_so() -> None:
    """Engine, workers, runs, probes, the demo's strop and what a command hands over to."""
    root = Path(installation.__file__).parents[1]
    sources = [
        one for name in ("proxy", "training", "adapters") for one in (root / name).rglob("*.py")
    ]

    assert len(sources) > 100
    assert [] == [
        str(one) for one in sources if 'sys.executable, "-m"' in one.read_text(encoding="utf-8")
    ]


def test_strop_is_called_by_its_path_where_no_shell_would_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `make serve`: from the folder where one is, the shortest that works."""
    folder = Path(sys.executable).parent
    said = []

    for path, cwd in ((folder, tmp_path), (tmp_path, tmp_path), (tmp_path, folder.parent)):
        monkeypatch.setenv("PATH", str(path))
        monkeypatch.chdir(cwd)
        said.append(installation.strop())

    assert ["strop", str(folder / "strop"), f"{folder.name}/strop"] == said


def test_another_strop_on_the_path_is_not_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be of another clone, with another database."""
    other = tmp_path / "strop"
    other.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert installation.strop().endswith("/strop")


def test_an_environment_without_pip_is_uvs(monkeypatch: pytest.MonkeyPatch) -> None:
    """There `python -m pip` would end with an error."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    words = shlex.split(installation.install("strop[torch]"))

    assert ["uv", "pip", "install", "--python", sys.executable] == words[:5]


def test_no_command_is_said_that_this_user_could_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an image root has installed strop; what is added belongs into the image."""
    # Root may write everywhere, so the test can't take it away on disk.
    monkeypatch.setattr(os, "access", lambda *_: False)
    said = []

    for has_own_folder in (False, True):
        monkeypatch.setattr(site, "ENABLE_USER_SITE", has_own_folder)
        said.append(installation.install("strop[torch]"))

    assert f"may write to {sysconfig.get_path('purelib')};" in said[0]
    assert "docker/Dockerfile.trainer" in said[0]
    assert "pip install" not in said[0]
    assert "pip install" in said[1]
