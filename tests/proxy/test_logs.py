"""What is written to the log, and what never is."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from strop.proxy.logs import JsonFormatter, TextFormatter, set_up
from strop.proxy.settings.settings import Log

SECRET = "sk-very-secret"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Leave logging as it was."""
    root, names = logging.getLogger(), ("uvicorn", "uvicorn.error", "uvicorn.access", "httpx")
    loggers = [root, *map(logging.getLogger, names), logging.getLogger("httpcore")]
    before = [(one, one.level, list(one.handlers), list(one.filters)) for one in loggers]
    yield
    for logger, level, handlers, filters in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.filters[:] = filters


def written(log: Log | None = None, secrets: tuple[str, ...] = (SECRET,)) -> io.StringIO:
    """Set up logging; return where it goes."""
    stream = io.StringIO()
    set_up(log or Log(), secrets, stream)
    return stream


def test_text_is_one_line_with_its_facts() -> None:
    """Time in UTC, level, logger without the package, message, then the extra fields."""
    stream = written()

    logging.getLogger("strop.proxy.serving").warning(
        "engine not ready", extra={"engine": "vllm", "reason": "no answer", "wait_s": 0.5}
    )

    assert re.fullmatch(
        TIME + r' WARNING serving: engine not ready engine=vllm reason="no answer" wait_s=0\.5\n',
        stream.getvalue(),
    )


def test_json_is_one_object_a_line() -> None:
    """With the same facts, typed."""
    stream = written(Log(format="json"))

    logging.getLogger("strop.proxy.relay").error(
        "completion lost", extra={"completion": "cmp_1", "size": 3, "path": None, "keys": ("a",)}
    )

    found = json.loads(stream.getvalue())
    assert re.fullmatch(TIME, found.pop("time"))
    assert {
        "level": "error",
        "logger": "proxy.relay",
        "message": "completion lost",
        "completion": "cmp_1",
        "size": 3,
        "path": None,
        "keys": "('a',)",
    } == found


@pytest.mark.parametrize("format_", ["text", "json"])
def test_secrets_are_never_written(format_: str) -> None:
    """Not in messages, facts or tracebacks; nor what looks like a credential."""
    stream = written(Log(format="json" if format_ == "json" else "text"))
    log = logging.getLogger("strop.proxy.x")

    log.info("got %s", SECRET, extra={"key": SECRET, "url": "http://ann:pw@host/v1"})
    log.info("Authorization: Bearer abc.def")
    try:
        raise ValueError(f"refused {SECRET}")
    except ValueError:
        log.exception("failed")

    text = stream.getvalue()
    assert 3 <= len(text.splitlines())
    assert all(secret not in text for secret in (SECRET, "ann:pw", "abc.def"))
    assert "ValueError: refused [hidden]" in text


@pytest.mark.parametrize("format_", ["text", "json"])
def test_nobody_writes_lines_of_their_own(format_: str) -> None:
    """A newline in a message or a fact stays in its line, by whatever name."""
    stream = written(Log(format="json" if format_ == "json" else "text"))

    logging.getLogger("strop.x").info("a\nb\r\nc", extra={"path": "/x\nERROR forged"})

    assert 1 == len(stream.getvalue().splitlines())


def test_what_is_logged_can_not_steer_the_terminal() -> None:
    """Nor end its line, as U+0085 and U+2028 do for some readers; the rest is as it was."""
    stream = written(Log())

    logging.getLogger("strop.x").info("\x9b2Jgone\x85\u2028", extra={"path": "/\x9b2J \u00e9"})

    assert stream.getvalue().endswith(' x: \\x9b2Jgone\\x85\\u2028 path="/\\x9b2J \u00e9"\n')


def test_a_traceback_follows_its_line() -> None:
    """In JSON it is a member."""
    error = ValueError("no")
    record = logging.makeLogRecord(
        {
            "name": "strop.x",
            "levelname": "ERROR",
            "msg": "failed",
            "exc_info": (ValueError, error, None),
        }
    )

    text = TextFormatter(()).format(record)
    found = json.loads(JsonFormatter(()).format(record))

    assert ["x: failed", "ValueError: no"] == [text.splitlines()[0][-9:], text.splitlines()[-1]]
    assert "ValueError: no" == found["trace"]


def test_facts_do_not_take_the_place_of_the_record() -> None:
    """`level` among the facts is not the record's level."""
    record = logging.makeLogRecord(
        {"name": "strop.x", "levelname": "INFO", "msg": "hello", "level": "9", "time": "never"}
    )

    found = json.loads(JsonFormatter(()).format(record))

    assert ("info", "hello") == (found["level"], found["message"])
    assert "never" != found["time"]


def test_the_level_is_the_settings() -> None:
    """Below it, nothing is written."""
    stream = written(Log(level="warning"))

    logging.getLogger("strop.x").info("quiet")
    logging.getLogger("strop.x").warning("loud")

    assert ["loud"] == [line[-4:] for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("name", ["uvicorn.error", "httpx"])
def test_servers_and_clients_say_only_what_is_wrong(name: str) -> None:
    """Their everyday lines would tell paths and addresses."""
    stream = written(Log(level="debug"))

    logging.getLogger(name).info('127.0.0.1 - "GET /v1/models HTTP/1.1" 200')
    logging.getLogger(name).error("wrong")

    assert ["wrong"] == [line[-5:] for line in stream.getvalue().splitlines()]


def test_a_connection_that_is_cut_on_purpose_is_no_news() -> None:
    """Uvicorn takes it for a mistake of the application."""
    stream = written()

    logging.getLogger("uvicorn.error").error("ASGI callable returned without completing response.")

    assert "" == stream.getvalue()


def test_setting_up_again_replaces_what_was_set_up() -> None:
    """Each event is written once."""
    first, second = written(), written()

    logging.getLogger("strop.x").info("once")

    assert ("", 1) == (first.getvalue(), len(second.getvalue().splitlines()))
