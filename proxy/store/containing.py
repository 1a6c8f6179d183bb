"""Completions in whose conversation some text stands: what of them is looked into, and how.

Pure: makes queries and decodes their rows; runs nothing.

    request     what the model was given to read, and who asks, as the client says
    choices     the answers: words, thoughts, tool calls
    feedback    of each revision the comment, the correction and the tags

Not looked into: the tools on offer; a prompt that came as token ids; images and sounds; the names
of models, sessions, keys and raters.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final
from unicodedata import normalize

from strop.proxy.errors import BadRequest
from strop.proxy.store import pack
from strop.proxy.store.database import Query, Row
from strop.proxy.wire import body

_READ: Final = ("messages", "prompt", "suffix", "documents", "prediction", "user", "metadata")
# Members that hold no words wherever they stand: else `user` or `text` would be in every chat.
_LABELS: Final = frozenset(
    {"role", "type", "id", "tool_call_id", "format", "detail", "data", "file_data", "signature"}
)
_DATA_URL: Final = re.compile("data:[^,]{0,100};base64,")
# What tools return, and what they are called with, is often JSON as text, maybe several times over.
_ESCAPED: Final = re.compile(r"\\{1,8}u([0-9a-fA-F]{4})")


def requests(ids: Sequence[str]) -> Query[Row]:
    """Return the query for the rows that `holding` takes first."""
    return Query(f"SELECT id, request FROM completions WHERE id IN ({_places(ids)})", ids, tuple)


def answers(ids: Sequence[str]) -> Query[Row]:
    """Return the query for the rows that `holding` takes second."""
    sql = f"SELECT completion, message FROM choices WHERE completion IN ({_places(ids)})"
    return Query(sql, ids, tuple)


def ratings(ids: Sequence[str]) -> Query[Row]:
    """Return the query for the rows that `holding` takes third."""
    sql = f"""SELECT f.completion, r.comment, r.correction, r.tags
FROM feedback AS f CROSS JOIN feedback_revisions AS r ON r.feedback = f.id
WHERE f.completion IN ({_places(ids)})"""
    return Query(sql, ids, tuple)


def holding(
    text: str, rows: Iterable[Row], choice_rows: Iterable[Row], rating_rows: Iterable[Row]
) -> set[str]:
    """Return the ids of those completions that hold `text`, in whatever case.

    Takes a while. An accent may be a character of its own, here or there.
    """
    # Not what is looked into: to normalise that may take as long as somebody likes.
    written = (text, normalize("NFC", text), normalize("NFD", text))
    forms = frozenset(one.casefold() for one in written)
    found: set[str] = set()

    def look_into(some: Iterable[Row], read: Callable[..., Iterator[str]]) -> None:
        for id_, *stored in some:
            if id_ not in found and any(_holds(said, forms) for said in read(*stored)):
                found.add(id_)

    look_into(rows, _asked)
    look_into(choice_rows, _answered)
    look_into(rating_rows, _said)
    return found


def _asked(packed: bytes) -> Iterator[str]:
    value = _value(pack.unpack_bytes(packed))
    if isinstance(value, dict):
        value = [value.get(member) for member in _READ]
    return _texts(value)


def _answered(packed: bytes) -> Iterator[str]:
    return _texts(_value(pack.unpack_bytes(packed)))


def _said(comment: str | None, correction: str | None, tags: str) -> Iterator[str]:
    return _texts([comment, correction, _value(tags.encode())])


def _value(stored: bytes) -> object:
    """Return the JSON value in `stored`, or its text where it holds none."""
    try:
        return body.loads(stored)
    except BadRequest:
        return stored.decode(errors="replace")


def _texts(value: object) -> Iterator[str]:
    """Yield the texts in a JSON value, however deep, in no order."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            if not _DATA_URL.match(one):
                yield one
        elif isinstance(one, list):
            left += one
        elif isinstance(one, dict):
            left += (held for member, held in one.items() if member not in _LABELS)


def _holds(said: str, forms: frozenset[str]) -> bool:
    folded = said.casefold()
    if any(form in folded for form in forms):
        return True
    if r"\u" not in folded:
        return False
    folded = _unescaped(said).casefold()
    return any(form in folded for form in forms)


def _unescaped(text: str) -> str:
    """Return `text` with what JSON escapes in it stand for; two may be halves of one character."""
    plain = _ESCAPED.sub(lambda escape: chr(int(escape[1], 16)), text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _places(ids: Sequence[str]) -> str:
    return ", ".join("?" * len(ids))
