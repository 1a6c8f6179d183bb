"""wrk as a load generator, where ours in Python would be the limit: nginx under JSON.

Doesn't look at bodies; what it sends is what `load` sends.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.workloads import Workload

_MARK = 99_999_999_999_999
_SCRIPT = """\
local before, after = {before}, {after}
local number = 0
request = function()
    number = number + 1
    return before .. string.format("%014d", number) .. after
end
done = function(summary, latency)
    local e = summary.errors
    io.write(string.format("bench %d %d %d %d %d\\n", summary.requests, summary.duration,
        e.connect + e.read + e.write + e.status + e.timeout,
        latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True)
class Tally:
    """What wrk counted: answers, failures, seconds, and latencies in ms."""

    answered: int
    failed: int
    seconds: float
    p50_ms: float
    p99_ms: float


def is_installed() -> bool:
    """Whether `wrk` can be run."""
    return shutil.which("wrk") is not None


def run(port: int, workload: Workload, connections: int, duration_s: float, folder: Path) -> Tally:
    """Run one thread of wrk, on our own cores, for whole seconds; raises RuntimeError."""
    script = folder / "wrk.lua"
    before, after = workload.request(port, _MARK, 0).split(str(_MARK).encode())
    script.write_bytes(
        _SCRIPT.encode()
        .replace(b"{before}", _lua_string(before))
        .replace(b"{after}", _lua_string(after))
    )
    seconds = max(1, round(duration_s))
    said = subprocess.run(
        [
            *("wrk", "-t1", f"-c{connections}", f"-d{seconds}"),
            *("-s", str(script), f"http://127.0.0.1:{port}/"),
        ],
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        check=False,
    )
    counted = re.search(r"^bench (\d+) (\d+) (\d+) (\d+) (\d+)$", said.stdout, re.MULTILINE)
    if said.returncode or not counted:
        raise RuntimeError(f"wrk failed: {said.stdout[-500:]} {said.stderr[-500:]}")
    answered, micros, failed, p50_us, p99_us = map(int, counted.groups())
    return Tally(answered, failed, micros / 1e6, p50_us / 1000, p99_us / 1000)


def _lua_string(data: bytes) -> bytes:
    return b'"' + b"".join(b"\\%03d" % byte for byte in data) + b'"'
