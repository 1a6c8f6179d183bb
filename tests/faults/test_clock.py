"""A wall clock that jumps: ids and times may run backwards, and nothing is lost by it."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from fake_vllm import FakeVllm
from faults_clock import HOUR_NS, Clock, clock
from faults_report import Reached, scaled
from running import Running, running, settings_for

__all__ = ["clock"]

pytestmark = pytest.mark.faults


async def page_through(proxy: Running, limit: int) -> list[str]:
    """Return the ids of all completions, a page at a time."""
    ids: list[str] = []
    while True:
        page = await proxy.services.store.list_completions(
            limit=limit, after=ids[-1] if ids else None
        )
        ids += [one.id for one in page.data]
        if not page.has_more:
            return ids


async def test_a_clock_that_jumps_breaks_neither_pages_nor_parents(
    clock: Clock, tmp_path: Path, reached: Reached
) -> None:
    """Backwards by an hour and forwards again: each row is listed once, each parent found.

    Durations are taken from another clock and stay what they are.
    """
    chance = random.Random(30)
    messages: list[dict[str, Any]] = []
    asked: list[str] = []
    async with (
        FakeEngine(FakeVllm()) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        for number in range(scaled(24)):
            clock.offset_ns = chance.choice((0, -HOUR_NS, HOUR_NS, -7 * HOUR_NS))
            messages.append({"role": "user", "content": f"question {number}"})
            answer = await proxy.client.post(
                "/v1/chat/completions", json={"model": "tiny", "messages": messages}
            )
            messages.append(answer.json()["choices"][0]["message"])
            asked.append(answer.headers["x-strop-completion-id"])
            rated = await proxy.client.post(
                "/v1/feedback", json={"completion_id": asked[-1], "rating": "good"}
            )
            assert 201 == rated.status_code
        rows = {row.completion.id: row for row in await proxy.rows()}
        pages = [await page_through(proxy, limit) for limit in (1, 5, 100)]
        listed = await proxy.client.get("/v1/feedback", params={"limit": 100})

    assert [sorted(asked)] * 3 == [sorted(page) for page in pages]
    assert pages[0] == pages[1] == pages[2]
    assert [None, *asked[:-1]] == [rows[id_].parent for id_ in asked]
    assert 1 == len({rows[id_].session for id_ in asked})
    assert sorted(asked) == sorted(one["completion_id"] for one in listed.json()["data"])
    assert all(0 <= row.completion.total_ms < HOUR_NS / 1e6 for row in rows.values())
    created = [rows[id_].completion.created_ms for id_ in asked]
    assert sorted(created) != created
    reached(completions=len(asked))


async def test_a_rating_waits_through_a_jump_of_the_clock(clock: Clock, tmp_path: Path) -> None:
    """What was rated in flight is joined, though its completion seems younger than its rating."""
    is_rated = asyncio.Event()
    # What the proxy asks before it serves waits for nothing.
    is_rated.set()

    async def wait(number: int) -> None:
        if number == 1:
            await is_rated.wait()

    async with (
        FakeEngine(FakeVllm(before_event=wait)) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
    ):
        is_rated.clear()
        fields = {"model": "tiny", "messages": [], "stream": True}
        async with proxy.client.stream("POST", "/v1/chat/completions", json=fields) as stream:
            completion = stream.headers["x-strop-completion-id"]
            clock.offset_ns = -2 * HOUR_NS
            rated = await proxy.client.post(
                "/v1/feedback", json={"completion_id": completion, "rating": "good"}
            )
            is_rated.set()
            await stream.aread()
        listed = await proxy.client.get("/v1/feedback")

    (feedback,) = listed.json()["data"]
    assert 202 == rated.status_code
    assert ("standing", completion) == (feedback["state"], feedback["completion_id"])
