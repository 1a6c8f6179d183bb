"""What strop is to reach: each goal's definition, its three levels, and what a round gives for it.

Pure; the levels stem from measurements of other proxies, see docs/performance.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from bench.measures import Cost, Measure

_CROWD = "stream-1000"

Level = Literal["stretch", "ahead", "pass", "short"]


@dataclass(frozen=True, slots=True)
class Round:
    """One round's measurements by (scenario, target), and the disk's fdatasync median."""

    measures: Mapping[tuple[str, str], Measure]
    fdatasync_ms: float

    def get(self, scenario: str, target: str) -> Measure:
        """Return a measurement; raises KeyError where it was not run."""
        return self.measures[scenario, target]

    def cost(self, scenario: str, target: str) -> Cost:
        """Return what a target used; raises KeyError where that is not known."""
        cost = self.get(scenario, target).cost
        if cost is None:
            raise KeyError(scenario, target)
        return cost


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal.

    Attributes:
        title: what is measured.
        levels: thresholds of `pass`, `ahead` (of every measured peer) and `stretch`.
        is_floor: whether more is better.
        value: what a round gives; raises KeyError where the round lacks what it needs.
        strict: the same against nginx with its core fully used, where that differs.
        unit: for tables.
    """

    title: str
    levels: tuple[float, float, float]
    is_floor: bool
    value: Callable[[Round], float]
    strict: Callable[[Round], float] | None = None
    unit: str = ""

    def level(self, value: float) -> Level:
        """Return the highest level that `value` reaches."""
        names: tuple[Level, ...] = ("pass", "ahead", "stretch")
        reached: Level = "short"
        for name, threshold in zip(names, self.levels, strict=True):
            if value >= threshold if self.is_floor else value <= threshold:
                reached = name
        return reached


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal and what was reached: the medians over rounds, None where nothing was measured."""

    goal: Goal
    value: float | None
    strict: float | None = None
    spread: tuple[float, float] | None = None
    level: Level | None = field(default=None)


def judge(goal: Goal, rounds: Sequence[Round]) -> Verdict:
    """Return what the rounds say about a goal: ratios inside a round, the median over rounds."""
    values = _values(goal.value, rounds)
    if not values:
        return Verdict(goal, None)
    strict = _values(goal.strict, rounds) if goal.strict else []
    value = median(values)
    return Verdict(
        goal,
        value,
        strict=median(strict) if strict else None,
        spread=(min(values), max(values)),
        level=goal.level(value),
    )


def _values(value: Callable[[Round], float], rounds: Sequence[Round]) -> list[float]:
    found = []
    for each in rounds:
        try:
            found.append(value(each))
        except KeyError:
            continue
    return found


def _rate_over(scenario: str, peer: str) -> Callable[[Round], float]:
    return lambda r: r.get(scenario, "strop").rate / r.get(scenario, peer).rate


def _rate_over_full(scenario: str) -> Callable[[Round], float]:
    return lambda r: r.get(scenario, "strop").rate / r.get(scenario, "nginx").full_rate


def _cpu_over_nginx(scenario: str) -> Callable[[Round], float]:
    return lambda r: r.cost(scenario, "strop").cpu_us / r.cost(scenario, "nginx").cpu_us


def _paced_delay(scenario: str) -> Callable[[Round], float]:
    return lambda r: _delay_p50(r, scenario, "strop") - _delay_p50(r, scenario, "nginx")


def _delay_p50(r: Round, scenario: str, target: str) -> float:
    stream = r.get(scenario, target).stream
    if stream is None or stream.delay_p50 is None:
        raise KeyError(target)
    return stream.delay_p50


def _added_over_disk(r: Round) -> float:
    return (r.get("json-1", "strop").p50_ms - r.get("json-1", "direct").p50_ms) / r.fdatasync_ms


def _most_rss(r: Round) -> float:
    found = [
        m.cost.peak_rss_mb
        for m in r.measures.values()
        if m.target == "strop" and m.cost and m.scenario != _CROWD
    ]
    if not found:
        raise KeyError("strop")
    return max(found)


def _beside_slow_readers(r: Round) -> float:
    return _slowed(r, "strop") / _slowed(r, "nginx")


def _slowed(r: Round, target: str) -> float:
    return r.get("stream-slow", target).p50_ms / r.get("stream", target).p50_ms


ALL = (
    Goal(
        "JSON rps at 64 / nginx",
        (0.05, 0.11, 0.15),
        True,
        _rate_over("json-64", "nginx"),
        _rate_over_full("json-64"),
    ),
    Goal("JSON rps at 64 / LiteLLM", (15, 60, 90), True, _rate_over("json-64", "litellm")),
    Goal("CPU per JSON request / nginx", (25, 14, 9), False, _cpu_over_nginx("json-64")),
    Goal(
        "SSE streams/s / nginx, logprobs asked",
        (0.25, 0.45, 0.6),
        True,
        _rate_over("stream", "nginx"),
        _rate_over_full("stream"),
    ),
    Goal(
        "SSE streams/s / nginx, nothing asked",
        (0.25, 0.45, 0.6),
        True,
        _rate_over("stream-plain", "nginx"),
        _rate_over_full("stream-plain"),
    ),
    Goal("SSE CPU per stream / nginx, logprobs asked", (6, 3, 2), False, _cpu_over_nginx("stream")),
    Goal(
        "SSE CPU per stream / nginx, nothing asked",
        (6, 3, 2),
        False,
        _cpu_over_nginx("stream-plain"),
    ),
    Goal(
        "paced streams (5 ms, 32 at once): event delay p50 over nginx",
        (1.0, 0.4, 0.1),
        False,
        _paced_delay("stream-paced"),
        unit="ms",
    ),
    Goal(
        "1,000 paced streams (250 ms): event delay p50 over nginx",
        (5.0, 2.0, 0.5),
        False,
        _paced_delay(_CROWD),
        unit="ms",
    ),
    Goal(
        "fast streams' p50 beside 8 slow readers / without, over nginx's",
        (1.5, 1.2, 1.1),
        False,
        _beside_slow_readers,
    ),
    Goal("added p50 at 1 connection / fdatasync p50", (3, 1.5, 1.2), False, _added_over_disk),
    Goal(
        "cost of capture: rps with / without at 64",
        (0.5, 0.75, 0.9),
        True,
        _rate_over("json-64", "strop-no-capture"),
    ),
    Goal(
        "250 KB answer, rps / nginx",
        (0.3, 0.6, 0.8),
        True,
        _rate_over("answer-250k", "nginx"),
        _rate_over_full("answer-250k"),
    ),
    Goal("RSS of one worker under load, at its peak", (150, 80, 45), False, _most_rss, unit="MB"),
    Goal(
        "RSS of one worker with 1,000 streams, at its peak",
        (300, 160, 90),
        False,
        lambda r: r.cost(_CROWD, "strop").peak_rss_mb,
        unit="MB",
    ),
)
