"""The engine that the settings name."""

from pathlib import Path

import pytest

from strop.proxy.configured_engine import make, name_of
from strop.proxy.errors import UpstreamUnreachable
from strop.proxy.settings import Settings


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


async def test_nobody_is_told_to_start_strops_own_engine(tmp_path: Path) -> None:
    """Where it doesn't listen, it is loading its model, or strop starts it again."""
    engine, _ = make(Settings(), tmp_path)

    with pytest.raises(UpstreamUnreachable) as caught:
        await engine.check()

    assert caught.value.message.endswith(
        "; strop starts it by itself; its log is engine.log in strop's home"
    )
