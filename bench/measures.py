"""One measurement: a target under a scenario in a round. Pure values and arithmetic on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Cost:
    """What the target's processes used.

    Attributes:
        cpu_us: CPU time per answer in us, all processes and threads.
        core_share: the part of its core that the target used, 0 to 1.
        core_busy: the part of its core that anyone used, 0 to 1.
        peak_rss_mb: the most resident memory under the load, in 10**6 bytes.
    """

    cpu_us: float
    core_share: float
    core_busy: float
    peak_rss_mb: float


@dataclass(frozen=True, slots=True)
class StreamTimes:
    """When a stream's bytes came, in ms.

    `ttft` counts to the first byte of the body. Only for paced streams: `delay` runs from the
    engine's write of an event to its arrival, `gap` between two arrivals.
    """

    ttft_p50: float
    ttft_p99: float
    delay_p50: float | None = None
    delay_p99: float | None = None
    gap_p50: float | None = None
    gap_p99: float | None = None


@dataclass(frozen=True, slots=True)
class Measure:
    """What was measured.

    Attributes:
        load: the load generator.
        answered: requests answered with 200; `rate` is these per second.
        checked: answers compared with the engine's own, those of the warm-up included.
        failed: requests answered otherwise or not at all, those of the warm-up included.
        altered: those of the checked whose body is not the engine's own.
        difference: how the first failed or altered one differs.
        rows_missing: rows owed for the answers, less rows written; None where no rows are kept.
    """

    round: int
    scenario: str
    target: str
    load: Literal["python", "wrk"]
    answered: int
    checked: int
    failed: int
    altered: int
    difference: str
    rate: float
    p50_ms: float
    p99_ms: float
    stream: StreamTimes | None
    cost: Cost | None
    rows_missing: int | None

    @property
    def full_rate(self) -> float:
        """Answers a second, had the target used its core fully."""
        return 1e6 / self.cost.cpu_us if self.cost else self.rate


def quantile_ms(ordered_ns: Sequence[int], share: float) -> float:
    """Return in ms the value that this share of an ordered sequence lies below; 0.0 of nothing."""
    if not ordered_ns:
        return 0.0
    return ordered_ns[min(len(ordered_ns) - 1, int(share * len(ordered_ns)))] / 1e6
