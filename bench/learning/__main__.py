"""Plays what is not played yet, keeps each result, and writes the tables.

`python -m bench.learning --arms topr,sft --seeds 5`. `--seeds 0` only writes the tables.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from bench import machine
from bench.learning import arms, conditions, cost, report, results, trl_kto
from bench.learning.arms import Arm
from bench.learning.conditions import Condition
from bench.learning.demo import Demo
from bench.learning.play import play
from bench.learning.results import Result, Results
from bench.processes import end_at_sigterm
from bench.report import facts_line, update_docs

_ROOT: Final = Path(__file__).parents[2]
_RESULTS: Final = _ROOT / "bench" / "results" / "learning.json"
_PAGE: Final = _ROOT / "docs" / "learning-results.md"


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    arms: tuple[Arm, ...]
    conditions: tuple[Condition, ...]
    seeds: range | None
    is_again: bool
    measures_cost: bool
    writes_docs: bool


def main() -> int:
    """Play as the command line says; returns 2 if it can't."""
    options = _parse(sys.argv[1:])
    if any("trl" in arm.name for arm in options.arms) and (obstacle := trl_kto.missing()):
        print(obstacle, file=sys.stderr)
        return 2
    end_at_sigterm()
    found = results.load(_RESULTS)
    # Two threads take six times as long for such a small model.
    torch.set_num_threads(1)
    demo = Demo()
    if options.measures_cost:
        found.cost = cost.measure(demo)
        _save(found)
    for condition, arm, seed in _wanted(options):
        key = (arm.name, condition.name, seed)
        if key in found.plays and not options.is_again:
            continue
        began_s = time.monotonic()
        found.plays[key] = Result.of(key, play(demo, arm, condition, seed))
        _save(found)
        print(report.line(found.plays[key]), f" {time.monotonic() - began_s:.0f} s", flush=True)
    tables = report.tables(found)
    print(tables)
    if options.writes_docs:
        update_docs(_PAGE, f"{facts_line(found.facts)}\n\n{tables}")
    return 0


def _wanted(options: Options) -> Iterator[tuple[Condition, Arm, int]]:
    for condition, arm in itertools.product(options.conditions, options.arms):
        for seed in range(arm.num_seeds) if options.seeds is None else options.seeds:
            yield condition, arm, seed


def _save(found: Results) -> None:
    found.facts = machine.describe() | trl_kto.versions()
    results.save(found, _RESULTS)


def _parse(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m bench.learning", description=__doc__)
    parser.add_argument("--arms", type=_names(list(arms.BY_NAME)))
    parser.add_argument("--conditions", type=_names([one.name for one in conditions.ALL]))
    parser.add_argument(
        "--seeds", type=_seeds, help="5 for 0 to 4, or 5-9 (as many as the arm has)"
    )
    parser.add_argument("--again", action="store_true", help="replace what was played before")
    parser.add_argument("--cost", action="store_true", help="measure what a token costs, too")
    parser.add_argument("--docs", action="store_true", help=f"write {_PAGE.name}")
    given = parser.parse_args(arguments)
    return Options(
        arms=tuple(one for one in arms.ALL if not given.arms or one.name in given.arms),
        conditions=tuple(
            one for one in conditions.ALL if not given.conditions or one.name in given.conditions
        ),
        seeds=given.seeds,
        is_again=given.again,
        measures_cost=given.cost,
        writes_docs=given.docs,
    )


def _names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        given = tuple(text.split(","))
        if unknown := [name for name in given if name not in known]:
            expected = ", ".join(known)
            raise argparse.ArgumentTypeError(f"expected {expected}; got {', '.join(unknown)}")
        return given

    return parse


def _seeds(text: str) -> range:
    first, dash, last = text.partition("-")
    try:
        return range(int(first), int(last) + 1) if dash else range(int(first))
    except ValueError as error:
        expected = "a number of seeds, or the first and the last as 5-9"
        raise argparse.ArgumentTypeError(f"expected {expected}; got {text!r}") from error


if __name__ == "__main__":
    sys.exit(main())
