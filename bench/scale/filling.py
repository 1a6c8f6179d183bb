"""Stores of any size, filled by the store's own operations in a few minutes.

Does not measure. What is rare (a key, a model, a rater, a bad rating) stands at the far end of
every list, so that whatever looks for it without an index has to read all of it.
"""

import random
import sqlite3
import time
from array import array
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

import orjson

from strop.proxy.ids import new_id
from strop.proxy.store import activations, completions, database, feedback, runs, versions
from strop.proxy.store.records import Choice, Completion, NewFeedback
from strop.proxy.store.run_records import RunUpdate

KEY: Final = "key_local"
BASE: Final = "sha256:" + "5c" * 32
MODEL: Final = "bench"
RARE: Final = "rare"
"""The key, model and rater of the oldest conversation."""

_TURNS: Final = 10
_RATED_ONE_OF: Final = 10
_MOST_PER_VERSION: Final = 500
_FEWEST_VERSIONS: Final = 25
_FRESH: Final = 50
_EVERY_MS: Final = 20_000
_TOKENS: Final = 120
_BATCH: Final = 5_000
_PROSE: Final = (
    "the proxy answers and the store keeps each row by an index so that a page costs what it shows"
)


@dataclass(frozen=True, slots=True)
class Spot:
    """One recorded completion, with what leads to it and away from it."""

    id: str
    session: str
    created_ms: int
    chain: bytes
    tail: bytes
    feedback: str


@dataclass(frozen=True, slots=True)
class Filled:
    """A store that is filled, and where to look in it.

    Attributes:
        home: its folder, as `strop serve` takes it.
        num_completions: how many there were when it was made.
        spots: rated completions, spread over all of it.
        newest_ms: when the newest completion that it was filled with was asked for.
        run: a run from the middle.
        version: what that run made.
    """

    home: Path
    num_completions: int
    spots: tuple[Spot, ...]
    newest_ms: int
    run: str
    version: str

    @property
    def database(self) -> Path:
        """The database file."""
        return self.home / "strop.db"


def filled(folder: Path, num_completions: int, say: Callable[[str], None]) -> Filled:
    """Return the store of this size below `folder`; made where it isn't there, whole."""
    home = folder / str(num_completions)
    # A store of an older schema would be measured with what it was filled by.
    made_by = home / "schema.sha256"
    wanted = sha256("".join(database.migrations()).encode()).hexdigest()
    if not made_by.exists() or made_by.read_text() != wanted:
        for name in ("strop.db", "strop.db-wal", "strop.db-shm"):
            (home / name).unlink(missing_ok=True)
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        start = time.monotonic()
        with closing(database.connect(home / "strop.db", synchronous="off")) as connection:
            connection.execute("PRAGMA cache_size = -1000000")
            _fill(connection, num_completions, say)
        made_by.write_text(wanted)
        say(f"filled {num_completions:,} completions in {time.monotonic() - start:.0f} s")
    return _look(home, num_completions)


def _look(home: Path, num_completions: int) -> Filled:
    with closing(sqlite3.connect(home / "strop.db")) as connection:
        spots = [
            Spot(*row)
            for number in range(64)
            for row in connection.execute(
                """SELECT c.id, c.session, c.created_ms, h.chain, h.tail, f.id
FROM feedback AS f CROSS JOIN completions AS c ON c.id = f.completion
CROSS JOIN choices AS h ON h.completion = c.id
WHERE f.state = 'standing' AND h.choice = 0 AND c.key_id = ? AND f.num >= ?
ORDER BY f.num LIMIT 1""",
                (KEY, 1 + number * (num_completions // _RATED_ONE_OF) // 64),
            )
        ]
        ((newest_ms,),) = connection.execute(
            "SELECT max(created_ms) FROM completions WHERE num <= ?", (num_completions,)
        )
        ((run, version),) = connection.execute(
            "SELECT id, version FROM runs WHERE num > (SELECT max(num) / 2 FROM runs) LIMIT 1"
        )
    return Filled(home, num_completions, tuple(spots), newest_ms, run, f"v{version}")


def _fill(connection: sqlite3.Connection, num: int, say: Callable[[str], None]) -> None:
    rng = random.Random(num)
    first_ms = time.time_ns() // 1_000_000 - num * _EVERY_MS
    ratings: list[tuple[str, int]] = []
    for start in range(0, num, _BATCH):
        connection.execute("BEGIN")
        for number in range(start, min(num, start + _BATCH)):
            made = _completion(number, first_ms + number * _EVERY_MS, rng)
            completions.insert(connection, completions.pack_completion(made))
            if number % _RATED_ONE_OF == 3:
                given = feedback.add(
                    connection,
                    _rating(made, number),
                    is_in_flight=False,
                    now_ms=made.created_ms + 5_000,
                ).feedback
                ratings.append((given.id, given.revision))
        connection.execute("COMMIT")
        if start % 100_000 == 0 and start:
            say(f"  {start:,} of {num:,}")
    connection.execute("BEGIN")
    _learn(connection, ratings, first_ms + num * _EVERY_MS)
    connection.execute("COMMIT")


def _completion(number: int, now_ms: int, rng: random.Random) -> Completion:
    conversation, turn = divmod(number, _TURNS)
    is_rare = conversation == 0
    key_id = RARE if is_rare else KEY
    messages = [
        {"role": "user", "content": f"{conversation}: " + _prose(rng, 60)},
        *(
            message
            for each in range(turn)
            for message in (
                {"role": "assistant", "content": f"{conversation}.{each}: " + _prose(rng, 10)},
                {"role": "user", "content": f"and {each + 1}?"},
            )
        ),
    ]
    model = RARE if is_rare else MODEL
    answer = {"role": "assistant", "content": f"{conversation}.{turn}: " + _prose(rng, 80)}
    return Completion(
        id=new_id("cmp", now_ms),
        created_ms=now_ms,
        key_id=key_id,
        dialect="chat",
        engine="vllm",
        model=model,
        served=MODEL,
        version="base",
        base=BASE,
        state=_state(number),
        delivered=True,
        stream=number % 2 == 0,
        request=orjson.dumps({"model": model, "messages": messages, "temperature": 1.0}),
        status=200,
        prompt_tokens=200,
        completion_tokens=_TOKENS,
        total_ms=900.0,
        overhead_ms=1.0,
        upstream_id=f"chatcmpl-{number:032x}",
        starts_turn=True,
        after=_key("chain", conversation, turn - 1) if turn else None,
        after_tail=_key("tail", conversation, turn - 1) if turn else None,
        choices=(
            Choice(
                index=0,
                message=orjson.dumps(answer),
                finish_reason="stop",
                token_ids=array("i", (rng.randrange(150_000) for _ in range(_TOKENS))),
                logprobs=array("f", (-rng.random() for _ in range(_TOKENS))),
                logprobs_source="engine",
                logprobs_kind="raw",
                chain=_key("chain", conversation, turn),
                tail=_key("tail", conversation, turn),
            ),
        ),
    )


def _state(number: int) -> Literal["complete", "client_cancelled"]:
    return "client_cancelled" if number % 50 == 7 else "complete"


def _rating(made: Completion, number: int) -> NewFeedback:
    is_rare = number < _TURNS
    is_good = not is_rare and number % 30 != 13
    return NewFeedback(
        completion=made.id,
        key_id=made.key_id,
        rating=1.0 if is_good else -1.0,
        original=b'"good"' if is_good else b'"bad"',
        rater=RARE if is_rare else "",
        comment="it keeps its edge",
        digest=b"d" * 32,
    )


def _learn(connection: sqlite3.Connection, ratings: list[tuple[str, int]], now_ms: int) -> None:
    """Let a line of versions learn all but the newest ratings, a run for each."""
    learned = ratings[:-_FRESH]
    # A small store's lists fill a page, too.
    at_once = min(_MOST_PER_VERSION, max(1, len(learned) // _FEWEST_VERSIONS))
    parent: str | None = None
    for start in range(0, len(learned), at_once):
        run = runs.create(
            connection, objective="topr", preset="balanced", parent=parent, base=BASE,
            requested_by="trigger", config=b"{}", now_ms=now_ms,
        )  # fmt: skip
        made = versions.reserve(
            connection, base=BASE, parent=parent, run=run.id, origin="run", now_ms=now_ms
        )
        for state in ("running", "gating"):
            runs.update(connection, run.id, RunUpdate(state=state), now_ms=now_ms)
        for step in range(20):
            runs.add_step(connection, run.id, step, b'{"loss": 0.1}', eta_s=1.0, now_ms=now_ms)
        versions.publish(
            connection, made.id, manifest=b"{}",
            feedback=learned[start : start + at_once],
            state="ready", reason=None, actor="gate", now_ms=now_ms,
        )  # fmt: skip
        runs.update(connection, run.id, RunUpdate(state="passed"), now_ms=now_ms)
        activations.activate(
            connection, made.id, kind="activated", actor="gate", detail=b"{}", now_ms=now_ms
        )
        if parent is not None:
            # As retention does: what descends from it has still learned what it learned.
            versions.remove(connection, parent, actor="gate", now_ms=now_ms)
        parent = made.id


def _key(kind: str, conversation: int, turn: int) -> bytes:
    return sha256(f"{kind} {conversation} {turn}".encode()).digest()[:16]


def _prose(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choices(_PROSE.split(), k=num_words))
