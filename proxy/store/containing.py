"""Completions in whose conversation some text stands: what of them is looked into, and how.

Pure: makes queries and decodes their rows; runs nothing.

    request     what the model was given to read, and who asks, as the client says
    choices     the answers: words, thoughts, tool calls
    feedback    of each revision the comment, the correction and the tags

Not looked into: the tools on offer; a prompt that came as token ids; images and sounds; the names
of models, sessions, keys and raters. Nor what is damaged, beyond what of it can be read as it is.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final
from unicodedata import normalize

from strop.proxy.errors import BadRequest
from strop.proxy.store import pack
from strop.proxy.store.database import Query, Row
from strop.proxy.wire import body

_MESSAGES: Final = ("messages", "prediction")
# Other members of a request in which are no words of anybody's: else `auto` would be in many.
_UNREAD: Final = frozenset(
    {
        *_MESSAGES,
        *("model", "tools", "functions", "tool_choice", "function_call", "modalities"),
        *("stream_options", "reasoning_effort", "verbosity", "service_tier", "logit_bias"),
        *("stop_token_ids", "allowed_token_ids", "audio", "reasoning", "thinking"),
    }
)
# Those of a message, of a part of it or of a call that hold none: else `user` or `text` would be in
# every chat. Elsewhere what is called so may be anything.
_LABELS: Final = frozenset(
    {"role", "type", "id", "index", "tool_call_id", "format", "detail", "signature"}
)
# Members of these that hold such things in turn; beside them the parts of a content.
_LABELLED: Final = frozenset(
    {
        *("tool_calls", "function", "function_call", "reasoning_details", "thinking_blocks"),
        *("image_url", "input_audio", "audio", "file", "annotations", "url_citation"),
    }
)
# Members of these in which a file may stand: the letters of it are no words.
_FILES: Final = frozenset({"data", "file_data"})
_BASE64: Final = re.compile("[A-Za-z0-9+/_-]{64,}={0,2}")
_DATA_URL: Final = re.compile(
    r"data:[\w.+/-]*(?:;(?:charset|codecs)=[\w.-]+)?;base64,[A-Za-z0-9+/_-]*={0,2}"
)
# What tools return, and what they are called with, is often JSON as text, maybe several times over.
_ESCAPED: Final = re.compile(r"""\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))""")
_MEANT: Final = {'"': '"', "\\": "\\", "/": "/"} | dict(zip("bfnrt", "\b\f\n\r\t", strict=True))
_NUM_READINGS: Final = 6
# What is normalised at once: accents in a row take the square of their number. None begins a piece,
# where that can be: it would not be put in order with those before it.
_PIECE: Final = re.compile(r"(?s:.{1,100}(?:.{0,30}?(?=[\0-\u02ff]))?)")


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

    Takes a while. An accent may be a character of its own, here or there, and white space any.
    """
    form = re.sub(r"\s+", " ", _folded(text))
    found: set[str] = set()

    def look_into(some: Iterable[Row], read: Callable[..., Iterator[str]]) -> None:
        for id_, *stored in some:
            if id_ not in found and any(_holds(said, form) for said in read(*stored)):
                found.add(id_)

    look_into(rows, _asked)
    look_into(choice_rows, _answered)
    look_into(rating_rows, _said)
    return found


def _asked(packed: bytes) -> Iterator[str]:
    value = _value(_unpacked(packed))
    if not isinstance(value, dict):
        return _texts([value])
    prompt = value.get("prompt")
    if isinstance(prompt, list):
        value["prompt"] = [one for one in prompt if isinstance(one, str)]
    # A number is a setting.
    read = [
        held
        for member, held in value.items()
        if member not in _UNREAD and not isinstance(held, int | float)
    ]
    return _texts(read, [value.get(member) for member in _MESSAGES])


def _answered(packed: bytes) -> Iterator[str]:
    return _texts([], [_value(_unpacked(packed))])


def _said(comment: str | None, correction: str | None, tags: str) -> Iterator[str]:
    return _texts([comment, correction, _value(tags.encode())])


def _unpacked(packed: bytes) -> bytes:
    """Return what was packed, or what is there, if it is damaged."""
    try:
        return pack.unpack_bytes(packed)
    except ValueError:
        return packed


def _value(stored: bytes) -> object:
    """Return the JSON value in `stored`, or its text where it holds none."""
    try:
        return body.loads(stored)
    except BadRequest:
        return stored.decode(errors="replace")


def _texts(left: list[object], messages: Iterable[object] = ()) -> Iterator[str]:
    """Yield the texts in JSON values, however deep, in no order; of `messages` but the labels."""
    labelled = list(messages)
    while labelled:
        one = labelled.pop()
        if isinstance(one, list):
            labelled += one
        elif isinstance(one, dict):
            for member, held in one.items():
                if member in _LABELS or (member in _FILES and _is_file(held)):
                    continue
                is_labelled = member in _LABELLED or (member == "content" and _is_parts(held))
                (labelled if is_labelled else left).append(held)
        else:
            left.append(one)
    while left:
        one = left.pop()
        if isinstance(one, str):
            if not _DATA_URL.fullmatch(one):
                yield one
        elif isinstance(one, list):
            left += one
        elif isinstance(one, dict):
            left += one
            left += one.values()
        elif isinstance(one, int | float) and not isinstance(one, bool):
            yield str(one)


def _is_file(held: object) -> bool:
    return isinstance(held, str) and _BASE64.fullmatch(held) is not None


def _is_parts(content: object) -> bool:
    """Return whether it is, rather than whatever a tool has returned."""
    return isinstance(content, list) and all(
        isinstance(part, dict) and "type" in part for part in content
    )


def _holds(said: str, form: str) -> bool:
    """Return whether it does, as it stands or as JSON; at either end of it is a space."""
    for _ in range(_NUM_READINGS):
        if form in f" {' '.join(_folded(said).split())} ":
            return True
        if "\\" not in said:
            break
        said = _unescaped(said)
    return False


def _folded(text: str) -> str:
    """Return `text` without case, and each accent as a character of its own."""
    if not text.isascii():
        text = "".join(normalize("NFD", piece) for piece in _PIECE.findall(text))
    return text.casefold()


def _unescaped(text: str) -> str:
    """Return `text` with what JSON escapes in it stand for; two may be halves of one character."""
    plain = _ESCAPED.sub(
        lambda escape: chr(int(escape[1], 16)) if escape[1] else _MEANT[escape[2]], text
    )
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _places(ids: Sequence[str]) -> str:
    return ", ".join("?" * len(ids))
