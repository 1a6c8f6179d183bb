"""Measure the swap: strop on its embedded engine beside a stock mlx_lm.server, and on vLLM.

    python -m bench.swap --docs

Needs Linux, mlx-lm, torch and peft; vLLM where `make test-vllm` has installed it.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import orjson

from bench import cores, machine
from bench.processes import Child, end_at_sigterm
from bench.report import update_docs
from bench.swap import endurance, model, report, switches, versions
from bench.swap.endurance import Endured
from bench.swap.servers import VLLM_PYTHON, Stock, Strop, start_vllm
from bench.swap.switches import Switch
from strop.adapters import mlx
from strop.adapters.probe import Probe

_ROOT = Path(__file__).parents[2]
_RESULTS = _ROOT / "bench" / "results" / "swap.json"
_DOCS = _ROOT / "docs" / "swap.md"
# More than any engine here keeps, so that the one used longest ago has to be loaded.
_NUM_VERSIONS = 6


def main(arguments: Sequence[str]) -> int:
    """Run it, print the tables, and return the exit status: 1 where something broke."""
    parser = argparse.ArgumentParser(prog="python -m bench.swap", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the endurance (30)")
    parser.add_argument("--size", choices=model.SIZES, default="small")
    parser.add_argument("--without-vllm", action="store_true")
    parser.add_argument(
        "--docs", action="store_true", help=f"write {_DOCS.name} and {_RESULTS.name}"
    )
    options = parser.parse_args(arguments)
    if options.docs and not all(mark in _DOCS.read_text() for mark in report.MARKS):
        parser.error(f"{_DOCS} must exist, with {' and '.join(report.MARKS)}")
    if not cores.can_be_chosen():
        parser.error(cores.NEEDED)
    end_at_sigterm()
    facts = machine.describe()
    size: model.Size = model.SIZES[options.size]
    has_vllm = VLLM_PYTHON.exists() and not options.without_vllm
    facts |= {
        "mlx-lm": metadata.version("mlx-lm"),
        "vllm": _vllm_version() if has_vllm else "not measured",
        "model": f"Qwen3, random, float32, {size.num_blocks} blocks of {size.width}",
        "adapters": "rank 8 on all linear layers, with probes of 288 tokens",
        "rounds": str(options.rounds),
    }
    with tempfile.TemporaryDirectory(prefix="strop-bench-") as scratch:
        folder, base = Path(scratch), Path(scratch) / "base"
        _say("making the model, its adapters and their probes")
        model.make(base, size)
        adapters = [folder / f"adapter-{number}" for number in range(_NUM_VERSIONS)]
        for number, adapter in enumerate(adapters):
            model.make_adapter(adapter, size, number + 1)
        probes = versions.probes_of(base, adapters)
        found, endured = _embedded(folder, base, adapters, probes, options)
        if has_vllm:
            more, one = _vllm(folder, base, adapters, probes, options)
            found += more
            endured.append(one)
    facts["load after"] = f"{os.getloadavg()[0]:.2f}"
    tables = report.tables(facts, found, endured)
    print(f"\n{tables}\n")
    if options.docs:
        _RESULTS.parent.mkdir(exist_ok=True)
        kept = report.summary(facts, found, endured)
        _RESULTS.write_bytes(orjson.dumps(kept, option=orjson.OPT_INDENT_2) + b"\n")
        update_docs(_DOCS, tables, report.MARKS)
    broken = sum(one.failed for one in found)
    broken += sum(one.failed + one.unrecorded + one.mixed for one in endured)
    return 1 if broken else 0


def _embedded(
    folder: Path,
    base: Path,
    adapters: Sequence[Path],
    probes: Sequence[Probe],
    options: argparse.Namespace,
) -> tuple[list[Switch], list[Endured]]:
    """Measure strop with its own engine, and the stock server beside it."""
    converted = [folder / "mlx" / adapter.name for adapter in adapters]
    (folder / "mlx").mkdir()
    for adapter, to in zip(adapters, converted, strict=True):
        mlx.convert(adapter, base, to)
    with ExitStack() as stack:
        strop = _strop(folder / "embedded", base, adapters, probes, stack)
        stock = Stock(base, converted, folder / "stock.log")
        stack.callback(stock.child.stop)
        stock.wait_ready()
        found = asyncio.run(switches.run([strop, stock], options.rounds, _say))
    with ExitStack() as stack:
        strop = _strop(folder / "enduring", base, adapters, probes, stack)
        one = asyncio.run(_endure(strop, base, adapters, [strop.child], options.seconds))
    return found, [one]


def _vllm(
    folder: Path,
    base: Path,
    adapters: Sequence[Path],
    probes: Sequence[Probe],
    options: argparse.Namespace,
) -> tuple[list[Switch], Endured]:
    """Measure strop before a vLLM."""
    with ExitStack() as stack:
        _say("starting vLLM")
        engine, url = start_vllm(base, folder / "vllm.log")
        stack.callback(engine.stop)
        with ExitStack() as first:
            strop = _strop(folder / "vllm", base, adapters, probes, first, url)
            found = asyncio.run(switches.run([strop], options.rounds, _say))
        strop = _strop(folder / "vllm-enduring", base, adapters, probes, stack, url)
        processes = [strop.child, engine]
        return found, asyncio.run(_endure(strop, base, adapters, processes, options.seconds))


def _strop(
    home: Path,
    base: Path,
    adapters: Sequence[Path],
    probes: Sequence[Probe],
    stack: ExitStack,
    engine: str = "",
) -> Strop:
    strop = Strop(home, base, versions.publish(home, base, adapters, probes), engine)
    stack.callback(strop.child.stop)
    strop.wait_ready()
    return strop


async def _endure(
    strop: Strop, base: Path, adapters: Sequence[Path], processes: Sequence[Child], seconds: float
) -> Endured:
    _say(f"{strop.name}: a switch every {endurance.INTERVAL_S * 1000:.0f} ms for {seconds:.0f} s")
    return await endurance.endure(strop, base, adapters, processes, seconds)


def _vllm_version() -> str:
    (info,) = VLLM_PYTHON.parents[1].glob("lib/python*/site-packages/vllm*.dist-info")
    return info.name.partition("-")[2].removesuffix(".dist-info") + ", CPU build"


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
