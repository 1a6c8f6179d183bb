"""A proxy behind a fake engine that loads adapters, with versions to swap. See `fake_adapters`."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import shelved
from fake_adapters import FakeAdapters
from fake_engine import FakeEngine
from running import Running, running, settings_for

from strop.adapters.library import Library
from strop.proxy.engines.base import AdaptersFolder
from strop.proxy.engines.vllm import Vllm
from strop.proxy.settings.settings import Adapters, Training
from strop.proxy.store.version_records import Version
from strop.proxy.upstream.upstream import Upstream
from strop.proxy.versions.probe_job import ProbeCommand
from strop.proxy.versions.swapping import Swapper


@dataclass
class Swapped:
    """A running proxy, its engine, and its versions on disk."""

    proxy: Running
    fake: FakeAdapters
    engine: FakeEngine
    library: Library

    @property
    def swapper(self) -> Swapper:
        """What activates."""
        return self.proxy.services.swapper

    async def publish(self, **how: Any) -> str:
        """Add a version."""
        return await shelved.publish(self.proxy.services.store, self.library, **how)

    async def version(self, version: str) -> Version:
        """Return a version's row."""
        row = await self.proxy.services.store.versions.get(version)
        assert row is not None
        return row

    async def active(self) -> str:
        """Return which version the store says is active."""
        return (await self.proxy.services.store.versions.activation()).version

    async def events(self, version: str) -> list[str]:
        """Return the kinds of a version's events, oldest first."""
        found = await self.proxy.services.store.versions.list_events(version)
        return [event.kind for event in reversed(found)]

    async def served(self, model: str = "tiny") -> str | None:
        """Return which version answers a request for `model`."""
        answer = await self.proxy.chat(model=model)
        assert 200 == answer.status_code, answer.text
        return answer.headers["x-strop-adapter"]


@contextlib.asynccontextmanager
async def swapped(
    home: Path,
    *,
    fake: FakeAdapters | None = None,
    engine: FakeEngine | None = None,
    ready: bool = True,
    num_adapters: int = 2,
    scores: bool = True,
    hold_s: float = 60.0,
    base: Path | None = None,
    num_kept: int = 10,
    health_interval_s: float = 0.05,
    server: dict[str, Any] | None = None,
    capture: dict[str, Any] | None = None,
    probe_command: ProbeCommand | None = None,
    training: Training | None = None,
) -> AsyncIterator[Swapped]:
    """Run a proxy behind a fake engine; behind `engine`, if one runs already.

    Its versions are of the base in the folder `base`, where one is given.
    """
    fake = fake or FakeAdapters()
    async with contextlib.AsyncExitStack() as stack:
        if engine is None:
            engine = await stack.enter_async_context(FakeEngine(fake))
        fake.has_one_slot = num_adapters == 1
        library_folder = (home / "adapters").absolute()
        driver = Vllm(
            Upstream(engine.url),
            adapters=AdaptersFolder(library_folder),
            num_adapters=num_adapters,
            scores=scores,
        )
        settings = replace(
            settings_for(
                engine.url,
                server=server,
                engine={"health_interval_s": health_interval_s},
                capture=capture,
                model={"base": str(base)} if base else {},
            ),
            adapters=Adapters(swap_hold_s=hold_s, keep=num_kept),
            training=training or Training(),
        )
        proxy = await stack.enter_async_context(
            running(settings, home, ready=ready, driver=driver, probe_command=probe_command)
        )
        yield Swapped(proxy, fake, engine, Library(library_folder))
