"""What an adapter is fitted to in the embedded engine: linear layers, quantised in any way."""

from typing import Any

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
import mlx.nn as nn

from strop.proxy.embedded import lora


class Block(nn.Module):  # type: ignore[misc]  # mlx has no types for it
    """A norm and a linear layer, in bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(64)
        self.linear = nn.Linear(64, 128, bias=False)
        self.set_dtype(mx.bfloat16)


@pytest.mark.parametrize(
    "how",
    [
        None,
        {"group_size": 64, "bits": 4},
        {"group_size": 32, "bits": 4, "mode": "mxfp4"},
        {"group_size": 16, "bits": 4, "mode": "nvfp4"},
        {"group_size": 32, "bits": 8, "mode": "mxfp8"},
    ],
)
def test_a_layer_is_adapted_in_the_dtype_that_it_computes_in(how: dict[str, Any] | None) -> None:
    """However it is quantised: an adapter cast to what scales are kept in would be noise."""
    block = Block()
    if how is not None:
        nn.quantize(block, **how)

    shapes = lora.shapes_of(block)

    assert {"linear": lora.LinearShape(64, 128, mx.bfloat16)} == shapes
