"""A child process of strop's: in a session of its own, its output in a file, gone when strop is.

Does not know what runs in it, and starts nothing again; how long to wait until then is `BackOff`'s.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

STOP_TIMEOUT_S = 10.0
HEALTHY_AFTER_S = 30.0
_LAST_BYTES = 4096
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


class BackOff:
    """How long to wait before what has ended is started again.

    Args:
        waits_s: the first where it ended once, the second where it ended twice in a row without
            having run for long, and so on; the last for all that follow.
    """

    def __init__(self, *waits_s: float) -> None:
        self._waits_s = waits_s
        self._num_ends = 0

    def after(self, ran_s: float) -> float:
        """Return how long to wait, in seconds, now that it has run for `ran_s`."""
        self._num_ends = 1 if ran_s > HEALTHY_AFTER_S else self._num_ends + 1
        return self._waits_s[min(self._num_ends, len(self._waits_s)) - 1]


class Child:
    """A running child. Made by `Child.start`.

    Its session of its own keeps a Ctrl-C in the terminal from it: that reaches strop alone, which
    drains first. A pipe, handed down as `--parent-fd`, ends it when strop dies, however it dies.
    """

    def __init__(self, process: asyncio.subprocess.Process, pipe: int) -> None:
        self._process = process
        self._pipe: int | None = pipe

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        log_path: Path | None,
        files: Sequence[int] = (),
        variables: Mapping[str, str] | None = None,
    ) -> "Child":
        """Start `command`, which must understand `--parent-fd`.

        Args:
            command: program and arguments.
            log_path: where its output goes; None for where strop's own goes.
            files: descriptors that it inherits beside the pipe, under the same numbers.
            variables: of its environment, beside strop's own or in their place.

        Raises:
            OSError: it can't be started, or the file not be written.
        """
        read_end, write_end = os.pipe()
        try:
            with contextlib.ExitStack() as stack:
                output = None
                if log_path is not None:
                    file = os.open(log_path, _APPEND, 0o600)
                    output = stack.enter_context(os.fdopen(file, "ab"))
                process = await asyncio.create_subprocess_exec(
                    *command,
                    *("--parent-fd", str(read_end)),
                    pass_fds=(read_end, *files),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    env={**os.environ, **(variables or {})},
                )
        except BaseException:
            os.close(write_end)
            raise
        finally:
            os.close(read_end)
        return cls(process, write_end)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Return the exit status, once the child has ended."""
        code = await self._process.wait()
        self._close_pipe()
        return code

    def send(self, sig: signal.Signals) -> None:
        """Send the child a signal, unless it has ended."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(sig)

    async def stop(self, within_s: float | None = None) -> int:
        """End the child with SIGTERM, by force after `within_s`; return its exit status.

        Idempotent. Without `within_s` it has `STOP_TIMEOUT_S`.
        """
        limit_s = STOP_TIMEOUT_S if within_s is None else within_s
        if self._process.returncode is None:
            self.send(signal.SIGTERM)
            # Whoever stops it may be cancelled already, where asyncio.timeout lets go in 3.11.2.
            ended = asyncio.ensure_future(self._process.wait())
            try:
                await asyncio.wait([ended], timeout=limit_s)
            finally:
                ended.cancel()
            self.send(signal.SIGKILL)
        return await self.wait()

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


def follow_parent(fd: int, grace_s: float) -> None:
    """Stop this process when the other end of `fd` is closed: gently, by force after `grace_s`.

    For a thread of a child's; blocks until then.
    """
    while os.read(fd, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    # Not reached if the process ends in time: the thread is a daemon.
    time.sleep(grace_s)
    os._exit(1)


def last_words(log_path: Path) -> str:
    """Return the last line that a child wrote, for people; empty where there is none."""
    try:
        with log_path.open("rb") as file:
            # An engine's log grows for as long as the home is used.
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
