"""The engine that the settings name."""

from pathlib import Path

import engine_contract
import pytest
from running import settings_for

from strop.proxy import detection
from strop.proxy.configured_engine import make, name_of
from strop.proxy.errors import UpstreamUnreachable
from strop.proxy.settings import KINDS, Settings

ENGINES = [kind for kind in KINDS["engine.kind"].choices if kind]
MANUAL = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ENGINES)
def test_every_kind_has_a_driver_of_its_own_that_is_tried_and_described(
    kind: str, tmp_path: Path
) -> None:
    """The settings say which kinds there are; nothing else is forgotten when one is added."""
    url = "" if kind == "embedded" else "http://127.0.0.1:1"

    driver, _ = make(settings_for(url, kind=kind), tmp_path)

    assert kind == driver.label
    assert kind in {case.name.removesuffix("-fake") for case in engine_contract.CASES}
    assert f"\n| {kind} |" in MANUAL
    assert f"\n## {kind}\n" in MANUAL


def test_every_kind_but_strops_own_is_found_where_it_runs() -> None:
    """Its own strop starts itself."""
    assert set(ENGINES) == {"embedded", *detection._DOES}


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
