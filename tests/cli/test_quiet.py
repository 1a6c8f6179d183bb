"""What commands print beside what they were asked for."""

import os
import subprocess
import sys
from pathlib import Path


def test_a_command_prints_no_log_of_its_parts(tmp_path: Path) -> None:
    """On a full disk, the store says of each status that a checkpoint failed."""
    program = (
        "import logging; from strop.proxy.cli.root import main;"
        " main(['config', '--json'], standalone_mode=False);"
        " logging.getLogger('strop.proxy.store.writer').warning('a checkpoint failed')"
    )

    said = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"STROP_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "" == said.stderr
    assert said.stdout.startswith("{")
