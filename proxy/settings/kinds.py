"""What one setting may be: its type, its range, and how text becomes it.

Pure. Knows no setting, and not where values come from.
"""

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_COMMA = re.compile(r",(?!\d*\})")


@dataclass(frozen=True, slots=True)
class Range:
    """The least and the greatest value that a number may have."""

    least: float
    greatest: float


@dataclass(frozen=True, slots=True)
class Secret:
    """Marks what is never shown; each string of it has at least so many characters."""

    min_chars: int = 0


@dataclass(frozen=True, slots=True)
class Kind:
    """A type with its marks.

    `type` is one of str, bool, int, float and tuple; `choices` are all that a string may be.
    """

    type: type
    choices: tuple[str, ...] = ()
    range: Range | None = None
    secret: Secret | None = None

    @classmethod
    def of(cls, hint: Any) -> "Kind":
        """Return the kind that an annotation asks for."""
        range_ = secret = None
        if get_origin(hint) is Annotated:
            hint, *marks = get_args(hint)
            range_ = next((mark for mark in marks if isinstance(mark, Range)), None)
            secret = next((mark for mark in marks if isinstance(mark, Secret)), None)
        if get_origin(hint) is Literal:
            return cls(str, choices=get_args(hint))
        return cls(get_origin(hint) or hint, range=range_, secret=secret)

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        least_chars = self.secret.min_chars if self.secret else 0
        words = {
            str: "a string",
            bool: "true or false",
            int: "an integer",
            float: "a number",
            tuple: "a list of strings",
        }[self.type]
        if self.choices:
            words = "one of " + ", ".join(json.dumps(choice) for choice in self.choices)
        elif self.range:
            words += f" from {self.range.least:,} to {self.range.greatest:,}"
        elif least_chars:
            words += f" of at least {least_chars} characters each"
        return words

    def check(self, value: object) -> object:
        """Return `value` as this kind holds it.

        Raises:
            ValueError: it is not of this kind.
        """
        # In its range: a TOML integer may be larger than any float.
        if self.type is float and type(value) is int and self._is_in_range(value):
            value = float(value)
        if self.type is tuple:
            if not isinstance(value, list | tuple):
                raise ValueError(self.expected)
            return tuple(self._text(one) for one in value)
        if self.type is str:
            return self._text(value)
        if type(value) is not self.type:
            raise ValueError(self.expected)
        if isinstance(value, int | float) and not self._is_in_range(value):
            raise ValueError(self.expected)
        return value

    def parse(self, text: str) -> object:
        """Return the value that `text` stands for; a list's entries are parted by commas.

        A comma in a regular expression's quantifier, as in `{20,40}`, parts none.

        Raises:
            ValueError: it stands for no value of this kind.
        """
        text = text.strip()
        if self.type is bool:
            if text.lower() not in _BOOLEANS:
                raise ValueError(self.expected)
            return _BOOLEANS[text.lower()]
        if self.type is tuple:
            return self.check([entry for one in _COMMA.split(text) if (entry := one.strip())])
        if self.type in (int, float):
            return self.check(self.type(text))
        return self.check(text)

    def shown(self, value: object) -> str:
        """Return `value` for people to read; of a secret, only whether it is set."""
        if self.secret:
            return "set" if value else "not set"
        return shown(value)

    def _is_in_range(self, value: float) -> bool:
        # NaN is in no range.
        return self.range is None or self.range.least <= value <= self.range.greatest

    def _text(self, value: object) -> str:
        if not isinstance(value, str) or (self.choices and value not in self.choices):
            raise ValueError(self.expected)
        if self.secret:
            # Who sends one in a header can't send what is around it.
            value = value.strip()
            if len(value) < self.secret.min_chars:
                raise ValueError(self.expected)
        # Bytes that are no UTF-8 reach the environment as surrogates.
        value.encode()
        return value


def shown(value: object) -> str:
    """Return `value` as TOML writes it, more or less."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, default=str)


def parse_hours(text: str) -> tuple[int, int]:
    """Return the first hour of the day of `from-to`, and the one at which it ends; both below 24.

    Raises:
        ValueError: it isn't two hours of the day.
    """
    first, dash, last = text.partition("-")
    if dash and first.isdecimal() and last.isdecimal() and int(first) < 24 and int(last) <= 24:
        return int(first), int(last) % 24
    raise ValueError(text)


def is_base_url(url: str) -> bool:
    """Whether an engine may be at `url`: http or https, a host, and at most a path."""
    try:
        # As in OPENAI_BASE_URL, a `/v1` at the end is left out; of a host named so nothing stays.
        parts = urlsplit(url.rstrip("/").removesuffix("/v1"))
        _ = parts.port
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and "@" not in parts.netloc
        and not any(char in "?#" or char.isspace() for char in url)
    )
