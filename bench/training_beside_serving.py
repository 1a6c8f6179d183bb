"""What a training run beside it costs a stream: event gaps with and without one, in pairs.

    python -m bench.training_beside_serving

A model of 24 million random parameters on the embedded engine, one stream at a time, and a run on
the same base that goes on for longer than is measured. Every other stream the run is stopped by a
signal, so that the two sides of a pair are seconds apart, and other load falls on both: only the
ratios count. The run has a core to itself; engine, proxy and who reads the stream share another, or
with `--shared` all of them both. Needs Linux, two cores, mlx-lm, and torch or mlx for the run.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import orjson

from bench import cores, machine
from bench.measures import quantile_ms
from bench.processes import end_at_sigterm
from bench.swap import model
from strop.training.demo import task
from strop.training.demo.served import Served, serve

_RESULTS: Final = Path(__file__).parent / "results" / "training_beside_serving.json"
_NUM_CORES: Final = 2
_NUM_RATINGS: Final = 200
_RATED_TOKENS: Final = 24
_NUM_TOKENS: Final = 200
# Nothing moves, and nothing ends it before it is cancelled.
_PRESET: Final = (
    "lr = 1e-9\nepochs = 100\nbatch_size = 8\nmin_steps = 1\nmax_steps = 100000\nkl_stop = 100.0\n"
)
_TIMEOUT_S: Final = 120.0
_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Pair:
    """Two streams, one after the other: what was between their reads, ns, sorted."""

    alone: list[int]
    beside: list[int]

    def of_quantiles(self, share: float) -> float:
        """Return a quantile beside a run over that without."""
        return quantile_ms(self.beside, share) / quantile_ms(self.alone, share)

    def of_sums(self) -> float:
        """Return the time from the first read to the last beside a run over that without."""
        return sum(self.beside) / sum(self.alone)


def main() -> int:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.training_beside_serving", description=__doc__
    )
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--shared", action="store_true", help="no core is the run's alone")
    given = parser.parse_args()
    if not cores.can_be_chosen():
        parser.error(cores.NEEDED)
    end_at_sigterm()
    facts = machine.describe()
    used = sorted(cores.allowed())[:_NUM_CORES]
    # Inherited by what is started.
    cores.keep_to(set(used if given.shared else used[:1]))
    facts["cores used"] = f"{len(used)}, shared" if given.shared else "one each"
    with tempfile.TemporaryDirectory(prefix="bench-training-") as folder:
        home, base = Path(folder) / "home", Path(folder) / "model"
        home.mkdir()
        model.make(base, model.SIZES["medium"])
        preset = home / "endless.toml"
        preset.write_text(_PRESET)
        with serve(home, {"training.enabled": "false", "model.path": str(base)}) as served:
            _rate(served)
            with _running(served, preset) as run:
                pid = _pid_of(run)
                if not given.shared:
                    _move(pid, used[1])
                began = _step(served, run)
                pairs = [_pair(served, pid, beside_first=n % 2 == 1) for n in range(given.pairs)]
                num_steps = _step(served, run) - began
    result: dict[str, object] = {"facts": facts, "num_pairs": len(pairs), "num_steps": num_steps}
    result["stream"] = _told(
        f"stream of {_NUM_TOKENS} tokens",
        [pair.of_sums() for pair in pairs],
        alone_ms=median(sum(pair.alone) for pair in pairs) / 1e6,
    )
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        result[name] = _told(
            f"between reads, {name}",
            [pair.of_quantiles(share) for pair in pairs],
            alone_ms=median(quantile_ms(pair.alone, share) for pair in pairs),
        )
    print(f"{num_steps} steps were taken meanwhile")
    _RESULTS.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
    return 0


def _told(what: str, ratios: list[float], *, alone_ms: float) -> dict[str, object]:
    """Print what was measured, and return it as kept."""
    low, middle, high = quantiles(ratios, n=4)
    print(
        f"{what}: beside a run {middle:.2f} times as long (middle half of the pairs"
        f" {low:.2f} to {high:.2f}), without one {alone_ms:.2f} ms"
    )
    return {"ratio": middle, "quartiles": [low, high], "alone_ms": alone_ms}


def _rate(served: Served) -> None:
    """Ask and rate as often as a run needs: every third answer is bad."""
    questions = random.Random(0).choices(task.QUESTIONS, k=_NUM_RATINGS)
    for number, question in enumerate(questions):
        body = {
            "model": served.model,
            "messages": _messages(question),
            "max_tokens": _RATED_TOKENS,
        }
        answer = served.owner.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        named = {"completion_id": answer.headers["X-Strop-Completion-Id"]}
        served.post("/v1/feedback", named | {"rating": "good" if number % 3 else "bad"})


@contextmanager
def _running(served: Served, preset: Path) -> Iterator[str]:
    """Start a run, lend its id once it takes steps, and cancel it."""
    run = served.post("/admin/runs", {"preset": str(preset)})["id"]
    deadline_s = time.monotonic() + _TIMEOUT_S
    while not _step(served, run):
        if time.monotonic() > deadline_s:
            raise SystemExit(f"expected {run} to take steps within {_TIMEOUT_S:g} s; it takes none")
        time.sleep(_POLL_S)
    try:
        yield run
    finally:
        served.owner.delete(f"/admin/runs/{run}").raise_for_status()
        while served.get(f"/admin/runs/{run}")["state"] != "cancelled":
            time.sleep(_POLL_S)


def _step(served: Served, run: str) -> int:
    """Return how many steps a run has taken, which must not be over."""
    found = served.get(f"/admin/runs/{run}")
    if found["state"] not in ("queued", "running"):
        raise SystemExit(f"expected {run} to train, it is {found['state']}: {found['reasons']}")
    return int(found["step"])


def _move(pid: int, core: int) -> None:
    """Let a process, with all its threads, have a core that nothing else here uses."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def _pid_of(run: str) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if run.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                return int(folder.name)
    raise SystemExit(f"expected {run} to have a process; it has none")


def _pair(served: Served, pid: int, *, beside_first: bool) -> Pair:
    sides: dict[bool, list[int]] = {}
    for is_beside in (beside_first, not beside_first):
        if not is_beside:
            os.kill(pid, signal.SIGSTOP)
        try:
            sides[is_beside] = _stream(served)
        finally:
            os.kill(pid, signal.SIGCONT)
    return Pair(sides[False], sides[True])


def _stream(served: Served) -> list[int]:
    body = {
        "model": served.model,
        "messages": _messages(task.QUESTIONS[0]),
        "stream": True,
        "max_tokens": _NUM_TOKENS,
        "ignore_eos": True,
    }
    with served.owner.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        # Each read, not each event: what comes together is shown together.
        came_ns = [time.monotonic_ns() for _ in answer.iter_raw()]
    return sorted(after - before for before, after in pairwise(came_ns))


def _messages(question: task.Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.text}]


if __name__ == "__main__":
    sys.exit(main())
