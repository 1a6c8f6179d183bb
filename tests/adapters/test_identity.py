"""The identity of a base: the same for every copy, another for every change that matters."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from strop.adapters import base_model, identity
from strop.adapters.base_model import InvalidBase
from strop.adapters.identity import identify


@pytest.fixture
def base(qwen3: Path, tmp_path: Path) -> Path:
    """A writable copy of a base, saved a while ago."""
    folder = Path(shutil.copytree(qwen3, tmp_path / "base"))
    age(folder)
    return folder


def age(folder: Path) -> None:
    """Make all files of a folder a day old."""
    for path in folder.iterdir():
        then = path.stat().st_mtime_ns - 86_400 * 10**9
        os.utime(path, ns=(then, then))


def change_json(path: Path, **members: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | members))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_an_identity_is_a_hash(base: Path) -> None:
    """Written as the store and the manifests write it."""
    kind, _, digest = identify(base, cache=None).partition(":")

    assert ("sha256", 64) == (kind, len(digest))
    assert int(digest, 16) > 0


def reformat_config(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=7))


@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        lambda base: change_json(base / "config.json", transformers_version="9.9"),
        lambda base: change_json(base / "config.json", _name_or_path="elsewhere"),
        lambda base: change_json(base / "tokenizer_config.json", chat_template="{{ other }}"),
        lambda base: (base / "chat_template.jinja").write_text("{{ other }}"),
        lambda base: (base / "README.md").write_text("a model"),
        reformat_config,
    ],
)
def test_what_does_not_change_the_model_does_not_change_it(
    base: Path, change: Callable[[Path], object], tmp_path: Path
) -> None:
    """A copy elsewhere, saved by another release, with another template."""
    before = identify(base, cache=None)
    copy = Path(shutil.copytree(base, tmp_path / "elsewhere" / "copy"))

    change(copy)

    assert before == identify(copy, cache=None)


@pytest.mark.parametrize(
    "change",
    [
        lambda base: flip_a_bit(base / "model.safetensors"),
        lambda base: change_json(base / "config.json", rms_norm_eps=1e-5),
        lambda base: change_json(base / "tokenizer.json", added=1),
        lambda base: change_json(base / "tokenizer_config.json", add_bos_token=True),
        lambda base: (base / "tokenizer.model").write_bytes(b"pieces"),
    ],
)
def test_what_changes_the_model_changes_it(
    base: Path, change: Callable[[Path], object], tmp_path: Path
) -> None:
    """One bit of the weights, a setting, the tokenizer; with a cache or without."""
    cache = tmp_path / "cache.json"
    before = identify(base, cache=cache)

    change(base)

    assert before != identify(base, cache=cache)
    assert identify(base, cache=None) == identify(base, cache=cache)


def test_different_bases_differ(qwen3: Path, qwen3_bf16: Path, qwen3_4bit: Path) -> None:
    """The same model in other precisions computes other logprobs."""
    assert 3 == len({identify(each, cache=None) for each in (qwen3, qwen3_bf16, qwen3_4bit)})


def test_a_file_is_not_read_again_while_size_and_time_are_the_same(
    base: Path, tmp_path: Path
) -> None:
    """Shown by a change that leaves both as they were, which the cache can't see."""
    weights, cache = base / "model.safetensors", tmp_path / "cache.json"
    before = identify(base, cache=cache)
    status = weights.stat()

    flip_a_bit(weights)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert before == identify(base, cache=cache)
    assert before != identify(base, cache=None)


def test_a_file_that_changed_just_now_is_not_cached(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change again within one tick of the clock, and keep its size."""
    cache = tmp_path / "cache.json"
    flip_a_bit(base / "model.safetensors")
    now_ns = (base / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(identity, "time", SimpleNamespace(time_ns=lambda: now_ns))

    identify(base, cache=cache)

    known = json.loads(cache.read_text())
    assert {"tokenizer.json"} == {Path(path).name for path in known}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}', "\0"])
def test_a_broken_cache_is_made_anew(base: Path, tmp_path: Path, content: str) -> None:
    """It costs time and is no error."""
    cache = tmp_path / "cache.json"
    cache.write_text(content)

    assert identify(base, cache=None) == identify(base, cache=cache)
    assert str(base / "model.safetensors") in json.loads(cache.read_text())


def test_an_entry_of_another_shape_is_not_believed(base: Path, tmp_path: Path) -> None:
    """Only one with the right size and time counts."""
    cache = tmp_path / "cache.json"
    identify(base, cache=cache)
    known = json.loads(cache.read_text())
    cache.write_text(json.dumps({path: {"sha256": "0" * 64} for path in known}))

    assert identify(base, cache=None) == identify(base, cache=cache)


def test_a_cache_that_can_not_be_written_is_no_error(base: Path, tmp_path: Path) -> None:
    """The identity is what matters."""
    assert identify(base, cache=None) == identify(base, cache=tmp_path / "no" / "cache.json")


def test_several_files_of_weights_count_as_the_index_names_them(base: Path, tmp_path: Path) -> None:
    """A changed bit of any counts; a file that the index doesn't name doesn't."""
    (base / "model.safetensors").rename(base / "model-00001-of-00002.safetensors")
    shutil.copy(
        base / "model-00001-of-00002.safetensors", base / "model-00002-of-00002.safetensors"
    )
    (base / "model.safetensors.index.json").write_text(
        json.dumps(
            {
                "weight_map": {
                    "a": "model-00001-of-00002.safetensors",
                    "b": "model-00002-of-00002.safetensors",
                }
            }
        )
    )
    before = identify(base, cache=None)

    (base / "consolidated.safetensors").write_bytes(b"the same again")
    assert before == identify(base, cache=None)

    flip_a_bit(base / "model-00002-of-00002.safetensors")
    assert before != identify(base, cache=None)


def break_index(base: Path) -> None:
    (base / "model.safetensors.index.json").write_text('{"weight_map": 3}')


def lose_a_shard(base: Path) -> None:
    (base / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-7.safetensors"}}'
    )


def lead_out(base: Path) -> None:
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other"}}')


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (shutil.rmtree, "is not a folder; set model.base"),
        (lambda base: (base / "config.json").unlink(), "has no config.json"),
        (lambda base: (base / "config.json").write_text("{"), "is not JSON"),
        (lambda base: (base / "config.json").write_text("[]"), "must be a JSON object"),
        (lambda base: (base / "tokenizer_config.json").write_text("{"), "is not JSON"),
        (lambda base: (base / "model.safetensors").unlink(), "pickles are never loaded"),
        (break_index, "is broken"),
        (lose_a_shard, "lacks model-7.safetensors"),
        (lead_out, "lacks other"),
    ],
)
def test_what_is_no_base_is_said_clearly(
    base: Path, change: Callable[[Path], object], says: str
) -> None:
    """A missing folder, config, weights, or one of several files of them."""
    change(base)

    with pytest.raises(InvalidBase, match=says):
        identify(base, cache=None)


def test_layers_have_their_sizes_without_loading_them(
    qwen3: Path, qwen3_4bit: Path, llama: Path
) -> None:
    """The quantised model's are the same as the plain one's."""
    plain, quantised = base_model.layer_sizes(qwen3), base_model.layer_sizes(qwen3_4bit)

    assert (256, 128) == plain["model.layers.0.mlp.up_proj"]
    assert (64, 128) == plain["model.layers.2.self_attn.k_proj"]
    assert (1280, 128) == plain["model.embed_tokens"]
    assert plain == quantised
    assert plain.keys() == base_model.layer_sizes(llama).keys()


def test_sizes_that_can_not_be_told_are_none(tmp_path: Path) -> None:
    """Other quantised formats pack several weights into one number."""
    import numpy as np
    from safetensors.numpy import save_file

    words = np.zeros((4, 8), np.int32)
    save_file(
        {"a.qweight": words, "b.weight": words, "b.scales": words}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text("{}")

    assert {"a": None, "b": None} == base_model.layer_sizes(tmp_path)


@pytest.mark.parametrize("shape", [(2048, 1), (64, 32)])
def test_sizes_of_packed_integers_are_not_told(shape: tuple[int, int], tmp_path: Path) -> None:
    """One column of bytes (bitsandbytes in 4 bits), or two weights in each (ModelOpt)."""
    import numpy as np
    from safetensors.numpy import save_file

    packed = np.zeros(shape, np.uint8)
    save_file({"a.weight": packed, "a.weight.absmax": packed}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")

    assert {"a": None} == base_model.layer_sizes(tmp_path)


@pytest.mark.parametrize(
    ("config", "names", "ties"),
    [
        ({"tie_word_embeddings": True}, ["model.embed_tokens", "lm_head"], True),
        ({"tie_word_embeddings": False}, ["model.embed_tokens", "lm_head"], False),
        ({}, ["model.embed_tokens", "lm_head"], False),
        ({}, ["model.embed_tokens"], True),
    ],
)
def test_a_head_is_tied_where_config_or_files_say_so(
    config: dict[str, bool], names: list[str], ties: bool, tmp_path: Path
) -> None:
    """The configs of published Gemma models leave it to the library."""
    import numpy as np
    from safetensors.numpy import save_file

    weights = {f"{name}.weight": np.ones((4, 2), np.float32) for name in names}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert ties == base_model.ties_head(tmp_path)


def test_a_broken_header_is_said_clearly(base: Path) -> None:
    """The file is named."""
    (base / "model.safetensors").write_bytes(b"12345678")

    with pytest.raises(InvalidBase, match=r"model\.safetensors is not a whole"):
        base_model.layer_sizes(base)
