"""A stream passes byte for byte, but for its end, which waits."""

import hashlib
import re
from itertools import pairwise

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from strop.proxy.wire import sse
from strop.proxy.wire.restore import Restore
from strop.proxy.wire.tap import Tap


def chunk(text: str, *, index: int = 0, reason: str | None = None) -> bytes:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": reason}
    return sse.event(orjson.dumps({"id": "c", "choices": [choice]}))


STREAM = chunk("a") + b": keep-alive\n\n" + chunk("é\u2028") + chunk("", reason="stop")
USAGE = sse.event(b'{"choices":[],"usage":{"prompt_tokens":1}}')
DONE = sse.event(sse.DONE)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(i % (len(data) + 1) for i in at), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(at=st.lists(st.integers(0, 10_000), max_size=12), crlf=st.booleans())
def test_every_byte_comes_through_however_the_stream_is_cut(at: list[int], crlf: bool) -> None:
    """Without anything to take out, the hash of the stream is the engine's own."""
    stream = STREAM + USAGE + DONE
    if crlf:
        stream = stream.replace(b"\n\n", b"\r\n\r\n")
    tap = Tap(None, 1, 1 << 20)

    passed = b"".join(tap.feed(piece) for piece in cut(stream, at)) + tap.flush()

    assert hashlib.sha256(stream).digest() == hashlib.sha256(passed).digest()
    assert stream == b"".join(tap.copy)


@given(at=st.lists(st.integers(0, 10_000), max_size=12), crlf=st.booleans())
def test_nothing_from_the_last_finish_reason_on_leaves_before_the_flush(
    at: list[int], crlf: bool
) -> None:
    """So nobody has a whole answer before it is recorded."""
    early = chunk("a") + b": keep-alive\n\n" + chunk("é\u2028")
    stream = STREAM + USAGE + DONE
    if crlf:
        early, stream = (one.replace(b"\n\n", b"\r\n\r\n") for one in (early, stream))
    tap = Tap(None, 1, 1 << 20)

    passed = b"".join(tap.feed(piece) for piece in cut(stream, at))

    assert early == passed
    assert tap.is_ended


def test_an_answers_id_is_known_as_soon_as_it_has_come() -> None:
    """Some engines begin with comments, while they read the prompt."""
    tap = Tap(None, 1, 1 << 20)

    ids = []
    for piece in (b": keepalive 0/1\n\n", *cut(STREAM, [10, 20, 400])):
        tap.feed(piece)
        ids.append(tap.answer_id)

    assert [None, None, "c", "c", "c"] == ids


def test_a_long_event_is_searched_once() -> None:
    """An image, say: were it searched again with each piece, this would take minutes."""
    event = chunk("x" * 20_000_000)
    tap = Tap(None, 1, 1 << 25)

    passed = [tap.feed(event[at : at + 500]) for at in range(0, len(event), 500)]

    assert event == b"".join(passed) == passed[-1]


def test_an_end_is_seen_whichever_line_ends_came_before_it() -> None:
    """A server between may send comments of its own, with others than the engine's."""
    end = (chunk("", reason="stop") + DONE).replace(b"\n", b"\r\n")
    tap = Tap(None, 1, 1 << 20)

    assert b": keep-alive\n\n" == tap.feed(b": keep-alive\n\n" + end)
    assert (True, end) == (tap.is_ended, tap.flush())


def test_a_finished_choice_does_not_hold_up_the_others() -> None:
    """With n choices the end is the end of the last one."""
    tap = Tap(None, 2, 1 << 20)

    first = tap.feed(chunk("a", index=0, reason="stop") + chunk("b", index=1))
    last = tap.feed(chunk("c", index=1, reason="length") + DONE)

    assert chunk("a", index=0, reason="stop") + chunk("b", index=1) == first
    assert last == b""
    assert chunk("c", index=1, reason="length") + DONE == tap.flush()


def test_what_ends_a_choice_waits_until_another_goes_on() -> None:
    """An engine may give fewer than were asked for, and say no [DONE]: then that was the end."""
    first, second = chunk("a", reason="stop"), chunk("", index=1) + chunk("b", index=1)
    tap = Tap(None, 2, 1 << 20)

    passed = [tap.feed(piece) for piece in (chunk("x"), first, USAGE, second)]
    went_on = tap.is_ended
    last = [tap.feed(piece) for piece in (chunk("c", index=1, reason="stop"), second)]

    assert [chunk("x"), b"", b"", first + USAGE + second] == passed
    assert not went_on
    assert [b"", b""] == last
    assert (True, chunk("c", index=1, reason="stop") + second) == (tap.is_ended, tap.flush())


def test_what_waited_comes_before_what_went_on() -> None:
    """Also where another choice goes on and ends in one piece."""
    first, on = chunk("a", reason="stop"), chunk("b", index=1)
    second = chunk("", index=1, reason="stop")
    tap = Tap(None, 3, 1 << 20)

    passed = [tap.feed(piece) for piece in (first, on + second)]

    assert [b"", first + on] == passed
    assert second == tap.flush()


def test_nothing_behind_the_last_end_lets_it_go() -> None:
    """Whatever an engine says there: the answer is whole."""
    end = chunk("", reason="stop") + sse.event(b'{"error":{"message":"x"}}')
    tap = Tap(None, 1, 1 << 20)

    assert b"" == tap.feed(end)
    assert (True, end) == (tap.is_ended, tap.flush())


def test_fewer_choices_than_were_asked_for_are_held_back_to_the_end() -> None:
    """So nobody has that answer either before it is recorded."""
    end = chunk("", reason="stop") + USAGE
    tap = Tap(None, 3, 1 << 20)

    passed = [tap.feed(piece) for piece in (chunk("a") + end, chunk("b", index=1, reason="stop"))]

    assert [chunk("a"), b""] == passed
    assert (True, end + chunk("b", index=1, reason="stop")) == (tap.is_ended, tap.flush())


def test_an_error_in_place_of_another_choice_is_no_end() -> None:
    """That one was never given."""
    said = chunk("", reason="stop"), sse.event(b'{"error":{"message":"x"}}')
    tap = Tap(None, 2, 1 << 20)

    passed = [tap.feed(event) for event in said]

    assert [b"", b"".join(said)] == passed
    assert not tap.is_ended


@pytest.mark.parametrize("limit_bytes", [1 << 20, 0], ids=["copied", "not copied"])
def test_a_choice_that_broke_off_is_no_end(limit_bytes: int) -> None:
    """Another one's end says nothing of it; but nobody looks where nothing is recorded."""
    begun = chunk("b", index=1) + chunk("a")
    tap = Tap(None, 3, limit_bytes)

    tap.feed(begun + chunk("", reason="stop"))
    is_ended = tap.is_ended
    tap.feed(chunk("", index=1, reason="stop"))

    assert (limit_bytes == 0, True) == (is_ended, tap.is_ended)


def test_more_choices_than_were_asked_for_wait_for_the_end() -> None:
    """Also where one goes on in the very event that ends another."""
    going_on = {"index": 1, "delta": {"content": "b"}, "finish_reason": None}
    ended = {"index": 0, "delta": {}, "finish_reason": "stop"}
    last = sse.event(orjson.dumps({"choices": [ended, going_on]})) + DONE
    tap = Tap(None, 1, 1 << 20)

    assert chunk("a") == tap.feed(chunk("a") + last)
    assert (True, last) == (tap.is_ended, tap.flush())


def test_a_done_mark_ends_a_stream_whose_choices_never_finished() -> None:
    """An engine that sends an error and [DONE] has ended, too."""
    tap = Tap(None, 1, 1 << 20)

    passed = tap.feed(sse.event(b'{"error":{"message":"x"}}') + DONE)

    assert sse.event(b'{"error":{"message":"x"}}') == passed
    assert (True, True, DONE) == (tap.is_ended, tap.has_failed, tap.flush())


@pytest.mark.parametrize(
    "last", [chunk('{"error": 1}'), sse.event(b'{"error":null,"choices":[]}'), b": ping\n\n", b""]
)
def test_a_stream_that_only_speaks_of_an_error_has_not_failed(last: bytes) -> None:
    """A done mark may end it without a finish reason."""
    tap = Tap(None, 1, 1 << 20)

    tap.feed(last + DONE)

    assert (True, False) == (tap.is_ended, tap.has_failed)


@pytest.mark.parametrize("end", [DONE, chunk("", reason="stop")], ids=["done", "reason"])
def test_an_end_is_found_behind_a_text_that_says_done(end: bytes) -> None:
    """And before what else came with it."""
    text = chunk("a") + chunk("[DONE]") + chunk("b")
    tap = Tap(None, 1, 1 << 20)

    passed = tap.feed(text + end + chunk("c", reason="stop"))

    assert text == passed
    assert end + chunk("c", reason="stop") == tap.flush()


def test_a_stream_without_an_end_is_not_ended() -> None:
    """Text that says finish_reason is text."""
    tap = Tap(None, 1, 1 << 20)

    tap.feed(chunk('"finish_reason":"stop" and [DONE]'))

    assert not tap.is_ended


def test_the_copy_is_what_the_engine_sent_and_the_client_gets_it_restored() -> None:
    """The store keeps the ids that the client did not ask for."""
    event = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"token_ids":[7]}]}\n\n'
    tap = Tap(Restore(("token_ids",)), 1, 1 << 20)

    passed = tap.feed(event + DONE) + tap.flush()

    assert event.replace(b"[7]", b"null") + DONE == passed
    assert event + DONE == b"".join(tap.copy)


def test_a_stream_over_the_limit_is_relayed_and_not_kept() -> None:
    """The tee is bounded."""
    tap = Tap(None, 1, 100)

    passed = b"".join(tap.feed(chunk("x" * 40)) for _ in range(5))

    assert 5 * chunk("x" * 40) == passed
    assert (True, b"") == (tap.copy.is_over_limit, b"".join(tap.copy))


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: a\n\n", b"a"),
        (b"data:a\n\n", b"a"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\r\n\r\n", b"a"),
        (b"event: x\ndata: a\nid: 1\n\n", b"a"),
        (b": comment\n\n", b""),
        (b"data\n\n", b""),
        (b'data: {"a":1}', b'{"a":1}'),
    ],
)
def test_the_data_of_an_event_are_its_data_lines(event: bytes, data: bytes) -> None:
    """WHATWG HTML, "Interpreting an event stream"."""
    assert data == sse.data_of(event)


_LINES = (
    b"data: {}",
    b"data:1",
    b"data",
    b": c",
    b"id: 1",
    b"data: [DONE]",
    b"\n",
    b"\n\n",
    b"\r\n",
)


@given(st.lists(st.sampled_from(_LINES), max_size=10).map(b"".join), st.integers(0, 200))
def test_an_event_ends_with_the_first_blank_line(stream: bytes, at: int) -> None:
    """Whatever a line ends with; nothing is lost between two events."""
    ends = [match.end() for match in re.finditer(rb"\r\n\r\n|\n\n|\r\r", stream)]
    edges = [0, *ends, *([len(stream)] if stream[max(ends, default=0) :] else [])]
    starts = [end for end in (0, *ends) if end <= at]

    assert [stream[a:b] for a, b in pairwise(edges)] == list(sse.events(stream))
    if b"\n\n\n" not in stream:
        assert max(starts) == sse.start_of_event(stream, min(at, len(stream)))


@given(st.lists(st.sampled_from(_LINES), max_size=10).map(b"".join))
@example(b"data: a\n\n: keep-alive\n\ndata: b\n\ndata: c")
def test_the_payloads_of_a_stream_are_the_data_of_its_events(stream: bytes) -> None:
    """However its lines end, and whether or not each event is one line."""
    expected = [sse.data_of(event) for event in sse.events(stream)]

    assert [data for data in expected if data] == list(sse.payloads(stream))
