"""The workers as the process that decides knows them: what each serves, holds, and says of itself.

Starts and ends no process, but for killing one that does not answer. A worker gets connections once
it serves the newest view, and so does whoever is let in later.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from strop.proxy.alias import Leases
from strop.proxy.errors import StropError, Unavailable
from strop.proxy.serving import Serving, View
from strop.proxy.workers.door import Door, Passage
from strop.proxy.workers.frames import (
    Answer,
    Call,
    Held,
    Holds,
    Hurry,
    Key,
    KeyOf,
    Look,
    Looks,
    Moved,
    Note,
    Serve,
    Started,
    Suspect,
)
from strop.proxy.workers.link import Link

log = logging.getLogger(__name__)

A = TypeVar("A")

MOVE_WAIT_S: Final = 2.0
MOVE_WAITS: Final = 5
"""How many such waits in a row a worker may take to follow a switch: ten seconds.

Then it is killed, and another replaces it. No one span: uvloop's clock goes on while a Mac sleeps.
"""

HURRY_TIMEOUT_S: Final = 10.0
"""How long a worker may take to end that was told to hurry: what it cuts off is recorded."""

ANSWER_TIMEOUT_S: Final = 2.0
LOOK_INTERVAL_S: Final = 5.0
HUNG_AFTER_LOOKS: Final = 5
"""How many looks in a row a worker may leave unanswered before it is killed: half a minute.

No span of time: the whole machine may have slept through it.
"""


@dataclass(slots=True, eq=False)
class Member:
    """One worker.

    Attributes:
        kill: ends its process at once.
        moved: the number of the view that it serves; 0 before its first.
        has_started: whether it can take connections.
        is_in: whether it does.
        held: what its requests hold.
        looks: what it said of itself last.
        num_unanswered: how many looks it has left unanswered since.
    """

    number: int
    pid: int
    kill: Callable[[], None]
    link: Link
    passage: Passage
    moved: int = 0
    has_started: bool = False
    is_in: bool = False
    held: Held = field(default_factory=dict)
    looks: Looks | None = None
    num_unanswered: int = 0


class Crew:
    """All workers that run; the `Followers` of what is served.

    Args:
        door: where their connections come from.

    Attributes:
        leases: how many requests hold each version, in all of them.
        changed: set when any of them has said something, or has come or gone.
        is_draining: whether strop is stopping.
        on_gone: told of each that is gone.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._members: list[Member] = []
        self._serving: Serving | None = None
        self._view: View | None = None
        self._turn = 0
        self.changed = asyncio.Event()
        self.leases = CrewLeases(self)
        self.is_draining = False
        self.on_gone: Callable[[Member], None] = lambda _: None

    @property
    def members(self) -> tuple[Member, ...]:
        """The workers, by their numbers."""
        return tuple(sorted(self._members, key=lambda one: one.number))

    def follow(self, serving: Serving) -> None:
        """Let the workers serve what `serving` says from here on."""
        self._serving = serving
        serving.followers = self
        self.tell()

    def present(self) -> tuple[int, View]:
        """Return the number of the newest view, and the view."""
        assert self._view is not None
        return self._turn, self._view

    def tell(self) -> None:
        """Tell every worker what to serve, if it is another than before."""
        assert self._serving is not None
        view = self._serving.view()
        if view == self._view:
            return
        self._view = view
        self._turn += 1
        for member in self._members:
            member.link.tell(Serve(self._turn, view))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition` holds; looked at whenever anything has changed."""
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    async def have_moved(self) -> None:
        """Return when every worker that has connections serves the newest view.

        One that takes too long is killed: nobody can know what it would serve.
        """
        turn = self._turn

        def late() -> list[Member]:
            return [one for one in self._members if one.is_in and one.moved < turn]

        for _ in range(MOVE_WAITS):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MOVE_WAIT_S):
                    await self.until(lambda: not late())
                return
        for member in late():
            log.error("a worker does not follow a switch, so it ends", extra=_who(member))
            member.kill()
        await self.until(lambda: not late())

    def hurry(self) -> None:
        """Let every worker cut off what runs, and end, by force where it takes too long."""
        for member in self._members:
            member.link.tell(Hurry())
            asyncio.get_running_loop().call_later(HURRY_TIMEOUT_S, member.kill)

    async def run(self, member: Member, answer: Callable[[Call], Awaitable[Answer]]) -> None:
        """Let a worker be one of them until it is gone; `answer` answers its calls."""
        self._members.append(member)
        try:
            await member.link.run(lambda note: self._note(member, note), answer)
        finally:
            self._members.remove(member)
            self._door.shut(member.passage)
            self.on_gone(member)
            self.changed.set()

    async def key_of(self, completion: str, *, asker: Member | None = None) -> str | None:
        """Return the key of a completion in flight in any worker but the one that asks.

        Raises:
            Unavailable: one of them doesn't answer, and no other has it.
        """
        # One that takes no connections yet has nothing in flight.
        asked = [one for one in self._members if one is not asker and one.is_in]
        keys = await asyncio.gather(
            *(_within(one.link.ask(KeyOf(completion), Key)) for one in asked),
            return_exceptions=True,
        )
        found = [key.id for key in keys if isinstance(key, Key) and key.id is not None]
        if found:
            return found[0]
        for member, key in zip(asked, keys, strict=True):
            # What was in flight in one that is gone is lost.
            if isinstance(key, BaseException) and member in self._members:
                raise Unavailable(
                    f"expected worker {member.number} to say what it has in flight, got nothing;"
                    " try again"
                ) from key
        return None

    async def look(self) -> tuple[Member, ...]:
        """Ask each how it is, and return them; one that is too busy to say was as it was."""
        await asyncio.gather(*(self._look_at(one) for one in self._members))
        return self.members

    async def watch(self) -> None:
        """Look at them again and again, and kill those that hang. Runs until cancelled."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            for member in self._members:
                member.num_unanswered += 1
            for member in await self.look():
                if member.num_unanswered >= HUNG_AFTER_LOOKS:
                    log.error("a worker hangs, so it ends", extra=_who(member))
                    member.kill()

    async def _look_at(self, member: Member) -> None:
        with contextlib.suppress(StropError, TimeoutError):
            member.looks = await _within(member.link.ask(Look(), Looks))
            member.num_unanswered = 0

    def _note(self, member: Member, note: Note) -> None:
        match note:
            case Moved(turn, held):
                member.moved, member.held = turn, held
            case Holds(held):
                member.held = held
            case Started():
                member.has_started = True
            case Suspect(url):
                self._suspect(url)
        is_ready = member.has_started and member.moved == self._turn
        if is_ready and not member.is_in:
            member.is_in = True
            self._door.open(member.passage)
        self.changed.set()

    def _suspect(self, url: str | None) -> None:
        assert self._serving is not None
        engine = self._serving.engine
        found = [one.engine for one in engine.replicas if one.engine.upstream.url == url]
        # Of one, whatever its address there: the engine of strop's own has another at each start.
        alone = None if engine.replicas or url is None else engine
        self._serving.suspect(found[0] if found else alone)


class CrewLeases(Leases):
    """How many requests are being served by each version, in all workers together.

    What a worker holds is known a moment late. But once it has moved to a view without a version,
    no request of its takes that one any more, so what is known then is never too little.
    """

    def __init__(self, crew: Crew) -> None:
        super().__init__()
        self._crew = crew

    def count(self, version: str) -> int:
        """Return how many requests hold `version`."""
        return sum(one.held.get(version, (0, 0.0))[0] for one in self._crew.members)

    @property
    def total(self) -> int:
        """How many requests hold any version."""
        return sum(num for one in self._crew.members for num, _ in one.held.values())

    def idle_since(self, version: str | None = None) -> float:
        """Return the monotonic time at which nobody held `version` any more; 0.0 if never held.

        Without one, the last such time of any version.
        """
        held = (each for one in self._crew.members for each in one.held.items())
        return max((since for name, (_, since) in held if version in (None, name)), default=0.0)

    async def wait_until_free(self, version: str | None = None) -> None:
        """Return when no worker's request holds `version`, or any version at all."""
        while True:
            await self._crew.have_moved()
            if not (self.total if version is None else self.count(version)):
                return
            self._crew.changed.clear()
            await self._crew.changed.wait()


async def _within(answer: Awaitable[A]) -> A:
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        return await answer


def _who(member: Member) -> dict[str, int]:
    return {"worker": member.number, "pid": member.pid}
