"""A child process kept to cores, and what it costs: CPU time, memory. None outlives a benchmark.

What it costs is read from `/proc`, so on Linux only; knows nothing of what the child does.
"""

import atexit
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from bench import cores as own_cores

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_STOP_S = 15.0


class StartError(RuntimeError):
    """A child ended, or did not answer, before it was ready."""


def end_at_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does, and so what it has started."""
    # A shell starts background jobs with SIGINT ignored, and SIGTERM is passed on as one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)


class Child:
    """A started process and its descendants; it ends with this process at the latest.

    Args:
        name: for messages and the log file.
        command: what to run.
        cores: the cores that it and its descendants may use, where they can be chosen.
        log: where its output goes.
        env: added to ours.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        cores: set[int],
        log: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        own = own_cores.allowed()
        with log.open("ab") as output:
            # Inherited by the child from its first instruction on.
            own_cores.keep_to(cores)
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **(env or {})},
                    start_new_session=True,
                )
            finally:
                own_cores.keep_to(own)
        # Not every caller has come to where it stops it, when something else ends it.
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def wait_ready(
        self, port: int, path: str, *, headers: Mapping[str, str], within_s: float
    ) -> None:
        """Return once GET `path` answers 200; raise StartError if it doesn't."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise StartError(
                    f"{self.name} ended with {self._process.returncode}; {self._said()}"
                )
            if _status(port, path, headers) == 200:
                return
            time.sleep(0.02)
        raise StartError(f"{self.name} was not ready after {within_s:.0f} s; {self._said()}")

    def cpu_s(self) -> float:
        """Return the CPU seconds used by it and its descendants, ended ones included."""
        total = 0
        for pid in self._tree():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = Path(f"/proc/{pid}/stat").read_text()
                # The name in brackets may hold anything; utime to cstime are the 14th to 17th.
                fields = stat.rpartition(")")[2].split()
                total += sum(map(int, fields[11:15]))
        return total / _TICKS_PER_S

    def reset_peak(self) -> None:
        """Let `peak_rss_mb` count from now."""
        for pid in self._tree():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_rss_mb(self) -> float:
        """Return the most resident memory, its descendants' included, in 10**6 bytes."""
        total = 0
        for pid in self._tree():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        total += int(line.split()[1]) * 1024
        return total / 1e6

    def wait_idle(self, within_s: float = 20.0) -> None:
        """Return once it has used next to no CPU for a while, or after `within_s`."""
        end = time.monotonic() + within_s
        before = self.cpu_s()
        while time.monotonic() < end:
            time.sleep(0.5)
            now = self.cpu_s()
            if now - before <= 0.05:
                return
            before = now

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash would."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask the process to end; kill what is left of its tree after a while."""
        if self._process.poll() is not None:
            return
        tree = self._tree()
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            for pid in tree:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()

    def _said(self) -> str:
        said = self.log.read_text(errors="replace").strip()
        return f"it said: {said[-500:]}" if said else "it said nothing"

    def _tree(self) -> list[int]:
        found = [self.pid]
        for pid in found:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found.extend(map(int, (task / "children").read_text().split()))
        return found


def busy_s(core: int) -> float:
    """Return the seconds that this core has not been idle since the machine started."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _, _, irq, softirq, steal = map(int, ticks[:8])
            return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S
    raise ValueError(f"no core {core} in /proc/stat")


def free_port() -> int:
    """Return a port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _status(port: int, path: str, headers: Mapping[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _interrupt(number: int, frame: FrameType | None) -> None:
    # An exception of our own would be lost in a callback of the loop; asyncio minds SIGINT.
    del number, frame
    signal.raise_signal(signal.SIGINT)
