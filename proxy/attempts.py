"""The attempts at one completion: which server of an engine is asked, and when once more.

Relays no answer, and does not know how a call ends.
"""

import msgspec

from strop.proxy.call import Call, exchange_of
from strop.proxy.engines.base import Ask, Engine
from strop.proxy.errors import EngineNotReady, StropError, UpstreamUnreachable
from strop.proxy.serving import Serving
from strop.proxy.upstream.exchange import Exchange


class Attempts:
    """Asks the engine that serves.

    Args:
        serving: the engine, and its versions.
        is_captured: whether answers are recorded, so that a snapshot is of use.
    """

    def __init__(self, serving: Serving, *, is_captured: bool) -> None:
        self._serving = serving
        self._is_captured = is_captured

    def ask(self, came: Ask, served: str) -> Ask:
        """Return what came, as the engine is asked for it, under its name for the version."""
        return msgspec.structs.replace(came, served=served, is_captured=self._is_captured)

    async def reached(self, call: Call) -> Exchange:
        """Start the exchange, with another server where there are several and one isn't there.

        Raises:
            UpstreamError: none can be reached, or one broke off.
        """
        tried: set[Engine] = set()
        while True:
            try:
                await call.exchange.start()
            except UpstreamUnreachable:
                # Nothing was sent yet.
                tried.add(call.engine)
                self._serving.suspect(call.engine)
                other = self._serving.engine.pick(call.incoming.ask, call.incoming.session)
                if other in tried or call.gave_up is not None:
                    raise
                self._ask_of(call, other)
            else:
                return call.exchange

    async def again(self, call: Call) -> Exchange:
        """Return the exchange with the client's answer: another, if the engine lost the version.

        Raises:
            EngineNotReady: it can't serve it any more.
            UpstreamError: it can't be reached now.
        """
        keeper, version = self._serving.keeper, call.served.version
        # An engine with one slot is loaded when nothing runs: it would wait for this very call.
        leases, held = self._serving.leases, call.served
        leases.release(held)
        try:
            if keeper is None or not await keeper.reload(version, call.exchange.sent_at):
                return call.exchange
        except StropError as error:
            raise EngineNotReady(
                f"the engine has lost {version}, and {error.message}; try again soon"
            ) from error
        finally:
            leases.take(held)
        if call.gave_up is None:
            incoming = call.incoming
            call.served = self._serving.alias.versions.get(version, call.served)
            self._ask_of(call, self._serving.engine.pick(incoming.ask, incoming.session))
            await self.reached(call)
        return call.exchange

    def _ask_of(self, call: Call, engine: Engine) -> None:
        """Let `engine` answer the call, by the name under which it serves its version now."""
        call.engine = engine
        call.plan = engine.plan(self.ask(call.incoming.ask, call.served.name))
        call.exchange.close()
        call.exchange = exchange_of(call.incoming, engine, call.plan)
