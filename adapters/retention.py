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
    is_kept: bool


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

    Never one that is active or was before it, is kept by somebody, is being written, is named, or
    is known to an engine (which may read its files again at any time). Of the rest, the newest
    `keep` stay.

    Args:
        versions: all versions there are.
        active: the active version's id, or `base`.
        previous: where a rollback goes.
        named: the versions that are still to be learned from, continued, or compared with.
        on_engines: the versions that any engine has loaded or registered, draining ones included.
        keep: how many to keep besides.
    """
    needed = {active, previous, *named, *on_engines}
    rest = [
        version
        for version in sorted(versions, key=lambda version: version.num)
        if version.state in _DELETABLE_STATES and not version.is_kept and version.id not in needed
    ]
    return tuple(version.id for version in rest[: max(len(rest) - keep, 0)])
