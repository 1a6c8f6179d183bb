"""Ratings: every form that people give, and the requests and headers that carry them."""

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.proxy import ratings
from strop.proxy.errors import BadRequest
from strop.proxy.ratings import (
    HeaderFeedback,
    parse_feedback,
    parse_header,
    parse_rating,
    parse_revision,
)
from strop.proxy.store.records import NewFeedback, Revision

BODY: dict[str, Any] = {"completion_id": "cmp_1", "rating": "good"}


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("good", 1.0),
        (" Good ", 1.0),
        ("UP", 1.0),
        ("true", 1.0),
        ("bad", -1.0),
        ("down", -1.0),
        ("False", -1.0),
        (True, 1.0),
        (False, -1.0),
        ("+1", 1.0),
        ("-1", -1.0),
        ("0.5", 0.5),
        ("-.25", -0.25),
        ("1.", 1.0),
        (1, 1.0),
        (-1, -1.0),
        (0, 0.0),
        (0.3, 0.3),
        ({"stars": 1}, -1.0),
        ({"stars": 2}, -0.5),
        ({"stars": 3}, 0.0),
        ({"stars": 4}, 0.5),
        ({"stars": 5}, 1.0),
        ({"stars": 4.5}, 0.75),
    ],
)
def test_a_rating_is_one_value(given_: object, expected: float) -> None:
    """Words, truth, numbers and stars are all one value from -1 to 1."""
    rating = parse_rating(given_)

    assert expected == rating
    assert isinstance(rating, float)


def test_no_rating_is_a_negative_zero() -> None:
    """Zero has one form, so equal ratings are equal in the store."""
    assert math.copysign(1, parse_rating(-0.0)) == 1
    assert math.copysign(1, parse_rating("-0")) == 1


@pytest.mark.parametrize(
    "given_",
    [
        None,
        "",
        "great",
        "nan",
        "inf",
        "1e0",
        "0x1",
        "1_0",
        "٠",
        "1.01",
        "5",
        1.0001,
        -2,
        5,
        10**400,
        math.nan,
        math.inf,
        -math.inf,
        [],
        ["good"],
        {},
        {"stars": 0},
        {"stars": 6},
        {"stars": True},
        {"stars": "5"},
        {"stars": math.nan},
        {"stars": None},
        {"stars": 3, "of": 5},
        {"star": 3},
    ],
)
def test_what_is_no_rating_is_refused(given_: object) -> None:
    """Anything else is an error that lists the forms."""
    with pytest.raises(BadRequest, match=r'"good" or "bad".*"stars": 1 to 5.*; got ') as caught:
        parse_rating(given_)

    assert caught.value.param == "rating"


@given(st.floats(-1, 1) | st.integers(-1, 1))
def test_numbers_in_range_are_kept(value: float) -> None:
    """A number from -1 to 1 is itself."""
    assert value == parse_rating(value)
    assert -1 <= parse_rating(value) <= 1


def test_a_body_with_everything() -> None:
    """Each field of a POST goes where it belongs, and the original is kept as JSON."""
    body = {
        "completion_id": "cmp_1",
        "choice": 2,
        "rating": {"stars": 2},
        "comment": "too long",
        "correction": "Short.",
        "tags": ["style", "length", "style"],
        "rater": "ann",
        "scope": "turn",
        "id": "once",
    }

    feedback = parse_feedback(body, key_id="key_1", source="cli")

    expected = NewFeedback(
        completion="cmp_1",
        key_id="key_1",
        rating=-0.5,
        original=b'{"stars":2}',
        choice=2,
        comment="too long",
        correction="Short.",
        tags=("style", "length"),
        rater="ann",
        source="cli",
        scope="turn",
        idempotency="once",
        digest=feedback.digest,
    )
    assert expected == feedback
    assert 32 == len(feedback.digest)


def test_a_body_with_the_least() -> None:
    """A completion and a rating suffice; null and blank are as if absent."""
    least = parse_feedback(BODY, key_id="local")
    blank = parse_feedback(
        {
            **BODY,
            "choice": None,
            "comment": " ",
            "correction": "",
            "tags": ["", " "],
            "rater": None,
            "scope": None,
            "id": None,
        },
        key_id="local",
    )

    expected = NewFeedback(
        completion="cmp_1", key_id="local", rating=1.0, original=b'"good"', digest=least.digest
    )
    assert expected == least
    assert (None, None, (), "", "completion", None, 0) == (
        blank.comment,
        blank.correction,
        blank.tags,
        blank.rater,
        blank.scope,
        blank.idempotency,
        blank.choice,
    )


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"ratings": 1}, "ratings", 'unknown field "ratings"; allowed are completion_id, choice,'),
        ({"a": 1, "b": 1}, "a", 'unknown field "a", "b"; allowed are'),
        ({"completion_id": None}, "completion_id", "expected `completion_id`"),
        ({"completion_id": " "}, "completion_id", "expected `completion_id`"),
        ({"completion_id": 7}, "completion_id", "expected `completion_id` to be a string of at"),
        ({"completion_id": "x" * 257}, "completion_id", "got a string of 257 characters"),
        (
            {"choice": -1},
            "choice",
            "expected `choice` to be the index of an answer, from 0; got -1",
        ),
        ({"choice": True}, "choice", "got true"),
        ({"choice": 1.0}, "choice", "got 1.0"),
        ({"choice": 2**70}, "choice", "expected `choice`"),
        ({"rating": None}, "rating", "got nothing"),
        ({"comment": 1}, "comment", "expected `comment` to be a string of at most 10000"),
        ({"comment": "x" * 10_001}, "comment", "got a string of 10001 characters"),
        ({"comment": "\ud83d"}, "comment", "got a lone surrogate"),
        ({"correction": ["x"]}, "correction", 'got ["x"]'),
        ({"correction": "x" * 1_000_001}, "correction", "of at most 1000000 characters"),
        ({"tags": "x"}, "tags", 'expected `tags` to be a list of at most 32 strings; got "x"'),
        ({"tags": ["x"] * 33}, "tags", "got a list of 33 entries"),
        ({"tags": [None]}, "tags", "`tags` to be a list of at most 32 strings; got [null]"),
        ({"tags": [1]}, "tags", "expected `tags` to be a string of at most 64 characters; got 1"),
        ({"rater": "x" * 129}, "rater", "of at most 128 characters"),
        ({"scope": "session"}, "scope", 'expected `scope` to be "completion" or "turn"; got "sess'),
        ({"scope": ["turn"]}, "scope", 'got ["turn"]'),
        ({"id": 1}, "id", "expected `id` to be a string"),
    ],
)
def test_a_wrong_body_is_refused(change: dict[str, Any], param: str, said: str) -> None:
    """An error names the field, what was expected and what came."""
    with pytest.raises(BadRequest, match=re.escape(said)) as caught:
        parse_feedback({**BODY, **change}, key_id="local")

    assert param == caught.value.param


def test_the_idempotency_header_is_the_id() -> None:
    """The header does what `id` does; both are fine if equal."""
    by_header = parse_feedback(BODY, key_id="local", idempotency_key="a")
    by_both = parse_feedback({**BODY, "id": "a"}, key_id="local", idempotency_key="a")

    assert "a" == by_header.idempotency == by_both.idempotency
    with pytest.raises(BadRequest, match="Idempotency-Key header to be equal"):
        parse_feedback({**BODY, "id": "b"}, key_id="local", idempotency_key="a")
    with pytest.raises(BadRequest, match="expected `id` to be a string of at most 256"):
        parse_feedback(BODY, key_id="local", idempotency_key="a" * 257)


def test_the_digest_tells_bodies_apart() -> None:
    """Equal bodies have equal digests in any order of fields; a change changes it."""
    digest = parse_feedback(BODY, key_id="local").digest

    assert digest == parse_feedback(dict(reversed(BODY.items())), key_id="other").digest
    assert digest != parse_feedback({**BODY, "rating": "bad"}, key_id="local").digest
    assert digest != parse_feedback({**BODY, "comment": "x"}, key_id="local").digest


def test_a_revision_sets_everything() -> None:
    """A PUT gives the whole rating anew; what it leaves out is taken away."""
    body = {"rating": -1, "comment": "c", "correction": "d", "tags": ["e"]}

    assert Revision(-1.0, b"-1", "c", "d", ("e",)) == parse_revision(body)
    assert Revision(1.0, b"true") == parse_revision({"rating": True})
    with pytest.raises(BadRequest, match='unknown field "completion_id"; allowed are rating, comm'):
        parse_revision(BODY)
    with pytest.raises(BadRequest, match="expected `rating`"):
        parse_revision({"comment": "x"})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"good", HeaderFeedback(1.0, b'"good"')),
        (b" Bad ", HeaderFeedback(-1.0, b'"Bad"')),
        (b"0.5", HeaderFeedback(0.5, b'"0.5"')),
        (b"undo", HeaderFeedback(None, b'"undo"')),
        (b"UNDO;", HeaderFeedback(None, b'"undo"')),
        (b"bad; comment=too long", HeaderFeedback(-1.0, b'"bad"', "too long")),
        (b"bad;comment= too long ;", HeaderFeedback(-1.0, b'"bad"', "too long")),
        (b'bad; Comment="a; \\"b\\" = c" ', HeaderFeedback(-1.0, b'"bad"', 'a; "b" = c')),
        (b'bad; comment=say "no"', HeaderFeedback(-1.0, b'"bad"', 'say "no"')),
        (b"bad; comment=", HeaderFeedback(-1.0, b'"bad"')),
        (b"good; scope=completion", HeaderFeedback(1.0, b'"good"', None, "completion")),
        (b"good; scope=turn; comment=x", HeaderFeedback(1.0, b'"good"', "x", "turn")),
        ("good; comment=naïve".encode(), HeaderFeedback(1.0, b'"good"', "naïve")),
        ("good; comment=naïve".encode("latin-1"), HeaderFeedback(1.0, b'"good"', "naïve")),
    ],
)
def test_a_header_rates(value: bytes, expected: HeaderFeedback) -> None:
    """A header holds a rating or an undo, and may add a comment and a scope."""
    assert expected == parse_header(value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"", "to hold a rating or `undo` first; got"),
        (b"great", 'to hold a rating or `undo` first; got "great"'),
        (b"2", "to hold a rating or `undo` first"),
        (b"; comment=x", "to hold a rating or `undo` first"),
        (b"undo; comment=x", "`undo` alone, since it takes no parameters"),
        (b"bad; because=x", "to hold a rating, then at most `; comment=...` and `; scope=...`"),
        (b"bad; comment=x; comment=y", "then at most"),
        (b"bad; too long", "then at most"),
        (b"good; scope=all", 'expected `scope` to be "completion" or "turn"; got "all"'),
        (b"good; comment=" + b"x" * 10_001, "expected `comment` to be a string of at most 10000"),
    ],
)
def test_a_wrong_header_is_refused(value: bytes, said: str) -> None:
    """A header that can't be understood is an error that shows how it is written."""
    with pytest.raises(BadRequest, match=re.escape(said)):
        parse_header(value)


@given(st.binary(max_size=60))
def test_any_header_is_understood_or_refused(value: bytes) -> None:
    """No header breaks the parser."""
    try:
        found = parse_header(value)
    except BadRequest as error:
        assert error.message.startswith("expected ")  # noqa: PT017
    else:
        assert found.rating is None or -1 <= found.rating <= 1
        assert isinstance(json.loads(found.original), str)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_a_quoted_comment_holds_any_text(comment: str) -> None:
    """Whatever a comment says comes through in quotes."""
    quoted = comment.replace("\\", "\\\\").replace('"', '\\"')

    found = parse_header(f'good; comment="{quoted}"'.encode())

    assert (comment if comment.strip() else None) == found.comment


def test_the_bounds_are_those_of_the_fields() -> None:
    """Texts of exactly the greatest length are taken."""
    body = {
        **BODY,
        "comment": "x" * ratings.MAX_COMMENT_CHARS,
        "correction": "x" * ratings.MAX_CORRECTION_CHARS,
        "tags": [f"{n:064}" for n in range(ratings.MAX_TAGS)],
        "choice": ratings.MAX_CHOICE,
    }

    feedback = parse_feedback(body, key_id="local")

    assert ratings.MAX_TAGS == len(feedback.tags)
    assert ratings.MAX_CHOICE == feedback.choice
