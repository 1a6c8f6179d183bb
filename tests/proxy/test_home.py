"""One process serves from a home folder, and says where."""

import logging
import re
from pathlib import Path

import pytest

from strop.proxy.errors import ConfigError
from strop.proxy.home import Serves, hold, serving, serving_url
from strop.proxy.store import layout


def test_a_held_home_says_where_it_is_served(tmp_path: Path) -> None:
    """And a free one says nothing, whatever a dead process left there."""
    before = serving_url(tmp_path)
    with hold(tmp_path, Serves("http://127.0.0.1:1")):
        during = serving_url(tmp_path)

    assert (None, "http://127.0.0.1:1", None) == (before, during, serving_url(tmp_path))
    assert 0o600 == (tmp_path / layout.SERVE_LOCK).stat().st_mode & 0o777


def test_what_serves_says_all_of_its_settings(tmp_path: Path) -> None:
    """However long; an older strop that still runs says only where it is."""
    serves = Serves("http://127.0.0.1:1", {"capture.redact": ["x" * 10_000]}, {"server.port": 1})

    with hold(tmp_path, serves):
        said = serving(tmp_path)
        (tmp_path / layout.SERVE_LOCK).write_text(
            '{"url": "http://127.0.0.1:1", "pid": 1}', "ascii"
        )
        of_older = serving(tmp_path)

    assert (serves, Serves("http://127.0.0.1:1")) == (said, of_older)


def test_a_home_is_held_once(tmp_path: Path) -> None:
    """The error names the one that serves; afterwards it is free."""
    with (
        hold(tmp_path, Serves("http://127.0.0.1:1")),
        pytest.raises(ConfigError, match=re.escape("http://127.0.0.1:1")),
        hold(tmp_path, Serves("http://127.0.0.1:2")),
    ):
        raise AssertionError("it was held twice")
    with hold(tmp_path, Serves("http://127.0.0.1:3")):
        assert "http://127.0.0.1:3" == serving_url(tmp_path)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o777, 0o750])
def test_a_home_that_is_served_from_is_its_owners_alone(mode: int, tmp_path: Path) -> None:
    """Its settings may hold keys: whatever others may do there is taken away."""
    tmp_path.chmod(mode)

    with hold(tmp_path, Serves("http://127.0.0.1:1")):
        assert 0o700 == tmp_path.stat().st_mode & 0o777


def test_a_home_of_somebody_else_is_served_from_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its mode can't be changed then, and strop says what that means."""
    tmp_path.chmod(0o750)
    monkeypatch.setattr(Path, "chmod", _refused)

    with hold(tmp_path, Serves("http://127.0.0.1:1")):
        served = serving_url(tmp_path)

    assert "http://127.0.0.1:1" == served
    (record,) = caplog.records
    assert (logging.WARNING, "750") == (record.levelno, vars(record)["mode"])
    assert "others may enter the home" in record.message


def test_a_folder_for_all_stays_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Others need it, so it is served from with a warning."""
    tmp_path.chmod(0o1777)

    with hold(tmp_path, Serves("http://127.0.0.1:1")):
        mode = tmp_path.stat().st_mode

    assert 0o1777 == mode & 0o7777
    assert ["1777"] == [vars(record)["mode"] for record in caplog.records]


def test_a_home_that_takes_no_file_is_refused(tmp_path: Path) -> None:
    """A full disk, a read-only one: whatever it is, the error says it."""
    (tmp_path / layout.SERVE_LOCK).mkdir()

    with (
        pytest.raises(
            ConfigError, match=re.escape(f"{tmp_path / layout.SERVE_LOCK}: Is a directory")
        ),
        hold(tmp_path, Serves("http://127.0.0.1:1")),
    ):
        raise AssertionError("it was held")


def _refused(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")
