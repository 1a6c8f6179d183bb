"""The engine that serves, whether it is ready, and what its model name means now.

Watches the engine in the background. Does not start or stop it, loads nothing, and relays nothing.
"""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, replace
from typing import Protocol

from strop.proxy.alias import BASE, Alias, Leases
from strop.proxy.engines.base import Engine, EngineState
from strop.proxy.engines.claims import Verification
from strop.proxy.engines.findings import Findings
from strop.proxy.errors import EngineNotReady, StropError
from strop.proxy.settings.settings import Settings

log = logging.getLogger(__name__)

_RETRY_FIRST_S = 0.25
_RETRY_MOST_S = 5.0
_UNASKED = "it has not answered yet"
# One may be due to what was asked; clients ask again twice.
_NUM_FAILURES = 3


class Keeper(Protocol):
    """Who makes the engine serve the versions that it should."""

    async def keep(self, state: EngineState) -> None:
        """Look at what the engine holds, which has just answered, and mend it.

        Raises:
            StropError: the active version can't be served.
        """
        ...

    async def bring(self, version: str) -> None:
        """Return when `version` is served beside the active one.

        Raises:
            StropError: it can't be.
        """
        ...

    async def reload(self, version: str, asked_at: float) -> bool:
        """Say whether a request that the engine had no `version` for is worth sending again.

        If the engine has lost it since, it is loaded and proven first. `asked_at` is the monotonic
        time at which the request was sent.

        Raises:
            StropError: it was lost and can't be loaded.
        """
        ...


class Followers(Protocol):
    """Other processes, which serve what this one decides."""

    def tell(self) -> None:
        """Let them know that what is served may be another now."""
        ...

    async def have_moved(self) -> None:
        """Return when requests to any of them get what this one was told to serve last."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """What another process has to know to serve the same.

    `alias` is None while the engine has never answered; the rest is as in `Serving`.
    """

    alias: Alias | None
    state: EngineState | None
    reason: str
    base: str | None
    findings: Findings


class Serving:
    """One engine and its alias.

    Args:
        engine: the driver.
        settings: what the model is called, and how often a ready engine is checked.
        active: the version that is to be served, once the engine holds it.
        leases: counts the requests; without it, those of this process alone.

    Attributes:
        is_answering: whether the engine answered its last check, whatever it holds.
        base: the identity of the base that answers; None where it isn't known.
        why_unknown: why it isn't any more, where it was: what a person has to do. Else empty.
        keeper: who makes the engine serve what it should.
        followers: the processes that serve, where this one only decides.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        active: str = BASE,
        leases: Leases | None = None,
    ) -> None:
        self.engine = engine
        self.leases = leases or Leases()
        self.state: EngineState | None = None
        self.is_answering = False
        self.reason = _UNASKED
        self.base: str | None = None
        self.why_unknown = ""
        self.keeper: Keeper | None = None
        self.followers: Followers | None = None
        self._model = settings.model
        self._check_interval_s = settings.engine.health_interval_s
        # What is not the person's own model has no versions of it.
        self._first = active if engine.adapters is not None else BASE
        self._alias: Alias | None = None
        self._said: EngineState | None = None
        self._identity: str | None = None
        self._identified: EngineState | None = None
        self._verification = Verification()
        self._num_failures: dict[Engine, int] = {}
        self._changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._let_go: asyncio.Event | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the engine answered its last check, and holds the active version."""
        return self.state is not None and self._alias is not None and self._alias.is_served

    @property
    def failure(self) -> str:
        """Why the engine answers no request, though it says that it is ready; empty where it does.

        It is in use all the same: there is none better.
        """
        failures = [replica.failure for replica in self.engine.replicas if replica.is_in]
        return self._verification.failure or (failures[0] if failures and all(failures) else "")

    @property
    def alias(self) -> Alias:
        """What the model name means now.

        Raises:
            EngineNotReady: the engine has never answered, so its models aren't known.
        """
        if self._alias is None:
            raise EngineNotReady(f"the engine is not ready: {self.reason}; try again soon")
        return self._alias

    def put(self, alias: Alias) -> None:
        """Let the model name mean `alias` from here on."""
        self._alias = alias
        self.note_change()

    async def have_moved(self) -> None:
        """Return when the model name means the same in every process."""
        if self.followers is not None:
            await self.followers.have_moved()

    def view(self) -> View:
        """Return what another process has to know."""
        return View(self._alias, self.state, self.reason, self.base, self.engine.findings())

    def adopt(self, view: View) -> None:
        """Serve what another process has decided."""
        self.engine.adopt(view.findings)
        self._alias, self.base = view.alias, view.base
        self.state, self.reason = view.state, view.reason
        self.note_change()

    def identify(self, base: str | None) -> None:
        """Note the identity of the base that the engine serves now; None where it isn't known.

        It is that of no other model that the engine serves later.
        """
        self._identity, self._identified = base, self._said
        self.base, self.why_unknown = base, ""
        if self._alias is not None:
            self.put(self._alias.identified(base))

    @property
    def is_held(self) -> bool:
        """Whether new requests have to wait."""
        return self._let_go is not None

    def hold(self) -> None:
        """Let new requests wait until `let_go`."""
        self._let_go = self._let_go or asyncio.Event()

    def let_go(self) -> None:
        """Let waiting requests go on."""
        if self._let_go is not None:
            self._let_go.set()
            self._let_go = None

    async def wait_until_let_go(self) -> None:
        """Return when new requests need not wait."""
        while self._let_go is not None:
            await self._let_go.wait()

    def suspect(self, engine: Engine | None = None) -> None:
        """Check the engine now: a request could not reach it, or not the one of several given."""
        if engine is not None:
            self.engine.suspect(engine)
            self._verification.doubt()
            self.note_change()
        self._wake.set()

    def note_end(self, engine: Engine, *, has_failed: bool) -> None:
        """Note whether an engine has failed at a request; who does so repeatedly is suspect."""
        if not has_failed:
            self._num_failures.pop(engine, None)
            return
        num_failures = self._num_failures.get(engine, 0) + 1
        self._num_failures[engine] = num_failures
        if num_failures % _NUM_FAILURES == 0:
            self.suspect(engine)

    async def wait_until_asked(self, known: str = _UNASKED) -> None:
        """Return once a check of the engine found it ready, or not for another than `known`."""
        while not self.is_ready and self.reason == known:
            self._changed.clear()
            await self._changed.wait()

    async def wait_until_ready(self) -> None:
        """Return once the engine has answered a check and holds the active version."""
        while not self.is_ready:
            self._changed.clear()
            await self._changed.wait()

    async def watch(self) -> None:
        """Check the engine again and again, sooner while it is not ready. Runs until cancelled."""
        wait_s = _RETRY_FIRST_S
        while True:
            # Before the check: what is suspected during it may have come too late for it.
            self._wake.clear()
            was_ready = self.is_ready
            await self._check()
            if self.is_ready:
                wait_s = self._check_interval_s
            else:
                wait_s = _RETRY_FIRST_S if was_ready else min(2 * wait_s, _RETRY_MOST_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def _check(self) -> None:
        was_ready, was_well = self.is_ready, not self.failure
        try:
            state = await self._ask()
            self._answered(state)
            if self.keeper is not None:
                await self.keeper.keep(state)
        except StropError as error:
            self._not_ready(error.message, was_ready=was_ready)
        except Exception as error:
            # The edge of a background task: a watcher that ends would never see it ready again.
            log.exception("the engine's answer could not be read")
            self._not_ready(f"its answer could not be read ({error})", was_ready=was_ready)
        else:
            self.state = state
            if self.is_ready and not (was_ready and was_well):
                served = self.alias.active
                extra = {"engine": self.engine.label, "model": served.name}
                if not self.failure:
                    log.info("engine ready", extra=extra)
                elif not was_ready:
                    extra["reason"] = self.failure
                    log.warning("engine in use, though it fails", extra=extra)
            self.note_change()

    async def _ask(self) -> EngineState:
        try:
            state = await self.engine.check()
        except BaseException:
            self._verification.forget()
            self.is_answering = False
            raise
        self.is_answering = True
        await self._verification.attempt(self.engine, state.models[0])
        return state

    def _answered(self, state: EngineState) -> None:
        before, self._said = self._said, state
        if self._alias is None or before is None or _named(before) != _named(state):
            former = self._alias
            self.why_unknown = self._why_unknown(state)
            self.base = None if self.why_unknown else self._identity
            alias = Alias.of_base(
                self._model.name,
                state.models,
                synonyms=state.synonyms,
                accepts_any=self._model.accept_any,
                active=self._first if former is None else former.active.version,
                base=self.base,
            )
            if former is not None and alias.base == former.base:
                # Another model came or went beside it; what is loaded of this one stays.
                alias = replace(former, others=alias.others)
            else:
                if alias.name in state.models[1:]:
                    extra = {"model": alias.base.name, "answers_as": alias.name}
                    log.warning("model.name hides another of the engine's models", extra=extra)
                if former is not None:
                    extra = {"model": alias.base.name, "before": former.base.name}
                    if self.why_unknown:
                        extra["reason"] = self.why_unknown
                    log.warning("the engine serves another model", extra=extra)
                if self.keeper is not None and self.engine.capabilities.adapters == 1:
                    # What its one slot holds is not known yet.
                    alias = alias.serving({})
            self.put(alias)

    def _why_unknown(self, state: EngineState) -> str:
        """Return why what was found of the engine's base says nothing of the one it serves now.

        Empty where it does: by the engine's better word, where it has one, else by its name.
        """
        known = self._identified
        if self._identity is None or known is None:
            return ""
        (was, *_), (now, *_) = known.models, state.models
        digests = {known.digest, state.digest}
        if None not in digests and (now != was or not self.engine.replicas):
            is_same = known.digest == state.digest
        else:
            # Each of several engines may have a word of its own for the same weights.
            is_same = now == was
        if is_same:
            return ""
        other, former = (now, was) if now != was else (f"another {now}", "the one before")
        return (
            f"the engine serves {other} now, which is not known to be model.base, as {former} was:"
            f" let it serve {former} again, or start strop again with --model and model.base of the"
            " one that is to learn"
        )

    def _not_ready(self, reason: str, *, was_ready: bool) -> None:
        is_new = self._alias is not None and reason != self.reason
        if was_ready or is_new:
            log.warning("engine not ready", extra={"engine": self.engine.label, "reason": reason})
        if self._alias is not None and not self._alias.is_served:
            self._alias = replace(self._alias, why_not=reason)
        self.state, self.reason = None, reason
        self.note_change()

    def note_change(self) -> None:
        """Let whoever waits for a change, or follows, look again."""
        self._changed.set()
        if self.followers is not None:
            self.followers.tell()


def _named(state: EngineState) -> tuple[tuple[str, ...], str | None]:
    """Return what tells whether an engine serves the same as before."""
    return state.models, state.digest
