"""bench.processes: what a benchmark has started ends with it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="it reads /proc and pins processes to cores"
)

# It waits for a child that never answers, as one is waited for before it is handed on.
BENCHMARK = """
import os, sys
from pathlib import Path
from bench.processes import Child, end_at_sigterm
end_at_sigterm()
sleeps = [sys.executable, "-c", "import time; time.sleep(300)"]
child = Child("sleeps", sleeps, cores=os.sched_getaffinity(0), log=Path(sys.argv[1]))
print(child.pid, flush=True)
child.wait_ready(9, "/", headers={}, within_s=300)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_started_ends_with_whoever_started_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    """At Ctrl-C, and at SIGTERM, as a time limit or a service sends it."""
    command = [sys.executable, "-c", BENCHMARK, str(tmp_path / "log")]
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as benchmark:
        assert benchmark.stdout is not None
        child = int(benchmark.stdout.readline())

        benchmark.send_signal(number)

    assert not Path(f"/proc/{child}").exists()
