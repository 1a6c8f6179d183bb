"""A low limit of open files is raised where it can be; the first three are what they should be."""

import subprocess
import sys
from pathlib import Path

import pytest

RAISE = """
import logging, resource, sys
logging.basicConfig(format="%(message)s limit=%(limit)s at_once=%(answers_at_once)s")
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
from strop.proxy import open_files
print(open_files.raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE))
"""

OPENS_A_FILE = """
import os, sys
from strop.proxy import open_files
os.closerange(0, 3)
open_files.hold_standard()
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(file, str(file).encode())
"""


@pytest.mark.parametrize(
    ("soft", "hard", "limit", "says"),
    [
        # No more than mlx_lm, imported by other tests, leaves this process.
        (256, 4_096, 4_096, ""),
        (4_096, 4_096, 4_096, ""),
        (256, 1_000, 1_000, "few files may be open limit=1000 at_once=500"),
        (300, 300, 300, "few files may be open limit=300 at_once=150"),
    ],
)
def test_the_limit_is_raised_as_far_as_it_goes(soft: int, hard: int, limit: int, says: str) -> None:
    """Up to what the system allows; where that is little, the log says what it is enough for."""
    ran = subprocess.run(
        [sys.executable, "-c", RAISE, str(soft), str(hard)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert f"{limit} ({limit}, {hard})" == ran.stdout.strip()
    assert says == ran.stderr.strip()


def test_no_file_passes_for_standard_output(tmp_path: Path) -> None:
    """A process may be started with its first three files closed."""
    command = [sys.executable, "-c", OPENS_A_FILE, str(tmp_path / "number")]
    subprocess.run(command, check=True)

    assert 3 == int((tmp_path / "number").read_text())
