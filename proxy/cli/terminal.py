"""What people read in a terminal: aligned tables, ages, excerpts.

Does not print, and knows no command.
"""

import json
import re
import time
from collections.abc import Sequence

from strop.proxy import objects
from strop.proxy.store.records import StoredCompletion

_SPACE = re.compile(r"\s+")
# Line ends and tabs; and the joiners without which emoji fall apart, and words of many scripts.
_HARMLESS = frozenset("\n\t\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}")


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Return rows as aligned columns, two spaces apart; the last column is not padded."""
    lines = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def age(seconds: float) -> str:
    """Return how long ago something was, in its largest unit.

    What comes first by a clock that was set back is ahead of it.
    """
    how, length_s = ("ago", max(seconds, 0)) if seconds > -1 else ("ahead of the clock", -seconds)
    for unit, unit_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if length_s >= unit_s:
            return f"{length_s / unit_s:.0f} {unit} {how}"
    return f"{length_s:.0f} s {how}"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it, as in `8 s`, `4 min`, `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def excerpt(text: str, width: int = 60) -> str:
    """Return the first words of `text` on one line."""
    line = _SPACE.sub(" ", safe(text)).strip()
    return line if len(line) <= width else line[: width - 3].rstrip() + "..."


def safe(text: str) -> str:
    """Return `text` without what would steer the terminal, such as escape sequences."""
    return "".join(
        char if char.isprintable() or char in _HARMLESS else "\N{REPLACEMENT CHARACTER}"
        for char in text.replace("\r\n", "\n")
    )


def safe_json(text: str) -> str:
    """Return the same JSON, with escapes in place of what would steer the terminal."""
    return "".join(
        char if char.isprintable() or char in _HARMLESS else json.dumps(char)[1:-1] for char in text
    )


def rating(value: float) -> str:
    """Return a rating as a word where it is one."""
    return {1.0: "good", -1.0: "bad"}.get(value, f"{value:+.2g}")


def since(created_ms: int) -> str:
    """Return how long ago a time in milliseconds since the epoch was."""
    return age(time.time() - created_ms / 1000)


def when(created_ms: int) -> str:
    """Return a time in milliseconds since the epoch by the local clock, and how long ago it was."""
    clock = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(created_ms / 1000))
    return f"{clock}, {since(created_ms)}"


def size(num_bytes: float) -> str:
    """Return a number of bytes in the unit that suits it, as in `378 MiB`."""
    unit, length = ("GiB", 2**30) if num_bytes >= 2**30 else ("MiB", 2**20)
    return f"{num_bytes / length:.3g} {unit}"


def first_words(found: StoredCompletion, choice: int = 0, width: int = 60) -> str:
    """Return the beginning of an answer, or why there is none."""
    for one in found.completion.choices:
        if one.index == choice:
            return excerpt(objects.text_of(one), width)
    return excerpt(found.completion.error or "", width)


def described(found: StoredCompletion, choice: int = 0) -> str:
    """Return a line by which a person knows an answer again."""
    c, words = found.completion, first_words(found, choice)
    ended = "" if c.state == "complete" else f", {c.state}"
    return f'{c.id} ({since(c.created_ms)}{ended}): "{words}"'
