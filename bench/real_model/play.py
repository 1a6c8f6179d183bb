"""Rounds against a running strop: ask, rate, train, and see what it answers to other questions.

Starts no server and prints nothing.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.real_model import person
from strop.adapters import rates
from strop.adapters.rates import Rate
from strop.training.demo.served import DemoFailed, Served

NUM_SAMPLES: Final = 4
"""How often each held-out question is asked."""

MAX_TOKENS: Final = 64
TEMPERATURE: Final = 0.8

_CONCURRENCY: Final = 16
_RUN_TIMEOUT_S: Final = 7200.0
_POLL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is played.

    Attributes:
        taste: what the person likes; one of `person.TASTES`.
        rounds: how many.
        ratings: of each round.
        seed: in which order the questions are asked.
        preset: of the runs.
    """

    taste: str
    rounds: int
    ratings: int
    seed: int
    preset: str


@dataclass(frozen=True, slots=True)
class Measured:
    """Fresh answers of what serves, to questions that nobody rates.

    `liked` counts an answer for less, the more the answers to a question are alike in being liked.
    """

    version: str
    liked: Rate


@dataclass(frozen=True, slots=True)
class Round:
    """What was rated so far, how many in this round were good, its run, and what serves then."""

    num_ratings: int
    num_good: int
    run: dict[str, Any]
    measured: Measured


def play(served: Served, plan: Plan) -> Iterator[Measured | Round]:
    """Yield the base as measured, then each round once it is over.

    Raises:
        DemoFailed: strop answered with an error, or did not do what it was asked for.
    """
    likes = person.TASTES[plan.taste]
    rated, held_out = person.questions(plan.seed)
    asked = itertools.cycle(rated)
    with asyncio.Runner() as runner:
        try:
            yield runner.run(_measure(served, held_out, likes))
            for num in range(1, plan.rounds + 1):
                questions = list(itertools.islice(asked, plan.ratings))
                num_good = runner.run(_rate(served, questions, likes))
                run = _train(served, plan)
                measured = runner.run(_measure(served, held_out, likes))
                yield Round(num * plan.ratings, num_good, run, measured)
        finally:
            runner.run(served.agent.close())


async def _rate(served: Served, questions: Sequence[str], likes: Callable[[str], bool]) -> int:
    """Rate an answer to each question; return how many are liked."""
    answers = await _ask(served, questions)
    for text, id_ in answers:
        served.post("/v1/feedback", {"completion_id": id_, "rating": 1 if likes(text) else -1})
    return sum(likes(text) for text, _ in answers)


async def _measure(
    served: Served, held_out: Sequence[str], likes: Callable[[str], bool]
) -> Measured:
    answers = await _ask(served, [one for one in held_out for _ in range(NUM_SAMPLES)])
    of_questions = [
        Rate(sum(likes(text) for text, _ in answers[start : start + NUM_SAMPLES]), NUM_SAMPLES)
        for start in range(0, len(answers), NUM_SAMPLES)
    ]
    liked = rates.pooled(of_questions, rates.correlation([of_questions]))
    return Measured(served.get("/health")["model"]["active"], liked)


async def _ask(served: Served, questions: Sequence[str]) -> list[tuple[str, str]]:
    """Return each question's answer, in a chat of its own, and the completion's id."""
    free = asyncio.Semaphore(_CONCURRENCY)

    async def ask(question: str) -> tuple[str, str]:
        async with free:
            answer = await served.agent.chat.completions.with_raw_response.create(
                model=served.model,
                messages=[{"role": "user", "content": question}],
                temperature=TEMPERATURE,
                max_tokens=MAX_TOKENS,
            )
        id_ = answer.headers["X-Strop-Completion-Id"]
        return answer.parse().choices[0].message.content or "", id_

    return await asyncio.gather(*map(ask, questions))


def _train(served: Served, plan: Plan) -> dict[str, Any]:
    """Start a run, and return it once it is over, and its version serves if it passed.

    Raises:
        DemoFailed: its version could not be activated, or it is not over in time.
    """
    run = served.post("/admin/runs", {"preset": plan.preset})
    deadline_s = time.monotonic() + _RUN_TIMEOUT_S
    while time.monotonic() < deadline_s:
        run = served.get(f"/admin/runs/{run['id']}")
        match run["state"]:
            case "queued" | "running" | "gating":
                pass
            case "passed":
                version = served.get(f"/admin/adapters/{run['version']}")
                if version["state"] == "active":
                    return run
                if any(event["kind"] == "activation_failed" for event in version["events"]):
                    raise DemoFailed(f"{run['version']} could not be activated: {version}")
            case _:
                return run
        time.sleep(_POLL_S)
    raise DemoFailed(f"expected {run['id']} to be over in {_RUN_TIMEOUT_S:g} s: {run['state']}")
