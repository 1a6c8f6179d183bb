"""The embedded engine's process: started, watched, restarted and stopped.

The engine speaks vLLM's dialect, so its driver is `Vllm`; here is only the process behind it.
Imports nothing of the engine: that happens in the child.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

_BACK_OFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)
_HEALTHY_AFTER_S = 30.0
STOP_TIMEOUT_S = 10.0
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def free_port(host: str) -> int:
    """Return a port that nobody listens on at `host` now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class EngineProcess:
    """A child process that serves `model` on loopback, kept alive until `stop`.

    The child has a session of its own, so that a Ctrl-C in the terminal reaches strop alone, which
    drains first. A pipe from here ends it when strop dies, however it dies.

    Args:
        model: a folder or hub id.
        name: the model name that the engine serves.
        log_path: where the child's output goes.
        options: further command line options of `strop engine`.
    """

    host = "127.0.0.1"

    def __init__(
        self, model: str, *, name: str, log_path: Path, options: Sequence[str] = ()
    ) -> None:
        self.port = free_port(self.host)
        self._command = [
            *(sys.executable, "-m", "strop.proxy.cli", "engine", "--model", model),
            *("--name", name, "--host", self.host, "--port", str(self.port), *options),
        ]
        self._log_path = log_path
        self._child: asyncio.subprocess.Process | None = None
        self._pipe: int | None = None
        self._is_stopping = False
        self.num_starts = 0

    @property
    def url(self) -> str:
        """Where the engine listens."""
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is no child."""
        return self._child.pid if self._child is not None else None

    async def keep_alive(self) -> None:
        """Start the child, and start it again whenever it dies. Runs until `stop` or cancelled."""
        loop = asyncio.get_running_loop()
        num_failures = 0
        while not self._is_stopping:
            started = loop.time()
            code: int | None = None
            try:
                code = await (await self._start()).wait()
            except OSError as error:
                log.error("the embedded engine can't be started", extra={"reason": str(error)})
            self._child = None
            if self._is_stopping:
                return
            num_failures = 1 if loop.time() - started > _HEALTHY_AFTER_S else num_failures + 1
            wait_s = _BACK_OFF_S[min(num_failures, len(_BACK_OFF_S)) - 1]
            log.error(
                "the embedded engine ended; starting it again",
                extra={
                    "exit_code": code,
                    "wait_s": wait_s,
                    "said": self._last_words(),
                    "log": str(self._log_path),
                },
            )
            await asyncio.sleep(wait_s)

    async def stop(self) -> None:
        """End the child, by force after `STOP_TIMEOUT_S`. Idempotent."""
        self._is_stopping = True
        child = self._child
        if child is not None and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(child.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        self._close_pipe()

    async def _start(self) -> asyncio.subprocess.Process:
        self._close_pipe()
        read_end, self._pipe = os.pipe()
        try:
            with os.fdopen(os.open(self._log_path, _APPEND, 0o600), "ab") as output:
                self._child = await asyncio.create_subprocess_exec(
                    *self._command,
                    *("--parent-fd", str(read_end)),
                    pass_fds=(read_end,),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        finally:
            os.close(read_end)
        self.num_starts += 1
        return self._child

    def _last_words(self) -> str:
        """Return the last line that the child wrote."""
        try:
            lines = self._log_path.read_bytes()[-4096:].decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
