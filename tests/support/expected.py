"""What strop should know after random walks of its clients, learned from what these see alone.

The rules in their plainest form: a request follows the newest answer of its own key and session
whose whole history it repeats; an answer has one standing rating of each rater. Sends nothing, and
reads the database only to compare.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from faults_process import database
from said import Answer, Said

from strop.proxy.auth import key_id
from strop.proxy.store.pack import unpack_bytes

NUM_SHOWN: Final = 12
"""How many of a conversation's last steps are shown where something is wrong."""


@dataclass
class Talk:
    """A conversation as its client has it, commands and strop's answers to them included.

    Attributes:
        label: what the client calls its session, if it does.
        dialect: of all its requests: `chat`, `messages` or `responses`.
        steps: what was done, for who reads of a failure.
    """

    key: str
    label: str | None
    dialect: str
    said: list[Said] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    @property
    def history(self) -> tuple[Said, ...]:
        """What the model may see."""
        return tuple(one for one in self.said if not one.is_command)

    def copy(self, length: int | None = None) -> "Talk":
        """Return another that has begun as this one."""
        return Talk(self.key, self.label, self.dialect, self.said[:length], self.steps[:])


@dataclass
class Completion:
    """A request that reached the engine, and what came of it."""

    id: str
    talk: Talk
    asked: tuple[Said, ...]
    is_stream: bool
    version: str
    state: str
    choices: list[Said]
    parent: Answer | None
    session: str = ""
    turn: str = ""


@dataclass
class Rating:
    """A rating that strop has taken; `says` is what its object has, but for what else is here."""

    id: str
    key: str
    answer: Answer
    rater: str
    says: dict[str, object]
    state: str = "standing"
    revision: int = 1
    session: str | None = None

    @property
    def value(self) -> float:
        """The rating itself."""
        value = self.says["rating"]
        assert isinstance(value, float)
        return value


class Expected:
    """All that strop should have recorded.

    Attributes:
        counted: what its counters of completions and ratings should say, since its start.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.completions: dict[str, Completion] = {}
        self.ratings: dict[str, Rating] = {}
        self.counted: Counter[str] = Counter()
        self._newest: dict[object, Answer] = {}
        self._standing: dict[object, Rating] = {}

    def same(self, what: str, expected: object, actual: object, talk: Talk) -> None:
        """Fail unless both are equal; say how the conversation went."""
        __tracebackhide__ = True
        if expected != actual:
            steps = "\n  ".join(talk.steps[-NUM_SHOWN:])
            raise AssertionError(
                f"seed {self.seed}, {what}:\nexpected {expected!r}\n     got {actual!r}\n"
                f"in {talk.label or 'a session without a name'} of {talk.key}, {talk.dialect}:"
                f"\n  {steps}"
            )

    def reply(self, talk: Talk, history: Sequence[Said]) -> Answer | None:
        """Return the answer that a history ends in, what is asked behind it left out."""
        last = _last_answer(history)
        return self._newest.get(_found_by(talk, history[: last + 1])) if last >= 0 else None

    def record(self, one: Completion) -> None:
        """Enter a completion that has ended, and bind what was rated while it ran."""
        parent = self.completions[one.parent[0]] if one.parent else None
        own = "ses_" + one.id.removeprefix("cmp_")
        one.session = one.talk.label or (parent.session if parent else own)
        one.turn = parent.turn if parent and not _starts_turn(one.asked) else one.id
        self.completions[one.id] = one
        self.counted[one.state] += 1
        for number, choice in enumerate(one.choices):
            self._newest[_found_by(one.talk, (*one.asked, choice))] = one.id, number
        for rating in self.ratings.values():
            if rating.answer[0] == one.id and rating.state == "pending":
                if rating.answer[1] < len(one.choices):
                    self._stand(rating)
                else:
                    rating.state = "withdrawn"
            if rating.answer[0] == one.id and rating.state == "standing":
                rating.session = one.session

    def rate(self, id_: str, key: str, answer: Answer, rater: str = "", **says: object) -> Rating:
        """Enter a new rating, pending where its completion runs still."""
        says = {"comment": None, "correction": None, "scope": "turn"} | says
        rating = Rating(id_, key, answer, rater, says, "pending")
        self.ratings[id_] = rating
        self.counted[str(says["source"])] += 1
        if answer[0] in self.completions:
            self._stand(rating)
        return rating

    def withdraw(self, rating: Rating) -> None:
        """Take a rating back; what it superseded stays superseded."""
        rating.state = "withdrawn"
        if self.standing(rating.key, rating.answer, rating.rater) is rating:
            del self._standing[rating.key, rating.answer, rating.rater]

    def standing(self, key: str, answer: Answer | None, rater: str = "") -> Rating | None:
        """Return the rating of an answer that counts."""
        return self._standing.get((key, answer, rater))

    def to_undo(self, key: str, answer: Answer | None) -> Rating | None:
        """Return the rating that `/rl undo` takes back: of the answer, or the next above it."""
        while answer is not None:
            if found := self.standing(key, answer):
                return found
            answer = self.completions[answer[0]].parent
        return None

    def status(self, key: str, answer: Answer) -> str:
        """Return what `/rl status` says."""
        one = self.completions[answer[0]]
        values = [each.value for each in self._all_standing(key) if each.session == one.session]
        good, bad = sum(v > 0 for v in values), sum(v < 0 for v in values)
        above = f"The answer above is {one.id}, by {one.version}."
        return f"[strop] In this conversation: {good} good, {bad} bad. {above}"

    def check_object(self, rating: Rating, seen: dict[str, Any], talk: Talk) -> None:
        """Compare a feedback object with what was rated."""
        own = {"id": rating.id, "state": rating.state, "revision": rating.revision}
        of = {"completion_id": rating.answer[0], "choice": rating.answer[1], "rater": rating.rater}
        expected = {**own, **of, "session": rating.session, **rating.says}
        self.same("a feedback object", expected, {name: seen[name] for name in expected}, talk)

    def check_rows(self, home: Path) -> None:
        """Compare the database: each request is one row, under its parent, with its answers."""
        columns = (
            "id, key_id, version, state, stream, session, session_by, turn, starts_turn, parent,"
            " parent_choice"
        )
        with database(home) as opened, closing(opened.cursor()) as cursor:
            rows = cursor.execute(f"SELECT {columns} FROM completions").fetchall()
            texts = cursor.execute(
                "SELECT completion, message FROM choices ORDER BY completion, choice"
            ).fetchall()
        found = {id_: [_words(blob) for _, blob in each] for id_, each in groupby(texts, _first)}
        differ = {row[0] for row in rows} ^ self.completions.keys()
        assert not differ, f"seed {self.seed}: without a request, or without a row: {differ}"
        for row in rows:
            one = self.completions[row[0]]
            label = one.talk.label
            named_by = "client" if label else "parent" if one.parent else "new"
            answer = one.parent or (None, None)
            expected = (one.id, key_id(one.talk.key), one.version, one.state, one.is_stream)
            expected += (one.session, named_by, one.turn, _starts_turn(one.asked), *answer)
            self.same("a row", expected, row, one.talk)
            words = [choice.known_by[1:] for choice in one.choices]
            self.same("the choices of a row", words, found.get(one.id, []), one.talk)

    def check_list(self, key: str, objects: Iterable[dict[str, Any]]) -> None:
        """Compare all that `/v1/feedback` shows a key."""
        listed = {one["id"]: one for one in objects}
        own = {one.id: one for one in self.ratings.values() if one.key == key}
        differ = own.keys() ^ listed.keys()
        assert not differ, f"seed {self.seed}: not all of {key}, or too many: {differ}"
        for id_, rating in own.items():
            self.check_object(rating, listed[id_], self.completions[rating.answer[0]].talk)

    def check_export(self, key: str, lines: Iterable[dict[str, Any]]) -> None:
        """Compare the raw export of a key: what stands, by completion."""
        expected = defaultdict(set)
        for each in self._all_standing(key):
            expected[each.answer[0]].add((each.id, each.answer[1], each.value))
        exported = {one["id"]: one for one in lines}
        differ = expected.keys() ^ exported.keys()
        assert not differ, f"seed {self.seed}: not all of {key}, or too many: {differ}"
        for id_, one in exported.items():
            owner = self.completions[id_]
            told = {(each["id"], each["choice"], each["rating"]) for each in one["feedback"]}
            self.same("exported ratings", expected[id_], told, owner.talk)
            where = one["session"], one["version"]
            self.same("exported", (owner.session, owner.version), where, owner.talk)

    def check_metrics(self, text: str) -> None:
        """Compare the counters."""
        lines = (line.split(" ") for line in text.splitlines() if not line.startswith("#"))
        values = {name: float(value) for name, value in lines}
        counted = {
            name.split('"')[1]: value
            for name, value in values.items()
            if name.startswith(("strop_completions_total", "strop_feedback_total")) and value
        }
        assert counted == self.counted, f"seed {self.seed}: {counted}, not {self.counted}"
        assert values["strop_completions_lost_total"] == 0

    def _stand(self, rating: Rating) -> None:
        place = rating.key, rating.answer, rating.rater
        if before := self._standing.get(place):
            before.state = "superseded"
        self._standing[place] = rating
        rating.state = "standing"
        rating.session = self.completions[rating.answer[0]].session

    def _all_standing(self, key: str) -> list[Rating]:
        return [one for one in self._standing.values() if one.key == key]


def _last_answer(history: Sequence[Said]) -> int:
    return max((at for at, one in enumerate(history) if one.role == "assistant"), default=-1)


def _starts_turn(asked: Sequence[Said]) -> bool:
    return any(one.role == "user" for one in asked[_last_answer(asked) + 1 :])


def _found_by(talk: Talk, history: Sequence[Said]) -> object:
    # Of equal answers that call a tool, the call's id tells which it is.
    ids = [id_ for id_, _ in history[-1].calls[:1]]
    return talk.key, talk.label, tuple(one.known_by for one in history), *ids


def _first(row: tuple[Any, ...]) -> Any:
    return row[0]


def _words(blob: bytes) -> tuple[object, ...]:
    message = json.loads(unpack_bytes(blob))
    calls = message.get("tool_calls") or ()
    arguments = tuple(call["function"]["arguments"] for call in calls)
    return (message.get("content") or "").strip(), arguments
