"""What is likely to be typed or set wrong at a first start, and the advice that it gets."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from strop.proxy.cli.root import main


def start(home: Path, *arguments: str, command: str = "serve") -> Result:
    """Run `strop serve`, which is to refuse."""
    return CliRunner().invoke(main, [command, "--home", str(home), *arguments])


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("none", "there is no folder "),
        ("weights.gguf", "weights.gguf is a file, and strop's own engine reads no GGUF"),
        ("empty", "there is no config.json in "),
    ],
)
def test_a_model_that_is_none_is_refused_at_once(tmp_path: Path, model: str, says: str) -> None:
    """Not again and again by the engine, in a log that one has to find."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.gguf").touch()

    refused = start(tmp_path / "home", "--model", f"{tmp_path}/{model}")

    assert 2 == refused.exit_code
    assert "Error: model.path: expected a folder with a model in Hugging Face format" in (
        refused.stderr
    )
    assert says in refused.stderr


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        ("qwen3:8b", "--engine ollama --engine-url http://127.0.0.1:11434 --model qwen3:8b"),
        ("two words", "got 'two words'"),
    ],
)
def test_a_model_that_no_hub_has_is_refused_at_once(
    tmp_path: Path, model: str, advice: str
) -> None:
    """It is no name that one could have; Ollama's have a colon."""
    refused = start(tmp_path, "--model", model)

    assert (2, advice) == (refused.exit_code, refused.stderr.strip()[-len(advice) :])


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ((), "start it first, or say what it is, as in --engine vllm"),
        (("--engine", "embedded"), "is of another engine than strop's own; leave it out"),
    ],
)
def test_an_engine_that_is_only_a_url(tmp_path: Path, kind: tuple[str, ...], says: str) -> None:
    """Nobody listens there, so strop can't ask it what it is; or it is named as strop's own."""
    refused = start(tmp_path, *kind, "--engine-url", "http://127.0.0.1:1")

    assert 2 == refused.exit_code
    assert says in refused.stderr


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--host", "0.0.0.0"), "server.client_keys is empty; set client keys, or listen on"),
        (("--engine", "vllm"), 'engine.kind = "vllm" needs engine.url, as in --engine-url'),
        (
            ("--engine", "ollama", "--engine-url", "http://127.0.0.1:1", "--workers", "2"),
            "server.workers = 2 needs engine.kind embedded, vllm or openai, got ollama",
        ),
        (
            ("--model", "org/model", "--set", "engine.replicas=http://127.0.0.1:1"),
            "engine.replicas: expected engine.kind vllm or openai, got embedded",
        ),
        (
            ("--model", "org/model", "--set", "engine.model=qwen3"),
            "engine.model = 'qwen3' is of another engine than strop's own; leave it out, or",
        ),
    ],
)
def test_config_says_what_a_start_would_refuse(
    tmp_path: Path, wrong: tuple[str, ...], says: str
) -> None:
    """After the settings, whole as ever: as `serve` says it, and with the same exit status."""
    refused = start(tmp_path, *wrong)
    shown = start(tmp_path, *wrong, command="config")
    found = start(tmp_path, *wrong, "--json", command="config")

    assert [2] * 3 == [one.exit_code for one in (refused, shown, found)]
    assert says in refused.stderr
    assert refused.stderr == shown.stderr == found.stderr
    assert shown.stdout.splitlines()[-1].startswith("log.format ")
    assert "log.format" == json.loads(found.stdout)["settings"][-1]["key"]


def test_config_refuses_nothing_that_a_start_may_yet_find(tmp_path: Path) -> None:
    """Which engine is at a URL, and whether one runs here, is asked at a start alone."""
    url = ("--engine-url", "http://127.0.0.1:1", "--workers", "2")

    assert 0 == start(tmp_path, *url, command="config").exit_code


def test_strops_own_engine_serves_in_place_of_the_one_that_is_set(tmp_path: Path) -> None:
    """`--engine embedded` alone says so; URLs and model in the settings are of the other one."""
    (tmp_path / "strop.toml").write_text(
        '[engine]\nkind = "vllm"\nurl = "http://127.0.0.1:1"\nreplicas = ["http://127.0.0.1:2"]\n'
        'model = "theirs"\n',
        encoding="utf-8",
    )

    shown = start(tmp_path, "--engine", "embedded", "--json", command="config")

    settings = {one["key"]: one["value"] for one in json.loads(shown.stdout)["settings"]}
    assert ('"embedded"', '""', "[]", '""') == tuple(
        settings[f"engine.{key}"] for key in ("kind", "url", "replicas", "model")
    )
