"""A home with recorded completions, for commands to be run on."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

from routes_app import completion

from strop.proxy.store.records import Completion
from strop.proxy.store.store import Store


def empty_home(folder: Path) -> Path:
    """Make a home below `folder`, with an empty store."""
    home = folder / "home"
    home.mkdir()
    record(home)
    return home


def record(home: Path, *made: dict[str, Any]) -> list[str]:
    """Put completions into the home's store, one after the other; return their ids."""
    completions = [completion(**one) for one in made]
    asyncio.run(_commit(home, completions))
    return [one.id for one in completions]


async def _commit(home: Path, completions: list[Completion]) -> None:
    store = await Store.open(home / "strop.db")
    try:
        for one in completions:
            await store.commit_completion(partial(_same, one), 1000)
    finally:
        await store.close()


def _same(made: Completion) -> Completion:
    return made
