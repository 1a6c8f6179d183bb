"""Takes out of what is recorded what should not be: matches of `capture.redact`.

Pure. Does not touch what is relayed; a text that was changed here no longer pairs with its token
ids, so whoever stores it drops those.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from strop.proxy.errors import ConfigError
from strop.proxy.wire import body

MARK: Final = "[redacted]"


@dataclass(frozen=True, slots=True)
class Redaction:
    """What to take out."""

    patterns: tuple[re.Pattern[str], ...] = ()

    @classmethod
    def of(cls, patterns: Sequence[str]) -> "Redaction":
        """Return the redaction by these regular expressions.

        Raises:
            ConfigError: one of them isn't one.
        """
        try:
            return cls(tuple(re.compile(pattern) for pattern in patterns))
        except re.error as error:
            raise ConfigError(
                f"capture.redact: expected regular expressions, got {error.pattern!r}: {error}"
            ) from error

    def json(self, text: bytes) -> bytes:
        """Return JSON with the matches in its strings replaced; `text` itself if there are none."""
        if not self.patterns:
            return text
        value = body.loads(text)
        found = self.value(value)
        return text if found == value else body.dumps(found)

    def value(self, value: object) -> object:
        """Return a JSON value with the matches in its strings replaced; keys stay."""
        if isinstance(value, str):
            for pattern in self.patterns:
                value = pattern.sub(MARK, value)
            return value
        if isinstance(value, list):
            return [self.value(one) for one in value]
        if isinstance(value, dict):
            return {key: self.value(one) for key, one in value.items()}
        return value
