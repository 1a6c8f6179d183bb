"""Sequences padded into one batch, and which of its rows predict the answers.

Plain arrays: knows no model. Letters: B sequences, T positions of the longest, N answer tokens of
all sequences together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from strop.training.sequences import Floats, Tokens

MLP_ROWS: Final = 2048
"""How many positions go through an MLP at a time where blocks are checkpointed."""

MOST_SCORES: Final = 2**26
"""How many attention scores MLX holds a few copies of at a time, if not of one query alone."""

MLPS: Final = ("mlp", "feed_forward", "block_sparse_moe", "shared_mlp", "ffn", "mlp_block")
"""What transformers and mlx-lm call it in a block."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of right-padded sequences.

    Padding comes after what counts and attention is causal, so it changes nothing and needs no
    mask; positions count from 0 in every row.

    Attributes:
        ids: the ids (B, T), padded with 0, which is in every vocabulary.
        rows: for each answer token the index of its predictor in the B·T rows, (N,).
        targets: the answer tokens, (N,).
        sizes: S of each sequence.
        num_last: how many of the last positions hold all predictors.
    """

    ids: NDArray[np.int64]
    rows: NDArray[np.int64]
    targets: NDArray[np.int64]
    sizes: tuple[int, ...]
    num_last: int

    def split(self, values_N: Floats) -> list[Floats]:
        """Return the values of each sequence's answer tokens."""
        return np.split(values_N, np.cumsum(self.sizes)[:-1])

    def join(self, values: Sequence[Floats]) -> Floats:
        """Return what each sequence has for its answer tokens as one array (N,).

        Raises:
            ValueError: a sequence has not one value for each.
        """
        sizes = tuple(len(one) for one in values)
        if sizes != self.sizes:
            raise ValueError(f"expected one value per answer token, {self.sizes}; got {sizes}")
        return np.concatenate(values).astype(np.float32)


def pad(sequences: Sequence[Tokens]) -> Batch:
    """Return `sequences`, at least one, as a batch.

    Raises:
        ValueError: there is none, or one without a prompt.
    """
    if not sequences or min(tokens.num_prompt for tokens in sequences) < 1:
        raise ValueError("expected at least one sequence, each with at least one prompt token")
    length = max(len(tokens.ids) for tokens in sequences)
    ids_BT = np.zeros((len(sequences), length), np.int64)
    for row, tokens in zip(ids_BT, sequences, strict=True):
        row[: len(tokens.ids)] = tokens.ids
    rows_N = [
        i * length + np.arange(tokens.num_prompt - 1, len(tokens.ids) - 1)
        for i, tokens in enumerate(sequences)
    ]
    targets_N = [tokens.ids[tokens.num_prompt :].astype(np.int64) for tokens in sequences]
    return Batch(
        ids_BT,
        np.concatenate(rows_N),
        np.concatenate(targets_N),
        tuple(tokens.num_answer for tokens in sequences),
        length - min(tokens.num_prompt for tokens in sequences) + 1,
    )
