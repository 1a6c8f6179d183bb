"""A swapper that moves no traffic: it writes down what it is asked, in the store too."""

from strop.proxy.errors import ActivationFailed, Conflict, StropError
from strop.proxy.store.store import Store
from strop.proxy.versions.activation import Progress, Switched


class FakeSwapper:
    """Activates in the store alone.

    Attributes:
        activated: version and actor of each activation.
        rolled_back: actor and reason of each rollback.
        asked: how often anything was asked.
        error: what it raises in place of activating.
        detail: of the event that says that an activation failed.
        rival: what somebody else begins to activate just before it is asked.
    """

    def __init__(self, store: Store) -> None:
        self.can_activate = True
        self.progress: Progress | None = None
        self.activated: list[tuple[str, str]] = []
        self.rolled_back: list[tuple[str, str]] = []
        self.asked = 0
        self.error: StropError | None = None
        self.detail = b"{}"
        self.rival: Progress | None = None
        self._versions = store.versions

    async def activate(self, version: str, *, actor: str) -> Switched:
        """Activate a version."""
        await self._fail(version, actor)
        before = await self._versions.activation()
        await self._versions.activate(version, actor=actor)
        self.activated.append((version, actor))
        return Switched(version, before.version, {}, None)

    async def rollback(self, *, actor: str, reason: str = "") -> Switched:
        """Activate what was active before."""
        before = await self._versions.activation()
        assert before.previous is not None
        await self._fail(before.previous, actor)
        await self._versions.activate(before.previous, actor=actor, kind="rolled_back")
        self.rolled_back.append((actor, reason))
        return Switched(before.previous, before.version, {}, None)

    async def _fail(self, version: str, actor: str) -> None:
        self.asked += 1
        # A test may set another while it is written down.
        error = self.error
        if self.rival is not None:
            self.progress, self.rival = self.rival, None
            raise Conflict(f"{self.progress.version} is being activated")
        if isinstance(error, ActivationFailed):
            await self._versions.add_event(
                version, "activation_failed", actor=actor, detail=self.detail
            )
        if error is not None:
            raise error
