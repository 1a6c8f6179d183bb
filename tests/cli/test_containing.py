"""Answers that hold a name: listed, and forgotten."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from recorded_home import empty_home, record

from strop.proxy.cli.root import main


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with an empty store."""
    return empty_home(tmp_path)


def run(home: Path, *arguments: str, **options: Any) -> Result:
    """Run a command of `strop completions` with this home."""
    words = ["completions", *arguments, "--home", str(home)]
    return CliRunner().invoke(main, words, **options)


def listed(home: Path, *options: str) -> list[str]:
    """Return the ids that `completions list` shows."""
    shown = run(home, "list", "--limit", "100", *options, "--json")
    return [one["id"] for one in json.loads(shown.stdout)["data"]]


def asking(text: str) -> bytes:
    """Return a request that asks so; what is not ASCII is escaped."""
    return json.dumps({"messages": [{"role": "user", "content": text}]}).encode()


def test_what_is_deleted_is_what_is_listed(home: Path) -> None:
    """How many is said before; of others nothing goes."""
    asked = {"request": asking("Who is José?")}
    mine = {**asked, "session": "mine", "created_ms": 1000}
    _, other, none = record(home, mine, asked, {"session": "mine"})
    answered = record(home, *[{"answer": "JOSÉ.", "key_id": "key_b"}] * 30)
    named = ("--containing", "josé")

    of_key = listed(home, *named, "--key", "key_b")
    refused = run(home, "delete", *named, "--key", "key_b", input="n\n")
    kept = listed(home, *named)
    of_mine = run(home, "delete", *named, "--session", "mine", "--yes")
    left = listed(home, *named)
    all_of = run(home, "delete", *named, input="y\n")

    assert answered[::-1] == of_key
    assert "Delete 30 answers made with key_b, found by 'josé', for good? [y/N]" in refused.stdout
    assert (1, 32) == (refused.exit_code, len(kept))
    assert "Deleted 1 answer.\n" == of_mine.stdout
    assert sorted([*answered, other]) == sorted(left)
    assert "Delete 31 answers, found by 'josé', for good? [y/N]" in all_of.stdout
    assert all_of.stdout.endswith("Deleted 31 answers.\n")
    assert [none] == listed(home)


def test_all_that_hold_it_go_however_many(home: Path) -> None:
    """More than a list shows at once."""
    record(home, *[{"request": asking("José")}] * 120)

    done = run(home, "delete", "--containing", "josé", "--yes")

    assert "Deleted 120 answers.\n" == done.stdout


def test_where_nothing_holds_it_nothing_is_asked(home: Path) -> None:
    """Neither by the list nor by the deletion."""
    (made,) = record(home, {})

    results = [run(home, verb, "--containing", "josé") for verb in ("list", "delete")]

    assert [(0, "No answers.\n")] * 2 == [(one.exit_code, one.stdout) for one in results]
    assert [made] == listed(home)


def test_the_rest_of_a_list_holds_it_too(home: Path) -> None:
    """What was asked for is in the command to go on with."""
    first, _, second, _ = record(
        home,
        *({"request": asking("Ann O'Hara"), "created_ms": 1}, {"created_ms": 2}),
        *({"request": asking("Ann O'Hara"), "created_ms": 3}, {"created_ms": 4}),
    )

    shown = run(home, "list", "--containing", "o'hara", "--limit", "1").stdout.splitlines()
    again = shlex.split(shown[-1].removeprefix("More: strop "))
    rest = CliRunner().invoke(main, again).stdout.splitlines()

    assert [second, first] == [shown[1].split()[0], rest[1].split()[0]]
    assert 2 == len(rest)


@pytest.mark.parametrize("verb", ["list", "delete"])
@pytest.mark.parametrize("text", ["", " \n"])
def test_no_text_is_refused(home: Path, verb: str, text: str) -> None:
    """It would be in all, as where a script's variable is not set."""
    (made,) = record(home, {})

    refused = run(home, verb, "--containing", text, "--session", "mine")

    assert 2 == refused.exit_code
    assert "'--containing': expected some text, got none" in refused.stderr
    assert [made] == listed(home)


@pytest.mark.parametrize("other", [("cmp_1",), ("--older-than", "30")])
def test_a_text_goes_with_a_conversation_or_a_key_alone(home: Path, other: tuple[str, ...]) -> None:
    """What is meant by both of these is not clear enough to delete."""
    refused = run(home, "delete", *other, "--containing", "Ann", "--yes")

    assert 2 == refused.exit_code
    assert "or any of --session, --key and --containing" in refused.stderr
