"""A prefix cache is shared by requests of one version with the same salt, and by no others."""

from pathlib import Path
from typing import Any

import engine_process
import pytest

pytestmark = pytest.mark.engine

PROMPT = [*range(300, 500)]


def num_cached(folder: Path, **fields: Any) -> int:
    """Return how much of the prompt came from the cache."""
    body = engine_process.shared(folder).complete(PROMPT, max_tokens=2, **fields)
    return int(body["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_a_salted_request_finds_only_what_its_salt_left(qwen3: Path) -> None:
    """So a salt that nobody else has makes an answer without any cache."""
    num_cached(qwen3)

    assert num_cached(qwen3) > 0
    assert 0 == num_cached(qwen3, cache_salt="one")
    assert num_cached(qwen3, cache_salt="one") > 0
    assert 0 == num_cached(qwen3, cache_salt="another")


@pytest.mark.parametrize("salt", ["", 7])
def test_a_salt_is_a_string_that_is_not_empty(qwen3: Path, salt: object) -> None:
    """As in vLLM."""
    body = {"prompt": PROMPT, "cache_salt": salt}

    answer = engine_process.shared(qwen3).post("/v1/completions", body)

    assert (400, "cache_salt") == (answer.status_code, answer.json()["error"]["param"])
