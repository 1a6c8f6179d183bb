"""Which adapter versions may be deleted. One pure decision; deletes nothing itself.

A LoRA version is whole, not a difference to its parent: no version needs its parent to be served.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

# A candidate is being written, and of a missing one there is nothing to delete.
_DELETABLE_STATES = frozenset({"ready", "retired", "rejected"})


@dataclass(frozen=True, slots=True)
class Held:
    """What retention looks at in a version; `state` is as in the store's records."""

    id: str
    num: int
    state: str
    parent: str | None
    is_kept: bool
    is_stale: bool


def removable(
    versions: Sequence[Held],
    *,
    active: str,
    previous: str | None,
    named: Collection[str],
    on_engines: Collection[str],
    keep: int,
) -> tuple[str, ...]:
    """Return the ids of the versions that may be deleted, oldest first.

    Never one that is active or was before it, is kept by somebody, is being written, sampled an
    answer whose rating is still to be learned from, or is known to an engine (which may read its
    files again at any time). While the active version is stale or gone, its nearest ancestor that
    is neither is kept too: from there it is trained anew. Of the rest, the newest `keep` stay.

    Args:
        versions: all versions there are.
        active: the active version's id, or `base`.
        previous: where a rollback goes.
        named: the versions that fresh ratings' answers came from.
        on_engines: the versions that any engine has loaded or registered, draining ones included.
        keep: how many to keep besides.
    """
    by_id = {version.id: version for version in versions}
    needed = {active, previous, _clean_ancestor(by_id, active), *named, *on_engines}
    rest = [
        version
        for version in sorted(versions, key=lambda version: version.num)
        if version.state in _DELETABLE_STATES and not version.is_kept and version.id not in needed
    ]
    return tuple(version.id for version in rest[: max(len(rest) - keep, 0)])


def _clean_ancestor(by_id: dict[str, Held], active: str) -> str | None:
    """Return the nearest ancestor of `active`, or itself, that is neither stale nor gone."""
    version = by_id.get(active)
    # A parent is always older, so this ends even where records are damaged.
    while version is not None and (version.is_stale or version.state == "missing"):
        parent = by_id.get(version.parent or "")
        version = parent if parent is not None and parent.num < version.num else None
    return None if version is None else version.id
