"""Tests of how a run shows where it is: a line, a log, and TensorBoard where it is installed."""

import io
import json
import os
import pty
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from strop.training.progress import Progress, duration, line
from strop.training.reports import Reports


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def test_a_line_says_where_the_run_is() -> None:
    """Steps, the time left, then metrics as far as there is room."""
    now = Progress("training", 5, 20, 12.0, {"loss": 0.5, "kl_parent": 0.01, "kept": 1.0})

    assert "training 5/20 [####............]  12 s left  loss 0.500  kl 0.0100  kept 100%" == line(
        now, 100
    )
    assert "training 5/20 [####............]  12 s left" == line(now, 50)
    assert "training 5" == line(now, 10)


def test_a_phase_without_steps_is_its_name() -> None:
    """Nobody knows how long it takes."""
    assert "evaluating" == line(Progress("evaluating"), 80)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89.0, "89 s"), (240.0, "4 min"), (9000.0, "2.5 h")]
)
def test_a_time_is_said_in_its_largest_unit(seconds: float, said: str) -> None:
    """Nobody wants to read 9000 s."""
    assert said == duration(seconds)


def test_progress_is_written_over_itself(tmp_path: Path) -> None:
    """A shorter line leaves nothing of the longer one before it."""
    terminal = Terminal()
    reports = Reports(tmp_path, terminal)

    reports.progress(Progress("training", 1, 2, 3.0))
    reports.progress(Progress("writing"))
    reports.say("done")
    reports.close()

    rewritten = terminal.getvalue().split("\r")
    assert rewritten[1].startswith("training 1/2")
    assert "writing" == rewritten[2].strip()
    assert len(rewritten[1]) == len(rewritten[2])
    assert "done" == rewritten[3].strip()
    assert terminal.getvalue().endswith("\n")


def test_a_terminal_that_was_closed_ends_no_run(tmp_path: Path) -> None:
    """A run goes on without whoever watched it."""
    seen_by_us, end = pty.openpty()
    terminal = os.fdopen(end, "w")
    reports = Reports(tmp_path, terminal)
    os.close(seen_by_us)

    reports.progress(Progress("training", 1, 2, 3.0))
    reports.say("done")
    reports.close()

    with pytest.raises(OSError, match="error"):
        terminal.close()
    assert (tmp_path / "log.jsonl").is_file()


def test_what_is_no_terminal_gets_nothing(tmp_path: Path) -> None:
    """A log file is no place for a line that is written over."""
    stream = io.StringIO()
    reports = Reports(tmp_path, stream)

    reports.progress(Progress("training", 1, 2, 3.0))
    reports.say("done")
    reports.close()

    assert "" == stream.getvalue()


def test_the_log_has_one_json_object_a_line_and_grows(tmp_path: Path) -> None:
    """A resumed run goes on in the same file."""
    for name in ("first", "second"):
        reports = Reports(tmp_path, io.StringIO())
        reports.event(name, size=3)
        reports.step(1, {"loss": 0.5})
        reports.close()

    entries = [json.loads(one) for one in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert ["first", "step", "second", "step"] == [one["event"] for one in entries]
    assert (3, 0.5) == (entries[0]["size"], entries[1]["loss"])


def test_tensorboard_is_used_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each metric of each step goes there; without it nothing is said."""
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert str(tmp_path / "tensorboard") == folder

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed", 0.0, 0))

    fake = ModuleType("tensorboardX")
    vars(fake).update(__spec__=SimpleNamespace(), SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboardX", fake)

    reports = Reports(tmp_path, io.StringIO())
    reports.step(7, {"loss": 0.5})
    reports.close()

    assert [("loss", 0.5, 7), ("closed", 0.0, 0)] == written
