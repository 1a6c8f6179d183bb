"""Play rounds of ratings with a real model, as strop is shipped, and write the tables.

    python -m bench.real_model --docs

Served by the embedded engine on Apple Silicon, elsewhere by vLLM, where `make test-vllm` has
installed it: without a GPU, MLX is slow with a real model.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import orjson

from bench import machine
from bench.processes import StartError, end_at_sigterm
from bench.real_model import model, person
from bench.real_model.play import MAX_TOKENS, TEMPERATURE, Measured, Plan, Round, play
from bench.report import facts_line, markdown, update_docs
from bench.swap.servers import VLLM_PYTHON, start_vllm
from strop.training.demo.served import DemoFailed, serve

_ROOT: Final = Path(__file__).parents[2]
_MODELS: Final = _ROOT / "bench" / "out" / "models"
_RESULTS: Final = _ROOT / "bench" / "results" / "real_model.json"
_PAGE: Final = _ROOT / "docs" / "learning-results.md"
_MARKS: Final = ("<!-- real model: begin -->", "<!-- real model: end -->")
_HEAD: Final = ("ratings", "good of these", "run", "steps", "ended by", "KL to its parent",
                "serves", "liked", "at 90 %")  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Play, keep what came of it, print the tables, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.real_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--taste", choices=tuple(person.TASTES), default="lists")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--ratings", type=int, default=40, help="of each round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="balanced", help="or a file")
    parser.add_argument("--docs", action="store_true", help=f"write {_PAGE.name}")
    given = parser.parse_args(arguments)
    plan = Plan(given.taste, given.rounds, given.ratings, given.seed, given.preset)
    end_at_sigterm()
    if plan.rounds:
        rows: list[list[str]] = []
        played = {"plan": asdict(plan), "facts": machine.describe() | _asked(), "rows": rows}
        try:
            for one in _play(plan):
                rows.append(_row(one))
                _keep(played)
                print("  ".join(rows[-1]), flush=True)
        except (DemoFailed, StartError, model.CannotGetError) as error:
            print(error, file=sys.stderr)
            return 1
    plays = _kept()
    tables = "\n\n".join(map(_table, plays))
    print(f"\n{tables}")
    if given.docs:
        update_docs(_PAGE, tables, _MARKS)
    return 0


def _kept() -> list[dict[str, Any]]:
    plays: list[dict[str, Any]] = orjson.loads(_RESULTS.read_bytes()) if _RESULTS.exists() else []
    return plays


def _keep(played: dict[str, Any]) -> None:
    """Write down a play, in the place of an earlier one of the same plan."""
    others = [one for one in _kept() if one["plan"] != played["plan"]]
    _RESULTS.write_bytes(orjson.dumps([*others, played], option=orjson.OPT_INDENT_2) + b"\n")


def _asked() -> dict[str, str]:
    """Return what the figures depend on beside the machine."""
    return {
        "model": model.NAME,
        "engine": "embedded" if sys.platform == "darwin" else "vLLM",
        "temperature": f"{TEMPERATURE:g}",
        "tokens": str(MAX_TOKENS),
    }


def _play(plan: Plan) -> Iterator[Measured | Round]:
    """Serve the model, and play."""
    base = model.get(_MODELS)
    with tempfile.TemporaryDirectory() as name, _engine(base, Path(name)) as engine:
        home = Path(name) / "home"
        home.mkdir()
        with serve(home, {"training.enabled": "false", **engine}) as served:
            yield from play(served, plan)


@contextlib.contextmanager
def _engine(base: Path, folder: Path) -> Iterator[Mapping[str, str]]:
    """Lend the settings with which strop serves `base`, and what they need."""
    if sys.platform == "darwin":
        yield {"engine.kind": "embedded", "model.path": str(base)}
        return
    if not VLLM_PYTHON.exists():
        raise StartError("expected a vLLM in .venv-vllm; make test-vllm installs it")
    server, url = start_vllm(base, folder / "vllm.log")
    try:
        yield {"engine.kind": "vllm", "engine.url": url, "model.base": str(base)}
    finally:
        server.stop()


def _row(one: Measured | Round) -> list[str]:
    measured = one if isinstance(one, Measured) else one.measured
    low, high = measured.liked.interval.low, measured.liked.interval.high
    serves = [measured.version, f"{measured.liked.value:.2f}", f"{low:.2f} to {high:.2f}"]
    if isinstance(one, Measured):
        return ["0", "", "", "", "", "", *serves]
    said: dict[str, Any] = one.run["metrics"]
    ending = str(said.get("ending", ""))
    kl = f"{said['gate_kl_parent']:.3f}" if "gate_kl_parent" in said else ""
    run = [one.run["state"], str(one.run["step"]), ending, kl]
    return [str(one.num_ratings), str(one.num_good), *run, *serves]


def _table(played: Mapping[str, Any]) -> str:
    plan = played["plan"]
    title = f"likes {plan['taste']}; preset {Path(plan['preset']).name}, seed {plan['seed']}"
    facts, table = facts_line(played["facts"]), markdown(_HEAD, played["rows"])
    return f"### {title[0].upper()}{title[1:]}\n\n{facts}\n\n{table}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
