"""docs/schema.md says what is in the database, and nothing else."""

import contextlib
import json
import re
import sqlite3
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from store_values import (
    MODEL,
    NOON_MS,
    choice,
    completion,
    database_in,
    first_of_session,
    rate,
    record,
    version,
)

from strop.proxy.store import completions, database, pack
from strop.proxy.store.records import ParentBy, State
from strop.proxy.store.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "schema.md").read_text(encoding="utf-8")


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    made = database.connect(database_in(tmp_path))
    yield made
    made.close()


def described() -> dict[str, list[str]]:
    """The columns that the page describes, by table, in its order."""
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    columns = {
        section.split("\n", 1)[0]: re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
        for section in sections
    }
    return {table: found for table, found in columns.items() if found}


def test_every_table_and_column_is_described(connection: sqlite3.Connection) -> None:
    """Each table has its section and each column its row, in the order of the schema."""
    tables = [
        name
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY rowid"
        )
    ]

    columns = {
        table: [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
        for table in tables
    }

    assert columns == described()


def test_every_word_that_a_column_is_limited_to_is_described(
    connection: sqlite3.Connection,
) -> None:
    """The values that a CHECK allows stand on the page."""
    schema = " ".join(sql for (sql,) in connection.execute("SELECT sql FROM sqlite_schema") if sql)
    words = set(re.findall(r"'(\w+)'", schema))

    assert {"standing", "chain_ambiguous", "upstream_timeout", "processed"} <= words
    assert [] == sorted(word for word in words if f"`{word}`" not in PAGE)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("state", get_args(State)),
        ("session_by", ("client", "parent", "new")),
        ("parent_by", (*get_args(ParentBy), None)),
    ],
)
def test_a_column_takes_its_words_alone(
    connection: sqlite3.Connection, column: str, words: tuple[str | None, ...]
) -> None:
    """Another one is refused, whoever writes it."""
    completions.insert(connection, completions.pack_completion(completion("cmp_1")))
    write = f"UPDATE completions SET {column} = ?"

    for word in words:
        connection.execute(write, (word,))

    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        connection.execute(write, ("other",))


async def test_the_code_on_the_page_reads_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python prints a stored answer with its ids and logprobs; the SQL runs."""
    store = await Store.open(database_in(tmp_path))
    await record(store, "cmp_1", session="my session", version="v2", key_id="local")
    given = (await rate(store, "cmp_1", key_id="local")).feedback
    for _ in range(2):
        await version(store)
    await version(store, (given.id, 1))
    await store.close()
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(import sqlite3.*?)```", PAGE, flags=re.DOTALL)
    questions = re.findall(r"```sql\n(.*?)```", PAGE, flags=re.DOTALL)

    names: dict[str, Any] = {}
    exec(program, names)
    answers = [names["database"].execute(sql).fetchall() for sql in questions]
    names["database"].close()

    assert '{"role":"assistant","content":"A leather for blades."} (7, 11, 2)' in (
        capsys.readouterr().out
    )
    assert [
        [("v2", 1.0, 1)],
        [(1.0, None, "cmp_1")],
        [("cmp_1", None, None, "cmp_1", "complete")],
        [],
    ] == answers


async def test_the_question_for_a_turns_steps_finds_what_training_credits(tmp_path: Path) -> None:
    """Those before the answer whose turn was rated, and none before one that was rated alone."""
    store = await Store.open(database_in(tmp_path))
    ids = [first_of_session(0), "cmp_1", "cmp_2", "cmp_3"]
    for number, id_ in enumerate(ids):
        choices = (choice(chain=b"other"), choice(1, chain=b"%d" % number))
        after = b"%d" % (number - 1) if number else None
        await record(
            store, id_, base=MODEL, after=after, starts_turn=number < 2, choices=choices,
            created_ms=NOON_MS + number,
        )  # fmt: skip
    await rate(store, "cmp_2")
    await rate(store, "cmp_3", scope="turn")
    (question,) = re.findall(r"```sql\n(WITH RECURSIVE steps.*?)```", PAGE, flags=re.DOTALL)

    turns = [turn async for turn in store.training.fresh_turns("base", base=MODEL)]
    await store.close()
    with contextlib.closing(database.connect(database_in(tmp_path))) as connection:
        found = connection.execute(question).fetchall()

    credited = [
        (turn.completions[-1].completion.id, step.completion.id, index)
        for turn in turns
        for step, index in zip(turn.completions[:-1], turn.choices[:-1], strict=True)
    ]
    assert [("cmp_3", "cmp_1", 1), ("cmp_3", "cmp_2", 1)] == found == credited


async def test_the_features_on_the_page_are_those_of_an_exported_line(tmp_path: Path) -> None:
    """What a reader of kto lines is told to expect is there, and nothing else."""
    (program,) = re.findall(r"```python\n(from datasets.*?)```", PAGE, flags=re.DOTALL)
    store = await Store.open(database_in(tmp_path))
    await record(store, "cmp_1")
    await rate(store, "cmp_1")

    (line,) = [json.loads(line) async for line in store.export("kto")]
    await store.close()

    assert sorted(line) == sorted(re.findall(r'"(\w+)": ', program))


async def test_the_program_for_turns_reads_each_answer_that_may_be_learned_from(
    tmp_path: Path,
) -> None:
    """Ids and logprobs of the choice that counts, steps too; of one base, and nothing held out."""
    store = await Store.open(database_in(tmp_path))
    step, apart, other = (first_of_session(n, held_out=n == 1) for n in range(3))
    ids = [array("i", [n]) for n in range(3)]
    choices = (choice(token_ids=ids[0]), choice(1, token_ids=ids[1], chain=b"step"))
    await record(store, step, base=MODEL, choices=choices)
    await record(store, "cmp_last", base=MODEL, after=b"step", starts_turn=False, prompt_ids=ids[2])
    await record(store, apart, base=MODEL)
    await record(store, other, base="another")
    for rated in ("cmp_last", apart, other):
        await rate(store, rated, -1.0, scope="turn")
    (tmp_path / "turns.jsonl").write_bytes(b"".join([line async for line in store.export("turns")]))
    await store.close()
    (program,) = re.findall(r"```python\n(import json.*?)```", PAGE, flags=re.DOTALL)

    names: dict[str, Any] = {}
    exec(program, names)
    found = [*names["lessons"](tmp_path / "turns.jsonl", MODEL)]

    assert [(None, [1], -1.0), ([2], [7, 11, 2], -1.0)] == [
        (prompt, said, rating) for prompt, said, logprobs, rating in found if logprobs
    ]


def test_the_tags_on_the_page_are_the_packers() -> None:
    """0 is plain, 1 is zstd."""
    assert (b"\x00", b"\x01") == (pack.RAW, pack.ZSTD)
    assert "| 0 | the bytes themselves |\n| 1 | one zstd frame of the bytes |" in PAGE
