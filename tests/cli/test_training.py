"""`strop train`, `strop eval` and `strop doctor` for real: processes, and the demo model."""

import asyncio
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rated_home import RatedHome
from store_values import database_in

from strop.configs import demo_model, installation
from strop.proxy.cli import handover, runs
from strop.proxy.cli.root import main
from strop.proxy.home import Serves, hold
from strop.proxy.run_requests import NEVER_LEARNED
from strop.proxy.settings.settings import load
from strop.proxy.settings.told import tell
from strop.proxy.store.store import Store

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("STROP_")}

RULE = """
def is_short(messages, answer):
    return len(answer) < 40 and bool(messages[-1]["content"])
"""


def strop(home: Path, *arguments: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command with this home."""
    return subprocess.run(
        [sys.executable, "-m", "strop.proxy.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**ENVIRONMENT, "STROP_HOME": str(home)},
        **more,
    )


def doctor(home: Path, *arguments: str) -> Result:
    """Run `strop doctor` with this home, in this process, which becomes nothing else for it."""

    def become(_: str, command: Sequence[str]) -> None:
        module = handover.MODULES["doctor"]
        after = command.index(module) + 1
        importlib.import_module(module).main(command[after:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "execv", become)
        return CliRunner(env={"STROP_HOME": str(home)}).invoke(main, ["doctor", *arguments])


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[RatedHome]:
    """An empty home."""
    store = await Store.open(database_in(tmp_path))
    yield RatedHome(tmp_path, store)
    await store.close()


async def test_a_version_is_trained_and_compared_without_a_proxy(home: RatedHome) -> None:
    """It stays ready, to be activated when strop serves; and it is liked more than the base."""
    await home.rate(60)
    (home.folder / "rules.py").write_text(RULE, encoding="utf-8")

    # What is sampled and shuffled is the same each time.
    await home.new_run()
    trained = await asyncio.to_thread(strop, home.folder, "train")
    compared = await asyncio.to_thread(
        lambda: strop(
            home.folder,
            *("eval", "base", "v1", "--rule", "rules:is_short", "--samples", "2", "--json"),
            cwd=home.folder,
        )
    )

    assert 0 == trained.returncode, trained.stderr
    assert "v1 is ready; strop activates it when it serves: strop serve" in trained.stdout
    version = await home.store.versions.get("v1")
    assert version is not None
    assert "ready" == version.state
    assert 0 == compared.returncode, compared.stderr
    base, v1 = json.loads(compared.stdout)
    assert ("base", "v1") == (base["version"], v1["version"])
    assert base["num_held_out"] == v1["num_held_out"] > 0
    assert base["num_samples"] == v1["num_samples"] > 0
    assert v1["margin"] > base["margin"]
    assert 0.0 == pytest.approx(base["kl_base"], abs=1e-4)
    assert v1["kl_base"] > 0
    assert base["good"]["num"] == base["num_samples"]
    assert {"num_good", "value", "low", "high"} <= base["live"].keys()
    assert None is v1["live"]


def test_the_doctor_says_what_trains_here(tmp_path: Path) -> None:
    """With what, where, and how much memory that takes; as set in this home."""
    (tmp_path / "strop.toml").write_text(
        '[training]\nbackend = "torch"\ndevice = "cpu"\npreset = "careful"\n', encoding="utf-8"
    )

    text = strop(tmp_path, "doctor")
    found = json.loads(doctor(tmp_path, "--json").stdout)

    model = (
        f"Examines the demo model, since nothing serves from {tmp_path}; another one: --base DIR"
    )
    assert (0, f"{model}\n") == (text.returncode, text.stderr)
    assert text.stdout.endswith("\nThis machine can train.\n")
    assert [] == found["problems"]
    facts = found["facts"]
    assert "torch on cpu: training.backend = 'torch'" == facts["trains with"]
    assert facts["preset"].startswith("careful: lr ")
    assert str(tmp_path) == facts["home"]
    assert "about " in facts["memory for 2,048 tokens"]
    assert facts["learns from"].startswith("conversations of up to ")


def test_the_doctor_says_what_is_missing(tmp_path: Path) -> None:
    """Exit code 1, and what to set."""
    (tmp_path / "strop.toml").write_text(
        '[engine]\nkind = "vllm"\nurl = "http://127.0.0.1:1"\n', encoding="utf-8"
    )

    text = doctor(tmp_path)
    unreadable = doctor(tmp_path, "--base", str(tmp_path))

    assert (1, 1) == (text.exit_code, unreadable.exit_code)
    assert "nothing can be trained before model.base is set" in text.stdout
    assert f"; {NEVER_LEARNED}" in text.stdout
    assert f"{tmp_path} has no config.json" in unreadable.stdout


def test_the_doctor_says_that_ollama_could_not_serve_what_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is trained for it; for another engine gguf need not be there."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    base = f'[model]\nbase = "{demo_model()}"\n[engine]\nurl = "http://127.0.0.1:1"\n'

    def examined(kind: str) -> Result:
        (tmp_path / "strop.toml").write_text(f'{base}kind = "{kind}"\n', encoding="utf-8")
        return doctor(tmp_path)

    ollama, vllm = examined("ollama"), examined("vllm")

    assert (1, 0) == (ollama.exit_code, vllm.exit_code)
    needed = "what is trained can't be served: adapters for Ollama and llama.cpp need the gguf"
    assert needed in ollama.stdout
    assert installation.install("strop[gguf]") in ollama.stdout
    assert "This machine can train." not in ollama.stdout
    assert "need the gguf" not in vllm.stdout


@pytest.mark.parametrize("kind", ["openai", "llama_server"])
@pytest.mark.parametrize("base", [str(demo_model()), ""], ids=["base", "none"])
def test_the_doctor_says_that_an_engine_serves_no_versions(
    tmp_path: Path, kind: str, base: str
) -> None:
    """Nothing is trained for it then, whatever this machine can do, and whatever is set."""
    lines = f'[model]\nbase = "{base}"\n[engine]\nkind = "{kind}"\nurl = "http://127.0.0.1:1"\n'
    (tmp_path / "strop.toml").write_text(lines, encoding="utf-8")

    result = doctor(tmp_path)

    assert 1 == result.exit_code
    assert f"an engine of the kind {kind} serves no versions; embedded, vllm" in result.stdout
    assert "This machine can train." not in result.stdout
    assert "before model.base is set" not in result.stdout


def test_the_doctor_sees_that_a_base_lacks_its_tokenizer(tmp_path: Path) -> None:
    """Weights alone train nothing."""
    base = tmp_path / "base"
    shutil.copytree(demo_model(), base, ignore=shutil.ignore_patterns("tokenizer*"))

    result = doctor(tmp_path, "--base", str(base))

    assert 1 == result.exit_code
    assert f"{base} has no tokenizer that can be loaded" in result.stdout


@pytest.mark.parametrize("command", ["train", "eval", "doctor"])
def test_a_base_that_is_not_where_it_was_is_named(tmp_path: Path, command: str) -> None:
    """A folder that was moved is another thing than none that is set."""
    moved = tmp_path / "moved"
    (tmp_path / "strop.toml").write_text(f"[model]\nbase = '{moved}'\n", encoding="utf-8")
    (tmp_path / "strop.db").touch()

    result = strop(tmp_path, command)

    assert result.returncode
    said = result.stdout + result.stderr
    assert str(moved) in said
    assert "before model.base is set" not in said


@pytest.mark.parametrize("command", ["eval", "doctor", "demo"])
def test_what_is_handed_over_has_its_own_help(tmp_path: Path, command: str) -> None:
    """All its options are there, and it is called as it was typed."""
    shown = strop(tmp_path, command, "--help")

    assert (0, "") == (shown.returncode, shown.stderr)
    assert shown.stdout.startswith(f"Usage: strop {command} [OPTIONS]")
    assert "--json" in shown.stdout


def test_an_unknown_preset_in_the_settings_is_refused_at_the_start(tmp_path: Path) -> None:
    """Before anything is opened, with those there are."""
    (tmp_path / "strop.toml").write_text('[training]\npreset = "bold"\n', encoding="utf-8")

    result = strop(tmp_path, "serve", "--port", "0")

    assert 2 == result.returncode
    assert "training.preset: expected one of aggressive, balanced, careful, or the path" in (
        result.stderr
    )
    assert not (tmp_path / "strop.db").exists()


def test_the_doctor_examines_the_model_that_is_served(tmp_path: Path) -> None:
    """Whatever a start would serve now: flags of `strop serve` are in no file, nor its errors."""
    base = tmp_path / "served"
    shutil.copytree(demo_model(), base)
    running = load(tmp_path, flags={"model.path": str(base), "training.preset": "careful"}).settings
    (tmp_path / "strop.toml").write_text("[training]\nobjektive = 'sft'\n", encoding="utf-8")

    with hold(tmp_path, Serves("http://127.0.0.1:9", {}, tell(running))):
        result = doctor(tmp_path, "--json")
        other = doctor(tmp_path, "--json", "--base", str(demo_model()))

    assert f"Examines {base}, which strop serves at http://127.0.0.1:9\n" == result.stderr
    facts = json.loads(result.stdout)["facts"]
    assert facts["base"].startswith(f"{base}: ")
    assert facts["preset"].startswith("careful: ")
    assert "" == other.stderr
    assert json.loads(other.stdout)["facts"]["base"].startswith(f"{demo_model()}: ")


def test_a_run_says_how_far_it_has_measured() -> None:
    """Before its first step, which may be hours."""
    run = {
        "id": "run_1",
        "state": "running",
        "cancelling": False,
        "eta_s": None,
        "metrics": {},
        "step": 0,
        "num_steps": None,
        "counts": {"answers_measured": 3, "answers_to_measure": 9},
    }

    assert "run_1: running, measured 3 of 9" == runs.progress(run)
