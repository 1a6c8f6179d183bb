"""kill -9 at random moments: what a client was given, or told, is in the database afterwards."""

import asyncio
import random
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from faults_client import Answer, Client, Plan, ask
from faults_engine import WAY_HEADER, FaultyEngine
from faults_process import behind, database, serving, started
from faults_report import Reached, scaled

pytestmark = pytest.mark.faults

NUM_WORKERS = 64
SETTLED = {"standing", "superseded", "withdrawn"}


@dataclass
class Promises:
    """What the proxy has promised to its clients, over all of its lives.

    Attributes:
        answered: ids of the completions that a client has in full.
        rated: the idempotency id of each rating that was acknowledged, and its completion.
        pending: those among them that were acknowledged as pending.
    """

    answered: set[str] = field(default_factory=set)
    rated: dict[str, str] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)

    def check(self, home: Path) -> Counter[str]:
        """Check all of it against the database of a dead proxy; return the ratings' states."""
        with database(home) as opened:
            assert [("ok",)] == opened.execute("PRAGMA integrity_check").fetchall()
            assert [] == opened.execute("PRAGMA foreign_key_check").fetchall()
            rows = opened.execute("SELECT id, state FROM completions").fetchall()
            ratings = opened.execute("SELECT idempotency, completion, state FROM feedback")
            found = {name: (completion, state) for name, completion, state in ratings.fetchall()}
            num_ratings = opened.execute("SELECT count(*) FROM feedback").fetchone()[0]
        states = dict(rows)
        assert len(rows) == len(states)
        assert num_ratings == len(found)
        assert {"complete"} >= {states.get(id_, "missing") for id_ in self.answered}
        for name, completion in self.rated.items():
            there, state = found[name]
            assert completion == there
            if completion in states:
                assert state in SETTLED
            else:
                # Its completion died with the proxy; the next one withdraws it.
                assert state in ("pending", "withdrawn")
                assert name in self.pending
        return Counter(state for _, state in found.values())


class Load:
    """Clients that ask and rate until the proxy is gone."""

    def __init__(self, url: str, promises: Promises, seed: str) -> None:
        self._url = url
        self._promises = promises
        self._seed = seed
        self._num_ratings = 0

    async def run(self) -> None:
        """Keep the proxy busy; return when it answers no more."""
        await asyncio.gather(
            *(self._work(random.Random(f"{self._seed}-{n}")) for n in range(NUM_WORKERS))
        )

    async def _work(self, chance: random.Random) -> None:
        while True:
            try:
                answer = await self._ask(chance)
            except (OSError, EOFError):
                return
            if answer.is_answered:
                self._promises.answered.add(answer.completion_id)
                if chance.random() < 0.5:
                    await self._rate(answer.completion_id)

    async def _ask(self, chance: random.Random) -> Answer:
        """Ask; while a stream runs, rate it at times. Any loss of the connection is raised."""
        fields: dict[str, Any] = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": chance.random() < 0.7,
        }
        way = chance.choice(("ok", "slow", "held", "fin"))
        head, body = Plan(fields, {WAY_HEADER: way}).request()
        answer = Answer()
        connection = await Client.connect(self._url)
        try:
            connection.send(head + body)
            await connection.read_head(answer)
            if fields["stream"] and chance.random() < 0.3:
                await self._rate(answer.completion_id)
            await connection.read_body(answer)
        except (OSError, EOFError):
            # All of a stream is there with its [DONE], whatever became of the chunk's end.
            if answer.is_answered:
                self._promises.answered.add(answer.completion_id)
            raise
        finally:
            await connection.leave()
        return answer

    async def _rate(self, completion: str) -> None:
        self._num_ratings += 1
        name = f"{self._seed}-{self._num_ratings}"
        said: dict[str, object] = {"completion_id": completion, "rating": "good", "id": name}
        answer = await ask(self._url, Plan(said, path="/v1/feedback"))
        # An engine that broke off at once left nothing to rate: that is a 400, and no promise.
        assert answer.status in (0, 201, 202, 400), answer.body
        if answer.status in (201, 202):
            self._promises.rated[name] = completion
        if answer.status == 202:
            self._promises.pending.add(name)


@pytest.mark.timeout(300)
async def test_what_was_given_or_acknowledged_survives_every_kill(
    tmp_path: Path, reached: Reached
) -> None:
    """Each whole answer and each acknowledged rating is there exactly once, kill after kill.

    The kills come while it starts, too, and the same home serves again each time.
    """
    home = tmp_path / "home"
    chance = random.Random(20)
    promises = Promises()
    num_kills = scaled(20)
    states: Counter[str] = Counter()
    async with FakeEngine(FaultyEngine(seed=5), reads_body=False) as engine:
        for number in range(num_kills):
            async with started(home, *behind(engine.url)) as proxy:
                if number % 5 == 0:
                    await asyncio.sleep(chance.uniform(0.2, 0.9))
                    assert -signal.SIGKILL == await proxy.end(signal.SIGKILL)
                else:
                    await proxy.wait_until_ready()
                    load = asyncio.create_task(Load(proxy.url, promises, str(number)).run())
                    await asyncio.sleep(chance.uniform(0.05, 0.55))
                    assert -signal.SIGKILL == await proxy.end(signal.SIGKILL)
                    await load
                    states = promises.check(home)

        async with serving(home, *behind(engine.url)) as survivor:
            assert "ok" == (await survivor.get("/health"))["status"]
            assert (await ask(survivor.url, Plan({"model": "tiny", "messages": []}))).is_answered
        promises.check(home)

    assert promises.answered
    assert promises.rated
    assert promises.pending
    reached(
        kills=num_kills,
        answers_in_full=len(promises.answered),
        ratings_acknowledged=len(promises.rated),
        of_completions_in_flight=len(promises.pending),
        still_pending=states["pending"],
    )
