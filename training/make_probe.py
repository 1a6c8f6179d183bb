"""Makes a version's probe: what it answers greedily, and how likely parent and base find that.

Judges nothing; `strop.adapters.probe` does. Run as a program it makes the probe of an imported
adapter:

    python -m strop.training.make_probe --base DIR --adapter DIR --out FILE
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from strop.adapters import durable, peft, probe_codec
from strop.adapters.peft import InvalidAdapter
from strop.adapters.probe_values import Item, Probe
from strop.proxy.store import run_lock
from strop.proxy.store.run_lock import AlreadyRunning
from strop.training import memory
from strop.training.backends import choose, confirmed, open_policy
from strop.training.backends.base import (
    BASE,
    TRAINED,
    BackendUnavailable,
    OutOfMemory,
    Policy,
    Weights,
)
from strop.training.sequences import Floats, Tokens
from strop.training.tokenizer import BaseTokenizer

Prompt = tuple[int, ...]
T = TypeVar("T")

_NUM_ITEMS = 8
_NUM_TOKENS = 288  # of all continuations together
# A prompt over 256 tokens: engines treat it in another way (chunks, blocks of a prefix cache).
_LONG = 257
_MAX_PROMPT = 400
# Of so many prompts, continued by so many tokens, those are taken that tell the most.
_NUM_TRIED, _NUM_TRIED_TOKENS = 24, 24

_EXPECTED = (BackendUnavailable, InvalidAdapter, OutOfMemory, ValueError, OSError)

# What an imported adapter is asked, for want of what was asked of it.
_TEXTS = (
    "Hello! Who are you, and what can you do for me?",
    "Explain in three sentences why the sky is blue.",
    "Write a Python function that returns the n-th Fibonacci number, with a docstring.",
    "Summarise the plot of Hamlet for a ten-year-old.",
    "Translate into German: The train leaves at half past seven from platform four.",
    "List five things to check before a long bicycle tour, as bullet points.",
    "I am angry about my last order. Write me a polite complaint to the shop.",
    "What is 17 * 23? Show the steps.",
    "Give me a recipe for pancakes with four ingredients.",
    "Which is larger, the Moon or Mercury? Answer in one word, then explain.",
    "Rewrite this sentence so that it sounds friendly: Send me the file today.",
    "What should I consider when I choose between renting and buying a flat?",
)


def make(
    policy: Policy,
    parent: Weights,
    prompts: Sequence[Sequence[int]],
    *,
    candidate: Weights = TRAINED,
) -> Probe:
    """Return the probe that tells `candidate` from `parent` and from the base.

    Prompts are cut to 400 tokens; where none has more than 256, some are joined to one that has.

    Args:
        policy: the base, with what is compared.
        parent: what `candidate` was trained from.
        prompts: recorded ones, as ids, at least one that isn't empty; those are taken on which
            candidate and others differ most.
        candidate: what the engine is to be proven to serve.

    Raises:
        ValueError: there is no prompt.
        OutOfMemory: not even one prompt fits.
    """
    short = [*dict.fromkeys(tuple(map(int, prompt[:_MAX_PROMPT])) for prompt in prompts if prompt)]
    if not short:
        raise ValueError("expected at least one prompt to make a probe of, got none")
    tried = short[:: math.ceil(len(short) / _NUM_TRIED)]
    if not any(len(prompt) >= _LONG for prompt in tried):
        tried.append(_joined(short))
    distances = _together(lambda some: _distances(policy, candidate, parent, some), tried)
    ranked = [prompt for _, prompt in sorted(zip(distances, tried, strict=True), reverse=True)]
    long = next(prompt for prompt in ranked if len(prompt) >= _LONG)
    chosen = [long, *(prompt for prompt in ranked if prompt != long)][:_NUM_ITEMS]
    num_tokens = math.ceil(_NUM_TOKENS / len(chosen))
    items = [_item(policy, candidate, parent, prompt, num_tokens) for prompt in chosen]
    return Probe(tuple(items), policy.dtype)


def _joined(prompts: Sequence[Prompt]) -> Prompt:
    """Return prompts behind each other, again from the first if need be: one of 257 to 400 ids."""
    joined: list[int] = []
    for prompt in itertools.cycle(prompts):
        joined += prompt
        if len(joined) >= _LONG:
            break
    return tuple(joined[:_MAX_PROMPT])


def _distances(
    policy: Policy, candidate: Weights, parent: Weights, prompts: Sequence[Prompt]
) -> list[float]:
    """Return for each prompt how far the candidate is from the nearer of parent and base, nats²."""
    answers = policy.sample(
        prompts, max_tokens=_NUM_TRIED_TOKENS, temperature=0.0, seed=0, weights=candidate
    )
    sequences = [
        Tokens.of(prompt, answer.ids) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    own = policy.logprobs(sequences, candidate)
    others = [policy.logprobs(sequences, weights) for weights in {parent, BASE}]
    return [
        min(float(np.mean((each[i] - own[i]) ** 2)) for each in others) for i in range(len(prompts))
    ]


def _item(
    policy: Policy, candidate: Weights, parent: Weights, prompt: Prompt, num_tokens: int
) -> Item:
    ids, logprobs, margins = policy.greedy(prompt, num_tokens, candidate)
    sequence = [Tokens.of(prompt, ids)]
    return Item(
        prompt_ids=prompt,
        ids=ids,
        margins=_values(margins),
        candidate=_values(logprobs),
        parent=None if parent == BASE else _values(policy.logprobs(sequence, parent)[0]),
        base=_values(policy.logprobs(sequence, BASE)[0]),
    )


def _together(compute: Callable[[Sequence[Prompt]], list[T]], prompts: Sequence[Prompt]) -> list[T]:
    """Compute for all prompts, for as many at once as fit into memory."""
    try:
        return compute(prompts)
    except OutOfMemory:
        if len(prompts) == 1:
            raise
    half = len(prompts) // 2
    return [*_together(compute, prompts[:half]), *_together(compute, prompts[half:])]


def _values(array: Floats) -> tuple[float, ...]:
    return tuple(map(float, array))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the probe of an adapter that was not trained here; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m strop.training.make_probe")
    parser.add_argument("--base", type=Path, required=True, help="the base's folder")
    parser.add_argument("--adapter", type=Path, required=True, help="the PEFT folder")
    parser.add_argument("--out", type=Path, required=True, help="where the probe goes, as JSON")
    parser.add_argument("--runs", type=Path, help="the folder of all runs: none trains meanwhile")
    parser.add_argument("--parent-fd", type=int, help="a pipe whose end of file stops this")
    parser.add_argument("--quantize-base", action="store_true", help="hold the base in 4 bits")
    parser.add_argument("--backend", default="auto", choices=("auto", "torch", "mlx"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    given = parser.parse_args(arguments)
    os.nice(10)
    if given.parent_fd is not None:
        threading.Thread(target=_end_with, args=(given.parent_fd,), daemon=True).start()
    try:
        with _alone(given.runs):
            probe = _made(given)
    except AlreadyRunning as error:
        sys.stderr.write(f"no probe can be made yet: {error}\n")
        return os.EX_TEMPFAIL
    except _EXPECTED as error:
        sys.stderr.write(f"no probe could be made: {error}\n")
        return 1
    _write(given.out, json.dumps(probe_codec.to_json(probe), allow_nan=False))
    return 0


def _end_with(parent_fd: int) -> None:
    """End this process when the other end of the pipe is closed: nobody waits for it any more."""
    while os.read(parent_fd, 1):
        pass
    os._exit(1)


def _alone(runs: Path | None) -> contextlib.AbstractContextManager[None]:
    """Keep runs from training meanwhile; raise AlreadyRunning where one does."""
    if runs is None:
        return contextlib.nullcontext()
    runs.mkdir(mode=0o700, exist_ok=True)
    return run_lock.hold(runs, run_lock.PROBE)


def _made(given: argparse.Namespace) -> Probe:
    chosen = confirmed(choose(given.backend, given.device, base=given.base), given.device)
    rank = peft.read_config(given.adapter).rank
    needed = memory.estimate(given.base, chosen, rank=rank, quantize_base=given.quantize_base)
    free = memory.free_bytes(chosen.device)
    if not needed.fits(free, _LONG):
        raise OutOfMemory(needed.advice(free, _LONG))
    prompts = [*_prompts(BaseTokenizer(given.base))]
    policy = open_policy(
        given.base,
        start=given.adapter,
        backend=given.backend,
        device=given.device,
        quantize_base=given.quantize_base,
    )
    return make(policy, BASE, prompts)


def _prompts(tokenizer: BaseTokenizer) -> Iterator[Prompt]:
    """Yield the generic prompts as the base's template renders them, or as text without one."""
    for text in _TEXTS:
        try:
            yield tokenizer.encode_chat({"messages": [{"role": "user", "content": text}]})
        except ValueError:
            yield tokenizer.encode_text(text)


def _write(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        durable.publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
