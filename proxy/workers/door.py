"""How connections get to the workers: accepted in one process, and handed to the least busy one.

Does not speak HTTP. Of 64 connections, two processes that accept from one socket under uvloop had 0
and 64, or 3 and 61; SO_REUSEPORT deals by chance, on Linux alone, and what waits in a process that
dies is lost. Here they are dealt by count, and what a dying worker has not taken goes to another.
"""

import asyncio
import contextlib
import errno
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

TAKEN: Final = b"+"
CLOSED: Final = b"-"
_HERE: Final = b"c"
# Accepted between two looks at what else is to be done.
_BURST: Final = 64
_PAUSE_S: Final = 1.0
# The last two are what macOS, and Linux for many descriptors at once, say instead of the first.
_FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS})


class Passage:
    """The way to one worker, as the process that accepts sees it.

    Args:
        end: the socket over which connections are handed down.

    Attributes:
        num_connections: how many the worker has, or is to have.
        on_shut: told that the worker takes no more.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._loop = asyncio.get_running_loop()
        # A few hundred fit into the way at once; a worker may be slower than who comes.
        self._waiting: deque[socket.socket] = deque()
        # Kept until the worker has it: some systems close what is on its way, and workers die.
        self._untaken: deque[socket.socket] = deque()
        self.num_connections = 0
        self.on_shut: Callable[[], None] = lambda: None
        self._loop.add_reader(end, self._read)

    def hand(self, connection: socket.socket) -> None:
        """Hand a connection down, as soon as there is room for it."""
        self.num_connections += 1
        self._waiting.append(connection)
        if len(self._waiting) == 1:
            self._hand_down()

    def close(self) -> list[socket.socket]:
        """Hand nothing down any more; return what the worker has not taken. Idempotent."""
        if self._end.fileno() < 0:
            return []
        self._loop.remove_writer(self._end)
        self._loop.remove_reader(self._end)
        while self._read():
            pass
        self._end.close()
        return [*self._untaken, *self._waiting]

    def _hand_down(self) -> None:
        while self._waiting:
            try:
                socket.send_fds(self._end, [_HERE], [self._waiting[0].fileno()])
            except OSError as error:
                if error.errno in _FULL:
                    self._loop.add_writer(self._end, self._hand_down)
                    return
                self._loop.call_soon(self.on_shut)
                break
            self._untaken.append(self._waiting.popleft())
        self._loop.remove_writer(self._end)

    def _read(self) -> bool:
        """Take what the worker said; return whether there may be more."""
        try:
            said = self._end.recv(4096)
        except BlockingIOError:
            return False
        except OSError:
            said = b""
        for one in said:
            if one == TAKEN[0]:
                self._untaken.popleft().close()
            else:
                self.num_connections -= 1
        if not said:
            self._loop.remove_reader(self._end)
            self._loop.call_soon(self.on_shut)
        return bool(said)


class Door:
    """Accepts connections, while there is a worker to hand them to.

    Args:
        listener: the listening socket.
    """

    def __init__(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listener: socket.socket | None = listener
        self._loop = asyncio.get_running_loop()
        self._passages: list[Passage] = []
        self._left: list[socket.socket] = []

    def open(self, passage: Passage) -> None:
        """Let a worker have connections."""
        self._passages.append(passage)
        passage.on_shut = lambda: self.shut(passage)
        self._hand_on()
        self._watch()

    def shut(self, passage: Passage) -> None:
        """Let a worker have no more; what it has not taken goes to another, the next at last."""
        if passage in self._passages:
            self._passages.remove(passage)
        self._watch()
        self._left += passage.close()
        self._hand_on()

    def close(self) -> None:
        """Accept no more connections, and hand none down."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        passages, self._passages = self._passages, []
        for passage in passages:
            self._left += passage.close()
        for connection in self._left:
            connection.close()
        self._left.clear()

    def _watch(self) -> None:
        if self._listener is None:
            return
        if self._passages:
            self._loop.add_reader(self._listener, self._accept)
        else:
            # Those that come wait in the listener's queue.
            self._loop.remove_reader(self._listener)

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(_BURST):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("connections wait", extra={"reason": str(error)})
                self._loop.remove_reader(self._listener)
                self._loop.call_later(_PAUSE_S, self._watch)
                return
            with contextlib.suppress(OSError):
                # macOS refuses it for one whose client has left already.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._left.append(connection)
            self._hand_on()

    def _hand_on(self) -> None:
        """Hand down what no worker has, if there is one."""
        if self._passages:
            for connection in self._left:
                min(self._passages, key=lambda one: one.num_connections).hand(connection)
            self._left.clear()


class Arrivals:
    """The other end of a passage: a worker takes its connections from it.

    Args:
        end: the socket over which they come.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[None]] = set()
        self._unsaid = bytearray()

    def start(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Take connections from now on; `protocol` makes what serves one."""
        self._loop.add_reader(self._end, self._take, protocol)

    async def stop(self) -> None:
        """Take no more, and let the others have what comes; return once what was taken is served.

        Idempotent.
        """
        self._shut()
        await asyncio.gather(*self._beginning)

    def _shut(self) -> None:
        if self._end.fileno() >= 0:
            self._loop.remove_writer(self._end)
            self._loop.remove_reader(self._end)
            self._end.close()

    def closed(self) -> None:
        """Say that one was closed."""
        self._say(CLOSED)

    def _say(self, word: bytes) -> None:
        self._unsaid += word
        if len(self._unsaid) == len(word):
            self._say_on()

    def _say_on(self) -> None:
        """Say what is unsaid as far as it fits: the count at the door is made of each word."""
        if self._end.fileno() < 0:
            return
        try:
            del self._unsaid[: self._end.send(self._unsaid)]
        except OSError as error:
            if error.errno not in _FULL:
                self._unsaid.clear()
        if self._unsaid:
            self._loop.add_writer(self._end, self._say_on)
        else:
            self._loop.remove_writer(self._end)

    def _take(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        for _ in range(_BURST):
            try:
                said, files, _, _ = socket.recv_fds(self._end, 1, 1)
            except BlockingIOError:
                return
            except OSError:
                said = b""
            if not said:
                self._shut()
                return
            self._say(TAKEN)
            if not files:
                log.error("a connection is lost: this worker can open no more files")
                self.closed()
                continue
            connection = socket.socket(fileno=files[0])
            connection.setblocking(False)
            task = self._loop.create_task(self._begin(connection, protocol))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    async def _begin(
        self, connection: socket.socket, protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        try:
            await self._loop.connect_accepted_socket(protocol, connection)
        except OSError:
            # The client has left already.
            connection.close()
            self.closed()
