"""What strop writes to its standard error: one line per event, for people or as JSON.

Does not decide what is logged. Callers pass facts as `extra`, never the content of messages; what
looks like a secret is taken out here all the same.
"""

import json
import logging
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TextIO

from strop.proxy.auth import scrub
from strop.proxy.settings.settings import Log

_PACKAGE = "strop."
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# They say at "info" what strop says itself, or what is said in its metrics.
_CHATTY = ("uvicorn", "uvicorn.error", "uvicorn.access", "httpx", "httpcore")
# A connection that strop cuts on purpose: the one way to say that a body under way is not whole.
_CUT = "ASGI callable returned without completing response."

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_Plain = str | int | float | bool | None


class _Formatter(logging.Formatter):
    """Takes a record apart into its scrubbed facts.

    Args:
        secrets: strings that never appear in a line.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        self._secrets = tuple(secrets)

    def _message(self, record: logging.LogRecord) -> str:
        return scrub(record.getMessage(), self._secrets)

    def _facts(self, record: logging.LogRecord) -> Mapping[str, _Plain]:
        return {
            name: self._plain(value) for name, value in vars(record).items() if name not in _OWN
        }

    def _plain(self, value: object) -> _Plain:
        if value is None or isinstance(value, bool | int | float):
            return value
        return scrub(str(value), self._secrets)

    def _trace(self, record: logging.LogRecord) -> str | None:
        parts = []
        if record.exc_info:
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(self.formatStack(record.stack_info))
        return scrub("\n".join(parts), self._secrets) if parts else None


class TextFormatter(_Formatter):
    """Lines for people: time in UTC, level, where, what, then the facts as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback below it where there is one."""
        words = [
            _time(record),
            f"{record.levelname:<7}",
            _logger(record).removeprefix("proxy.") + ":",
            self._message(record),
            *(f"{name}={_word(value)}" for name, value in self._facts(record).items()),
        ]
        # So that nobody can write lines of their own into the log, or steer the terminal by it.
        line = _CONTROL.sub(lambda found: repr(found[0])[1:-1], " ".join(words))
        trace = self._trace(record)
        return line + (f"\n{trace}" if trace else "")


class JsonFormatter(_Formatter):
    """One JSON object per line: `time`, `level`, `logger`, `message`, the facts, and `trace`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry: dict[str, _Plain] = {
            **self._facts(record),
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": _logger(record),
            "message": self._message(record),
        }
        if (trace := self._trace(record)) is not None:
            entry["trace"] = trace
        return json.dumps(entry, ensure_ascii=False)


def set_up(log: Log, secrets: Iterable[str] = (), stream: TextIO | None = None) -> None:
    """Write what this process logs to `stream`, as the settings say; calling again replaces it.

    Args:
        log: level and format.
        secrets: keys that must never be written.
        stream: standard error if None.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter((JsonFormatter if log.format == "json" else TextFormatter)(secrets))
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old.formatter, _Formatter):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(log.level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.getLogger("uvicorn.error").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return record.msg != _CUT


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _logger(record: logging.LogRecord) -> str:
    return record.name.removeprefix(_PACKAGE)


def _word(value: _Plain) -> str:
    if isinstance(value, str) and value and value.isprintable() and not set(' ="\\') & set(value):
        return value
    return json.dumps(value, ensure_ascii=False)
