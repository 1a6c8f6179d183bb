"""bench.real_model: its tastes, its questions, and a round of it with strop's small model."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

# The benchmark is no part of the installed package.
sys.path.append(str(Path(__file__).parents[1]))

from bench.real_model import person
from bench.real_model.__main__ import _row, _table
from bench.real_model.play import NUM_SAMPLES, Measured, Plan, Round, play
from strop.adapters.rates import Rate
from strop.training.demo.served import serve


@pytest.mark.parametrize(
    ("text", "has_list"),
    [
        ("It takes:\n- flour\n- eggs", True),
        ("1. Boil it.\n2. Eat it.", True),
        ("So:\n  * first", True),
        ("2) then", True),
        ("A well-known fact - no list, of 1.5 lines.", False),
        ("-5 degrees", False),
        (" \n", False),
    ],
)
def test_who_likes_lists_likes_what_has_one(text: str, has_list: bool) -> None:
    """Who likes prose likes the others, unless they say nothing."""
    assert has_list == person.TASTES["lists"](text)
    assert (bool(text.strip()) and not has_list) == person.TASTES["prose"](text)


def test_what_measures_is_never_rated() -> None:
    """Whatever the seed; which only changes the order."""
    rated, held_out = person.questions(0)
    others, same = person.questions(1)

    assert person.NUM_HELD_OUT == len(held_out)
    assert len({*rated, *held_out}) == len(rated) + len(held_out)
    assert (held_out, sorted(rated)) == (same, sorted(others))
    assert rated != others


def test_a_play_is_a_table() -> None:
    """The base, then each round with its run, one that failed too."""
    measured = Measured("v1", Rate(40, 160))
    finished = {
        "state": "passed",
        "step": 20,
        "metrics": {"ending": "finished", "gate_kl_parent": 0.0154},
    }
    failed = {"state": "failed", "step": 0, "metrics": {}}
    plan = {"taste": "lists", "preset": "balanced", "seed": 0}
    rounds = (Round(40, 5, finished, measured), Round(80, 0, failed, measured))
    rows = [_row(measured), *map(_row, rounds)]

    table = _table({"plan": plan, "facts": {"cores": "2"}, "rows": rows})

    title, _, facts, _, _, _, *lines = table.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert ("### Likes lists; preset balanced, seed 0", "cores: 2.") == (title, facts)
    served = ["v1", "0.25", "0.20 to 0.31"]
    assert ["0", "", "", "", "", "", *served] == cells[0]
    assert ["40", "5", "passed", "20", "finished", "0.015", *served] == cells[1]
    assert ["80", "0", "failed", "0", "", "", *served] == cells[2]


class Scripted:
    """A strop whose every other answer has a list, and whose runs pass at once."""

    model = "m"

    def __init__(self) -> None:
        self.asked: dict[str, tuple[str, str]] = {}
        self.rated: dict[str, int] = {}
        completions = SimpleNamespace(with_raw_response=SimpleNamespace(create=self._create))
        chat = SimpleNamespace(completions=completions)
        self.agent = SimpleNamespace(chat=chat, close=self._close)

    async def _close(self) -> None:
        pass

    async def _create(self, *, messages: Any, **_: Any) -> Any:
        id_, text = str(len(self.asked)), "- a" if len(self.asked) % 2 else "a"
        self.asked[id_] = messages[0]["content"], text
        answer = SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text))])
        return SimpleNamespace(headers={"X-Strop-Completion-Id": id_}, parse=lambda: answer)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/feedback":
            self.rated[body["completion_id"]] = body["rating"]
        return {"id": "r", "state": "queued"}

    def get(self, path: str) -> dict[str, Any]:
        if path == "/health":
            return {"model": {"active": "v1"}}
        state = "active" if "adapters" in path else "passed"
        return {"id": "r", "state": state, "version": "v1", "events": []}


def test_who_plays_rates_what_is_liked_and_nothing_that_measures() -> None:
    """Each question of a round once, and each that is held out four times before and after."""
    strop: Any = Scripted()
    base, one, two = play(strop, Plan("lists", rounds=2, ratings=10, seed=0, preset="p"))
    rated, held_out = person.questions(0)

    questions = [strop.asked[id_][0] for id_ in strop.rated]
    others = [question for id_, (question, _) in strop.asked.items() if id_ not in strop.rated]
    assert isinstance(base, Measured)
    assert isinstance(two, Round)
    assert rated[:20] == questions
    assert sorted(held_out * NUM_SAMPLES * 3) == sorted(others)
    assert strop.rated == {id_: 1 if strop.asked[id_][1] == "- a" else -1 for id_ in strop.rated}
    assert [(10, 5), (20, 5)] == [
        (each.num_ratings, each.num_good) for each in (one, two) if isinstance(each, Round)
    ]
    assert (80, 160) == (two.measured.liked.num_hits, two.measured.liked.num)


def test_a_round_is_asked_rated_learned_and_measured(tmp_path: Path) -> None:
    """Of strop's small model, which hardly knows a list, there is next to nothing to like."""
    plan = Plan(taste="lists", rounds=1, ratings=8, seed=0, preset="balanced")

    with serve(tmp_path, {"training.enabled": "false"}) as served:
        base, rated = play(served, plan)
        [run] = served.get("/admin/runs")["data"]
        ratings = served.get("/v1/feedback")["data"]

    assert isinstance(base, Measured)
    assert isinstance(rated, Round)
    assert (8, 8, run["id"]) == (rated.num_ratings, len(ratings), rated.run["id"])
    assert run["finished"] is not None
    assert NUM_SAMPLES * person.NUM_HELD_OUT == base.liked.num == rated.measured.liked.num
    assert {"base", run["version"] or "base"} == {base.version, rated.measured.version}
