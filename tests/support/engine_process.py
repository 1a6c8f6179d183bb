"""Real embedded engine processes for the tests, and a client for them.

Knows nothing of the answers. A process ends with the test process, by its parent pipe.
"""

import contextlib
import copy
import dataclasses
import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from waiting import LIMIT_S

from strop.proxy.embedded.options import Options

_RUN = """\
import json, sys
from strop.proxy.embedded.options import Options
from strop.proxy.embedded.server import run
sys.exit(run(Options(**json.loads(sys.argv[1]))))
"""

HELLO = [{"role": "user", "content": "Hello"}]
SNAPSHOT = {"logprobs": True, "return_token_ids": True}


class EngineProcess:
    """A running embedded engine; `log` is what it wrote to stderr, complete once it has ended.

    What is asked of it has its key, if the options name one.
    """

    def __init__(self, options: Options) -> None:
        self.headers = {"authorization": f"Bearer {options.key}"} if options.key else {}
        read_end, self._write_end = os.pipe()
        arguments = json.dumps(dataclasses.asdict(dataclasses.replace(options, parent_fd=read_end)))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN, arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=(read_end,),
        )
        os.close(read_end)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]
        self.log = ""
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        self.log = self.process.stderr.read()

    def wait_until_ready(self) -> None:
        """Return once /health answers 200."""
        health = f"{self.url}/health"
        while httpx.get(health, headers=self.headers, timeout=LIMIT_S).status_code != 200:
            assert self.process.poll() is None, "the engine died while loading"
            time.sleep(0.05)

    def close_pipe(self) -> None:
        """Let the engine see its parent's end."""
        if self._write_end >= 0:
            os.close(self._write_end)
            self._write_end = -1

    def end(self) -> int:
        """Stop the engine and return its exit status."""
        self.close_pipe()
        status = self.process.wait(timeout=LIMIT_S)
        self._reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return status

    def client(self) -> httpx.AsyncClient:
        """Return an async client of the engine."""
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(
            base_url=self.url, headers=self.headers, timeout=LIMIT_S, limits=limits
        )

    def post(self, path: str, body: object) -> httpx.Response:
        """Post JSON."""
        return httpx.post(f"{self.url}{path}", json=body, headers=self.headers, timeout=LIMIT_S)

    def chat(self, text: str = "Hello", /, **fields: Any) -> dict[str, Any]:
        """Return the JSON answer to one user message."""
        return self._asked(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **fields}
        )

    def complete(self, prompt: Any, **fields: Any) -> dict[str, Any]:
        """Return the JSON answer to a prompt."""
        return self._asked("/v1/completions", {"prompt": prompt, **fields})

    def _asked(self, path: str, body: object) -> dict[str, Any]:
        answer: dict[str, Any] = expect_ok(self.post(path, body)).json()
        return answer

    def stream(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the events of a stream, which must end with [DONE]."""
        response = expect_ok(self.post(path, {**body, "stream": True}))
        return parse_events(response.text)

    @contextlib.contextmanager
    def version(self, name: str, folder: Path) -> Iterator[str]:
        """Load an adapter for the time of the block."""
        expect_ok(self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}))
        try:
            yield name
        finally:
            expect_ok(self.post("/v1/unload_lora_adapter", {"lora_name": name}))


def expect_ok(response: httpx.Response) -> httpx.Response:
    """Return the response, which must be a 200."""
    assert 200 == response.status_code, response.text
    return response


def parse_events(text: str) -> list[dict[str, Any]]:
    """Return the events of a whole stream without its [DONE]."""
    *events, done, rest = text.split("\n\n")
    assert ("data: [DONE]", "") == (done, rest)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def text_of(events: list[dict[str, Any]], field: str = "content") -> str:
    """Return what a chat stream's deltas say together."""
    return "".join(
        choice["delta"].get(field) or "" for event in events for choice in event["choices"]
    )


def without_snapshot(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events as they would be without logprobs and ids asked for."""
    kept = []
    for event in copy.deepcopy(events):
        for name in ("id", "created"):
            event.pop(name)
        if "prompt_token_ids" in event:
            event["prompt_token_ids"] = None
        for choice in event["choices"]:
            for name in ("logprobs", "token_ids", "prompt_token_ids"):
                if name in choice:
                    choice[name] = None
            for call in choice.get("delta", {}).get("tool_calls", ()):
                call["id"] = None
        silent = [
            choice.get("delta") == {} and choice["finish_reason"] is None
            for choice in event["choices"]
        ]
        if not any(silent):
            kept.append(event)
    return kept


@functools.cache
def shared(folder: Path) -> EngineProcess:
    """Return the one engine that all tests of this process share, with `folder` as its base."""
    engine = EngineProcess(Options(model=str(folder), served_name="base"))
    engine.wait_until_ready()
    return engine
