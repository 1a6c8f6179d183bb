"""What drivers find out of their engines, as values that another process can take over.

Finds nothing out: `claims` and the drivers do.
"""

from dataclasses import dataclass

from strop.proxy.engines.base import Capabilities, EngineState


@dataclass(frozen=True, slots=True)
class Findings:
    """What a driver has found out of its engine, for another driver of the same engine.

    Attributes:
        capabilities: what it can do; None where there was nothing to find out.
        shortfalls: what it claims and doesn't deliver.
        hides_ids: whether it leaves ids out where a client wants no reasoning.
        replicas: of each server, where there are several.
    """

    capabilities: Capabilities | None = None
    shortfalls: tuple[str, ...] = ()
    hides_ids: bool = False
    replicas: "tuple[ReplicaFindings, ...]" = ()


@dataclass(frozen=True, slots=True)
class ReplicaFindings:
    """The same of one of several servers, and whether requests may go to it; see `Replica`."""

    findings: Findings
    state: EngineState | None
    reason: str
    is_in: bool
    is_suspect: bool
