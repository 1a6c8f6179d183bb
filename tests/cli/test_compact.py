"""`strop compact`; and what `status` says of the database's size."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from recorded_home import empty_home, record

from strop.proxy.cli.root import main
from strop.proxy.home import Serves, hold
from strop.proxy.store import layout, rebuilding, run_lock

MB = 2**20


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with one answer, and a database that is mostly free."""
    home = empty_home(tmp_path)
    record(home, {"answer": "Paris."})
    with contextlib.closing(sqlite3.connect(home / "strop.db")) as connection:
        connection.execute("INSERT INTO write_probe (payload) VALUES (zeroblob(?))", (20 * MB,))
        connection.execute("DELETE FROM write_probe")
        connection.commit()
    return home


def run(home: Path, *arguments: str) -> Result:
    """Run a command with this home."""
    return CliRunner(env={"STROP_HOME": str(home)}).invoke(main, arguments)


def size(home: Path) -> int:
    return (home / "strop.db").stat().st_size


def row(home: Path) -> str:
    """Return what `status` says of the database."""
    (line,) = re.findall("^database +(.+)$", run(home, "status").stdout, re.MULTILINE)
    return str(line)


def test_what_is_free_is_said_and_given_back(home: Path) -> None:
    """No WAL stays, and nothing that was recorded goes."""
    before, store = row(home), json.loads(run(home, "status", "--json").stdout)["store"]
    stood = size(home)
    done = run(home, "compact")
    after = row(home)

    free = "20 MiB of it free"
    assert f"20.2 MiB, {free}; with strop stopped this gives it back: strop compact" == before
    assert stood == store["database"]["bytes"] > store["database"]["free_bytes"] > 20 * MB
    assert (0, "") == (done.exit_code, done.stderr)
    assert [f"{home / 'strop.db'}: 20.2 MiB, {free}", f"Compacted: {after}"] == (
        done.stdout.splitlines()
    )
    assert size(home) < MB
    assert {"strop.db", rebuilding.LOCK_FILE} == {one.name for one in home.iterdir()}
    assert "Paris." in run(home, "completions", "list").stdout


def serving(home: Path) -> AbstractContextManager[None]:
    return hold(home, Serves("http://127.0.0.1:8484"))


def training(home: Path) -> AbstractContextManager[None]:
    (home / layout.RUNS).mkdir()
    return run_lock.hold(home / layout.RUNS, "run_1")


def compacting(home: Path) -> AbstractContextManager[None]:
    return rebuilding.hold(home, rebuilding.COMPACTION)


@pytest.mark.parametrize(
    ("busy", "said"),
    [
        (serving, "strop serves from .*, at http://127.0.0.1:8484, and could record nothing"),
        (training, "a training run, or an import, is under way; wait for it"),
    ],
)
def test_it_keeps_away_from_what_writes(
    home: Path, busy: Callable[[Path], AbstractContextManager[None]], said: str
) -> None:
    """Which could write nothing while it lasts."""
    stood = size(home)
    with busy(home):
        refused = run(home, "compact")

    assert 1 == refused.exit_code
    assert re.search(said, refused.stderr)
    assert stood == size(home)
    assert 0 == run(home, "compact").exit_code


def test_without_room_for_two_copies_nothing_is_begun(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fill the disk."""
    stood = size(home)
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage(100_000))
        refused = run(home, "compact")

    assert 1 == refused.exit_code
    assert re.search("expected 0.[0-9]+ MiB free on the volume of .*strop.db", refused.stderr)
    assert stood == size(home)


def test_ctrl_c_leaves_the_database_as_it_was(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing beside it; it can be compacted later."""
    stood = size(home)

    class Interrupted(sqlite3.Connection):
        def set_progress_handler(self, handler: Any, _: int) -> None:
            def interrupt() -> None:
                handler()
                signal.raise_signal(signal.SIGINT)

            super().set_progress_handler(interrupt, 1)

    connect = sqlite3.connect
    with monkeypatch.context() as pressed:
        pressed.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Interrupted))
        interrupted = run(home, "compact")

    assert 130 == interrupted.exit_code
    assert stood == size(home)
    assert {"strop.db", rebuilding.LOCK_FILE} == {one.name for one in home.iterdir()}
    assert 0 == run(home, "compact").exit_code


def test_what_another_program_reads_gets_smaller_once_that_has_ended(home: Path) -> None:
    """The command says so; the next one does it."""
    stood = size(home)
    with contextlib.closing(sqlite3.connect(home / "strop.db", isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM completions").fetchone()
        unfinished = run(home, "compact")
        read = size(home)
    run(home, "status")

    assert 1 == unfinished.exit_code
    assert "another program reads" in unfinished.stderr
    assert (stood, True) == (read, size(home) < MB)


@pytest.mark.parametrize(
    ("command", "begun"),
    [
        (("completions", "list"), "Paris."),
        (("serve", "--port", "0", "--engine", "openai", "--engine-url", "http://127.0.0.1:9"),
         "waiting for the engine"),
    ],
    ids=["list", "serve"],
)  # fmt: skip
def test_who_comes_meanwhile_waits_and_says_so(
    home: Path, command: tuple[str, ...], begun: str
) -> None:
    """Commands, and a strop that starts."""
    with subprocess.Popen(
        [sys.executable, "-m", "strop.proxy.cli", *command, "--home", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("STROP_")},
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        with compacting(home):
            waited = next(line for line in lines if "waiting: " in line)
        found = any(begun in line for line in lines)
        process.terminate()

    assert "strop.db is being compacted by another strop, which may take minutes" in waited
    assert found
