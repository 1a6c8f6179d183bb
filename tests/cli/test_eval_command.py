"""Tests of `strop eval`: versions of a real home side by side."""

import asyncio
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rated_home import RatedHome, hurry
from store_values import MODEL, choice, database_in, first_of_session, rate, record, version

from strop.adapters.rates import Rate
from strop.configs import demo_model
from strop.proxy.store.store import Store
from strop.training import memory
from strop.training.backends import Choice
from strop.training.demo import task
from strop.training.eval import main, table
from strop.training.evaluate import Evaluated
from strop.training.material import BadPrompts, gather, read_prompts
from strop.training.rows import Target
from strop.training.run import take
from strop.training.tokenizer import BaseTokenizer


def likes(messages: Sequence[Mapping[str, str]], answer: str) -> bool:
    """The demo's hidden rule, as `--rule` takes one."""
    question = next(one for one in task.QUESTIONS if one.text == messages[-1]["content"])
    return task.Rater().likes(question, answer)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one version, which is active and was rated too."""
    folder = tmp_path_factory.mktemp("home")

    async def fill() -> None:
        store = await Store.open(database_in(folder))
        rated = RatedHome(folder, store)
        await rated.rate(60)
        run = await rated.new_run()
        assert 0 == await take(folder, run.id)
        await store.versions.activate("v1", actor="test")
        await rated.rate(20, "v1")
        await store.close()

    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        asyncio.run(fill())
    return folder


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A home in which nothing was asked."""

    async def make() -> None:
        await (await Store.open(database_in(tmp_path))).close()

    asyncio.run(make())
    return tmp_path


def where(home: Path) -> list[str]:
    """The options that `strop` puts before those that a person types."""
    return ["--home", str(home), "--base", str(demo_model()), "--backend", "torch"]


def shown(home: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """What the command prints as JSON, by version."""
    result = CliRunner().invoke(main, [*where(home), "--json", *arguments])
    assert 0 == result.exit_code, result.output
    return {one["version"]: one for one in json.loads(result.stdout)}


def test_base_and_active_version_are_compared_by_default(home: Path) -> None:
    """On held-out ratings: what was learned from ratings shows in the margin, and in live ones."""
    found = shown(home)

    assert ["base", "v1"] == [*found]
    assert found["v1"]["margin"] > found["base"]["margin"]
    assert 0.0 == pytest.approx(found["base"]["kl_base"], abs=1e-5)
    assert found["v1"]["num_held_out"] == found["base"]["num_held_out"] != 0
    assert {"value", "num_good", "num", "low", "high"} == set(found["v1"]["live"])
    assert None is found["v1"]["good"]


def test_an_active_version_of_another_base_is_not_compared_by_default(empty: Path) -> None:
    """After `model.base` was changed, nobody has asked for it."""

    async def activate() -> None:
        store = await Store.open(database_in(empty))
        await version(store, is_active=True)
        await store.close()

    asyncio.run(activate())
    prompts = empty / "prompts.jsonl"
    prompts.write_text('"What is the capital of France?"')

    found = shown(empty, "--prompts", str(prompts), "--samples", "1")

    assert ["base"] == [*found]


def test_what_does_not_fit_into_memory_is_left_out_and_said(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A held-out conversation, or a prompt; where nothing fits, it is not begun."""
    needed = memory.estimate(demo_model(), Choice("torch", "cpu", ""), rank=8)
    monkeypatch.setattr(memory, "free_bytes", lambda _: needed.total(80, 80))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(f'"What is the capital of France?"\n"{"far too long " * 80}"')
    one = ["base", "--prompts", str(prompts), "--samples", "1", "--max-tokens", "20"]

    some = CliRunner().invoke(main, [*where(home), *one])
    monkeypatch.setattr(memory, "free_bytes", lambda _: needed.total(8, 8))
    none = CliRunner().invoke(main, [*where(home), *one])

    assert (0, 1) == (some.exit_code, none.exit_code), some.output
    assert "left out: 1 of 2 prompts, longer than the 80 tokens that" in some.stderr
    assert "nothing can be measured here; left out: " in none.stderr
    assert "ratings, 2 of 2 prompts, longer than the 8 tokens" in none.stderr


def test_a_base_that_does_not_fit_into_memory_is_not_loaded(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said what to set; nothing is trained here."""
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1)

    result = CliRunner().invoke(main, where(home))

    assert 1 == result.exit_code
    assert result.stderr.startswith("Error: about ")
    assert "the rest for a conversation of 128 tokens), but 0.0 GiB are free" in result.stderr


def test_versions_are_compared_by_a_rule_on_a_file_of_prompts(home: Path, tmp_path: Path) -> None:
    """With a rule there is a good-rate over fresh answers; the file may mix both forms."""
    texts = [question.text for question in task.split()[1]]
    prompts = tmp_path / "prompts.jsonl"
    message = {"messages": [{"role": "user", "content": texts[0]}]}
    lines = [json.dumps(message), "", *map(json.dumps, texts[1:])]
    prompts.write_text("\n".join(lines))

    found = shown(home, "base", "v1", "--prompts", str(prompts), "--rule", f"{__name__}:likes")

    assert 4 * len(texts) == found["v1"]["good"]["num"]
    assert found["v1"]["good"]["value"] > found["base"]["good"]["value"]


def test_versions_are_compared_on_a_file_of_prompts_alone(empty: Path, tmp_path: Path) -> None:
    """Where nothing was rated yet there is nothing else to measure on."""
    prompts = tmp_path / "prompts.jsonl"
    chat = {"messages": [{"role": "user", "content": "What is the opposite of hot?"}]}
    prompts.write_text(f'"What is the capital of France?"\n\n{json.dumps(chat)}\n')

    base = shown(empty, "--prompts", str(prompts))["base"]

    assert (8, 0, None) == (base["num_samples"], base["num_held_out"], base["good"])


def test_people_see_a_table(home: Path) -> None:
    """A version a column, and nothing where nothing was measured."""
    result = CliRunner().invoke(main, [*where(home), "base", "v1", "--samples", "1"])

    lines = result.stdout.splitlines()
    assert ["base", "v1"] == lines[0].split()
    assert any(line.startswith("margin") for line in lines)
    assert not any(line.startswith("good (fresh answers)") for line in lines)


def test_fresh_answers_without_a_verdict_are_said() -> None:
    """Else a good-rate of few looks like one of all, and one of none like nothing asked."""

    def shown(num_good: int, num_unrated: int) -> list[str]:
        none = dict.fromkeys(one.name for one in fields(Evaluated))
        counts = {"num_unrated": num_unrated, "num_samples": 8, "num_held_out": 0}
        good = Rate(num_good, 8 - num_unrated)
        found = Evaluated(**{**none, "version": "v1", "good": good, **counts})  # type: ignore[arg-type]
        return table([found]).splitlines()

    assert not any(line.startswith("no verdict") for line in shown(8, 0))
    assert "no verdict (fresh answers)  3" in shown(5, 3)
    assert "no verdict (fresh answers)  8" in shown(0, 8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["v7"], "there is no version"),
        (["seven"], "there is no version"),
        (["--prompts", "no-such-file"], "does not exist"),
        (["--rule", "no_such_module:f"], "can't be loaded"),
        (["--rule", "os:path"], "expected a function as the rule os:path"),
        (["--rule", "a:b", "--judge", "http://x"], "--rule or --judge, got both"),
        (["--judge", "http://x"], "expected --judge-model"),
    ],
)
def test_a_mistake_says_what_was_expected(home: Path, arguments: list[str], said: str) -> None:
    """On standard error, with a failing status."""
    result = CliRunner().invoke(main, [*where(home), *arguments])

    assert result.exit_code
    assert said in result.stderr


def test_a_home_where_nothing_is_recorded_is_said_and_left_alone(tmp_path: Path) -> None:
    """No database is made there."""
    result = CliRunner().invoke(main, where(tmp_path))

    assert 1 == result.exit_code
    assert f"nothing is recorded in {tmp_path}" in result.output
    assert not [*tmp_path.iterdir()]


def test_a_base_that_is_no_model_folder_is_said_so(empty: Path) -> None:
    """Before its tokenizer is missed, or anything computed."""
    result = CliRunner().invoke(main, [*where(empty), "--base", str(empty / "moved")])

    assert 1 == result.exit_code
    assert f"Error: the base model {empty / 'moved'} is not a folder; " in result.stderr


def test_a_home_without_held_out_ratings_says_what_to_do(empty: Path) -> None:
    """A file of prompts needs none."""
    result = CliRunner().invoke(main, [*where(empty), "base"])

    assert result.exit_code
    assert "no rating of an answer of this base is held out yet" in result.stderr
    assert "name prompts with --prompts FILE" in result.stderr


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85", "\r\n"])
def test_a_prompt_may_have_any_character_that_json_has_in_a_string(
    tmp_path: Path, char: str
) -> None:
    """Only a line break ends a line."""
    path = tmp_path / "prompts.jsonl"
    texts = [f"one{char}two", "three"]
    lines = [json.dumps(text, ensure_ascii=False) for text in texts]
    path.write_text("\r\n".join(lines), encoding="utf-8", newline="")

    found = read_prompts(path, BaseTokenizer(demo_model()))

    assert texts == [prompt.messages[-1]["content"] for prompt in found]


@pytest.mark.parametrize("prompt", [b'"Once"', b'["Once"]'])
async def test_a_rater_is_told_what_a_text_completion_was_asked(
    tmp_path: Path, prompt: bytes
) -> None:
    """The text, whichever way the client sent it."""
    store = await Store.open(database_in(tmp_path))
    id_ = first_of_session(1, held_out=True)
    await record(
        store,
        id_,
        dialect="completions",
        request=b'{"prompt": ' + prompt + b"}",
        prompt_ids=array("i", [5, 6]),
        base=MODEL,
        choices=(choice(message=b'{"text": " upon a time"}'),),
    )
    await rate(store, id_)

    found = await gather(store.training, Target(MODEL, 100, None), None)

    await store.close()
    assert [[{"role": "user", "content": "Once"}]] == [one.messages for one in found.prompts]


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "at least one prompt"), ('"fine"\n{"text": 1}', "line 2"), ("{", "line 1")],
)
def test_a_file_of_prompts_that_is_none_says_where(tmp_path: Path, content: str, said: str) -> None:
    """Its line is named."""
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)

    with pytest.raises(BadPrompts, match=said):
        read_prompts(path, BaseTokenizer(demo_model()))
