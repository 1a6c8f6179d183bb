"""Ctrl-C, whenever it comes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import LIMIT_S

# Every Python that finds this runs it first: Ctrl-C comes when the module named is imported.
AT_AN_IMPORT = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
"""


@pytest.mark.parametrize(
    ("command", "at"),
    [
        ("status", "click"),
        ("serve", "uvicorn"),
        ("status", "strop.proxy.store.store"),
        ("doctor", "strop.training.options"),
        ("eval", "strop.training.evaluate"),
        ("demo", "strop.training.demo.introduction"),
    ],
)
def test_it_ends_a_command_that_still_imports(tmp_path: Path, command: str, at: str) -> None:
    """Without a word, and with the status that a shell has of it."""
    (tmp_path / "sitecustomize.py").write_text(AT_AN_IMPORT, encoding="utf-8")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "strop.db").touch()
    variables = {"AT": at, "PYTHONPATH": str(tmp_path), "STROP_HOME": str(tmp_path / "home")}

    ended = subprocess.run(
        [sys.executable, "-m", "strop.proxy.cli", command],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )

    assert (130, "") == (ended.returncode, ended.stdout)
    assert "Traceback" not in ended.stderr
