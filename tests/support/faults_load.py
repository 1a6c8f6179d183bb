"""A steady load of whole requests that goes on while a test breaks things, and what came of it.

Knows no fault: what it was refused or lost, the test judges.
"""

import asyncio
import contextlib
import resource
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

import pytest
from faults_client import Answer, Plan, ask
from faults_engine import TAG_HEADER, WAY_HEADER

CONNECTIONS: Final = 64


class SteadyLoad:
    """Clients that ask again and again, streams and JSON in turn, each on a connection of its own.

    Attributes:
        answered: the ids of the completions that a client has in full.
        bodies: how often each body came whole, by whether it was a stream.
        cut_off: the answers that began and did not come whole.
        refusals: what came in place of an answer; its status is 0 where no head came.
    """

    def __init__(self, url: str, *, tag: str = "load") -> None:
        self.answered: list[str] = []
        self.bodies: Counter[tuple[bool, bytes]] = Counter()
        self.cut_off: list[Answer] = []
        self.refusals: list[Answer] = []
        self.num_asked = 0
        self._url = url
        self._tag = tag
        self._is_over = False
        self._changed = asyncio.Event()

    @property
    def refused(self) -> Counter[int]:
        """How often each status came in place of an answer."""
        return Counter(answer.status for answer in self.refusals)

    @contextlib.asynccontextmanager
    async def running(self, connections: int = CONNECTIONS) -> AsyncIterator["SteadyLoad"]:
        """Keep so many connections busy until the block ends; each request comes to its end."""
        workers = [asyncio.create_task(self._work(number)) for number in range(connections)]
        try:
            yield self
        finally:
            self._is_over = True
            await asyncio.gather(*workers)

    async def more_answers(self, count: int) -> None:
        """Return once so many more came whole."""
        await self._until_more(lambda: len(self.answered), count)

    async def more_asked(self, count: int) -> None:
        """Return once so many more ended, however they did."""
        await self._until_more(lambda: self.num_asked, count)

    async def _until_more(self, so_far: Callable[[], int], count: int) -> None:
        wanted = so_far() + count
        while so_far() < wanted:
            self._changed.clear()
            await self._changed.wait()

    async def _work(self, number: int) -> None:
        is_stream = number % 2 == 0
        fields: dict[str, object] = {
            "model": "tiny",
            "messages": [{"role": "user", "content": f"question of {number}"}],
            "stream": is_stream,
        }
        headers = {WAY_HEADER: "slow" if number % 4 == 0 else "ok", TAG_HEADER: self._tag}
        while not self._is_over:
            self._note(await ask(self._url, Plan(fields, headers)), is_stream)

    def _note(self, answer: Answer, is_stream: bool) -> None:
        self.num_asked += 1
        if answer.is_answered:
            self.answered.append(answer.completion_id)
            self.bodies[is_stream, answer.body] += 1
        elif answer.status == 200:
            self.cut_off.append(answer)
        else:
            self.refusals.append(answer)
        self._changed.set()


@contextlib.contextmanager
def open_files(count: int) -> Iterator[None]:
    """Let this process, and children it starts, have so many open; skip where that can't be."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    _, hard = before
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"{count} open files are needed, {hard} are allowed (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
