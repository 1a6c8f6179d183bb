"""Requests of every kind, from clients that leave at any point, and what must become of each.

Opens nothing: `faults_client` carries the plans out.
"""

import random
from collections import Counter
from collections.abc import Iterable

from faults_client import BEFORE_ASKING, MOMENTS, Answer, Plan
from faults_engine import BROKEN, EVENTS, SILENT, TAG_HEADER, WAY_HEADER, WAYS


def plans(seed: int, count: int, large_bytes: int = 5_000) -> list[Plan]:
    """Return requests of every kind, each with a tag of its own in its headers.

    Three of ten clients stay to the end. Nobody stays with an engine that says nothing.
    """
    chance = random.Random(seed)
    made = []
    for number in range(count):
        way = chance.choice(("ok", "slow", *WAYS))
        stays = way not in SILENT and chance.random() < 0.3
        moment = "" if stays else chance.choice(("body", "later", *MOMENTS))
        if way in SILENT and moment in ("head", "body"):
            moment = "later"
        size = large_bytes if number % 25 == 0 else chance.choice((2, 2, 5_000))
        is_stream = chance.random() < 0.6
        made.append(
            Plan(
                {
                    "model": "tiny",
                    "messages": [{"role": "user", "content": "x" * size}],
                    "stream": is_stream,
                },
                {
                    WAY_HEADER: way,
                    TAG_HEADER: f"{seed}-{number}",
                    "x-request-id": f"{seed}-{number}",
                },
                leaves=moment,
                is_rude=chance.random() < 0.5,
                patience=chance.randrange(1, 3000) if moment == "body" else chance.random() * 0.4,
            )
        )
    return made


def tag_of(plan: Plan) -> str:
    """Return what a request calls itself."""
    return plan.headers[TAG_HEADER]


def check_answer(plan: Plan, answer: Answer) -> None:
    """A client that stays gets the engine's answer, or an error that says what happened."""
    way = plan.headers[WAY_HEADER]
    if plan.leaves:
        return
    assert answer.is_whole, (way, answer)
    if way == "500":
        assert (500, True) == (answer.status, b"out of memory" in answer.body)
    elif way in SILENT:
        assert (504, True) == (answer.status, b'"upstream_timeout"' in answer.body)
    elif way in BROKEN:
        assert not answer.is_answered
        assert b'"upstream_died"' in answer.body
    else:
        assert answer.is_answered
        num_tokens = answer.body.count(b'"content":"yes "')
        assert num_tokens == (len(EVENTS) if plan.fields["stream"] else 1)


def check_states(plan: Plan, states: list[str]) -> None:
    """A request that reached the relay is one row, in the state that fits what happened."""
    way = plan.headers[WAY_HEADER]
    natural = "upstream_error" if way in BROKEN else "complete"
    if plan.leaves in BEFORE_ASKING:
        assert [] == states
    elif not plan.leaves:
        assert [natural] == states
    else:
        expected = {"client_cancelled"} if way in SILENT else {"client_cancelled", natural}
        # A client that resets right behind its request may take it back before it was read.
        assert len(states) == 1 or (states == [] and plan.leaves in ("sent", "later"))
        assert set(states) <= expected


def check_rows(
    asked: Iterable[tuple[Plan, Answer]], rows: list[tuple[str, str, str]], tags: set[str]
) -> Counter[str]:
    """Check every request against the rows (id, request id, state), and count the states."""
    by_tag: dict[str, list[tuple[str, str]]] = {}
    for id_, tag, state in rows:
        by_tag.setdefault(tag, []).append((id_, state))
    for plan, answer in asked:
        found = by_tag.pop(tag_of(plan), [])
        check_states(plan, [state for _, state in found])
        assert not answer.completion_id or [answer.completion_id] == [id_ for id_, _ in found]
        assert tag_of(plan) not in tags or found, "what reached the engine is recorded"
    assert {} == by_tag
    return Counter(state for _, _, state in rows)
