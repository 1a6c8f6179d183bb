"""Random walks of several clients: what strop records, says and passes on is what they did.

Each walk is made from a seed; nothing is judged that depends on which of two clients came first.
"""

import asyncio
import json
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from expected import Completion, Expected, Rating, Talk
from fake_engine import FakeEngine
from faults_report import Reached, scaled
from running import SELDOM_S
from said import Said
from swapped import Swapped, swapped
from waiting import LIMIT_S, until
from walk_engine import LOOK, Talker, Way
from walk_speaker import Speaker

pytestmark = pytest.mark.faults

KEYS: Final = ("key-of-ann", "key-of-bob")
NUM_STEPS: Final = 22
"""How much each client does between two restarts."""

NUM_CLIENTS: Final = 4
NUM_STARTS: Final = 2
NUM_SWITCHES: Final = 3
NUM_WALKS: Final = 3


class Client(Speaker):
    """One client with several conversations, of which it goes on with one or another at random.

    What it rates is its own. It shares its key, and the words of its conversations, with others;
    the name `shared`, and conversations without a name, only with those of other keys.
    """

    def __init__(self, number: int, seed: int, book: Expected, engine: Talker, home: Path) -> None:
        chance = random.Random(f"{seed} {number}")
        super().__init__(f"client{number}", KEYS[number % len(KEYS)], chance, book, engine, home)
        self.is_first = number < len(KEYS)
        self.talks: list[Talk] = []
        self.posted: list[tuple[Talk, dict[str, Any], dict[str, str], Rating]] = []
        self.num_steps = 0

    async def walk(self, http: httpx.AsyncClient) -> None:
        """Do a number of things."""
        self.http = http
        things = {
            self.turn: 30, self.command: 20, self.fork: 10, self.cut: 10, self.post: 14,
            self.change: 8, self.rate_in_flight: 8,
        }  # fmt: skip
        for thing in self.chance.choices(list(things), list(things.values()), k=NUM_STEPS):
            await thing()
            self.num_steps += 1

    async def turn(self) -> None:
        """Ask, perhaps with a rating of the answer above in a header, and do what tools are for."""
        talk = self._pick()
        talk.said.append(Said("user", self._question(talk, LOOK if self.may(0.25) else "?")))
        num = 2 if talk.dialect == "chat" and self.may(0.2) else 1
        header = self._header()
        if header and self.may(0.4):
            # As SDKs do, whose connection broke before the answer came.
            await self.ask(talk, num=num, header=header)
        await self._go_on(talk, await self.ask(talk, num=num, header=header))

    async def fork(self) -> None:
        """Go back to a question, and ask it again, or another one; perhaps rate what is above."""
        talk = self._pick()
        places = [at for at, one in enumerate(talk.history) if one.role == "user"]
        if not places:
            return
        question = talk.history[self.chance.choice(places)]
        new = talk.copy(talk.said.index(question))
        if self.may(0.5):
            question = Said("user", self._question(new, "instead?"))
        new.said.append(question)
        new.steps.append("fork")
        self.talks.append(new)
        await self._go_on(new, await self.ask(new, header=self._header()))

    async def cut(self) -> None:
        """Ask what gets half an answer or none, and drop both; perhaps rate it before."""
        talk = self._pick().copy()
        talk.said.append(Said("user", self._question(talk, "and?")))
        way: Way = self.chance.choice(["left", "left", "dies", "refused"])
        one = await self.ask(talk, way)
        if talk.label and self.may(0.7):
            is_answered = any(choice.text for choice in one.choices)
            verb = self.chance.choice(["bad", "good", "undo"])
            await self.say(talk.copy(), verb, (one.id, 0), is_answered=is_answered)
        if any(choice.text.strip() for choice in one.choices) and self.may(0.3):
            await self._go_on(talk, one)
            self.talks.append(talk)

    async def command(self) -> None:
        """Type a command."""
        talk = self._pick()
        if answer := self.book.reply(talk, talk.history):
            (verb,) = self.chance.choices(["good", "bad", "undo", "status"], (3, 3, 2, 2))
            await self.say(talk, verb, answer)

    async def post(self) -> None:
        """Rate an answer by its id, perhaps once more the same way, or with another's key."""
        if not self.own:
            return
        one = self.chance.choice(self.own[-3:])
        digits = one.id.removeprefix("cmp_")
        name = self.chance.choice(["cmp_", "msg_", "resp_", "chatcmpl-"]) + digits
        if name.startswith("chatcmpl-") and not one.choices:
            name = one.id
        body, headers = self._rating(name)
        choice = body.get("choice", 0)
        assert isinstance(choice, int)
        one.talk.steps.append(f"POST {body} {headers}")
        answer = await self.http.post("/v1/feedback", json=body, headers=headers)
        known = choice < len(one.choices)
        self.book.same("a rating by id", 201 if known else 400, answer.status_code, one.talk)
        if known:
            await self._enter(one.id, one.talk, body, headers, answer.json())
        others = {"authorization": f"Bearer {KEYS[self.key == KEYS[0]]}"}
        strange = await self.http.post("/v1/feedback", json=body, headers={**headers, **others})
        self.book.same("a rating with another key", 404, strange.status_code, one.talk)

    async def change(self) -> None:
        """Revise a rating, withdraw it, or send one again that was sent before."""
        rated = [each for one in self.own for each in self._ratings_of(one)]
        if not rated:
            return
        if self.posted and self.may(0.4):
            await self._repeat(*self.chance.choice(self.posted))
        else:
            rating = self.chance.choice(rated[-12:])
            await self._change(rating, self.book.completions[rating.answer[0]].talk)

    async def rate_in_flight(self) -> None:
        """Rate an answer that is not whole, which then goes on, dies or is left."""
        talk = self._pick().copy()
        talk.said.append(Said("user", self._question(talk, "at once?")))

        async def rate(id_: str) -> None:
            for _ in range(self.chance.randint(1, 4)):
                body, headers = self._rating(id_)
                talk.steps.append(f"POST in flight {body} {headers}")
                answer = await self.http.post("/v1/feedback", json=body, headers=headers)
                self.book.same("a rating in flight", 202, answer.status_code, talk)
                rating = await self._enter(id_, talk, body, headers, answer.json())
                if self.may(0.3):
                    await self._change(rating, talk)

        one = await self.ask(talk, self.chance.choice(["whole", "whole", "dies", "left"]), rate)
        for rating in self._ratings_of(one):
            seen = await self.http.get(f"/v1/feedback/{rating.id}")
            self.book.check_object(rating, seen.json(), talk)

    def _header(self) -> str | None:
        """Return what a request's header says of the answer above, if it says anything."""
        said = self.chance.choice(["good", "good", "bad", 'bad; comment="so; so"', "undo"])
        return said if self.may(0.5) else None

    def _pick(self) -> Talk:
        """Return a conversation, or a new one."""
        if self.talks and self.may(0.7):
            return self.chance.choice(self.talks[-6:])
        common = "shared" if self.is_first else f"{self.name}-2"
        label = self.chance.choice([None, f"{self.name}-1", common, common])
        talk = Talk(self.key, label, self.chance.choice(["chat", "chat", "messages", "responses"]))
        self.talks.append(talk)
        return talk

    def _question(self, talk: Talk, what: str) -> str:
        """Return what is asked next: the same in others' conversations, if these can be told."""
        whose = "" if talk.label or self.is_first else f" of {self.name} {self.num_asked}"
        return f"Question {len(talk.history)}{whose}, {what}"

    async def _go_on(self, talk: Talk, one: Completion) -> None:
        """Take an answer into the history, and send what its tool gives until there is a text."""
        number = self.chance.randrange(len(one.choices))
        link = one.id.replace("cmp_", "resp_") if one.state == "complete" else ""
        answer = replace(one.choices[number], link=link)
        talk.said.append(answer)
        if answer.calls:
            found = f"found {len(talk.history)}, {LOOK if self.may(0.3) else 'done'}"
            talk.said.append(Said("tool", found, result_of=answer.calls[0][0]))
            await self._go_on(talk, await self.ask(talk))

    def _rating(self, name: str) -> tuple[dict[str, object], dict[str, str]]:
        """Return the body and the headers of a rating."""
        rating = self.chance.choice(["good", "bad", "up", False, 0.25, {"stars": 4}])
        body: dict[str, object] = {"completion_id": name, "rating": rating}
        more = {
            "choice": (0.15, 1), "comment": (0.3, f"since {self.num_steps}"), "rater": (0.5, "eve"),
            "correction": (0.3, "Better."), "scope": (0.3, "turn"),
        }  # fmt: skip
        body |= {key: value for key, (chance, value) in more.items() if self.may(chance)}
        identity = f"{self.name}-{self.chance.getrandbits(32)}"
        way = self.chance.choice(["", "id", "idempotency-key"])
        body |= {"id": identity} if way == "id" else {}
        return body, {"idempotency-key": identity} if way == "idempotency-key" else {}

    async def _enter(
        self,
        id_: str,
        talk: Talk,
        body: dict[str, Any],
        headers: dict[str, str],
        seen: dict[str, Any],
    ) -> Rating:
        """Enter a rating that was posted; send it again, perhaps."""
        says = {"scope": "completion", **said_in(body), "source": "api"}
        answer, rater = (id_, body.get("choice", 0)), body.get("rater", "")
        rating = self.book.rate(seen["id"], self.key, answer, rater, **says)
        self.book.check_object(rating, seen, talk)
        if headers or "id" in body:
            self.posted.append((talk, body, headers, rating))
            if self.may(0.5):
                await self._repeat(*self.posted[-1])
        return rating

    async def _repeat(
        self, talk: Talk, body: dict[str, Any], headers: dict[str, str], rating: Rating
    ) -> None:
        """Send a rating again: the same words change nothing, others are refused."""
        talk.steps.append(f"POST again {body} {headers}")
        again = await self.http.post("/v1/feedback", json=body, headers=headers)
        self.book.same("a repeated rating", 200, again.status_code, talk)
        self.book.check_object(rating, again.json(), talk)
        other = {**body, "comment": "other words"}
        refused = await self.http.post("/v1/feedback", json=other, headers=headers)
        self.book.same("another rating of that id", 409, refused.status_code, talk)

    async def _change(self, rating: Rating, talk: Talk) -> None:
        """Revise or withdraw a rating."""
        if self.may(0.5):
            talk.steps.append(f"DELETE {rating.id}")
            changed = await self.http.delete(f"/v1/feedback/{rating.id}")
            self.book.withdraw(rating)
        else:
            body = {"rating": "bad", "comment": self.chance.choice(["on reflection", "no"])}
            talk.steps.append(f"PUT {rating.id} {body}")
            changed = await self.http.put(f"/v1/feedback/{rating.id}", json=body)
            if rating.state in ("superseded", "withdrawn"):
                self.book.same("a change of what is past", 409, changed.status_code, talk)
                return
            says = {**rating.says, **said_in(body), "correction": None}
            rating.revision += says != rating.says
            rating.says = says
        self.book.same("a change", 200, changed.status_code, talk)
        self.book.check_object(rating, changed.json(), talk)

    def _ratings_of(self, one: Completion) -> list[Rating]:
        return [each for each in self.book.ratings.values() if each.answer[0] == one.id]


class Operator:
    """Who switches versions while the clients walk."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.num_switches = 0

    async def walk(self, proxy: Swapped, home: Path, clients: Sequence[Client]) -> None:
        """Switch, and again when the clients have got on."""
        key = (home / "admin.key").read_text(encoding="utf-8").strip()

        def num_steps() -> int:
            return max(one.num_steps for one in clients)

        begun = self.num_switches // NUM_SWITCHES * NUM_STEPS
        for step in sorted(self.chance.choices(range(NUM_STEPS), k=NUM_SWITCHES)):
            await until(num_steps, (begun + step).__le__)
            version = self.chance.choice(["base", "v1", "v2", "v3"])
            switched = await proxy.proxy.client.put(
                "/admin/adapters/active",
                json={"version": version},
                headers={"authorization": f"Bearer {key}"},
            )
            assert switched.status_code == 200, switched.text
            self.num_switches += 1


async def check(book: Expected, proxy: Swapped, home: Path, clients: Sequence[Client]) -> None:
    """Compare all that strop has recorded, while nobody asks anything."""
    await until(lambda: not proxy.proxy.services.relay.num_calls)
    book.check_rows(home)
    for client in clients[: len(KEYS)]:
        listed: list[dict[str, Any]] = []
        query: dict[str, Any] = {"limit": 30}
        while True:
            page = (await client.http.get("/v1/feedback", params=query)).json()
            listed += page["data"]
            if not page["has_more"]:
                break
            query["after"] = page["data"][-1]["id"]
        book.check_list(client.key, listed)
        exported = await client.http.get("/v1/feedback/export", params={"format": "raw"})
        book.check_export(client.key, map(json.loads, exported.text.splitlines()))
    book.check_metrics((await proxy.proxy.client.get("/metrics")).text)


@pytest.mark.parametrize("seed", range(scaled(NUM_WALKS)))
async def test_strop_knows_what_its_clients_did(
    seed: int, tmp_path: Path, reached: Reached
) -> None:
    """Four clients with two keys talk, fork, rate and leave; versions change, strop restarts.

    Each request is one row under its parent; each rating stands once, where it was meant; nobody
    sees another's, and the model no commands.
    """
    home = tmp_path / "home"
    talker, book, operator = Talker(), Expected(seed), Operator(seed)
    clients = [Client(number, seed, book, talker, home) for number in range(NUM_CLIENTS)]
    async with FakeEngine(talker) as engine:
        for number in range(NUM_STARTS):
            book.counted.clear()
            async with AsyncExitStack() as stack:
                proxy = await stack.enter_async_context(
                    swapped(
                        home,
                        fake=talker,
                        engine=engine,
                        hold_s=LIMIT_S,
                        health_interval_s=SELDOM_S,
                        server={"client_keys": KEYS},
                        # What is answered is recorded, however slow the disk is.
                        capture={"commit_timeout_s": LIMIT_S},
                    )
                )
                for _ in range(0 if number else 3):
                    await proxy.publish()
                async with asyncio.TaskGroup() as walks:
                    for client in clients:
                        http = httpx.AsyncClient(
                            base_url=proxy.proxy.url,
                            timeout=LIMIT_S,
                            headers={"authorization": f"Bearer {client.key}"},
                        )
                        await stack.enter_async_context(http)
                        walks.create_task(client.walk(http))
                    walks.create_task(operator.walk(proxy, home, clients))
                await check(book, proxy, home, clients)

    states = [rating.state for rating in book.ratings.values()]
    reached(
        requests=len(book.completions),
        sessions=len({(one.talk.key, one.session) for one in book.completions.values()}),
        ratings=len(states),
        superseded=states.count("superseded"),
        withdrawn=states.count("withdrawn"),
        switches=operator.num_switches,
    )


def said_in(body: dict[str, Any]) -> dict[str, object]:
    """Return what a rating's body says, as its object has it."""
    rating = body["rating"]
    values = {"good": 1.0, "up": 1.0, "bad": -1.0, False: -1.0}
    value = 0.5 if isinstance(rating, dict) else values.get(rating, rating)
    names = ("comment", "correction", "scope")
    return {"rating": value, **{name: body[name] for name in names if name in body}}
