"""What the process that decides tells its workers: how to begin, and what they call it for.

Decides nothing itself: the parts of `Control` do.
"""

from strop.proxy import flights
from strop.proxy.parts import Control
from strop.proxy.routes import routing
from strop.proxy.workers import requests
from strop.proxy.workers.crew import Crew, Member
from strop.proxy.workers.frames import (
    Answer,
    Begin,
    Bring,
    Call,
    Done,
    Key,
    KeyOf,
    Reload,
    Reloaded,
    Request,
)


class Desk:
    """Answers the workers.

    Args:
        control: the parts that decide.
        crew: the workers.
    """

    def __init__(self, control: Control, crew: Crew) -> None:
        self._control = control
        self._crew = crew
        self._routes = routing.make_control(control)

    def begin(self, number: int) -> Begin:
        """Return what to tell the worker of this number first."""
        control = self._control
        turn, view = self._crew.present()
        return Begin(
            number=number,
            settings=control.settings,
            home=str(control.home),
            engine_url=control.serving.engine.upstream.url,
            turn=turn,
            view=view,
        )

    async def answer(self, member: Member, call: Call) -> Answer:
        """Answer a worker's call; raises StropError as what it calls does."""
        keeper = self._control.swapper.keeper
        match call:
            case Bring(version):
                await keeper.bring(version)
                return Done()
            case Reload(version, asked_at):
                return Reloaded(await keeper.reload(version, asked_at))
            case KeyOf(completion):
                return Key(await self._crew.key_of(completion, asker=member))
            case Request():
                return await requests.answered(self._routes, call)
        raise TypeError(f"expected a worker's call, got {type(call).__name__}")

    async def withdraw_lost(self) -> None:
        """Withdraw the ratings that wait for a completion which died with its worker.

        Raises:
            StropError: who else may have it can't be asked, or the store takes no writes.
        """
        await flights.withdraw_lost(self._control.store, self._crew.key_of)
