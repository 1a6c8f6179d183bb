"""bench.load: every request that fell due is sent, and one that can't be counts as failed."""

import asyncio
import socket

from bench import upstream
from bench.answers import Ask
from bench.load import OpenLoop, Seen
from bench.workloads import Workload


async def sent_to(port: int, count: int) -> Seen:
    """Send `count` requests that fall due at once."""
    return await OpenLoop(port, Workload(Ask(max_tokens=8))).run(
        rate=1000.0, duration_s=count / 1000
    )


async def test_the_last_request_waits_for_its_connection() -> None:
    """The only one falls due before there is any connection."""
    loop, journal = asyncio.get_running_loop(), upstream.Journal()
    server = await loop.create_server(lambda: upstream.Connection(loop, journal), "127.0.0.1")
    async with server:
        seen = await sent_to(server.sockets[0].getsockname()[1], 1)

    assert (1, 0, 0) == (seen.answered, seen.failed, seen.altered)


async def test_what_can_not_be_sent_has_failed() -> None:
    """It says why."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]

    seen = await sent_to(port, 1)

    assert (0, 1) == (seen.answered, seen.failed)
    assert "can't connect again" in seen.difference
