"""The embedded engine's batch: how much of it one step runs."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx

from strop.adapters.mlx_rows import Float32Logits
from strop.proxy.embedded import loading
from strop.proxy.embedded.batch import Batch
from strop.proxy.embedded.options import Options
from strop.proxy.embedded.sampling import greedy

CHUNK = 64


class Counting(Float32Logits):
    """A model that notes how many positions each of its calls has, and how many are kept then."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.sizes: list[int] = []
        self.kept: list[int] = []

    def __call__(self, ids: mx.array, **kwargs: Any) -> mx.array:
        """Return the model's logits."""
        self.sizes.append(ids.size)
        logits = super().__call__(ids, **kwargs)
        rows, _, length, _ = kwargs["cache"][0].keys_and_values()[0].shape
        self.kept.append(rows * length)
        return logits


def insert(batch: Batch, length: int, max_tokens: int) -> int:
    """Add a greedy row with a prompt of this length."""
    return batch.insert(
        [(at * 7 + length) % 1000 for at in range(length)], cache=None, num_cached=0,
        max_tokens=max_tokens, stop_ids=frozenset(), sampler=greedy, processors=[],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("lengths", "most"),
    [
        # Together they would be 21 times 1000.
        ([1000] + [10] * 20, 18_000),
        ([900, 800, 700], 3 * 920),
        ([600, 10, 10, 10], 4 * 620),
    ],
)
def test_short_rows_are_not_padded_to_a_long_one(
    qwen3: Path, lengths: list[int], most: int
) -> None:
    """The KV cache of rows that decode together is as long as the longest for each of them."""
    mx.disable_compile()
    model = Counting(loading.load(Options(model=str(qwen3))).module)
    batch = Batch(model, max_rows=32, prefill_chunk=512)

    uids = [insert(batch, length, 12) for length in lengths]
    answers: dict[int, list[int]] = {uid: [] for uid in uids}
    while any(len(answer) < 12 for answer in answers.values()):
        for drawn in batch.step():
            answers[drawn.uid].append(drawn.token)
    batch.close()

    assert max(model.kept) <= most
    for length, uid in ((lengths[at], uids[at]) for at in (0, 1, -1)):
        alone = Batch(model, max_rows=1, prefill_chunk=512)
        insert(alone, length, 12)
        tokens: list[int] = []
        while len(tokens) < 12:
            tokens += [drawn.token for drawn in alone.step()]
        alone.close()
        assert tokens == answers[uid]


def test_rows_that_wait_make_no_padding(qwen3: Path) -> None:
    """However many there are, what counts is how many decode at once."""
    mx.disable_compile()
    model = loading.load(Options(model=str(qwen3))).model
    few, many = (Batch(model, max_rows=max_rows, prefill_chunk=512) for max_rows in (4, 400))

    for batch in (few, many):
        insert(batch, 1000, 4)
        for _ in range(40):
            insert(batch, 10, 4)

    assert [1, 2] == [len(batch._stacks) for batch in (few, many)]


def test_rows_join_those_that_decode_already(qwen3: Path) -> None:
    """A batch of their own is for those that fit nowhere, and ends with the last of them."""
    mx.disable_compile()
    model = Counting(loading.load(Options(model=str(qwen3))).module)
    batch = Batch(model, max_rows=32, prefill_chunk=512)
    short = [insert(batch, 10, 100) for _ in range(12)]
    long = insert(batch, 2000, 100)
    while long not in {drawn.uid for drawn in batch.step()}:
        pass

    model.sizes.clear()
    batch.step()
    calls = sorted(model.sizes)
    for uid in short:
        batch.remove(uid)
    added = insert(batch, 1500, 100)
    while added not in {drawn.uid for drawn in batch.step()}:
        pass
    model.sizes.clear()
    batch.step()
    batch.close()

    assert [1, 12] == calls
    assert [2] == model.sizes


@pytest.mark.parametrize("num_prompts", [1, 3, 8, 12])
def test_many_prompts_hold_up_a_stream_no_longer_than_one(qwen3: Path, num_prompts: int) -> None:
    """A step runs one chunk of prompts, whoever shares it, and a token of each running row."""
    mx.disable_compile()
    model = Counting(loading.load(Options(model=str(qwen3))).module)
    batch = Batch(model, max_rows=32, prefill_chunk=CHUNK)

    stream = insert(batch, 2, 10_000)
    while not batch.step():
        pass
    prompts = {insert(batch, 300 + number, 2) for number in range(num_prompts)}
    model.sizes.clear()
    while prompts:
        drawn = batch.step()
        assert stream in {each.uid for each in drawn}
        prompts -= {each.uid for each in drawn if each.finish}
    batch.close()

    assert max(model.sizes) <= CHUNK
    assert sum(model.sizes) >= 300 * num_prompts


def test_prompts_that_are_dropped_hold_up_no_others(qwen3: Path) -> None:
    """What is left of a step's tokens goes to the prompts that are still there."""
    mx.disable_compile()
    model = Counting(loading.load(Options(model=str(qwen3))).module)
    batch = Batch(model, max_rows=32, prefill_chunk=CHUNK, max_padding=0)

    dropped = [insert(batch, 300, 2) for _ in range(4)]
    insert(batch, 400, 2)
    batch.step()
    for uid in dropped:
        batch.drop(uid)
    model.sizes.clear()
    batch.step()
    batch.close()

    assert [CHUNK] == model.sizes
