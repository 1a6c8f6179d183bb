"""Fixtures that several test files share."""

import gc
import os
import signal
import sys
from pathlib import Path

import faults_report
import lanes
import models
import pytest
import scripted_models
from faults_report import reached
from hypothesis import settings
from vllm_server import parsing_vllm, vllm

from strop.proxy.open_files import raise_limit

__all__ = ["parsing_vllm", "reached", "vllm"]

# Each kernel that MLX compiles for the CPU costs seconds of g++; results are the same without.
os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
# An unknown model name must not become a download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The tests start strop some hundred times: its modules, and theirs, are compiled once.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# As in a shell for strop's commands; elsewhere strop says them with its path.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
# A shell starts background jobs with SIGINT ignored, and so would be what tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same cases everywhere, however busy the machine is.
settings.register_profile("strop", deadline=None, derandomize=True)
settings.load_profile("strop")

_LONG = ("training", "versions", "cli", "embedded", "engines")  # the folders


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what asks for the lanes."""
    lanes.add_options(parser)
    parser.addoption(
        "--clients-all", action="store_true", help="with --clients: coding agents too (550 MB)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Let no client read whom TLS trusts, 25 ms each time, unless a lane downloads something."""
    if not _lanes_asked_for(config):
        os.environ.pop("SSL_CERT_FILE", None)
        os.environ["SSL_CERT_DIR"] = os.devnull


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the lanes that are not asked for; begin with the folders that take long.

    A file is one worker's: were one of a minute the last, the other workers would wait for it.
    """
    lanes.leave_out(items, _lanes_asked_for(config), config)
    items.sort(key=lambda item: item.path.parent.name not in _LONG)


def _lanes_asked_for(config: pytest.Config) -> set[str]:
    asked = {lane for lane in lanes.LANES if config.getoption(f"--{lane}")}
    if config.getoption("--clients-all"):
        asked.add("clients")
    return asked


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the fault tests reached, and what could not be tested."""
    faults_report.say_what_was_reached(terminalreporter)
    lanes.say_what_was_not_tested(terminalreporter)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make the scripted model before any test's time limit runs: it takes a minute."""
    # Whoever imports mlx_lm may have 2,048 files open from then on, or few more.
    raise_limit()
    wanted = any("scripted" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not session.config.option.collectonly:
        models.cached("scripted", scripted_models.make_scripted)
    # All that is there by now stays: to look through it for garbage takes half a second each time.
    gc.freeze()


@pytest.fixture(scope="session")
def qwen3() -> Path:
    """A small random Qwen3 in fp32: the base that most tests serve."""
    return models.cached("qwen3", models.make_qwen3)


@pytest.fixture(scope="session")
def qwen3_bf16() -> Path:
    """The same Qwen3, its weights rounded to bf16."""
    return models.cached("qwen3-bf16", lambda to: models.make_qwen3(to, dtype="bfloat16"))


@pytest.fixture(scope="session")
def qwen3_4bit() -> Path:
    """The same Qwen3, quantised to 4 bits; only mlx-lm loads it."""
    return models.cached("qwen3-4bit", lambda to: models.make_qwen3(to, bits=4))


@pytest.fixture(scope="session")
def llama() -> Path:
    """A small random Llama in fp32."""
    return models.cached("llama", models.make_llama)


@pytest.fixture(scope="session")
def scripted() -> Path:
    """A Qwen3 that calls a tool, thinks or answers as `scripted_models` says."""
    return models.cached("scripted", scripted_models.make_scripted)


@pytest.fixture(scope="session")
def peft_a(qwen3: Path) -> Path:
    """An adapter of rank 8 on all linear layers of `qwen3`."""
    return models.cached(
        "peft-a",
        lambda to: models.make_peft(
            qwen3, to, rank=8, alpha=16, targets=models.ALL_LINEAR, seed=1, scale=0.1
        ),
    )


@pytest.fixture(scope="session")
def peft_b(qwen3: Path) -> Path:
    """An adapter of rank 4 on two projections of the last two blocks of `qwen3`."""
    return models.cached(
        "peft-b",
        lambda to: models.make_peft(
            qwen3,
            to,
            rank=4,
            alpha=8,
            targets=("q_proj", "v_proj"),
            layers=(1, 2),
            seed=2,
            scale=3.0,
        ),
    )


@pytest.fixture(scope="session")
def peft_c(qwen3: Path) -> Path:
    """A rank-stabilised adapter of rank 16 on all linear layers of `qwen3`."""
    return models.cached(
        "peft-c",
        lambda to: models.make_peft(
            qwen3, to, rank=16, alpha=16, targets=models.ALL_LINEAR, seed=3, rslora=True, scale=0.05
        ),
    )
