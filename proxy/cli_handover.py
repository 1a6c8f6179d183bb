"""`strop eval`, `strop doctor`, `strop demo`: modules of the trainer's, which this process becomes.

Says what is in force here, and hands over the rest as it was typed. Imports none of them.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from strop.proxy.cli_options import examples, home_of, home_option
from strop.proxy.settings import load

MODULES: Final = {
    "demo": "strop.training.demo.__main__",
    "eval": "strop.training.eval",
    "doctor": "strop.training.doctor",
}
"""Where the command itself, its options and its help are: `main` in this module."""

# Help too is the module's own.
_FREE: Final = {"ignore_unknown_options": True, "help_option_names": []}


@click.command(
    "demo",
    add_help_option=False,
    context_settings=_FREE,
    epilog=examples("strop demo", "strop demo --rounds 2 --noise 0.2"),
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Chat, rate, train, gate and swap with the small model."""
    _become("demo", arguments)


@click.command(
    "eval",
    add_help_option=False,
    context_settings=_FREE,
    epilog=examples("strop eval base v3", "strop eval base v3 --prompts mine.jsonl"),
)
@home_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def evaluate(home: Path | None, arguments: tuple[str, ...]) -> None:
    """Compare versions, on held-out ratings or on a prompt file."""
    _become("eval", [*_in_force(home_of(home)), *arguments])


@click.command(
    "doctor",
    add_help_option=False,
    context_settings=_FREE,
    epilog=examples("strop doctor"),
)
@home_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def doctor(home: Path | None, arguments: tuple[str, ...]) -> None:
    """Say what can train here, with what, and why."""
    _become("doctor", [*_in_force(home_of(home)), *arguments])


def _in_force(home: Path) -> list[str]:
    """Return the options that tell what is in force; what is typed comes after, and counts."""
    from strop.proxy.pairing import base_folder

    settings = load(home, environ=os.environ).settings
    training, base = settings.training, base_folder(settings)
    found = ["--home", str(home), "--preset", training.preset]
    found += ["--backend", training.backend, "--device", training.device]
    if training.quantize_base:
        found.append("--quantize-base")
    return found if base is None else [*found, "--base", str(base)]


def _become(name: str, arguments: Sequence[str]) -> None:
    os.execv(sys.executable, [sys.executable, "-m", MODULES[name], *arguments])  # noqa: S606


COMMANDS: Final = (demo, evaluate, doctor)
