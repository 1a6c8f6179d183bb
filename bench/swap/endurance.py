"""Many switches under many streams: what they break, whose tokens streams get, and what they leave.

Every record is read from the store afterwards, and some are scored again by another implementation
(torch and peft). Only strop has versions side by side, so nothing is compared here.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.processes import Child
from bench.swap.servers import Strop
from bench.swap.streams import Crowd
from bench.swap.switches import Rota
from strop.proxy.store.records import StoredCompletion
from strop.proxy.store.store import Store
from strop.training.backends import open_policy
from strop.training.sequences import Tokens

NUM_STREAMS = 32
INTERVAL_S = 0.05
_NUM_TOKENS = 64
_NUM_RESCORED = 48
# Nats: 1.3e-5 apart are right implementations in float32, tenths at least two of these versions.
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Endured:
    """What came of it.

    Attributes:
        switches, streams: how many there were.
        crossed: how many streams saw another version become active while they ran.
        failed: streams that were refused, cut off or empty.
        unrecorded: streams without a complete record of the version that their head names.
        held_ms: how long requests were held in all.
        rescored: how many had each token's logprob computed again.
        mixed: of these, how many have a token that is not the named version's.
        early_mb, late_mb: the most memory in the second and in the last quarter, 10**6 bytes.
        trouble: what happened to the first that failed.
    """

    server: str
    seconds: float
    switches: int
    streams: int
    crossed: int
    failed: int
    unrecorded: int
    held_ms: float
    rescored: int
    mixed: int
    early_mb: float
    late_mb: float
    trouble: str


async def endure(
    strop: Strop, base: Path, adapters: Sequence[Path], processes: Sequence[Child], seconds: float
) -> Endured:
    """Switch among the versions that stay loaded while 32 streams run, then look at what they got.

    Args:
        strop: the proxy; it has served nothing that is not looked at.
        base: the model's folder.
        adapters: the folders that its versions were made of, in their order.
        processes: whose memory counts.
        seconds: how long.
    """
    versions = strop.versions[: strop.num_held]
    for version in versions:
        await strop.switch(version)
    rota, num_switches, crossed, held_ms = Rota(versions), 0, set[int](), 0.0
    peaks_mb: list[float] = []
    async with Crowd(strop, NUM_STREAMS, _NUM_TOKENS) as crowd:
        await crowd.settle()
        begin = time.monotonic()
        for quarter in range(1, 5):
            for process in processes:
                process.reset_peak()
            while time.monotonic() < begin + quarter * seconds / 4:
                done, _ = await asyncio.gather(strop.switch(rota.turn()), asyncio.sleep(INTERVAL_S))
                num_switches += 1
                held_ms += done.get("pause_ms") or 0.0
                running = [reply for reply in crowd.running() if reply.version]
                crossed |= {id(reply) for reply in running if reply.version != strop.current}
            peaks_mb.append(sum(process.peak_rss_mb() for process in processes))
    failures = [reply for reply in crowd.replies if reply.has_failed]
    rows = await _rows(strop.home)
    recorded = {
        row.completion.id: row.completion.version
        for row in rows
        if row.completion.state == "complete"
    }
    whole = [reply for reply in crowd.replies if not reply.has_failed]
    wrong = sum(recorded.get(reply.completion) != reply.version for reply in whole)
    named = {reply.completion for reply in whole}
    chosen = _some_of_each([row for row in rows if row.completion.id in named])
    folders = dict(zip(strop.versions, adapters, strict=True))
    return Endured(
        strop.name,
        seconds,
        num_switches,
        len(crowd.replies),
        len(crossed),
        len(failures),
        wrong,
        held_ms,
        len(chosen),
        _num_mixed(chosen, base, folders),
        peaks_mb[1],
        peaks_mb[3],
        f"{failures[0].status} {failures[0].trouble}" if failures else "",
    )


async def _rows(home: Path) -> list[StoredCompletion]:
    store = await Store.open(home / "strop.db")
    try:
        page = await store.list_completions(limit=100_000)
        found = [await store.get_completion(one.id) for one in page.data]
        return [row for row in found if row is not None]
    finally:
        await store.close()


def _some_of_each(rows: Sequence[StoredCompletion]) -> list[StoredCompletion]:
    """Return some of every version, as many of each."""
    shuffled = random.Random(0).sample(rows, len(rows))
    most = max(1, _NUM_RESCORED // max(1, len({row.completion.version for row in rows})))
    taken = Counter[str]()
    chosen = []
    for row in shuffled:
        taken[row.completion.version] += 1
        if taken[row.completion.version] <= most:
            chosen.append(row)
    return chosen


def _num_mixed(rows: Sequence[StoredCompletion], base: Path, folders: dict[str, Path]) -> int:
    """Return how many of `rows` have a token whose logprob is not that of their version."""
    policy, num_mixed = open_policy(base), 0
    for row in rows:
        (choice,) = row.completion.choices
        prompt, ids = row.completion.prompt_ids, choice.token_ids
        if prompt is None or ids is None or choice.logprobs is None:
            num_mixed += 1
            continue
        tokens = Tokens(np.array([*prompt, *ids], np.int32), len(prompt))
        (expected,) = policy.logprobs([tokens], folders[row.completion.version])
        pairs = zip(expected, choice.logprobs, strict=True)
        num_mixed += any(abs(float(one) - other) > _TOLERANCE for one, other in pairs)
    return num_mixed
