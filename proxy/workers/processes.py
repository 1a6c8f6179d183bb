"""The workers' processes: started, started again when they die, and stopped.

Does not know what they serve, or how connections reach them.
"""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from strop.configs import installation
from strop.proxy.child import BackOff, Child
from strop.proxy.errors import StropError
from strop.proxy.workers.crew import Crew, Member
from strop.proxy.workers.door import Passage
from strop.proxy.workers.frames import Answer, Begin, Call
from strop.proxy.workers.link import Link

log = logging.getLogger(__name__)

COMMAND: Final = installation.module("strop.proxy.workers.process")

AGAIN_S: Final = 10.0
"""How long until what another's death left behind is settled, where it can't be now."""

# Beyond the drain: what was cut off is written, and the database closed.
_END_TIMEOUT_S = 10.0


class WorkerProcesses:
    """Keeps the processes of the workers alive until `stop`.

    Args:
        num: how many.
        crew: where each is a member while it runs.
        begin: returns what to tell the worker of a number first.
        answer: answers the calls of a worker.
        on_replaced: called when another has taken the place of one that died, and again while it
            raises StropError.
    """

    def __init__(
        self,
        num: int,
        crew: Crew,
        *,
        begin: Callable[[int], Begin],
        answer: Callable[[Member, Call], Awaitable[Answer]],
        on_replaced: Callable[[], Awaitable[None]],
    ) -> None:
        self._num = num
        self._crew = crew
        self._begin = begin
        self._answer = answer
        self._on_replaced = on_replaced
        self._children: dict[int, Child] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._is_stopping = False

    async def start(self) -> None:
        """Start all, and return when they can take connections.

        Raises:
            StropError: one of them can't be started.
        """

        def all_are_in() -> bool:
            return sum(one.is_in for one in self._crew.members) >= self._num

        self._tasks = [asyncio.create_task(self._keep(n)) for n in range(1, self._num + 1)]
        all_in = asyncio.create_task(self._crew.until(all_are_in))
        done, _ = await asyncio.wait([all_in, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        if all_in not in done:
            all_in.cancel()
            raise StropError("a worker could not be started; the log says why")

    async def stop(self, drain_s: float) -> bool:
        """End all of them at once, each after its requests, by force where it takes too long.

        Return False where one of them says that it failed to end in order.
        """
        self._is_stopping = True
        statuses = await self._end_all(drain_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # One may have been started in the very moment of the stop.
        await self._end_all(0)
        return not any(status > 0 for status in statuses)

    async def _end_all(self, drain_s: float) -> list[int]:
        stops = (one.stop(drain_s + _END_TIMEOUT_S) for one in self._children.values())
        return await asyncio.gather(*stops)

    async def _keep(self, number: int) -> None:
        """Run one worker again and again; return where it never began, or strop stops."""
        loop = asyncio.get_running_loop()
        back_off = BackOff(0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
        has_begun = False
        while not self._is_stopping:
            started, code = loop.time(), None
            try:
                code, has_been_in = await self._run(number, is_replacement=has_begun)
                has_begun |= has_been_in
            except OSError as error:
                log.error("a worker can't be started", extra={"reason": str(error)})
            except Exception:
                # The edge of a background task: one that ends would start no worker again.
                log.exception("a worker can't be understood")
            if self._is_stopping:
                return
            wait_s = back_off.after(loop.time() - started)
            log.error(
                "a worker ended" + ("; starting it again" if has_begun else ""),
                extra={"worker": number, "exit_code": code, "wait_s": wait_s},
            )
            if not has_begun:
                return
            await asyncio.sleep(wait_s)

    async def _run(self, number: int, *, is_replacement: bool) -> tuple[int, bool]:
        """Run one process to its end; return its exit status, and whether it took connections."""
        with contextlib.ExitStack() as stack:
            ours, theirs = map(stack.enter_context, socket.socketpair())
            way_in, way_out = map(stack.enter_context, socket.socketpair())
            files = (theirs.fileno(), way_out.fileno())
            options = ("--link-fd", str(files[0]), "--door-fd", str(files[1]))
            child = await Child.start((*COMMAND, *options), log_path=None, files=files)
            self._children[number] = child
            link, passage = await Link.open(ours.dup()), Passage(way_in.dup())
        member = Member(number, child.pid, lambda: child.send(signal.SIGKILL), link, passage)
        begin = self._begin(number)
        link.tell(begin)
        watch = asyncio.create_task(self._see_in(member)) if is_replacement else None
        try:
            await self._crew.run(member, lambda call: self._answer(member, call))
        finally:
            if watch is not None:
                watch.cancel()
            if not self._is_stopping:
                # Nobody can tell it anything any more.
                member.kill()
        code = await child.wait()
        self._children.pop(number, None)
        return code, member.is_in

    async def _see_in(self, member: Member) -> None:
        await self._crew.until(lambda: member.is_in)
        while True:
            try:
                await self._on_replaced()
                return
            except StropError as error:
                log.warning("left undone; it is tried again", extra={"reason": error.message})
                await asyncio.sleep(AGAIN_S)
