"""One activation, step by step: which effect follows which, and what is undone when one fails.

Decides the order and nothing else: what loads, proves, records and moves traffic are Protocols.
Knows no engine, no store and no requests.

    an engine with room for several             an engine that holds one
    verifying   the files are whole             verifying
    converting  to the engine's format          converting
    loading     beside the one that serves      draining    new requests wait, running ones finish
    probing     does it serve this version?     loading     in the place of the one that served
    switching   recorded, then traffic moves    probing
                                                switching   and the waiting requests go on

A failure before the switch unloads what was loaded (and loads the former back where it was
displaced); the former version serves on, and was never cut off.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from strop.adapters.probe import BADNESS, Judgement, Probe

T = TypeVar("T")

Step = Literal["verifying", "converting", "draining", "loading", "probing", "switching"]

_NO_PROBE = Judgement(
    "unproven", "it has no probe, so nothing can show that an engine serves it", {}, 0
)


@dataclass(frozen=True, slots=True)
class Release:
    """A version as it is to be served.

    Attributes:
        version: its id; `base` for the base.
        name: what the engine is to call it.
        folder: its files; None for the base, which every engine has.
        probe: what proves it; None where it can't be proven.
    """

    version: str
    name: str
    folder: Path | None = None
    probe: Probe | None = None


class Target(Protocol):
    """An engine, or one of several that serve the same."""

    async def prepare(self, release: Release) -> None:
        """Validate and convert; nothing that serves changes."""
        ...

    async def load(self, release: Release) -> None:
        """Serve `release` under its name; where there is room for one, in the other's place."""
        ...

    async def prove(self, release: Release) -> Judgement:
        """Ask the engine what `release` must answer."""
        ...

    async def unload(self, release: Release) -> None:
        """Forget `release`; no error where it isn't loaded."""
        ...


class Traffic(Protocol):
    """The requests, and which version they get."""

    async def hold(self) -> None:
        """Let new requests wait; return when none is under way, or raise."""
        ...

    def let_go(self) -> None:
        """Let waiting requests go on; no error where none is held."""
        ...

    async def flip(self, release: Release) -> None:
        """Record that `release` is active, then move traffic to it, without a pause between."""
        ...


class NotProven(Exception):
    """The engine does not serve the version, or nothing can show that it does."""

    def __init__(self, judgement: Judgement) -> None:
        super().__init__(judgement.reason)
        self.judgement = judgement


@dataclass(slots=True)
class Done:
    """How an activation went; milliseconds by step, and how long requests were held."""

    timings_ms: dict[str, float] = field(default_factory=dict)
    judgement: Judgement | None = None
    pause_ms: float = 0.0


@dataclass(slots=True)
class Switch:
    """One activation, or one loading without a switch.

    Args:
        release: the version to serve.
        verify: checks its files; raises where they are not what they were.
        targets: where to load it.
        may_be_unproven: whether a version without a probe is accepted.
        on_step: told of each step as it begins.
    """

    release: Release
    verify: Callable[[], Awaitable[None]]
    targets: Sequence[Target]
    may_be_unproven: bool = False
    on_step: Callable[[Step], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    done: Done = field(default_factory=Done)

    async def load(self) -> Done:
        """Load and prove the version beside what serves; where that fails, unload it again.

        Raises:
            NotProven: the probe failed, or there is none.
            Exception: what the effect that failed raised.
        """
        await self._ready_files()
        try:
            await self._load_and_prove()
        except BaseException:
            await self._quietly(target.unload(self.release) for target in self.targets)
            raise
        return self.done

    async def beside(self, traffic: Traffic) -> Done:
        """Load and prove the version beside what serves, then move traffic; raises as `load`."""
        await self.load()
        try:
            return await self.flip(traffic)
        except BaseException:
            await self._quietly(target.unload(self.release) for target in self.targets)
            raise

    async def flip(self, traffic: Traffic) -> Done:
        """Move traffic to a version that is loaded and proven already, or to the base."""
        await self._timed("switching", traffic.flip(self.release))
        return self.done

    async def in_place(self, traffic: Traffic, former: Release) -> Done:
        """Displace `former` while no request runs; where that fails, load it back.

        Where it is cancelled, as strop stops, the next start finds what the engine holds: to wait
        for a model might take longer than strop is given.

        Raises:
            NotProven, Exception: as `load`. Requests have been let go either way.
        """
        await self._ready_files()
        held_since = self.clock()
        try:
            await self._timed("draining", traffic.hold())
            try:
                await self._load_and_prove()
                await self.flip(traffic)
            except Exception:
                await self._quietly(target.load(former) for target in self.targets)
                raise
        finally:
            traffic.let_go()
            self.done.pause_ms = 1000 * (self.clock() - held_since)
        return self.done

    async def _ready_files(self) -> None:
        await self._timed("verifying", self.verify())
        if self.release.folder is not None:
            prepared = (target.prepare(self.release) for target in self.targets)
            await self._timed("converting", _all(prepared))

    async def _load_and_prove(self) -> None:
        await self._timed("loading", _all(target.load(self.release) for target in self.targets))
        if self.release.folder is not None:
            await self._timed("probing", self._prove())

    async def _prove(self) -> None:
        judgements = [_NO_PROBE]
        if self.release.probe is not None:
            judgements = await _all(target.prove(self.release) for target in self.targets)
        accepted = {"proven", "indistinguishable"}
        if self.may_be_unproven:
            accepted.add("unproven")
        # What is said of a version holds on every engine, so the worst of them says it.
        worst = max(judgements, key=lambda judgement: BADNESS[judgement.outcome])
        if worst.outcome not in accepted:
            raise NotProven(worst)
        self.done.judgement = worst

    async def _quietly(self, effects: Iterable[Awaitable[None]]) -> None:
        """Undo; what can't be undone now is found when the engine is looked at next."""
        await asyncio.gather(*effects, return_exceptions=True)

    async def _timed(self, step: Step, effect: Awaitable[object]) -> None:
        self.on_step(step)
        began = self.clock()
        try:
            await effect
        finally:
            self.done.timings_ms[step] = 1000 * (self.clock() - began)


async def _all(effects: Iterable[Awaitable[T]]) -> list[T]:
    """Return what the effects return, once all have ended; raise the first one's error."""
    ended = await asyncio.gather(*effects, return_exceptions=True)
    done = []
    for one in ended:
        if isinstance(one, BaseException):
            raise one
        done.append(one)
    return done
