"""The file that `strop export --out` writes: whole, or as it was."""

import asyncio
import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from routes_app import completion
from waiting import LIMIT_S

from strop.proxy.cli import export as writing
from strop.proxy.cli.root import main
from strop.proxy.store.records import NewFeedback
from strop.proxy.store.store import Store

# Every Python that finds this runs it first: the signal comes when the file to be is opened.
AT_THE_OPENING = """
import os, sys

def interrupt(event, arguments):
    if event == "open" and "/exports/" in str(arguments[0]) and arguments[1] == "w":
        os.kill(os.getpid(), {})

sys.addaudithook(interrupt)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a rated answer of 50,000 letters."""

    async def make() -> None:
        store = await Store.open(folder / "strop.db")
        try:
            made = completion(answer="x" * 50_000)
            await store.commit_completion(lambda: made, 50_000)
            new = NewFeedback(made.id, made.key_id, 1.0, b'"good"')
            await store.add_feedback(new, lambda _: False)
        finally:
            await store.close()

    folder = tmp_path / "home"
    folder.mkdir()
    asyncio.run(make())
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A file in a folder of its own, exported before."""
    (tmp_path / "exports").mkdir()
    file = tmp_path / "exports" / "ratings.jsonl"
    file.write_text("before\n", encoding="utf-8")
    file.chmod(0o644)
    return file


def export(home: Path, out: Path) -> Result:
    """Run the command."""
    words = ["export", "--format", "raw", "--out", str(out), "--home", str(home)]
    return CliRunner().invoke(main, words)


def test_it_takes_the_place_of_the_one_before(home: Path, out: Path) -> None:
    """For its owner's eyes, whoever could read that one."""
    done = export(home, out)

    assert (0, f"Wrote 1 line to {out}.\n") == (done.exit_code, done.stderr)
    assert 50_000 < out.stat().st_size
    assert 0o600 == out.stat().st_mode & 0o777
    assert [out] == [*out.parent.iterdir()]


def test_on_a_full_disk_the_one_before_stays(home: Path, out: Path) -> None:
    """It is said which file can't be written, and nothing is left beside it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What the store is read with has its size already.
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        failed = export(home, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert (1, f"Error: {out}: File too large\n") == (failed.exit_code, failed.stderr)
    assert "before\n" == out.read_text(encoding="utf-8")
    assert [out] == [*out.parent.iterdir()]


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "term"])
def test_a_signal_leaves_the_one_before(
    sig: signal.Signals, home: Path, out: Path, tmp_path: Path
) -> None:
    """And nothing beside it."""
    code = AT_THE_OPENING.format(int(sig))
    (tmp_path / "sitecustomize.py").write_text(code, encoding="utf-8")
    words = ["export", "--format", "raw", "--out", str(out), "--home", str(home)]

    ended = subprocess.run(
        [sys.executable, "-m", "strop.proxy.cli", *words],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )

    assert (128 + sig, "") == (ended.returncode, ended.stdout)
    assert "before\n" == out.read_text(encoding="utf-8")
    assert [out] == [*out.parent.iterdir()]


def test_what_must_not_be_written_is_refused(
    home: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is protected, also where its folder isn't."""
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)

    def refuse(path: str, _flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(writing, "_for_its_owner", refuse)

    failed = export(home, out)

    said = f"Error: expected to write to {out}: Permission denied\n"
    assert (2, said) == (failed.exit_code, failed.stderr)
    assert "before\n" == out.read_text(encoding="utf-8")


def test_through_a_link_it_is_written_to_what_the_link_names(home: Path, out: Path) -> None:
    """The link stays one."""
    link = out.with_name("link")
    link.symlink_to(out)

    done = export(home, link)

    assert 0 == done.exit_code
    assert link.is_symlink()
    assert 50_000 < out.stat().st_size


def test_a_file_with_two_names_keeps_both(home: Path, out: Path) -> None:
    """Neither is left with what was there before."""
    other = out.with_name("other")
    other.hardlink_to(out)

    done = export(home, out)

    assert 0 == done.exit_code
    assert 50_000 < other.stat().st_size
    assert 0o644 == out.stat().st_mode & 0o777


@pytest.mark.skipif(os.geteuid() != 0, reason="only the system's owner can give files away")
def test_a_file_of_another_user_stays_theirs(home: Path, out: Path) -> None:
    """Root exports for somebody."""
    os.chown(out, 65534, 65534)

    done = export(home, out)

    assert (0, 65534) == (done.exit_code, out.stat().st_uid)
    assert 50_000 < out.stat().st_size


def test_a_file_of_ones_own_in_a_folder_that_is_not_is_written(
    home: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be made beside it."""

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)

    done = export(home, out)

    assert 0 == done.exit_code
    assert 50_000 < out.stat().st_size


def test_a_file_that_is_mounted_by_itself_is_written(
    home: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one is into a container: no other can take its place."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "rename", refuse)

    done = export(home, out)

    assert 0 == done.exit_code
    assert 50_000 < out.stat().st_size
    assert [out] == [*out.parent.iterdir()]


def test_into_a_pipe_it_is_written_as_to_standard_output(home: Path) -> None:
    """As in `strop export --out /dev/stdout | gzip`."""
    words = ["export", "--format", "raw", "--out", "/dev/stdout", "--home", str(home)]

    done = subprocess.run(
        [sys.executable, "-m", "strop.proxy.cli", *words],
        capture_output=True,
        check=True,
        timeout=LIMIT_S,
    )

    assert 1 == done.stdout.count(b"\n")
    assert b"Wrote 1 line to /dev/stdout.\n" == done.stderr
