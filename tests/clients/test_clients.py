"""Stock clients work through strop as without it, and are understood without their help.

Each talks twice, with a tool, and types a rating in between. Nothing but the base URL and the key
is strop's. Installs what it needs; `make test-clients`.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import talking_model
from client_environments import (
    AGENTS,
    ANTHROPIC,
    CODING_AGENTS,
    INSTRUCTOR,
    OPENAI_RESPONSES,
    Client,
)
from fake_engine import FakeEngine, Handler
from proxy_process import ProxyProcess, serving
from scripted_models import ANSWER, REPORT
from scripted_vllm import CALLS, ScriptedVllm

from strop.proxy.inline import MARK

# The first use of an environment makes it.
pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

QUESTION = "What is the weather in Paris?"
RATING = "/rl good short and right"
NEXT = "And what about tomorrow?"

TALKS = [(client, mode) for client in AGENTS for mode in ("json", "stream")]
TALKS.append((INSTRUCTOR, "json"))
LARGE_TALKS = [(client, "stream") for client in CODING_AGENTS]


def key_of(client: Client, mode: str) -> str:
    """Return a key of its own: with one for all, what they say would be one conversation."""
    return f"key-of-{client.script}-{mode}"


ACCESS = ("--set", "server.client_keys=" + ",".join(key_of(*talk) for talk in TALKS + LARGE_TALKS))


Row = dict[str, Any]
Prompts = Callable[[list[Row]], list[str]]


@dataclass(frozen=True)
class Talk:
    """One client's conversation, from all sides.

    Attributes:
        answers: what the client saw, in its own words: text, calls, and usage where it tells it.
        rows: what strop recorded.
        prompts: what the engine was given for each row, as text.
    """

    client: Client
    is_stream: bool
    answers: list[dict[str, Any]]
    rows: list[Row]
    prompts: list[str]

    @property
    def modelled(self) -> list[dict[str, Any]]:
        """The answers that were the model's."""
        return [one for one in self.answers if not one["text"].startswith(MARK)]


@contextlib.contextmanager
def in_thread(handler: Handler) -> Iterator[FakeEngine]:
    """Run a fake engine in a loop of its own."""
    engine, is_over = FakeEngine(handler), asyncio.Event()
    has_started: Future[asyncio.AbstractEventLoop] = Future()

    async def run() -> None:
        async with engine:
            has_started.set_result(asyncio.get_running_loop())
            await is_over.wait()

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(asyncio.run, run())
        loop = has_started.result()
        try:
            yield engine
        finally:
            loop.call_soon_threadsafe(is_over.set)
            running.result()


@pytest.fixture(scope="module")
def before_model(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[ProxyProcess, Prompts]]:
    """A proxy that runs the embedded engine, and what reads the engine's prompts."""
    from tokenizers import Tokenizer

    model = talking_model.talking()
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    def prompts(rows: list[Row]) -> list[str]:
        return [tokenizer.decode(row["snapshot"]["prompt_ids"]) for row in rows]

    home = tmp_path_factory.mktemp("embedded") / "home"
    with serving(home, "--model", str(model), "--model-name", "tiny", *ACCESS) as proxy:
        yield proxy, prompts


@pytest.fixture(scope="module")
def before_fake(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[ProxyProcess, Prompts]]:
    """A proxy before a fake vLLM that plays the same part, and what reads its prompts."""
    home = tmp_path_factory.mktemp("fake") / "home"
    with in_thread(ScriptedVllm()) as engine:

        def prompts(rows: list[Row]) -> list[str]:
            sent = [one.json() for one in engine.requests if one.path == "/v1/chat/completions"]
            return [json.dumps(one["messages"]) for one in sent[-len(rows) :]]

        with serving(home, "--engine", "vllm", "--engine-url", engine.url, *ACCESS) as proxy:
            yield proxy, prompts


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let each client talk once for all tests that want to know."""
    if "talk" not in metafunc.fixturenames:
        return
    has_all = metafunc.config.getoption("--clients-all")
    talks = TALKS + LARGE_TALKS if has_all else TALKS
    names = [f"{client.script}-{mode}" for client, mode in talks]
    metafunc.parametrize("talk", talks, ids=names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def talk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Talk:
    """What one client said and heard."""
    client, mode = request.param
    client.install()
    proxy, prompts = request.getfixturevalue("before_model" if client in AGENTS else "before_fake")
    place = tmp_path_factory.mktemp(client.script)
    key = key_of(client, mode)
    newest = proxy.newest()

    said = client.run(
        *(QUESTION, RATING, NEXT, mode),
        env={"HOME": str(place), "OPENAI_BASE_URL": proxy.base_url, "OPENAI_API_KEY": key},
        cwd=place,
    )

    rows = proxy.completions_since(newest)
    told = zip(rows, prompts(rows), strict=True)
    talked = [one for one in told if not client.has_side_requests or one[0]["request"].get("tools")]
    return Talk(
        client,
        is_stream=mode == "stream",
        answers=json.loads(said.splitlines()[-1])["answers"],
        rows=[row for row, _ in talked],
        prompts=[prompt for _, prompt in talked],
    )


def test_the_client_gets_what_the_model_says(talk: Talk) -> None:
    """A tool call with its arguments, then a report on its result."""
    called, reported = talk.answers[:2]

    assert [[talk.client.tool, CALLS[talk.client.tool]]] == called["calls"]
    assert (REPORT, []) == (reported["text"], reported["calls"])


def test_what_the_client_saw_is_what_was_recorded(talk: Talk) -> None:
    """One row for each answer of the model, with its text, calls and usage; none for a rating."""
    recorded = []
    for seen, row in zip(talk.modelled, talk.rows, strict=True):
        message = row["choices"][0]["message"]
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        recorded.append(
            {
                "text": message.get("content") or "",
                "calls": [[call["name"], json.loads(call["arguments"])] for call in calls],
                "usage": seen["usage"] and [row["prompt_tokens"], row["completion_tokens"]],
            }
        )

    assert talk.modelled == recorded
    assert {("complete", True, talk.is_stream)} == {
        (row["state"], row["delivered"], row["stream"]) for row in talk.rows
    }


def test_every_answer_has_its_snapshot(talk: Talk) -> None:
    """The prompt's ids, the sampled ids, and a logprob for each."""
    for row in talk.rows:
        (choice,) = row["snapshot"]["choices"]

        assert row["prompt_tokens"] == len(row["snapshot"]["prompt_ids"])
        assert row["completion_tokens"] == len(choice["token_ids"]) == len(choice["logprobs"])


def test_each_request_follows_the_answer_before_it(talk: Talk) -> None:
    """Whatever the client made of the messages, and over the rating: one chain, one session."""
    ids = [row["id"] for row in talk.rows]

    assert [None, *ids[:-1]] == [row["parent"] for row in talk.rows]
    assert [None] + ["chain"] * (len(ids) - 1) == [row["parent_by"] for row in talk.rows]
    assert 1 == len({row["session"] for row in talk.rows})


def test_a_tool_loop_is_one_turn(talk: Talk) -> None:
    """A user's message begins a turn; the tool's result does not."""
    first, second = talk.rows[0]["id"], talk.rows[2]["id"]

    assert [first] * 2 + [second] * (len(talk.rows) - 2) == [row["turn"] for row in talk.rows]


def test_a_rating_typed_into_the_client_lands_on_the_answer_above(talk: Talk) -> None:
    """It is answered in the model's place, in the way that was asked for, and rates the turn."""
    (said,) = (one for one in talk.answers if one["text"].startswith(MARK))
    reported = talk.rows[1]

    assert talk.answers.index(said) == 2
    assert said["text"].startswith(
        f'{MARK}Rated the answer above good, because "short and right" ({reported["id"]}): "'
    )
    assert [(reported["id"], 1.0, "short and right", "turn", "inline", "standing")] == [
        tuple(one[k] for k in ("completion_id", "rating", "comment", "scope", "source", "state"))
        for row in talk.rows
        for one in row["feedback"]
    ]


def test_the_model_never_sees_a_rating(talk: Talk) -> None:
    """What follows it holds the conversation, without the rating and its answer."""
    after = talk.prompts[2]

    assert QUESTION in after
    assert REPORT in after
    assert NEXT in after
    assert "/rl" not in after
    assert MARK not in after


def once(client: Client, mode: str, proxy: ProxyProcess, place: Path) -> tuple[Any, list[Row]]:
    """Return what a client said in a mode of its own, and what strop recorded of it."""
    client.install()
    key = key_of(client, "json")
    newest = proxy.newest()
    said = client.run(
        *(QUESTION, RATING, NEXT, mode),
        env={"HOME": str(place), "OPENAI_BASE_URL": proxy.base_url, "OPENAI_API_KEY": key},
        cwd=place,
    )
    return json.loads(said), proxy.completions_since(newest)


def test_an_answer_in_a_given_form_is_parsed(
    before_fake: tuple[ProxyProcess, Prompts], tmp_path: Path
) -> None:
    """The schema reaches the engine, and its answer the client's own class."""
    said, (row,) = once(OPENAI_RESPONSES, "parse", before_fake[0], tmp_path)

    assert {"said": ANSWER} == said
    assert "json_schema" == row["request"]["response_format"]["type"]


def test_the_runner_of_an_sdk_runs_the_tools(
    before_fake: tuple[ProxyProcess, Prompts], tmp_path: Path
) -> None:
    """It asks for a conversation kept by the vendor first, and sends the whole one where told."""
    said, (called, reported) = once(ANTHROPIC, "runner", before_fake[0], tmp_path)

    assert ["tool_use", "end_turn"] == said
    assert (called["id"], "chain") == (reported["parent"], reported["parent_by"])
