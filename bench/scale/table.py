"""What was compared, as a table for docs/performance.md and the small tracked summary. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from bench import report

MARKS: Final = ("<!-- bench.scale: begin -->", "<!-- bench.scale: end -->")


@dataclass(frozen=True, slots=True)
class Compared:
    """One operation in both stores, in ms; `ratio` is the median of the rounds' own."""

    title: str
    small_ms: float
    large_ms: float
    ratio: float

    @classmethod
    def of(cls, title: str, small_ms: Sequence[float], large_ms: Sequence[float]) -> "Compared":
        """Return what the rounds say."""
        ratios = [large / small for small, large in zip(small_ms, large_ms, strict=True)]
        return cls(title, median(small_ms), median(large_ms), median(ratios))


def markdown(compared: Sequence[Compared]) -> str:
    """Return all of it as a Markdown table."""
    head = ["operation", "small ms", "large ms", "large / small"]
    body = [
        [one.title, *(report.number(value) for value in (one.small_ms, one.large_ms, one.ratio))]
        for one in compared
    ]
    return report.markdown(head, body)


def summary(facts: Mapping[str, str], compared: Sequence[Compared]) -> dict[str, object]:
    """Return the small tracked summary."""
    return {
        "facts": dict(facts),
        "large_over_small": {one.title: float(f"{one.ratio:.3g}") for one in compared},
        "large_ms": {one.title: float(f"{one.large_ms:.3g}") for one in compared},
    }
