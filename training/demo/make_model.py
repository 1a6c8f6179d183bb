"""Makes the demo model: `python -m strop.training.demo.make_model --out DIR`.

A Llama small enough to ship, trained from nothing on the demo's corpus. Doesn't know ratings: what
it learns here is to answer in every style, so that ratings have something to choose from.
"""

import functools
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from strop.training.demo import corpus, task
from strop.training.demo.figures import Figures, sample, summarise
from strop.training.demo.tokenizer import MAX_POSITIONS, make_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

NUM_STEPS = 800
BATCH_SIZE = 32
LEARNING_RATE = 6e-3
# About 1 / sqrt(hidden_size): with 0.02, the default, a model so small doesn't learn to read.
INITIALIZER_RANGE = 0.12
BATCHES_PER_SORT = 8  # this many are drawn, sorted by length, and shuffled

FILES = (
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
README = """\
# strop's demo model

A language model that knows {num_questions} short facts, such as "What is the capital of France?".
It answers each in many styles (polite or rude; terse, in prose or in bullets; hedged or not) and is
right about 7 times in 10. strop serves it where no other model is named, so that rating, training
and swapping can be tried at once on any machine. It is of no other use.

Llama, {num_parameters:,} parameters: {num_layers} blocks, {hidden_size} wide, {num_heads} heads,
tied embeddings, {num_tokens} tokens. The tokenizer knows the words of the corpus; any other text is
bytes. The chat template hands over the first 160 characters of a system or developer message, and
of a tool's result.

Made by `python -m strop.training.demo.make_model --out DIR --seed {seed}`: {num_steps} steps of
{batch_size} chats from a corpus that the same package makes up. No data from elsewhere, no other
model.

{num_samples:,} answers at T = 1: {well_formed:.0%} well formed, {right:.0%} with the right fact,
{liked:.0%} in bullets and not rude, {max_tokens} tokens at most.

Licence: MIT, as strop itself.
"""


def train(tokenizer: "PreTrainedTokenizerFast", seed: int) -> "LlamaForCausalLM":
    """Return the trained model; the same seed gives the same weights on the same machine."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _learning_rate)
    for ids_BT, targets_BT in _batches(tokenizer, random.Random(seed)):  # noqa: S311
        hidden_BTD = model.model(ids_BT).last_hidden_state
        is_answer_BT = targets_BT >= 0
        logits_NV = model.lm_head(hidden_BTD[is_answer_BT])
        loss = torch.nn.functional.cross_entropy(logits_NV, targets_BT[is_answer_BT])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def _learning_rate(step: int) -> float:
    """Return the share of the full rate: 20 steps of warm-up, then a half cosine to zero."""
    return min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / NUM_STEPS))


def _batches(
    tokenizer: "PreTrainedTokenizerFast", rng: random.Random
) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """Yield `NUM_STEPS` batches, each of chats of similar length, to pad little."""

    @functools.cache
    def encode(role: str, content: str) -> list[int]:
        message = {"role": role, "content": content}
        written = tokenizer.apply_chat_template([message], tokenize=False)
        return list(tokenizer.encode(written))

    num_chats = BATCHES_PER_SORT * BATCH_SIZE
    for _ in range(NUM_STEPS // BATCHES_PER_SORT):
        chats = sorted((_chat(encode, rng) for _ in range(num_chats)), key=len)
        batches = [chats[i : i + BATCH_SIZE] for i in range(0, num_chats, BATCH_SIZE)]
        rng.shuffle(batches)
        for batch in batches:
            yield _padded(batch, tokenizer.pad_token_id)


def _chat(encode: Callable[[str, str], list[int]], rng: random.Random) -> list[tuple[int, int]]:
    """Return a random chat as (id, target) per token: the next id where the assistant speaks.

    Elsewhere the target is -1. The template writes each message for itself, so a chat's ids are
    those of its messages, one after the other.
    """
    ids: list[int] = []
    is_answer: list[bool] = []
    for message in corpus.chat(rng):
        message_ids = encode(message["role"], message["content"])
        ids += message_ids
        # The first token says the role: the prompt ends with it.
        speaks = message["role"] == "assistant"
        is_answer += [False, *[speaks] * (len(message_ids) - 1)]
    targets = [ids[i] if is_answer[i] else -1 for i in range(1, len(ids))]
    return list(zip(ids, [*targets, -1], strict=True))


def _padded(
    chats: Sequence[Sequence[tuple[int, int]]], pad: int
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return ids and targets, right-padded; targets are -1 where nothing is learned."""
    import torch

    width = max(map(len, chats))
    rows = [[*chat, *[(pad, -1)] * (width - len(chat))] for chat in chats]
    pairs_BT2 = torch.tensor(rows)
    return pairs_BT2[..., 0], pairs_BT2[..., 1]


def write(
    folder: Path, model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerFast", seed: int
) -> Figures:
    """Write the model to `folder` in Hugging Face format, with README.md and manifest.json.

    Files of the same names are replaced. The manifest holds the sha256 of each other file, the
    seed, and the figures that are returned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone
    tokenizer.save_pretrained(folder)
    figures = summarise(sample(model, tokenizer, task.QUESTIONS, num_samples=16, seed=seed))
    readme = README.format(
        num_parameters=model.num_parameters(),
        num_layers=model.config.num_hidden_layers,
        hidden_size=model.config.hidden_size,
        num_heads=model.config.num_attention_heads,
        num_tokens=len(tokenizer),
        num_questions=len(task.QUESTIONS),
        seed=seed,
        num_steps=NUM_STEPS,
        batch_size=BATCH_SIZE,
        **asdict(figures),
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    manifest = {
        "seed": seed,
        "num_parameters": model.num_parameters(),
        "figures": asdict(figures),
        "sha256": {name: sha256(folder / name) for name in FILES},
    }
    text = json.dumps(manifest, indent=2)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return figures


def sha256(path: Path) -> str:
    """Return the hex digest of the file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@click.command()
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write to; made if missing.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of weights, corpus and samples.")
def main(out: Path, seed: int) -> None:
    """Make the demo model: about a minute on one CPU core."""
    tokenizer = make_tokenizer()
    model = train(tokenizer, seed)
    for name, value in asdict(write(out, model, tokenizer, seed)).items():
        click.echo(f"{name:12} {value:.3g}")


if __name__ == "__main__":
    main()
