"""What a block computes for some positions after others, so that less is held at a time.

A block's attention scores and an MLP's activations take gigabytes for a few thousand positions, and
MLX holds several copies of them in the backward pass. Knows no model but the names of its parts.
Letters: B sequences, T positions, H hidden size, N heads, D head size; K heads of keys and values.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from strop.training.backends.batch import MLP_ROWS, MOST_SCORES

Piece = Callable[..., mx.array]


def in_pieces(piece: Piece, num_rows: int, axis: int) -> Piece:
    """Return what computes `piece` for `num_rows` of an array after others, its gradient too.

    Args:
        piece: takes where its rows stand, them, and what all share; returns a row for each.
        num_rows: how many at a time.
        axis: the rows' axis, of the array and of what is returned.
    """

    def computed(x: mx.array, *shared: mx.array) -> mx.array:
        done: list[mx.array] = []
        for rows, own in _split(x, num_rows, axis):
            done.append(piece(rows, *_after(done[-1:], own, *shared)))
        return mx.concatenate(done, axis)

    def gradient(primals: Any, slopes: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        x, *shared = primals if isinstance(primals, tuple | list) else (primals,)
        of_x: list[mx.array] = []
        of_shared = [mx.zeros(one.shape, mx.float32) for one in shared]
        pieces = zip(_split(x, num_rows, axis), _split(slopes, num_rows, axis), strict=True)
        for (rows, own), (_rows, own_slopes) in pieces:
            own_slopes, *inputs = _after([*of_x[-1:], *of_shared], own_slopes, own, *shared)
            found: Any = mx.vjp(partial(piece, rows), inputs, [own_slopes])
            of_own, *more = found[1]
            of_x.append(of_own)
            of_shared = [total + part for total, part in zip(of_shared, more, strict=True)]
        sums = (one.astype(like.dtype) for one, like in zip(of_shared, shared, strict=True))
        return (mx.concatenate(of_x, axis), *sums)

    whole: Any = mx.custom_function(computed)
    whole.vjp(gradient)
    return cast("Piece", whole)


@contextmanager
def attention_in_pieces() -> Iterator[None]:
    """Let what is computed meanwhile hold `MOST_SCORES` of an attention at a time, or of one query.

    Stands in for `mx.fast.scaled_dot_product_attention`, as mlx-lm's models call it; models that
    compute scores of their own hold all of them.
    """
    fast: Any = mx.fast
    attend = fast.scaled_dot_product_attention

    def attention(q_BNTD: mx.array, k_BKTD: mx.array, v_BKTD: mx.array, **options: Any) -> Any:
        num_sequences, num_heads, length, _ = q_BNTD.shape
        num_rows = max(1, MOST_SCORES // (num_sequences * num_heads * length))
        # A mask that is added may be computed from what is trained, as DeepSeek's is.
        is_added = isinstance(options.get("mask"), mx.array) and options["mask"].dtype != mx.bool_
        if num_rows >= length or k_BKTD.shape[2] != length or is_added:
            return attend(q_BNTD, k_BKTD, v_BKTD, **options)

        def piece(rows: slice, *arrays: mx.array) -> Any:
            mask, num_keys = options.get("mask"), length
            if isinstance(mask, str):
                # Causal: no query looks at a key behind it, and the last one at all before it.
                num_keys = rows.stop
            elif mask is not None and mask.shape[-2] == length:
                mask = mask[..., rows, :]
            queries, keys, values = arrays
            keys, values = keys[:, :, :num_keys], values[:, :, :num_keys]
            return attend(queries, keys, values, **{**options, "mask": mask})

        return in_pieces(piece, num_rows, axis=2)(q_BNTD, k_BKTD, v_BKTD)

    fast.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        fast.scaled_dot_product_attention = attend


def mlp_in_pieces(mlp: Any, call: Callable[..., mx.array], x_BTH: mx.array) -> mx.array:
    """Return what `call`, the method of an MLP, makes of `x_BTH`, for `MLP_ROWS` at a time."""
    num_rows = max(1, MLP_ROWS // x_BTH.shape[0])
    if num_rows >= x_BTH.shape[1]:
        return call(mlp, x_BTH)
    lora = dict(tree_flatten(mlp.trainable_parameters()))

    def piece(_: slice, own: mx.array, *arrays: mx.array) -> mx.array:
        mlp.update(tree_unflatten([*zip(lora, arrays, strict=True)]))
        return call(mlp, own)

    return in_pieces(piece, num_rows, axis=1)(x_BTH, *lora.values())


def _split(x: mx.array, num_rows: int, axis: int) -> Iterator[tuple[slice, mx.array]]:
    length = x.shape[axis]
    begins = range(0, length, num_rows)
    for begin, own in zip(begins, mx.split(x, [*begins][1:], axis), strict=True):
        yield slice(begin, min(begin + num_rows, length)), own


def _after(before: list[mx.array], *arrays: mx.array) -> list[mx.array]:
    """Return `arrays`, to be computed with after `before`: else all pieces are begun at once."""
    return [*mx.depends([*arrays], before)] if before else [*arrays]
