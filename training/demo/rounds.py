"""Rounds of chatting, rating and training against a running strop, measured on other questions.

A simulated person with a hidden rule rates. Does not start strop, and prints nothing: `say` and
`progress` are told what happens.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from strop.adapters.rates import Rate
from strop.training.demo import task
from strop.training.demo.served import DemoFailed, Served

NUM_SAMPLES = 4
"""How often each held-out question is asked to measure a version."""

_CONCURRENCY = 8
_MAX_TOKENS = 64
_RUN_TIMEOUT_S = 600.0
_POLL_S = 0.1
# How often a round is rated on before anything was learned.
_MAX_TRIES = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """What the demo does: how many rounds, of how many ratings, and how the person errs."""

    rounds: int = 4
    ratings: int = 40
    seed: int = 0
    objective: str = "topr"
    noise: float = 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """A version on questions that were never rated: shares of its fresh answers at T = 1."""

    version: str
    num_ratings: int
    liked: Rate
    right: Rate
    well_formed: Rate
    example: str


@dataclass(frozen=True, slots=True)
class Round:
    """One round: what was given, what the run made of it, and how the served version is now.

    `train_s` and `swap_ms` are of this machine at this moment: for people, not for comparisons.
    """

    num_good: int
    num_bad: int
    state: str
    reasons: tuple[str, ...]
    train_s: float
    swap_ms: float | None
    measured: Measured


@dataclass(frozen=True, slots=True)
class Rated:
    """One answer and what the person thought of it."""

    question: task.Question
    text: str
    rating: float


Progress = Callable[[str, int, int], None]
"""Is told what is going on, how much of it is done, and of how much."""


def play(served: Served, plan: Plan, progress: Progress) -> Iterator[Measured | Round]:
    """Yield the base as measured, then each round once it is over.

    Raises:
        DemoFailed: strop answered with an error, or run after run failed before any had passed.
    """
    with asyncio.Runner() as runner:
        rng = random.Random(plan.seed)  # noqa: S311
        rater = task.Rater(noise=plan.noise)
        rated_questions, held_out = task.split(seed=plan.seed)
        base = runner.run(_measure(served, held_out, rater, 0, progress))
        yield base
        latest, num_rated = base, 0
        for _ in range(plan.rounds):
            rated: list[Rated] = []
            train_s = 0.0
            for _ in range(_MAX_TRIES):
                questions = _questions_of(plan, rated_questions, rng)
                rated += runner.run(_chat_and_rate(served, questions, rater, rng, progress))
                run, seconds = _train(served, plan.objective, progress)
                train_s += seconds
                # What is liked throughout leaves nothing to compare; the next round may bring it.
                if run["state"] in ("passed", "rejected") or latest.version != base.version:
                    break
            else:
                # Nor does what is never liked, of which a base may have 30 answers in a row.
                raise DemoFailed(f"{run['id']} is {run['state']}: {'; '.join(run['reasons'])}")
            num_good = sum(one.rating > 0 for one in rated)
            num_rated += len(rated)
            if run["state"] == "passed":
                _wait_until_active(served, run["version"])
            latest = runner.run(_measure(served, held_out, rater, num_rated, progress))
            yield Round(
                num_good,
                len(rated) - num_good,
                run["state"],
                tuple(run["reasons"]),
                train_s,
                _swap_ms(served, run["version"]) if run["state"] == "passed" else None,
                latest,
            )


def _questions_of(
    plan: Plan, questions: Sequence[task.Question], rng: random.Random
) -> list[task.Question]:
    # dpo learns from two answers to one question, of which one is better.
    times = 2 if plan.objective == "dpo" else 1
    return (_draw(questions, math.ceil(plan.ratings / times), rng) * times)[: plan.ratings]


def _draw(
    questions: Sequence[task.Question], count: int, rng: random.Random
) -> list[task.Question]:
    """Return `count` questions, each as often as the others as far as that goes."""
    drawn: list[task.Question] = []
    while len(drawn) < count:
        drawn += rng.sample(questions, min(len(questions), count - len(drawn)))
    return drawn


async def _chat_and_rate(
    served: Served,
    questions: Sequence[task.Question],
    rater: task.Rater,
    rng: random.Random,
    progress: Progress,
) -> list[Rated]:
    answers = await _ask(served, questions, "chatting", progress)
    rated = []
    for question, (text, completion_id) in zip(questions, answers, strict=True):
        rating = rater.rate(question, text, rng)
        served.post("/v1/feedback", {"completion_id": completion_id, "rating": rating})
        rated.append(Rated(question, text, rating))
        progress("rating", len(rated), len(questions))
    return rated


async def _measure(
    served: Served,
    held_out: Sequence[task.Question],
    rater: task.Rater,
    num_ratings: int,
    progress: Progress,
) -> Measured:
    asked = [question for question in held_out for _ in range(NUM_SAMPLES)]
    answers = await _ask(served, asked, "measuring", progress)
    parsed = [
        task.parse(question, text) for question, (text, _) in zip(asked, answers, strict=True)
    ]
    total = len(asked)
    liked = [
        rater.likes(question, text) for question, (text, _) in zip(asked, answers, strict=True)
    ]
    right = [
        answer is not None and answer.value == question.right
        for question, answer in zip(asked, parsed, strict=True)
    ]
    return Measured(
        version=served.get("/health")["model"]["active"],
        num_ratings=num_ratings,
        liked=Rate(sum(liked), total),
        right=Rate(sum(right), total),
        well_formed=Rate(sum(answer is not None for answer in parsed), total),
        example=next((text for text, _ in answers if text.strip()), ""),
    )


async def _ask(
    served: Served, questions: Sequence[task.Question], doing: str, progress: Progress
) -> list[tuple[str, str]]:
    """Return the answer to each question, each in a chat of its own, and its completion id."""
    free = asyncio.Semaphore(_CONCURRENCY)
    num_done = 0

    async def ask(question: task.Question) -> tuple[str, str]:
        nonlocal num_done
        async with free:
            answer = await served.agent.chat.completions.with_raw_response.create(
                model=served.model,
                messages=[{"role": "user", "content": question.text}],
                temperature=1.0,
                max_tokens=_MAX_TOKENS,
            )
        num_done += 1
        progress(doing, num_done, len(questions))
        completion_id = answer.headers["X-Strop-Completion-Id"]
        return answer.parse().choices[0].message.content or "", completion_id

    return await asyncio.gather(*map(ask, questions))


def _train(served: Served, objective: str, progress: Progress) -> tuple[dict[str, Any], float]:
    """Start a run, and return it once it is over, and the seconds that took."""
    started = time.monotonic()
    run = served.post("/admin/runs", {"objective": objective})
    while run["state"] in ("queued", "running", "gating"):
        if time.monotonic() - started > _RUN_TIMEOUT_S:
            raise DemoFailed(f"expected {run['id']} to end within {_RUN_TIMEOUT_S:g} s; it runs on")
        time.sleep(_POLL_S)
        run = served.get(f"/admin/runs/{run['id']}")
        progress("training" if run["state"] != "gating" else "gate", run["step"], run["num_steps"])
    return run, time.monotonic() - started


def _wait_until_active(served: Served, version: str) -> None:
    deadline = time.monotonic() + _RUN_TIMEOUT_S
    while time.monotonic() < deadline:
        adapter = served.get(f"/admin/adapters/{version}")
        if adapter["state"] == "active":
            return
        failed = [event for event in adapter["events"] if event["kind"] == "activation_failed"]
        if failed:
            raise DemoFailed(f"{version} was not activated: {failed[0]['detail']}")
        time.sleep(_POLL_S)
    raise DemoFailed(f"expected {version} to be active within {_RUN_TIMEOUT_S:g} s; it is not")


def _swap_ms(served: Served, version: str) -> float | None:
    """Return how long the activation of `version` took, as its event says."""
    for event in served.get(f"/admin/adapters/{version}")["events"]:
        if event["kind"] == "activated":
            timings = event["detail"].get("timings_ms", {})
            return sum(timings.values()) if timings else None
    return None
