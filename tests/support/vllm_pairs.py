"""Pairs of answers of a real vLLM: to what strop's driver asks, and to what the client asked.

Knows which requests are worth a pair, and how to record them. Those of vLLM 0.32.0 are in `FILE`;
`make test-vllm` compares fresh ones, and writes them there with RECORD=1 in its environment.
"""

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from scripted_models import TOOLS

from strop.proxy.engines.base import Ask, Dialect
from strop.proxy.engines.vllm import Vllm
from strop.proxy.wire import sse

FILE = Path(__file__).parent / "recorded" / "vllm-0.32.0.json"

_TRIES = 10

_HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
_CHINESE = {"messages": [{"role": "user", "content": "你好，世界"}]}
_SHORT = {"temperature": 0, "max_tokens": 6}
_TWO = {"n": 2, "temperature": 1, "seed": 3}

PLAIN: list[dict[str, Any]] = [
    {**_HELLO, **_SHORT},
    {**_HELLO, **_SHORT, **_TWO},
    {**_HELLO, **_SHORT, "logprobs": True, "top_logprobs": 2},
    {**_HELLO, **_SHORT, "logprobs": False, "return_token_ids": True},
    {**_HELLO, **_SHORT, "logit_bias": {"2": 100}},
    {**_CHINESE, **_SHORT, "max_tokens": 24},
    {"prompt": "Hello", **_SHORT},
    {"prompt": ["Hello", "Bye"], **_SHORT, **_TWO},
    {"prompt": "Hello", **_SHORT, "logprobs": 2},
    {"prompt": "Hello", **_SHORT, "echo": True},
]
"""For a model that says whatever it says, with no parser on."""

PARSED: list[dict[str, Any]] = [
    {**_HELLO, "temperature": 0},
    {**_HELLO, "temperature": 0, "include_reasoning": False},
    {**_HELLO, "temperature": 0, "include_reasoning": False, "return_token_ids": True},
    {**_HELLO, "temperature": 0, "tools": TOOLS},
    {**_HELLO, "temperature": 0, "tools": TOOLS, "include_reasoning": False},
    {**_HELLO, "temperature": 0, "tools": TOOLS, "logprobs": True},
    {**_HELLO, "temperature": 0, "tools": TOOLS, "return_token_ids": True},
    {**_HELLO, "temperature": 0, "tools": TOOLS, "tool_choice": "required"},
]
"""For the scripted model, with parsers of tool calls and reasoning on."""


@dataclass(frozen=True)
class Pair:
    """What a client asks, and the answers to the driver's request and to its own."""

    fields: dict[str, Any]
    hides_ids: bool
    asked: str
    plain: str

    @property
    def name(self) -> str:
        """What tells it from the others."""
        rest = {k: v for k, v in self.fields.items() if k not in ("messages", "prompt", "tools")}
        kind = "text" if "prompt" in self.fields else "tools" if "tools" in self.fields else "chat"
        return ",".join([kind, *(f"{k}={v}" for k, v in rest.items() if k != "temperature")])


def plan(driver: Vllm, fields: dict[str, Any]) -> Any:
    """Return what the driver would send."""
    dialect: Dialect = "completions" if "prompt" in fields else "chat"
    return driver.plan(Ask(dialect, json.dumps(fields).encode(), fields, served=fields["model"]))


def restored(driver: Vllm, pair: Pair) -> str:
    """Return what a client gets of the answer to the driver's request."""
    restore = plan(driver, pair.fields).restore
    data = pair.asked.encode()
    return (restore.apply(data) if restore is not None else data).decode()


def in_order(answer: str) -> list[str]:
    """Return an answer's events, those of one choice together: vLLM mixes choices as they come."""
    events = [event.decode() for event in sse.events(answer.encode())]
    return sorted(events, key=lambda event: re.findall(r'"index":\d+,"(?:delta|text)', event))


def differs(driver: Vllm, pair: Pair) -> bool:
    """Return whether a client gets something else than the engine's answer to its own words."""
    return in_order(pair.plain) != in_order(restored(driver, pair))


async def record(driver: Vllm, engine: httpx.AsyncClient, model: str) -> list[Pair]:
    """Ask an engine everything twice, in JSON and as streams.

    A server that is busy joins what it has of a stream, in the one or in the other: what differs is
    asked again, and only what does so each time is a difference.
    """
    pairs = []
    for request in PARSED if driver.hides_ids else PLAIN:
        for stream in ({}, {"stream": True, "stream_options": {"include_usage": True}}):
            fields = {"model": model, **request, **stream}
            path = "/v1/completions" if "prompt" in fields else "/v1/chat/completions"
            own = json.dumps(fields).encode()
            # Both then find the same in the prefix cache.
            await _post(engine, path, own)
            for _ in range(_TRIES if stream else 1):
                asked = await _post(engine, path, plan(driver, fields).body)
                pair = Pair(fields, driver.hides_ids, asked, await _post(engine, path, own))
                if not differs(driver, pair):
                    break
            pairs.append(pair)
    return pairs


async def _post(engine: httpx.AsyncClient, path: str, content: bytes) -> str:
    answer = await engine.post(path, content=content, headers={"content-type": "application/json"})
    assert 200 == answer.status_code, answer.text
    return masked(answer.text)


def masked(answer: str) -> str:
    """Return an answer without what differs between any two: ids and its time."""
    answer = re.sub(r'"created":\d+', '"created":0', answer)
    answer = re.sub(r'"(chatcmpl-tool|chatcmpl|cmpl)-(?:[0-9a-f]{16}){1,2}', r'"\1-0', answer)
    return re.sub(r'"system_fingerprint":"[^"]+"', '"system_fingerprint":"vllm"', answer)


def load() -> list[Pair]:
    """Return the recorded pairs."""
    return [Pair(**one) for one in json.loads(FILE.read_text(encoding="utf-8"))]


def keep(pairs: list[Pair]) -> None:
    """Put pairs of one server in the place of those recorded, where that is asked for."""
    if not os.environ.get("RECORD"):
        return
    others = [pair for pair in load() if pair.hides_ids != pairs[0].hides_ids]
    kept = sorted([*others, *pairs], key=lambda pair: pair.hides_ids)
    lines = ",\n".join(json.dumps(asdict(pair), ensure_ascii=False) for pair in kept)
    FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
