"""What matches `capture.redact` is in no record, and neither are the ids that would spell it."""

import contextlib
import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from fake_engine import Call, FakeEngine, Handler
from fake_vllm import FakeVllm
from running import Running, running, settings_for

from strop.proxy.cli.root import main
from strop.proxy.redaction import MARK, Redaction
from strop.proxy.store.pack import unpack_bytes

SECRET = "sk-1f2e"
KEYS = Redaction.of([r"sk-\w+", r"\b\d{3}-\d{4}\b"])


def test_matches_in_any_string_are_replaced() -> None:
    """However deep; keys and other values stay."""
    text = json.dumps({"sk-key": ["call 555-1234", {"a": "sk-abc and sk-def"}, 5, None]}).encode()

    expected = {"sk-key": [f"call {MARK}", {"a": f"{MARK} and {MARK}"}, 5, None]}
    assert expected == json.loads(KEYS.json(text))


def test_what_matches_nothing_stays_byte_for_byte() -> None:
    """Spacing and escapes included."""
    text = b'{ "a" : "\\u00e9", "n": 1.0 }'

    assert text == KEYS.json(text)
    assert text == Redaction().json(text)


async def test_what_is_too_deep_to_be_searched_is_left_out_of_its_record(tmp_path: Path) -> None:
    """The rest is recorded, and without ids: nothing says that they spell no match."""
    # Too deep for a search, not for what parses: from Python 3.12 on each may go deeper.
    depth = 800 if sys.version_info < (3, 12) else 1200
    deep = b"[" * depth + b"]" * depth
    body = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"metadata":%b}' % deep
    async with redacting(tmp_path) as proxy:
        answer = await proxy.client.post("/v1/chat/completions", content=body)

        found = (await proxy.row()).completion
    assert (200, b"{}", None) == (answer.status_code, found.request, found.prompt_ids)
    assert json.loads(found.choices[0].message)["content"]


def test_what_is_too_deep_to_be_read_is_left_out() -> None:
    """The writer's thread may have less room for it than the one that has read it before."""
    assert b"{}" == KEYS.json(b"[" * 100_000 + b"]" * 100_000)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_redacted_text_is_recorded_without_its_ids(stream: bool, tmp_path: Path) -> None:
    """The client gets the answer whole; the prompt's and the choice's ids go each with its text."""
    async with FakeEngine(FakeVllm()) as engine:
        records = {}
        for name, patterns in (("none", ()), ("prompt", ("sk-.*",)), ("all", (r"\w+",))):
            settings = settings_for(engine.url, capture={"redact": patterns})
            async with running(settings, tmp_path / name) as proxy:
                answer = await proxy.chat("my key is sk-1", stream=stream)
                records[name] = (answer, (await proxy.row()).completion)

    request = {name: record.request for name, (_, record) in records.items()}
    choice = {name: record.choices[0] for name, (_, record) in records.items()}
    assert b"sk-1" in request["none"]
    assert b"sk-1" not in request["prompt"] + request["all"]
    assert [True, False, False] == [r.prompt_ids is not None for _, r in records.values()]
    assert [True, True, False] == [c.token_ids is not None for c in choice.values()]
    assert [True, True, False] == [c.logprobs is not None for c in choice.values()]
    assert MARK in json.loads(choice["all"].message)["content"]
    assert choice["none"].message == choice["prompt"].message
    assert all(MARK.encode() not in answer.content for answer, _ in records.values())


@contextlib.asynccontextmanager
async def redacting(
    home: Path, handler: Handler | None = None, **changes: Any
) -> AsyncIterator[Running]:
    """Run a proxy that records no keys; changes are of its settings."""
    async with FakeEngine(handler or FakeVllm()) as engine:
        settings = settings_for(engine.url, **{"capture": {"redact": (r"sk-\w+",)}, **changes})
        async with running(settings, home) as proxy:
            yield proxy


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


async def ask(
    proxy: Running, messages: list[dict[str, Any]], headers: dict[str, str] | None = None
) -> httpx.Response:
    body = {"model": "tiny", "messages": messages}
    return await proxy.client.post("/v1/chat/completions", json=body, headers=headers)


def recorded(home: Path) -> str:
    """Return all that the store of a home holds, as one text."""

    def values(connection: sqlite3.Connection) -> Iterator[object]:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                yield from row

    def text(value: object) -> str:
        if isinstance(value, bytes):
            with contextlib.suppress(ValueError):
                value = unpack_bytes(value)
            return value.decode("latin-1")
        return str(value)

    with contextlib.closing(sqlite3.connect(home / "strop.db")) as connection:
        return "\n".join(map(text, values(connection)))


SAID = {"comment": f"not {SECRET}!", "correction": f"It is {SECRET}.", "tags": [SECRET, "style"]}


async def post(proxy: Running, completion: str) -> None:
    """Rate with all that a rating has."""
    body = {"completion_id": completion, "rating": "bad", **SAID, "rater": SECRET, "id": SECRET}
    assert 201 == (await proxy.client.post("/v1/feedback", json=body)).status_code


async def put(proxy: Running, completion: str) -> None:
    """Rate with a word, then say why."""
    rated = {"completion_id": completion, "rating": "bad"}
    given = (await proxy.client.post("/v1/feedback", json=rated)).json()
    revised = await proxy.client.put(f"/v1/feedback/{given['id']}", json={"rating": "bad", **SAID})
    assert f"not {MARK}!" == revised.json()["comment"]


async def header(proxy: Running, completion: str) -> None:
    """Rate with the next request."""
    headers = {
        "x-strop-feedback": f'bad; comment="not {SECRET}!"',
        "x-strop-feedback-for": completion,
    }
    answer = await ask(proxy, [user("hi")], headers)
    assert answer.headers["x-strop-feedback-status"].startswith("created")


async def inline(proxy: Running, completion: str) -> None:
    """Rate in the chat, and go on with it."""
    (row,) = await proxy.rows()
    assert completion == row.completion.id
    rated = [user("hi"), json.loads(row.completion.choices[0].message)]
    command = user(f"/rl bad not {SECRET}!")
    said = (await ask(proxy, [*rated, command])).json()["choices"][0]["message"]
    await ask(proxy, [*rated, command, said, user("Why?")])


@pytest.mark.parametrize("way", [post, put, header, inline])
async def test_no_rating_over_http_is_recorded_with_what_matches(
    way: Callable[[Running, str], Awaitable[None]], tmp_path: Path
) -> None:
    """Comment, correction, tags, rater and idempotency id; exports have what was recorded."""
    async with redacting(tmp_path) as proxy:
        completion = (await proxy.chat()).headers["x-strop-completion-id"]

        await way(proxy, completion)

        await proxy.rows()
        exported = b"".join([line async for line in proxy.services.store.export("raw")]).decode()
    assert f"not {MARK}!" in exported
    assert SECRET not in exported + recorded(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        ("bad", "-m", f"not {SECRET}!"),
        ("rate", "{}", "bad", "--correction", f"It is {SECRET}.", "--tag", SECRET),
    ],
    ids=["bad", "rate"],
)
def test_the_command_line_redacts_as_its_home_says(options: tuple[str, ...], home: Path) -> None:
    """It writes into the store itself, whether or not strop runs."""
    (home / "strop.toml").write_text("[capture]\nredact = ['sk-\\w+']\n")
    environment = {"STROP_HOME": str(home)}
    listed = CliRunner(env=environment).invoke(main, ["completions", "list", "--json"]).stdout
    completion = json.loads(listed)["data"][0]["id"]

    result = CliRunner(env=environment).invoke(main, [one.format(completion) for one in options])

    assert 0 == result.exit_code, result.output
    assert MARK in recorded(home)
    assert SECRET not in recorded(home) + result.output


@pytest.fixture
async def home(tmp_path: Path) -> Path:
    """A home in which one answer is recorded."""
    async with redacting(tmp_path) as proxy:
        await proxy.chat()
    return tmp_path


async def test_retries_of_a_redacted_rating_are_told_from_other_ratings(tmp_path: Path) -> None:
    """By what came, not by what is left of it: neither texts nor ids become equal."""
    statuses = []
    async with redacting(tmp_path) as proxy:
        completion = (await proxy.chat()).headers["x-strop-completion-id"]

        for id_, comment in (("sk-1", "sk-1"), ("sk-1", "sk-1"), ("sk-1", "sk-2"), ("sk-2", "")):
            rated = {"completion_id": completion, "rating": "bad"}
            body = {**rated, "comment": comment, "id": id_}
            statuses.append((await proxy.client.post("/v1/feedback", json=body)).status_code)

    assert [201, 200, 409, 201] == statuses


async def refuses(call: Call) -> None:
    """Refuse completions, and quote them."""
    if call.request.method == "POST":
        await call.json({"error": {"message": f"no such thing as {SECRET}"}}, 400)
    else:
        await FakeVllm()(call)


@pytest.mark.parametrize("handler", [FakeVllm(), refuses], ids=["answered", "refused"])
async def test_no_part_of_a_completion_is_recorded_with_what_matches(
    handler: Handler, tmp_path: Path
) -> None:
    """Sampling parameters, model name, labels, and what the engine says of them."""
    async with redacting(tmp_path, handler, model={"accept_any": True}) as proxy:
        body = {"model": f"{SECRET}-large", "messages": [user("hi")], "stop": [SECRET]}
        headers = {"x-strop-session": f"of {SECRET}", "x-request-id": f"1-{SECRET}"}

        await proxy.client.post("/v1/chat/completions", json=body, headers=headers)

        found = (await proxy.row()).completion
    assert {"stop": [MARK]} == json.loads(found.sampling)
    assert (f"{MARK}-large", f"1-{MARK}") == (found.model, found.request_id)
    assert (f"no such thing as {MARK}" if handler is refuses else None) == found.error
    assert SECRET not in recorded(tmp_path)


async def test_sessions_whose_labels_match_are_not_merged(tmp_path: Path) -> None:
    """Such a label is as none: cut, those of two people would be the same."""
    async with redacting(tmp_path) as proxy:
        for key in ("sk-1", "sk-2"):
            await ask(proxy, [user("hi")], {"x-strop-session": key})

        sessions = {row.session for row in await proxy.rows()}

    assert 2 == len(sessions)
