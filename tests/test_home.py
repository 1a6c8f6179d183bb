"""One process serves from a home folder, and says where."""

import re
from pathlib import Path

import pytest

from strop.proxy.errors import ConfigError
from strop.proxy.home import LOCK_FILE, hold, serving_url


def test_a_held_home_says_where_it_is_served(tmp_path: Path) -> None:
    """And a free one says nothing, whatever a dead process left there."""
    before = serving_url(tmp_path)
    with hold(tmp_path, "http://127.0.0.1:1"):
        during = serving_url(tmp_path)

    assert (None, "http://127.0.0.1:1", None) == (before, during, serving_url(tmp_path))
    assert 0o600 == (tmp_path / LOCK_FILE).stat().st_mode & 0o777


def test_a_home_is_held_once(tmp_path: Path) -> None:
    """The error names the one that serves; afterwards it is free."""
    with (
        hold(tmp_path, "http://127.0.0.1:1"),
        pytest.raises(ConfigError, match=re.escape("http://127.0.0.1:1")),
        hold(tmp_path, "http://127.0.0.1:2"),
    ):
        raise AssertionError("it was held twice")
    with hold(tmp_path, "http://127.0.0.1:3"):
        assert "http://127.0.0.1:3" == serving_url(tmp_path)
