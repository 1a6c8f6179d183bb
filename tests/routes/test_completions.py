"""Recorded completions under /admin."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from routes_app import MESSAGES, Running, running

from strop.proxy.store.records import Choice


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Running]:
    """A strop without client keys."""
    async with running(tmp_path) as app:
        yield app


async def listed(app: Running, query: str = "") -> list[str]:
    """Return the ids in the list."""
    answer = await app.client.get(f"/admin/completions{query}", headers=app.admin)
    assert answer.status_code == 200, answer.text
    return [one["id"] for one in answer.json()["data"]]


@pytest.mark.parametrize("path", ["/admin/completions", "/admin/completions/cmp_1", "/admin/none"])
@pytest.mark.parametrize("key", ["", "wrong"])
async def test_the_admin_key_guards_everything_under_admin(
    app: Running, path: str, key: str
) -> None:
    """Without it, 401, whether or not there is anything."""
    answer = await app.client.get(path, headers={"authorization": f"Bearer {key}"})

    assert (401, "invalid_api_key") == (answer.status_code, answer.json()["error"]["code"])


async def test_a_client_key_does_not_open_admin(tmp_path: Path) -> None:
    """Client keys are for /v1 alone."""
    async with running(tmp_path, server__client_keys=["client-key-1"]) as app:
        answer = await app.client.get("/admin/completions", headers={"x-api-key": "client-key-1"})

        assert 401 == answer.status_code


async def test_a_completion_is_shown_with_its_snapshot(app: Running) -> None:
    """Request, answer, token ids, logprobs and ratings come back as they went in."""
    completion = await app.record(
        sampling=b'{"temperature": 0.5}', session="s", upstream_id="chatcmpl-1"
    )
    given = (await app.rate(completion, "bad")).json()

    answer = await app.client.get(f"/admin/completions/{completion}", headers=app.admin)
    same = await app.client.get("/admin/completions/chatcmpl-1", headers=app.admin)

    found = answer.json()
    assert found == same.json()
    assert 200 == answer.status_code
    assert {"model": "tiny", "messages": MESSAGES} == found["request"]
    assert [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Paris."},
            "finish_reason": "stop",
        }
    ] == found["choices"]
    assert {
        "sampling": {"temperature": 0.5},
        "prompt_ids": [1, 2, 3],
        "prompt_text": None,
        "choices": [
            {
                "index": 0,
                "token_ids": [4, 5],
                "token_texts": None,
                "logprobs": [-0.5, -0.25],
                "logprobs_source": "engine",
                "logprobs_kind": "raw",
            }
        ],
    } == found["snapshot"]
    assert [given] == found["feedback"]
    assert "s" == found["session"]


async def test_missing_snapshots_are_null(app: Running) -> None:
    """What the engine did not give is null, and never made up."""
    completion = await app.record(
        prompt_ids=None, choices=(Choice(index=0, message=b'{"content": "Hi"}'),)
    )

    answer = await app.client.get(f"/admin/completions/{completion}", headers=app.admin)

    snapshot = answer.json()["snapshot"]
    assert (None, None, None) == (
        snapshot["prompt_ids"],
        snapshot["choices"][0]["token_ids"],
        snapshot["choices"][0]["logprobs"],
    )


async def test_an_unknown_completion_is_not_found(app: Running) -> None:
    """404, as for a rating."""
    answer = await app.client.get("/admin/completions/cmp_no", headers=app.admin)

    assert (404, "completion_not_found") == (answer.status_code, answer.json()["error"]["code"])


async def test_lists_are_paged_newest_first(app: Running) -> None:
    """By creation, across pages."""
    made = [await app.record(created_ms=1_790_000_000_000 + number) for number in range(3)]

    first = (await app.client.get("/admin/completions?limit=2", headers=app.admin)).json()
    rest = await listed(app, f"?limit=2&after={made[1]}")

    assert [made[2], made[1]] == [one["id"] for one in first["data"]]
    assert first["has_more"]
    assert [made[0]] == rest


async def test_lists_are_filtered(app: Running) -> None:
    """By key, session, state, model, rating and time."""
    one = await app.record(key_id="key_1", session="a")
    two = await app.record(
        state="upstream_error", model="other", created_ms=1_791_000_000_000, choices=()
    )
    three = await app.record(session="b")
    await app.rate(three)

    assert [one] == await listed(app, "?key_id=key_1")
    assert [one] == await listed(app, "?session=a")
    assert [two] == await listed(app, "?state=upstream_error")
    assert [two] == await listed(app, "?model=other")
    assert [three] == await listed(app, "?rated=true")
    assert {one, two} == set(await listed(app, "?rated=false"))
    assert [two] == await listed(app, "?since=1790500000")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("state=done", "state"),
        ("rated=yes", "rated"),
        ("limit=1000", "limit"),
        ("after=cmp_no", "after"),
        ("rater=ann", "rater"),
    ],
)
async def test_a_wrong_query_is_refused(app: Running, query: str, param: str) -> None:
    """An unknown or wrong parameter is 400."""
    answer = await app.client.get(f"/admin/completions?{query}", headers=app.admin)

    assert (400, param) == (answer.status_code, answer.json()["error"]["param"])
