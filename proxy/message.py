"""One chat message in canonical form: what stays of it however a client sends it back.

Pure. Does not know conversations, or what the form is used for. Takes whatever JSON can hold: a
malformed message is told by what it is.

    role; text parts joined, in NFC, without outer whitespace, leading <think> blocks of an answer,
    and trailing <system-reminder> blocks of a tool's result;
    tool calls as name and canonical JSON; other parts by their digest; nothing else.

So ids, names, reasoning, refusals, nulls, cache markers and unknown fields make no difference.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from hashlib import blake2b
from typing import Final
from unicodedata import combining, is_normalized, normalize

import orjson

# What Python, JavaScript or Rust trims: they differ in U+FEFF, and in U+001C to U+001F.
OUTER: Final = "".join(chr(code) for code in range(0x3001) if chr(code).isspace()) + "\ufeff"

# OpenClaw's, which is always the last message of a request and of no later history.
_CONTEXT_BEGIN: Final = "<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>"
_CONTEXT_END: Final = "<<<END_OPENCLAW_INTERNAL_CONTEXT>>>"

# Claude Code's, of what its hooks said of a call, and others.
_REMINDER_BEGIN: Final = "<system-reminder>"
_REMINDER_END: Final = "</system-reminder>"

NOTES: Final = frozenset(
    {
        # Codex's: what a sub-agent of its own has answered, and that its user has stopped it.
        *("<subagent_notification>", "<turn_aborted>"),
        # Claude Code's, of the latter.
        *("[Request interrupted by user]", "[Request interrupted by user for tool use]"),
    }
)
"""What agents say as a user's by themselves, and keep: lines, or tags around the rest."""

_CONTEXT_STARTS: Final = (_CONTEXT_BEGIN, *NOTES)

MALFORMED: Final = "malformed_arguments"
"""Holds a tool call's arguments, as text, where a dialect has to write what is no object as one."""

# Where marks may stand: no character below U+0300 is one.
_SPANS: Final = re.compile("[\u0300-\U0010ffff]+")
_LONG_SPAN: Final = 64
_MOST_MARKS: Final = 30
# Each is two marks, once it is taken apart, and none itself.
_TWO_MARKS: Final = "\u0f73\u0f75\u0f81"

_DIGEST_BYTES = 16
# From this many letters and digits on, an id is random rather than a count.
_TELLING_ID_CHARS: Final = 8
_NEITHER: Final = re.compile("[^0-9A-Za-z]")
_COUNT: Final = re.compile("[A-Za-z]*[0-9]{0,4}|[0-9]+")
# All that opencode sends of it where the model is called mistral, devstral or the like.
_SENT_ID_CHARS: Final = 9
# Where the engine gives a call no id: its client has one, and the record none.
_OURS: Final = re.compile("(?:toolu|call_(?:fc|ctc))_[0-9a-f]{32}(?:_[0-9]+)?")
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_DROPPED_PARTS = frozenset({"reasoning", "thinking", "redacted_thinking", "refusal"})


def role_of(message: object) -> str:
    """Return the message's role, or an empty string."""
    role = message.get("role") if isinstance(message, dict) else None
    return role if isinstance(role, str) else ""


def texts_of(message: object) -> list[str]:
    """Return the message's text parts; a plain string is one."""
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else [content]
    return [text for part in parts if (text := text_in(part)) is not None]


def text_in(part: object) -> str | None:
    """Return what a text part says, or None if it is none."""
    if isinstance(part, dict) and _is_part(part, _TEXT_PARTS):
        part = part.get("text")
    return part if isinstance(part, str) else None


def text_of(message: Mapping[str, object]) -> str:
    """Return the message's text parts as one, without outer whitespace."""
    content = message.get("content")
    return (content if isinstance(content, str) else "".join(texts_of(message))).strip(OUTER)


def is_context(message: object) -> bool:
    """Whether an agent has put `message` there by itself, as a user's: no person says anything."""
    if not isinstance(message, dict) or role_of(message) != "user":
        return False
    text = text_of(message)
    if not text.startswith(_CONTEXT_STARTS):
        return False
    if text.startswith(_CONTEXT_BEGIN) and text.endswith(_CONTEXT_END):
        return True
    return is_all_notes(text, NOTES) and not any(_other_parts(message.get("content")))


def is_all_notes(text: str, notes: Collection[str]) -> bool:
    """Whether `text` is nothing but an agent's notes, or blank.

    Args:
        text: what is said as a user's.
        notes: what is one, as in `NOTES`.
    """
    place = _past_space(text, 0)
    while place < len(text):
        note = next((one for one in notes if text.startswith(one, place)), None)
        if note is None:
            return False
        last = f"</{note[1:]}" if note.startswith("<") else note
        end = text.find(last, place)
        if end < 0:
            return False
        place = _past_space(text, end + len(last))
    return True


def canonical(message: object, role: str) -> bytes:
    """Return the canonical form of `message`, taken as one of `role`: each field, framed."""
    form = _framed(b"role", utf8(role))
    if not isinstance(message, dict):
        return form + _framed(b"message", as_json(message))
    text = text_of(message)
    if role == "assistant":
        text = _without_thoughts(text)
    elif role == "tool":
        text = _without_reminders(text)
    if text:
        form += _framed(b"text", utf8(_composed(text)))
    content = message.get("content")
    if not isinstance(content, str):
        form += b"".join(_other_parts(content))
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        form += b"".join(_call(call) for call in calls)
    return form


def call_key(message: object) -> bytes | None:
    """Return what tells the first tool call of `message` from all others, as long as it lives.

    That is its name and its id, whose first letters and digits clients send back where they rewrite
    its arguments: Claude Code adds defaults, trims text, takes a `cd` out of a command. None where
    there is no call, or its id could be another's too: it is short, or counts calls, or a tool's.
    """
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    call = calls[0] if isinstance(calls, list) and calls else None
    if not isinstance(call, dict):
        return None
    identity = call.get("id")
    named = call.get("function", call.get("custom"))
    if not isinstance(identity, str) or not isinstance(named, dict):
        return None
    name, kept = named.get("name"), _NEITHER.sub("", identity)
    if not isinstance(name, str) or len(kept) < _TELLING_ID_CHARS:
        return None
    if _COUNT.fullmatch(kept) or _OURS.fullmatch(identity) or _NEITHER.sub("", name) in kept:
        return None
    # vLLM's begin with `chatcmpl-tool-`: their first nine tell nothing.
    if not _COUNT.fullmatch(kept[:_SENT_ID_CHARS]):
        kept = kept[:_SENT_ID_CHARS]
    return _framed(b"call", utf8(name)) + _framed(b"id", utf8(kept))


def _composed(text: str) -> str:
    """Return `text` in NFC; as it is, where more marks than any language uses stand together.

    Python sorts these one by one: 120,000 of them take half a minute. 30 are the limit of the
    Stream-Safe Text Format (Unicode Standard Annex 15).
    """
    # Nearly always; to search for marks first takes up to a hundred times as long.
    if is_normalized("NFC", text) or any(map(_has_many_marks, _SPANS.findall(text))):
        return text
    return normalize("NFC", text)


def _has_many_marks(span: str) -> bool:
    if len(span) < _LONG_SPAN:
        return False
    num_marks = 0
    for character in span:
        is_mark = combining(character) or character in _TWO_MARKS
        num_marks = num_marks + 1 if is_mark else 0
        if num_marks > _MOST_MARKS:
            return True
    return False


def as_json(value: object) -> bytes:
    """Return `value` as JSON with sorted keys."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        # Beyond orjson: integers of 64 bits, 254 levels, lone surrogates.
        try:
            return _write(value).encode()
        except RecursionError:
            return b"too deep"


def utf8(text: str) -> bytes:
    """Return `text` in UTF-8, lone surrogates too."""
    return text.encode("utf-8", "surrogatepass")


def digest(value: bytes) -> bytes:
    """Return the digest of `value` (16 bytes)."""
    return blake2b(value, digest_size=_DIGEST_BYTES).digest()


def _past_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in OUTER:
        place += 1
    return place


def _is_part(part: object, kinds: frozenset[str]) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and kind in kinds


def _without_thoughts(text: str) -> str:
    while text.startswith("<think>"):
        _, end, said = text.partition("</think>")
        if not end:
            break
        text = said.lstrip(OUTER)
    return text


def _without_reminders(text: str) -> str:
    """Return a tool's result without what its agent says behind it, and may leave out later."""
    end = len(text)
    while text.endswith(_REMINDER_END, 0, end):
        begin = text.rfind(_REMINDER_BEGIN, 0, end)
        if begin < 0:
            break
        end = begin
        while end and text[end - 1] in OUTER:
            end -= 1
    return text[:end]


def _other_parts(content: object) -> Iterator[bytes]:
    """Yield what of the content is not text, each part by its digest: images can be large."""
    for part in content if isinstance(content, list) else [content]:
        if part is None or text_in(part) is not None or _is_part(part, _DROPPED_PARTS):
            continue
        told = part
        if isinstance(part, dict):
            told = {k: v for k, v in part.items() if k != "cache_control" and v is not None}
        yield _framed(b"part", digest(as_json(told)))


def _call(call: object) -> bytes:
    """Return a tool call's name and arguments; a custom tool's input is plain text."""
    if isinstance(call, dict):
        function, custom = call.get("function"), call.get("custom")
        if isinstance(function, dict):
            arguments = _arguments(function.get("arguments"))
            return _framed(b"call", _name(function)) + _framed(b"arguments", arguments)
        if isinstance(custom, dict):
            given = as_json(custom.get("input"))
            return _framed(b"call", _name(custom)) + _framed(b"input", given)
    return _framed(b"call", as_json(call))


def _name(holder: Mapping[str, object]) -> bytes:
    name = holder.get("name")
    return utf8(name) if isinstance(name, str) else as_json(name)


def _arguments(arguments: object) -> bytes:
    """Return a tool call's arguments as canonical JSON, or as they are if they aren't JSON.

    No arguments may be written as nothing, null or an empty object.
    """
    text = arguments if isinstance(arguments, str) else as_json(arguments).decode()
    text = text.strip(OUTER)
    if not text or text == "null":
        return b"{}"
    try:
        given = _parse(text)
        if isinstance(given, dict) and given.keys() == {MALFORMED}:
            return _arguments(given[MALFORMED])
        return _write(given).encode()
    except (ValueError, RecursionError):
        return utf8(text)


def _number(written: str) -> float | int:
    """Return a JSON number as JavaScript keeps it: a double, and integral ones as integers."""
    value = float(written)
    return int(value) if value.is_integer() else value


_parse = json.JSONDecoder(parse_int=_number, parse_float=_number).decode
_write = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _framed(kind: bytes, value: bytes) -> bytes:
    return b"%b %d:%b" % (kind, len(value), value)
