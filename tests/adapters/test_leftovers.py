"""What peft saves beside LoRA: the base's own layers go, and other layers keep an adapter out."""

import warnings
from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import pytest
import random_models

from strop.adapters import mlx as mlx_lora
from strop.adapters import peft
from strop.adapters.importing import bring_in
from strop.adapters.peft import InvalidAdapter

pytest.importorskip("torch")

PREFIX = "base_model.model."
HEAD, EMBEDDING = f"{PREFIX}lm_head", f"{PREFIX}model.embed_tokens"
PROMPT, ANSWER = list(range(5, 30)), list(range(40, 60))

Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose head has weights of its own."""
    folder = tmp_path_factory.mktemp("untied") / "base"
    return random_models.make(folder, "LlamaConfig", tie_word_embeddings=False)


def adapted(base: Path, folder: Path, *targets: str) -> Path:
    """Write an adapter as peft saves it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it saves the embedding too
        models.make_peft(base, folder, rank=4, alpha=8, targets=targets, seed=1, scale=0.2)
    return change(folder, fill_embedding)


def change(folder: Path, how: Callable[[Tensors], None]) -> Path:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / peft.WEIGHTS)
    how(tensors)
    save_file(tensors, folder / peft.WEIGHTS, metadata={"format": "pt"})
    return folder


def fill_embedding(tensors: Tensors) -> None:
    """Give an adapted embedding an effect: peft begins with zeros."""
    rng = np.random.default_rng(0)
    for name, tensor in tensors.items():
        if name.endswith("lora_embedding_A"):
            tensors[name] = rng.normal(0, 0.1, tensor.shape).astype(np.float32)


def names_in(folder: Path) -> set[str]:
    from safetensors.numpy import load_file

    return set(load_file(folder / peft.WEIGHTS))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.parametrize(
    "targets", [("lm_head",), ("q_proj", "lm_head"), ("v_proj", "embed_tokens")]
)
@pytest.mark.parametrize("base", ["untied", "qwen3"])
def test_the_bases_own_layers_are_left_out(
    request: pytest.FixtureRequest, base: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    """They are saved with an adapted head or embedding; without, it computes the same."""
    folder, target = Path(request.getfixturevalue(base)), tmp_path / "target"
    source = adapted(folder, tmp_path / "source", *targets)
    target.mkdir()
    assert any(name.endswith(".base_layer.weight") for name in names_in(source))

    bring_in(source, target, folder, max_rank=8)

    _, shapes = peft.read_shapes(target)
    assert {*targets} == {path.rpartition(".")[2] for path in shapes}
    assert {name for name in names_in(source) if ".lora_" in name} == names_in(target)
    expected = models.reference_logprobs(folder, source, PROMPT, ANSWER)
    plain = models.reference_logprobs(folder, None, PROMPT, ANSWER)
    np.testing.assert_array_equal(
        expected, models.reference_logprobs(folder, target, PROMPT, ANSWER)
    )
    assert np.abs(np.subtract(expected, plain)).max() > 0.1


def test_a_head_of_its_own_is_served_by_mlx(untied: Path, tmp_path: Path) -> None:
    """What is left of a foreign adapter computes there what peft does."""
    mx = pytest.importorskip("mlx.core")
    from mlx_lm.utils import load

    source, target = adapted(untied, tmp_path / "source", "lm_head", "q_proj"), tmp_path / "target"
    target.mkdir()
    bring_in(source, target, untied, max_rank=8)

    mlx_lora.convert(target, untied, tmp_path / "mlx")

    logits = load(str(untied), adapter_path=str(tmp_path / "mlx"))[0](mx.array([PROMPT + ANSWER]))
    logprobs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))[0]
    served = logprobs[np.arange(len(PROMPT) - 1, len(PROMPT) + len(ANSWER) - 1), ANSWER]
    expected = models.reference_logprobs(untied, source, PROMPT, ANSWER)
    np.testing.assert_allclose(expected, served, atol=1e-3)


def cast(tensors: Tensors) -> None:
    tensors[f"{HEAD}.base_layer.weight"] = tensors[f"{HEAD}.base_layer.weight"].astype(np.float16)


def wrap_twice(tensors: Tensors) -> None:
    for name in [*tensors]:
        tensors[PREFIX + name] = tensors.pop(name)


def call_it_plain(tensors: Tensors) -> None:
    """As peft does where the head isn't adapted."""
    tensors[f"{HEAD}.weight"] = tensors.pop(f"{HEAD}.base_layer.weight")


@pytest.mark.parametrize("how", [cast, wrap_twice, call_it_plain])
def test_it_is_the_bases_in_half_precision_and_by_other_names_too(
    untied: Path, tmp_path: Path, how: Callable[[Tensors], None]
) -> None:
    """Trained in 16 bits, wrapped by peft twice, or saved without having been adapted."""
    source, target = adapted(untied, tmp_path / "source", "lm_head"), tmp_path / "target"
    before = peft.read(bring(source, tmp_path / "before", untied)).modules["lm_head"]
    target.mkdir()

    bring_in(change(source, how), target, untied, max_rank=8)

    assert {f"{HEAD}.lora_A.weight", f"{HEAD}.lora_B.weight"} == names_in(target)
    np.testing.assert_array_equal(before.b, peft.read(target).modules["lm_head"].b, strict=True)


def bring(source: Path, target: Path, base: Path) -> Path:
    target.mkdir()
    bring_in(source, target, base, max_rank=8)
    return target


def train_it(tensors: Tensors) -> None:
    tensors[f"{HEAD}.base_layer.weight"][-1, -1] += 1e-4


def add_a_token(tensors: Tensors) -> None:
    head = tensors[f"{HEAD}.base_layer.weight"]
    tensors[f"{HEAD}.base_layer.weight"] = np.concatenate([head, head[:1]])


def lose_its_values(tensors: Tensors) -> None:
    tensors[f"{HEAD}.base_layer.weight"][0, 0] = np.nan


def bring_another(tensors: Tensors) -> None:
    tensors[f"{PREFIX}model.visual.weight"] = np.ones((2, 2), np.float32)


def be_there_twice(tensors: Tensors) -> None:
    name = f"{HEAD}.lora_A.weight"
    tensors[PREFIX + name] = tensors[name]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (train_it, "it brings a lm_head of its own"),
        (add_a_token, r"\(1281, 128\) where the base's is \(1280, 128\)"),
        (lose_its_values, "NaN or infinity"),
        (bring_another, "a copy of model.visual, which can't be compared"),
        (be_there_twice, "under two names"),
    ],
)
def test_a_layer_that_is_not_the_bases_keeps_it_out(
    untied: Path, tmp_path: Path, how: Callable[[Tensors], None], says: str
) -> None:
    """LoRA alone would compute something else than what was trained."""
    source = change(adapted(untied, tmp_path / "source", "lm_head"), how)
    target = tmp_path / "target"
    target.mkdir()

    with pytest.raises(InvalidAdapter, match=says):
        bring_in(source, target, untied, max_rank=8)


def test_what_can_not_be_compared_keeps_it_out(
    qwen3: Path, qwen3_4bit: Path, tmp_path: Path
) -> None:
    """Without the base, or with a quantised one; it is said how to save it without."""
    source = adapted(qwen3, tmp_path / "source", "lm_head")

    for base in (None, qwen3_4bit):
        target = tmp_path / ("alone" if base is None else "quantised")
        target.mkdir()
        with pytest.raises(InvalidAdapter, match="save_embedding_layers=False"):
            bring_in(source, target, base, max_rank=8)
