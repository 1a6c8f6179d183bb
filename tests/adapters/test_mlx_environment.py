"""What MLX and Metal read from the environment, in each process that computes with MLX."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from strop.adapters.mlx_environment import VARIABLES

pytest.importorskip("mlx.core")

# Says what is set when mlx is imported for the first time, and ends there.
PROGRAM = """
import importlib, json, os, sys
from pathlib import Path

class Watch:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "mlx":
            Path(sys.argv[2]).write_text(json.dumps(dict(os.environ)))
            os._exit(0)

sys.meta_path.insert(0, Watch())
if sys.argv[1] == "engine":
    from strop.proxy.embedded.options import Options
    from strop.proxy.embedded.server import run

    run(Options(model="none"))
importlib.import_module(sys.argv[1])
importlib.import_module("strop.training.backends.mlx_backend")
"""
PROCESSES = [
    "engine",
    "strop.training.run",
    "strop.training.make_probe",
    "strop.training.eval",
    "strop.training.doctor",
    "strop.training.demo.__main__",
]


def seen_by_mlx(process: str, said: Path, **own: str) -> dict[str, str]:
    """Return those of `VARIABLES` that mlx finds in this process; `own` are the person's."""
    environment = {name: text for name, text in os.environ.items() if name not in VARIABLES}
    subprocess.run(
        [sys.executable, "-c", PROGRAM, process, str(said)], env=environment | own, check=True
    )
    found = json.loads(said.read_text())
    return {name: found[name] for name in VARIABLES if name in found}


@pytest.mark.parametrize("process", PROCESSES)
def test_what_mlx_reads_is_set_before_it_is_imported(process: str, tmp_path: Path) -> None:
    """MLX reads each variable once; engine and trainer have to find the same."""
    assert VARIABLES == seen_by_mlx(process, tmp_path / "said")


@pytest.mark.parametrize("process", PROCESSES[:2])
def test_what_a_person_has_set_stays(process: str, tmp_path: Path) -> None:
    """Whoever sets one knows why."""
    found = seen_by_mlx(process, tmp_path / "said", MLX_ENABLE_TF32="1")

    assert VARIABLES | {"MLX_ENABLE_TF32": "1"} == found
