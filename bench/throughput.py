"""What strop costs answers, beside a stock mlx_lm.server: tokens a second, and the first's wait.

    python -m bench.throughput --docs

One model of random parameters, once on `strop serve` with its own engine, recording ids and
logprobs on disk, once on mlx_lm.server, which records nothing. Both use all cores, one after the
other: every round runs each load on both, in turn, the order reversed on odd rounds. Ratios are
taken inside a round. Needs mlx-lm.
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Final

import orjson

from bench import machine
from bench.processes import end_at_sigterm
from bench.report import facts_line, markdown, number, update_docs
from bench.swap import model
from bench.swap.figures import Reply
from bench.swap.servers import Stock, Strop
from bench.swap.streams import ask

_ROOT: Final = Path(__file__).parents[1]
_RESULTS: Final = _ROOT / "bench" / "results" / "throughput.json"
_DOCS: Final = _ROOT / "docs" / "performance.md"
MARKS: Final = ("<!-- bench.throughput: begin -->", "<!-- bench.throughput: end -->")
_WORDS: Final = "the leather strap keeps a good blade sharp between its uses "
# The tokenizer of the demo model makes 0.85 tokens of a character of these.
_LONG: Final = _WORDS * 10
# mlx_lm.server resets connections that come faster than it takes them.
_APART_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Load:
    """Streams that are asked for together.

    Attributes:
        num_tokens: of each answer, exactly.
        text: of each prompt, behind or before a number that makes it another's.
        is_known: whether prompts begin alike, so that a prefix cache has most of them.
    """

    title: str
    streams: int
    num_tokens: int
    text: str
    is_known: bool = False


LOADS: Final = (
    Load("1 stream", 1, 128, _WORDS),
    Load("4 streams", 4, 128, _WORDS),
    Load("16 streams", 16, 128, _WORDS),
    Load("1 stream, prompt of 500 tokens", 1, 32, _LONG),
    Load("4 streams, prompts of 500 tokens", 4, 32, _LONG),
    Load("1 stream, 500 tokens, known but for the end", 1, 32, _LONG, is_known=True),
)


@dataclass(frozen=True, slots=True)
class Found:
    """One load on one server in one round.

    Attributes:
        rate: tokens per second, from the first request to the last token.
        first_ms: how long an answer's first token took, the median of the streams.
        failed: answers that were refused, or not whole.
    """

    round: int
    load: str
    server: str
    rate: float
    first_ms: float
    failed: int


def main(arguments: Sequence[str]) -> int:
    """Run it, print the table, and return the exit status: 1 where an answer failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=model.SIZES, default="small")
    parser.add_argument(
        "--docs", action="store_true", help=f"write {_DOCS.name} and {_RESULTS.name}"
    )
    options = parser.parse_args(arguments)
    end_at_sigterm()
    size = model.SIZES[options.size]
    facts = machine.describe() | {
        "mlx-lm": metadata.version("mlx-lm"),
        "model": f"Qwen3, random, float32, {size.num_blocks} blocks of {size.width}",
        "rounds": str(options.rounds),
    }
    with tempfile.TemporaryDirectory(prefix="strop-bench-") as scratch, ExitStack() as stack:
        folder, base = Path(scratch), Path(scratch) / "base"
        model.make(base, size)
        servers = (Strop(folder / "home", base, []), Stock(base, [], folder / "stock.log"))
        for server in servers:
            stack.callback(server.child.stop)
            server.wait_ready()
        found = asyncio.run(_run(servers, options.rounds))
    table = f"{facts_line(facts)}\n\n{_table(found)}"
    print(f"\n{table}\n")
    if options.docs:
        kept = {"facts": facts, "found": [asdict(one) for one in found]}
        _RESULTS.write_bytes(orjson.dumps(kept, option=orjson.OPT_INDENT_2) + b"\n")
        update_docs(_DOCS, table, MARKS)
    return 1 if any(one.failed for one in found) else 0


async def _run(servers: tuple[Strop, Stock], num_rounds: int) -> list[Found]:
    found = []
    for at in range(num_rounds + 1):
        for load in LOADS:
            for server in servers[:: -1 if at % 2 else 1]:
                one = await _measure(server, load, at)
                found.append(one)
                print(
                    f"{at} {load.title:<46} {server.name:<14}"
                    f" {one.rate:>8.1f} tokens/s, first {one.first_ms:>8.1f} ms",
                    flush=True,
                )
    # The first round found both cold.
    return [one for one in found if one.round]


async def _measure(server: Strop | Stock, load: Load, at: int) -> Found:
    began_ns = time.monotonic_ns()
    replies = await asyncio.gather(*(_ask(server, load, place) for place in range(load.streams)))
    whole = [one for one in replies if not one.has_failed]
    if not whole:
        raise SystemExit(f"expected answers of {server.name}, got {replies[0].trouble or replies}")
    took_ns = max(one.arrivals_ns[-1] for one in whole) - began_ns
    return Found(
        round=at,
        load=load.title,
        server=server.name,
        rate=1e9 * load.num_tokens * len(whole) / took_ns,
        first_ms=median(one.first_ms for one in whole),
        failed=len(replies) - len(whole),
    )


async def _ask(server: Strop | Stock, load: Load, place: int) -> Reply:
    await asyncio.sleep(_APART_S * place)
    own = next(_numbers)
    text = f"{load.text} {own}" if load.is_known else f"{own} {load.text}"
    return await ask(server.port, server.request(text, load.num_tokens))


def _table(found: Sequence[Found]) -> str:
    head = ["load", "tokens/s, strop", "mlx_lm.server", "strop / mlx_lm.server, by round"]
    head += ["first token ms, strop", "mlx_lm.server", "strop / mlx_lm.server, by round"]
    body = []
    for load in LOADS:
        of = {
            name: {one.round: one for one in found if (one.load, one.server) == (load.title, name)}
            for name in ("strop", Stock.name)
        }
        body.append(
            [
                load.title,
                *_cells({name: [one.rate for one in ones.values()] for name, ones in of.items()}),
                *_cells(
                    {name: [one.first_ms for one in ones.values()] for name, ones in of.items()}
                ),
            ]
        )
    return markdown(head, body)


def _cells(values: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the median of each server, and that of the ratios, with the least and the most."""
    own, stock = values.values()
    ratios = [one / other for one, other in zip(own, stock, strict=True)]
    spread = f"{number(median(ratios))} ({number(min(ratios))} to {number(max(ratios))})"
    return [number(median(own)), number(median(stock)), spread]


_numbers = itertools.count()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
