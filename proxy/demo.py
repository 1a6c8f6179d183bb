"""`strop demo`: the proxy as its user meets it, in a minute, on a home folder of its own.

Starts `strop serve` as a person would, and talks to it over HTTP alone.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from strop.proxy.auth import ADMIN_KEY_FILE
from strop.proxy.engines.embedded import free_port
from strop.proxy.errors import ConfigError

READY_TIMEOUT_S = 120.0
_QUESTIONS = (
    "What is the capital of France?",
    "What is the opposite of hot?",
    "What is the symbol of gold?",
)


def demo() -> int:
    """Show the whole of it; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="strop-demo-") as folder:
        home = Path(folder)
        print("Starting strop with the small model that it ships ...", flush=True)
        with _served(home) as client:
            model = client.get("/v1/models").json()["data"][0]["id"]
            _show(client, home, model)
    print(
        "\nThat was a home folder of its own, gone now. For real:\n\n"
        "    make serve                     # or: strop serve\n"
        "    export OPENAI_BASE_URL=http://127.0.0.1:8484/v1 OPENAI_API_KEY=strop\n\n"
        "and use any agent you like. Your ratings stay in ~/.strop."
    )
    return 0


@contextlib.contextmanager
def _served(home: Path) -> Iterator[httpx.Client]:
    port = free_port("127.0.0.1")
    command = [*(sys.executable, "-m", "strop.proxy.cli", "serve"), "--home", str(home)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("STROP_")}
    with (home / "serve.log").open("wb") as output:
        child = subprocess.Popen(
            [*command, "--port", str(port)], stdout=output, stderr=output, env=env
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as client:
            _wait_until_ready(client, child, home)
            yield client
    finally:
        child.terminate()
        child.wait()


def _wait_until_ready(client: httpx.Client, child: "subprocess.Popen[bytes]", home: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/readyz").status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    log = (home / "serve.log").read_text(encoding="utf-8", errors="replace")
    raise ConfigError(f"expected strop to serve within {READY_TIMEOUT_S:g} s; its log:\n{log}")


def _show(client: httpx.Client, home: Path, model: str) -> None:
    _head("Chat: any OpenAI client, only the base URL changed")
    asked = [_ask(client, model, [{"role": "user", "content": q}]) for q in _QUESTIONS]
    for question, (answer, completion_id) in zip(_QUESTIONS, asked, strict=True):
        print(
            f"  you         {question}\n  {model:10}  {_line(answer)}\n  {'':10}  {completion_id}"
        )

    _head("Snapshot: what a trainer needs later, taken as the answer passed")
    admin = {"Authorization": f"Bearer {(home / ADMIN_KEY_FILE).read_text().strip()}"}
    record = client.get(f"/admin/completions/{asked[0][1]}", headers=admin).json()
    snapshot = record["snapshot"]
    choice = snapshot["choices"][0]
    logprobs = [round(value, 2) for value in choice["logprobs"]]
    print(f"  prompt ids   {_few(snapshot['prompt_ids'])}")
    print(f"  sampled ids  {_few(choice['token_ids'])}")
    print(f"  logprobs     {_few(logprobs)}")

    _head("Rating: over the API, in a header, or typed into the chat")
    body = {"completion_id": asked[0][1], "rating": "good"}
    print("  POST /v1/feedback   ", _said(client.post("/v1/feedback", json=body).json()))
    conversation = _conversation(_QUESTIONS[1], asked[1][0])
    headers = {"X-Strop-Feedback": 'bad; comment="too rude"'}
    carrier = _post(
        client, model, [*conversation, {"role": "user", "content": _QUESTIONS[2]}], headers
    )
    print("  X-Strop-Feedback    ", carrier.headers["X-Strop-Feedback-Status"])
    conversation = _conversation(_QUESTIONS[2], asked[2][0])
    typed, _ = _ask(client, model, [*conversation, {"role": "user", "content": "/rl good short"}])
    print("  /rl good short      ", typed)

    _head("Kept: each answer once, each rating on the answer it was meant for")
    for rating in client.get("/v1/feedback").json()["data"]:
        why = f"  {rating['comment']}" if rating["comment"] else ""
        print(f"  {rating['completion_id']}  {rating['rating']:+g}  by {rating['source']}{why}")


def _ask(client: httpx.Client, model: str, messages: list[dict[str, str]]) -> tuple[str, str]:
    answer = _post(client, model, messages, {})
    text = answer.json()["choices"][0]["message"]["content"]
    return text, answer.headers.get("X-Strop-Completion-Id", "")


def _post(
    client: httpx.Client, model: str, messages: list[dict[str, str]], headers: dict[str, str]
) -> httpx.Response:
    body = {"model": model, "messages": messages, "max_tokens": 48}
    answer = client.post("/v1/chat/completions", json=body, headers=headers)
    answer.raise_for_status()
    return answer


def _conversation(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _said(feedback: dict[str, Any]) -> str:
    return f"{feedback['state']} {feedback['id']}; completion={feedback['completion_id']}"


def _head(text: str) -> None:
    print(f"\n{text}\n", flush=True)


def _line(text: str) -> str:
    return " ".join(text.split())


def _few(values: list[object]) -> str:
    shown = ", ".join(str(value) for value in values[:10])
    return f"{shown}{', ...' if len(values) > 10 else ''}  ({len(values)})"
