"""Every public call of the store, made once for each way that it can go. Asserts nothing."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from store_values import (
    KEY,
    MODEL,
    NOON_MS,
    OTHER_MODEL,
    always,
    choice,
    first_of_session,
    learnable,
    rate,
    rating,
    record,
    version,
)

from strop.proxy.errors import Conflict
from strop.proxy.store.records import CompletionFilter, FeedbackFilter, Revision
from strop.proxy.store.run_records import RunUpdate
from strop.proxy.store.store import Store
from strop.proxy.store.version_records import Pairing


def one_or_two(values: dict[str, object], kind: type) -> Iterator[dict[str, Any]]:
    """No filter, each by itself, and each with each other one."""
    assert {field.name for field in fields(kind)} == set(values)
    for num in range(3):
        for names in itertools.combinations(values, num):
            yield {name: values[name] for name in names}


def completion_filters() -> Iterator[CompletionFilter]:
    """Every filter of completions."""
    for state, is_rated in itertools.product(("upstream_error", "complete"), (True, False)):
        values = {
            "key_id": KEY, "session": "mine", "model": "m", "since_ms": NOON_MS,
            "state": state, "is_rated": is_rated, "containing": "strop",
        }  # fmt: skip
        for given in one_or_two(values, CompletionFilter):
            yield CompletionFilter(**given)


def feedback_filters() -> Iterator[FeedbackFilter]:
    """Every filter of feedback."""
    for state, rater in itertools.product(("standing", "withdrawn"), ("", "ann")):
        values = {
            "key_id": KEY, "completion": "cmp_1", "session": "mine", "rater": rater,
            "state": state, "sign": "bad", "source": "cli", "since_ms": NOON_MS,
        }  # fmt: skip
        for given in one_or_two(values, FeedbackFilter):
            yield FeedbackFilter(**given)


async def everything(store: Store) -> None:
    """Make every call."""
    given = await _writes(store)
    await _versions(store, given)
    await _reads(store, given)
    await _deletes(store)


async def _writes(store: Store) -> str:
    """Record and rate in every way; return a feedback that stands."""
    for name in ("cmp_1", "engine's"):
        await store.add_feedback(rating(name, idempotency=name), always)
    waiting = rating("cmp_1", key_id="another")
    await store.add_feedback(waiting, always)
    await store.add_feedback(rating("cmp_1", choice=7), always)
    await record(
        store, "cmp_1", choices=(choice(chain=b"x", tail=b"t"),), upstream_id="engine's",
        session="mine",
    )  # fmt: skip
    await store.add_feedback(rating("cmp_1", idempotency="cmp_1"), always)
    await record(store, "cmp_2", after=b"x")
    await record(store, "cmp_3", after=b"cut", after_tail=b"t")
    await rate(store, "engine's", -1.0)
    undone = await rate(store, "cmp_1")
    await store.withdraw_lost((undone.feedback.id,))
    await store.undo("mine", KEY, "")
    await store.undo_answer("cmp_2", 0, KEY, "", or_above=True)
    await store.note_prompt("cmp_1", "user: hello")
    await store.withdraw(undone.feedback.id, KEY)
    kept = (await rate(store, "cmp_2")).feedback
    await store.revise(kept.id, KEY, Revision(-1.0, b'"bad"'))
    return kept.id


async def _versions(store: Store, given: str) -> None:
    versions, runs = store.versions, store.runs
    learned = await learnable(store, 1)
    await learnable(store, 2, scope="turn")
    await learnable(store, 3, held_out=True)
    run = await runs.create(
        objective="topr", preset="balanced", parent=None, base=MODEL, requested_by="cli"
    )
    for _ in range(2):
        made = await versions.reserve(base=MODEL, run=run.id)
    await runs.update(run.id, RunUpdate(state="running", num_steps=3))
    await runs.begin_anew(run.id)
    await runs.add_step(run.id, 1, b"{}")
    await store.revise(learned[0], KEY, Revision(1.0, b'"good"', comment="why", scope="turn"))
    await versions.publish(made.id, b"{}", [learned], state="ready", actor="gate")
    await runs.cancel(run.id)
    await runs.update(run.id, RunUpdate(state="cancelled"))
    run = await runs.create(
        objective="topr", preset="balanced", parent=made.id, base=MODEL, requested_by="cli"
    )
    await runs.cancel(run.id)
    failed = await versions.reserve(base=MODEL, parent=made.id, origin="import")
    await versions.fail(failed.id, "no", actor="api")
    await version(store, (given, 2))
    for _ in range(2):
        await version(store, parent=made.id, is_active=True)
    await versions.activate(made.id, actor="api")
    await versions.activate("v4", actor="api", kind="rolled_back")
    with contextlib.suppress(Conflict):
        await versions.reserve(base=OTHER_MODEL, parent=made.id)
    await versions.amend("v4", b"{}", reason=None, actor="watch")
    for is_kept in (True, False):
        await versions.set_kept("v3", is_kept)
    await versions.mark_missing("v3", "gone", actor="api")
    await versions.mark_found("v3", actor="api")
    await versions.add_event("v4", "unloaded", actor="api")
    await versions.refuse_needed("v3")
    await versions.remove("v3", actor="api")
    await versions.removal("v3")
    # The second rating takes the place of the first, which a version has learned.
    same = await rate(store, first_of_session(1), comment="again")
    await rate(store, first_of_session(1), -1.0)
    await store.withdraw(same.feedback.id, KEY)
    await store.withdraw(given, KEY)
    await versions.set_pairing(Pairing("vllm", "sha256:1", MODEL, 0.1, NOON_MS))


async def _reads(store: Store, given: str) -> None:
    await store.find_reply(KEY, b"cut", b"t", follows="cmp_1")
    await store.get_completion("cmp_1")
    await store.get_feedback(given)
    await store.list_revisions(given)
    for asked_for in completion_filters():
        for after in (None, "cmp_1"):
            await store.list_completions(asked_for, after=after)
    for before in (None, 1):
        await store.list_latest(before=before)
    for asked in feedback_filters():
        for after in (None, given):
            await store.list_feedback(asked, after=after)
    await store.count_by_key("mine")
    await store.room()
    await store.feedback_counts()
    await store.feedback_counts("mine", KEY)
    for key_id in (None, KEY):
        await store.id_of("engine's", key_id)
    for session, rater in itertools.product((None, "mine"), (None, "ann")):
        for key_id, since_ms in itertools.product((None, KEY), (None, 1)):
            exported = FeedbackFilter(
                session=session, rater=rater, key_id=key_id, since_ms=since_ms
            )
            _ = [line async for line in store.export("raw", exported)]
            _ = [turn async for turn in store.training.turns(exported)]
    await _read_versions(store)
    await _read_training(store)


async def _read_versions(store: Store) -> None:
    await store.versions.clean_ancestor("v4")
    await store.versions.existing("v4")
    await store.versions.list()
    await store.versions.base_names()
    for about in (None, "v4", "base"):
        await store.versions.list_events(about)
    await store.versions.switch_to("v4", besides="start")
    await store.versions.activation()
    await store.versions.pairing("vllm")
    await store.versions.remove_pairing("vllm")
    page = await store.runs.list(limit=1)
    (run,) = page.data
    await store.runs.list(after=run.id)
    await store.runs.get(run.id)
    await store.runs.list_steps(run.id)
    await store.runs.unfinished()
    await store.runs.last_finished()
    await store.runs.last_finished(base=MODEL)


async def _read_training(store: Store) -> None:
    training = store.training
    await training.fresh_counts("v4", base=MODEL)
    await training.fresh_versions("v4", base=MODEL)
    _ = [turn async for turn in training.fresh_turns("v4", base=MODEL)]
    _ = [turn async for turn in training.held_out_turns(base=MODEL)]
    await training.prior(base=MODEL)
    await training.still_stand([("fb_no", 1)])
    await training.are_recorded(["cmp_no"])
    await training.live_rates(base=MODEL)
    await training.rates_around(NOON_MS, "base", "v1", base=MODEL, most=200)


async def _deletes(store: Store) -> None:
    for name in ("cmp_rated", "cmp_unrated"):
        await record(store, name, session="gone")
    await rate(store, "cmp_rated")
    await store.deletion.completions(("cmp_rated",))
    for session, key_id in (("gone", None), (None, "gone"), ("gone", "gone")):
        await store.deletion.all_of(session=session, key_id=key_id)
    await store.deletion.unrated(NOON_MS + 1)
