"""Server-sent events as bytes: where one event ends, and what data it carries.

Changes no byte. Does not know what the data mean. Format: WHATWG HTML, "Server-sent events".
"""

import re
from collections.abc import Iterator

_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
# One byte less than the longest.
_MAX_SEAM_BYTES = 3
_LINE = re.compile(rb"\r\n|\n|\r")
DONE = b"[DONE]"

# U+0085, U+2028 and U+2029: no line ends here, but to Python's `splitlines`, and so to httpx.
_OTHER_LINE_ENDS = (
    (b"\xc2\x85", rb"\u0085"),
    (b"\xe2\x80\xa8", rb"\u2028"),
    (b"\xe2\x80\xa9", rb"\u2029"),
)


class Splitter:
    """Cuts a byte stream after whole events; what is not whole yet waits for more.

    Attributes:
        num_waiting_bytes: how long that is.
    """

    def __init__(self) -> None:
        self.num_waiting_bytes = 0
        self._waiting: list[bytes] = []
        # The last bytes of it, with which a blank line may begin: the others are searched once.
        self._seam = b""

    def feed(self, data: bytes) -> bytes:
        """Return the whole events that `data` completes, as one run of their exact bytes."""
        seam = self._seam
        end = _last_end(seam + data) - len(seam) if seam else _last_end(data)
        if end <= 0:
            self._wait(data)
            return b""
        whole, rest = (data, b"") if end == len(data) else (data[:end], data[end:])
        if seam:
            whole = self.take_rest() + whole
        if rest:
            self._wait(rest)
        return whole

    def take_rest(self) -> bytes:
        """Return what waits; it waits no more."""
        rest = b"".join(self._waiting)
        self._waiting.clear()
        self.num_waiting_bytes, self._seam = 0, b""
        return rest

    def _wait(self, data: bytes) -> None:
        self._waiting.append(data)
        self.num_waiting_bytes += len(data)
        self._seam = (self._seam + data[-_MAX_SEAM_BYTES:])[-_MAX_SEAM_BYTES:]


def _last_end(data: bytes) -> int:
    """Return where the last blank line ends; 0 where there is none."""
    if b"\r" in data:
        return max((match.end() for match in _END.finditer(data)), default=0)
    # As engines write: the regular expression takes several times as long.
    before = data.rfind(b"\n\n")
    return before + 2 if before >= 0 else 0


def events(data: bytes) -> Iterator[bytes]:
    """Yield each event of `data` as its exact bytes, the blank line included.

    What stands after the last blank line comes as a last, unfinished event.
    """
    start = 0
    for end in _ends(data):
        yield data[start:end]
        start = end
    if start < len(data):
        yield data[start:]


def start_of_event(data: bytes, at: int) -> int:
    """Return where the event begins in which the byte at `at` stands.

    Of several blank lines the last one counts.
    """
    if b"\r" in data:
        return max((end for end in _ends(data) if end <= at), default=0)
    before = data.rfind(b"\n\n", 0, at)
    return before + 2 if before >= 0 else 0


def _ends(data: bytes) -> Iterator[int]:
    """Yield where each blank line ends."""
    if b"\r" in data:
        for match in _END.finditer(data):
            yield match.end()
    else:
        # As engines write. The regular expression takes several times as long.
        end = data.find(b"\n\n") + 2
        while end > 1:
            yield end
            end = data.find(b"\n\n", end) + 2


def data_of(event: bytes) -> bytes:
    """Return the data of one event, its lines joined by a line feed; empty for a comment."""
    if event.startswith(b"data: ") and event.find(b"\n") >= len(event) - 2:
        return event[6:].rstrip(b"\r\n")
    lines = []
    for line in _LINE.split(event):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value[1:] if value[:1] == b" " else value)
    return b"\n".join(lines)


def payloads(stream: bytes) -> Iterator[bytes]:
    """Iterate over the data of each event of `stream`; comments have none and are left out."""
    lines = stream.split(b"\n")
    if b"\r" in stream or any(lines[1::2]):
        return filter(None, map(data_of, events(stream)))
    # As engines write: one line an event, and a blank line between.
    return filter(None, (one[6:] if one[:6] == b"data: " else data_of(one) for one in lines[::2]))


def event(data: bytes, name: str = "") -> bytes:
    """Return `data`, JSON on one line or `DONE`, as one event that every client reads as one line.

    What some clients take for the end of a line is escaped: in JSON it stands only in strings.
    """
    for raw, escaped in _OTHER_LINE_ENDS:
        data = data.replace(raw, escaped)
    head = b"event: %b\n" % name.encode() if name else b""
    return head + b"data: " + data + b"\n\n"
