"""Events: those that strop writes are read as one line, and those that it relays leave whole."""

from collections.abc import Callable
from itertools import accumulate

import pytest

from strop.proxy.embedded import render
from strop.proxy.wire import chat, sse
from strop.proxy.wire.rechunk import rechunk

TEXT = "one\u0085two\u2028three\u2029four\r\nfive"


def made(text: str) -> bytes:
    return rechunk(chat.say(text, identity="chatcmpl-1", model="m"), include_usage=True)


def of_the_embedded_engine(text: str) -> bytes:
    delta = {"role": "assistant", "content": text}
    return render.event({"choices": [{"index": 0, "delta": delta}]}) + render.DONE


@pytest.mark.parametrize("write", [made, of_the_embedded_engine])
def test_text_with_unusual_line_ends_survives_clients_that_split_there(
    write: Callable[[str], bytes],
) -> None:
    """U+0085, U+2028 and U+2029 end a line to `str.splitlines`, with which httpx reads streams."""
    lines = [line for line in write(TEXT).decode().splitlines() if line]

    *events, done = (line.removeprefix("data: ") for line in lines)
    assert ("[DONE]", TEXT) == (
        done,
        chat.read_stream(map(str.encode, events)).choices[0].message["content"],
    )


def test_what_ends_no_line_stays_as_it_is() -> None:
    """Other text of the same first bytes included."""
    data = '{"a": "\u0084\u2027\u202a é 🙂"}'.encode()

    assert b"data: " + data + b"\n\n" == sse.event(data)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_an_event_leaves_with_its_last_byte(line_end: bytes) -> None:
    """However the stream is cut, and whatever waits until then is counted."""
    events = [one + 2 * line_end for one in (b"data: a", b": b", b"event: c", b"data: [DONE]")]
    stream = b"".join(events) + b"data: half"
    splitter = sse.Splitter()

    left, waiting = [], []
    for byte in stream:
        left.append(splitter.feed(bytes([byte])))
        waiting.append(splitter.num_waiting_bytes)

    num_left = accumulate(map(len, left))
    assert events == [one for one in left if one]
    assert waiting == [num_fed - num for num_fed, num in enumerate(num_left, start=1)]
    assert (b"data: half", 0) == (splitter.take_rest(), splitter.num_waiting_bytes)
