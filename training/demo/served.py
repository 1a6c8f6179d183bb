"""strop as its user has it: `strop serve` in a process of its own, and clients that talk to it.

Everything goes over HTTP. Knows no question, no rule and no figure.
"""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from strop.configs import installation

if TYPE_CHECKING:
    from openai import AsyncOpenAI

READY_TIMEOUT_S = 120.0
# The line that it says to its user: it has taken a port that was free.
_SERVES = re.compile(rb"OPENAI_BASE_URL=(http://\S+)/v1")


class DemoFailed(Exception):
    """The demo can't go on; the message says what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Served:
    """A running strop: the agent's client, and its owner's, who has the admin key."""

    url: str
    model: str
    agent: "AsyncOpenAI"
    owner: httpx.Client

    def get(self, path: str) -> dict[str, Any]:
        """Return what GET `path` answers.

        Raises:
            DemoFailed: it answers with an error.
        """
        return _json(self.owner.get(path))

    def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """Return what POST `body` to `path` answers.

        Raises:
            DemoFailed: it answers with an error.
        """
        return _json(self.owner.post(path, json=body))


@contextlib.contextmanager
def serve(home: Path, settings: Mapping[str, str]) -> Iterator[Served]:
    """Start `strop serve` on `home` and lend it; it ends with the block.

    Args:
        home: strop's home folder, which exists.
        settings: further settings by `section.key`.

    Raises:
        DemoFailed: it doesn't get ready.
    """
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    pairs = {"engine.kind": "embedded", **settings}
    command = [*installation.module("strop.proxy.cli"), "serve", "--home", str(home)]
    command += ["--port", "0"]
    for name, value in pairs.items():
        command += ["--set", f"{name}={value}"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STROP_")}
    with (home / "serve.log").open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        url = _url_once_ready(child, home)
        key = (home / "admin.key").read_text(encoding="ascii").strip()
        # A proxy that the environment names for the network doesn't lead back to this machine.
        with httpx.Client(
            base_url=url,
            timeout=60.0,
            headers={"Authorization": f"Bearer {key}"},
            trust_env=False,
        ) as owner:
            model = _json(owner.get("/v1/models"))["data"][0]["id"]
            direct = DefaultAsyncHttpxClient(trust_env=False)
            agent = AsyncOpenAI(base_url=f"{url}/v1", api_key="strop", http_client=direct)
            yield Served(url, model, agent, owner)
    finally:
        child.terminate()
        child.wait()


def _url_once_ready(child: "subprocess.Popen[bytes]", home: Path) -> str:
    log = home / "serve.log"
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and child.poll() is None:
        if (said := _SERVES.search(log.read_bytes())) is not None:
            url = said[1].decode()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz", trust_env=False).status_code == httpx.codes.OK:
                    return url
        time.sleep(0.1)
    text = log.read_text(encoding="utf-8", errors="replace")
    raise DemoFailed(f"expected strop to serve within {READY_TIMEOUT_S:g} s; its log:\n{text}")


def _json(response: httpx.Response) -> dict[str, Any]:
    if response.is_error:
        raise DemoFailed(
            f"{response.request.method} {response.request.url.path}: expected success, got"
            f" {response.status_code}: {response.text}"
        )
    answer: dict[str, Any] = response.json()
    return answer
