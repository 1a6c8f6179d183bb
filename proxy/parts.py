"""The parts that strop is made of, put together, started, and ended in order.

Serves no request: `app` does. Where one process does all, it has all the parts; of several, one has
those that decide, and each of the others those that answer.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from strop.adapters.library import Library
from strop.proxy import auth, configured_engine, run_requests
from strop.proxy.alias import Leases
from strop.proxy.background import in_background
from strop.proxy.engines.base import Engine
from strop.proxy.engines.embedded import EngineProcess
from strop.proxy.errors import StoreUnavailable
from strop.proxy.flights import Elsewhere, Flights, nowhere
from strop.proxy.intake import Intake
from strop.proxy.metrics import Metrics
from strop.proxy.prompts import Prompts
from strop.proxy.rater import Rater
from strop.proxy.redaction import Redaction
from strop.proxy.relay import Relay
from strop.proxy.replies import Replies
from strop.proxy.run_requests import NEVER_LEARNED, Base, TrainCommand, no_base
from strop.proxy.serving import Serving
from strop.proxy.settings.settings import Settings
from strop.proxy.store import layout, turns, upgrading
from strop.proxy.store.store import Store
from strop.proxy.tally import Census, OwnCensus
from strop.proxy.trainer import Trainer
from strop.proxy.versions import probe_job
from strop.proxy.versions.displaced import to_serve
from strop.proxy.versions.pairing import base_folder, identity_of
from strop.proxy.versions.probe_job import ProbeCommand, ProbeJob
from strop.proxy.versions.promotion import Promoter
from strop.proxy.versions.shelf import Shelf
from strop.proxy.versions.swapping import Swapper

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Parts:
    """What every process has that serves or decides."""

    settings: Settings
    home: Path
    keys: auth.Keys
    store: Store
    metrics: Metrics
    serving: Serving
    redaction: Redaction


@dataclass(kw_only=True)
class Front(Parts):
    """The parts that answer clients."""

    doors: auth.Doors
    relay: Relay
    flights: Flights
    rater: Rater
    intake: Intake


@dataclass(kw_only=True)
class Control(Parts):
    """The parts that decide: which version serves, when to train, how the engine is."""

    swapper: Swapper
    trainer: Trainer
    census: Census
    process: EngineProcess | None = None


@dataclass(kw_only=True)
class Services(Front, Control):
    """The parts of a strop in one process."""


@contextlib.asynccontextmanager
async def run_services(
    settings: Settings,
    home: Path,
    engine: Engine,
    process: EngineProcess | None,
    *,
    train_command: TrainCommand = run_requests.command,
    probe_command: ProbeCommand = probe_job.command,
) -> AsyncIterator[Services]:
    """Open the store, start what runs in the background, and end all of it in order.

    Args:
        settings: all of them.
        home: the folder with the database and the admin key.
        engine: the driver; its upstream is closed at the end.
        process: the embedded engine, if strop runs one.
        train_command: returns the command line of a training run's process.
        probe_command: returns that of the job that makes an imported adapter's probe.
    """
    turns.end(home / layout.DATABASE)
    async with _opened(settings, home, is_server=True) as store:
        parts = await _parts(settings, home, store, engine)
        front = make_front(parts)
        relay = front.relay
        census = OwnCensus(relay, store, parts.metrics)
        control = await _make_control(
            parts,
            process,
            census,
            train_command=train_command,
            probe_command=probe_command,
        )
        services = Services(**{**vars(control), **vars(front)})
        async with in_background(relay.sweep, front.rater.settle), _deciding(control):
            yield services


@contextlib.asynccontextmanager
async def run_control(
    settings: Settings,
    home: Path,
    engine: Engine,
    process: EngineProcess | None,
    *,
    census: Callable[[Store, Metrics], Census],
    leases: Leases,
) -> AsyncIterator[Control]:
    """Do what `run_services` does for the process that decides for several that answer.

    Args:
        settings: all of them.
        home: the folder with the database and the admin key.
        engine: the driver; its upstream is closed at the end.
        process: the embedded engine, if strop runs one.
        census: returns what the processes say that answer.
        leases: counts the requests of all of them.
    """
    turns.begin(home / layout.DATABASE)
    async with _opened(settings, home, is_server=True) as store:
        parts = await _parts(settings, home, store, engine, leases)
        control = await _make_control(parts, process, census(store, parts.metrics))
        async with _deciding(control):
            yield control


@contextlib.asynccontextmanager
async def run_front(
    settings: Settings, home: Path, serving: Serving, elsewhere: Elsewhere
) -> AsyncIterator[Front]:
    """Do what `run_services` does for one of several processes that answer.

    Args:
        settings: all of them.
        home: the folder with the database and the admin key.
        serving: the engine, and what another process decides of it.
        elsewhere: finds a completion in flight in another process.
    """
    async with _opened(settings, home, is_server=False) as store:
        front = make_front(_with(settings, home, store, serving), elsewhere)
        try:
            async with in_background(front.relay.sweep, front.rater.settle):
                yield front
        finally:
            await _close_upstreams(serving.engine)


def make_front(parts: Parts, elsewhere: Elsewhere = nowhere) -> Front:
    """Return what answers clients; nothing of it runs in the background yet."""
    settings, server = parts.settings, parts.settings.server
    relay = Relay(settings, parts.serving, parts.store, parts.metrics, parts.redaction)
    flights = Flights(relay, elsewhere)
    rater = Rater(
        parts.store,
        flights,
        Replies(parts.store, flights),
        parts.metrics,
        parts.redaction,
    )
    return Front(
        **vars(parts),
        doors=auth.Doors(server.host, server.allowed_hosts, server.allowed_origins),
        relay=relay,
        flights=flights,
        rater=rater,
        intake=Intake(server, relay, rater),
    )


@contextlib.asynccontextmanager
async def _opened(settings: Settings, home: Path, *, is_server: bool) -> AsyncIterator[Store]:
    capture = settings.capture
    async with upgrading.opening(home, log.info, is_server=True):
        store = await Store.open(
            home / layout.DATABASE,
            synchronous="full" if capture.synchronous == "FULL" else "normal",
            busy_timeout_s=capture.commit_timeout_s,
            is_server=is_server,
        )
    try:
        yield store
    finally:
        await store.close()


async def _parts(
    settings: Settings, home: Path, store: Store, engine: Engine, leases: Leases | None = None
) -> Parts:
    active = await to_serve(store.versions)
    serving = Serving(engine, settings, active=active, leases=leases)
    return _with(settings, home, store, serving)


def _with(settings: Settings, home: Path, store: Store, serving: Serving) -> Parts:
    return Parts(
        settings=settings,
        home=home,
        keys=auth.Keys(settings.server.client_keys, auth.load_or_create_admin_key(home)),
        store=store,
        metrics=Metrics(),
        serving=serving,
        redaction=Redaction.of(settings.capture.redact),
    )


async def _make_control(
    parts: Parts,
    process: EngineProcess | None,
    census: Census,
    *,
    train_command: TrainCommand = run_requests.command,
    probe_command: ProbeCommand = probe_job.command,
) -> Control:
    settings, home, store, serving = parts.settings, parts.home, parts.store, parts.serving
    shelf = Shelf(
        store,
        Library(home / layout.ADAPTERS),
        find_base=lambda: base_folder(settings),
        probes=ProbeJob(home, settings.training, probe_command),
        num_kept=settings.adapters.keep,
        converted=home / layout.MLX_ADAPTERS,
    )
    try:
        await shelf.settle()
    except StoreUnavailable as error:
        # It serves without; what is left half done is settled at the next start.
        log.error("versions are not settled", extra={"reason": error.message})
    swapper = Swapper(
        shelf,
        serving,
        parts.metrics,
        identify=lambda: identity_of(settings, home),
        hold_s=settings.adapters.swap_hold_s,
    )
    serving.keeper = swapper.keeper
    trainer = Trainer(
        settings.training,
        home,
        store,
        Promoter(settings.training, store, swapper),
        note_prompts=Prompts(store, serving).note,
        base=lambda: _trainable(settings, serving),
        leases=serving.leases,
        command=train_command,
    )
    return Control(**vars(parts), swapper=swapper, trainer=trainer, census=census, process=process)


@contextlib.asynccontextmanager
async def _deciding(control: Control) -> AsyncIterator[None]:
    """Watch the engine and the ratings; the engine ends after whoever asks it."""
    process, engine = control.process, control.serving.engine
    work = [control.serving.watch, control.trainer.watch]
    if process is not None:
        work.append(lambda: process.keep_alive(lambda: identity_of(control.settings, control.home)))
    try:
        async with in_background(*work):
            yield
    finally:
        await control.swapper.aclose()
        if process is not None:
            await process.stop()
        await _close_upstreams(engine)


async def _close_upstreams(engine: Engine) -> None:
    for one in (engine, *(replica.engine for replica in engine.replicas)):
        await one.upstream.aclose()


def _trainable(settings: Settings, serving: Serving) -> Base | str:
    """Return the base that ratings can train, or why there is none.

    Where the base that answers isn't known, that says so too: a person has to mend it at once.
    """
    engine, folder = serving.engine, base_folder(settings)
    # What it claims counts until it was asked; before that, its base isn't known either.
    serves_none = engine.adapters is None or not engine.capabilities.adapters
    if serves_none and not (folder is None and configured_engine.converts(settings)):
        why = (
            f"the engine {engine.label} serves no adapter versions here, so ratings are kept and"
            " nothing is trained"
        )
        if engine.adapters is not None and engine.shortfalls:
            why += f": {'; '.join(engine.shortfalls)}"
        if engine.capabilities.is_local and folder is None:
            # Another engine of the same model may come to serve this home.
            why += "; what is answered before model.base is set is never learned from elsewhere"
            why += " either"
        elif engine.capabilities.is_local and serving.why_unknown:
            why += f"; {serving.why_unknown}"
        return why
    if folder is not None and serving.base is not None:
        return Base(folder, serving.base)
    if folder is None:
        why = no_base(settings.model.base)
    elif serving.why_unknown:
        why = f"nothing can be trained: {serving.why_unknown}"
    elif serving.is_ready:
        why = (
            f"nothing can be trained: the base in {folder} was not there when strop started, or"
            " can't be read, and the log says why; start strop again when it can"
        )
    else:
        return "the identity of the base is not known yet"
    return why if serving.base is not None else f"{why}; {NEVER_LEARNED}"
