"""The benchmarks where no process can be kept to cores, as on a Mac."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What macOS's Python lacks.
WITHOUT = """
import os, runpy, sys
for name in ("sched_getaffinity", "sched_setaffinity", "fdatasync"):
    vars(os).pop(name, None)
"""
MEASURES = """
from pathlib import Path
from bench import machine
from bench.processes import Child
from bench.swap import servers
print(machine.describe()["cores"])
sleeps = [sys.executable, "-c", "import time; time.sleep(300)"]
child = Child("sleeps", sleeps, cores={0}, log=Path(sys.argv[1]))
child.stop()
"""
RUNS = 'runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)'


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Return how the program ended where cores can't be chosen."""
    command = [sys.executable, "-c", WITHOUT + program, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_children_use_all_cores_where_none_can_be_chosen(tmp_path: Path) -> None:
    """Servers are compared there all the same, each on the whole machine."""
    done = run(MEASURES, str(tmp_path / "log"))

    assert (0, f"{os.cpu_count()}\n", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("name", ["bench", "bench.swap", "bench.training_beside_serving"])
def test_a_benchmark_that_keeps_processes_to_cores_says_that_it_needs_linux(name: str) -> None:
    """Before it starts anything, and in a line, not a traceback."""
    done = run(RUNS, name)

    assert 2 == done.returncode
    assert "this needs Linux" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
