"""Paired rounds: each target once under each scenario, in turn, the order reversed on odd rounds.

Takes targets as they run; knows no thresholds and prints no results.
"""

import gc
import http.client
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import orjson
import uvloop

from bench import rows, slow_reader, wrk
from bench.disk import fdatasync_ms
from bench.goals import Round
from bench.load import ClosedLoop, OpenLoop, Seen
from bench.measures import Cost, Measure, StreamTimes, quantile_ms
from bench.processes import busy_s
from bench.report import line
from bench.scenarios import Scenario
from bench.targets import Running
from bench.upstream import SENT_PATH

# Those that our own load generator would hold back under JSON; the rest is far below it.
_FASTER_THAN_PYTHON = ("direct", "nginx")
_MANY = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """How often and for how long.

    Attributes:
        rounds: how many.
        duration_s: of one measurement.
        warm_up_s: under the same load, before it.
        upstream_port: the fake engine's.
        target_core: the core the targets are pinned to.
        folder: for scratch files, on the file system of the targets' homes.
    """

    rounds: int
    duration_s: float
    warm_up_s: float
    upstream_port: int
    target_core: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """All measurements, and the disk's fdatasync median in ms in each round."""

    measures: tuple[Measure, ...]
    fdatasync_ms: tuple[float, ...]

    def by_round(self) -> list[Round]:
        """Return each round's measurements."""
        return [
            Round({(m.scenario, m.target): m for m in self.measures if m.round == number}, disk_ms)
            for number, disk_ms in enumerate(self.fdatasync_ms)
        ]


def run(
    plan: Plan,
    targets: Sequence[Running],
    scenarios: Sequence[Scenario],
    say: Callable[[str], None],
) -> Outcome:
    """Run all rounds."""
    measures: list[Measure] = []
    disk: list[float] = []
    for number in range(plan.rounds):
        disk.append(fdatasync_ms(plan.folder))
        say(f"round {number + 1} of {plan.rounds}: fdatasync {disk[-1]:.2f} ms")
        for scenario in scenarios:
            able = [each for each in targets if each.target not in scenario.leaves_out]
            for target in able if number % 2 == 0 else reversed(able):
                measure = _measure(plan, number, target, scenario)
                measures.append(measure)
                say(line(measure))
    return Outcome(tuple(measures), tuple(disk))


def _measure(plan: Plan, number: int, target: Running, scenario: Scenario) -> Measure:
    rows_before = rows.count_complete(target.home) if target.home else 0
    with slow_reader.reading(target.stream_port, scenario.slow_readers):
        warm = _load(target, scenario, plan.warm_up_s)
        _take_sent(plan.upstream_port)
        meter = _Meter(target, plan.target_core)
        seen = _load(target, scenario, plan.duration_s)
        cost = meter.read(seen.answered)
    if scenario.slow_readers and target.child:
        # What they left is recorded, which is nobody else's cost.
        target.child.wait_idle()
    rows_missing = None
    if target.home is not None:
        owed = warm.answered + seen.answered if target.records else 0
        rows_missing = owed - (rows.count_complete(target.home) - rows_before)
    latency_ns = sorted(seen.latency_ns)
    measure = Measure(
        round=number,
        scenario=scenario.name,
        target=target.target,
        load="python",
        answered=seen.answered,
        checked=warm.answered + seen.answered,
        failed=warm.failed + seen.failed,
        altered=warm.altered + seen.altered,
        difference=warm.difference or seen.difference,
        rate=seen.answered / seen.seconds if seen.seconds else 0.0,
        p50_ms=quantile_ms(latency_ns, 0.5),
        p99_ms=quantile_ms(latency_ns, 0.99),
        stream=_stream_times(scenario, seen, _take_sent(plan.upstream_port)),
        cost=cost,
        rows_missing=rows_missing,
    )
    is_held_back = target.target in _FASTER_THAN_PYTHON and measure.stream is None
    if is_held_back and scenario.connections >= _MANY and wrk.is_installed():
        return _with_wrk(plan, target, scenario, measure)
    return measure


def _with_wrk(plan: Plan, target: Running, scenario: Scenario, measure: Measure) -> Measure:
    meter = _Meter(target, plan.target_core)
    tally = wrk.run(
        target.json_port, scenario.workload, scenario.connections, plan.duration_s, plan.folder
    )
    rate = tally.answered / tally.seconds
    if rate <= measure.rate:
        return measure
    return replace(
        measure,
        load="wrk",
        answered=tally.answered,
        failed=measure.failed + tally.failed,
        rate=rate,
        p50_ms=tally.p50_ms,
        p99_ms=tally.p99_ms,
        cost=meter.read(tally.answered),
    )


def _load(target: Running, scenario: Scenario, duration_s: float) -> Seen:
    port = target.stream_port if scenario.workload.ask.stream else target.json_port

    async def load() -> Seen:
        if scenario.rate:
            return await OpenLoop(port, scenario.workload).run(scenario.rate, duration_s)
        loop = ClosedLoop(port, scenario.workload)
        return await loop.run(scenario.connections, duration_s, scenario.ramp_s)

    # A collection in the middle of a run would be taken for the target's latency.
    gc.collect()
    gc.disable()
    try:
        return uvloop.run(load())
    finally:
        gc.enable()


def _stream_times(
    scenario: Scenario, seen: Seen, sent_ns: Mapping[str, Sequence[int]]
) -> StreamTimes | None:
    if not scenario.workload.ask.stream:
        return None
    ttft_ns = sorted(seen.ttft_ns)
    ttft = (quantile_ms(ttft_ns, 0.5), quantile_ms(ttft_ns, 0.99))
    if not scenario.workload.pause_ms:
        return StreamTimes(*ttft)
    delays_ns: list[int] = []
    gaps_ns: list[int] = []
    for answer, arrivals_ns in seen.arrivals_ns.items():
        writes_ns = sent_ns.get(answer, ())
        # A target that merged or dropped events can't be matched; fidelity says so.
        if len(writes_ns) == len(arrivals_ns):
            delays_ns += [came - went for came, went in zip(arrivals_ns, writes_ns, strict=True)]
        gaps_ns += [later - earlier for earlier, later in pairwise(arrivals_ns)]
    delays_ns.sort()
    gaps_ns.sort()
    return StreamTimes(
        *ttft,
        delay_p50=quantile_ms(delays_ns, 0.5) if delays_ns else None,
        delay_p99=quantile_ms(delays_ns, 0.99) if delays_ns else None,
        gap_p50=quantile_ms(gaps_ns, 0.5),
        gap_p99=quantile_ms(gaps_ns, 0.99),
    )


class _Meter:
    """Reads what a target uses from its making to `read`."""

    def __init__(self, target: Running, core: int) -> None:
        self._child = target.child
        self._core = core
        if self._child:
            self._child.reset_peak()
        self._cpu_s = self._child.cpu_s() if self._child else 0.0
        self._busy_s = busy_s(core)
        self._start = time.monotonic()

    def read(self, answered: int) -> Cost | None:
        """Return the use so far, per answer."""
        if self._child is None or not answered:
            return None
        wall_s = time.monotonic() - self._start
        cpu_s = self._child.cpu_s() - self._cpu_s
        return Cost(
            cpu_us=cpu_s / answered * 1e6,
            core_share=cpu_s / wall_s,
            core_busy=(busy_s(self._core) - self._busy_s) / wall_s,
            peak_rss_mb=self._child.peak_rss_mb(),
        )


def _take_sent(port: int) -> dict[str, list[int]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", SENT_PATH.decode())
        sent: dict[str, list[int]] = orjson.loads(connection.getresponse().read())
        return sent
    finally:
        connection.close()
