"""The job that makes an imported adapter's probe, and what is said where it can't."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fake_adapters
import fake_probe
import pytest
from store_values import MODEL, OTHER_MODEL, database_in
from waiting import until

from strop.adapters import manifest, probe_codec
from strop.adapters.library import Library
from strop.proxy import run_requests
from strop.proxy.child import Child
from strop.proxy.settings.settings import Training
from strop.proxy.store.store import Store
from strop.proxy.versions.probe_job import ProbeJob, command
from strop.proxy.versions.shelf import Shelf


def job(home: Path, behaviour: str, probe: Path | None = None) -> ProbeJob:
    """A job that behaves so."""
    return ProbeJob(home, Training(), fake_probe.command(behaviour, probe))


async def test_it_gives_the_probe_that_its_process_wrote(tmp_path: Path) -> None:
    """As it was written, every number exact."""
    probe = fake_adapters.probe_of(tmp_path / "v1", None)
    written = tmp_path / "written.json"
    written.write_text(json.dumps(probe_codec.to_json(probe)))

    assert probe == await job(tmp_path, "writes", written).make(tmp_path, tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ("refuses", fake_probe.NO_PROBE),
        ("dies", "its process ended with the status 3"),
        ("trains", run_requests.AWAITS_RUN),
        ("writes", "no probe could be made: a probe must be"),
    ],
)
async def test_why_there_is_none_is_said(tmp_path: Path, behaviour: str, says: str) -> None:
    """The process's last words, else its status, else what is wrong with what it wrote."""
    broken = tmp_path / "broken.json"
    broken.write_text("[]")

    found = await job(tmp_path, behaviour, broken).make(tmp_path, tmp_path, tmp_path)

    assert isinstance(found, str)
    assert found.startswith(says)


async def test_without_its_base_no_process_is_started(tmp_path: Path) -> None:
    """There is nothing to load."""
    assert run_requests.NO_BASE == await job(tmp_path, "waits").make(None, tmp_path, tmp_path)


async def test_its_process_ends_when_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller was cancelled: strop stops."""
    started: list[Child] = []
    start = Child.start

    async def noted(*arguments: Any, **options: Any) -> Child:
        started.append(await start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(Child, "start", noted)
    making = asyncio.create_task(job(tmp_path, "waits").make(tmp_path, tmp_path, tmp_path))
    await until((tmp_path / "begun").exists)

    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making

    (child,) = started
    assert -15 == await child.wait()


class OneAtATime:
    """Makes no probe, and notes whether it was asked for one while it made another."""

    def __init__(self) -> None:
        self.came = asyncio.Event()
        self.num_now = 0
        self.most = 0

    async def make(self, base: Path | None, adapter: Path, scratch: Path) -> str:  # noqa: ARG002
        """Give the next one time to come."""
        self.num_now += 1
        self.most = max(self.most, self.num_now)
        if self.num_now > 1:
            self.came.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await self.came.wait()
        self.num_now -= 1
        return fake_probe.NO_PROBE


async def test_imports_wait_for_each_other_s_probes(
    tmp_path: Path, qwen3: Path, peft_a: Path
) -> None:
    """The second job would find the first at work, and give up."""
    store = await Store.open(database_in(tmp_path), synchronous="off")
    probes = OneAtATime()
    shelf = Shelf(
        store,
        Library(tmp_path / "adapters"),
        find_base=lambda: qwen3,
        probes=probes,  # type: ignore[arg-type]  # as far as it is asked
        num_kept=10,
        converted=tmp_path / "adapters-mlx",
    )

    made = await asyncio.gather(
        *(shelf.import_adapter(peft_a, base=MODEL, actor="cli") for _ in range(2))
    )
    await store.close()

    assert {"v1", "v2"} == {one.id for one in made}
    assert 1 == probes.most


@pytest.fixture
async def awaiting(tmp_path: Path, qwen3: Path, peft_a: Path) -> AsyncIterator[tuple[Store, Shelf]]:
    """A strop that has started after v1 was imported while a run trained."""
    store = await Store.open(database_in(tmp_path), synchronous="off")
    busy, free = (
        Shelf(
            store,
            Library(tmp_path / "adapters"),
            find_base=lambda: qwen3,
            probes=job(tmp_path, behaviour),
            num_kept=10,
            converted=tmp_path / "adapters-mlx",
        )
        for behaviour in ("trains", "refuses")
    )
    await busy.import_adapter(peft_a, base=MODEL, actor="cli")
    await free.settle()
    yield store, free
    await store.close()


async def test_a_probe_is_awaited_until_its_own_base_is_served(
    awaiting: tuple[Store, Shelf],
) -> None:
    """Of another, it would say nothing."""
    store, shelf = awaiting

    reasons = []
    for base in (OTHER_MODEL, MODEL):
        await shelf.make_probes(base=base)
        (row,) = await store.versions.list()
        reasons.append((row.reason, shelf.awaits_probes))

    assert [(run_requests.AWAITS_RUN, True), (fake_probe.NO_PROBE, False)] == reasons


async def test_what_is_broken_when_its_probe_is_to_be_made_is_missing(
    awaiting: tuple[Store, Shelf],
) -> None:
    """No probe is made of what nobody checked, and it is not tried again."""
    store, shelf = awaiting
    (shelf.path_of("v1") / "adapter_model.safetensors").write_bytes(b"something else")

    for _ in range(2):
        await shelf.make_probes(base=MODEL)

    (row,) = await store.versions.list()
    assert ("missing", False) == (row.state, shelf.awaits_probes)
    assert "was changed" in (row.reason or "")


async def test_a_probe_that_only_the_folder_has_makes_no_other_version_of_it(
    awaiting: tuple[Store, Shelf], tmp_path: Path
) -> None:
    """It was written, and strop killed before it said so; then the folder was away for a while."""
    store, shelf = awaiting
    folder, away = shelf.path_of("v1"), tmp_path / "away"
    Library(folder.parent).add_probe("v1", fake_adapters.probe_of(folder))

    folder.rename(away)
    await shelf.settle()
    (lost,) = await store.versions.list()
    away.rename(folder)
    await shelf.settle()
    await shelf.make_probes(base=MODEL)

    (row,) = await store.versions.list()
    assert ("missing", "ready", None) == (lost.state, row.state, row.reason)
    assert manifest.loads(row.manifest).probe is not None


def test_it_computes_as_the_settings_for_training_say(tmp_path: Path) -> None:
    """With the same backend, on the same device, the base held in as many bits."""
    settings = Training(backend="torch", device="cpu", quantize_base=True)

    words = command(ProbeJob(tmp_path, settings), Path("base"), Path("lora"), Path("out"))

    assert ["--backend", "torch", "--device", "cpu", "--quantize-base"] == words[-5:]
    assert str(tmp_path / "runs") in words
