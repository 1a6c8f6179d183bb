"""What the drivers of one server have in common: there is nothing to choose between.

Knows no engine.
"""

from collections.abc import Mapping
from typing import Self

from strop.proxy.engines.base import Ask
from strop.proxy.engines.calls import NO_COUNT
from strop.proxy.engines.findings import Findings
from strop.proxy.engines.replica import Replica
from strop.proxy.errors import NotFound


class SingleServer:
    """The part of an `Engine` that only several servers behind one name need."""

    shortfalls: tuple[str, ...] = ()
    replicas: tuple[Replica, ...] = ()

    def pick(self, ask: Ask, session: str | None) -> Self:  # noqa: ARG002
        """Return this one."""
        return self

    def suspect(self, engine: object) -> None:
        """Do nothing: there is no other to prefer."""

    async def count_prompt(self, served: str, chat: Mapping[str, object]) -> int:  # noqa: ARG002
        """Raise NotFound: most engines count what they have read, not what they would read."""
        raise NotFound(NO_COUNT)

    async def verify(self, model: str) -> None:
        """Claim nothing that would have to be found out."""

    def findings(self) -> Findings:
        """Return nothing: there was nothing to find out."""
        return Findings()

    def adopt(self, findings: Findings) -> None:
        """Do nothing: there is nothing to know."""
