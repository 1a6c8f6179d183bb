"""Ports for the servers of the tests."""

import contextlib
import socket
import sys
from collections.abc import Iterator


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def held_port(host: str = "127.0.0.1") -> Iterator[int]:
    """Keep a port for a server of the test, be there one or not: nobody who asks for any gets it.

    Who connects while there is none is refused. The server must set SO_REUSEADDR, as most do.
    Nothing is kept but on Linux: elsewhere the server couldn't have the port too.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, 0))
        port = int(holder.getsockname()[1])
        if sys.platform != "linux":
            holder.close()
        yield port
