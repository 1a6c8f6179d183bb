"""A wire to an engine that keeps its answers from a moment on, so that none of them can end."""

import asyncio
import contextlib
from typing import Self
from urllib.parse import urlsplit


class HeldAnswers:
    """Passes on everything between its clients and the engine at `url`, until told to `hold`.

    Attributes:
        url: where clients find the engine.
        left: set when a client has gone whose answer is kept.
    """

    def __init__(self, url: str) -> None:
        self.url = ""
        self.left = asyncio.Event()
        self._engine = urlsplit(url)
        self._let_go = asyncio.Event()
        self._let_go.set()

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the door; who is in leaves by itself."""
        self._server.close()

    def hold(self) -> None:
        """Keep what the engine says from here on."""
        self._let_go.clear()

    def let_go(self) -> None:
        """Pass on what was kept, and what comes."""
        self._let_go.set()

    async def _connect(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        host, port = self._engine.hostname, self._engine.port
        engine, forth = await asyncio.open_connection(host, port)
        answers = asyncio.create_task(self._answer(engine, back))
        try:
            with contextlib.suppress(ConnectionError):
                while data := await client.read(65536):
                    forth.write(data)
            if not self._let_go.is_set():
                self.left.set()
        finally:
            answers.cancel()
            forth.close()
            back.close()

    async def _answer(self, engine: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await engine.read(65536):
                await self._let_go.wait()
                back.write(data)
            back.close()
