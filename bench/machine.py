"""What the benchmark ran on: hardware, versions, commit."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from bench import cores

_ROOT = Path(__file__).parents[1]


def describe() -> dict[str, str]:
    """Return what a reader needs to judge the figures."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": str(len(cores.allowed())),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def _commit() -> str:
    return _said("git", "describe", "--always", "--dirty") or "no commit"


def _cpu_model() -> str:
    if sys.platform == "darwin":
        return _said("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _said(*command: str) -> str:
    said = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    return said.stdout.strip()
