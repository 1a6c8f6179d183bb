"""Versions that learned from what is deleted: what a person can do about them.

Asks the store, and prints nothing. Knows no command but by its words.
"""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from strop.proxy.command_line import to_copy
from strop.proxy.home import serving
from strop.proxy.store.version_records import BASE

if TYPE_CHECKING:
    from strop.proxy.store.store import Store


async def advice(store: "Store", learners: Sequence[str], home: Path) -> AsyncIterator[str]:
    """Yield which versions may hold what was deleted, and what to type, in order, to be rid of it.

    Not each of them is stale: what was made from a stale one isn't. Nor may all be removed as they
    are.
    """
    yield f"{', '.join(learners)} learned from it, and may hold some of it until removed."
    if serving(home) is None:
        yield f"That needs a strop that serves: {to_copy('serve', home)}"
    run = await store.runs.unfinished()
    if run is not None and run.parent in learners:
        yield f"{run.id} continues {run.parent}; stop it: {to_copy(f'runs cancel {run.id}', home)}"
    active = (await store.versions.activation()).version
    if active in learners:
        clean = await _clean_ancestor(store, active, learners)
        relearns = clean == await store.versions.clean_ancestor(active)
        train = to_copy("train --relearn" if relearns else f"train --parent {clean}", home)
        activate = to_copy(f"adapters activate {clean}", home)
        yield f"{active} is active; make another without it: {train}, or go back: {activate}"
    for one in learners:
        row = await store.versions.get(one)
        if row is not None and row.is_kept:
            yield f"{one} is kept; let it go: {to_copy(f'adapters keep {one} --release', home)}"
    what = "it" if len(learners) == 1 else "each"
    yield f"Then remove {what}: {to_copy(f'adapters remove {learners[0]}', home)}"


async def _clean_ancestor(store: "Store", version: str, learners: Sequence[str]) -> str:
    """Return the newest ancestor that can be continued, and is none of `learners`."""
    clean = await store.versions.clean_ancestor(version)
    while clean in learners:
        row = await store.versions.get(clean)
        clean = await store.versions.clean_ancestor((row and row.parent) or BASE)
    return clean
