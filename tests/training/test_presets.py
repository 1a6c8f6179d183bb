"""Presets: the shipped files, what they give for which model, and files of one's own."""

import json
import tomllib
from pathlib import Path

import pytest
from model_configs import DEEPSEEK_V3, LLAMA_8B, QWEN3_30B_A3B

from strop.configs import demo_model, presets
from strop.training.presets import InvalidPreset, load

DEMO = json.loads((demo_model() / "config.json").read_bytes())
NAMES = ("aggressive", "balanced", "careful")


def own(folder: Path, text: str) -> str:
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_three_presets_are_shipped() -> None:
    """Named in the settings' manual."""
    assert NAMES == tuple(presets())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", [DEMO, LLAMA_8B, QWEN3_30B_A3B, DEEPSEEK_V3])
def test_every_shipped_preset_loads_for_every_kind_of_model(
    name: str, config: dict[str, object]
) -> None:
    """Tiny, dense, sparse and huge."""
    preset = load(name, config)

    assert name == preset.name
    assert 0 < preset.lr < 0.01


@pytest.mark.parametrize("name", ["careful", "aggressive"])
def test_the_others_say_what_differs_from_the_default(name: str) -> None:
    """And nothing else, so that one sees what they are; in the default's order."""
    balanced, other = (tomllib.loads(presets()[one].read_text()) for one in ("balanced", name))

    assert [key for key in balanced if key in other] == list(other)
    assert [] == [key for key, value in other.items() if value == balanced[key]]


@pytest.mark.parametrize("name", NAMES)
def test_every_value_has_its_range_and_source_beside_it(name: str) -> None:
    """A preset is its own manual: above each key, and within a list of steps."""
    text = presets()[name].read_text(encoding="utf-8")
    blocks = [block for block in text.split("\n\n") if " = " in block]

    assert len(tomllib.loads(text)) == len(blocks)
    assert [] == [block for block in blocks if "Range: " not in block]
    assert [] == [
        block for block in blocks if "Source: " not in block and "Measured, " not in block
    ]


@pytest.mark.parametrize("config", [DEMO, LLAMA_8B, DEEPSEEK_V3])
def test_presets_differ_in_how_far_a_run_goes(config: dict[str, object]) -> None:
    """Careful less than balanced, and that less than aggressive."""
    careful, balanced, aggressive = (
        load(name, config) for name in ("careful", "balanced", "aggressive")
    )

    assert careful.lr < balanced.lr < aggressive.lr
    assert careful.kl_stop < balanced.kl_stop < aggressive.kl_stop
    assert careful.objective.beta >= balanced.objective.beta


def test_balanced_on_the_demo_model_is_what_was_measured() -> None:
    """Lr 4e-3, r 8, alpha 16, beta 0.05; 40 ratings make 20 steps, of which 4 warm up."""
    preset = load("balanced", DEMO)

    schedule = preset.schedule(40, seed=7)

    assert (4e-3, 8, 16.0, 0.05) == (preset.lr, preset.rank, preset.alpha, preset.objective.beta)
    assert (20, 8, 4, 7) == (
        schedule.num_steps,
        schedule.batch_size,
        schedule.warmup_steps,
        schedule.seed,
    )


def test_the_rate_follows_active_parameters_size_and_sparsity() -> None:
    """A dense 8B model has 1.7e-4, and so have 3B active ones, times 0.85 for 9 to each of them.

    671B with 37B active have 1.2e-4 x 0.35 x 0.7.
    """
    rates = [load("balanced", config).lr for config in (LLAMA_8B, QWEN3_30B_A3B, DEEPSEEK_V3)]

    assert pytest.approx([1.7e-4, 1.7e-4 * 0.85, 1.2e-4 * 0.35 * 0.7]) == rates


@pytest.mark.parametrize(
    ("num_units", "num_steps", "batch_size"),
    [(1, 4, 1), (3, 12, 1), (6, 12, 2), (24, 12, 8), (80, 40, 8), (5000, 128, 157)],
)
def test_a_run_has_a_step_for_each_batch_up_to_a_limit(
    num_units: int, num_steps: int, batch_size: int
) -> None:
    """Beyond it the batches grow, with few ratings they shrink; each is seen `epochs` times."""
    schedule = load("balanced", DEMO).schedule(num_units, seed=0)

    assert (num_steps, batch_size) == (schedule.num_steps, schedule.batch_size)


def test_a_file_of_ones_own_leaves_the_rest_as_in_balanced(tmp_path: Path) -> None:
    """It says what differs."""
    preset = load(own(tmp_path, "rank = 4\nkl_stop = 0.01\n"), DEMO)

    balanced = load("balanced", DEMO)
    assert (4, 8.0, 0.01) == (preset.rank, preset.alpha, preset.kl_stop)
    assert (balanced.lr, balanced.epochs) == (preset.lr, preset.epochs)


def test_a_plain_rate_is_taken_as_it_is(tmp_path: Path) -> None:
    """It is meant for one model: neither its size nor its sparsity matter, nor need be known."""
    path = own(tmp_path, "lr = 1e-4\n")

    assert [1e-4, 1e-4] == [load(path, config).lr for config in (DEEPSEEK_V3, {})]


def test_any_number_may_depend_on_the_size(tmp_path: Path) -> None:
    """Steps are by active parameters."""
    path = own(tmp_path, "rank = [{ up_to = 1e6, value = 2 }, { value = 32 }]\n")

    assert [2, 32] == [load(path, config).rank for config in (DEMO, LLAMA_8B)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate = 1e-4", "got learning_rate"),
        ("lr = 0", r"lr: expected a number above 0 up to 1; got 0"),
        ("lr = 'fast'", r"got 'fast'"),
        ("lr = nan", r"got nan"),
        ("epochs = 1.5", r"epochs: expected a whole number from 1 up to 100; got 1.5"),
        ("rank = true", r"rank: .*got True"),
        ("lr = []", "of which the last has none"),
        ("lr = [1e-4]", "of which the last has none"),
        ("lr = [{ up_to = 1e9, value = 1e-4 }]", "of which the last has none"),
        (
            "lr = [{ up_to = 2, value = 0.1 }, { up_to = 1, value = 0.1 }, { value = 0.1 }]",
            "whose `up_to` rises",
        ),
        ("lr = [{ value = 1e-4, for = 'llama' }]", "expected up_to and value; got for"),
        ("lr = [{ up_to = 1e9, value = 7 }, { value = 0.1 }]", "got 7"),
        ("lr = [{ up_to = 1e9 }, { value = 0.1 }]", "got None"),
        ("lr = ", "expected a TOML file"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(
    tmp_path: Path, text: str, message: str
) -> None:
    """Its path, its key, what was expected and what came."""
    path = own(tmp_path, text)

    with pytest.raises(InvalidPreset, match=message) as raised:
        load(path, DEMO)

    assert path in str(raised.value)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """It may also be a path that isn't there."""
    with pytest.raises(InvalidPreset, match=r"aggressive, balanced, careful or the path.*'bold'"):
        load("bold", DEMO)


def test_a_model_of_unknown_size_needs_plain_numbers() -> None:
    """The message says which file can't be used, and what to do."""
    with pytest.raises(InvalidPreset, match=r"balanced\.toml: its numbers depend on.*plain"):
        load("balanced", {"model_type": "mystery"})
