"""What matches `capture.redact` is in no record, and neither are the ids that would spell it."""

import json
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from fake_vllm import FakeVllm
from running import running, settings_for

from strop.proxy.errors import ConfigError
from strop.proxy.redaction import MARK, Redaction

KEYS = Redaction.of([r"sk-\w+", r"\b\d{3}-\d{4}\b"])


def test_matches_in_any_string_are_replaced() -> None:
    """However deep; keys and other values stay."""
    text = json.dumps({"sk-key": ["call 555-1234", {"a": "sk-abc and sk-def"}, 5, None]}).encode()

    expected = {"sk-key": [f"call {MARK}", {"a": f"{MARK} and {MARK}"}, 5, None]}
    assert expected == json.loads(KEYS.json(text))


def test_what_matches_nothing_stays_byte_for_byte() -> None:
    """Spacing and escapes included."""
    text = b'{ "a" : "\\u00e9", "n": 1.0 }'

    assert text == KEYS.json(text)
    assert text == Redaction().json(text)


def test_a_pattern_that_is_none_is_a_config_error() -> None:
    """The error quotes it."""
    with pytest.raises(ConfigError, match=r"capture\.redact.*'\(x'"):
        Redaction.of(["(x"])


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_redacted_text_is_recorded_without_its_ids(stream: bool, tmp_path: Path) -> None:
    """The client gets the answer whole; the prompt's and the choice's ids go each with its text."""
    async with FakeEngine(FakeVllm()) as engine:
        records = {}
        for name, patterns in (("none", ()), ("prompt", ("sk-.*",)), ("all", (r"\w+",))):
            settings = settings_for(engine.url, capture={"redact": patterns})
            async with running(settings, tmp_path / name) as proxy:
                answer = await proxy.chat("my key is sk-1", stream=stream)
                records[name] = (answer, (await proxy.row()).completion)

    request = {name: record.request for name, (_, record) in records.items()}
    choice = {name: record.choices[0] for name, (_, record) in records.items()}
    assert b"sk-1" in request["none"]
    assert b"sk-1" not in request["prompt"] + request["all"]
    assert [True, False, False] == [r.prompt_ids is not None for _, r in records.values()]
    assert [True, True, False] == [c.token_ids is not None for c in choice.values()]
    assert [True, True, False] == [c.logprobs is not None for c in choice.values()]
    assert MARK in json.loads(choice["all"].message)["content"]
    assert choice["none"].message == choice["prompt"].message
    assert all(MARK.encode() not in answer.content for answer, _ in records.values())
