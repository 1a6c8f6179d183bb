"""Options that the training side's commands have in common: where things are, and what computes.

Says nothing of what a command does with them. What is in force, `strop` puts before those that a
person types. Imports no framework.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Settings of each command's context."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
home_option = click.option(
    "--home", type=click.Path(path_type=Path), metavar="DIR", help="Where strop keeps its things."
)
_COMPUTING = (
    click.option(
        "--base",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="The base, in Hugging Face format. [default: model.base]",
    ),
    click.option(
        "--backend",
        type=click.Choice(["auto", "torch", "mlx"]),
        default="auto",
        help="What computes. [default: training.backend]",
    ),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda", "mps"]),
        default="auto",
        help="Where. [default: training.device]",
    ),
    click.option("--quantize-base/--no-quantize-base", default=False, help="Hold it in 4 bits."),
)


def computing_options(command: F) -> F:
    """Add `--base`, `--backend`, `--device` and `--quantize-base`, in this order."""
    for option in reversed(_COMPUTING):
        command = option(command)
    return command
