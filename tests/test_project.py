"""The project is what it says it is: packages, wheel, README."""

import ast
import itertools
import os
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = ("adapters", "configs", "proxy", "training")
NOT_SHIPPED = {"__pycache__"}


def files_of(folder: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not NOT_SHIPPED & set(path.parts)
    }


def test_every_folder_with_code_is_listed_as_a_package() -> None:
    """A forgotten one works in the checkout and is missing from the wheel."""
    folders = {
        "strop." + path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for source in SOURCES
        for path in (ROOT / source).rglob("*.py")
        if not NOT_SHIPPED & set(path.parts)
    }

    assert sorted(folders) == sorted(PROJECT["tool"]["setuptools"]["packages"])


def test_every_package_is_typed() -> None:
    """Each root folder has its marker and its link for the type checkers."""
    for source in SOURCES:
        assert (ROOT / source / "py.typed").is_file()
        assert (ROOT / source).resolve() == (ROOT / "typings" / "strop" / source).resolve()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    # Not in `build`, where what was built before may have modules that are no more.
    extra = out / "extra.cfg"
    extra.write_text(f"[build]\nbuild_base = {out / 'build'}\n")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(out),
            str(ROOT),
        ],
        check=True,
        capture_output=True,
        env=os.environ | {"DIST_EXTRA_CONFIG": str(extra)},
    )
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_has_what_the_checkout_has(wheel: zipfile.ZipFile) -> None:
    """Code, migrations, settings and the demo model, under `strop/`."""
    shipped = {
        name.removeprefix("strop/") for name in wheel.namelist() if name.startswith("strop/")
    }

    assert sorted(set().union(*map(files_of, SOURCES))) == sorted(shipped)


def test_the_wheel_names_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    """`strop` is the console command."""
    names = {
        name.rpartition(".dist-info/")[2]: name
        for name in wheel.namelist()
        if ".dist-info/" in name
    }

    assert "strop = strop.proxy.cli.__main__:main" in wheel.read(names["entry_points.txt"]).decode()
    assert "licenses/LICENSE" in names


def test_the_readmes_tree_is_the_one_on_disk() -> None:
    """Every path in the annotated tree exists, and every top-level folder is in it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"<!-- tree -->\n```\n(.*?)```", readme, re.DOTALL)
    assert tree is not None
    paths, parents = [], {0: ""}
    for line in tree[1].splitlines():
        indent = len(line) - len(line.lstrip())
        for name in re.split(r"  +", line.strip())[0].split(" "):
            path = parents[indent] + name
            paths.append(path.rstrip("/"))
            if name.endswith("/"):
                parents[indent + 4] = path

    assert [] == [path for path in paths if not (ROOT / path).exists()]
    tracked = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith((".", "_"))}
    generated = {"build", "dist", "strop.egg-info", "node_modules"}
    assert [] == sorted(tracked - generated - {path.partition("/")[0] for path in paths})


def test_the_map_of_calls_names_what_is_on_disk() -> None:
    """From the root, or from `proxy/`."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    calls = re.search(r"<!-- calls -->\n```\n(.*?)```", text, re.DOTALL)
    assert calls is not None
    named = set(re.findall(r"(?<![\w/.])\w[\w/]*(?:\.py|/)(?![\w/])", calls[1]))

    assert {"app.py", "engines/", "adapters/swap.py"} <= named
    assert [] == sorted(
        path for path in named if not ((ROOT / path).exists() or (ROOT / "proxy" / path).exists())
    )


def test_no_tracked_file_names_a_registry_or_a_machine() -> None:
    """Pins are versions; addresses belong to whoever installs."""
    hosts = "|".join(
        ["pypi" + r"\.org", "python" + "hosted", "registry" + r"\.npmjs", "deb" + r"\.debian"]
    )
    homes = "|".join(["/ro" + "ot/", "/wo" + "rk/"])
    found = subprocess.run(
        ["git", "grep", "-nIE", f"({hosts}|{homes})"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert found.stdout == ""


def test_all_of_mlx_is_pinned_to_one_version() -> None:
    """Of its parts each system installs one, so no single machine would tell."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines)

    assert {pins["mlx"]} == {pins["mlx-cpu"], pins["mlx-metal"]}


CHECK_PYTHON = ROOT / ".ci" / "check_python.py"


@pytest.mark.parametrize(
    ("python", "said"),
    [
        (((3, 11), "Linux", "x86_64", ""), ""),
        (((3, 14), "Darwin", "arm64", "14.0"), ""),
        (((3, 12), "Darwin", "arm64", "26.1"), ""),
        (((3, 9), "Darwin", "arm64", "15.5"), "needs Python 3.11 to 3.14; got 3.9"),
        (((3, 15), "Linux", "x86_64", ""), "needs Python 3.11 to 3.14; got 3.15"),
        (((3, 12), "Darwin", "x86_64", "15.5"), "make PYTHON=/opt/homebrew/bin/python3"),
        (((3, 12), "Darwin", "arm64", "13.6.1"), "needs macOS 14 or newer; got 13.6.1"),
    ],
    ids=str,
)
def test_a_python_that_the_pins_have_no_wheels_for_is_refused(
    python: tuple[tuple[int, int], str, str, str], said: str
) -> None:
    """With what to do; pip would say that a version is not found, or begin to compile."""
    found = runpy.run_path(str(CHECK_PYTHON))["why_not"](*python)

    assert (said in found, bool(said)) == (True, bool(found))


def test_the_newest_python_is_the_newest_that_the_project_names() -> None:
    """The one that was tried; the README says it too."""
    check = runpy.run_path(str(CHECK_PYTHON))
    oldest, newest = (".".join(map(str, check[name])) for name in ("OLDEST", "NEWEST"))
    named = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["project"]["classifiers"]))

    assert [oldest, newest] == [named[0], named[-1]]
    assert f"Python {oldest} to {newest}" in (ROOT / "README.md").read_text(encoding="utf-8")


def make_install(folder: Path, *words: str) -> tuple[int, str]:
    """Run `make install` as a person would; return its exit status, and what it says is wrong."""
    variables = {name: text for name, text in os.environ.items() if "MAKE" not in name}
    variables.pop("PYTHON", None)
    done = subprocess.run(
        ["make", "install", *words],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_python_that_is_named_has_to_be_the_environments(tmp_path: Path) -> None:
    """What make installs would go into the other one; unnamed, it is the environment's."""
    (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")
    (tmp_path / ".ci").symlink_to(ROOT / ".ci")
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)

    def make(*words: str) -> tuple[int, str]:
        # What was installed is up to date.
        (tmp_path / ".venv" / ".installed").touch()
        return make_install(tmp_path, *words)

    python.symlink_to(sys.executable)
    statuses = [make()[0], make(f"PYTHON={sys.executable}")[0]]
    python.unlink()
    python.write_text("#!/bin/sh\necho 3.9 x86_64\n")
    python.chmod(0o755)
    statuses.append(make()[0])
    status, said = make(f"PYTHON={sys.executable}")

    assert ([0, 0, 0], 2) == (statuses, status)
    assert ".venv has Python 3.9 x86_64" in said
    assert "make clean" in said


@pytest.mark.parametrize("has_venv", [False, True], ids=["fresh", "there"])
def test_nothing_is_installed_for_a_python_that_does_not_fit(
    tmp_path: Path, has_venv: bool
) -> None:
    """It is asked alone, and says so, before pip or venv is."""
    for name in ("Makefile", ".ci", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    python = tmp_path / (".venv/bin/python" if has_venv else "old")
    python.parent.mkdir(parents=True, exist_ok=True)
    asked = tmp_path / "asked"
    python.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n[ "$1" != .ci/check_python.py ]\n')
    python.chmod(0o755)

    status, _ = make_install(tmp_path, *([] if has_venv else [f"PYTHON={python}"]))

    assert 2 == status
    assert [".ci/check_python.py"] == asked.read_text().splitlines()


def test_what_is_imported_is_declared() -> None:
    """A package that another one happens to bring may be gone with that one's next version."""
    extras = PROJECT["project"]["optional-dependencies"]
    lines = itertools.chain(PROJECT["project"]["dependencies"], *extras.values())
    declared = {_normal(re.split(r"[^\w.-]", line)[0]) for line in lines}
    distributions = metadata.packages_distributions()

    imported = {
        name
        for folder in SOURCES
        for file in (ROOT / folder).rglob("*.py")
        for name in _imported(ast.parse(file.read_text(encoding="utf-8")))
    } - {"strop", *sys.stdlib_module_names}

    undeclared = {
        name for name in imported if not declared & set(map(_normal, distributions[name]))
    }
    assert {"numpy", "httpx"} < imported
    assert set() == undeclared


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name.partition(".")[0] for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
