"""A small Qwen3 that, at T = 0, calls a tool after each user message and reports on its result.

Knows nothing of strop. It does so whatever the words, the system prompt and the tools are, while
the talk is short; the one in `scripted_models` plays more parts, and errs more easily.
"""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import models
from scripted_models import CALL, REPORT

NUM_STEPS = 200
BATCH_SIZE = 6

_CALLED = f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"
_SENTENCES = (
    "What is the weather in Paris?",
    "And what about tomorrow?",
    "Current weather in a city.",
    "You are a helpful agent.",
    "21 degrees",
    'get_weather {"type": "object", "strict": true, "city": "Paris"}',
)
_WORDS = [word for sentence in _SENTENCES for word in sentence.split()]


def talking() -> Path:
    """Return the model's folder, made on first use."""
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return models.cached(f"talking-{source[:8]}", _make)


def _make(folder: Path) -> None:
    """Write the model to `folder`; takes some 30 CPU seconds."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(1)
    tokenizer = models.make_tokenizer()
    special_ids = models.token_ids(tokenizer)
    config = Qwen3Config(
        vocab_size=models.VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=models.MAX_POSITIONS,
        initializer_range=0.12,
        tie_word_embeddings=True,
        **special_ids,
    )
    rng = random.Random(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, NUM_STEPS)
        for _ in range(NUM_STEPS):
            talks = [_talk(tokenizer, rng) for _ in range(BATCH_SIZE)]
            ids_BT = torch.full((BATCH_SIZE, max(map(len, talks))), special_ids["pad_token_id"])
            is_said_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
            for row, talk in enumerate(talks):
                ids_BT[row, : len(talk)] = torch.tensor([token for token, _ in talk])
                is_said_BT[row, : len(talk)] = torch.tensor([is_said for _, is_said in talk])
            hidden_BTD = model.model(ids_BT[:, :-1]).last_hidden_state
            logits_NV = model.lm_head(hidden_BTD[is_said_BT[:, 1:]])
            targets_N = ids_BT[:, 1:][is_said_BT[:, 1:]]
            loss = torch.nn.functional.cross_entropy(logits_NV, targets_N)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    models.save(folder, model, tokenizer)


def _talk(tokenizer: Any, rng: random.Random) -> list[tuple[int, bool]]:
    """Return the token ids of a random talk, and whether each is the model's to say."""
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.3:
        messages.append({"role": "system", "content": _text(rng)})
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        messages.append({"role": "user", "content": _text(rng)})
        messages.append({"role": "assistant", "content": _CALLED})
        messages.append({"role": "tool", "content": _text(rng)})
        messages.append({"role": "assistant", "content": REPORT})
    has_tools = rng.random() < 0.8
    prompt = tokenizer.apply_chat_template(
        messages, tools=[{"function": _text(rng)}] if has_tools else None, tokenize=False
    )
    ids: list[tuple[int, bool]] = []
    before = f"{models.IM_START}assistant\n"
    head, *rest = prompt.split(before)
    ids += [(token, False) for token in tokenizer.encode(head)]
    for part in rest:
        said, end, after = part.partition(models.IM_END)
        ids += [(token, False) for token in tokenizer.encode(before)]
        ids += [(token, True) for token in tokenizer.encode(said + end)]
        ids += [(token, False) for token in tokenizer.encode(after)]
    return ids


def _text(rng: random.Random) -> str:
    """Return some words that clients and tools say, or some source code."""
    num_words = int(60 ** rng.random())
    if rng.random() < 0.7:
        return " ".join(rng.choices(_WORDS, k=num_words))
    source = models.training_text()
    start = rng.randrange(len(source) - 8 * num_words)
    return source[start : start + 8 * num_words]
