"""Switches, measured: until the new version's first token, and what running streams see of it.

Each is paired with as long a while without one. Knows the servers' clients only.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from bench.swap.figures import Latency, latency
from bench.swap.streams import Crowd, Subject, ask_once

Kind = Literal["new", "held"]
"""`new`: the engine does not hold the version. `held`: it does; a way back, for instance."""

STREAMS = (0, 4, 16)
NUM_TOKENS = 128
_WINDOW_NS = 1_000_000_000
_FIRST_TOKENS = 8


class Switched(Subject, Protocol):
    """A server whose version can be switched."""

    @property
    def name(self) -> str:
        """Its name in tables."""

    @property
    def keeps_versions(self) -> bool:
        """Whether some stay loaded, so that going back to them costs nothing."""

    @property
    def versions(self) -> Sequence[str]:
        """What it can be switched to."""

    async def switch(self, version: str) -> dict[str, Any]:
        """Make requests get `version` from here on."""


@dataclass(frozen=True, slots=True)
class Switch:
    """One switch.

    Attributes:
        streams: how many run.
        first_ms: from asking for the switch to the first token of the new version.
        asked_ms: of that, until the switch was acknowledged.
        plain_ms: the same request's first token without a switch.
        timings_ms: strop's own account of the steps.
        during: the streams in the second after it was asked for, or until the first token.
        without: the streams in as long a while without a switch.
        failed: requests that were refused, cut off or empty, of the `asked` in all.
    """

    round: int
    server: str
    streams: int
    kind: Kind
    first_ms: float
    asked_ms: float
    plain_ms: float
    timings_ms: dict[str, float]
    during: Latency | None
    without: Latency | None
    failed: int
    asked: int


async def measure(subject: Switched, number: int, streams: int, to: str) -> Switch:
    """Switch `subject` to the version `to` while `streams` run; the pair's order by the round."""
    async with Crowd(subject, streams, NUM_TOKENS) as crowd:
        await crowd.settle()
        if number % 2 == 0:
            without = await _wait(_WINDOW_NS)
            plain = await ask_once(subject, _FIRST_TOKENS)
        with _uncollected():
            begin_ns = time.monotonic_ns()
            said = await subject.switch(to)
            asked_ms = (time.monotonic_ns() - begin_ns) / 1e6
            first = await ask_once(subject, _FIRST_TOKENS)
            first_ns = first.arrivals_ns[0] if first.arrivals_ns else time.monotonic_ns()
            left_ns = begin_ns + _WINDOW_NS - time.monotonic_ns()
            await asyncio.sleep(max(0.0, left_ns / 1e9))
        during = begin_ns, max(first_ns, begin_ns + _WINDOW_NS)
        await crowd.settle()
        if number % 2:
            without = await _wait(during[1] - during[0])
            plain = await ask_once(subject, _FIRST_TOKENS)
    if first.version != to:
        raise AssertionError(f"expected {to} to answer after the switch, got {first.version}")
    replies = [*crowd.replies, first, plain]
    timings_ms: dict[str, float] = said.get("timings_ms", {})
    return Switch(
        number,
        subject.name,
        streams,
        kind="held" if timings_ms and "probing" not in timings_ms else "new",
        first_ms=(first_ns - begin_ns) / 1e6,
        asked_ms=asked_ms,
        plain_ms=plain.first_ms,
        timings_ms=timings_ms,
        during=latency(crowd.replies, *during) if streams else None,
        without=latency(crowd.replies, *without) if streams else None,
        failed=sum(reply.has_failed for reply in replies),
        asked=len(replies),
    )


class Rota:
    """Whose turn it is among a server's versions; the one used last is the last.

    Args:
        versions: in the order in which they were used.
    """

    def __init__(self, versions: Sequence[str]) -> None:
        self._order = [*versions]

    def turn(self, kind: Kind = "new") -> str:
        """Return the version used longest ago, or the one that is `held`: the one before."""
        version = self._order.pop(0 if kind == "new" else -2)
        self._order.append(version)
        return version


async def run(servers: Sequence[Switched], rounds: int, say: Callable[[str], None]) -> list[Switch]:
    """Switch each server in turn, `rounds` times for each number of streams."""
    rotas = {server.name: await _warm(server) for server in servers}
    measured: list[Switch] = []
    for number in range(rounds):
        for streams in STREAMS:
            for server in servers if number % 2 == 0 else servers[::-1]:
                # A stock server holds one version: whichever comes next is new to it.
                kinds: tuple[Kind, ...] = ("new", "held") if server.keeps_versions else ("new",)
                for kind in kinds:
                    to = rotas[server.name].turn(kind)
                    measured.append(await measure(server, number, streams, to))
                    say(line(measured[-1]))
    return measured


async def _warm(server: Switched) -> Rota:
    """Serve each version once."""
    for version in server.versions:
        await server.switch(version)
        reply = await ask_once(server, _FIRST_TOKENS)
        if reply.has_failed:
            raise AssertionError(f"{server.name}: {reply.status} {reply.trouble}")
    return Rota(server.versions)


def line(switch: Switch) -> str:
    """Return one switch in one line."""
    parts = [
        f"  {switch.round:>2} {switch.server:<13} {switch.kind:<4} {switch.streams:>2} streams",
        f"first token {switch.first_ms:>7.0f} ms (without a switch {switch.plain_ms:>5.0f})",
    ]
    if switch.during and switch.without:
        for name, seen in (("during", switch.during), ("without", switch.without)):
            gaps = f"{seen.gap_p50:.0f}/{seen.gap_p99:.0f}/{seen.gap_most:.0f}"
            parts.append(f"{name}: gaps {gaps} ms, longest wait {seen.longest:.0f}")
    if switch.failed:
        parts.append(f"FAILED {switch.failed}")
    return "  ".join(parts)


async def _wait(length_ns: int) -> tuple[int, int]:
    """Return the begin and end of a while of that length, once it is over."""
    with _uncollected():
        begin_ns = time.monotonic_ns()
        await asyncio.sleep(length_ns / 1e9)
        return begin_ns, begin_ns + length_ns


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python's collector from being taken for a server's latency."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
