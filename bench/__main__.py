"""Runs the benchmark: starts the targets, runs the rounds, prints the tables, ends what it started.

`python -m bench --quick` takes under two minutes; without `--quick`, all targets and scenarios.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import orjson

from bench import (
    cores,
    durability,
    goals,
    machine,
    open_files,
    report,
    rounds,
    scenarios,
    targets,
    wrk,
)
from bench.measures import Measure
from bench.processes import Child, StartError, end_at_sigterm, free_port
from bench.report import Zero
from bench.rounds import Outcome, Plan
from bench.targets import Running, Site, Target

_HERE = Path(__file__).parent
_OUT = _HERE / "out"
_LATEST = _HERE / "results" / "latest.json"
_DOCS = _HERE.parent / "docs" / "performance.md"
_TARGET_CORE, _LOAD_CORE = 0, 1
# What strop records of a full run, and room to spare.
_NEEDED_BYTES = 8 * 10**9
# Above this the rates say more about the machine's other work than about the targets.
_MOST_OTHERS = 0.1


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    rounds: int
    duration_s: float
    targets: tuple[str, ...]
    scenarios: tuple[str, ...]
    writes_docs: bool
    keeps_folders: bool


def main() -> int:
    """Run as the command line says.

    Returns 1 if something that must not happen did, or a target was left out; 2 if it can't run.
    """
    options = _parse(sys.argv[1:])
    if obstacle := _obstacle(options):
        print(obstacle, file=sys.stderr)
        return 2
    facts = machine.describe()
    cores.keep_to({_LOAD_CORE})
    end_at_sigterm()
    folder = _OUT / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    chosen = [each for each in scenarios.ALL if each.name in options.scenarios]
    wanted = [each for each in targets.ALL if each.name in options.targets]
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        if not options.keeps_folders:
            stack.callback(_remove_folders, folder)
        plan = _start_engine(options, folder, stack)
        running = [
            started for target in wanted if (started := _start(target, plan, left_out, stack))
        ]
        outcome = rounds.run(plan, running, chosen, _say)
        zeros = _zeros(outcome.measures)
        for each in running:
            each.stop()
        if "strop" in {each.target for each in running}:
            zeros.append(_survival(plan))
    others = report.others_share(outcome.measures)
    facts |= {t.name: t.version() for t in wanted if t.name not in left_out and t.version()}
    facts |= dict.fromkeys(left_out, "left out")
    facts |= {
        "rounds": f"{plan.rounds} of {plan.duration_s:g} s",
        "fdatasync p50": f"{report.number(median(outcome.fdatasync_ms))} ms",
        "others on the target's core": f"{others:.0%}",
        "load of nginx and direct under JSON": "wrk" if wrk.is_installed() else "python",
    }
    _report(outcome, zeros, facts, folder, writes_docs=options.writes_docs)
    if others > _MOST_OTHERS:
        print(f"NOT ALONE: others used {others:.0%} of the target's core", file=sys.stderr)
    for name, reason in left_out.items():
        print(f"LEFT OUT {name}: {reason}", file=sys.stderr)
    return 1 if left_out or any(zero.found for zero in zeros) else 0


def _parse(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer targets, scenarios and rounds")
    parser.add_argument("--rounds", type=int, help="how many (5; quick: 2)")
    parser.add_argument("--duration", type=float, help="seconds of one measurement (3; quick: 1)")
    parser.add_argument("--targets", type=_names([t.name for t in targets.ALL]))
    parser.add_argument("--scenarios", type=_names([s.name for s in scenarios.ALL]))
    parser.add_argument(
        "--docs", action="store_true", help=f"write {_DOCS.name} and {_LATEST.name}"
    )
    parser.add_argument("--keep", action="store_true", help="keep homes, logs and configurations")
    given = parser.parse_args(arguments)
    is_quick: bool = given.quick
    return Options(
        rounds=given.rounds or (2 if is_quick else 5),
        duration_s=given.duration or (1.0 if is_quick else 3.0),
        targets=given.targets
        or (targets.QUICK if is_quick else tuple(t.name for t in targets.ALL)),
        scenarios=given.scenarios
        or tuple(s.name for s in scenarios.ALL if s.is_quick or not is_quick),
        writes_docs=given.docs,
        keeps_folders=given.keep,
    )


def _names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def split(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"expected some of {','.join(known)}, got {name}")
        return names

    return split


def _obstacle(options: Options) -> str | None:
    if not cores.can_be_chosen():
        return cores.NEEDED
    if not {_TARGET_CORE, _LOAD_CORE} <= cores.allowed():
        return (
            f"cores {_TARGET_CORE} and {_LOAD_CORE} are needed: one for targets, one for the load"
        )
    chosen = [each for each in scenarios.ALL if each.name in options.scenarios]
    most = max(each.connections + each.slow_readers for each in chosen)
    if complaint := open_files.allow(2 * most):
        return complaint
    if (free := shutil.disk_usage(_HERE).free) < _NEEDED_BYTES:
        return (
            f"{_NEEDED_BYTES / 1e9:.0f} GB of free disk are needed, {free / 1e9:.1f} GB are there"
        )
    if options.writes_docs and not report.has_markers(_DOCS):
        return f"{_DOCS} must exist, with {report.BEGIN} and {report.END} where the tables go"
    return None


def _start_engine(options: Options, folder: Path, stack: ExitStack) -> Plan:
    port = free_port()
    command = [sys.executable, "-m", "bench.upstream", str(port)]
    engine = Child("engine", command, cores={_LOAD_CORE}, log=folder / "engine.log")
    stack.callback(engine.stop)
    engine.wait_ready(port, "/health", headers={}, within_s=10)
    return Plan(
        rounds=options.rounds,
        duration_s=options.duration_s,
        warm_up_s=min(0.3, options.duration_s / 3),
        upstream_port=port,
        target_core=_TARGET_CORE,
        folder=folder,
    )


def _start(
    target: Target, plan: Plan, left_out: dict[str, str], stack: ExitStack
) -> Running | None:
    if missing := target.missing():
        left_out[target.name] = missing
    else:
        try:
            running = target.start(_site(plan, target.name))
        except StartError as error:
            left_out[target.name] = str(error)
        else:
            stack.callback(running.stop)
            _say(f"started {target.name} {target.version()}")
            return running
    _say(f"LEFT OUT {target.name}: {left_out[target.name]}")
    return None


def _site(plan: Plan, name: str) -> Site:
    folder = plan.folder / name
    folder.mkdir()
    return Site(plan.upstream_port, folder, frozenset({plan.target_core}))


def _zeros(measures: Sequence[Measure]) -> list[Zero]:
    ours = [m for m in measures if m.target.startswith("strop")]
    kept = [m.rows_missing for m in ours if m.rows_missing is not None]
    checked = sum(m.checked for m in ours)
    return [
        Zero("requests failed by strop", sum(m.failed for m in ours), checked),
        Zero("answers whose body strop altered", sum(m.altered for m in ours), checked),
        Zero("rows missing, or too many", sum(map(abs, kept)), checked),
    ]


def _survival(plan: Plan) -> Zero:
    (strop,) = (each for each in targets.ALL if each.name == "strop")
    survival = durability.check(strop, _site(plan, "strop-killed"))
    return Zero("completions lost after kill -9, once answered", survival.lost, survival.answered)


def _report(
    outcome: Outcome,
    zeros: Sequence[Zero],
    facts: dict[str, str],
    folder: Path,
    *,
    writes_docs: bool,
) -> None:
    verdicts = [goals.judge(goal, outcome.by_round()) for goal in goals.ALL]
    tables = "\n\n".join(
        [
            report.facts_line(facts),
            report.goals_table(verdicts),
            report.zeros_table(zeros),
            report.costs_table(outcome.measures),
            report.times_table(outcome.measures),
        ]
    )
    print(f"\n{tables}\n")
    wrong = {(m.target, m.scenario): m.difference for m in outcome.measures if m.difference}
    for (target, scenario), difference in wrong.items():
        print(f"{target}, {scenario}: {difference}", file=sys.stderr)
    summary = report.summary(facts, verdicts, zeros, outcome.measures)
    raw = folder / "results.json"
    raw.write_bytes(orjson.dumps({**summary, "measures": outcome.measures}))
    print(f"raw results: {raw}")
    if writes_docs:
        _LATEST.parent.mkdir(exist_ok=True)
        _LATEST.write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n")
        report.update_docs(_DOCS, tables)


def _remove_folders(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
