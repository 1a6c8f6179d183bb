"""Versions in a home before strop starts, as training runs would have left them: with probes.

Starts no server.
"""

import asyncio
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from strop.adapters import manifest
from strop.adapters.identity import identify
from strop.adapters.library import Library
from strop.adapters.manifest import Manifest
from strop.adapters.probe import Probe
from strop.proxy.store import layout
from strop.proxy.store.store import Store
from strop.training import make_probe
from strop.training.backends import open_policy
from strop.training.backends.base import BASE
from strop.training.tokenizer import BaseTokenizer

_TOPICS = (
    "a train",
    "the Moon",
    "a recipe",
    "my order",
    "a bicycle",
    "Hamlet",
    "a flat",
    "17 * 23",
)


def probes_of(base: Path, adapters: Sequence[Path]) -> list[Probe]:
    """Return the probe of each adapter, as a run makes it: 288 tokens after eight prompts."""
    policy, tokenizer = open_policy(base), BaseTokenizer(base)
    prompts = [
        tokenizer.encode_chat({"messages": [{"role": "user", "content": f"Tell me of {topic}."}]})
        for topic in _TOPICS
    ]
    return [make_probe.make(policy, BASE, prompts, candidate=adapter) for adapter in adapters]


def publish(home: Path, base: Path, adapters: Sequence[Path], probes: Sequence[Probe]) -> list[str]:
    """Add the adapters to a new home as versions that are `ready`; return their ids."""
    home.mkdir(mode=0o700, parents=True)
    return asyncio.run(_publish(home, base, adapters, probes))


async def _publish(
    home: Path, base: Path, adapters: Sequence[Path], probes: Sequence[Probe]
) -> list[str]:
    identity = identify(base, cache=None)
    library = Library(home / layout.ADAPTERS)
    store = await Store.open(home / layout.DATABASE)
    try:
        ids = []
        for adapter, made in zip(adapters, probes, strict=True):
            row = await store.versions.reserve(base=identity)
            described = Manifest(
                version=row.id,
                base=identity,
                origin="run",
                created_ms=time.time_ns() // 1_000_000,
                probe=made,
            )

            def copy(folder: Path, adapter: Path = adapter) -> None:
                shutil.copytree(adapter, folder, dirs_exist_ok=True)

            folder = library.create(row.id, copy, described)
            written = (folder / manifest.FILE).read_bytes()
            await store.versions.publish(row.id, written, state="ready", actor="bench")
            ids.append(row.id)
        return ids
    finally:
        await store.close()
