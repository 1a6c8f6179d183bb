"""Who says whether an answer is good when nobody rated it: a rule, or a model that judges.

Knows no version and no policy: conversations and answers in, ratings in [-1, 1] out.
"""

import importlib
import ipaddress
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import httpx

Messages = Sequence[Mapping[str, object]]

_AT_ONCE: Final = 4
_TIMEOUT_S: Final = 120.0
_VERDICT: Final = re.compile(r"\b(good|bad)\b", re.IGNORECASE)
_TASK: Final = """\
You judge one answer that an assistant gave at the end of a conversation. {criteria}
Reply with one word: good or bad."""
CRITERIA: Final = "A good answer is correct, does what was asked, and is pleasant to read."


class RaterFailed(Exception):
    """The rater can't be found, or gave no rating; the message says what to do."""


class Rater(Protocol):
    """Rates answers."""

    def rate(self, asked: Sequence[tuple[Messages, str]]) -> list[float]:
        """Return a rating in [-1, 1] for each conversation and answer; NaN where there is none.

        Raises:
            RaterFailed: it can't rate.
        """
        ...


@dataclass(frozen=True, slots=True)
class Rule:
    """A function of messages and answer: true, false, or a number in [-1, 1]."""

    function: Callable[[Messages, str], object]

    @classmethod
    def load(cls, name: str) -> "Rule":
        """Return the rule called `module:function`; modules in the working directory count.

        Raises:
            RaterFailed: there is none.
        """
        module, _, function = name.partition(":")
        if not module or not function:
            raise RaterFailed(f"expected a rule as module:function, got {name!r}")
        if str(Path.cwd()) not in sys.path:
            # Last: a module there may be called as one that training imports.
            sys.path.append(str(Path.cwd()))
        try:
            found = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise RaterFailed(f"the rule {name} can't be loaded: {error}") from error
        if not callable(found):
            raise RaterFailed(f"expected a function as the rule {name}, got {found!r:.80}")
        return cls(found)

    def rate(self, asked: Sequence[tuple[Messages, str]]) -> list[float]:
        """Return what the function says of each."""
        return [_in_range(self.function(messages, answer)) for messages, answer in asked]


@dataclass(frozen=True, slots=True)
class Judge:
    """A model behind an OpenAI-compatible URL, asked at T = 0 for one word.

    Attributes:
        url: of the server, with or without /v1.
        model: its name there.
        key: sent as a bearer token; empty for none.
        criteria: what makes an answer good.
    """

    url: str
    model: str
    key: str = ""
    criteria: str = CRITERIA

    def rate(self, asked: Sequence[tuple[Messages, str]]) -> list[float]:
        """Return 1, -1, or NaN where the reply has neither word."""
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        base = self.url.rstrip("/").removesuffix("/v1")
        with (
            # To this machine itself no proxy leads that the system or the environment names.
            httpx.Client(
                base_url=base,
                headers=headers,
                timeout=_TIMEOUT_S,
                trust_env=not _is_here(httpx.URL(base).host),
            ) as client,
            ThreadPoolExecutor(_AT_ONCE) as pool,
        ):
            return [*pool.map(lambda one: self._ask(client, *one), asked)]

    def _ask(self, client: httpx.Client, messages: Messages, answer: str) -> float:
        body = {
            "model": self.model,
            "temperature": 0,
            "messages": [
                {"role": "system", "content": _TASK.format(criteria=self.criteria)},
                {"role": "user", "content": _transcript(messages, answer)},
            ],
        }
        try:
            response = client.post("/v1/chat/completions", json=body)
            response.raise_for_status()
            text = response.json()["choices"][0]["message"]["content"]
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise RaterFailed(f"the judge at {self.url} gave no answer: {error!r}") from error
        # One that thinks aloud comes to its verdict last.
        words = _VERDICT.findall(text or "")
        return {"good": 1.0, "bad": -1.0}[words[-1].lower()] if words else math.nan


def _is_here(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    # Who connects to 0.0.0.0 gets this machine.
    return address.is_loopback or address.is_unspecified


def _transcript(messages: Messages, answer: str) -> str:
    parts = [f"<{one.get('role')}>\n{_text(one.get('content'))}" for one in messages]
    return "\n\n".join(["The conversation:", *parts, f"The answer to judge:\n{answer}"])


def _text(content: object) -> str:
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _in_range(value: object) -> float:
    if isinstance(value, bool):
        return 1.0 if value else -1.0
    if isinstance(value, int | float) and -1 <= value <= 1:
        return float(value)
    raise RaterFailed(f"expected the rule to return a bool or a number in [-1, 1], got {value!r}")
