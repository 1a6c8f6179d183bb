"""What most of these tests ask: the shared engine on the small Qwen3, and its tokenizer."""

from pathlib import Path
from typing import Any

import engine_process
import pytest
from engine_process import EngineProcess


@pytest.fixture(scope="module")
def engine(qwen3: Path) -> EngineProcess:
    """The shared engine; its model writes at random."""
    return engine_process.shared(qwen3)


@pytest.fixture(scope="module")
def tokenizer(qwen3: Path) -> Any:
    """Its tokenizer in transformers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(qwen3)
