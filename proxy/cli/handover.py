"""`strop eval`, `strop doctor`, `strop demo`: modules of the trainer's, which this process becomes.

Says what is in force here, and hands over the rest as it was typed. Imports none of them.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from strop import configs
from strop.configs import installation
from strop.proxy.cli import interruptible
from strop.proxy.cli.options import examples, home_of, home_option, in_force
from strop.proxy.errors import Unavailable
from strop.proxy.home import serving
from strop.proxy.run_requests import NO_BACKEND, has_backend

MODULES: Final = {
    "demo": "strop.training.demo.__main__",
    "eval": "strop.training.eval",
    "doctor": "strop.training.doctor",
}
"""Where the command itself, its options and its help are: `main` in this module."""

_SAYS_ITSELF: Final = ("--base", "-h", "--help")

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
    _become("eval", [*_in_force(home_of(home), arguments), *arguments])


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
    folder = home_of(home)
    found = _in_force(folder, arguments)
    if kind := in_force(folder).engine.kind:
        found += ["--engine", kind]
    _become("doctor", [*found, *arguments])


def _in_force(home: Path, arguments: Sequence[str]) -> list[str]:
    """Return the options that tell what is in force; what is typed comes after, and counts.

    That is what serves from the home, else what a start would use. Says which model that is, where
    `arguments` name none.
    """
    from strop.proxy.versions.pairing import base_folder

    serves = serving(home)
    settings = in_force(home)
    if serves is not None:
        whose = f"which strop serves at {serves.url}"
    else:
        whose = f"since nothing serves from {home}; another one: --base DIR"
    training = settings.training
    # Of a base that isn't there they say so themselves.
    base = base_folder(settings) or settings.model.base
    if base and not any(one.partition("=")[0] in _SAYS_ITSELF for one in arguments):
        name = "the demo model" if base == configs.demo_model() else base
        click.echo(f"Examines {name}, {whose}", err=True)
    found = ["--home", str(home), "--preset", training.preset]
    found += ["--backend", training.backend, "--device", training.device]
    if training.quantize_base:
        found.append("--quantize-base")
    return [*found, "--base", str(base)] if base else found


def _become(name: str, arguments: Sequence[str]) -> None:
    """Go on as the module of that name.

    Raises:
        Unavailable: it computes, and nothing that computes is installed.
    """
    if name != "doctor" and not has_backend():
        demo = f"the demo needs MLX: {installation.install('strop[mlx,demo]')}"
        raise Unavailable(demo if name == "demo" else NO_BACKEND)
    command = [*installation.module(interruptible.__name__), MODULES[name], *arguments]
    os.execv(sys.executable, command)  # noqa: S606


COMMANDS: Final = (demo, evaluate, doctor)
