"""Text for people: tables, ages, excerpts."""

import json
import time

import pytest
from routes_app import completion

from strop.proxy import objects
from strop.proxy.cli import terminal
from strop.proxy.store.records import Choice, StoredCompletion


def test_tables_are_aligned() -> None:
    """Columns are as wide as their widest cell, and lines have no blanks at the end."""
    text = terminal.table([("a", "1"), ("bbbb", "")], ("NAME", "N"))

    assert "NAME  N\na     1\nbbbb" == text


def test_a_table_may_be_empty() -> None:
    """It is then no text."""
    assert "" == terminal.table([])


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-7300, "2 h ahead of the clock"),
        (-20, "20 s ahead of the clock"),
        (-0.9, "0 s ago"),
        (0, "0 s ago"),
        (59, "59 s ago"),
        (60, "1 min ago"),
        (3600, "1 h ago"),
        (86_399, "24 h ago"),
        (172_800, "2 d ago"),
    ],
)
def test_ages_are_in_their_largest_unit(seconds: float, said: str) -> None:
    """Below a second is no sign of a clock that was set back."""
    assert said == terminal.age(seconds)


def test_a_time_is_that_of_the_local_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its zone, since logs are in another one."""
    monkeypatch.setenv("TZ", "EST5")
    time.tzset()
    try:
        said = terminal.when(1_790_000_000_000)
    finally:
        monkeypatch.undo()
        time.tzset()

    assert said.startswith("2026-09-21 09:13:20 EST, ")


@pytest.mark.parametrize(
    ("num_bytes", "said"), [(2**18, "0.25 MiB"), (376 * 2**20, "376 MiB"), (3 * 2**29, "1.5 GiB")]
)
def test_sizes_are_in_the_unit_that_suits_them(num_bytes: int, said: str) -> None:
    """With three digits."""
    assert said == terminal.size(num_bytes)


@pytest.mark.parametrize(
    ("text", "width", "said"),
    [
        ("  one\n\ttwo ", 60, "one two"),
        ("abcdefgh", 8, "abcdefgh"),
        ("abcdefghi", 8, "abcde..."),
        ("\x1b[31mred", 60, "\N{REPLACEMENT CHARACTER}[31mred"),
        ("caf\u00e9 \u4e2d\u6587", 60, "caf\u00e9 \u4e2d\u6587"),
        ("one\r\ntwo\r", 60, "one two\N{REPLACEMENT CHARACTER}"),
        ("\u0645\u06cc\u200c\u062e\u0648", 60, "\u0645\u06cc\u200c\u062e\u0648"),
        ("\u202edlrow", 60, "\N{REPLACEMENT CHARACTER}dlrow"),
    ],
)
def test_excerpts_are_one_safe_line(text: str, width: int, said: str) -> None:
    """Of at most that many characters."""
    assert said == terminal.excerpt(text, width)


@pytest.mark.parametrize(
    ("value", "said"), [(1.0, "good"), (-1.0, "bad"), (0.5, "+0.5"), (-0.25, "-0.25"), (0.0, "+0")]
)
def test_ratings_are_words_where_they_are_some(value: float, said: str) -> None:
    """Else signed numbers."""
    assert said == terminal.rating(value)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "assistant", "content": "Hi"}, "Hi"),
        ({"text": " 4"}, " 4"),
        ({"content": None, "refusal": "No."}, "No."),
        (
            {
                "content": None,
                "tool_calls": [{"function": {"name": "ls"}}, {"function": {"name": "cat"}}],
            },
            "[calls ls, cat]",
        ),
        ({"content": "", "tool_calls": "none"}, ""),
        ({"content": [{"type": "text"}]}, ""),
        ("text", "text"),
    ],
)
def test_answers_are_read_whatever_they_hold(message: object, said: str) -> None:
    """A text, else the tools that are called."""
    assert said == objects.text_of(Choice(index=0, message=json.dumps(message).encode()))


def test_an_answer_that_is_missing_is_told_by_its_error() -> None:
    """Its first words are why there is none."""
    made = completion(state="upstream_error", error="the engine died", choices=())
    stored = StoredCompletion(made, "s", made.id, None, None, None)

    assert "the engine died" == terminal.first_words(stored)


def test_durations_are_in_the_unit_that_suits_them() -> None:
    """A minute and a half is the most that is said in seconds."""
    assert ["8 s", "89 s", "2 min", "75 min", "1.5 h"] == [
        terminal.duration(seconds) for seconds in (8.4, 89, 91, 4500, 5400)
    ]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (
            {
                "messages": [
                    {"role": "user", "content": "One?"},
                    {"role": "assistant", "content": "1"},
                    {"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]},
                    {"role": "tool", "content": "found"},
                ]
            },
            "a\nb",
        ),
        ({"prompt": "Once upon"}, "Once upon"),
        ({"prompt": [1, 2]}, ""),
        ({"messages": [{"role": "system", "content": "Be kind."}]}, ""),
        ("no object", ""),
    ],
)
def test_what_was_asked_is_the_last_of_a_users_words(request_: object, said: str) -> None:
    """Or the prompt; nothing where nobody's words are in it."""
    assert said == objects.asked_in(json.dumps(request_).encode())
