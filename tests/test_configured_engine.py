"""The engine that the settings name."""

from pathlib import Path

import pytest

from strop.proxy.configured_engine import name_of


def test_a_model_is_called_as_its_folder_or_its_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the folder is the one that strop was started in."""
    folder = tmp_path / "Qwen3-4B" / "inner"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)

    assert "Qwen3-4B-4bit" == name_of("mlx-community/Qwen3-4B-4bit")
    assert "Qwen3-4B" == name_of(str(folder.parent))
    assert ("inner", "Qwen3-4B") == (name_of("."), name_of(".."))


def test_without_a_model_it_is_the_demo() -> None:
    """The one that strop ships."""
    assert "strop-demo" == name_of("")
