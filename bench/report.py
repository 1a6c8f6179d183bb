"""Tables: for the terminal, for docs/performance.md, and the small tracked summary.

Pure, but for `has_markers` and `update_docs`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import scenarios
from bench.goals import Verdict
from bench.measures import Measure

BEGIN = "<!-- bench: begin -->"
END = "<!-- bench: end -->"

Column = tuple[str, Callable[[Measure], float | None]]
_COSTS: tuple[Column, ...] = (
    ("per s", lambda m: m.rate),
    ("p50 ms", lambda m: m.p50_ms),
    ("p99 ms", lambda m: m.p99_ms),
    ("CPU us", lambda m: m.cost.cpu_us if m.cost else None),
    ("core %", lambda m: m.cost.core_share * 100 if m.cost else None),
    ("RSS MB", lambda m: m.cost.peak_rss_mb if m.cost else None),
)
_TIMES: tuple[Column, ...] = (
    ("TTFT p50 ms", lambda m: m.stream.ttft_p50 if m.stream else None),
    ("TTFT p99 ms", lambda m: m.stream.ttft_p99 if m.stream else None),
    ("event delay p50 ms", lambda m: m.stream.delay_p50 if m.stream else None),
    ("event delay p99 ms", lambda m: m.stream.delay_p99 if m.stream else None),
    ("event gap p50 ms", lambda m: m.stream.gap_p50 if m.stream else None),
    ("event gap p99 ms", lambda m: m.stream.gap_p99 if m.stream else None),
)


@dataclass(frozen=True, slots=True)
class Zero:
    """Something that must not happen: how often it did, of how many times it could have."""

    title: str
    found: int
    of: int

    @property
    def state(self) -> str:
        """What to say of it."""
        if self.found:
            return "BROKEN"
        return "held" if self.of else "not measured"


def line(measure: Measure) -> str:
    """Return one measurement in one line."""
    parts = [
        f"  {measure.scenario:<13} {measure.target:<17} {measure.rate:>9.1f}/s",
        f"p50 {measure.p50_ms:>8.2f} ms  p99 {measure.p99_ms:>8.2f} ms",
    ]
    if measure.stream and measure.stream.delay_p50 is not None:
        parts.append(f"event delay p50 {measure.stream.delay_p50:.3f} ms")
    if cost := measure.cost:
        parts.append(f"cpu {cost.cpu_us:>8.1f} us  core {cost.core_share:>4.0%}")
        parts.append(f"rss {cost.peak_rss_mb:.0f} MB")
    if measure.load != "python":
        parts.append(f"({measure.load})")
    if measure.failed:
        parts.append(f"FAILED {measure.failed}")
    if measure.altered:
        parts.append(f"altered {measure.altered} of {measure.checked}")
    if measure.rows_missing:
        parts.append(f"ROWS MISSING {measure.rows_missing}")
    return "  ".join(parts)


def others_share(measures: Sequence[Measure]) -> float:
    """Return the part of the target's core that others used, the median over measurements."""
    found = [m.cost.core_busy - m.cost.core_share for m in measures if m.cost]
    return max(0.0, median(found)) if found else 0.0


def facts_line(facts: Mapping[str, str]) -> str:
    """Return what the figures were measured on, as one paragraph."""
    return "; ".join(f"{name}: {value}" for name, value in facts.items()) + "."


def goals_table(verdicts: Sequence[Verdict]) -> str:
    """Return the goals as a Markdown table."""
    body = [
        [
            verdict.goal.title,
            _with_unit(verdict, verdict.value) if verdict.value is not None else "not measured",
            " to ".join(number(each) for each in verdict.spread) if verdict.spread else "",
            number(verdict.strict) if verdict.strict is not None else "",
            *(_with_unit(verdict, level) for level in verdict.goal.levels),
            verdict.level or "",
        ]
        for verdict in verdicts
    ]
    head = [
        "goal",
        "measured",
        "rounds",
        "nginx at full core",
        "pass",
        "ahead",
        "stretch",
        "reached",
    ]
    return markdown(head, body)


def zeros_table(zeros: Sequence[Zero]) -> str:
    """Return what must not happen as a Markdown table."""
    body = [[zero.title, str(zero.found), str(zero.of), zero.state] for zero in zeros]
    return markdown(["must be 0", "found", "of", ""], body)


def costs_table(measures: Sequence[Measure]) -> str:
    """Return rates, latencies and costs, medians over rounds, as a Markdown table."""
    return _targets_table(measures, _COSTS)


def times_table(measures: Sequence[Measure]) -> str:
    """Return when the bytes of streams came, medians over rounds, as a Markdown table."""
    return _targets_table([measure for measure in measures if measure.stream], _TIMES)


def summary(
    facts: Mapping[str, str],
    verdicts: Sequence[Verdict],
    zeros: Sequence[Zero],
    measures: Sequence[Measure],
) -> dict[str, object]:
    """Return the small tracked summary."""
    return {
        "facts": dict(facts),
        "goals": [
            {
                "goal": verdict.goal.title,
                "measured": _rounded(verdict.value),
                "nginx_at_full_core": _rounded(verdict.strict),
                "levels": verdict.goal.levels,
                "reached": verdict.level,
            }
            for verdict in verdicts
        ],
        "zeros": [{"must_be_0": zero.title, "found": zero.found, "of": zero.of} for zero in zeros],
        "medians": {
            f"{scenario} {target}": {
                title: _rounded(value)
                for title, field in (*_COSTS, *_TIMES)
                if (value := _middle(group, field)) is not None
            }
            for (scenario, target), group in _grouped(measures).items()
        },
    }


def has_markers(page: Path) -> bool:
    """Whether the page exists and has both markers."""
    return page.exists() and all(mark in page.read_text() for mark in (BEGIN, END))


def update_docs(page: Path, text: str, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Put `text` between the markers of a page that has them."""
    begin, end = marks
    before, _, rest = page.read_text().partition(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def number(value: float) -> str:
    """Return a figure with three significant digits at most, and no exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.4f}"


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [head, ["-" * width for width in widths], *body]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        + " |"
        for cells in lines
    )


def _targets_table(measures: Sequence[Measure], columns: Sequence[Column]) -> str:
    groups = _grouped(measures)
    body = [
        [scenario.title, target, *(_cell(_middle(group, field)) for _, field in columns)]
        for scenario in scenarios.ALL
        for (name, target), group in groups.items()
        if name == scenario.name
    ]
    return markdown(["scenario", "target", *(title for title, _ in columns)], body)


def _with_unit(verdict: Verdict, value: float) -> str:
    return f"{number(value)} {verdict.goal.unit}".rstrip()


def _grouped(measures: Sequence[Measure]) -> dict[tuple[str, str], list[Measure]]:
    found: dict[tuple[str, str], list[Measure]] = {}
    # In the order of the first round, which is the forward one.
    for measure in measures:
        found.setdefault((measure.scenario, measure.target), []).append(measure)
    return found


def _middle(group: Sequence[Measure], field: Callable[[Measure], float | None]) -> float | None:
    values = [value for value in map(field, group) if value is not None]
    return median(values) if values else None


def _cell(value: float | None) -> str:
    return "" if value is None else number(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
