"""The engine that the settings name."""

from pathlib import Path

import engine_contract
import pytest
from running import settings_for

from strop.proxy import detection
from strop.proxy.configured_engine import make, name_of, with_own_key
from strop.proxy.errors import UpstreamUnreachable
from strop.proxy.settings.settings import KINDS, Settings

ENGINES = [kind for kind in KINDS["engine.kind"].choices if kind]
MANUAL = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ENGINES)
async def test_every_kind_has_a_driver_of_its_own_that_is_tried_and_described(
    kind: str, tmp_path: Path
) -> None:
    """The settings say which kinds there are; nothing else is forgotten when one is added."""
    url = "" if kind == "embedded" else "http://127.0.0.1:1"

    driver, process = make(settings_for(url, kind=kind), tmp_path)
    if process is not None:
        await process.stop()

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
    engine, process = make(Settings(), tmp_path)
    assert process is not None

    with pytest.raises(UpstreamUnreachable) as caught:
        await engine.check()
    await process.stop()

    assert caught.value.message.endswith(
        "; strop starts it by itself; its log is engine.log in strop's home"
    )


def test_only_strops_own_engine_gets_a_key_and_a_new_one_at_each_start() -> None:
    """Another's is what a person has set; that of strop's own is nobody's to know or to set."""
    own = settings_for("", kind="embedded", engine={"key": "set by a person"})
    other = settings_for("http://127.0.0.1:1", engine={"key": "set by a person"})

    keys = {with_own_key(one).engine.key for one in (own, own, Settings())}

    assert other == with_own_key(other)
    assert 3 == len(keys - {"", own.engine.key})
    assert not any(key in repr(with_own_key(own)) for key in keys)
