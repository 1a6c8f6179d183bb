"""`strop demo` shows the real thing: chat, snapshot, ratings, and a model that learns from them."""

import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import LIMIT_S

from strop.adapters.rates import Rate
from strop.configs import installation
from strop.training.demo import picture
from strop.training.demo.rounds import Measured

pytestmark = pytest.mark.engine


def run(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Return how the demo ended, and what it printed."""
    command = [sys.executable, "-m", "strop.proxy.cli", "demo", "--home", str(home), *arguments]
    # A proxy for the network, which leads nowhere: the demo doesn't leave this machine.
    environment = {**os.environ, "HTTP_PROXY": "http://127.0.0.1:9"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=LIMIT_S, env=environment
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's home, which it makes."""
    return tmp_path_factory.mktemp("demo") / "home"


@pytest.fixture(scope="module")
def shown(home: Path) -> str:
    """What a demo of two rounds prints."""
    ended = run(home, "--rounds", "2")
    assert (0, "") == (ended.returncode, ended.stderr)
    return ended.stdout


def test_two_rounds_of_ratings_make_the_model_better(shown: str, home: Path) -> None:
    """Held-out questions get more of what is liked, in answers that stay well formed."""
    measured = re.findall(r"^  (base|v\d)  +liked (\d\.\d\d) \[", shown, re.MULTILINE)

    states = re.findall(r"trained and gated in [\d.]+ s: (\w+)", shown)
    assert (3, 2) == (len(measured), len(states))
    # Answers are drawn by chance, and the gate may refuse one round of them.
    rates = [float(rate) for _, rate in measured]
    assert rates[0] + (0.30 if states.count("passed") == 2 else 0.10) <= rates[-1]
    assert {*states} <= {"passed", "rejected"}
    assert states.count("passed") == shown.count("swapped in within")
    (well_formed,) = re.findall(r"^  well formed (\d\.\d\d)", shown, re.MULTILINE)
    assert 0.85 <= float(well_formed)
    assert b"\x89PNG" == (home / "good-rate.png").read_bytes()[:4]


def test_it_shows_the_chat_the_snapshot_and_the_ratings(shown: str) -> None:
    """Each of the three answers is recorded with its ids, and rated once, in its own way."""
    chat, snapshot, rating, kept = re.split(
        r"\n(?:Snapshot|Rating|Kept): ", shown.partition("\nChat: ")[2]
    )
    kept = kept.partition("\nLearning: ")[0]
    answered = re.findall(r"cmp_[0-9a-f]{32}", chat)
    assert 3 == len(set(answered))
    sizes = [int(size) for size in re.findall(r"\((\d+)\)", snapshot)]
    assert 3 == len(sizes)
    assert sizes[1] == sizes[2] > 0
    assert answered == re.findall(r"cmp_[0-9a-f]{32}", rating)
    rated = re.findall(r"(cmp_[0-9a-f]{32})  ([+-]1)  by (\w+)", kept)
    assert [
        (answered[2], "+1", "inline"),
        (answered[1], "-1", "header"),
        (answered[0], "+1", "api"),
    ] == rated


def test_programs_get_figures_alone(tmp_path: Path) -> None:
    """With --json one object is printed; without a round it has the base's figures."""
    home = tmp_path / "demo"
    home.mkdir()
    for name in ("made-by-strop-demo", "of an earlier demo"):
        (home / name).touch()

    ended = run(home, "--rounds", "0", "--seed", "3", "--json")

    assert "" == ended.stderr
    assert not (home / "of an earlier demo").exists()
    found = json.loads(ended.stdout)
    assert (0, 3) == (found["plan"]["rounds"], found["plan"]["seed"])
    (base,) = found["results"]
    assert ("base", 0) == (base["version"], base["num_ratings"])
    assert 92 == base["liked"]["num"] == base["well_formed"]["num"]
    assert 0.85 <= base["well_formed"]["num_hits"] / base["well_formed"]["num"]


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    """What no demo made is not emptied, and the message says what to do."""
    (tmp_path / "mine.txt").write_text("dear to me", encoding="utf-8")

    ended = run(tmp_path)

    assert 1 == ended.returncode
    assert "not empty, and no earlier demo made it; name another folder" in ended.stderr
    assert "dear to me" == (tmp_path / "mine.txt").read_text(encoding="utf-8")


def test_a_home_that_is_served_from_is_left_alone(tmp_path: Path) -> None:
    """Whoever looks around in an earlier demo's home loses nothing by another demo."""
    for name in ("made-by-strop-demo", "serve.lock", "strop.db"):
        (tmp_path / name).touch()

    with (tmp_path / "serve.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = run(tmp_path, "--rounds", "0")

    assert 1 == ended.returncode
    assert f"Error: strop serves from {tmp_path}, which is to be emptied; stop it" in ended.stderr
    assert (tmp_path / "strop.db").exists()


def test_a_demo_that_is_ended_ends_its_strop(tmp_path: Path) -> None:
    """A strop that nobody knows of would keep the home, and its port, for ever."""
    home = tmp_path / "demo"
    command = [sys.executable, "-m", "strop.training.demo.__main__", "--home", str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        assert demo.stdout is not None
        # It is served once it says where.
        assert b"strop serves its small model at" in demo.stdout.readline()

        demo.terminate()
        demo.communicate(timeout=LIMIT_S)

    assert 1 == demo.returncode
    with (home / "serve.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_home_that_can_not_be_made_is_said_so(tmp_path: Path) -> None:
    """With what to do instead, and no traceback."""
    (tmp_path / "file").touch()

    ended = run(tmp_path / "file" / "demo")

    assert 1 == ended.returncode
    assert re.fullmatch(
        r"Error: expected to make .*; name another folder with --home\n", ended.stderr
    )


@pytest.mark.parametrize("name", ["mlx_lm", "matplotlib", "openai"])
def test_what_is_not_installed_is_said_before_anything_is_done(tmp_path: Path, name: str) -> None:
    """Not a minute later, when the picture is to be drawn."""
    home = tmp_path / "demo"
    lacks = f"import runpy, sys; sys.modules[{name!r}] = None;"
    lacks += "runpy.run_module('strop.training.demo.__main__', run_name='__main__')"

    ended = subprocess.run(
        [sys.executable, "-c", lacks, "--home", str(home)],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )

    command = installation.install("strop[mlx,demo]")
    assert f"Error: the demo needs {name}, not installed here: {command}\n" == ended.stderr
    assert not home.exists()


def test_a_bar_is_as_long_as_its_rate() -> None:
    """A bar is solid up to the rate, and shaded to the end of the interval."""
    half = Measured("v1", 40, Rate(46, 92), Rate(0, 92), Rate(92, 92), "- Paris")

    bar = picture.bars([half])

    assert 25 == bar.count("█")
    assert round(50 * half.liked.interval.high) - 25 == bar.count("▒")
    assert "v1    40 ratings" in bar
    assert "0.50" in bar
