"""The key of the embedded engine: strop has it, nobody else here has, and nothing shows it."""

import contextlib
import functools
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from faults_process import started
from waiting import LIMIT_S

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
COMMANDS = ("config", "config --json", "status", "status --json")


@pytest.mark.parametrize("workers", [1, 2])
async def test_strop_is_answered_by_its_engine_and_others_are_not(
    qwen3: Path, tmp_path: Path, workers: int
) -> None:
    """Whole answers and streams come through strop, also from workers; clients' keys end there."""
    home = tmp_path / "home"
    options = ("--model", str(qwen3), "--model-name", "tiny", "--workers", str(workers))
    fields: dict[str, Any] = {
        "model": "tiny",
        "max_tokens": 3,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    mine = {"authorization": "Bearer a-client-s-own"}
    async with started(home, *options) as serve:
        await serve.wait_until_ready()
        url = (await serve.get("/health"))["engine"]["url"]
        async with httpx.AsyncClient(timeout=LIMIT_S) as client:
            served = [
                await client.post(
                    serve.url + CHAT, json={**fields, "stream": stream}, headers=headers
                )
                for stream in (False, True)
                for headers in (mine, {})
                for _ in range(workers)
            ]
            direct = [
                await client.post(url + CHAT, json=fields, headers=headers)
                for headers in (mine, {})
            ]
            shown = [(await client.get(serve.url + path)).text for path in ("/health", "/metrics")]
        secret = key_of_engine(url)
        shown += [*commands().values(), *map(functools.partial(strop, home), COMMANDS)]
        assert 0 == await serve.end(signal.SIGTERM)

    assert {200} == {one.status_code for one in served}
    assert [401, 401] == [one.status_code for one in direct]
    assert len(secret) > 40
    shown += [one.read_text(errors="replace") for one in home.rglob("*") if one.is_file()]
    assert [] == [one for one in shown if secret in one]


def key_of_engine(url: str) -> str:
    """Return the key of the engine that listens there; only its user can read it."""
    port = url.rpartition(":")[2]
    (engine,) = [pid for pid, line in commands().items() if f" --port {port} " in line]
    variables = Path(f"/proc/{engine}/environ").read_text().split("\0")
    (key,) = [one.partition("=")[2] for one in variables if one.startswith("STROP_ENGINE_KEY=")]
    return key


def commands() -> dict[str, str]:
    """Return the command line of each process, by its id, as every user of the machine sees it."""
    if not Path("/proc").is_dir():
        pytest.skip("this system doesn't tell of other processes in /proc: nothing to look at")
    found = {}
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found[file.parent.name] = file.read_text(errors="replace").replace("\0", " ")
    return found


def strop(home: Path, arguments: str) -> str:
    """Return what a command of strop's says of this home."""
    command = [sys.executable, "-m", "strop.proxy.cli", *arguments.split(), "--home", str(home)]
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout
