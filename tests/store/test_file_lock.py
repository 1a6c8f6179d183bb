"""Files that one process holds, and in which it says what for."""

import fcntl
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from strop.proxy.store import file_lock


def test_what_is_said_is_what_the_holder_says_alone(tmp_path: Path) -> None:
    """Nothing is left of who said more before."""
    path = tmp_path / "lock"
    with file_lock.hold(path, b"something long"):
        pass

    with file_lock.hold(path, b"short"):
        said = file_lock.said_by_holder(path)
        with pytest.raises(file_lock.Held) as refused, file_lock.hold(path, b"another"):
            raise AssertionError("two hold it")

    assert (b"short", b"short") == (said, refused.value.said)
    assert file_lock.said_by_holder(path) is None


def test_who_only_asks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the lock for a moment, which is over here once somebody waits for it."""
    path = tmp_path / "lock"
    asking = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    fcntl.flock(asking, fcntl.LOCK_SH)
    clock = SimpleNamespace(sleep=lambda _: os.close(asking))
    monkeypatch.setattr(file_lock, "time", clock)

    with file_lock.hold(path, b"held"):
        assert b"held" == file_lock.said_by_holder(path)
