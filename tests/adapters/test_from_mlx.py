"""mlx_lm's own adapters: written by mlx_lm, imported as PEFT, and the same to transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from strop.adapters import importing, peft
from strop.adapters.peft import AdapterNotFound, InvalidAdapter

mx = pytest.importorskip("mlx.core")
pytest.importorskip("torch")

PROMPT, ANSWER = list(range(5, 30)), list(range(40, 60))
WEIGHTS = "adapters.safetensors"


def train(base: Path, folder: Path, **parameters: Any) -> Any:
    """Write an adapter as `mlx_lm.lora` does, and return the model that it is in."""
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load, save_config

    model = load(str(base))[0]
    model.freeze()
    lora = {"rank": 4, "dropout": 0.0, "scale": 20.0, **parameters}
    linear_to_lora_layers(model, 2, lora)
    mx.random.seed(0)
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.05 * mx.random.normal(module.lora_b.shape)
    folder.mkdir()
    weights = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(folder / WEIGHTS), weights)
    config = {"model": str(base), "fine_tune_type": "lora", "num_layers": 2}
    save_config({**config, "lora_parameters": lora}, folder / peft.CONFIG)
    return model


def logprobs(model: Any) -> Any:
    """Return the logprobs of the answer's tokens in mlx_lm."""
    logits = model(mx.array([PROMPT + ANSWER]))
    all_logprobs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))[0]
    return all_logprobs[np.arange(len(PROMPT) - 1, len(PROMPT) + len(ANSWER) - 1), ANSWER]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "parameters", [{}, {"rank": 2, "scale": 7.5, "keys": ["self_attn.q_proj", "mlp.up_proj"]}]
)
def test_it_computes_as_peft_what_it_does_in_mlx_lm(
    qwen3: Path, target: Path, tmp_path: Path, parameters: dict[str, Any]
) -> None:
    """Its last blocks, with mlx_lm's defaults and with settings of its own."""
    served = logprobs(train(qwen3, tmp_path / "source", **parameters))

    importing.bring_in(tmp_path / "source", target, qwen3, max_rank=8)

    assert parameters.get("rank", 4) == peft.read_config(target).rank
    assert {peft.CONFIG, peft.WEIGHTS} == {path.name for path in target.iterdir()}
    expected = models.reference_logprobs(qwen3, target, PROMPT, ANSWER)
    plain = models.reference_logprobs(qwen3, None, PROMPT, ANSWER)
    np.testing.assert_allclose(expected, served, atol=1e-3)
    assert np.abs(np.subtract(expected, plain)).max() > 0.1


def test_one_of_a_quantised_base_comes_in_too(
    qwen3_4bit: Path, target: Path, tmp_path: Path
) -> None:
    """Its layers have the sizes of the plain ones."""
    train(qwen3_4bit, tmp_path / "source")

    importing.bring_in(tmp_path / "source", target, qwen3_4bit, max_rank=8)

    assert 4 == peft.read_config(target).rank


def with_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / peft.CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def with_weights(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = dict(mx.load(str(folder / WEIGHTS)))
        mx.eval(weights)
        (folder / WEIGHTS).unlink()
        mx.save_safetensors(
            str(folder / WEIGHTS), weights | {k: mx.zeros(v) for k, v in changes.items()}
        )

    return change


def cut_off(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


def link(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "original")
    (folder / WEIGHTS).symlink_to(folder / "original")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_config(fine_tune_type="dora"), "fine_tune_type = 'dora' is not supported"),
        (with_config(lora_parameters={"rank": 4}), "isn't one of mlx_lm's"),
        (with_config(lora_parameters={"rank": 0, "scale": 1.0}), "a rank of at least 1"),
        (with_config(lora_parameters={"rank": 4, "scale": float("nan")}), "a scale within float32"),
        (with_config(lora_parameters={"rank": 4, "scale": 10**400}), "a scale within float32"),
        (with_config(lora_parameters={"rank": 4, "scale": 1e308}), "a scale within float32"),
        (with_config(lora_parameters={"rank": 8, "scale": 1.0}), "with r = 8 as the config says"),
        (with_weights(**{"model.norm.weight": (128,)}), "unexpected tensor 'model.norm.weight'"),
        (with_weights(**{"x.lora_a": (4, 8, 2)}), "not of experts"),
        (with_weights(**{"x.lora_a": (8, 4)}), "x has one of lora_a and lora_b"),
        (with_weights(**{"model.embed_tokens.lora_a": (8, 4)}), "as the head too"),
        (with_weights(**{"x.lora_a": (8, 4), "x.lora_b": (4, 8)}), "the base .* doesn't have"),
        (cut_off, "truncated"),
        (link, "adapters.safetensors is a link"),
    ],
)
def test_what_peft_can_not_say_is_refused(
    qwen3: Path, target: Path, tmp_path: Path, change: Callable[[Path], None], says: str
) -> None:
    """By name and with the reason; nothing is left of it but what the caller throws away."""
    train(qwen3, tmp_path / "source")
    change(tmp_path / "source")

    with pytest.raises(InvalidAdapter, match=says):
        importing.bring_in(tmp_path / "source", target, qwen3, max_rank=8)


def test_a_base_whose_layers_have_other_names_is_refused(
    qwen3: Path, target: Path, tmp_path: Path
) -> None:
    """Or one that isn't known: a layer of the same name might be another."""
    source, base = tmp_path / "source", tmp_path / "base"
    train(qwen3, source)
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "mamba"}')

    with pytest.raises(InvalidAdapter, match="adapters of mamba models can't be converted"):
        importing.bring_in(source, target, base, max_rank=8)
    with pytest.raises(InvalidAdapter, match=r"set model\.base"):
        importing.bring_in(source, target, None, max_rank=8)


def test_without_its_config_it_is_not_there(qwen3: Path, target: Path, tmp_path: Path) -> None:
    """Rank and scale stand nowhere else."""
    train(qwen3, tmp_path / "source")
    (tmp_path / "source" / peft.CONFIG).unlink()

    with pytest.raises(AdapterNotFound, match=r"adapter_config\.json"):
        importing.bring_in(tmp_path / "source", target, qwen3, max_rank=8)
