"""The embedded engine's process: started, watched, restarted and stopped.

The engine speaks vLLM's dialect, so its driver is `Vllm`; here is only the process behind it.
Imports nothing of the engine: that happens in the child.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from strop.configs import installation
from strop.proxy.child import BackOff, Child, last_words

log = logging.getLogger(__name__)

KEY_VARIABLE: Final = "STROP_ENGINE_KEY"
"""The variable that has the key which the engine asks for."""

Identify = Callable[[], Awaitable[str | None]]


def hold_port(host: str, port: int = 0) -> socket.socket:
    """Return a socket that keeps a port of `host` from all others, while it is open; 0 picks one.

    It doesn't listen: who connects is refused, or on macOS not heard. A port that is held already
    can be held once more, by this user alone.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        held.bind((host, port))
    except OSError:
        held.close()
        raise
    return held


class EngineProcess:
    """A child process that serves `model` on loopback, kept alive until `stop`.

    Args:
        model: a folder or hub id.
        name: the model name that the engine serves.
        log_path: where the child's output goes.
        options: further command line options of `strop engine`.
        key: what it asks for, of whoever asks it anything; empty for no key.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        model: str,
        *,
        name: str,
        log_path: Path,
        options: Sequence[str] = (),
        key: str = "",
    ) -> None:
        # Held while no child listens too: who took it then would be asked in the engine's place.
        self._held = hold_port(self.host)
        self.port = int(self._held.getsockname()[1])
        self._command = [
            *(*installation.module("strop.proxy.cli"), "engine", "--model", model),
            *("--name", name, "--host", self.host, "--port", str(self.port), *options),
        ]
        self._log_path = log_path
        # Not on the command line, which every user of the machine can read.
        self._variables = {KEY_VARIABLE: key}
        self._child: Child | None = None
        self._is_stopping = False

    @property
    def url(self) -> str:
        """Where the engine listens."""
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is no child."""
        return self._child.pid if self._child is not None else None

    async def keep_alive(self, identify: Identify) -> None:
        """Start the child, and start it again whenever it dies. Runs until `stop` or cancelled.

        It is told the identity of its base, so that it takes no adapter of another.
        """
        base = await identify()
        if base is not None:
            self._command += ["--base-identity", base]
        loop = asyncio.get_running_loop()
        back_off = BackOff(0.5, 1.0, 2.0, 5.0, 10.0)
        while not self._is_stopping:
            started = loop.time()
            code: int | None = None
            try:
                held = self._held.fileno()
                self._child = await Child.start(
                    (*self._command, "--listen-fd", str(held)),
                    log_path=self._log_path,
                    files=(held,),
                    variables=self._variables,
                )
                code = await self._child.wait()
                self._hold_anew()
            except OSError as error:
                log.error("the embedded engine can't be started", extra={"reason": str(error)})
            self._child = None
            if self._is_stopping:
                return
            wait_s = back_off.after(loop.time() - started)
            # As a rule nobody but the system does that.
            killed = {"why": "killed, mostly by the system for lack of memory"}
            log.error(
                "the embedded engine ended; starting it again",
                extra={
                    "exit_code": code,
                    **(killed if code == -signal.SIGKILL else {}),
                    "wait_s": wait_s,
                    "said": last_words(self._log_path),
                    "log": str(self._log_path),
                },
            )
            await asyncio.sleep(wait_s)

    async def stop(self) -> None:
        """End the child, by force if it takes too long, and give its port back. Idempotent."""
        self._is_stopping = True
        if self._child is not None:
            await self._child.stop()
        self._held.close()

    def _hold_anew(self) -> None:
        """Keep the port with a socket that doesn't listen: the child's listens without it too."""
        if not self._is_stopping:
            former, self._held = self._held, hold_port(self.host, self.port)
            former.close()
