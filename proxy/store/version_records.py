"""Adapter versions as the store keeps them: plain values, never rows.

Knows nothing of files, engines or SQL.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

VersionState = Literal[
    "candidate",  # reserved; its folder is being written
    "ready",  # on disk, verified, may be activated
    "active",  # what unpinned requests get
    "retired",  # was active
    "rejected",  # the gate, the probe or the import refused it
    "missing",  # its folder is gone or broken
]
Origin = Literal["run", "import"]
EventKind = Literal[
    "created",
    "imported",
    "probed",
    "passed",
    "rejected",
    "activating",
    "activated",
    "activation_failed",
    "deactivated",
    "rolled_back",
    "unloaded",
    "stale",
    "missing",
    "found",
    "removed",
]
Verdict = Literal["ready", "rejected"]
Activating = Literal["activated", "rolled_back"]

BASE: Final = "base"
"""The name of the model without any adapter, where a version's id may stand."""


@dataclass(frozen=True, slots=True)
class Version:
    """An adapter version: `id` is `v` and its number, never used again.

    Attributes:
        parent: the version that it was trained on from; None for the base.
        base: the identity of the base (see `strop.adapters.identity`).
        run: the training run that made it; None where it was imported.
        stale: why it is stale (a rating that it or an ancestor learned from was taken back or
            changed); None while it isn't.
        is_kept: whether somebody said that retention must keep it.
        reason: what the gate had to say of it, or why it is rejected or missing.
        manifest: its manifest as JSON, `{}` until it is ready.
    """

    id: str
    num: int
    created_ms: int
    parent: str | None
    base: str
    run: str | None
    origin: Origin
    state: VersionState
    stale: str | None = None
    is_kept: bool = False
    reason: str | None = None
    manifest: bytes = b"{}"


@dataclass(frozen=True, slots=True)
class VersionEvent:
    """Something that happened to a version, or to the base: when, by whom, and how.

    `actor` is `run`, `api`, `cli`, `gate`, `watch`, `start` or `feedback`. `detail` is a JSON
    object: `from`, `to`, `reason`, `timings_ms`, `probe`, as far as they apply.
    """

    version: str
    created_ms: int
    kind: EventKind
    actor: str
    detail: bytes = b"{}"


@dataclass(frozen=True, slots=True)
class Activation:
    """Which version is active since when; `previous` is where a rollback goes, None for nowhere.

    Both may be `base`. `previous` is the version that was active before this one was activated and
    can still be: repeated rollbacks go further back, not to and fro. Before the first activation
    the base is active, since 0, by `start`. `below` is all that rollbacks can go back to, from the
    newest; what was rolled back is no part of it.
    """

    version: str
    previous: str | None
    created_ms: int
    actor: str
    below: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pairing:
    """An engine's own base, proven to be the one of an identity.

    `engine_digest` is what the engine says of its base; another one later unpairs it. `error` is
    the measured mean absolute difference of logprobs, in nats.
    """

    engine: str
    engine_digest: str
    base: str
    error: float
    created_ms: int


def version_id(num: int) -> str:
    """Return the id of the version of a number."""
    return f"v{num}"


def version_num(id_: str) -> int | None:
    """Return the number in a version's id; None where it isn't one, as `base` is none."""
    return int(id_[1:]) if re.fullmatch(r"v[1-9][0-9]{0,17}", id_) else None
