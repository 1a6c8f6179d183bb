"""The demo's rounds, against scripted answers of a strop: what a run's end means for them."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from strop.training.demo.rounds import Measured, Plan, Round, play
from strop.training.demo.served import DemoFailed, Served

URL = "http://127.0.0.1:8484"


class Strop:
    """Answers as strop does; its runs end as it is told."""

    def __init__(self, *ends: str) -> None:
        self.ends: Iterator[str] = iter(ends)
        self.numbers = itertools.count(1)
        self.active = "base"
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        path = request.url.path
        if path == "/v1/chat/completions":
            self.asked.append(json.loads(request.content)["messages"][0]["content"])
            answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}}]}
            number = f"cmp_{next(self.numbers)}"
            return httpx.Response(200, json=answer, headers={"x-strop-completion-id": number})
        if path == "/admin/runs":
            return httpx.Response(200, json=self._run(next(self.ends)))
        if path.startswith("/admin/adapters/"):
            return httpx.Response(200, json={"state": "active", "events": []})
        assert path in ("/health", "/v1/feedback")
        return httpx.Response(200, json={"model": {"active": self.active}})

    def _run(self, end: str) -> dict[str, object]:
        if end == "passed":
            self.active = f"v{int(self.active[1:]) + 1}" if self.active != "base" else "v1"
        return {"id": "run_1", "state": end, "reasons": [f"it {end}"], "version": self.active}


def played(
    *ends: str, strop: Strop | None = None, objective: str = "topr", rounds: int | None = None
) -> list[Measured | Round]:
    """Play as many rounds as runs are told to end, or `rounds`."""
    transport = httpx.MockTransport(strop or Strop(*ends))
    asked: Any = httpx.AsyncClient(transport=transport)  # which the package's types leave out
    agent = AsyncOpenAI(base_url=f"{URL}/v1", api_key="strop", http_client=asked)
    with httpx.Client(base_url=URL, transport=transport) as owner:
        served = Served(URL, "strop-demo", agent, owner)
        plan = Plan(rounds=rounds or len(ends), ratings=4, objective=objective)
        return list(play(served, plan, lambda *_: None))


def test_a_round_without_anything_to_compare_is_shown_and_the_next_one_follows() -> None:
    """Where nearly all is liked, all of a round may be: no run can be made of that."""
    _, *rounds = played("passed", "failed", "rejected", "passed")

    shown = [(one.state, one.measured.version) for one in rounds if isinstance(one, Round)]
    assert [("passed", "v1"), ("failed", "v1"), ("rejected", "v1"), ("passed", "v2")] == shown


@pytest.mark.parametrize(("objective", "num_questions"), [("topr", 4), ("dpo", 2)])
def test_dpo_has_two_answers_to_each_question_to_compare(
    objective: str, num_questions: int
) -> None:
    """Answers to different questions make no pair; all else learns more from more questions."""
    strop = Strop("passed")

    played("passed", strop=strop, objective=objective)

    # Measured before and after, on 23 questions, four times each.
    rated = strop.asked[23 * 4 : 23 * 4 + 4]
    assert num_questions == len(set(rated))


def test_a_base_of_which_nothing_was_liked_is_rated_on() -> None:
    """As a person would: the round is over when there is something to learn from."""
    _, first, second = played("failed", "failed", "passed", "passed", rounds=2)

    assert isinstance(first, Round)
    assert isinstance(second, Round)
    assert ("passed", 12, 12) == (first.state, first.num_bad, first.measured.num_ratings)
    assert ("passed", 4, 16) == (second.state, second.num_bad, second.measured.num_ratings)


@pytest.mark.parametrize("before", [(), ("rejected",)])
def test_runs_that_fail_before_anything_was_learned_end_the_demo(before: tuple[str, ...]) -> None:
    """It says why."""
    with pytest.raises(DemoFailed, match="run_1 is failed: it failed"):
        played(*before, "failed", "failed", "failed")
