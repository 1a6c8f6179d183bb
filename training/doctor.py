"""`strop doctor`: what can train on this machine, with what, and why.

Asks what is installed, free and set. Loads no model and trains nothing.
"""

import importlib.metadata
import importlib.util
import json
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click

from strop.adapters import gguf
from strop.configs import installation
from strop.training.options import CONTEXT, computing_options, home_option, json_option

_PACKAGES: Final = ("torch", "transformers", "mlx", "mlx-lm", "gguf", "bitsandbytes", "tensorboard")
_SERVE_NO_VERSIONS: Final = ("llama_server", "openai")
_LONG: Final = 2048
"""A conversation of so many tokens is one that most people have."""


@dataclass(slots=True)
class Report:
    """What was found, by name, and what stands in the way of training."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def examine(
    base: Path | None,
    backend: str,
    device: str,
    preset: str,
    *,
    quantize_base: bool,
    engine: str = "",
) -> Report:
    """Return what this machine can do with these settings.

    Args:
        base: the folder of the base; None where none is set.
        backend: `training.backend`.
        device: `training.device`.
        preset: `training.preset`.
        quantize_base: `training.quantize_base`.
        engine: `engine.kind`.
    """
    report = Report()
    system = f"{platform.system()} {platform.machine()}"
    report.rows.append(("machine", f"{system}, Python {platform.python_version()}"))
    report.rows += [(name, _version(name)) for name in _PACKAGES]
    if engine == "ollama" and (lacking := gguf.lacking()):
        report.problems.append(f"what is trained can't be served: {lacking}")
    if engine in _SERVE_NO_VERSIONS:
        report.problems.append(
            f"nothing is trained: an engine of the kind {engine} serves no versions; embedded,"
            " vllm, mlx_server and ollama do"
        )
    if importlib.util.find_spec("numpy") is None:
        report.problems.append(
            "training needs torch or mlx, and neither is installed:"
            f" {installation.install_backend()}"
        )
        return report
    from strop.training.backends.base import BackendUnavailable

    try:
        _examine_training(report, base, backend, device, preset, quantize_base=quantize_base)
    except (BackendUnavailable, ValueError) as error:
        report.problems.append(str(error))
    if base is None and engine not in _SERVE_NO_VERSIONS:
        report.problems.append(
            "nothing can be trained before model.base is set: a folder or a downloaded hub id of"
            " the same model in Hugging Face format; what is answered until then is never learned"
            " from, however it is rated"
        )
    return report


def _examine_training(
    report: Report,
    base: Path | None,
    backend: str,
    device: str,
    preset: str,
    *,
    quantize_base: bool,
) -> None:
    from strop.training import memory, presets
    from strop.training.backends import check_quantizing, choose, confirmed
    from strop.training.backends.base_files import BaseFiles
    from strop.training.tokenizer import BaseTokenizer

    chosen = confirmed(choose(backend, device, base=base), device)
    report.rows.append(("trains with", f"{chosen.name} on {chosen.device}: {chosen.why}"))
    if quantize_base:
        check_quantizing(chosen)
    free = memory.free_bytes(chosen.device)
    report.rows.append(("free memory", memory.gib(free)))
    if base is None:
        return
    files = BaseFiles(base)
    files.check()
    BaseTokenizer(base)  # Without one no run begins; it says so.
    report.rows.append(
        (
            "base",
            f"{base}: {files.num_weights / 1e6:,.1f} million weights, {files.precision},"
            f" context {files.context_length:,}",
        )
    )
    found = presets.load(preset, files.config)
    report.rows.append(
        (
            "preset",
            f"{found.name}: lr {found.lr:.2g}, rank {found.rank}, alpha {found.alpha:g}, up to"
            f" {found.max_steps} steps of {found.batch_size} and more, KL stop {found.kl_stop:g}",
        )
    )
    needed = memory.estimate(base, chosen, rank=found.rank, quantize_base=quantize_base)
    usual = min(_LONG, files.context_length)
    total = memory.gib(needed.total(usual, usual))
    report.rows.append((f"memory for {usual:,} tokens", f"about {total}"))
    longest = needed.longest_of(free, files.context_length)
    if not longest:
        report.problems.append(needed.advice(free, usual))
        return
    report.rows.append(("learns from", _learns_from(longest, files.context_length)))
    if not needed.fits(free, usual):
        report.rows.append(("from longer ones", needed.advice(free, usual)))


def _learns_from(longest: int, context: int) -> str:
    if longest == context:
        return f"conversations of up to {context:,} tokens, which is all of the context"
    return (
        f"conversations of up to about {_rounded(longest):,} tokens, with the memory that is free"
        " now; a run leaves longer ones out, and says so (an agent's first request alone can have"
        " 20,000)"
    )


def _rounded(num: int) -> int:
    """Return `num` with two digits, for estimates."""
    unit: int = 10 ** max(0, len(str(num)) - 2)
    return num // unit * unit


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@click.command(
    context_settings=CONTEXT,
    epilog="\b\nExample:\n  strop doctor\n",
)
@json_option
@home_option
@computing_options
@click.option("--preset", default="balanced", metavar="NAME", help="How far a run may go.")
@click.option("--engine", default="", metavar="KIND", help="What serves. [default: engine.kind]")
def main(
    as_json: bool,
    home: Path | None,
    base: Path | None,
    backend: str,
    device: str,
    quantize_base: bool,
    preset: str,
    engine: str,
) -> None:
    """Say what can train here, with what, and why.

    Exits with 1 where nothing can, or what is trained can't be served, and says what to do.
    """
    report = examine(base, backend, device, preset, quantize_base=quantize_base, engine=engine)
    if home is not None:
        report.rows.insert(0, ("home", str(home)))
    if as_json:
        click.echo(json.dumps({"facts": dict(report.rows), "problems": report.problems}))
    else:
        width = max(len(name) for name, _ in report.rows)
        for name, says in report.rows:
            click.echo(f"{name.ljust(width)}  {says}")
        for problem in report.problems:
            click.echo(f"\n{problem}")
        if not report.problems:
            click.echo("\nThis machine can train.")
    sys.exit(1 if report.problems else 0)


if __name__ == "__main__":
    main(prog_name="strop doctor")
