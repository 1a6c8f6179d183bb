"""The command line, against a real store in a temporary home."""

import asyncio
import contextlib
import errno
import importlib.util
import json
import os
import pty
import random
import re
import resource
import shlex
import sqlite3
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import cli_reference
import click
import orjson
import pytest
from click.testing import CliRunner, Result
from fake_engine import FakeEngine
from fake_ollama import FakeOllama, base_of
from fake_vllm import FakeVllm
from recorded_home import empty_home, record
from running import running, settings_for

from strop.configs import installation
from strop.proxy.cli import records
from strop.proxy.cli.root import main
from strop.proxy.embedded.options import Options
from strop.proxy.errors import StropError
from strop.proxy.home import Serves, hold, serving
from strop.proxy.run_requests import NO_BACKEND
from strop.proxy.settings.settings import KINDS, load
from strop.proxy.settings.told import tell
from strop.proxy.store import database, deletion_store, file_lock, run_folder, run_lock, writer
from strop.proxy.store.records import Choice, Feedback, NewFeedback
from strop.proxy.store.run_records import RunState, RunUpdate
from strop.proxy.store.store import Store

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("STROP_")}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with an empty store."""
    return empty_home(tmp_path)


def run(home: Path, *arguments: str, **options: Any) -> Result:
    """Run a command with this home."""
    return CliRunner(env={"STROP_HOME": str(home)}).invoke(main, arguments, **options)


def feedback(home: Path) -> list[Feedback]:
    """Return all feedback in the home's store, newest first."""

    async def read() -> list[Feedback]:
        store = await Store.open(home / "strop.db")
        try:
            return list((await store.list_feedback(limit=100)).data)
        finally:
            await store.close()

    return asyncio.run(read())


def rate_in_store(home: Path, new: NewFeedback) -> None:
    """Give a rating as somebody else gives it."""

    async def give() -> None:
        store = await Store.open(home / "strop.db")
        try:
            await store.add_feedback(new, lambda _: False)
        finally:
            await store.close()

    asyncio.run(give())


def words(home: Path) -> list[tuple[str, float, str]]:
    """Return completion, rating and state of all feedback, newest first."""
    return [(one.completion, one.rating, one.state) for one in feedback(home)]


def test_good_and_bad_rate_the_newest_complete_answer(home: Path) -> None:
    """They say which one, and how to take it back; the rating is for the turn."""
    old, newest, _ = record(
        home,
        {"created_ms": 1000},
        {"created_ms": 2000, "answer": "Paris,\nof course.", "key_id": "key_1"},
        {"created_ms": 3000, "state": "upstream_error", "choices": ()},
    )

    good = run(home, "good")
    bad = run(home, "bad", old, "-m", "too short")

    assert (0, 0) == (good.exit_code, bad.exit_code)
    assert f"Rated good: {newest} (" in good.stdout
    assert '"Paris, of course."' in good.stdout
    assert f"Take it back: strop undo {newest}\n" in good.stdout
    assert [(old, -1, "standing"), (newest, 1, "standing")] == words(home)
    assert [("too short", "turn", "cli", "local", ""), (None, "turn", "cli", "key_1", "")] == [
        (one.comment, one.scope, one.source, one.key_id, one.rater) for one in feedback(home)
    ]


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_good_passes_over_what_nobody_has_read_and_status_does_too(home: Path, limit: str) -> None:
    """Agents count tokens by answers of one, and some fail; the command says which, and why."""
    counted = {"sampling": json.dumps({limit: 1}).encode(), "answer": "The"}
    failed = {"state": "upstream_error", "choices": ()}
    read, first, second, newest = record(
        home,
        {"created_ms": 1000, "sampling": json.dumps({limit: 2}).encode()},
        {"created_ms": 2000, **counted},
        {"created_ms": 3000, **counted},
        {"created_ms": 4000, **failed},
    )

    good, status = run(home, "good"), run(home, "status", "--json")

    assert [(read, 1, "standing")] == words(home)
    assert (
        f"Passed over, newer: {newest} (upstream_error, without an answer), {second} and 1 more"
        " (asked for one token, as to count tokens)\n"
    ) in good.stdout
    assert first not in good.stdout
    assert read == json.loads(status.stdout)["store"]["newest"]


TASK = "### Task:\nSuggest a title.\n<chat_history>\nUSER: Hi\n</chat_history>"


@pytest.mark.parametrize(
    "said",
    [["### Task: sort a list"], [f"What does this do?\n{TASK}"], [TASK, "Another"]],
    ids=["own-words", "quoted", "goes-on"],
)
def test_good_passes_over_what_open_webui_asks_about_a_chat(home: Path, said: list[str]) -> None:
    """Titles, tags, what to ask next: after each answer, and nobody reads them as answers."""
    asked = [
        json.dumps({"messages": [{"role": "user", "content": text} for text in texts]}).encode()
        for texts in (said, [TASK])
    ]
    read, title = record(
        home,
        {"created_ms": 1000, "request": asked[0]},
        {"created_ms": 2000, "request": asked[1]},
    )

    good = run(home, "good")

    assert [(read, 1, "standing")] == words(home)
    assert f"Passed over, newer: {title} (asked by Open WebUI about the chat)\n" in good.stdout


CLAUDE_TITLE = [
    ("system", "You are Claude Code.\n\nGenerate a concise, sentence-case title"),
    ("user", "Hi"),
]
CODEX_TITLE = [("user", "<environment_context>\n\nGenerate a concise, single-line task title")]
CODEX_SUMMARY = "You are performing a CONTEXT CHECKPOINT COMPACTION. Create a handoff summary"
CLAUDE_SUMMARY = (
    "CRITICAL: Respond with TEXT ONLY. Do NOT call any tools.\n\n- Do NOT use Read."
    "\n\nYour task is to create a detailed summary of the conversation so far"
)
AIDER_COMMIT = [
    (
        "system",
        "You are an expert software engineer that generates concise, one-line Git commit messages"
        " based on the provided diffs.\nReview the diffs carefully.",
    ),
    ("user", "diff --git a/m.py b/m.py"),
]
AIDER_SUMMARY = [
    ("system", "*Briefly* summarize this partial conversation about programming.\nInclude less"),
    ("user", "# USER\nHi"),
]
GPTME_TITLE = [
    ("system", ["Generate concise conversation titles."]),
    ("user", ["Your task: Create a 2-4 word title for this conversation."]),
]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    ("said", "fields", "wanted"),
    [
        (CLAUDE_TITLE, {"response_format": {"type": "json_schema"}}, "title"),
        (CODEX_TITLE, {"response_format": {"type": "json_schema"}}, "title"),
        ([("user", CODEX_SUMMARY)], {"tools": TOOLS}, "summary"),
        ([("user", "Hi"), ("user", f"Stopped\n\n{CODEX_SUMMARY}")], {}, "summary"),
        ([("user", CLAUDE_SUMMARY)], {"tools": TOOLS}, "summary"),
        ([("user", ["Stopped", CLAUDE_SUMMARY])], {"tools": TOOLS}, "summary"),
        (AIDER_COMMIT, {}, "commit message"),
        ([("system", f"/no_think\n{AIDER_COMMIT[0][1]}"), AIDER_COMMIT[1]], {}, "commit message"),
        (AIDER_SUMMARY, {}, "summary"),
        (GPTME_TITLE, {}, "title"),
    ],
    ids=[
        *("claude-title", "codex-title", "codex", "codex-joined", "claude", "claude-joined"),
        *("aider-commit", "aider-prefix", "aider", "gptme-title"),
    ],
)
def test_good_passes_over_the_titles_and_summaries_that_agents_ask_for(
    home: Path, said: list[tuple[str, Any]], fields: dict[str, Any], wanted: str
) -> None:
    """Claude Code and Codex a title right behind the question; aider a message for its commit."""
    read, unread = record(
        home,
        {"created_ms": 1000},
        {"created_ms": 2000, "request": asking(said, **fields)},
    )

    good = run(home, "good")

    assert [(read, 1, "standing")] == words(home)
    assert f"Passed over, newer: {unread} (asked by an agent for a {wanted})\n" in good.stdout


@pytest.mark.parametrize(
    ("said", "fields"),
    [
        (CODEX_TITLE, {}),
        (CODEX_TITLE, {"response_format": {"type": "json_schema"}, "tools": TOOLS}),
        ([("user", "Hi")], {"response_format": {"type": "json_schema"}}),
        ([("user", f"What is this: {CODEX_SUMMARY}")], {}),
        ([("user", CLAUDE_SUMMARY), ("assistant", "It is"), ("user", "Go on")], {}),
        ([("user", "Hi"), *GPTME_TITLE], {}),
        ([("user", "Generate concise conversation titles. My chats: ...")], {}),
        ([*GPTME_TITLE, ("assistant", "A"), ("user", "B")], {}),
        ([("system", f"Never say {AIDER_COMMIT[0][1]}"), ("user", "Hi")], {}),
    ],
    ids=[
        *("no-format", "tools", "no-title", "quoted", "goes-on", "behind"),
        *("a-persons", "title-goes-on", "quoted-by-system"),
    ],
)
def test_good_rates_what_only_looks_like_a_title_or_a_summary(
    home: Path, said: list[tuple[str, Any]], fields: dict[str, Any]
) -> None:
    """A person may ask for one, or about one."""
    _, newest = record(
        home,
        {"created_ms": 1000},
        {"created_ms": 2000, "request": asking(said, **fields)},
    )

    run(home, "good")

    assert [(newest, 1, "standing")] == words(home)


def test_good_rates_an_answer_to_no_messages(home: Path) -> None:
    """A text completion has a prompt alone."""
    (newest,) = record(home, {"dialect": "completions", "request": b'{"prompt": "Hi"}'})

    run(home, "good")

    assert [(newest, 1, "standing")] == words(home)


def asking(said: list[tuple[str, Any]], **fields: Any) -> bytes:
    """Return a request with these messages; a list of texts is one of parts."""
    messages = [
        {
            "role": role,
            "content": text
            if isinstance(text, str)
            else [{"type": "text", "text": one} for one in text],
        }
        for role, text in said
    ]
    return json.dumps({"messages": messages, **fields}).encode()


def test_bad_rates_what_was_stopped_where_something_of_it_was_read(home: Path) -> None:
    """Who stops a bad answer with Ctrl-C means that one; nobody means one that had not begun."""
    empty = (Choice(index=0, message=b'{"role": "assistant", "content": ""}'),)
    _, stopped, unread = record(
        home,
        {"created_ms": 1000},
        {"created_ms": 2000, "state": "client_cancelled", "answer": "It is, well,"},
        {"created_ms": 3000, "state": "client_cancelled", "choices": empty},
    )

    bad, status = run(home, "bad"), run(home, "status", "--json")

    assert [(stopped, -1, "standing")] == words(home)
    assert f"Rated bad: {stopped} (" in bad.stdout
    assert ', client_cancelled): "It is, well,"\n' in bad.stdout
    assert f"Passed over, newer: {unread} (client_cancelled, without an answer)\n" in bad.stdout
    assert stopped == json.loads(status.stdout)["store"]["newest"]


def test_where_nobody_has_read_anything_nothing_is_rated(home: Path) -> None:
    """It says what there is, and why that is none to rate."""
    (failed,) = record(home, {"state": "upstream_error", "choices": ()})

    good = run(home, "good")

    assert 1 == good.exit_code
    assert f"; none is {failed} (upstream_error, without an answer)\n" in good.stderr
    assert [] == words(home)


def test_a_rating_of_another_home_is_taken_back_there(home: Path, tmp_path: Path) -> None:
    """The command to copy names the home where it isn't the default one."""
    (made,) = record(home, {})

    rated = run(tmp_path, "good", "--home", str(home))

    assert f"strop undo {made} --home {home}\n" in rated.stdout


def test_commands_to_copy_have_the_path_of_strop_where_no_shell_finds_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `make install`, before PATH is set; in what is said and in errors."""
    (made,) = record(home, {})
    strop = Path(sys.executable).with_name("strop")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    rated = run(home, "good").stdout
    unknown = run(tmp_path, "good", "cmp_no", "--home", str(home)).stderr

    assert rated.endswith(f": {strop} undo {made}\n")
    assert unknown.endswith(f": {strop} completions list --home {home}\n")


def test_a_rating_says_which_one_it_replaces(home: Path) -> None:
    """Which may be that of the person who asked, with a key of their own, and doesn't return."""
    (made,) = record(home, {"key_id": "key_1"})
    given = NewFeedback(
        completion=made, key_id="key_1", rating=1.0, original=b"1", comment="short", source="inline"
    )
    rate_in_store(home, given)

    first = run(home, "bad")
    second = run(home, "rate", made, "0.5", "--correction", "Au.")
    other = run(home, "rate", made, "bad", "--rater", "ann")
    third = run(home, "good")

    assert re.search(
        r'^It replaces: good \(\d+ s ago, by inline with key_1\): "short"$', first.stdout, re.M
    )
    assert "It replaces: bad (" in second.stdout
    assert "It replaces" not in other.stdout
    assert "by cli with key_1), with a correction\n" in third.stdout
    assert run(home, "undo").exit_code == 0
    assert {"superseded", "withdrawn"} == {one.state for one in feedback(home) if one.rater == ""}


def test_a_rating_says_no_key_of_one_that_was_given_without(home: Path) -> None:
    """`local` is nobody's name."""
    record(home, {})

    first, second = run(home, "bad"), run(home, "good")

    assert "It replaces" not in first.stdout
    assert re.search(r"^It replaces: bad \(\d+ s ago, by cli\)$", second.stdout, re.M)


def test_an_answer_can_be_named_by_the_engines_id(home: Path) -> None:
    """Where it names one alone: to rate it, to take that back, to show it and to delete it."""
    (made,) = record(home, {"upstream_id": "chatcmpl-7", "key_id": "key_1"})

    assert 0 == run(home, "good", "chatcmpl-7").exit_code
    assert [(made, 1, "standing")] == words(home)
    shown = run(home, "completions", "show", "chatcmpl-7", "--json")
    (given,) = json.loads(shown.stdout)["feedback"]
    assert made == given["completion_id"]
    assert 0 == run(home, "undo", "chatcmpl-7").exit_code
    assert [(made, 1, "withdrawn")] == words(home)
    assert "Delete 1 answer for good?" in (
        run(home, "completions", "delete", "chatcmpl-7", made, input="n\n").stdout
    )
    deleted = run(home, "completions", "delete", "chatcmpl-7", "--yes")
    assert "Deleted 1 answer.\n" == deleted.stdout


def test_an_id_of_the_engines_that_names_several_names_none(home: Path) -> None:
    """Nobody's guess which one is meant."""
    record(home, {"upstream_id": "chatcmpl-7"}, {"upstream_id": "chatcmpl-7", "key_id": "key_1"})

    shown, deleted = (
        run(home, "completions", *words, "chatcmpl-7") for words in (["show"], ["delete", "--yes"])
    )

    assert (1, 1) == (shown.exit_code, deleted.exit_code)
    assert "no completion 'chatcmpl-7' is recorded" in shown.stderr


@pytest.mark.parametrize(
    ("given", "rating"),
    [("good", 1), ("-0.5", -0.5), ("0.25", 0.25), ("4/5", 0.5), ("1/5", -1), ("down", -1)],
)
def test_rate_takes_words_numbers_and_stars(home: Path, given: str, rating: float) -> None:
    """A number below 0 is no option."""
    (made,) = record(home, {})

    result = run(home, "rate", made, given)

    assert 0 == result.exit_code, result.output
    assert [(made, rating, "standing")] == words(home)


def test_rate_takes_all_that_a_rating_has(home: Path) -> None:
    """Comment, correction, tags, rater, scope and choice."""
    answers = tuple(Choice(index=i, message=b'{"content": "Hi"}') for i in range(2))
    (made,) = record(home, {"choices": answers})
    options = ("--tag", "a", "--tag", "b", "--rater", "ann", "--scope", "turn", "--choice", "1")

    result = run(
        home, "rate", made, "bad", *options, "-m", "no", "--correction", "-", input="Hello"
    )

    (found,) = feedback(home)
    assert ("no", "Hello", ("a", "b"), "ann", "turn", 1) == (
        found.comment,
        found.correction,
        found.tags,
        found.rater,
        found.scope,
        found.choice,
    )
    assert f"strop undo {made} --rater ann" in result.stdout


def test_undo_takes_back_the_rating_of_the_answer_named(home: Path) -> None:
    """Another answer's rating stays, though it is newer."""
    one, two = record(home, {"session": "s"}, {"session": "s"})
    run(home, "good", one)
    run(home, "bad", two)

    result = run(home, "undo", one)

    assert f"Took back good: {one} (" in result.stdout
    assert [(two, -1, "standing"), (one, 1, "withdrawn")] == words(home)


def test_undo_alone_takes_back_the_newest_that_was_given_in_the_shell(home: Path) -> None:
    """Not a newer one that a client's code gave to another answer, nor another rater's."""
    mine, agents, anns = record(home, {"session": "a"}, {"session": "b"}, {"session": "b"})
    run(home, "bad", mine)
    rate_in_store(home, NewFeedback(agents, "local", 1.0, b'"good"', source="api"))
    run(home, "rate", anns, "bad", "--rater", "ann")

    undone = run(home, "undo")
    again = run(home, "undo")
    of_ann = run(home, "undo", "--rater", "ann")
    none = run(home, "undo")

    assert f"Took back bad: {mine}" in undone.stdout
    assert f"Took back bad: {anns}" in of_ann.stdout
    assert [(anns, -1, "withdrawn"), (agents, 1, "standing"), (mine, -1, "withdrawn")] == words(
        home
    )
    assert (1, 1) == (again.exit_code, none.exit_code)
    no_rating = "Error: there is no rating from the shell to take back"
    assert f"{no_rating}; one by ann stands: strop undo {anns} --rater ann\n" == again.stderr
    assert none.stderr.startswith(f"{no_rating}; for another, name its answer: strop undo ID, or")


def test_undo_says_who_rated_the_answer_where_that_was_another_rater(home: Path) -> None:
    """The answer was named; what is missing is the rater."""
    anns, mine = record(home, {}, {})
    run(home, "rate", anns, "bad", "--rater", "ann")
    run(home, "good", mine)

    unnamed = run(home, "undo", anns)
    named = run(home, "undo", mine, "--rater", "ann")

    assert (
        f"Error: there is no rating of {anns} to take back; one by ann stands: strop undo {anns}"
        " --rater ann\n"
    ) == unnamed.stderr
    assert (
        f"Error: there is no rating of {mine} by ann to take back; one without a rater stands:"
        f" strop undo {mine}\n"
    ) == named.stderr


def test_an_error_does_not_steer_the_terminal(home: Path) -> None:
    """What a client calls its rater is said in one."""
    (made,) = record(home, {})
    rate_in_store(home, NewFeedback(made, "local", 1.0, b'"good"', rater="ann\x1b[2J"))

    undone = run(home, "undo", made, color=True)

    assert "; one by ann\N{REPLACEMENT CHARACTER}[2J stands: " in undone.stderr


@pytest.mark.parametrize(
    ("engine", "path", "chosen"),
    [
        ((), "m", ""),
        (("--engine", "embedded"), "m", ""),
        (("--engine", "vllm"), "", "m"),
        (("--engine", "openai"), "", "m"),
        (("--engine-url", "http://127.0.0.1:1"), "", "m"),
    ],
)
def test_the_model_is_loaded_or_chosen(
    home: Path, engine: tuple[str, ...], path: str, chosen: str
) -> None:
    """The embedded engine loads it; another one has it already. Clients may call it otherwise."""
    options = (*engine, "--model", "m", "--model-name", "mine")
    found = json.loads(run(home, "config", *options, "--json").stdout)

    values = {one["key"]: one["value"] for one in found["settings"]}
    keys = ("model.path", "engine.model", "model.name")
    assert [path, chosen, "mine"] == [json.loads(values[key]) for key in keys]


@pytest.mark.parametrize("engine", ["embedded", "vllm"])
def test_a_model_set_as_any_other_setting_is_the_one(home: Path, engine: str) -> None:
    """Flags that aren't given hide nothing; those that are come first."""
    pairs = ("--set", "model.name=a=b", "--set", "model.path=m", "--engine", engine)

    def values(*more: str) -> dict[str, str]:
        found = json.loads(run(home, "config", "--json", *pairs, *more).stdout)["settings"]
        return {one["key"]: json.loads(one["value"]) for one in found if "model." in one["key"]}

    assert ("a=b", "m") == (values()["model.name"], values()["model.path"])
    assert "c" == values("--model-name", "c")["model.name"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("good", "cmp_no"), 1, "no completion 'cmp_no' is recorded; see: strop completions list"),
        (("good",), 1, "there is no answer to rate yet"),
        (("undo",), 1, "there is no rating from the shell to take back; for another, name its"),
        (("undo", "cmp_no"), 1, "there is no rating of cmp_no to take back"),
        (("rate", "cmp_no", "great"), 2, "expected RATING to be good or bad, a number"),
        (("rate", "cmp_no", "9/5"), 2, "stars as in 4/5; got '9/5'"),
        (("good", "cmp_no", "--choice", "-1"), 2, "expected `choice` to be"),
        (("completions", "show", "cmp_no"), 1, "no completion 'cmp_no'"),
        (("completions", "delete", "cmp_no", "--yes"), 1, "no completion 'cmp_no'"),
        (("completions", "delete"), 2, "expected COMPLETION..., --older-than, or any"),
        (
            ("completions", "delete", "cmp_1", "--session", "mine"),
            2,
            "expected COMPLETION..., --older-than, or any",
        ),
        (("completions", "list", "--after", "cmp_no"), 2, "expected `after` to be an id"),
        (("completions", "list", "--limit", "0"), 2, "not in the range"),
        (("export", "--format", "csv"), 2, "is not one of"),
        (("export", "--format", "raw", "--out", "/none/x"), 2, "expected to write to /none/x"),
        (("export", "--format", "raw", "--since", "soon"), 2, "'soon' does not match the formats"),
        (("engine", "--model", "/none/m"), 2, "there is no folder /none/m"),
        (("engine", "--model", "m", "--max-rows", "0"), 2, "0 is not in the range"),
        (("config", "--set", "capture.mode"), 2, "expected --set KEY=VALUE"),
        (("config", "--set", "capture.mode=some"), 2, "capture.mode: expected one of"),
        (("config", "--set", "capture.mood=off"), 2, "unknown key capture.mood"),
        (("config", "--port", "70000"), 2, "server.port: expected an integer"),
        (("serve", "--host", "0.0.0.0", "--port", "0"), 2, "server.client_keys is"),
        (
            ("serve", "--engine", "ollama"),
            2,
            "--engine-url http://127.0.0.1:11434; `strop engines`",
        ),
        (("serve", "--home", "/proc/none/home"), 2, "expected to make the folder"),
        (("nothing",), 2, "No such command"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    home: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    """2 for what was typed or set, 1 for the rest; on standard error, and no traceback."""
    result = run(home, *arguments)

    assert (code, "") == (result.exit_code, result.stdout)
    assert says in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert not isinstance(result.exception, StropError)


@pytest.mark.parametrize(
    "arguments",
    [
        ("good",),
        ("undo",),
        ("rate", "cmp_1", "good"),
        ("completions", "list"),
        ("completions", "show", "cmp_1"),
        ("completions", "delete", "cmp_1"),
        ("export", "--format", "raw", "--out", "ratings.jsonl"),
    ],
)
def test_a_missing_home_is_said(
    tmp_path: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is made, neither a home nor a file."""
    monkeypatch.chdir(tmp_path)

    result = run(tmp_path / "nowhere", *arguments)

    assert 2 == result.exit_code
    assert f"there is no {tmp_path / 'nowhere' / 'strop.db'}" in result.stderr
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", ["status", "good", "adapters activate v1", "train", "config", "doctor", "serve"]
)
def test_a_home_that_is_a_file_is_said(tmp_path: Path, words: str) -> None:
    """By each command, from the environment as from the option."""
    (tmp_path / "file").write_text("")

    by_variable = run(tmp_path / "file", *words.split())
    by_option = run(tmp_path, *words.split(), "--home", str(tmp_path / "file"))

    said = f"Error: expected strop's home to be a folder, got the file {tmp_path / 'file'}\n"
    assert [(2, said)] * 2 == [(one.exit_code, one.stderr) for one in (by_variable, by_option)]


def test_an_empty_home_is_the_default_one(home: Path) -> None:
    """As a variable that isn't set leaves it in a script; not the folder one stands in."""
    found = run(home, "config", "--home", "", "--json")

    assert str(home) == json.loads(found.stdout)["home"]


def test_what_the_system_refuses_is_one_line(home: Path) -> None:
    """It names the file, and what is wrong with it; no traceback."""
    (home / "serve.lock").symlink_to(home / "serve.lock")

    result = run(home, "status")

    assert 1 == result.exit_code
    assert result.stderr.startswith(f"Error: {home / 'serve.lock'}: ")
    assert isinstance(result.exception, SystemExit)


def test_a_terminal_without_a_character_shows_the_rest(home: Path) -> None:
    """A question mark stands for what its encoding lacks."""
    (made,) = record(home, {"answer": "Größe 🙂 2"})

    shown = subprocess.run(
        [sys.executable, "-m", "strop.proxy.cli", "completions", "show", made],
        env={**ENVIRONMENT, "STROP_HOME": str(home), "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
    )

    assert shown.stdout.endswith(b"\nGr\xf6\xdfe ? 2\n")


def test_the_newest_is_the_last_that_ended_whatever_the_clock_said(home: Path) -> None:
    """One that was made before the clock was set back is older, and said to be ahead of it."""
    later_ms = int(time.time() * 1000) + 3 * 86_400_000
    ahead, last = record(home, {"created_ms": later_ms}, {"created_ms": 2000})

    good = run(home, "good")
    other = run(home, "good", ahead)

    assert f"Rated good: {last} (" in good.stdout
    assert f"Rated good: {ahead} (3 d ahead of the clock)" in other.stdout


def test_completions_are_listed_newest_first(home: Path) -> None:
    """With their first words, and the command for those that follow."""
    old, new = record(
        home, {"created_ms": 1000, "answer": "Lyon."}, {"created_ms": 2000, "answer": "Paris."}
    )
    run(home, "good", old)

    run(home, "rate", old, "-0.5", "--rater", "ann")
    listed = run(home, "completions", "list").stdout.splitlines()
    first = run(home, "completions", "list", "--limit", "1").stdout.splitlines()
    rated = run(home, "completions", "list", "--rated", "--json").stdout

    assert ["COMPLETION", new, old] == [line.split()[0] for line in listed]
    assert ["ANSWER", "Paris.", "Lyon."] == [line.split()[-1] for line in listed]
    assert ["RATED", "-", "-0.5, good"] == [re.split("  +", line)[-2] for line in listed]
    assert f"More: strop completions list --limit 1 --after {new}" == first[-1]
    assert [old] == [one["id"] for one in json.loads(rated)["data"]]


def test_a_rating_of_another_choice_says_which(home: Path) -> None:
    """What is shown is the first."""
    choices = tuple(Choice(index, b'{"content": "Paris."}', "stop") for index in range(3))
    (made,) = record(home, {"choices": choices})
    run(home, "good", made)
    run(home, "bad", made, "--choice", "2")

    listed = run(home, "completions", "list").stdout.splitlines()

    assert "bad (choice 2), good" == re.split("  +", listed[1])[-2]


def test_the_rest_of_a_list_is_of_the_same_answers(home: Path) -> None:
    """What was asked for is in the command to go on with."""
    made = record(home, *({"session": "my own"} for _ in range(3)), {"session": "other"})
    for one in made[:2]:
        run(home, "good", one)

    options = ("--session", "my own", "--state", "complete", "--rated", "--limit", "1")
    listed = run(home, "completions", "list", *options).stdout.splitlines()
    again = shlex.split(listed[-1].removeprefix("More: strop "))
    rest = run(home, *again).stdout.splitlines()

    assert {*made[:2]} == {listed[1].split()[0], rest[1].split()[0]}
    assert 2 == len(rest)


def test_no_completions_are_said(home: Path) -> None:
    """An empty list is no error."""
    assert (0, "No answers.\n") == (
        (result := run(home, "completions", "list")).exit_code,
        result.stdout,
    )


def test_a_completion_is_shown_to_people_and_programs(home: Path) -> None:
    """The answer, its snapshot and its ratings; as JSON what the API gives."""
    (made,) = record(home, {"answer": "Paris.\nOf course."})
    run(home, "bad", "-m", "too long")
    run(home, "rate", made, "0.5", "--rater", "ann", "--tag", "style", "--correction", "Paris")

    shown = run(home, "completions", "show", made).stdout
    found = json.loads(run(home, "completions", "show", made, "--json").stdout)

    assert "2 token ids, raw logprobs" in shown
    assert "bad (standing), choice 0, by cli: too long" in shown
    assert "+0.5 (standing), choice 0, by ann, tagged style; better: Paris" in shown
    assert shown.endswith(
        "\nasked:\nWhat is the capital of France?\n\nanswer 0 (stop):\nParis.\nOf course.\n"
    )
    assert [4, 5] == found["snapshot"]["choices"][0]["token_ids"]
    assert "too long" == found["feedback"][1]["comment"]


@pytest.mark.parametrize("member", ["reasoning", "reasoning_content"])
def test_what_a_model_thought_is_shown_apart_from_its_answer(home: Path, member: str) -> None:
    """As far as the engine gives it; a thought is no answer."""
    message = json.dumps({"role": "assistant", member: "A capital.\x1b[2J", "content": "Paris."})
    (made,) = record(home, {"choices": (Choice(0, message.encode(), "stop"),)})

    shown = run(home, "completions", "show", made).stdout

    thought = "\nthought before answer 0:\nA capital.\N{REPLACEMENT CHARACTER}[2J\n"
    assert shown.endswith(f"{thought}\nanswer 0 (stop):\nParis.\n")


def test_an_answer_that_is_nested_too_deeply_to_be_read_is_shown(home: Path) -> None:
    """As it came, and without thoughts."""
    deep = b'{"content": %b%b}' % (b"[" * 100_000, b"]" * 100_000)
    (made,) = record(home, {"choices": (Choice(0, deep, "stop"),)})

    shown = run(home, "completions", "show", made)

    assert 0 == shown.exit_code
    assert shown.stdout.endswith("]]}\n")
    assert "thought before" not in shown.stdout


@pytest.mark.parametrize("prefix", ["msg", "resp"])
def test_an_answer_goes_by_the_id_that_another_dialect_shows(home: Path, prefix: str) -> None:
    """Claude Code and Codex know their answers by these."""
    (made,) = record(home, {"answer": "Paris."})
    name = f"{prefix}_{made.removeprefix('cmp_')}"

    rated = run(home, "good", name)
    shown = run(home, "completions", "show", name)
    undone = run(home, "undo", name)
    deleted = run(home, "completions", "delete", name, "--yes")

    assert [0] * 4 == [one.exit_code for one in (rated, shown, undone, deleted)]
    assert made in shown.stdout


def test_answers_are_deleted_once_that_is_confirmed(home: Path) -> None:
    """Those named; what else their conversation holds is said, since it repeats what was said."""
    first, _, other = record(home, {"session": "mine"}, {"session": "mine"}, {})

    refused = run(home, "completions", "delete", first, other, input="n\n")
    kept = json.loads(run(home, "completions", "list", "--json").stdout)["data"]
    done = run(home, "completions", "delete", first, other, "--yes")
    whole = run(home, "completions", "delete", "--session", "mine", input="y\n")

    assert (1, 3) == (refused.exit_code, len(kept))
    assert "Delete 2 answers for good? [y/N]" in refused.stdout
    assert "Deleted 2 answers." == done.stdout.splitlines()[0]
    assert done.stdout.endswith("strop completions delete --session mine --key local\n")
    assert 2 == len(done.stdout.splitlines())
    assert "Delete 1 answer of mine for good? [y/N]" in whole.stdout
    assert whole.stdout.endswith("Deleted 1 answer.\n")
    assert "No answers.\n" == run(home, "completions", "list").stdout


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ((), ""),
        (("--session", "mine"), " of mine"),
        (("--key", "local"), " made with local"),
        (("--session", "mine", "--key", "local"), " of mine made with local"),
        (("--containing", "capital"), ", found by 'capital'"),
    ],
)
def test_how_many_ratings_go_with_answers_is_said(
    home: Path, how: tuple[str, ...], what: str
) -> None:
    """Before and after; a rating that was taken back is none."""
    request = json.dumps({"messages": [{"role": "user", "content": "The capital?"}]}).encode()
    ids = record(home, *[{"session": "mine", "request": request}] * 3)
    for words in (("good", ids[0]), ("good", ids[1]), ("bad", ids[2]), ("undo", ids[0])):
        assert 0 == run(home, *words).exit_code

    done = run(home, "completions", "delete", *(how or ids), input="y\n").stdout

    assert done.startswith(f"Delete 3 answers{what}, with 2 ratings, for good? [y/N]")
    assert done.endswith("Deleted 3 answers; 2 ratings withdrawn.\n")


def test_a_great_many_answers_are_not_counted_before(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a key may be millions."""
    monkeypatch.setattr(records, "_MOST_COUNTED", 2)
    record(home, *[{"session": "mine"}] * 3)

    done = run(home, "completions", "delete", "--key", "local", input="y\n").stdout

    assert done.startswith("Delete over 2 answers made with local for good? [y/N]")
    assert done.endswith("Deleted 3 answers.\n")


@pytest.mark.parametrize("is_named", [True, False])
def test_a_deletion_that_the_disk_stops_says_how_far_it_came(
    home: Path, monkeypatch: pytest.MonkeyPatch, is_named: bool
) -> None:
    """And how to go on: nobody can name again what is gone."""
    monkeypatch.setattr(deletion_store, "_BATCH", 1)
    requests = [random.Random(number).randbytes(20_000).hex().encode() for number in range(20)]
    ids = record(home, *({"session": "mine", "request": request} for request in requests))
    command = ("completions", "delete", *(ids if is_named else ("--session", "mine")), "--yes")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        with monkeypatch.context() as stuck:
            stuck.setattr(run_folder, "clean_all", full)
            stopped = run(home, *command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    listed = json.loads(run(home, "completions", "list", "--json").stdout)["data"]
    left = sorted(one["id"] for one in listed)
    again = stopped.stderr.rstrip("\n").partition("; the rest is still there, and goes with ")[2]
    rest = run(home, *shlex.split(again)[1:], "--yes") if is_named else run(home, *command)

    assert 0 < len(left) < 20
    assert (1, 0) == (stopped.exit_code, rest.exit_code)
    assert stopped.stdout.startswith(f"Deleted {20 - len(left)} answers.\n")
    assert "can't be used: the disk gave an I/O error" in stopped.stderr
    named = f"strop completions delete {' '.join(left)}"
    assert (named if is_named else "the same command again") == again
    assert rest.stdout.startswith(f"Deleted {len(left)} answers.\n")


def test_that_the_disk_keeps_what_is_deleted_is_said(home: Path) -> None:
    """No other program is at fault then."""
    requests = [random.Random(number).randbytes(20_000).hex().encode() for number in range(20)]
    *_, last = record(home, *({"request": request} for request in requests))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        done = run(home, "completions", "delete", last, "--yes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert (1, "Deleted 1 answer.\n") == (done.exit_code, done.stdout)
    assert (
        f"can still be read in {home / 'strop.db'} and {home / 'strop.db'}-wal, since the data"
        in (done.stderr)
    )
    assert "once that is mended, this overwrites it: strop status" in done.stderr


@pytest.mark.parametrize(
    ("holder", "is_left", "said"),
    [
        (None, False, "was interrupted; it begins anew, without that."),
        (
            "",
            True,
            "is under way; if it has collected any of that, it begins anew at its next step.",
        ),
        (run_lock.PROBE, True, "was interrupted; what it has collected goes when it goes on."),
    ],
)
def test_no_run_keeps_what_is_deleted(
    home: Path, holder: str | None, is_left: bool, said: str
) -> None:
    """What an interrupted one has collected goes at once; one at work sees to it itself."""
    (made,) = record(home, {})
    id_ = asyncio.run(begin_run(home))
    state = home / "runs" / id_ / "state-00000001"
    state.mkdir(parents=True)
    collected = [state / "loop.json", *(state.with_name(name) for name in ("set.npz", "set.part"))]
    log = state.with_name("log.jsonl")
    for path in (*collected, log):
        path.touch()

    with contextlib.ExitStack() as stack:
        if holder is not None:
            stack.enter_context(run_lock.hold(home / "runs", holder or id_))
        deleted = run(home, "completions", "delete", made, "--yes")

    assert f"Deleted 1 answer.\n{id_} {said}\n" == deleted.stdout
    assert [is_left] * 3 == [path.exists() for path in collected]
    assert log.exists()


@pytest.mark.parametrize(
    ("serves", "then"),
    [(False, "this overwrites it: strop status"), (True, "strop overwrites it, within a minute\n")],
)
def test_that_another_program_keeps_what_is_deleted_is_said(
    home: Path, monkeypatch: pytest.MonkeyPatch, serves: bool, then: str
) -> None:
    """And until when; it has gone from every list, but the command has failed."""
    monkeypatch.setattr(writer, "EMPTYING_S", 0.01)
    monkeypatch.setattr(deletion_store, "_PAUSE_S", 0)
    (made,) = record(home, {"answer": "Paris."})

    with contextlib.ExitStack() as stack:
        if serves:
            stack.enter_context(hold(home, Serves("http://127.0.0.1:1", {}, {})))
        reader = stack.enter_context(contextlib.closing(sqlite3.connect(home / "strop.db")))
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM completions").fetchall()
        deleted = run(home, "completions", "delete", made, "--yes")
        is_left = b"Paris." in (home / "strop.db").read_bytes()
    after = run(home, "completions", "list").stdout

    assert (1, "Deleted 1 answer.\n", True) == (deleted.exit_code, deleted.stdout, is_left)
    assert f"can still be read in {home / 'strop.db'} and {home / 'strop.db'}-wal" in deleted.stderr
    assert f"once that has ended, {then}" in deleted.stderr
    assert "No answers.\n" == after
    assert b"Paris." not in (home / "strop.db").read_bytes()
    assert not (home / "strop.db-wal").exists()


def test_that_another_program_reads_is_no_matter_where_nothing_is_deleted(home: Path) -> None:
    """Say, a backup beside what is deleted each night."""
    record(home, {})

    with contextlib.closing(sqlite3.connect(home / "strop.db")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM completions").fetchall()
        reader.execute("INSERT INTO write_probe VALUES (7, x'00')")
        reader.commit()
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM completions").fetchall()
        deleted = run(home, "completions", "delete", "--older-than", "3000", "--yes")

    assert (0, "Deleted 0 answers.\n", "") == (deleted.exit_code, deleted.stdout, deleted.stderr)


def test_versions_that_learned_from_what_is_deleted_are_named(home: Path) -> None:
    """With what to do: they hold some of it until they are removed."""
    made, other = record(home, {}, {})
    for id_ in (made, other):
        run(home, "good", id_)
    asyncio.run(learn_twice(home, *(one.id for one in feedback(home) if one.completion == made)))

    of_neither = run(home, "completions", "delete", other, "--yes").stdout
    of_both = run(home, "completions", "delete", made, "--yes").stdout.splitlines()

    assert "Deleted 1 answer; 1 rating withdrawn.\n" == of_neither
    assert [
        "Deleted 1 answer; 1 rating withdrawn.",
        "v1, v2 learned from it, and may hold some of it until removed.",
        "That needs a strop that serves: strop serve",
        "Then remove each: strop adapters remove v1",
    ] == of_both


async def learn_twice(home: Path, rating: str) -> None:
    """Publish a version that learned from a rating, and one that continues it."""
    store = await Store.open(home / "strop.db")
    try:
        for parent, learned in ((None, [(rating, 1)]), ("v1", [])):
            version = await store.versions.reserve(base="b", parent=parent)
            await store.versions.publish(version.id, b"{}", learned, state="ready", actor="gate")
    finally:
        await store.close()


async def begin_run(home: Path) -> str:
    """Let a run begin; return its id."""
    store = await Store.open(home / "strop.db")
    try:
        made = await store.runs.create(
            objective="topr", preset="balanced", parent=None, base="b", requested_by="trigger"
        )
        await store.runs.update(made.id, RunUpdate(state="running"))
        return made.id
    finally:
        await store.close()


def test_what_is_deleted_of_one_key_leaves_the_conversations_of_others(home: Path) -> None:
    """Also where they are named alike: neither the hint nor the option reaches these."""
    mine = {"session": "project", "key_id": "key_a"}
    first, second, theirs = record(home, mine, mine, {**mine, "key_id": "key_b"})
    none, _ = record(home, {"session": "project"}, {"session": "project"})

    one = run(home, "completions", "delete", first, "--yes").stdout
    listed = run(home, "completions", "list", "--key", "key_a", "--json").stdout
    all_of = run(home, "completions", "delete", "--key", "key_a", input="y\n").stdout
    last = run(home, "completions", "delete", theirs, "--yes").stdout
    keyless = run(home, "completions", "delete", none, "--yes").stdout

    assert one.endswith(" strop completions delete --session project --key key_a\n")
    assert [second] == [one["id"] for one in json.loads(listed)["data"]]
    assert "Delete 1 answer made with key_a for good?" in all_of
    assert all_of.endswith("Deleted 1 answer.\n")
    assert "Deleted 1 answer.\n" == last
    assert keyless.endswith(" strop completions delete --session project --key local\n")


def test_a_name_that_keys_share_is_no_one_conversation(home: Path) -> None:
    """It is neither deleted nor exported before it is said whose is meant."""
    named = {"session": "conv 1"}
    one, _, other = record(home, *[{**named, "key_id": "key_a"}] * 2, {**named, "key_id": "key_b"})
    for id_ in (one, other):
        run(home, "good", id_)
    delete = ("completions", "delete", *("--session", "conv 1"), "--yes")
    export = ("export", "--format", "raw", *("--session", "conv 1"))

    refused = [run(home, *words) for words in (delete, export)]
    exported = run(home, *export, "--key", "key_b").stdout.splitlines()
    deleted = run(home, *delete, "--key", "key_b").stdout
    left = json.loads(run(home, "completions", "list", "--json").stdout)["data"]
    mine = run(home, *export).stdout.splitlines()

    said = (
        "Error: 2 conversations are called 'conv 1', one of each key: key_a (2 answers),"
        " key_b (1 answer); say whose with --key\n"
    )
    assert [(2, "", said)] * 2 == [(one.exit_code, one.stdout, one.stderr) for one in refused]
    assert [other] == [json.loads(line)["id"] for line in exported]
    assert "Deleted 1 answer; 1 rating withdrawn.\n" == deleted
    assert ["key_a"] * 2 == [found["key_id"] for found in left]
    assert [one] == [json.loads(line)["id"] for line in mine]


def test_old_answers_are_deleted_but_for_rated_conversations(home: Path) -> None:
    """The test's answers are of 1970."""
    record(home, {"session": "idle"}, {"session": "idle"})
    (rated,) = record(home, {"session": "rated"})
    run(home, "good", rated)

    never = run(home, "completions", "delete", "--older-than", str(10**12), "--yes")
    none = run(home, "completions", "delete", "--older-than", "36500", "--yes")
    some = run(home, "completions", "delete", "--older-than", "30", input="y\n")

    assert "Deleted 0 answers.\n" == none.stdout == never.stdout
    assert "the answers older than 30 days, where nothing is rated, for good?" in some.stdout
    assert some.stdout.endswith("Deleted 2 answers.\n")
    (left,) = json.loads(run(home, "completions", "list", "--json").stdout)["data"]
    assert rated == left["id"]


def test_an_answer_can_not_steer_the_terminal(home: Path) -> None:
    """Escape sequences are shown, not obeyed."""
    (made,) = record(home, {"answer": "\x1b]0;owned\x07\x1b[2Jred"})

    shown = [
        run(home, *arguments, color=True).stdout
        for arguments in (("good",), ("completions", "list"), ("completions", "show", made))
    ]

    assert all("red" in text and "\x1b" not in text and "\x07" not in text for text in shown)


def test_an_export_is_written_for_its_owner_alone(home: Path, tmp_path: Path) -> None:
    """To a file of mode 0600, or to standard output."""
    record(home, {"answer": "Paris."})
    run(home, "good")
    out = tmp_path / "ratings.jsonl"

    to_file = run(home, "export", "--format", "kto", "--out", str(out))
    to_stdout = run(home, "export", "--format", "kto")

    assert f"Wrote 1 line to {out}.\n" == to_file.stderr
    assert 0o600 == out.stat().st_mode & 0o777
    assert out.read_text(encoding="utf-8") == to_stdout.stdout
    assert [{"role": "assistant", "content": "Paris."}] == json.loads(to_stdout.stdout)[
        "completion"
    ]


def test_an_export_can_not_steer_the_terminal(home: Path) -> None:
    """There it is the same JSON in other words; in a pipe or a file it is as it came."""
    answer = "caf\u00e9 \u009b2J\u202eevil\u2066\x7f\U000e0001 \N{THUMBS UP SIGN}\u200d"
    record(home, {"answer": answer})
    run(home, "good")
    command = [sys.executable, "-m", "strop.proxy.cli", "export", "--format", "kto"]
    environment = {**ENVIRONMENT, "STROP_HOME": str(home)}
    seen_by_us, screen = pty.openpty()

    with os.fdopen(seen_by_us, "rb") as reader:
        subprocess.run(command, stdout=screen, env=environment, check=True)
        os.close(screen)
        shown = reader.readline().decode()
    piped = subprocess.run(command, capture_output=True, env=environment, check=True).stdout

    assert [answer] == [one["content"] for one in json.loads(shown)["completion"]]
    escaped = r"\u009b2J\u202eevil\u2066\u007f\udb40\udc01"
    assert f"café {escaped} \N{THUMBS UP SIGN}\u200d" in shown
    assert answer in piped.decode()


def test_an_export_holds_what_was_asked_for(home: Path) -> None:
    """By conversation, rater and time; and where that is nothing, it is said beside the output."""
    (first,) = record(home, {"session": "a"})
    (second,) = record(home, {"session": "b"})
    run(home, "rate", first, "good", "--rater", "ann")
    run(home, "rate", second, "bad")

    def exported(*options: str) -> tuple[list[str], str]:
        result = run(home, "export", "--format", "raw", *options)
        return [json.loads(line)["id"] for line in result.stdout.splitlines()], result.stderr

    assert ([first, second], "") == exported("--since", "2026-01-01")
    assert ([first, second], "") == exported("--since", "0001-01-01")
    assert ([first], "") == exported("--rater", "ann")
    assert ([second], "") == exported("--session", "b", "--since", "2026-01-01T08:00:00")
    assert ([first, second], "") == exported("--key", "local")
    nothing = "Nothing that is rated makes such a line.\n"
    assert ([], nothing) == exported("--since", "2999-01-01")
    assert ([], nothing) == exported("--session", "b", "--rater", "ann")
    assert ([], nothing) == exported("--session", "b", "--key", "key_a")
    assert ([], nothing) == exported("--session", "none")


def test_an_export_of_turns_has_the_steps_that_a_rating_credits(home: Path) -> None:
    """`strop good` is of the whole turn: of what was answered on the way too."""
    calls = Choice(index=0, message=b'{"content": "I look."}', chain=b"step")
    step, answer = record(home, {"choices": (calls,)}, {"after": b"step", "starts_turn": False})
    run(home, "good")

    exported = run(home, "export", "--format", "turns")

    (line,) = map(json.loads, exported.stdout.splitlines())
    assert [step, answer] == [one["id"] for one in line["answers"]]
    assert (answer, 1.0) == (line["completion_id"], line["rating"])


def test_settings_are_shown_with_their_origin(home: Path) -> None:
    """File, environment and flags, each above the one before; secrets only as set."""
    (home / "strop.toml").write_text('[server]\nport = 9000\nclient_keys = ["top-secret"]\n')
    environment = {"STROP_HOME": str(home), "STROP_LOG_LEVEL": "debug"}
    flags = ("--port", "9001", "--engine-key", "also-secret", "--set", "capture.mode=required")

    text = CliRunner(env=environment).invoke(main, ["config", *flags]).stdout
    found = json.loads(CliRunner(env=environment).invoke(main, ["config", "--json", *flags]).stdout)

    origins = {one["key"]: (one["value"], one["origin"]) for one in found["settings"]}
    assert str(home) == found["home"]
    assert list(KINDS) == list(origins)
    assert ("9001", "flag") == origins["server.port"]
    assert ('"required"', "flag") == origins["capture.mode"]
    assert ('"debug"', "environment STROP_LOG_LEVEL") == origins["log.level"]
    assert ("set", str(home / "strop.toml")) == origins["server.client_keys"]
    assert "secret" not in text + json.dumps(found)
    assert ["KEY", "VALUE", "FROM"] == text.splitlines()[0].split()


def test_status_says_that_nothing_runs(home: Path) -> None:
    """Exit code 1, and what is recorded all the same."""
    record(home, {})
    run(home, "good")

    text = run(home, "status")
    found = run(home, "status", "--json")
    elsewhere = run(home.parent, "status", "--home", str(home))

    assert (1, 1) == (text.exit_code, found.exit_code)
    start = f"strop does not serve from {home}; start it with: strop serve"
    assert start == text.stdout.splitlines()[0]
    assert f"{start} --home {home}" == elsewhere.stdout.splitlines()[0]
    assert "1 good, 0 bad, 1 in all" in text.stdout
    assert None is json.loads(found.stdout)["health"]
    assert {"good": 1, "bad": 0, "total": 1} == json.loads(found.stdout)["store"]["ratings"]


async def test_ratings_of_another_model_are_said_to_teach_nothing(
    qwen3: Path, tmp_path: Path
) -> None:
    """By the command that rates, and by `status`: who trains one model may ask another."""
    home = tmp_path / "home"
    ollama = FakeOllama(models={tag: base_of(tag) for tag in ("tiny:latest", "llama3.2:latest")})
    async with FakeEngine(ollama) as engine:
        settings = settings_for(
            engine.url, kind="ollama", model={"base": str(qwen3)}, engine={"model": "tiny"}
        )
        async with running(settings, home) as proxy:
            said = []
            with hold(home, Serves(proxy.url, {}, tell(settings))):
                for model in ("tiny", "llama3.2", "llama3.2"):
                    await proxy.chat(model=model)
                    said.append((await asyncio.to_thread(run, home, "bad")).stdout)
                shown = await asyncio.to_thread(run, home, "status")

    why = "Nothing is learned from it: llama3.2 is not known to be model.base\n"
    assert [False, True, True] == [why in one for one in said]
    assert "0 good, 3 bad, 3 in all\n" in shown.stdout
    assert "  2 of the newest 3 rated answers came from another model than" in shown.stdout


@pytest.fixture
def older_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose database an older strop wrote."""
    scripts = database.migrations()
    with monkeypatch.context() as older:
        older.setattr(database, "migrations", lambda: scripts[:2])
        database.connect(tmp_path / "strop.db").close()
    return tmp_path


def test_a_command_says_that_it_brings_an_older_home_up_to_date(older_home: Path) -> None:
    """Also one that only looks: from then on the older strop can't be gone back to."""
    first, second = run(older_home, "status"), run(older_home, "status")

    said = f"{older_home / 'strop.db'} is an older strop's, and is brought up to date now"
    assert [said] == [line.partition(":")[0] for line in first.stderr.splitlines()]
    assert "" == second.stderr


def test_a_command_leaves_the_home_of_an_older_strop_that_serves_alone(older_home: Path) -> None:
    """What that one writes next would not fit."""
    # The first strop that held a home said nothing there.
    with file_lock.hold(older_home / "serve.lock", b""):
        found = [run(older_home, *command) for command in (("completions", "list"), ("status",))]

    for one in found:
        assert (2, "") == (one.exit_code, one.stdout)
        assert f"an older strop serves from {older_home}" in one.stderr
    assert database.is_older(older_home / "strop.db")
    assert 0 == run(older_home, "completions", "list").exit_code
    assert not database.is_older(older_home / "strop.db")


def test_status_says_what_the_last_run_could_not_learn_from(home: Path) -> None:
    """Who rated it would wait for it in vain; and why a run made nothing."""
    too_long = {"ratings": 40, "left out: longer than the context, or than fits into memory": 2}

    learned = end_run(home, "passed", counts=too_long)
    passed = run(home, "status").stdout
    refused = end_run(home, "failed", reasons=["no rating can be learned from"])
    failed = run(home, "status").stdout
    worse = end_run(home, "rejected", reasons=["its samples are worse"])
    rejected = run(home, "status").stdout

    said = f"{learned}: passed; 2 left out: longer than the context, or than fits into memory"
    assert ["last run", said] == re.split("  +", passed.splitlines()[-1])
    assert failed.endswith(f"{refused}: failed; no rating can be learned from\n")
    assert rejected.endswith(f"{worse}: rejected; its samples are worse\n")


def end_run(home: Path, state: RunState, counts: object = None, reasons: object = None) -> str:
    """Let a run end so; return its id."""

    async def end() -> str:
        store = await Store.open(home / "strop.db")
        try:
            made = await store.runs.create(
                objective="topr", preset="balanced", parent=None, base="b", requested_by="trigger"
            )
            for next_ in ("running", "gating"):
                await store.runs.update(made.id, RunUpdate(state=next_))
            said = RunUpdate(
                state=state, counts=orjson.dumps(counts or {}), reasons=orjson.dumps(reasons or [])
            )
            await store.runs.update(made.id, said)
            return made.id
        finally:
            await store.close()

    return asyncio.run(end())


def test_status_says_that_what_runs_gives_no_answer(home: Path) -> None:
    """It may be stopping: then to start another would be refused."""
    with hold(home, Serves("http://127.0.0.1:9")):
        text = run(home, "status")

    assert 1 == text.exit_code
    first = text.stdout.splitlines()[0]
    assert "strop at http://127.0.0.1:9 gives no answer: it starts, stops, or is stuck" == first


async def test_serve_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """`strop serve` and `strop status`, as processes: home made 0700, exit 0.

    It finds out which kind its engine is, and doesn't say that it was asked for one.
    """
    home = tmp_path / "home"
    environment = {**ENVIRONMENT, "STROP_HOME": str(home)}
    strop = [sys.executable, "-m", "strop.proxy.cli"]

    async def output(*arguments: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            *strop, *arguments, env=environment, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await process.communicate()
        return process.returncode, printed.decode()

    async with FakeEngine(FakeVllm()) as engine:
        server = await asyncio.create_subprocess_exec(
            *(*strop, "serve", "--port", "0", "--engine-url", engine.url),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert server.stdout is not None
            async for line in server.stdout:
                if b"strop completions list" in line:
                    break
            code, text = await output("status")
            _, found = await output("status", "--json")
            _, config = await output("config", "--json")
            serves = serving(home)
            second, _ = await output("serve", "--port", "0", "--engine", "embedded")
        finally:
            server.terminate()
            await server.communicate()

    assert (0, 0) == (code, server.returncode)
    assert second == 2
    assert "vllm at http://127.0.0.1" in text
    assert "tiny (base)" in text
    assert "ok" == json.loads(found)["health"]["status"]
    assert ["server.port", "engine.url"] == json.loads(config)["running"]["differs"]
    assert serves is not None
    assert "vllm" == serves.found["engine.kind"]
    assert (0o700, 0o600) == (
        home.stat().st_mode & 0o777,
        (home / "admin.key").stat().st_mode & 0o777,
    )


def test_serve_says_that_it_waits_for_the_engine(tmp_path: Path) -> None:
    """And why it isn't ready; a person who has mistyped its URL sees more than nothing."""
    command = [sys.executable, "-m", "strop.proxy.cli", "serve", "--port", "0"]

    with subprocess.Popen(
        [*command, "--engine", "openai", "--engine-url", "http://127.0.0.1:1"],
        env={**ENVIRONMENT, "STROP_HOME": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        said = server.stderr.readline()
        server.terminate()
        server.stderr.read()

    assert "waiting for the engine url=http://127.0.0.1:1 reason=" in said
    assert "start it, or set engine.url" in said
    assert 0 == server.returncode


def test_serve_fails_where_the_store_cannot_be_used(tmp_path: Path) -> None:
    """With 1, as all that is neither typed nor set."""
    (tmp_path / "strop.db").write_bytes(b"no database" * 1000)
    engine = ("--engine", "openai", "--engine-url", "http://127.0.0.1:1")

    done = subprocess.run(
        [sys.executable, "-m", "strop.proxy.cli", "serve", "--port", "0", *engine],
        env={**ENVIRONMENT, "STROP_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert 1 == done.returncode
    assert "the file is no SQLite database" in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_refuses_a_home_of_a_newer_strop(home: Path, workers: str) -> None:
    """With 2, as all that another start would meet too: what restarts it gives up."""
    with contextlib.closing(sqlite3.connect(home / "strop.db")) as database:
        database.execute("PRAGMA user_version = 999")
    engine = ("--engine", "openai", "--engine-url", "http://127.0.0.1:1", "--workers", workers)

    done = subprocess.run(
        [sys.executable, "-m", "strop.proxy.cli", "serve", "--port", "0", *engine],
        env={**ENVIRONMENT, "STROP_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert 2 == done.returncode
    assert "a newer strop has written it" in done.stderr


def test_serve_fails_where_the_versions_cannot_be_kept(tmp_path: Path) -> None:
    """As where `adapters` leads to a disk that isn't mounted: one line says it."""
    (tmp_path / "adapters").symlink_to(tmp_path / "not mounted" / "adapters")
    engine = ("--engine", "openai", "--engine-url", "http://127.0.0.1:1")

    done = subprocess.run(
        [sys.executable, "-m", "strop.proxy.cli", "serve", "--port", "0", *engine],
        env={**ENVIRONMENT, "STROP_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert 1 == done.returncode
    assert f"File exists: '{tmp_path / 'adapters'}'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
def test_the_last_day_that_there_is_can_be_asked_for(home: Path, zone: str) -> None:
    """By any clock: elsewhere it is the year 10000 then."""
    record(home, {})
    words = ["export", "--format", "raw", "--since", "9999-12-31T23:59:59"]

    result = subprocess.run(
        [sys.executable, "-m", "strop.proxy.cli", *words],
        env={**ENVIRONMENT, "STROP_HOME": str(home), "TZ": zone},
        capture_output=True,
        text=True,
        check=False,
    )

    nothing = "Nothing that is rated makes such a line.\n"
    assert (0, "", nothing) == (result.returncode, result.stdout, result.stderr)


def test_a_closed_pipe_ends_an_export_quietly(home: Path) -> None:
    """As in `strop export --format raw | head -1`."""
    record(home, *({"answer": "x" * 50_000} for _ in range(8)))
    for one in json.loads(run(home, "completions", "list", "--json").stdout)["data"]:
        run(home, "good", one["id"])

    with subprocess.Popen(
        [sys.executable, "-m", "strop.proxy.cli", "export", "--format", "raw"],
        env={**ENVIRONMENT, "STROP_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as export:
        assert export.stdout is not None
        assert export.stderr is not None
        first = export.stdout.readline()
        export.stdout.close()
        said = export.stderr.read()

    assert json.loads(first)["id"].startswith("cmp_")
    assert "" == said


def test_help_imports_nothing_heavy() -> None:
    """`strop --help` answers at once: no server, no HTTP client, no database, no model."""
    heavy = (
        "{'starlette', 'uvicorn', 'httpx', 'aiosqlite', 'zstandard', 'prometheus_client', 'mlx'}"
    )
    script = f"import sys, strop.proxy.cli.root; print(sorted({heavy} & set(sys.modules)))"

    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert "[]\n" == result.stdout


def test_every_command_has_help_and_an_example() -> None:
    """And so has every option."""
    for context in cli_reference.contexts(main, None, "strop"):
        command, path = context.command, context.command_path
        assert command.help, path
        assert command.epilog is not None, path
        assert f"  {path}" in command.epilog, path
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{path} {parameter.name}"


def test_lists_of_commands_fit_a_terminal() -> None:
    """None is cut off where a line has 80 characters."""
    for context in cli_reference.contexts(main, None, "strop"):
        if isinstance(context.command, click.Group):
            context.terminal_width = 80
            assert "..." not in context.command.get_help(context).partition("Commands:")[2].replace(
                "run_...", ""
            ), context.command_path


def test_the_engine_takes_every_option_of_the_embedded_engine() -> None:
    """Its defaults are the engine's own; the key is no option, since a command line is for all."""
    engine = main.commands["engine"]
    defaults = {one.name: one.default for one in fields(Options) if one.name != "model"}

    assert {*defaults, "model"} - {"key"} == {one.name for one in engine.params}
    for parameter in engine.params:
        if isinstance(parameter, click.Option) and parameter.name in defaults:
            said = parameter.default
            assert not isinstance(said, str | int | float) or said == defaults[parameter.name]


def test_the_page_of_commands_is_their_help() -> None:
    """docs/cli.md lags: run `python tests/support/cli_reference.py`."""
    assert cli_reference.PAGE.read_text(encoding="utf-8") == cli_reference.render()


def test_the_version_is_the_packages() -> None:
    """`strop --version` names it."""
    result = CliRunner().invoke(main, ["--version"])

    assert (0, "strop 0.1.0\n") == (result.exit_code, result.stdout)


def test_a_rating_is_redacted_as_the_strop_that_serves_redacts(home: Path) -> None:
    """Its rules may stand in no file, and in no variable that this shell has."""
    (made,) = record(home, {})
    rules = load(home, flags={"capture.redact": ["sk-\\w+"]}).settings

    with hold(home, Serves("http://127.0.0.1:9", found=tell(rules))):
        run(home, "rate", made, "bad", "--comment", "my key sk-abc123")
    shown = run(home, "completions", "show", made).stdout

    assert "my key [redacted]" in shown
    assert "sk-abc123" not in shown


@pytest.mark.parametrize("command", ["demo", "eval"])
def test_what_computes_says_what_is_not_installed(
    home: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare install has neither torch nor mlx, and the module would fail at its imports."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    result = run(home, command, "--help")

    demo = f"the demo needs MLX: {installation.install('strop[mlx,demo]')}"
    says = {"demo": demo, "eval": NO_BACKEND}[command]
    assert (1, f"Error: {says}\n") == (result.exit_code, result.stderr)


def test_config_says_what_a_running_strop_was_started_with(home: Path) -> None:
    """Another file, and other flags: they count until it is restarted. Secrets stay unsaid."""
    flags = {"server.port": 9000, "engine.key": "sk-that-it-has-now"}
    asked = tell(load(home, flags=flags).settings)
    (home / "strop.toml").write_text('[engine]\nkey = "sk-that-it-will-have"\n', encoding="utf-8")

    with hold(home, Serves("http://127.0.0.1:9", asked)):
        text = run(home, "config").stdout
        same = run(home, "config", "--port", "9000", "--engine-key", "sk-that-it-has-now").stdout
        found = json.loads(run(home, "config", "--json").stdout)
    alone = json.loads(run(home, "config", "--json").stdout)
    with hold(
        home, Serves("http://127.0.0.1:9", tell(load(home, flags={"engine.key": ""}).settings))
    ):
        keyless = run(home, "config").stdout

    said = text.partition("strop at http://127.0.0.1:9 was started with others")[2]
    assert [["server.port", "9000"], ["engine.key", "another"]] == [
        line.split() for line in said.splitlines()[1:]
    ]
    assert "was started with others" not in same
    assert keyless.endswith("others, until it is restarted:\nengine.key  not set\n")
    differs = {"url": "http://127.0.0.1:9", "differs": ["server.port", "engine.key"]}
    assert (differs, None) == (found["running"], alone["running"])
    assert "sk-that" not in text + json.dumps(found)


@pytest.mark.parametrize(
    ("given", "says"), [(None, "which is closed"), (b"caf\xe9", "standard input as utf-8 text")]
)
def test_a_correction_that_cannot_be_read_is_refused(
    home: Path, given: bytes | None, says: str
) -> None:
    """Standard input is closed, or holds no text: one line, and the exit status of misuse."""
    (made,) = record(home, {})
    command = [sys.executable, "-m", "strop.proxy.cli", "rate", made, "bad", "--correction", "-"]

    result = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command] if given is None else command,
        input=given,
        env={**ENVIRONMENT, "STROP_HOME": str(home), "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        check=False,
    )

    assert 2 == result.returncode
    (line,) = result.stderr.decode().splitlines()
    assert says in line


def test_serve_says_when_it_begins_to_stop_and_when_it_has(tmp_path: Path) -> None:
    """For which signal, and how many answers still run."""
    command = [sys.executable, "-m", "strop.proxy.cli", "serve", "--port", "0"]

    with subprocess.Popen(
        [*command, "--engine", "openai", "--engine-url", "http://127.0.0.1:1"],
        env={
            **ENVIRONMENT,
            "STROP_HOME": str(tmp_path),
            "STROP_PORT": "tcp://10.0.0.1:8484",
            "STROP_SERVICE_HOST": "10.0.0.1",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        said = [server.stderr.readline()]
        while "waiting for the engine" not in said[-1]:
            said.append(server.stderr.readline())
        server.terminate()
        rest = server.stderr.read()

    assert 0 == server.returncode
    assert 'a service is set nothing variables="STROP_PORT, STROP_SERVICE_HOST"' in said[0]
    first, *_, last = rest.splitlines()
    assert first.endswith(": stopping signal=SIGTERM answers_running=0")
    assert last.endswith("INFO    serve: stopped")
