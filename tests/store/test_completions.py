"""Completions: recorded once, read back exactly, under the parent that their history names."""

import asyncio
import time
from array import array
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from store_values import KEY, NOON_MS, OTHER_KEY, choice, completion, database_in, record

from strop.proxy.errors import Conflict
from strop.proxy.store.completions import TAIL_WINDOW_MS
from strop.proxy.store.records import Completion, Recorded
from strop.proxy.store.store import Store

HOUR_MS = 60 * 60 * 1000


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await Store.open(database_in(tmp_path), synchronous="off")
    yield made
    await made.close()


async def kept(store: Store, made: Completion) -> Completion:
    """Record `made` and return what is read back."""
    await store.commit_completion(lambda: made, 0)
    found = await store.get_completion(made.id)
    assert found is not None
    return found.completion


async def test_a_completion_comes_back_as_it_was(store: Store) -> None:
    """Every field of a completion and its choices is read back equal."""
    made = Completion(
        id="cmp_1",
        created_ms=NOON_MS,
        key_id=KEY,
        dialect="completions",
        engine="ollama",
        model="qwen",
        served="qwen@v2",
        version="v2",
        state="client_cancelled",
        delivered=False,
        stream=True,
        request=b'{"prompt": "a"}',
        status=200,
        error="the client stopped reading",
        sampling=b'{"temperature":0.7}',
        prompt_ids=array("i", [1, 2, 3]),
        prompt_tokens=3,
        completion_tokens=5,
        ttft_ms=12.5,
        total_ms=99.25,
        overhead_ms=0.125,
        upstream_id="cmpl-9",
        request_id="req-1",
        session="my session",
        starts_turn=False,
        after=b"after",
        after_tail=b"after tail",
        base="sha256:0123",
        choices=(
            choice(0, chain=b"chain 0", tail=b"tail 0"),
            choice(
                1,
                message=b'{"text":"b"}',
                finish_reason=None,
                token_ids=None,
                logprobs=None,
                logprobs_source=None,
                logprobs_kind=None,
            ),
            choice(2, logprobs_kind="processed"),
        ),
    )

    assert made == await kept(store, made)


async def test_a_completion_without_an_answer_comes_back_as_it_was(store: Store) -> None:
    """What an error left behind, no choices and no tokens, is read back equal."""
    made = completion(
        "cmp_1", state="upstream_error", delivered=True, status=500, error="out of memory",
        choices=(),
    )  # fmt: skip

    assert made == await kept(store, made)


@pytest.mark.parametrize(
    "request_body",
    [
        b"",
        b'{"content": "\\ud800 lone"}',
        b"\xff\xfe not UTF-8 \x00",
        b'{"content": "again"}' * 10_000,
    ],
)
async def test_a_request_is_kept_byte_for_byte(store: Store, request_body: bytes) -> None:
    """Lone surrogates, bytes that are no UTF-8, and long repetitive bodies come back unchanged."""
    made = completion("cmp_1", request=request_body)

    assert request_body == (await kept(store, made)).request


async def test_names_that_utf8_cannot_hold_do_not_lose_the_completion(store: Store) -> None:
    """A lone surrogate in a text column is replaced; the completion is recorded all the same."""
    made = completion("cmp_1", model="m\ud800", session="s\udfff", error="e\ud800")

    found = await kept(store, made)

    assert ("m?", "s?", "e?") == (found.model, found.session, found.error)


async def test_long_snapshots_come_back_exactly(store: Store) -> None:
    """A thousand ids and float32 logprobs come back with every bit."""
    ids = array("i", [(i * 7919) % 151_936 for i in range(1000)])
    logprobs = array("f", [-(i**1.5) / 977 for i in range(1000)])
    made = completion(
        "cmp_1", prompt_ids=ids[::-1], choices=(choice(token_ids=ids, logprobs=logprobs),)
    )

    found = await kept(store, made)

    assert found.prompt_ids == ids[::-1]
    assert ids == found.choices[0].token_ids
    assert found.choices[0].logprobs is not None
    assert logprobs.tobytes() == found.choices[0].logprobs.tobytes()


async def test_what_was_not_recorded_is_none(store: Store) -> None:
    """An unknown id finds nothing."""
    assert await store.get_completion("cmp_1") is None


async def test_the_engines_id_names_the_one_completion_that_has_it(store: Store) -> None:
    """Of this key, or of any; several have no name, and what is an id of strop's own stays that."""
    await record(store, "cmp_1", upstream_id="both")
    await record(store, "cmp_2", upstream_id="both", key_id=OTHER_KEY)
    await record(store, "cmp_3", upstream_id="one")
    await record(store, "cmp_4", upstream_id="cmp_1")

    asked = [("both", KEY), ("both", None), ("one", OTHER_KEY), ("one", None), ("cmp_1", None)]
    found = [await store.id_of(name, key_id) for name, key_id in asked]

    assert ["cmp_1", "both", "one", "cmp_3", "cmp_1"] == found


async def test_a_completion_is_recorded_once(store: Store) -> None:
    """The same id again is an error, and leaves the first one as it was."""
    await record(store, "cmp_1", model="first")

    with pytest.raises(Conflict, match="cmp_1, which is recorded already"):
        await record(store, "cmp_1", model="second")

    found = await store.get_completion("cmp_1")
    assert found is not None
    assert "first" == found.completion.model


async def test_a_completion_that_cannot_be_built_fails_alone(store: Store) -> None:
    """What the builder raises reaches its own future; the completion beside it is recorded."""

    def build() -> Completion:
        raise ValueError("no answer in there")

    broken = store.commit_completion(build, 0)
    sound = record(store, "cmp_1")

    with pytest.raises(ValueError, match="no answer in there"):
        await broken
    assert "cmp_1" == (await sound).id


async def test_the_first_completion_begins_a_session_and_a_turn(store: Store) -> None:
    """Without label and parent, session and turn are its own."""
    found = await record(store, "cmp_1")

    assert Recorded("cmp_1", session="ses_1", turn="cmp_1", num_sampled=3) == found


async def test_a_completion_follows_the_choice_that_its_history_ends_in(store: Store) -> None:
    """The choice with the history's chain is the parent, and its session goes on."""
    await record(store, "cmp_1", choices=(choice(0, chain=b"x"), choice(1, chain=b"y")))

    found = await record(store, "cmp_2", after=b"y")

    assert Recorded("cmp_2", "ses_1", "cmp_2", "cmp_1", 1, "chain", 3) == found


async def test_a_tool_loop_is_one_turn(store: Store) -> None:
    """A completion that doesn't start a turn shares its parent's, however far back that began."""
    await record(store, "cmp_1", choices=(choice(chain=b"1"),))
    await record(store, "cmp_2", after=b"1", starts_turn=False, choices=(choice(chain=b"2"),))
    third = await record(
        store, "cmp_3", after=b"2", starts_turn=False, choices=(choice(chain=b"3"),)
    )
    fourth = await record(store, "cmp_4", after=b"3", starts_turn=True)

    assert ("cmp_1", "ses_1") == (third.turn, third.session)
    assert ("cmp_4", "ses_1") == (fourth.turn, fourth.session)


async def test_a_turn_without_a_known_parent_is_its_own(store: Store) -> None:
    """A tool result that follows nothing known begins a turn."""
    found = await record(store, "cmp_1", after=b"unknown", starts_turn=False)

    assert ("cmp_1", None) == (found.turn, found.parent)


async def test_the_clients_label_wins_over_the_parents_session(store: Store) -> None:
    """A session id labels; the parent still comes from the chain."""
    await record(store, "cmp_1", session="mine", choices=(choice(chain=b"1"),))

    unlabelled = await record(store, "cmp_2", after=b"1")
    labelled = await record(store, "cmp_3", after=b"1", session="yours")

    assert ("mine", "cmp_1") == (unlabelled.session, unlabelled.parent)
    assert ("yours", "cmp_1") == (labelled.session, labelled.parent)


async def test_only_a_label_is_read_back_as_the_clients(store: Store) -> None:
    """What the client said about its session and what the store found out are told apart."""
    await record(store, "cmp_1", session="mine")
    await record(store, "cmp_2")

    labelled = await store.get_completion("cmp_1")
    unlabelled = await store.get_completion("cmp_2")

    assert labelled is not None
    assert unlabelled is not None
    assert ("mine", "mine") == (labelled.completion.session, labelled.session)
    assert (None, "ses_2") == (unlabelled.completion.session, unlabelled.session)


async def test_of_equal_histories_the_newest_is_followed_and_marked(store: Store) -> None:
    """Two choices with the same chain: the last one recorded, as ambiguous."""
    await record(store, "cmp_1", choices=(choice(chain=b"x"),))
    await record(store, "cmp_2", choices=(choice(chain=b"x"),))

    found = await record(store, "cmp_3", after=b"x")

    assert ("cmp_2", "chain_ambiguous") == (found.parent, found.parent_by)


async def test_of_equal_histories_that_of_the_clients_own_session_is_followed(
    store: Store,
) -> None:
    """Two chats of the same words, which the client tells apart."""
    for id_, session in (("cmp_1", "a"), ("cmp_2", "b"), ("cmp_3", "c"), ("cmp_4", "c")):
        await record(store, id_, session=session, choices=(choice(chain=b"x"),))

    followed = await record(store, "cmp_5", session="a", after=b"x")
    found = [await store.find_reply(KEY, b"x", None, session) for session in ("b", "c", "d")]

    assert ("cmp_1", "chain") == (followed.parent, followed.parent_by)
    assert [("cmp_2", "chain"), ("cmp_4", "chain_ambiguous"), ("cmp_4", "chain_ambiguous")] == [
        (each.completion, each.by) for each in found if each is not None
    ]


async def test_of_equal_histories_one_without_a_session_is_followed_without_one(
    store: Store,
) -> None:
    """What a named conversation asks alike, an evaluation's for one, is another's."""
    await record(store, "cmp_1", choices=(choice(chain=b"x"),))
    for number in range(2, 20):
        await record(store, f"cmp_{number}", session="eval", choices=(choice(chain=b"x"),))

    followed = await record(store, "cmp_a", after=b"x", choices=(choice(chain=b"y"),))
    again = await record(store, "cmp_b", after=b"x")
    replied = await store.find_reply(KEY, b"x", None)
    labelled = await record(store, "cmp_c", session="eval", after=b"x")
    unnamed = await record(store, "cmp_d", after=b"y")

    assert ("cmp_1", "ses_1") == (followed.parent, followed.session)
    assert "cmp_1" == again.parent
    assert replied is not None
    assert ("cmp_1", "chain_ambiguous") == (replied.completion, replied.by)
    assert ("cmp_19", "chain_ambiguous") == (labelled.parent, labelled.parent_by)
    assert ("cmp_a", "ses_1") == (unnamed.parent, unnamed.session)


async def test_a_named_history_is_followed_without_a_name_where_there_is_no_other(
    store: Store,
) -> None:
    """A client need not say the name each time; its conversation goes on."""
    await record(store, "cmp_1", session="mine", choices=(choice(chain=b"x"),))
    unnamed = await record(store, "cmp_2", after=b"x", choices=(choice(chain=b"y"),))
    await record(store, "cmp_3", session="eval", choices=(choice(chain=b"y"),))

    followed = await record(store, "cmp_4", after=b"y")

    assert ("cmp_1", "mine") == (unnamed.parent, unnamed.session)
    assert ("cmp_2", "mine") == (followed.parent, followed.session)


async def test_of_equal_tails_one_of_the_same_conversation_is_followed(store: Store) -> None:
    """Where it is alone in that: an evaluation asks what people do."""
    for id_, session in (("cmp_1", None), ("cmp_2", "eval"), ("cmp_3", "eval"), ("cmp_4", "mine")):
        await record(store, id_, session=session, choices=(choice(chain=b"x", tail=b"t"),))
    cut = {"after": b"cut", "after_tail": b"t"}

    unnamed = await record(store, "cmp_a", **cut)
    named = await record(store, "cmp_b", session="mine", **cut)
    several = await record(store, "cmp_c", session="eval", **cut)
    other = await record(store, "cmp_d", session="other", **cut)

    assert ("cmp_1", "tail") == (unnamed.parent, unnamed.parent_by)
    assert ("cmp_4", "tail") == (named.parent, named.parent_by)
    assert (None, None) == (several.parent, other.parent)


async def test_of_equal_histories_that_of_the_same_call_is_followed(store: Store) -> None:
    """A call's id is in the tail alone; however many chats of the same words came after it."""
    for number in range(1, 5):
        mine = choice(chain=b"x", tail=b"call %d" % number)
        await record(store, f"cmp_{number}", session=f"s{number}", choices=(mine,))

    followed = [
        await record(store, f"cmp_a{n}", after=b"x", after_tail=b"call %d" % n) for n in (1, 3, 4)
    ]
    labelled = await record(store, "cmp_b", session="s4", after=b"x", after_tail=b"call 2")
    unknown = await record(store, "cmp_c", after=b"x", after_tail=b"call 9")

    assert [(f"cmp_{n}", "chain") for n in (1, 3, 4)] == [
        (one.parent, one.parent_by) for one in followed
    ]
    assert ("cmp_2", "chain") == (labelled.parent, labelled.parent_by)
    assert ("cmp_4", "chain_ambiguous") == (unknown.parent, unknown.parent_by)


async def test_the_tail_of_another_history_is_not_followed_where_equal_ones_are_known(
    store: Store,
) -> None:
    """It says less than the whole history."""
    for number in (1, 2):
        await record(store, f"cmp_{number}", choices=(choice(chain=b"x", tail=b"old"),))
    await record(store, "cmp_3", choices=(choice(chain=b"y", tail=b"t"),))

    found = await record(store, "cmp_4", after=b"x", after_tail=b"t")

    assert ("cmp_2", "chain_ambiguous") == (found.parent, found.parent_by)


async def test_of_equal_histories_the_one_that_is_named_is_followed(store: Store) -> None:
    """By its completion's id, before a session's; a name that fits neither chain nor tail isn't."""
    for id_, key_id in (("cmp_1", KEY), ("cmp_2", KEY), ("cmp_3", KEY), ("cmp_4", OTHER_KEY)):
        mine = choice(chain=b"x", tail=b"t")
        await record(store, id_, key_id=key_id, session=id_, choices=(mine,))
    await record(store, "cmp_5", choices=(choice(chain=b"y", tail=b"u"),))
    keys = {"after": b"x", "after_tail": b"t"}

    named = await record(store, "cmp_6", session="cmp_2", follows="cmp_1", **keys)
    cut = await record(store, "cmp_7", follows="cmp_1", after=b"cut", after_tail=b"t")
    others = [
        await record(store, f"cmp_8{name}", follows=name, **keys)
        for name in ("cmp_4", "cmp_5", "cmp_none")
    ]
    found = await store.find_reply(KEY, b"x", b"t", "cmp_2", "cmp_1")

    assert ("cmp_1", "chain") == (named.parent, named.parent_by)
    assert ("cmp_1", "tail") == (cut.parent, cut.parent_by)
    assert [("cmp_3", "chain_ambiguous")] * 3 == [(one.parent, one.parent_by) for one in others]
    assert found is not None
    assert ("cmp_1", "chain") == (found.completion, found.by)


async def test_a_named_completion_without_a_chain_is_not_followed(store: Store) -> None:
    """Nothing shows that a history ends in what could not be read."""
    await record(store, "cmp_1", choices=(choice(chain=None, tail=None),))

    found = await record(store, "cmp_2", follows="cmp_1", after=b"x", after_tail=b"t")

    assert found.parent is None


async def test_a_history_never_follows_another_keys_choice(store: Store) -> None:
    """Strangers are never merged, neither by chain nor by tail."""
    await record(store, "cmp_1", key_id=OTHER_KEY, choices=(choice(chain=b"x", tail=b"t"),))

    found = await record(store, "cmp_2", after=b"x", after_tail=b"t")

    assert (None, "ses_2") == (found.parent, found.session)


async def test_a_history_that_was_cut_is_found_by_its_tail(store: Store) -> None:
    """Where the chain is unknown, a tail that one choice of this key has names the parent."""
    await record(store, "cmp_1", choices=(choice(chain=b"x", tail=b"t"),))
    await record(store, "cmp_2", key_id=OTHER_KEY, choices=(choice(tail=b"t"),))

    found = await record(store, "cmp_3", after=b"cut", after_tail=b"t")

    assert ("cmp_1", "tail") == (found.parent, found.parent_by)


async def test_a_tail_of_several_choices_names_none(store: Store) -> None:
    """An ambiguous tail is no parent."""
    await record(store, "cmp_1", choices=(choice(tail=b"t"),))
    await record(store, "cmp_2", choices=(choice(tail=b"t"),))

    assert (await record(store, "cmp_3", after=b"cut", after_tail=b"t")).parent is None


async def test_a_tail_is_forgotten_after_a_day(store: Store) -> None:
    """A tail names a choice of the last 24 hours only; an older one doesn't make it ambiguous."""
    await record(store, "cmp_1", created_ms=NOON_MS, choices=(choice(tail=b"t"),))
    day_later = NOON_MS + TAIL_WINDOW_MS
    cut = {"after": b"cut", "after_tail": b"t"}

    too_late = await record(store, "cmp_2", created_ms=day_later, **cut)
    in_time = await record(store, "cmp_3", created_ms=day_later - 1, **cut)
    await record(store, "cmp_4", created_ms=NOON_MS + HOUR_MS, choices=(choice(tail=b"t"),))
    fresh = await record(store, "cmp_5", created_ms=day_later, **cut)

    assert (None, "cmp_1", "cmp_4") == (too_late.parent, in_time.parent, fresh.parent)


async def test_the_chain_counts_before_the_tail(store: Store) -> None:
    """The whole history decides where it is known."""
    await record(store, "cmp_1", choices=(choice(chain=b"x"),))
    await record(store, "cmp_2", choices=(choice(tail=b"t"),))

    found = await record(store, "cmp_3", after=b"x", after_tail=b"t")

    assert ("cmp_1", "chain") == (found.parent, found.parent_by)


async def test_a_parent_in_the_same_batch_is_found(store: Store) -> None:
    """Completions committed together see one another in order."""
    builders = [
        partial(completion, f"cmp_{i}", after=b"%d" % (i - 1), choices=(choice(chain=b"%d" % i),))
        for i in range(1, 6)
    ]

    found = await asyncio.gather(*[store.commit_completion(build, 0) for build in builders])

    assert [None, "cmp_1", "cmp_2", "cmp_3", "cmp_4"] == [one.parent for one in found]
    assert {"ses_1"} == {one.session for one in found}


async def test_a_reply_is_found_as_a_parent_is(store: Store) -> None:
    """The choice that a rating means is found by chain, else by tail, with its conversation."""
    await record(
        store,
        "cmp_1",
        created_ms=time.time_ns() // 1_000_000,
        choices=(choice(chain=b"x", tail=b"t"),),
        session="mine",
    )

    by_chain = await store.find_reply(KEY, b"x", None)
    by_tail = await store.find_reply(KEY, b"cut", b"t")
    by_other = await store.find_reply(OTHER_KEY, b"x", b"t")
    by_nothing = await store.find_reply(KEY, None, None)

    assert by_chain is not None
    assert by_tail is not None
    assert ("cmp_1", 0, "chain", "mine", "cmp_1") == (
        by_chain.completion, by_chain.choice, by_chain.by, by_chain.session, by_chain.turn,
    )  # fmt: skip
    assert ("cmp_1", "tail") == (by_tail.completion, by_tail.by)
    assert (None, None) == (by_other, by_nothing)


async def test_of_equal_replies_the_newest_is_found_and_marked(store: Store) -> None:
    """Two equal histories: the last one recorded, as ambiguous."""
    await record(store, "cmp_1", choices=(choice(chain=b"x"),))
    await record(store, "cmp_2", choices=(choice(chain=b"x"),))

    found = await store.find_reply(KEY, b"x", None)

    assert found is not None
    assert ("cmp_2", "chain_ambiguous") == (found.completion, found.by)


async def test_workers_share_one_database(tmp_path: Path, store: Store) -> None:
    """Two writers of one file both get everything in, and each follows what the other recorded."""
    other = await Store.open(database_in(tmp_path), synchronous="off")
    lanes = ((store, "a"), (other, "b"))

    for number in range(20):
        await asyncio.gather(
            *(
                record(
                    one, f"cmp_{lane}{number}", choices=(choice(chain=f"{lane}{number}".encode()),)
                )
                for one, lane in lanes
            )
        )
    followed = [
        await record(store, "cmp_x", after=b"b19"),
        await record(other, "cmp_y", after=b"a19"),
    ]
    page = await store.list_completions(limit=100)
    await other.close()

    assert ["cmp_b19", "cmp_a19"] == [one.parent for one in followed]
    assert 42 == len(page.data)
