"""A model shaped as gpt-oss in the embedded engine: experts, sliding windows, and harmony.

Its weights are random, so what it says has a form only where one is asked for.
"""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import engine_process
import harmony_models
import models
import pytest
import scripted_models
from engine_process import EngineProcess

from strop.proxy.embedded.options import Options

pytestmark = pytest.mark.engine

TOOLS = scripted_models.TOOLS
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "is_far": {"type": "boolean"}},
    "required": ["city", "is_far"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
LONG = "How far is it to Köln? " * 12
RANK = 4
SCALE = 2.0


@pytest.fixture(scope="module")
def base() -> Path:
    """The model's folder."""
    return harmony_models.gpt_oss()


@pytest.fixture(scope="module")
def engine(base: Path) -> Iterator[EngineProcess]:
    """An engine that serves it."""
    running = EngineProcess(Options(model=str(base), served_name="base"))
    running.wait_until_ready()
    yield running
    running.end()


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    """Its tokenizer in transformers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def brief(tokenizer: Any) -> dict[str, Any]:
    """Return what makes a random model draw as it likes, and come to an end."""
    biases = {"<|end|>": 18.0, '"': 24.0, "}": 24.0}
    ids = {str(tokenizer.encode(text)[0]): bias for text, bias in biases.items()}
    return {"logit_bias": ids, "temperature": 4, "max_tokens": 600}


def test_an_answer_has_its_form_behind_thoughts(engine: EngineProcess, tokenizer: Any) -> None:
    """In JSON and in a stream; ids and logprobs are those of all tokens, marks and thoughts too."""
    ask = {
        "messages": engine_process.HELLO,
        "response_format": FORMAT,
        "seed": 3,
        "n": 8,
        **brief(tokenizer),
        **engine_process.SNAPSHOT,
    }

    answer = engine_process.expect_ok(engine.post("/v1/chat/completions", ask)).json()
    events = engine.stream("/v1/chat/completions", ask)

    assert any(choice["message"]["reasoning"] for choice in answer["choices"])
    for choice in answer["choices"]:
        message, logprobs = choice["message"], choice["logprobs"]["content"]
        assert {"city", "is_far"} == json.loads(message["content"]).keys()
        assert "stop" == choice["finish_reason"]
        text = tokenizer.decode(choice["token_ids"])
        end = tokenizer.decode(choice["token_ids"][-1:])
        assert end in ("<|return|>", "<|call|>", models.END_OF_TEXT)
        thoughts = re.findall(r"analysis<\|message\|>(.+?)<\|end\|>", text, re.DOTALL)
        assert "\n".join(thoughts) == (message["reasoning"] or "")
        assert f"<|message|>{message['content']}" == text[text.rindex("<|message|>") : -len(end)]
        assert text == "".join(each["token"] for each in logprobs)
        assert len(choice["token_ids"]) == len(logprobs)
        chunks = [c for event in events for c in event["choices"] if c["index"] == choice["index"]]
        streamed = [token for chunk in chunks for token in chunk.get("token_ids") or ()]
        assert choice["token_ids"] == streamed
        for field in ("content", "reasoning"):
            parts = [chunk["delta"].get(field) or "" for chunk in chunks]
            assert (message[field] or "") == "".join(parts)


def test_a_required_call_is_made_and_its_result_is_answered(
    engine: EngineProcess, tokenizer: Any
) -> None:
    """The call comes as one, and goes back through the template with its result."""
    body: dict[str, Any] = {
        "messages": engine_process.HELLO,
        "tools": TOOLS,
        "tool_choice": "required",
        "seed": 1,
        **brief(tokenizer),
    }

    (choice,) = engine_process.expect_ok(engine.post("/v1/chat/completions", body)).json()[
        "choices"
    ]
    events = engine.stream("/v1/chat/completions", body)

    (call,) = choice["message"]["tool_calls"]
    deltas = [c["delta"] for event in events for c in event["choices"]]
    (streamed,) = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert "get_weather" == call["function"]["name"]
    assert isinstance(json.loads(call["function"]["arguments"]), dict)
    assert call["function"] == streamed["function"]
    assert ("tool_calls", None) == (choice["finish_reason"], choice["message"]["content"])
    history = [
        *engine_process.HELLO,
        choice["message"],
        {"role": "tool", "tool_call_id": call["id"], "content": "21"},
    ]
    ask = {**body, "messages": history, "tool_choice": "auto", "return_token_ids": True}
    told = engine_process.expect_ok(engine.post("/v1/chat/completions", ask)).json()
    prompt = tokenizer.decode(told["prompt_token_ids"])
    assert "<|start|>assistant to=functions.get_weather<|channel|>commentary" in prompt
    assert "<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>" in prompt


def test_what_ends_an_answer_is_read_from_the_files_and_from_the_format(
    base: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """Of a copy without `generation_config.json` too, calls end an answer."""
    from strop.proxy.embedded.loading import load

    bare = Path(shutil.copytree(base, tmp_path / "bare"))
    (bare / "generation_config.json").unlink()

    whole, rest = (
        {tokenizer.decode([token]) for token in load(Options(str(folder))).tokenizer.eos_token_ids}
        for folder in (base, bare)
    )

    assert {"<|return|>", "<|call|>", models.END_OF_TEXT} == whole
    assert {"<|return|>", "<|call|>"} == rest


class Reference:
    """Scores answers by mlx-lm's model itself, the whole text at once and without a cache."""

    def __init__(self, base: Path) -> None:
        import mlx_lm

        self.model, _ = mlx_lm.load(str(base))[:2]

    def logprobs(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """Return the log-softmax at T = 1 of each id of `answer` after `prompt`."""
        import mlx.core as mx

        logits_TV = self.model(mx.array([[*prompt, *answer]]))[0].astype(mx.float32)
        logprobs_TV = logits_TV - mx.logsumexp(logits_TV, axis=-1, keepdims=True)
        start = len(prompt) - 1
        return [logprobs_TV[start + at, token].item() for at, token in enumerate(answer)]


def ask(engine: EngineProcess, model: str, prompt: Any, **fields: Any) -> dict[str, Any]:
    """Return the choice that a text completion gives, with its ids and logprobs."""
    snapshot = {"logprobs": 1, "return_token_ids": True, "ignore_eos": True, "max_tokens": 60}
    (choice,) = engine.complete(prompt, model=model, **{**snapshot, **fields})["choices"]
    return dict(choice)


def write_adapter(folder: Path, layer: str, num_in: int, num_out: int) -> Path:
    """Write a LoRA adapter of one layer in PEFT's format."""
    import numpy as np
    from safetensors.numpy import save_file

    chance = np.random.default_rng(5)
    name = f"base_model.model.{layer}"
    a = chance.normal(0, 0.3, (RANK, num_in)).astype(np.float32)
    b = chance.normal(0, 0.3, (num_out, RANK)).astype(np.float32)
    folder.mkdir()
    save_file(
        {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b},
        folder / "adapter_model.safetensors",
    )
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": int(RANK * SCALE),
        "target_modules": [layer.rpartition(".")[2]], "bias": "none",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_logprobs_are_the_models_own_past_every_window(
    engine: EngineProcess, base: Path, tmp_path: Path
) -> None:
    """Of prompts and answers longer than a window, from a prefix too, and of a version."""
    import mlx.core as mx
    import numpy as np
    from safetensors.numpy import load_file

    mx.disable_compile()
    reference = Reference(base)
    layer = "model.layers.1.self_attn.q_proj"
    adapter = write_adapter(tmp_path / "v1", layer, 64, 128)

    first = ask(engine, "base", LONG, seed=1)
    longer = [*first["prompt_token_ids"], *first["token_ids"], *first["prompt_token_ids"]]
    second = ask(engine, "base", longer, seed=2)
    with engine.version("base@v1", adapter):
        adapted = ask(engine, "base@v1", LONG, seed=1)

    def check(choice: dict[str, Any]) -> None:
        expected = reference.logprobs(choice["prompt_token_ids"], choice["token_ids"])
        assert 60 == len(expected)
        assert expected == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-3)

    assert harmony_models.WINDOW < len(first["prompt_token_ids"])
    check(first)
    check(second)
    before = reference.logprobs(adapted["prompt_token_ids"], adapted["token_ids"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    b, a = (tensors[f"base_model.model.{layer}.lora_{which}.weight"] for which in "BA")
    linear = reference.model.layers[1].self_attn.q_proj
    linear.weight = linear.weight + SCALE * mx.array(np.matmul(b, a))
    check(adapted)
    assert before != pytest.approx(adapted["logprobs"]["token_logprobs"], abs=0.1)


def test_an_adapter_of_experts_is_refused(engine: EngineProcess, tmp_path: Path) -> None:
    """Attention and the router are linear layers; experts are not, and nothing is left out."""
    adapter = write_adapter(tmp_path / "v2", "model.layers.1.mlp.experts.gate_proj", 64, 64)

    refused = engine.post(
        "/v1/load_lora_adapter", {"lora_name": "base@v2", "lora_path": str(adapter)}
    )

    assert 500 == refused.status_code
    assert "no linear layer model.layers.1.mlp.experts.gate_proj" in refused.text
