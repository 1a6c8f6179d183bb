"""Lanes: tests that run only where they are asked for, since they need what is not always here.

Each is a marker and an option of the same name. Does not know what a lane tests, or needs.
"""

from collections.abc import Iterable

import pytest

LANES = {
    "clients": "try stock clients; installs them into .cache/clients",
    "llamacpp": "try llama.cpp's llama-server, which tests/support/llamacpp_build.py builds",
    "vllm": "try a real vLLM; installs its CPU build into .venv-vllm (2.5 GB)",
}
"""What each option does, for `pytest --help`."""


def add_options(parser: pytest.Parser) -> None:
    """Add what asks for each lane."""
    for lane, says in LANES.items():
        parser.addoption(f"--{lane}", action="store_true", help=says)


def leave_out(items: list[pytest.Item], asked: Iterable[str], config: pytest.Config) -> None:
    """Take out of `items` the tests of all lanes but the `asked` ones."""
    others = set(LANES) - set(asked)
    left_out = [item for item in items if others & {mark.name for mark in item.iter_markers()}]
    gone = set(left_out)
    items[:] = [item for item in items if item not in gone]
    config.hook.pytest_deselected(items=left_out)


def say_what_was_not_tested(terminal: pytest.TerminalReporter) -> None:
    """Print in red, for each lane that was asked for and could not run, why."""
    reasons = {
        (lane, report.longrepr[2].removeprefix("Skipped: "))
        for report in terminal.getreports("skipped")
        for lane in LANES
        if lane in report.keywords and isinstance(report.longrepr, tuple)
    }
    for lane, reason in sorted(reasons):
        terminal.write_line(f"NOT TESTED: {lane}: {reason}", red=True, bold=True)
