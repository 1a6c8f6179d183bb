"""bench.real_model: its tastes, its questions, and a round of it with strop's small model."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The benchmark is no part of the installed package.
sys.path.append(str(Path(__file__).parents[1]))

from bench.real_model import person
from bench.real_model.__main__ import _row, _table
from bench.real_model.play import NUM_SAMPLES, Measured, Plan, Round, play
from strop.adapters.rates import Rate
from strop.training.demo.served import Served, serve


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


def recorded(served: Served) -> Iterator[tuple[str, str, list[float]]]:
    """Each question that was asked, what was answered, and its ratings."""
    after = ""
    while True:
        page = served.get(f"/admin/completions?limit=100{after}")
        for one in page["data"]:
            whole = served.get(f"/admin/completions/{one['id']}")
            [message] = whole["request"]["messages"]
            ratings = [rating["rating"] for rating in whole["feedback"]]
            yield message["content"], whole["choices"][0]["message"]["content"], ratings
        if not page["has_more"]:
            return
        after = f"&after={page['data'][-1]['id']}"


def test_a_round_is_asked_rated_learned_and_measured(tmp_path: Path) -> None:
    """What measures is never rated; strop's small model writes prose, mostly."""
    plan = Plan(taste="prose", rounds=1, ratings=24, seed=0, preset="balanced")
    rated_questions, held_out = person.questions(0)

    with serve(tmp_path, {"training.enabled": "false"}) as served:
        base, played = play(served, plan)
        [run] = served.get("/admin/runs")["data"]
        answers = list(recorded(served))

    rated = [(question, text, ratings) for question, text, ratings in answers if ratings]
    assert isinstance(base, Measured)
    assert isinstance(played, Round)
    assert sorted(rated_questions[:24]) == sorted(question for question, _, _ in rated)
    for _, text, ratings in rated:
        assert [1.0 if person.TASTES["prose"](text) else -1.0] == ratings
    num_good = sum(ratings == [1.0] for _, _, ratings in rated)
    assert (24, num_good, run["id"]) == (played.num_ratings, played.num_good, played.run["id"])
    assert run["finished"] is not None
    measuring = [question for question, _, ratings in answers if not ratings]
    assert sorted(held_out * NUM_SAMPLES * 2) == sorted(measuring)
    liked = sum(person.TASTES["prose"](text) for _, text, ratings in answers if not ratings)
    assert base.liked.num_hits + played.measured.liked.num_hits == liked
    serves = run["version"] if run["state"] == "passed" else "base"
    assert ("base", serves) == (base.version, played.measured.version)
