"""What the process that decides and a worker say to each other, as values.

Knows no wire, and nobody who says it. A frame is a note, a call, or the answer to a call.
"""

from typing import Final

import msgspec

from strop.proxy.errors import StropError
from strop.proxy.serving import View
from strop.proxy.settings.settings import Settings
from strop.proxy.store.records import StoreHealth

Held = dict[str, tuple[int, float]]
"""For each version: how many requests of a worker hold it, and since when none has (monotonic)."""


class Begin(msgspec.Struct, frozen=True, tag=True):
    """To a worker, first of all: what it is, and what to serve.

    Attributes:
        number: which worker it is, from 1 on.
        settings: all of them.
        home: strop's home.
        engine_url: where the engine listens.
        turn: the number of the view.
        view: the present one.
    """

    number: int
    settings: Settings
    home: str
    engine_url: str
    turn: int
    view: View


class Serve(msgspec.Struct, frozen=True, tag=True):
    """To a worker: what to serve from now on; each view has a number, one higher than the last."""

    turn: int
    view: View


class Hurry(msgspec.Struct, frozen=True, tag=True):
    """To a worker: cut off what runs, and end."""


class Started(msgspec.Struct, frozen=True, tag=True):
    """From a worker: it can take connections."""


class Moved(msgspec.Struct, frozen=True, tag=True):
    """From a worker: its requests get what the view `turn` says, but for those that still hold."""

    turn: int
    held: Held


class Holds(msgspec.Struct, frozen=True, tag=True):
    """From a worker: what its requests hold now."""

    held: Held


class Suspect(msgspec.Struct, frozen=True, tag=True):
    """From a worker: a request could not reach the engine, or the one of several at `url`."""

    url: str | None


class Bring(msgspec.Struct, frozen=True, tag=True):
    """From a worker: a request pins a version that isn't loaded; see `serving.Keeper.bring`."""

    version: str


class Reload(msgspec.Struct, frozen=True, tag=True):
    """From a worker: the engine had no `version`; see `serving.Keeper.reload`."""

    version: str
    asked_at: float


class KeyOf(msgspec.Struct, frozen=True, tag=True):
    """Either way: is this completion in flight elsewhere, and with which key was it asked for?"""

    completion: str


class Look(msgspec.Struct, frozen=True, tag=True):
    """To a worker: how are you?"""


class Request(msgspec.Struct, frozen=True, tag=True):
    """From a worker: an HTTP request that it can't answer itself."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Done(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Bring`."""


class Reloaded(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Reload`."""

    is_worth_asking: bool


class Key(msgspec.Struct, frozen=True, tag=True):
    """The answer to `KeyOf`: the key's id; None where it isn't in flight."""

    id: str | None


class Sample(msgspec.Struct, frozen=True):
    """One number of the metrics: of which metric, its own name, its labels, its value."""

    metric: str
    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Looks(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Look`; `replicas` are the requests under way to each of several engines."""

    in_flight: int
    lost: int
    store: StoreHealth
    samples: list[Sample]
    replicas: dict[str, int]


class Response(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Request`."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Failure(msgspec.Struct, frozen=True, tag=True):
    """The answer to a call that failed: one of our own errors."""

    kind: str
    message: str
    param: str | None
    detail: dict[str, object]

    @classmethod
    def of(cls, error: StropError) -> "Failure":
        """Return what to say of `error`."""
        return cls(type(error).__name__, error.message, error.param, error.detail)

    def error(self) -> StropError:
        """Return the error again."""
        kind = _ERRORS.get(self.kind, StropError)
        # Not by its own constructor: it may take more, which only who raises it first can know.
        error = kind.__new__(kind)
        StropError.__init__(error, self.message, param=self.param, detail=self.detail)
        return error


Note = Begin | Serve | Hurry | Started | Moved | Holds | Suspect
Call = Bring | Reload | KeyOf | Look | Request
Answer = Done | Reloaded | Key | Looks | Response | Failure


class Asked(msgspec.Struct, frozen=True, tag=True):
    """A call; its number is the sender's own."""

    number: int
    call: Call


class Answered(msgspec.Struct, frozen=True, tag=True):
    """The answer to the call of this number."""

    number: int
    answer: Answer


Frame = Note | Asked | Answered


def _kinds(root: type[StropError]) -> dict[str, type[StropError]]:
    found = {root.__name__: root}
    for kind in root.__subclasses__():
        found |= _kinds(kind)
    return found


_ERRORS: Final = _kinds(StropError)
