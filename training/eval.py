"""`strop eval`: versions side by side, on held-out ratings, recorded prompts, or a prompt file.

Parses and prints; `evaluate` measures. What is in force, `strop` says in the options before those
that a person types.
"""

import asyncio
import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from strop.adapters.identity import identify
from strop.adapters.library import Library
from strop.adapters.peft import InvalidAdapter
from strop.adapters.rates import Rate
from strop.proxy.errors import StropError
from strop.proxy.store import layout, upgrading
from strop.proxy.store.store import Store
from strop.proxy.store.version_records import BASE
from strop.training import presets, room
from strop.training.backends import choose, confirmed, open_policy
from strop.training.backends.base import BackendUnavailable, OutOfMemory, Weights
from strop.training.backends.base_files import BaseFiles
from strop.training.evaluate import NUM_SAMPLES, Evaluated, Material, Prompt, evaluate
from strop.training.figures import MAX_SAMPLE_TOKENS
from strop.training.material import NOTHING, fitting, gather, read_prompts
from strop.training.micro_batch import MicroBatch
from strop.training.options import CONTEXT, computing_options, home_option, json_option
from strop.training.raters import Judge, Rater, RaterFailed, Rule
from strop.training.rows import Target
from strop.training.tokenizer import BaseTokenizer

JUDGE_KEY: Final = "JUDGE_API_KEY"

_USABLE: Final = ("ready", "active", "retired")

# What a person can do something about; the message says what.
_EXPECTED: Final = (
    StropError, BackendUnavailable, OutOfMemory, InvalidAdapter, RaterFailed, ValueError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Where:
    """Where the versions are, and what computes."""

    home: Path
    base: Path
    backend: str
    device: str
    quantize_base: bool
    preset: str


@click.command(
    context_settings=CONTEXT,
    epilog="""\b
Examples:
  strop eval
  strop eval base v3
  strop eval base v3 --prompts mine.jsonl --rule my_rules:is_short
  strop eval v2 v3 --judge http://127.0.0.1:8000 --judge-model qwen3
""",
)
@click.argument("versions", nargs=-1)
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="JSON lines: a string, or an object with `messages`. [default: the recorded prompts of"
    " held-out ratings]",
)
@click.option(
    "--rule",
    metavar="MODULE:FUNCTION",
    help="Rates answers: is given messages and the answer, and returns true, false, or a number in"
    " [-1, 1]. MODULE may lie in the current folder.",
)
@click.option("--judge", metavar="URL", help="An OpenAI-compatible server that rates answers.")
@click.option("--judge-model", metavar="NAME", help="The judge's model.")
@click.option("--criteria", metavar="TEXT", help="What the judge is told makes an answer good.")
@click.option(
    "--samples",
    type=click.IntRange(1, 1000),
    default=NUM_SAMPLES,
    show_default=True,
    metavar="N",
    help="Fresh answers to each prompt.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 32_768),
    default=MAX_SAMPLE_TOKENS,
    show_default=True,
    metavar="N",
    help="Of a fresh answer.",
)
@click.option("--seed", default=0, show_default=True, metavar="N", help="Of the fresh answers.")
@json_option
@home_option
@computing_options
@click.option("--preset", default=presets.DEFAULT, metavar="NAME", help="How much at once.")
def main(
    versions: tuple[str, ...],
    prompts: Path | None,
    rule: str | None,
    judge: str | None,
    judge_model: str | None,
    criteria: str | None,
    samples: int,
    max_tokens: int,
    seed: int,
    as_json: bool,
    home: Path | None,
    base: Path | None,
    backend: str,
    device: str,
    quantize_base: bool,
    preset: str,
) -> None:
    """Compare VERSIONS, by default the base, the active one and the newest one.

    On held-out ratings: how likely each finds the liked and the disliked answers. On fresh answers
    at temperature 1: how many are good, if a rule or a judge says so, how they vary, and how far
    they are from the base's. And how people rated what each answered.

    The judge's key, if it needs one, is read from JUDGE_API_KEY.
    """
    if home is None or base is None:
        raise click.UsageError(
            "expected --home and --base; run this as `strop eval`, with model.base set"
        )
    where = Where(home, base, backend, device, quantize_base, preset)
    try:
        rater = _rater(rule, judge, judge_model, criteria)
        found = _evaluate(
            where, versions, prompts, rater, samples=samples, max_tokens=max_tokens, seed=seed
        )
    except _EXPECTED as error:
        said = error.message if isinstance(error, StropError) else str(error)
        raise click.ClickException(said) from error
    if as_json:
        click.echo(json.dumps([one.to_json() for one in found]))
    else:
        click.echo(table(found))


def _rater(
    rule: str | None, judge: str | None, judge_model: str | None, criteria: str | None
) -> Rater | None:
    if rule is not None and judge is not None:
        raise click.UsageError("expected --rule or --judge, got both")
    if rule is not None:
        return Rule.load(rule)
    if judge is None:
        return None
    if judge_model is None:
        raise click.UsageError("expected --judge-model beside --judge")
    key = os.environ.get(JUDGE_KEY, "")
    if criteria is None:
        return Judge(judge, judge_model, key)
    return Judge(judge, judge_model, key, criteria)


def _evaluate(
    where: Where,
    named: Sequence[str],
    prompt_file: Path | None,
    rater: Rater | None,
    *,
    samples: int,
    max_tokens: int,
    seed: int,
) -> list[Evaluated]:
    if not (where.home / layout.DATABASE).is_file():
        raise ValueError(
            f"nothing is recorded in {where.home}; start strop with `strop serve`, or name its home"
            " with --home"
        )
    files = BaseFiles(where.base)
    files.check()
    tokenizer = BaseTokenizer(where.base)
    prompts = None if prompt_file is None else read_prompts(prompt_file, tokenizer)
    identity = identify(where.base, cache=where.home / layout.IDENTITIES)
    target = Target(identity, files.context_length, tokenizer)
    versions, material = asyncio.run(_read(where.home, target, named, prompts))
    if not material.prompts and not material.held_out:
        raise ValueError(NOTHING)
    preset = presets.load(where.preset, files.config)
    chosen = confirmed(choose(where.backend, where.device, base=where.base), where.device)
    space = room.now(where.base, chosen, preset, quantize_base=where.quantize_base)
    material, left_out = fitting(material, space.longest, max_tokens)
    if left_out:
        print(left_out, file=sys.stderr)
    policy = open_policy(
        where.base,
        backend=where.backend,
        device=where.device,
        quantize_base=where.quantize_base,
    )
    with closing(policy):
        ends = policy.end_ids
        return evaluate(
            policy,
            versions,
            material,
            lambda ids: tokenizer.decode([token for token in ids if token not in ends]),
            MicroBatch(space.max_tokens),
            rater=rater,
            num_samples=samples,
            max_tokens=max_tokens,
            seed=seed,
            on_version=lambda version: print(f"measuring {version} ...", file=sys.stderr),
        )


async def _read(
    home: Path, target: Target, named: Sequence[str], prompts: tuple[Prompt, ...] | None
) -> tuple[dict[str, Weights], Material]:
    async with upgrading.opening(home, functools.partial(print, file=sys.stderr)):
        store = await Store.open(home / layout.DATABASE)
    try:
        found = await store.versions.list()
        known = {one.id: one.base for one in found}
        if not named:
            active = (await store.versions.activation()).version
            usable = [one.id for one in found if one.state in _USABLE and one.base == target.base]
            chosen = dict.fromkeys([active, *usable[:1]])
            named = [BASE, *(version for version in chosen if version in usable)]
        weights = {version: _weights(home, version, known, target.base) for version in named}
        return weights, await gather(store.training, target, prompts)
    finally:
        await store.close()


def _weights(home: Path, version: str, known: Mapping[str, str], base: str) -> Weights:
    """Return a version's folder, or the base.

    Raises:
        ValueError: there is no such version, or it is of another base.
        InvalidAdapter: its files are broken.
    """
    if version == BASE:
        return "base"
    if version not in known:
        raise ValueError(f"there is no version {version!r} in {home} (`adapters list`)")
    if known[version] != base:
        raise ValueError(
            f"{version} is of another base than model.base; set model.base to that one, or leave"
            f" {version} out"
        )
    library = Library(home / layout.ADAPTERS)
    library.verify(version)
    return library.path_of(version)


def table(found: Sequence[Evaluated]) -> str:
    """Return the figures as a table, a column for each version."""
    rows = [
        ("", [one.version for one in found]),
        ("good (fresh answers)", [_rate(one.good) for one in found]),
        ("no verdict (fresh answers)", _counts([one.num_unrated for one in found])),
        ("good (rated by people)", [_rate(one.live) for one in found]),
        ("liked answers, logprob", [_number(one.liked) for one in found]),
        ("disliked answers, logprob", [_number(one.disliked) for one in found]),
        ("margin", [_number(one.margin) for one in found]),
        ("perplexity of liked ones", [_number(one.perplexity_liked) for one in found]),
        ("perplexity under the base", [_number(one.perplexity_base) for one in found]),
        ("KL to the base", [_number(one.kl_base) for one in found]),
        ("distinct-1", [_number(one.distinct_1) for one in found]),
        ("distinct-2", [_number(one.distinct_2) for one in found]),
        ("entropy", [_number(one.entropy) for one in found]),
        ("tokens an answer", [_number(one.length) for one in found]),
        ("fresh answers", [str(one.num_samples) for one in found]),
        ("held-out ratings", [str(one.num_held_out) for one in found]),
    ]
    cells = [[name, *values] for name, values in rows if any(values)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _rate(rate: Rate | None) -> str:
    if rate is None or not rate.num:
        return ""
    interval = rate.interval
    return f"{rate.value:.2f} ({interval.low:.2f}-{interval.high:.2f}) of {rate.num}"


def _counts(values: Sequence[int]) -> list[str]:
    return [str(value) if any(values) else "" for value in values]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main(prog_name="strop eval")
