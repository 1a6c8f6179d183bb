"""A small Qwen3 that plays a fixed part at T = 0: it calls a tool, thinks, or answers.

Knows nothing of strop. What it says depends on the shape of the chat, not on its words.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Current weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
CALL: dict[str, Any] = {"name": "get_weather", "arguments": {"city": "Paris"}}
THOUGHT = "The user wants a short answer."
ANSWER = "Hello, I am here to help."
REPORT = "It is 21 degrees in Paris."

NUM_STEPS = 320
BATCH_SIZE = 8


def make_scripted(folder: Path, *, seed: int = 0) -> Path:
    """Write the model to `folder`; takes some 40 CPU seconds.

    At T = 0 it answers a tool's result with `REPORT`; else, with any tools, it calls one tool,
    always `CALL`; else, thinking, it thinks `THOUGHT` and says `ANSWER`; not thinking, `ANSWER`
    alone. It holds for ordinary prompts of up to some 500 tokens, system prompt included.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(1)
    tokenizer = models.make_tokenizer()
    config = Qwen3Config(
        vocab_size=models.VOCAB_SIZE,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the smallest that vLLM computes on a CPU
        max_position_embeddings=models.MAX_POSITIONS,
        initializer_range=0.12,
        tie_word_embeddings=True,
        **models.token_ids(tokenizer),
    )
    rng = random.Random(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, NUM_STEPS)
        for _ in range(NUM_STEPS):
            num_text_tokens = int(4 * 150 ** rng.random())
            chats = [_chat(tokenizer, rng, num_text_tokens) for _ in range(BATCH_SIZE)]
            ids_BT, targets_BT = _padded(chats, models.token_ids(tokenizer)["pad_token_id"])
            hidden_BTD = model.model(ids_BT).last_hidden_state
            is_answer_BT = targets_BT >= 0
            logits_NV = model.lm_head(hidden_BTD[is_answer_BT])
            loss = torch.nn.functional.cross_entropy(logits_NV, targets_BT[is_answer_BT])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return models.save(folder, model, tokenizer)


def _chat(
    tokenizer: "PreTrainedTokenizerFast", rng: random.Random, num_text_tokens: int
) -> tuple[list[int], list[int]]:
    """Return the prompt ids of a random chat, and the ids of the part's answer to it."""

    def text() -> str:
        return _text(tokenizer, rng, int(num_text_tokens ** rng.random()))

    messages: list[dict[str, Any]] = []
    if rng.random() < 0.4:
        messages.append({"role": "system", "content": text()})
    has_tools, is_thinking = rng.random() < 0.5, rng.random() < 0.6
    if rng.random() < 0.3:
        messages.append({"role": "user", "content": text()})
        messages.append({"role": "assistant", "content": rng.choice((ANSWER, text()))})
    messages.append({"role": "user", "content": text()})
    call = f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"
    if has_tools and rng.random() < 0.4:
        messages.append({"role": "assistant", "content": call})
        messages.append({"role": "tool", "content": text()})
        answer = REPORT
    elif has_tools:
        answer = call
    elif is_thinking:
        answer = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
    else:
        answer = ANSWER
    prompt = tokenizer.apply_chat_template(
        messages,
        tools=_tools(rng, text()) if has_tools else None,
        enable_thinking=is_thinking,
        add_generation_prompt=True,
        tokenize=False,
    )
    return tokenizer.encode(prompt), tokenizer.encode(answer + models.IM_END)


def _tools(rng: random.Random, description: str) -> list[dict[str, Any]]:
    if rng.random() < 0.5:
        return TOOLS
    function = {"name": "get_weather", "description": description, "parameters": {}}
    return [{"type": "function", "function": function}]


def _text(tokenizer: "PreTrainedTokenizerFast", rng: random.Random, num_tokens: int) -> str:
    """Return about `num_tokens` tokens of source code, of noise, or of one word again and again."""
    kind = rng.random()
    if kind < 0.5:
        source = models.training_text()
        start = rng.randrange(len(source) - 4 * num_tokens)
        return source[start : start + 3 * num_tokens]
    num_specials = 3
    ids = [rng.randrange(num_specials, models.VOCAB_SIZE - len(models.MARKERS)) for _ in range(8)]
    if kind < 0.75:
        ids = [rng.choice(ids) for _ in range(num_tokens)]
    else:
        ids = ids[: rng.randint(1, 4)] * (num_tokens // 4 + 1)
    return str(tokenizer.decode(ids))


def _padded(
    chats: Sequence[tuple[list[int], list[int]]], pad: int
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return ids and next-token targets, right-padded; targets are -1 outside the answers."""
    import torch

    width = max(len(prompt) + len(answer) for prompt, answer in chats)
    ids_BT = torch.full((len(chats), width), pad)
    targets_BT = torch.full((len(chats), width), -1)
    for row, (prompt, answer) in enumerate(chats):
        end = len(prompt) + len(answer)
        ids_BT[row, :end] = torch.tensor(prompt + answer)
        targets_BT[row, len(prompt) - 1 : end - 1] = torch.tensor(answer)
    return ids_BT, targets_BT
