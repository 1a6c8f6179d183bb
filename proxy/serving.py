"""The engine that serves, whether it is ready, and what its model name means now.

Watches the engine in the background. Does not start or stop it, and relays nothing.
"""

import asyncio
import contextlib
import logging

from strop.proxy.alias import Alias, Leases
from strop.proxy.engines.base import Engine, EngineState
from strop.proxy.errors import EngineNotReady, StropError

log = logging.getLogger(__name__)

_RETRY_FIRST_S = 0.25


class Serving:
    """One engine and its alias.

    Args:
        engine: the driver.
        model_name: the public model name; empty for the engine's own.
        accepts_any: whether unknown names are served too.
        check_interval_s: seconds between two checks of a ready engine.
    """

    def __init__(
        self, engine: Engine, *, model_name: str, accepts_any: bool, check_interval_s: float
    ) -> None:
        self.engine = engine
        self.leases = Leases()
        self.state: EngineState | None = None
        self.reason = "it has not answered yet"
        self._model_name = model_name
        self._accepts_any = accepts_any
        self._check_interval_s = check_interval_s
        self._alias: Alias | None = None
        self._models: tuple[str, ...] = ()
        self._changed = asyncio.Event()
        self._wake = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether the engine answered its last check."""
        return self.state is not None

    @property
    def alias(self) -> Alias:
        """What the model name means now.

        Raises:
            EngineNotReady: the engine has never answered, so its models aren't known.
        """
        if self._alias is None:
            raise EngineNotReady(
                f"the engine at {self.engine.upstream.url} is not ready: {self.reason}; try again"
                " soon"
            )
        return self._alias

    def suspect(self) -> None:
        """Check the engine now: a request could not reach it."""
        self._wake.set()

    async def wait_until_ready(self) -> None:
        """Return once the engine has answered a check."""
        while not self.is_ready:
            self._changed.clear()
            await self._changed.wait()

    async def watch(self) -> None:
        """Check the engine again and again, sooner while it is not ready. Runs until cancelled."""
        wait_s = _RETRY_FIRST_S
        while True:
            try:
                self._ready(await self.engine.check())
            except StropError as error:
                self._not_ready(error.message)
            except Exception as error:
                # The edge of a background task: a watcher that ends would never see it ready again.
                log.exception("the engine's answer could not be read")
                self._not_ready(f"its answer could not be read ({error})")
            wait_s = self._check_interval_s if self.is_ready else min(2 * wait_s, 5.0)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait_s)

    def _ready(self, state: EngineState) -> None:
        if self._alias is None or self._models != state.models:
            self._models = state.models
            self._alias = Alias.of_base(
                self._model_name, state.models, accepts_any=self._accepts_any
            )
        if self.state is None:
            model = self._alias.active.name
            log.info("engine ready", extra={"engine": self.engine.label, "model": model})
        self.state = state
        self._changed.set()

    def _not_ready(self, reason: str) -> None:
        if self.state is not None:
            log.warning("engine not ready", extra={"engine": self.engine.label, "reason": reason})
        self.state, self.reason = None, reason
        self._changed.set()
