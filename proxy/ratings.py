"""Ratings as people give them: one value in [-1, 1], and the requests and headers that carry it.

Pure. Does not know which completion is meant, or what became of earlier ratings.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal

from strop.proxy.errors import BadRequest
from strop.proxy.ids import completion_id
from strop.proxy.message import as_json
from strop.proxy.store.records import NewFeedback, Revision, Scope

MAX_COMMENT_CHARS: Final = 10_000
MAX_CORRECTION_CHARS: Final = 1_000_000
MAX_TAGS: Final = 32
MAX_TAG_CHARS: Final = 64
MAX_RATER_CHARS: Final = 128
MAX_ID_CHARS: Final = 256
MAX_CHOICE: Final = 65_535

FEEDBACK_FIELDS: Final = (
    "completion_id", "choice", "rating", "comment", "correction", "tags", "rater", "scope", "id",
)  # fmt: skip
REVISION_FIELDS: Final = ("rating", "comment", "correction", "tags")

_WORDS: Mapping[str, float] = {
    "good": 1.0,
    "up": 1.0,
    "true": 1.0,
    "bad": -1.0,
    "down": -1.0,
    "false": -1.0,
}
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_HEADER_PARAMETER = re.compile(
    r';\s*(?P<name>[A-Za-z]+)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"\s*(?=;|$)|(?P<bare>[^;]*))'
)


@dataclass(frozen=True, slots=True)
class HeaderFeedback:
    """What X-Strop-Feedback says; a `rating` of None is an undo. `original` is JSON."""

    rating: float | None
    original: bytes
    comment: str | None = None
    scope: Scope = "turn"


def parse_rating(value: object) -> float:
    """Return a rating, in any of its forms, as one value in [-1, 1].

    Words count in any case; stars 1 to 5 spread evenly from -1 to 1.

    Raises:
        BadRequest: it is none of the forms.
    """
    if isinstance(value, bool):
        return 1.0 if value else -1.0
    rating: float | None = None
    if isinstance(value, int | float):
        rating = _within(value, -1, 1)
    elif isinstance(value, str):
        word = value.strip().lower()
        rating = _WORDS.get(word)
        if rating is None and _NUMBER.fullmatch(word):
            rating = _within(float(word), -1, 1)
    elif isinstance(value, dict) and list(value) == ["stars"]:
        stars = value["stars"]
        if isinstance(stars, int | float) and not isinstance(stars, bool):
            rating = _within(stars, 1, 5)
            rating = None if rating is None else (rating - 3) / 2
    if rating is None:
        raise BadRequest(
            'expected `rating` to be "good" or "bad", "up" or "down", true or false, a number from'
            f' -1 to 1, or {{"stars": 1 to 5}}; got {_shown(value)}',
            param="rating",
        )
    return rating


def parse_feedback(
    body: Mapping[str, object],
    *,
    key_id: str,
    idempotency_key: str | None = None,
    source: Literal["api", "cli"] = "api",
) -> NewFeedback:
    """Return the rating in the body of POST /v1/feedback.

    Args:
        body: the JSON object.
        key_id: the id of the client key that sent it.
        idempotency_key: the Idempotency-Key header; the same as `id` in the body.
        source: by which way it came.

    Raises:
        BadRequest: a field is unknown, missing or wrong.
    """
    _refuse_unknown(body, FEEDBACK_FIELDS)
    completion = _text(body, "completion_id", MAX_ID_CHARS)
    if completion is None:
        raise BadRequest(
            "expected `completion_id`: the X-Strop-Completion-Id of an answer, or its `id`",
            param="completion_id",
        )
    choice = _or_default(body, "choice", 0)
    if isinstance(choice, bool) or not isinstance(choice, int) or not 0 <= choice <= MAX_CHOICE:
        raise BadRequest(
            f"expected `choice` to be the index of an answer, from 0; got {_shown(choice)}",
            param="choice",
        )
    identity = _text(body, "id", MAX_ID_CHARS)
    if idempotency_key is not None:
        if identity not in (None, idempotency_key):
            raise BadRequest(
                "expected `id` and the Idempotency-Key header to be equal; send one of them",
                param="id",
            )
        identity = _text({"id": idempotency_key}, "id", MAX_ID_CHARS)
    rating, original = _rating(body)
    return NewFeedback(
        completion=completion_id(completion),
        key_id=key_id,
        rating=rating,
        original=original,
        choice=choice,
        comment=_text(body, "comment", MAX_COMMENT_CHARS),
        correction=_text(body, "correction", MAX_CORRECTION_CHARS),
        tags=_tags(body),
        rater=_text(body, "rater", MAX_RATER_CHARS) or "",
        source=source,
        scope=_scope(_or_default(body, "scope", "completion")),
        idempotency=identity,
        digest=sha256(as_json(body)).digest(),
    )


def parse_revision(body: Mapping[str, object]) -> Revision:
    """Return what the body of PUT /v1/feedback/{id} sets; what it leaves out is taken away.

    It sets no scope.

    Raises:
        BadRequest: a field is unknown, missing or wrong.
    """
    _refuse_unknown(body, REVISION_FIELDS)
    rating, original = _rating(body)
    return Revision(
        rating=rating,
        original=original,
        comment=_text(body, "comment", MAX_COMMENT_CHARS),
        correction=_text(body, "correction", MAX_CORRECTION_CHARS),
        tags=_tags(body),
    )


def parse_header(value: bytes) -> HeaderFeedback:
    """Return what an X-Strop-Feedback header says.

    It holds a rating or `undo`, then parameters as in other headers (RFC 9110, section 5.6.6):
    `bad; comment="too long; say less"; scope=completion`. Text is UTF-8.

    Raises:
        BadRequest: it can't be understood.
    """
    try:
        said = value.decode()
    except UnicodeDecodeError:
        said = value.decode("latin-1")
    said = said.strip().rstrip("; \t")
    word = said.partition(";")[0]
    parameters = _header_parameters(said, len(word))
    word = word.strip()
    if word.lower() == "undo":
        if parameters:
            raise _bad_header("`undo` alone, since it takes no parameters", said)
        return HeaderFeedback(None, as_json("undo"))
    try:
        rating = parse_rating(word)
    except BadRequest as error:
        raise _bad_header("a rating or `undo` first", said) from error
    return HeaderFeedback(
        rating,
        as_json(word),
        comment=_text(parameters, "comment", MAX_COMMENT_CHARS),
        scope=_scope(parameters.get("scope", "turn")),
    )


def _header_parameters(said: str, position: int) -> dict[str, str]:
    parameters: dict[str, str] = {}
    while position < len(said):
        found = _HEADER_PARAMETER.match(said, position)
        name = found["name"].lower() if found else ""
        if found is None or name not in ("comment", "scope") or name in parameters:
            raise _bad_header("a rating, then at most `; comment=...` and `; scope=...`", said)
        quoted = found["quoted"]
        parameters[name] = (
            found["bare"].strip() if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        )
        position = found.end()
    return parameters


def _bad_header(expected: str, said: str) -> BadRequest:
    return BadRequest(
        f"expected X-Strop-Feedback to hold {expected}; got {_shown(said)}; for example"
        ' `good` or `bad; comment="too long"`',
        param="X-Strop-Feedback",
    )


def _within(value: float, lowest: float, highest: float) -> float | None:
    # NaN is in no range; the sum turns -0.0 into 0.0.
    return float(value) + 0.0 if lowest <= value <= highest else None


def _rating(body: Mapping[str, object]) -> tuple[float, bytes]:
    """Return the rating of a body, and the JSON of what the person gave."""
    given = body.get("rating")
    return parse_rating(given), as_json(given)


def _or_default(body: Mapping[str, object], name: str, default: object) -> object:
    value = body.get(name)
    return default if value is None else value


def _scope(value: object) -> Scope:
    if value == "completion":
        return "completion"
    if value == "turn":
        return "turn"
    raise BadRequest(
        f'expected `scope` to be "completion" or "turn"; got {_shown(value)}', param="scope"
    )


def _tags(body: Mapping[str, object]) -> tuple[str, ...]:
    """Return the tags in their order, each once."""
    given = body.get("tags")
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) > MAX_TAGS or None in given:
        raise BadRequest(
            f"expected `tags` to be a list of at most {MAX_TAGS} strings; got {_shown(given)}",
            param="tags",
        )
    tags = (_text({"tags": tag}, "tags", MAX_TAG_CHARS) for tag in given)
    return tuple(dict.fromkeys(tag for tag in tags if tag is not None))


def _text(body: Mapping[str, object], name: str, max_chars: int) -> str | None:
    """Return a text field; one that is absent, null or blank is None."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > max_chars:
        raise BadRequest(
            f"expected `{name}` to be a string of at most {max_chars} characters;"
            f" got {_shown(value)}",
            param=name,
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRequest(
            f"expected `{name}` to be Unicode text; got a lone surrogate", param=name
        ) from None
    return value if value.strip() else None


def _refuse_unknown(body: Mapping[str, object], allowed: Iterable[str]) -> None:
    unknown = [name for name in body if name not in allowed]
    if unknown:
        names = ", ".join(map(_shown, unknown[:8]))
        raise BadRequest(
            f"unknown field {names}; allowed are {', '.join(allowed)}", param=unknown[0]
        )


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str) and len(value) > 80:
        return f"a string of {len(value)} characters"
    if isinstance(value, list) and len(value) > 8:
        return f"a list of {len(value)} entries"
    text = as_json(value).decode(errors="replace")
    return text if len(text) <= 120 else text[:120] + "..."
