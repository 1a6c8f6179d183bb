"""How a request's head is written, and an answer read, without any connection."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.proxy.upstream.http1 import MAX_HEAD_BYTES, Answer, AnswerError, request_head

HOST = b"127.0.0.1:8000"
CHUNKED = b"transfer-encoding: chunked\r\n"


def read(data: bytes, *, has_body: bool = True) -> Answer:
    answer = Answer(has_body=has_body)
    answer.feed(data)
    return answer


def test_request_head_has_host_then_headers_then_length() -> None:
    """Headers stay as given and in order; Host stands before them and the length after."""
    headers = [(b"X-B", b"2"), (b"x-a", b"\xe9"), (b"X-B", b"1")]

    head = request_head(b"POST", b"/v1/x?q=1", HOST, headers, 5)

    assert (
        b"POST /v1/x?q=1 HTTP/1.1\r\nhost: 127.0.0.1:8000\r\n"
        b"X-B: 2\r\nx-a: \xe9\r\nX-B: 1\r\ncontent-length: 5\r\n\r\n"
    ) == head


@pytest.mark.parametrize(
    ("method", "has_length"), [(b"GET", False), (b"HEAD", False), (b"POST", True), (b"PUT", True)]
)
def test_empty_body_has_a_length_where_there_could_be_one(method: bytes, has_length: bool) -> None:
    """Content-Length: 0 is said by methods that usually have a body, and by no other."""
    head = request_head(method, b"/", HOST, [], 0)

    assert has_length == (b"content-length: 0\r\n" in head)


@pytest.mark.parametrize(
    ("method", "target", "header"),
    [
        (b"GET", b"/", (b"x", b"1\r\ny: 2")),
        (b"GET", b"/", (b"x", b"1\ny: 2")),
        (b"GET", b"/", (b"x", b"1\ry: 2")),
        (b"GET", b"/", (b"x", b"1\0")),
        (b"GET", b"/", (b"x\r\ny", b"1")),
        (b"GET", b"/ HTTP/1.1\r\nx: 1\r\n\r\n", (b"x", b"1")),
        (b"GET", b"/a b", (b"x", b"1")),
        (b"GET /", b"/", (b"x", b"1")),
    ],
)
def test_what_would_leave_its_place_is_refused(
    method: bytes, target: bytes, header: tuple[bytes, bytes]
) -> None:
    """Nothing in a request can end its line, or pass for another part of it."""
    with pytest.raises(ValueError, match="expected"):
        request_head(method, target, HOST, [header], 0)


def test_header_names_are_lower_case_and_repeats_stay() -> None:
    """Headers keep their order, their repeats and their values; names are in lower case."""
    answer = read(b"HTTP/1.1 200 OK\r\nSet-Cookie: A=1\r\nX: \xe9\r\nset-cookie: B=2\r\n\r\n")

    assert [(b"set-cookie", b"A=1"), (b"x", b"\xe9"), (b"set-cookie", b"B=2")] == answer.headers


@given(
    st.sampled_from(["length", "chunked"]),
    st.binary(max_size=60),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_where_bytes_are_cut_does_not_matter(framing: str, body: bytes, cuts: list[int]) -> None:
    """An answer is the same however it arrives, interim answers and trailers included."""
    data = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 201 Created\r\nA: b\r\n"
    if framing == "length":
        data += b"content-length: %d\r\n\r\n%b" % (len(body), body)
    else:
        pieces = [body[:7], body[7:]]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces if p)
        data += CHUNKED + b"\r\n" + chunks + b"0\r\nx-trailer: 1\r\n\r\n"

    answer = Answer()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in itertools.pairwise(edges):
        answer.feed(data[start:end])

    assert (201, b"b", 2) == (answer.status, answer.headers[0][1], len(answer.headers))
    assert answer.is_complete
    assert answer.is_reusable
    assert body == answer.take()


@pytest.mark.parametrize(
    ("data", "is_reusable"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", True),
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\nhi", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", False),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nhi", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi!", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n2\r\nhi\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n2\r\nhi\r\n0\r\n\r\nx", False),
    ],
)
def test_connection_is_reusable_only_after_an_exact_end(data: bytes, is_reusable: bool) -> None:
    """An answer may be whole and its connection still not fit for another."""
    answer = read(data)

    assert answer.is_complete
    assert is_reusable == answer.is_reusable
    assert answer.take() in (b"hi", b"")


def test_second_answer_leaves_the_first_as_it_is() -> None:
    """Bytes after the end never become part of the answer."""
    answer = read(
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
        b"HTTP/1.1 500 Oh\r\nx: y\r\ncontent-length: 3\r\n\r\nbad"
    )

    assert (200, [(b"content-length", b"2")]) == (answer.status, answer.headers)
    assert b"hi" == answer.take()


def test_answer_to_head_has_no_body() -> None:
    """An answer to HEAD is whole with its headers, whatever length these announce."""
    answer = read(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", has_body=False)

    assert answer.is_complete
    assert not answer.is_reusable


@pytest.mark.parametrize("header", [b"", b"transfer-encoding: identity\r\n"])
def test_answer_without_length_ends_with_the_connection(header: bytes) -> None:
    """Where no end was announced, the end of the connection is one."""
    answer = read(b"HTTP/1.1 200 OK\r\n" + header + b"\r\nhi")
    assert not answer.is_complete

    answer.feed_eof()

    assert answer.is_complete
    assert not answer.is_reusable


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n",
        b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n3\r\nhi",
        b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n2\r\nhi\r\n",
        b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n2\r\nhi\r\n0\r\n",
    ],
)
def test_answer_cut_short_is_an_error(data: bytes) -> None:
    """An answer that announced its end, or has no head yet, can't end with the connection."""
    answer = read(data)

    with pytest.raises(AnswerError):
        answer.feed_eof()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"\x15\x03\x01\x00\x02\x02",
        b"<html>",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n" + CHUNKED + b"\r\n",
        b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n1\r\nhi\r\n",
    ],
)
def test_what_is_not_http_is_an_error(data: bytes) -> None:
    """Other protocols and contradictory framing are refused, not guessed at."""
    with pytest.raises(AnswerError, match="isn't HTTP"):
        read(data)


@pytest.mark.parametrize("status", [0, 99, 600, 999])
def test_a_status_that_there_is_not_is_an_error(status: int) -> None:
    """It says so, and what came with it is not the body of a later answer."""
    with pytest.raises(AnswerError, match=f"the status {status}, which HTTP does not have"):
        read(b"HTTP/1.1 %03d Odd\r\ncontent-length: 2\r\n\r\nhi" % status)


def test_head_without_end_is_an_error() -> None:
    """A head may not grow for ever."""
    line = b"x: " + b"y" * 995 + b"\r\n"
    answer = read(b"HTTP/1.1 200 OK\r\n")
    for _ in range(MAX_HEAD_BYTES // 1000):
        answer.feed(line)

    with pytest.raises(AnswerError, match="headers of more than"):
        answer.feed(line)
