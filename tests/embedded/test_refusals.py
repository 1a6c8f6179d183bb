"""What the embedded engine refuses, and how its versions are loaded and listed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_process
import httpx
import pytest
import scripted_models
from engine_process import EngineProcess
from waiting import LIMIT_S

from strop.proxy.embedded.options import Options

pytestmark = pytest.mark.engine

KEY = "key-of-this-start"


REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("chat", {"messages": None}, "messages"),
    ("chat", {"messages": []}, "messages"),
    ("chat", {"messages": "Hello"}, "messages"),
    ("chat", {"messages": [{"content": "no role"}]}, "messages"),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ("chat", {"temperature": -1}, "temperature"),
    ("chat", {"temperature": "hot"}, "temperature"),
    ("chat", {"temperature": True}, "temperature"),
    ("chat", {"top_p": 0}, "top_p"),
    ("chat", {"top_p": 1.1}, "top_p"),
    ("chat", {"top_k": -2}, "top_k"),
    ("chat", {"min_p": 2}, "min_p"),
    ("chat", {"n": 0}, "n"),
    ("chat", {"n": 65}, "n"),
    ("chat", {"seed": 1.5}, "seed"),
    ("chat", {"stop": [""]}, "stop"),
    ("chat", {"stop": [1]}, "stop"),
    ("chat", {"stop_token_ids": ["a"]}, "stop_token_ids"),
    ("chat", {"stop_token_ids": [99999]}, "stop_token_ids"),
    ("chat", {"logit_bias": {"a": 1}}, "logit_bias"),
    ("chat", {"logit_bias": {"99999": 1}}, "logit_bias"),
    ("chat", {"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
    ("chat", {"stop_token_ids": ""}, "stop_token_ids"),
    ("chat", {"stop_token_ids": [1 << 80]}, "stop_token_ids"),
    ("chat", {"reasoning_effort": 3}, "reasoning_effort"),
    ("chat", {"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ("chat", {"documents": [{"text": "a"}]}, "documents"),
    ("chat", {"presence_penalty": 3}, "presence_penalty"),
    ("chat", {"repetition_penalty": 0}, "repetition_penalty"),
    ("chat", {"max_tokens": 0}, "max_tokens"),
    ("chat", {"max_completion_tokens": 100_000}, "input_tokens"),
    ("chat", {"messages": [{"role": "user", "content": "long " * 9000}]}, "input_tokens"),
    ("chat", {"top_logprobs": 2}, "top_logprobs"),
    ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ("chat", {"stream": "yes"}, "stream"),
    ("chat", {"stream": True, "prompt_logprobs": 0}, "prompt_logprobs"),
    ("chat", {"tools": [{"type": "function"}]}, "tools"),
    ("chat", {"tool_choice": "required"}, "tool_choice"),
    ("chat", {"tools": scripted_models.TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
    (
        "chat",
        {
            "tools": scripted_models.TOOLS,
            "tool_choice": {"type": "function", "function": {"name": "x"}},
        },
        "tool_choice",
    ),
    ("chat", {"response_format": {"type": "xml"}}, "response_format"),
    ("chat", {"response_format": {"type": "json_schema"}}, "response_format"),
    (
        "chat",
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
        "response_format",
    ),
    ("chat", {"response_format": {"type": "json_object"}, "min_tokens": 3}, "min_tokens"),
    ("chat", {"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs"),
    ("chat", {"structured_outputs": {"regex": "("}}, "structured_outputs"),
    ("chat", {"structured_outputs": {"choice": []}}, "structured_outputs"),
    ("chat", {"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ("chat", {"lora_request": {}}, "lora_request"),
    ("chat", {"adapters": "/somewhere"}, "adapters"),
    ("chat", {"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs"),
    ("chat", {"chat_template": "{{ 1 }}"}, "chat_template"),
    ("chat", {"echo": True}, "echo"),
    ("completions", {"prompt": None}, "prompt"),
    ("completions", {"prompt": []}, "prompt"),
    ("completions", {"prompt": [[]]}, "prompt"),
    ("completions", {"prompt": [1, "a"]}, "prompt"),
    ("completions", {"prompt": [99999]}, "prompt"),
    ("completions", {"prompt": [-1]}, "prompt"),
    ("completions", {"prompt": ""}, "prompt"),
    ("completions", {"logprobs": 21}, "logprobs"),
    ("completions", {"echo": "yes"}, "echo"),
    ("completions", {"echo": True, "max_tokens": -1}, "max_tokens"),
    ("completions", {"echo": True, "logprobs": 21}, "logprobs"),
    ("completions", {"max_tokens": 0}, "max_tokens"),
    ("completions", {"suffix": "end"}, "suffix"),
)


@pytest.mark.parametrize(("dialect", "fields", "param"), REFUSED)
def test_what_it_cant_do_is_refused_by_name(
    engine: EngineProcess, dialect: str, fields: dict[str, Any], param: str
) -> None:
    """A wrong or unsupported field is a 400 that names it, never ignored and never a 500."""
    bodies: dict[str, dict[str, object]] = {
        "chat": {"messages": engine_process.HELLO},
        "completions": {"prompt": "Hello"},
    }
    path = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}[dialect]

    response = engine.post(path, {**bodies[dialect], "max_tokens": 2, **fields})

    assert 400 == response.status_code, response.text
    error = response.json()["error"]
    assert ("BadRequestError", param, 400) == (error["type"], error["param"], error["code"])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(engine: EngineProcess, body: bytes) -> None:
    """Whatever is sent, the answer is an error object."""
    response = httpx.post(f"{engine.url}/v1/chat/completions", content=body)

    assert 400 == response.status_code
    assert "BadRequestError" == response.json()["error"]["type"]


PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/tokenize",
    "/detokenize",
)


@pytest.mark.parametrize("path", PATHS)
def test_no_route_takes_a_body_without_end(engine: EngineProcess, path: str) -> None:
    """What is longer than any request is refused, and not kept in memory until it is whole."""

    def chunks() -> Iterator[bytes]:
        for _ in range(65):
            yield b" " * (1 << 20)

    answer = httpx.post(engine.url + path, content=chunks(), timeout=LIMIT_S)

    assert 400 == answer.status_code
    assert "at most" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", [b"", b"[]", b'{"a": \xff}', b"[" * 5000])
def test_no_route_fails_on_a_wrong_body(engine: EngineProcess, path: str, body: bytes) -> None:
    """Whatever is sent where, the answer is an error object."""
    answer = httpx.post(engine.url + path, content=body)

    assert (400, "BadRequestError") == (answer.status_code, answer.json()["error"]["type"])


@pytest.mark.parametrize("tokens", [None, "a", [[1]], [-1], [99999], [1 << 40], [1.5], [True]])
def test_only_ids_of_the_model_are_detokenized(engine: EngineProcess, tokens: object) -> None:
    """Anything else is refused by name."""
    answer = engine.post("/detokenize", {"tokens": tokens})

    assert (400, "tokens") == (answer.status_code, answer.json()["error"]["param"])


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/load_lora_adapter", "/v1/models"])
def test_a_web_page_is_refused(engine: EngineProcess, path: str) -> None:
    """Its browser says where it comes from, and this engine has no key that it would lack."""
    answer = httpx.post(engine.url + path, headers={"origin": "http://evil.example"}, content=b"{}")

    assert (403, "ForbiddenError") == (answer.status_code, answer.json()["error"]["type"])


@pytest.fixture(scope="module")
def locked(qwen3: Path) -> Iterator[EngineProcess]:
    """An engine that asks for a key."""
    running = EngineProcess(Options(model=str(qwen3), served_name="base", key=KEY))
    running.wait_until_ready()
    yield running
    assert 0 == running.end()
    assert "needs no key" not in running.log


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/health"),
        ("GET", "/version"),
        ("GET", "/no-such-path"),
    ],
)
def test_nothing_is_answered_without_the_key(locked: EngineProcess, method: str, path: str) -> None:
    """Whoever is on the machine can reach the port; whether a path exists isn't said either."""
    wrong: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Basic {KEY}"},
        {"x-api-key": KEY},
    ]
    answers = [httpx.request(method, locked.url + path, headers=one) for one in wrong]

    assert {401} == {one.status_code for one in answers}
    assert {"AuthenticationError"} == {one.json()["error"]["type"] for one in answers}
    assert "`Authorization: Bearer KEY`, got none; ask strop" in answers[0].text
    assert not any(KEY in one.text for one in answers)


def test_its_numbers_ask_for_no_key(locked: EngineProcess) -> None:
    """As strop's own: nobody knows the key of the engine that strop starts. No page reads them."""
    numbers = httpx.get(f"{locked.url}/metrics")
    page = httpx.get(f"{locked.url}/metrics", headers={"origin": "http://a.example"})

    assert (200, 403) == (numbers.status_code, page.status_code)
    assert "kv_cache" in numbers.text


def test_with_the_key_all_is_as_without_one(locked: EngineProcess, peft_a: Path) -> None:
    """Answers, streams, and the loading of versions."""
    answer = locked.complete("Hello", max_tokens=3, ignore_eos=True)

    assert 3 == answer["usage"]["completion_tokens"]
    assert locked.stream("/v1/completions", {"prompt": "Hello", "max_tokens": 3})
    with locked.version("a", peft_a):
        assert locked.chat(model="a", max_tokens=1)["choices"]


def test_unknown_fields_and_nulls_are_ignored(engine: EngineProcess) -> None:
    """What stock clients send beside the known fields does no harm."""
    answer = engine.chat(
        max_tokens=2,
        ignore_eos=True,
        user="me",
        metadata={"a": 1},
        store=False,
        stop=None,
        tools=None,
        seed=None,
    )

    assert 2 == answer["usage"]["completion_tokens"]


def test_unknown_names_and_paths_are_errors(engine: EngineProcess) -> None:
    """An unknown model or path is a 404 error object, a wrong method a 405."""
    unknown = engine.post(
        "/v1/chat/completions", {"model": "nope", "messages": engine_process.HELLO}
    )
    path = httpx.get(f"{engine.url}/v1/nope")
    method = httpx.get(f"{engine.url}/v1/completions")

    assert [404, 404, 405] == [r.status_code for r in (unknown, path, method)]
    assert "The model `nope` does not exist." == unknown.json()["error"]["message"]
    assert [404, 404, 405] == [r.json()["error"]["code"] for r in (unknown, path, method)]
    assert "POST" == method.headers["allow"]


def test_versions_are_listed_under_their_base(engine: EngineProcess, peft_a: Path) -> None:
    """/v1/models has the base with its context limit, and each version with its parent."""
    with engine.version("listed", peft_a):
        base, version = httpx.get(f"{engine.url}/v1/models").json()["data"]

    assert ("base", None, 4096) == (base["id"], base["parent"], base["max_model_len"])
    assert ("listed", "base", str(peft_a)) == (version["id"], version["parent"], version["root"])
    assert 1 == len(httpx.get(f"{engine.url}/v1/models").json()["data"])


def test_loading_and_unloading_fail_as_in_vllm(
    engine: EngineProcess, peft_a: Path, tmp_path: Path
) -> None:
    """Each failure has its status and says why, and leaves the engine and its versions serving."""
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_bytes((peft_a / "adapter_config.json").read_bytes())
    weights = (peft_a / "adapter_model.safetensors").read_bytes()
    (broken / "adapter_model.safetensors").write_bytes(weights[:-8])

    def load(**body: Any) -> tuple[int, str, str]:
        response = engine.post("/v1/load_lora_adapter", body)
        error = response.json()["error"]
        return response.status_code, error["type"], error["message"]

    with engine.version("taken", peft_a):
        cases = [
            load(lora_name="taken", lora_path=str(peft_a)),
            load(lora_name="base", lora_path=str(peft_a)),
            load(lora_name="", lora_path=str(peft_a)),
            load(lora_name="x"),
            load(lora_name="x", lora_path=str(tmp_path / "nowhere")),
            load(lora_name="x", lora_path=str(tmp_path / "empty")),
            load(lora_name="x", lora_path=str(broken)),
            load(lora_name="x", lora_path=str(peft_a), load_inplace=True),
        ]
        assert (
            2
            == engine.chat(model="taken", max_tokens=2, ignore_eos=True)["usage"][
                "completion_tokens"
            ]
        )
    unknown = engine.post("/v1/unload_lora_adapter", {"lora_name": "x"})
    base = engine.post("/v1/unload_lora_adapter", {"lora_name": "base"})

    assert [400, 400, 400, 400, 404, 404, 500, 400] == [status for status, _, _ in cases]
    texts = [
        "already been loaded", "conflicts", "must be provided", "lora_path", "No adapter found",
        "No adapter found", "truncated", "load_inplace",
    ]  # fmt: skip
    for text, (_, _, message) in zip(texts, cases, strict=True):
        assert text in message
    assert [404, 404] == [unknown.status_code, base.status_code]
    assert "NotFoundError" == unknown.json()["error"]["type"]


def test_tokenize_renders_as_a_chat_does(engine: EngineProcess, tokenizer: Any) -> None:
    """The ids of /tokenize are those that a chat's answer names."""
    chat = engine.chat(max_tokens=1, return_token_ids=True)

    counted = engine.post("/tokenize", {"messages": engine_process.HELLO}).json()
    plain = engine.post("/tokenize", {"prompt": "Hello", "return_token_strs": True}).json()
    back = engine.post("/detokenize", {"tokens": plain["tokens"]}).json()

    assert chat["prompt_token_ids"] == counted["tokens"]
    assert (len(counted["tokens"]), 4096) == (counted["count"], counted["max_model_len"])
    assert tokenizer.encode("Hello") == plain["tokens"]
    assert tokenizer.convert_ids_to_tokens(plain["tokens"]) == plain["token_strs"]
    assert {"prompt": "Hello"} == back
