"""Tables of what was learned, and whether it is what it should be. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Final

from bench.learning import arms, conditions
from bench.learning.results import Result, Results
from bench.report import markdown

CHECKPOINTS: Final = (40, 80, 160, 320)
HEAD: Final = (
    "learner", "seeds", *(f"@{num}" for num in CHECKPOINTS), "right", "well-formed", "KL",
    "degenerate", "out of bounds", "CPU s",
)  # fmt: skip
MAIN_ARM: Final = "topr"

Figure = Callable[[Result], float]


@dataclass(frozen=True, slots=True)
class Target:
    """What strop as shipped is to reach, on average over seeds.

    Attributes:
        title: what is measured.
        condition: under which.
        figure: of one play.
        bound: the least, or the most where `is_ceiling`.
        min_seeds: how many plays it takes to say so.
    """

    title: str
    condition: str
    figure: Figure
    bound: float
    is_ceiling: bool = False
    min_seeds: int = 5


def good_after(num_ratings: int) -> Figure:
    """Return the figure that is the good-rate after so many ratings."""
    return lambda result: result.after(num_ratings).good


def cpu_s(result: Result) -> float:
    """Return the CPU seconds that training took for 40 ratings, the mean over rounds."""
    return mean(result.cpu_s)


TARGETS: Final = (
    Target("good-rate after 40 ratings", "clean", good_after(40), 0.50),
    Target("good-rate after 80 ratings", "clean", good_after(80), 0.75),
    Target("good-rate after 160 ratings", "clean", good_after(160), 0.85),
    Target(
        "share of degenerate runs",
        "clean",
        lambda result: float(result.is_degenerate),
        0.0,
        is_ceiling=True,
        min_seeds=20,
    ),
    Target("good-rate after 320 ratings", "noise", good_after(320), 0.60),
    Target("good-rate after 320 ratings", "rare", good_after(320), 0.65),
    Target("CPU seconds of training for 40 ratings", "clean", cpu_s, 2.0, is_ceiling=True),
)


def line(result: Result) -> str:
    """Return one play in one line, for the terminal."""
    shares = "  ".join(f"@{num} {result.after(num).good:.2f}" for num in CHECKPOINTS)
    states = "".join({"trained": "+", "rejected": "x", "refused": "."}[s] for s in result.states)
    mark = "  DEGENERATE" if result.is_degenerate else ""
    mark += "  out of bounds" if result.is_out_of_bounds else ""
    return f"{result.condition:<6} {result.arm:<17} {result.seed:>3}  {shares}  {states}{mark}"


def tables(results: Results) -> str:
    """Return the targets, then a table for each condition, and the cost, as Markdown."""
    plays = list(results.plays.values())
    parts = [targets_table(plays)]
    parts += [
        f"### {condition.title}\n\n{learners_table(some)}"
        for condition in conditions.ALL
        if (some := [one for one in plays if one.condition == condition.name])
    ]
    if results.cost:
        parts.append(f"### What a token costs\n\n{cost_table(results.cost)}")
    return "\n\n".join(parts)


def targets_table(results: Sequence[Result]) -> str:
    """Return what strop as shipped is to reach, and whether it does."""
    body = []
    for target in TARGETS:
        values = [
            target.figure(one)
            for one in results
            if (one.arm, one.condition) == (MAIN_ARM, target.condition)
        ]
        bound = f"{'at most' if target.is_ceiling else 'at least'} {target.bound:.2f}"
        body.append(
            [target.title, target.condition, bound, spread(values), str(len(values)),
             outcome(target, values)]
        )  # fmt: skip
    return markdown(["target", "condition", "bound", "measured", "seeds", ""], body)


def outcome(target: Target, values: Sequence[float]) -> str:
    """Return whether a target holds on average over as many seeds as it takes."""
    if len(values) < target.min_seeds:
        return "not measured"
    average = mean(values)
    holds = average <= target.bound if target.is_ceiling else average >= target.bound
    return "holds" if holds else "**does not hold**"


def learners_table(results: Sequence[Result]) -> str:
    """Return a line for each arm."""
    body = []
    for arm in arms.ALL:
        plays = [one for one in results if one.arm == arm.name]
        if not plays:
            continue
        last = [one.worths[-1] for one in plays]
        body.append(
            [
                arm.title,
                str(len(plays)),
                *(spread([one.after(num).good for one in plays]) for num in CHECKPOINTS),
                f"{mean(one.right for one in last):.2f}",
                f"{mean(one.well_formed for one in last):.2f}",
                f"{mean(one.kl_base for one in last):.1f}",
                str(sum(one.is_degenerate for one in plays)),
                str(sum(one.is_out_of_bounds for one in plays)),
                f"{mean(map(cpu_s, plays)):.2f}",
            ]
        )
    base = [one.worths[0] for one in results]
    start = f"{mean(one.good for one in base):.2f}"
    return f"Before training {start}.\n\n{markdown(HEAD, body)}"


def cost_table(cost: Mapping[int, float]) -> str:
    """Return what 1,000 tokens of training cost, by the length of their sequence."""
    body = [[f"{length:,}", f"{spent:.0f}"] for length, spent in cost.items()]
    return markdown(["tokens in a sequence", "CPU ms for 1,000 tokens"], body)


def spread(values: Sequence[float]) -> str:
    """Return mean, sd and smallest; of one value itself, and nothing of nothing."""
    if len(values) < 2:
        return "".join(f"{value:.2f}" for value in values)
    return f"{mean(values):.2f} ± {stdev(values):.2f} ({min(values):.2f})"
