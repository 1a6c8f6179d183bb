"""HTTP/1.1 as a client writes and reads it: the head of a request, and one answer as it arrives.

Pure: knows no connection and awaits nothing.
"""

from collections.abc import Sequence

import httptools

MAX_HEAD_BYTES = 256 * 1024

_METHODS_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})


class AnswerError(Exception):
    """What came is not HTTP/1.1, or stopped before its end."""


def request_head(
    method: bytes,
    target: bytes,
    host: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    num_body_bytes: int,
) -> bytes:
    """Return the bytes before a request's body: Host, `headers` as given, Content-Length.

    Raises:
        ValueError: a part of it would not stay in its place.
    """
    lines = [method + b" " + target + b" HTTP/1.1", b"host: " + host, *map(b": ".join, headers)]
    if num_body_bytes or method in _METHODS_WITH_BODY:
        lines.append(b"content-length: %d" % num_body_bytes)
    head = b"\r\n".join([*lines, b"", b""])
    num_lines = len(lines) + 1
    if head.count(b"\n") != num_lines or head.count(b"\r") != num_lines or b"\0" in head:
        raise ValueError("expected headers without CR, LF and NUL; leave these out")
    if b" " in target or b" " in method:
        raise ValueError("expected a method and a target without spaces; percent-encode them")
    return head


class Answer:
    """One answer, read piece by piece.

    Args:
        has_body: False for the answer to HEAD, which has none whatever its headers say.

    Attributes:
        status: the final one; interim answers (100 Continue, 103 Early Hints) are skipped.
        headers: names in lower case, in the order they came; trailers are left out.
        body: the pieces that came and were not yet taken away.
        num_unread_bytes: how long these are together.
        has_head: whether status and headers are there.
        is_complete: whether the answer has come to its end.
        is_reusable: whether the connection may carry another exchange; once `is_complete`.
    """

    def __init__(self, *, has_body: bool = True) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []
        self.num_unread_bytes = 0
        self.has_head = False
        self.is_complete = False
        self.is_reusable = False
        self._has_body = has_body
        self._num_head_bytes = 0
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Read `data`.

        Raises:
            AnswerError: the answer is broken, or its head too long.
        """
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.is_reusable = False
            # Whatever follows a whole answer is not its fault.
            if not self.is_complete:
                said = f"something that isn't HTTP/1.1 ({error})"
                if isinstance(error.__context__, AnswerError):
                    said = str(error.__context__)  # a callback of ours has raised it
                raise AnswerError(said) from error
        if self.is_complete:
            del self._parser  # it refers to us: without it, no garbage collection is needed
        elif not self.has_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                raise AnswerError(f"headers of more than {MAX_HEAD_BYTES} bytes")

    def feed_eof(self) -> None:
        """Read the end of the connection, which ends an answer that announced no other end.

        Raises:
            AnswerError: this one did, or has no head yet.
        """
        if not self.has_head or self._announces_its_end:
            raise AnswerError("the end of the connection")
        self.is_complete = True

    def take(self) -> bytes:
        """Return the body bytes read since the last time, b"" for none."""
        pieces, self.body = self.body, []
        self.num_unread_bytes = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @property
    def _announces_its_end(self) -> bool:
        return any(
            name == b"content-length"
            or (name == b"transfer-encoding" and value.lower().rstrip().endswith(b"chunked"))
            for name, value in self.headers
        )

    # The parser's callbacks. It goes on after the end of the answer, if more bytes come.

    def on_message_begin(self) -> None:
        """Note that more came than the answer."""
        if self.is_complete:
            self.is_reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header. After the head it is a trailer."""
        if not self.has_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Take the head, unless it is an interim one.

        After a 101 the parser fails by itself: no other protocol was asked for.
        """
        if self.has_head:
            return
        self.status = self._parser.get_status_code()
        if not 100 <= self.status <= 599:
            raise AnswerError(f"the status {self.status}, which HTTP does not have")
        if self.status < 200:
            self.headers.clear()
            return
        self.has_head = True
        self.is_complete = not self._has_body

    def on_body(self, piece: bytes) -> None:
        """Keep a piece of the body."""
        if not self.is_complete:
            self.body.append(piece)
            self.num_unread_bytes += len(piece)

    def on_message_complete(self) -> None:
        """Note the end of the answer."""
        if self.has_head and not self.is_complete:
            self.is_complete = True
            # HTTP/1.0 servers announce keep-alive more often than they do it.
            self.is_reusable = (
                self._parser.should_keep_alive() and self._parser.get_http_version() == "1.1"
            )
