"""Takes out of what is recorded what should not be: matches of `capture.redact`.

Pure. Does not touch what is relayed; a text that was changed here no longer pairs with its token
ids, so whoever stores it drops those.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final, TypeVar, overload

from strop.proxy.errors import BadRequest
from strop.proxy.store.records import NewFeedback, Revision
from strop.proxy.wire import body

MARK: Final = "[redacted]"

Said = TypeVar("Said", NewFeedback, Revision)


@dataclass(frozen=True, slots=True)
class Redaction:
    """What to take out."""

    patterns: tuple[re.Pattern[str], ...] = ()

    @classmethod
    def of(cls, patterns: Sequence[str]) -> "Redaction":
        """Return the redaction by these regular expressions, which the settings have checked."""
        return cls(tuple(map(re.compile, patterns)))

    @overload
    def text(self, text: str) -> str: ...
    @overload
    def text(self, text: None) -> None: ...
    def text(self, text: str | None) -> str | None:
        """Return a text with the matches in it replaced."""
        if text is not None:
            for pattern in self.patterns:
                text = pattern.sub(MARK, text)
        return text

    def label(self, label: str | None) -> str | None:
        """Return a label, or None if something in it matches: cut, two could become the same."""
        return label if label == self.text(label) else None

    def feedback(self, new: NewFeedback) -> NewFeedback:
        """Return a rating as it may be stored; raters whose names are equal then count as one.

        Its digest stays that of what came, and an idempotency id that matches becomes its own: both
        still tell a retry from something else.
        """
        idempotency = new.idempotency
        if idempotency is not None and self.label(idempotency) is None:
            idempotency = sha256(idempotency.encode()).hexdigest()
        return replace(self.revision(new), rater=self.text(new.rater), idempotency=idempotency)

    def revision(self, said: Said) -> Said:
        """Return what a rating says as it may be stored."""
        return replace(
            said,
            comment=self.text(said.comment),
            correction=self.text(said.correction),
            tags=tuple(dict.fromkeys(map(self.text, said.tags))),
        )

    def json(self, text: bytes) -> bytes:
        """Return JSON with the matches in its strings replaced; `text` itself if there are none.

        What is nested too deeply to be searched is left out: an empty object.
        """
        if not self.patterns:
            return text
        try:
            value = body.loads(text)
            found = self.value(value)
            return text if found == value else body.dumps(found)
        except (BadRequest, RecursionError):
            return b"{}"

    def value(self, value: object) -> object:
        """Return a JSON value with the matches in its strings replaced; keys stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(one) for one in value]
        if isinstance(value, dict):
            return {key: self.value(one) for key, one in value.items()}
        return value
