"""Adapter versions in a home, as a training run or an import would have left them there."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import fake_adapters

from strop.adapters import manifest
from strop.adapters.library import Library
from strop.adapters.manifest import Manifest
from strop.adapters.probe import Probe
from strop.proxy.store.store import Store
from strop.proxy.store.version_records import Verdict

BASE = "sha256:" + "b" * 64


def _write_fake(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"weights" * 100)


def copy_of(adapter: Path) -> Callable[[Path], None]:
    """Return what writes a copy of an adapter into a folder."""

    def write(folder: Path) -> None:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / name).write_bytes((adapter / name).read_bytes())

    return write


async def publish(
    store: Store,
    library: Library,
    *,
    parent: str | None = None,
    base: str = BASE,
    write: Callable[[Path], None] = _write_fake,
    probe: Probe | None = None,
    is_fake: bool = True,
    feedback: Sequence[tuple[str, int]] = (),
    run: str | None = None,
    state: Verdict = "ready",
) -> str:
    """Add a version and return its id; fake ones get the probe of their fake weights."""
    row = await store.versions.reserve(base=base, parent=parent, run=run)
    if is_fake and probe is None:
        before = library.path_of(parent) if parent else None
        probe = fake_adapters.probe_of(library.path_of(row.id), before)
    made = Manifest(
        version=row.id,
        base=base,
        origin="run",
        parent=parent,
        run=run,
        feedback=tuple(feedback),
        created_ms=time.time_ns() // 1_000_000,
        probe=probe,
    )
    folder = library.create(row.id, write, made)
    written = (folder / manifest.FILE).read_bytes()
    await store.versions.publish(row.id, written, feedback, state=state, actor="run")
    return row.id
