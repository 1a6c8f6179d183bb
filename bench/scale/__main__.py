"""Runs the comparison: fills a small and a large store, asks both the same, prints the ratios.

`python -m bench.scale` takes five minutes where the large store has to be filled, else one.
"""

import argparse
import gc
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final

import orjson
import uvloop

from bench import machine, report
from bench.processes import Child, end_at_sigterm, free_port
from bench.scale import filling, operations, table
from bench.scale.filling import Filled
from bench.scale.operations import Operation
from bench.scale.table import Compared
from bench.targets import Site
from bench.targets.strop import Strop
from strop.proxy.store.store import Store

_BENCH: Final = Path(__file__).parents[1]
_OUT: Final = _BENCH / "out" / "scale"
_LATEST: Final = _BENCH / "results" / "scale.json"
_DOCS: Final = _BENCH.parent / "docs" / "performance.md"
_CALLS: Final = 32
# What isn't flat is found out without a call for each spot.
_MOST_S: Final = 1.0
_BYTES_EACH: Final = 4_000


def main() -> int:
    """Run as the command line says; returns 2 where that can't be."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--small", type=int, default=1_000, help="completions of the small store")
    parser.add_argument("--large", type=int, default=1_000_000, help="of the large one")
    parser.add_argument("--rounds", type=int, default=5, help="how often all is asked")
    parser.add_argument("--only", default="", help="only what has this in its title")
    parser.add_argument(
        "--docs", action="store_true", help=f"write {_DOCS.name} and {_LATEST.name}"
    )
    given = parser.parse_args()
    if (free := shutil.disk_usage(_BENCH).free) < given.large * _BYTES_EACH:
        print(
            f"{given.large * _BYTES_EACH / 1e9:.0f} GB of free disk are needed, {free / 1e9:.0f}"
            " GB are there; ask for a smaller --large",
            file=sys.stderr,
        )
        return 2
    end_at_sigterm()
    facts = machine.describe()
    stores = [filling.filled(_OUT, num, _say) for num in (given.small, given.large)]
    wanted = [each for each in operations.everything() if given.only in each.title]
    taken_ms = uvloop.run(_ask_all(stores, wanted, given.rounds))
    if not given.only:
        taken_ms["`strop serve`, until it serves"] = _start_ups(stores, given.rounds)
    compared = [Compared.of(title, *taken) for title, taken in taken_ms.items()]
    facts |= {
        "completions": f"{given.small:,} and {given.large:,}",
        "rounds": str(given.rounds),
        "database": " and ".join(f"{s.database.stat().st_size / 1e6:,.0f} MB" for s in stores),
    }
    tables = f"{report.facts_line(facts)}\n\n{table.markdown(compared)}"
    print(f"\n{tables}\n")
    if given.docs:
        _LATEST.parent.mkdir(exist_ok=True)
        summary = table.summary(facts, compared)
        _LATEST.write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n")
        report.update_docs(_DOCS, tables, table.MARKS)
    return 0


async def _ask_all(
    stores: Sequence[Filled], wanted: Sequence[Operation], rounds: int
) -> dict[str, tuple[list[float], ...]]:
    """Return, by title, each round's median of each store in ms."""
    opened = [await Store.open(each.database, synchronous="off") for each in stores]
    taken: dict[str, tuple[list[float], ...]] = {}
    try:
        for number in range(rounds):
            for each in wanted:
                for at, (filled, store) in enumerate(zip(stores, opened, strict=True)):
                    row = taken.setdefault(each.title, tuple([] for _ in stores))
                    row[at].append(await _ask(each, filled, store))
            for at, filled in enumerate(stores):
                row = taken.setdefault("open the store", tuple([] for _ in stores))
                row[at].append(await _open(filled))
            _say(f"round {number + 1} of {rounds}")
    finally:
        for store in opened:
            await store.close()
    return taken


async def _ask(operation: Operation, filled: Filled, store: Store) -> float:
    """Return the median in ms over spots all over the store, each asked once."""
    taken = []
    gc.collect()
    end = time.perf_counter() + _MOST_S
    for spot in filled.spots[:: len(filled.spots) // _CALLS]:
        start = time.perf_counter()
        await operation.run(store, filled, spot)
        taken.append(time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return median(taken) * 1e3


async def _open(filled: Filled) -> float:
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        store = await Store.open(filled.database, synchronous="off", is_server=True)
        taken.append(time.perf_counter() - start)
        await store.close()
    return median(taken) * 1e3


def _start_ups(stores: Sequence[Filled], rounds: int) -> tuple[list[float], ...]:
    """Return how long each start of `strop serve` on each store took, in ms."""
    taken: tuple[list[float], ...] = tuple([] for _ in stores)
    own = frozenset({0, 1})
    with ExitStack() as stack:
        port = free_port()
        command = [sys.executable, "-m", "bench.upstream", str(port)]
        engine = Child("engine", command, cores=set(own), log=_OUT / "engine.log")
        stack.callback(engine.stop)
        engine.wait_ready(port, "/health", headers={}, within_s=10)
        site = Site(port, _OUT, own)
        for _ in range(rounds):
            for at, filled in enumerate(stores):
                start = time.perf_counter()
                # Not when it can answer: its versions have no folders here.
                running = Strop("strop").start(site, filled.home, ready_at="/health")
                taken[at].append((time.perf_counter() - start) * 1e3)
                running.stop()
    return taken


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
