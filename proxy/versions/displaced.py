"""The version that had to leave for another base, and serves again once its own is back.

Reads the store; activates nothing: `keeping` does.
"""

from typing import Final

import orjson

from strop.proxy.store.version_records import BASE
from strop.proxy.store.version_store import VersionStore

START: Final = "start"
"""Who activates the base in the place of a version of another one, and that version again."""


async def to_serve(versions: VersionStore) -> str:
    """Return what a start is to serve where the engine has its base: see `displaced`."""
    return await displaced(versions) or (await versions.activation()).version


async def to_continue(versions: VersionStore, base: str) -> str:
    """Return the version that a run of the base with this identity continues, unless told.

    It is the active one; or the one that a start with that base would activate again.
    """
    version = await displaced(versions)
    row = await versions.get(version) if version is not None else None
    if row is not None and row.base == base and row.state != "missing":
        return row.id
    return (await versions.activation()).version


async def displaced(versions: VersionStore) -> str | None:
    """Return the version that the base stands in for, until its own base is served again.

    None where there is none: it was removed, or somebody has chosen what is to serve since.
    """
    if (await versions.activation()).version != BASE:
        return None
    # They say more than the activation: that a person has chosen the base while it was active.
    chosen = await versions.switch_to(BASE)
    if chosen is None or chosen.actor != START:
        return None
    version = str(orjson.loads(chosen.detail)["from"])
    return version if await versions.get(version) is not None else None
