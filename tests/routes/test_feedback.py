"""Feedback over HTTP, as design.md's "Ratings" has it."""

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from routes_app import Running, running
from waiting import until

from strop.proxy import rater
from strop.proxy.auth import key_id
from strop.proxy.flights import Flights
from strop.proxy.store.records import Choice

ALICE, BOB = "alice-has-a-key", "bob-has-another"
AS_ALICE = {"authorization": f"Bearer {ALICE}"}
AS_BOB = {"authorization": f"Bearer {BOB}"}


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Running]:
    """A strop without client keys."""
    async with running(tmp_path) as app:
        yield app


@pytest.fixture
async def keyed(tmp_path: Path) -> AsyncIterator[Running]:
    """A strop with two client keys."""
    async with running(tmp_path, server__client_keys=[ALICE, BOB]) as app:
        yield app


async def record_as(app: Running, **headers: str) -> str:
    """Ask the model something with a client's key; return the completion's id."""
    answer = await app.client.post(
        "/v1/chat/completions",
        json={"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]},
        headers=headers,
    )
    return answer.headers["x-strop-completion-id"]


def error_of(answer: httpx.Response) -> tuple[int, str, str | None]:
    """Return status, code and param of an error of strop's own."""
    assert answer.headers["x-strop-error-source"] == "proxy"
    error = answer.json()["error"]
    assert error["message"]
    return answer.status_code, error["code"], error["param"]


async def ids(app: Running, query: str = "", **headers: str) -> list[str]:
    """Return the ids in a list of feedback."""
    answer = await app.client.get(f"/v1/feedback{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    return [one["id"] for one in answer.json()["data"]]


async def test_a_rating_is_created_as_it_was_given(app: Running) -> None:
    """A feedback object has every member, the original among them."""
    completion = await app.record()

    answer = await app.rate(
        completion,
        {"stars": 4},
        comment="nearly",
        correction="Paris!",
        tags=["style"],
        rater="ann",
        scope="turn",
    )

    found = answer.json()
    assert answer.status_code == 201
    assert {
        "object": "feedback",
        "completion_id": completion,
        "choice": 0,
        "rating": 0.5,
        "original": {"stars": 4},
        "comment": "nearly",
        "correction": "Paris!",
        "tags": ["style"],
        "rater": "ann",
        "source": "api",
        "scope": "turn",
        "state": "standing",
        "revision": 1,
        "session": "ses_" + completion.removeprefix("cmp_"),
        "note": None,
    } == {key: value for key, value in found.items() if key not in ("id", "created")}
    assert found == (await app.client.get(f"/v1/feedback/{found['id']}")).json()


@pytest.mark.parametrize(
    ("given", "rating"),
    [
        ("good", 1),
        ("bad", -1),
        ("up", 1),
        ("down", -1),
        (True, 1),
        (False, -1),
        (0, 0),
        (-0.25, -0.25),
        ({"stars": 1}, -1),
        ({"stars": 5}, 1),
    ],
)
async def test_a_rating_is_one_number(app: Running, given: object, rating: float) -> None:
    """Every form of a rating becomes a number in [-1, 1]."""
    answer = await app.rate(await app.record(), given)

    assert (201, rating, given) == (
        answer.status_code,
        answer.json()["rating"],
        answer.json()["original"],
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"rating": "great"}, "rating"),
        ({"rating": 1.01}, "rating"),
        ({"rating": {"stars": 0}}, "rating"),
        ({"rating": None}, "rating"),
        ({"choice": -1}, "choice"),
        ({"choice": 7}, "choice"),
        ({"choice": "0"}, "choice"),
        ({"scope": "session"}, "scope"),
        ({"comment": 3}, "comment"),
        ({"tags": "style"}, "tags"),
        ({"stars": 4}, "stars"),
        ({"completion_id": None}, "completion_id"),
        ({"completion_id": 12}, "completion_id"),
    ],
)
async def test_what_is_wrong_in_a_rating_is_named(
    app: Running, body: dict[str, Any], param: str
) -> None:
    """A wrong or unknown field is 400, and `param` says which."""
    sent = {"completion_id": await app.record(), "rating": "good", **body}

    answer = await app.client.post("/v1/feedback", json=sent)

    assert (400, "invalid_request", param) == error_of(answer)
    assert [] == await ids(app)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"good"', b"null", b"\xff"])
async def test_a_body_that_is_no_json_object_is_refused(app: Running, content: bytes) -> None:
    """It is 400, whatever it is."""
    answer = await app.client.post("/v1/feedback", content=content)

    assert (400, "invalid_request", None) == error_of(answer)


async def test_a_long_body_is_refused(tmp_path: Path) -> None:
    """More than server.max_body_bytes is 413, with and without a Content-Length."""
    async with running(tmp_path, server__max_body_bytes=1024) as app:

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b" " * 1000

        said = await app.client.post("/v1/feedback", content=b" " * 1025)
        unsaid = await app.client.post("/v1/feedback", content=pieces())

        assert [(413, "body_too_large", None)] * 2 == [error_of(said), error_of(unsaid)]


async def test_an_unknown_completion_is_not_found(app: Running) -> None:
    """404, and nothing is stored."""
    answer = await app.rate("cmp_nobody")

    assert (404, "completion_not_found", "completion_id") == error_of(answer)
    assert [] == await ids(app)


async def test_the_engines_id_is_an_alias(app: Running) -> None:
    """A rating by the id in the answer's body is bound to strop's own."""
    completion = await app.record(upstream_id="chatcmpl-1")

    answer = await app.rate("chatcmpl-1")
    listed = await app.client.get("/v1/feedback?completion_id=chatcmpl-1")

    assert (201, completion) == (answer.status_code, answer.json()["completion_id"])
    assert [answer.json()] == listed.json()["data"]


async def test_an_ambiguous_id_is_answered_with_candidates(app: Running) -> None:
    """409, never the newest."""
    first = await app.record(upstream_id="chatcmpl-1")
    second = await app.record(upstream_id="chatcmpl-1")

    answer = await app.rate("chatcmpl-1")

    assert (409, "ambiguous_completion_id", "completion_id") == error_of(answer)
    candidates = [one["completion_id"] for one in answer.json()["error"]["candidates"]]
    assert sorted([first, second]) == sorted(candidates)


async def test_what_is_never_recorded_can_not_be_rated(tmp_path: Path) -> None:
    """Where nothing is, no rating waits for a completion in flight."""
    async with running(tmp_path, capture__mode="off") as app, app.in_flight() as id_:
        answer = await app.rate(id_)
        header = await app.client.post(
            "/v1/completions",
            json={"model": "tiny", "prompt": "x"},
            headers={"X-Strop-Feedback": "good", "X-Strop-Feedback-For": id_},
        )

        assert (404, "completion_not_found", "completion_id") == error_of(answer)
        assert header.headers["x-strop-feedback-status"].startswith("error completion_not_found")
        assert [] == await ids(app)


async def test_a_stream_is_rated_by_the_engines_id_while_it_comes(app: Running) -> None:
    """As soon as that has come: it is the one that a client sees in the events."""
    async with app.in_flight(num_events=1) as id_:
        (call,) = app.services.relay._ledger.calls
        answer_id = await until(lambda: call.tap.answer_id if call.tap else None)
        assert answer_id is not None
        answer = await app.rate(answer_id)
        unknown = await app.rate("chatcmpl-none")

    stood = (await app.client.get(f"/v1/feedback/{answer.json()['id']}")).json()
    assert (202, "pending", 404) == (
        answer.status_code,
        answer.json()["state"],
        unknown.status_code,
    )
    assert ("standing", id_) == (stood["state"], stood["completion_id"])


async def test_an_id_of_a_stream_and_of_another_completion_is_ambiguous(app: Running) -> None:
    """Some engines count: 409, with both; by its own id each can be rated."""
    async with app.in_flight(num_events=1) as id_:
        (call,) = app.services.relay._ledger.calls
        answer_id = await until(lambda: call.tap.answer_id if call.tap else None)
        recorded = await app.record(upstream_id=answer_id)
        answer = await app.rate(str(answer_id))
        rated = [await app.rate(id_), await app.rate(recorded)]

    assert (409, "ambiguous_completion_id", "completion_id") == error_of(answer)
    assert [(id_, "tiny"), (recorded, "tiny")] == [
        (one["completion_id"], one["model"]) for one in answer.json()["error"]["candidates"]
    ]
    assert [202, 201] == [one.status_code for one in rated]


async def test_what_waits_for_a_stream_is_listed_by_each_of_its_ids(app: Running) -> None:
    """It may have been given by the engine's."""
    async with app.in_flight(num_events=1) as id_:
        (call,) = app.services.relay._ledger.calls
        answer_id = await until(lambda: call.tap.answer_id if call.tap else None)
        given = (await app.rate(str(answer_id))).json()["id"]
        listed = [
            (await app.client.get(f"/v1/feedback?completion_id={name}")).json()["data"]
            for name in (id_, answer_id)
        ]

    assert [[given], [given]] == [[one["id"] for one in found] for found in listed]


async def test_a_completion_in_flight_is_rated_pending(app: Running) -> None:
    """202, and the rating stands once the completion is recorded."""
    async with app.in_flight() as completion:
        answer = await app.rate(completion)
        pending = answer.json()
        listed = await ids(app, "?state=pending")

    stood = (await app.client.get(f"/v1/feedback/{pending['id']}")).json()
    assert (202, "pending", None) == (answer.status_code, pending["state"], pending["session"])
    assert [pending["id"]] == listed
    assert ("standing", completion) == (stood["state"], stood["completion_id"])


async def test_a_rating_of_a_completion_that_is_lost_is_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as the store takes writes again; the feedback says why, and a rating is refused."""
    monkeypatch.setattr(rater, "SETTLE_INTERVAL_S", 0.01)
    async with running(tmp_path, capture__commit_timeout_s=0.05) as app:
        with contextlib.closing(sqlite3.connect(tmp_path / "strop.db")) as other:
            async with app.in_flight() as completion:
                pending = (await app.rate(completion)).json()
                other.execute("BEGIN IMMEDIATE")
            await until(lambda: not app.services.relay.num_calls)
            other.rollback()
        path = f"/v1/feedback/{pending['id']}"
        answer = await until(
            lambda: app.client.get(path), lambda answer: answer.json()["state"] != "pending"
        )
        said = answer.json()
        again = await app.rate(completion)

    assert ("pending", "withdrawn") == (pending["state"], said["state"])
    assert "the completion was never recorded" == said["note"]
    assert (404, "completion_not_found", "completion_id") == error_of(again)


async def test_a_rating_that_comes_as_its_completion_is_lost_does_not_wait(app: Running) -> None:
    """Nobody would settle it: what is in flight is asked again once the rating is stored."""
    running = app.services
    asked = iter(["local", None])

    async def ends_meanwhile(_: str) -> str | None:
        return next(asked)

    running.rater.flights = Flights(running.relay, ends_meanwhile)
    answer = await app.rate("cmp_" + "0" * 32)
    listed = (await app.client.get("/v1/feedback")).json()["data"]

    assert (404, "completion_not_found", "completion_id") == error_of(answer)
    assert ["withdrawn"] == [one["state"] for one in listed]


async def test_without_client_keys_no_error_speaks_of_a_key(app: Running) -> None:
    """Whoever has set none would look for one."""
    rated = await app.rate("cmp_none")
    shown = await app.client.get("/v1/feedback/fb_none")
    withdrawn = await app.client.delete("/v1/feedback/fb_none")

    for answer in (rated, shown, withdrawn):
        assert "is recorded; " in answer.json()["error"]["message"]


async def test_with_client_keys_an_error_speaks_of_them(keyed: Running) -> None:
    """It may be there for another one."""
    rated = await keyed.rate("cmp_none", headers=AS_ALICE)
    shown = await keyed.client.get("/v1/feedback/fb_none", headers=AS_ALICE)

    assert "was made with this key; " in rated.json()["error"]["message"]
    assert "was given with this key; " in shown.json()["error"]["message"]


@pytest.mark.parametrize("by_header", [True, False])
async def test_a_retry_changes_nothing(app: Running, by_header: bool) -> None:
    """The same body with the same idempotency id is 200 and the same feedback."""
    completion = await app.record()
    once: dict[str, Any] = {"headers": {"idempotency-key": "k1"}} if by_header else {"id": "k1"}

    first = await app.rate(completion, **once)
    again = await app.rate(completion, **once)

    assert (201, 200) == (first.status_code, again.status_code)
    assert first.json() == again.json()
    assert [first.json()["id"]] == await ids(app)


async def test_a_changed_retry_is_refused(app: Running) -> None:
    """Another body with the same idempotency id is 409, and names the first one."""
    completion = await app.record()
    first = await app.rate(completion, "good", id="k1")

    answer = await app.rate(completion, "bad", id="k1")

    assert (409, "idempotency_conflict", None) == error_of(answer)
    assert first.json()["id"] == answer.json()["error"]["feedback_id"]


async def test_two_idempotency_ids_must_be_equal(app: Running) -> None:
    """The header and the body's `id` are the same thing."""
    answer = await app.rate(await app.record(), id="k1", headers={"idempotency-key": "k2"})

    assert (400, "invalid_request", "id") == error_of(answer)


async def test_one_idempotency_header_is_enough(app: Running) -> None:
    """Two of them are 400."""
    answer = await app.client.post(
        "/v1/feedback",
        json={"completion_id": await app.record(), "rating": "good"},
        headers=[("idempotency-key", "k1"), ("idempotency-key", "k1")],
    )

    assert (400, "invalid_request", None) == error_of(answer)


async def test_a_newer_rating_supersedes(app: Running) -> None:
    """One rating per completion, choice and rater stands; the others are kept."""
    completion = await app.record()
    old = (await app.rate(completion, "good")).json()["id"]
    other = (await app.rate(completion, "good", rater="bob")).json()["id"]
    new = (await app.rate(completion, "bad")).json()["id"]

    assert [new, other] == await ids(app, "?state=standing")
    assert [old] == await ids(app, "?state=superseded")


async def test_put_makes_a_revision(app: Running) -> None:
    """It replaces all of what was said, and keeps id, scope and rater."""
    given = (await app.rate(await app.record(), "good", comment="fine", scope="turn")).json()

    answer = await app.client.put(f"/v1/feedback/{given['id']}", json={"rating": "bad"})

    revised = answer.json()
    assert 200 == answer.status_code
    changed = {"rating": -1, "original": "bad", "comment": None, "revision": 2}
    assert {**given, **changed} == revised


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, "rating"), ({"rating": 2}, "rating"), ({"rating": 1, "scope": "turn"}, "scope")],
)
async def test_put_refuses_what_it_does_not_know(
    app: Running, body: dict[str, object], param: str
) -> None:
    """A wrong or unknown field is 400, and nothing changes."""
    given = (await app.rate(await app.record())).json()

    answer = await app.client.put(f"/v1/feedback/{given['id']}", json=body)

    assert (400, "invalid_request", param) == error_of(answer)
    assert given == (await app.client.get(f"/v1/feedback/{given['id']}")).json()


async def test_what_is_withdrawn_stays_so(app: Running) -> None:
    """DELETE says what became of it, may be repeated, and a PUT behind it is 409."""
    given = (await app.rate(await app.record())).json()
    path = f"/v1/feedback/{given['id']}"

    withdrawn = await app.client.delete(path)
    again = await app.client.delete(path)
    revised = await app.client.put(path, json={"rating": "bad"})

    assert (200, {**given, "state": "withdrawn"}) == (withdrawn.status_code, withdrawn.json())
    assert (200, withdrawn.json()) == (again.status_code, again.json())
    assert (409, "conflict", None) == error_of(revised)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_an_unknown_feedback_is_not_found(app: Running, method: str) -> None:
    """404 for each method."""
    answer = await app.client.request(method, "/v1/feedback/fb_no", json={"rating": "good"})

    assert (404, "not_found", None) == error_of(answer)


async def test_lists_are_paged_newest_first(app: Running) -> None:
    """`after` goes on behind a page, and `has_more` says whether there is another."""
    given = [(await app.rate(await app.record())).json()["id"] for _ in range(5)]
    newest_first = given[::-1]

    pages, after = [], ""
    while True:
        page = (await app.client.get(f"/v1/feedback?limit=2{after}")).json()
        assert page["object"] == "list"
        pages.append([one["id"] for one in page["data"]])
        if not page["has_more"]:
            break
        after = f"&after={pages[-1][-1]}"

    assert [newest_first[:2], newest_first[2:4], newest_first[4:]] == pages


async def test_lists_are_twenty_long(app: Running) -> None:
    """Where no limit is given."""
    completion = await app.record()
    for number in range(21):
        await app.rate(completion, rater=str(number))

    page = (await app.client.get("/v1/feedback")).json()

    assert (20, True) == (len(page["data"]), page["has_more"])
    assert 21 == len(await ids(app, "?limit=100"))


async def test_lists_are_filtered(app: Running) -> None:
    """By completion, session, rater, state, sign and time."""
    one = await app.record(session="a")
    two = await app.record(session="b")
    good = (await app.rate(one, "good")).json()
    bad = (await app.rate(two, "bad", rater="bob")).json()

    found = {
        query: await ids(app, query)
        for query in (
            f"?completion_id={one}",
            "?session=b",
            "?rater=",
            "?rater=bob",
            "?sign=good",
            "?sign=bad",
            "?state=withdrawn",
            f"?since={good['created'] + 3600}",
            "?since=0.5",
        )
    }

    assert [
        [good["id"]],
        [bad["id"]],
        [good["id"]],
        [bad["id"]],
        [good["id"]],
        [bad["id"]],
        [],
        [],
        [bad["id"], good["id"]],
    ] == list(found.values())


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=ten", "limit"),
        ("limit=-1", "limit"),
        ("limit=", "limit"),
        ("limit=٣", "limit"),
        ("limit=5&limit=6", "limit"),
        ("after=fb_unknown", "after"),
        ("state=gone", "state"),
        ("sign=1", "sign"),
        ("since=yesterday", "since"),
        ("since=nan", "since"),
        ("since=-1", "since"),
        ("since=1e300", "since"),
        ("order=asc", "order"),
        ("key_id=local", "key_id"),
    ],
)
async def test_a_wrong_query_is_refused(app: Running, query: str, param: str) -> None:
    """An unknown, repeated or wrong parameter is 400."""
    answer = await app.client.get(f"/v1/feedback?{query}")

    assert (400, "invalid_request", param) == error_of(answer)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/feedback?dry_run=1"),
        ("GET", "/v1/feedback/fb_1?dry_run=1"),
        ("PUT", "/v1/feedback/fb_1?dry_run=1"),
        ("DELETE", "/v1/feedback/fb_1?dry_run=1"),
        ("GET", "/v1/feedback/export?format=raw&dry_run=1"),
    ],
)
async def test_unknown_parameters_are_refused_everywhere(
    app: Running, method: str, path: str
) -> None:
    """A misspelt parameter never passes in silence."""
    answer = await app.client.request(method, path)

    assert (400, "invalid_request", "dry_run") == error_of(answer)


async def lines(app: Running, query: str, **headers: str) -> list[dict[str, Any]]:
    """Return the lines of an export."""
    answer = await app.client.get(f"/v1/feedback/export?{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/jsonl"
    found: list[dict[str, Any]] = [json.loads(line) for line in answer.text.splitlines()]
    assert {bool} >= {type(line.pop("held_out")) for line in found}
    assert {None, False, True} >= {line.pop("is_whole", None) for line in found}
    assert {None, "null"} >= {line.pop("tools", None) for line in found}
    if "format=raw" not in query:
        for line in found:
            for name in ("completion_id", "model", "version", "base"):
                del line[name]
    return found


async def test_an_export_has_the_shape_that_was_asked_for(app: Running) -> None:
    """kto, dpo and sft as TRL takes them, raw with all that is stored."""
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    paris = [{"role": "assistant", "content": "Paris."}]
    lyon = [{"role": "assistant", "content": "Lyon."}]
    liked = await app.record(id="cmp_1", answer="Paris.")
    disliked = await app.record(id="cmp_2", answer="Lyon.")
    await app.rate(liked, "good")
    await app.rate(disliked, "bad", correction="Paris.")
    await app.record(answer="unrated")

    raw = await lines(app, "format=raw")

    assert [
        {"prompt": prompt, "completion": paris, "label": True},
        {"prompt": prompt, "completion": lyon, "label": False},
    ] == await lines(app, "format=kto")
    assert [{"prompt": prompt, "chosen": paris, "rejected": lyon}] == await lines(app, "format=dpo")
    assert [{"prompt": prompt, "completion": paris}] * 2 == await lines(app, "format=sft")
    assert [liked, disliked] == [line["id"] for line in raw]
    assert [4, 5] == raw[0]["choices"][0]["token_ids"]
    assert ["good"] == [one["original"] for one in raw[0]["feedback"]]


async def test_an_export_of_turns_has_the_steps_of_each(app: Running) -> None:
    """Each whole, as a line of raw: what strop's own training credits by a rating of the turn."""
    calls = (Choice(index=0, message=b'{"content": "I look."}', chain=b"step"),)
    step = await app.record(id="cmp_1", choices=calls)
    liked = await app.record(id="cmp_2", after=b"step", starts_turn=False)
    await app.rate(liked, "good", scope="turn")

    answer = await app.client.get("/v1/feedback/export?format=turns")

    (line,) = map(json.loads, answer.text.splitlines())
    assert (200, "application/jsonl") == (answer.status_code, answer.headers["content-type"])
    assert 'filename="feedback.turns.jsonl"' in answer.headers["content-disposition"]
    assert [(step, 0), (liked, 0)] == [(one["id"], one["choice"]) for one in line["answers"]]
    assert (liked, 0, 1.0) == (line["completion_id"], line["choice"], line["rating"])


async def test_an_export_holds_one_dialect(app: Running) -> None:
    """Chat, where nothing else is asked for."""
    text = await app.record(
        dialect="completions",
        request=b'{"model": "tiny", "prompt": "2 + 2 ="}',
        choices=(Choice(index=0, message=b'{"text": " 4"}'),),
    )
    await app.rate(text)

    assert [] == await lines(app, "format=kto")
    assert [{"prompt": "2 + 2 =", "completion": " 4", "label": True}] == await lines(
        app, "format=kto&dialect=completions"
    )


async def test_an_export_is_filtered(app: Running) -> None:
    """By session and rater."""
    one = await app.record(session="a")
    await app.rate(one, rater="ann")
    await app.rate(await app.record(session="b"), rater="bob")

    assert [one] == [line["id"] for line in await lines(app, "format=raw&session=a")]
    assert [one] == [line["id"] for line in await lines(app, "format=raw&rater=ann")]
    assert [] == await lines(app, "format=raw&session=a&rater=bob")


@pytest.mark.parametrize(
    ("query", "param"),
    [("", "format"), ("format=csv", "format"), ("format=kto&dialect=other", "dialect")],
)
async def test_an_export_of_an_unknown_kind_is_refused(
    app: Running, query: str, param: str
) -> None:
    """Format is needed, and is one of five."""
    answer = await app.client.get(f"/v1/feedback/export?{query}")

    assert (400, "invalid_request", param) == error_of(answer)


async def test_an_export_from_a_closed_store_is_an_error_at_once(app: Running) -> None:
    """503 instead of a body that breaks off."""
    await app.rate(await app.record())
    await app.services.store.close()

    answer = await app.client.get("/v1/feedback/export?format=raw")

    assert (503, "store_unavailable", None) == error_of(answer)


async def test_a_rating_is_not_acknowledged_before_it_is_durable(tmp_path: Path) -> None:
    """While another program holds the database, POST is 503, and nothing is stored."""
    async with running(tmp_path, capture__commit_timeout_s=0.05) as app:
        completion = await app.record()
        other = sqlite3.connect(tmp_path / "strop.db", isolation_level=None)
        with contextlib.closing(other):
            other.execute("BEGIN IMMEDIATE")

            answer = await app.rate(completion)

            other.execute("ROLLBACK")
        assert (503, "store_unavailable", None) == error_of(answer)
        assert "2" == answer.headers["retry-after"]
        assert [] == await ids(app)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/feedback"),
        ("GET", "/v1/feedback"),
        ("GET", "/v1/feedback/export?format=raw"),
        ("GET", "/v1/feedback/fb_1"),
        ("PUT", "/v1/feedback/fb_1"),
        ("DELETE", "/v1/feedback/fb_1"),
    ],
)
async def test_client_keys_guard_feedback(keyed: Running, method: str, path: str) -> None:
    """Without one of them, everything is 401."""
    answer = await keyed.client.request(method, path, json={"rating": "good"})

    assert (401, "invalid_api_key", None) == error_of(answer)
    assert "Bearer" == answer.headers["www-authenticate"]


async def test_a_key_sees_and_rates_only_its_own(keyed: Running) -> None:
    """Another key's completion and feedback don't exist for it."""
    completion = await record_as(keyed, **AS_ALICE)
    given = (await keyed.rate(completion, headers=AS_ALICE)).json()["id"]
    path = f"/v1/feedback/{given}"

    refused = await keyed.rate(completion, headers=AS_BOB)
    others = [
        await keyed.client.get(path, headers=AS_BOB),
        await keyed.client.put(path, json={"rating": "bad"}, headers=AS_BOB),
        await keyed.client.delete(path, headers=AS_BOB),
    ]

    assert (404, "completion_not_found", "completion_id") == error_of(refused)
    assert [(404, "not_found", None)] * 3 == [error_of(answer) for answer in others]
    assert [given] == await ids(keyed, **AS_ALICE)
    assert [] == await ids(keyed, **AS_BOB)
    assert 1 == len(await lines(keyed, "format=raw", **AS_ALICE))
    assert [] == await lines(keyed, "format=raw", **AS_BOB)


async def test_an_admin_exports_what_one_key_said(keyed: Running) -> None:
    """Where two name a session alike, these are two; nobody else chooses a key."""
    of_alice, of_bob = [await record_as(keyed, **one) for one in (AS_ALICE, AS_BOB)]
    for completion, headers in ((of_alice, AS_ALICE), (of_bob, AS_BOB)):
        await keyed.rate(completion, headers=headers)
    (alice, _) = [line["key_id"] for line in await lines(keyed, "format=raw", **keyed.admin)]

    one = await lines(keyed, f"format=raw&key_id={alice}", **keyed.admin)
    refused = await keyed.client.get(
        f"/v1/feedback/export?format=raw&key_id={alice}", headers=AS_BOB
    )

    assert [of_alice] == [line["id"] for line in one]
    assert (400, "invalid_request", "key_id") == error_of(refused)


async def test_an_admin_rates_and_sees_everything(keyed: Running) -> None:
    """A rating by the admin counts as one of the completion's own key."""
    completion = await record_as(keyed, **AS_ALICE)

    answer = await keyed.rate(completion, headers=keyed.admin)

    given = answer.json()["id"]
    assert 201 == answer.status_code
    assert [given] == await ids(keyed, **keyed.admin)
    assert [given] == await ids(keyed, **AS_ALICE)
    assert 1 == len(await lines(keyed, "format=raw", **keyed.admin))


async def test_an_admin_rates_by_the_engines_id(keyed: Running) -> None:
    """As the completion's own key does."""
    completion = await keyed.record(key_id=key_id(ALICE), upstream_id="chatcmpl-1")

    answer = await keyed.rate("chatcmpl-1", headers=keyed.admin)

    assert (201, completion) == (answer.status_code, answer.json()["completion_id"])


async def test_an_admin_is_told_what_is_wrong_too(keyed: Running) -> None:
    """What can't be an id is looked up nowhere."""
    body = b'{"completion_id": "\\ud800", "rating": "good"}'

    answer = await keyed.client.post("/v1/feedback", content=body, headers=keyed.admin)

    error = answer.json()["error"]
    assert (400, "completion_id") == (answer.status_code, error["param"])
    assert "lone surrogate" in error["message"]


async def test_ratings_are_counted_once(app: Running) -> None:
    """A retry is no second rating."""
    completion = await app.record()
    await app.rate(completion, id="k1")
    await app.rate(completion, id="k1")

    counted = app.services.metrics.registry.get_sample_value(
        "strop_feedback_total", {"source": "api"}
    )

    assert 1 == counted
