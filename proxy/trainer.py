"""Training beside serving: starts a run when one is due, and sees it through to its end.

A run is a child process; this knows its row in the store and its exit, and nothing of how it
learns. One at a time.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Final

import orjson

from strop.proxy import run_requests
from strop.proxy.alias import Leases
from strop.proxy.child import Child, last_words
from strop.proxy.errors import StropError, Unavailable
from strop.proxy.run_requests import Base, TrainCommand, Wanted
from strop.proxy.settings.settings import Training
from strop.proxy.store import layout, run_folder, run_lock
from strop.proxy.store.run_records import UNFINISHED, Run, RunUpdate
from strop.proxy.store.store import Store
from strop.proxy.store.version_records import BASE
from strop.proxy.trigger import Decision, Moment, decide
from strop.proxy.versions.promotion import Promoter

log = logging.getLogger(__name__)

LOOK_INTERVAL_S: Final = 2.0
TRIGGER: Final = "trigger"
"""Who asks for the runs that nobody asked for."""

MAX_CRASHES: Final = 3
"""How often the process of a run may die before the run counts as failed."""

# How far a look goes back for runs that were rejected in a row.
_NUM_RUNS: Final = 8


class Trainer:
    """Decides, starts, watches.

    Args:
        settings: the rules.
        home: strop's home; each run has a folder under `runs`.
        store: where ratings come from, and how runs are known.
        promoter: what becomes of what a run made.
        note_prompts: told the parent and the base of each run before it begins, so that what the
            engine read is known where it gives no ids.
        base: returns the base that can be trained, or why there is none.
        leases: how many answers are running, and when the last one ended.
        command: returns the command line of a run's process.
        look_interval_s: seconds between two looks at whether a run is due.

    Attributes:
        decision: what the last look found; see `waits_for`.
    """

    def __init__(
        self,
        settings: Training,
        home: Path,
        store: Store,
        promoter: Promoter,
        *,
        note_prompts: Callable[[str, str], Awaitable[None]],
        base: Callable[[], Base | str],
        leases: Leases,
        command: TrainCommand = run_requests.command,
        look_interval_s: float = LOOK_INTERVAL_S,
    ) -> None:
        self._settings = settings
        self._home = home
        self._store = store
        self._promoter = promoter
        self._note_prompts = note_prompts
        self._base = base
        self._leases = leases
        self._command = command
        self._look_interval_s = look_interval_s
        self._child: Child | None = None
        self._num_crashes: dict[str, int] = {}
        self._is_hindered = False
        self._began_at = monotonic()
        self._wake = asyncio.Event()
        self.decision = Decision(False, "starting")

    def why_untrained(self) -> str | None:
        """Return why there is no base to train; None where there is one."""
        base = self._base()
        return base if isinstance(base, str) else None

    async def request(self, wanted: Wanted, *, actor: str) -> Run:
        """Queue a run now, whatever the trigger says; it starts at once.

        Raises:
            StropError: there can be none; see `run_requests.create`.
        """
        base = self._base()
        if isinstance(base, str):
            raise Unavailable(base)
        run = await run_requests.create(self._store, self._settings, base, wanted, actor=actor)
        log.info("training run queued", extra={"run": run.id, "by": actor})
        self.decision = Decision(False, f"{run.id} begins next")
        self._wake.set()
        return run

    async def cancel(self, id_: str) -> Run:
        """Ask a run to stop at its next step; one that has not begun stops now.

        Raises:
            NotFound: there is no such run.
            Conflict: it is finished.
        """
        run = await self._store.runs.cancel(id_)
        self._wake.set()
        return run

    async def waits_for(self) -> str:
        """Return what the next run waits for, with what was rated up to this call.

        Raises:
            StropError: the store can't be read.
        """
        if self._is_hindered or await self._store.runs.unfinished() is not None:
            return self.decision.says
        return (await self._decide()).says

    async def watch(self) -> None:
        """Start runs when they are due, resume what a dead process left. Runs until cancelled."""
        try:
            while True:
                self._wake.clear()
                try:
                    is_busy = await self._look()
                    self._is_hindered = False
                except StropError as error:
                    self._wait(error.message)
                    is_busy = False
                except OSError as error:
                    self._wait(f"a run can't begin yet: {error}")
                    is_busy = False
                except Exception as error:
                    # The edge of a background task: one that ends would never train again.
                    log.exception("training can't go on")
                    self._wait(f"it failed to look, see the log: {error!r}")
                    is_busy = False
                if not is_busy:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._look_interval_s):
                            await self._wake.wait()
        finally:
            if self._child is not None:
                # Not cancelled: the next start goes on where it stops.
                await self._child.stop()

    def _wait(self, reason: str) -> None:
        # A run that was asked for meanwhile is what is waited for: the next look says so.
        if self._wake.is_set():
            return
        # Said once in the log: so a look sets no other decision before it is sure of it.
        if reason != self.decision.says:
            log.warning("training waits", extra={"reason": reason})
        self.decision = Decision(False, reason)
        self._is_hindered = True

    async def _look(self) -> bool:
        """Do what is due; return whether there may be more to do at once."""
        await self._follow()
        run = await self._store.runs.unfinished()
        if run is None:
            await self._promoter.promote(idle_s=self._moment().idle_s)
            run = await self._begin_if_due()
            if run is None:
                return False
        if run_lock.is_held(self._runs_folder):
            # A person trains in a terminal, or what a dead strop left has not noticed yet.
            self.decision = _under_way(run)
            return False
        base = self._base()
        if isinstance(base, Base):
            run = await run_requests.follow_base(self._store, run, base)
        elif not run.is_cancelling:
            self.decision = Decision(False, f"{run.id} can't go on yet: {base}")
            return False
        return await self._see_through(run)

    async def _begin_if_due(self) -> Run | None:
        decision = await self._decide()
        if decision.is_due:
            return await self.request(Wanted(), actor=TRIGGER)
        # As in `_wait`.
        if not self._wake.is_set():
            self.decision = decision
        return None

    async def _decide(self) -> Decision:
        base = self._base()
        if isinstance(base, str):
            return Decision(False, base)
        if not run_requests.has_backend():
            return Decision(False, run_requests.NO_BACKEND)
        active = (await self._store.versions.activation()).version
        fresh = await self._store.training.fresh_counts(active, base=base.identity)
        # One of another base has tried none of these ratings.
        last = await self._store.runs.last_finished(base=base.identity)
        num_new = fresh.total
        if last is not None:
            since_ms = last.started_ms or last.created_ms
            num_new = 0
            if (fresh.newest_ms or 0) > since_ms:
                newer = await self._store.training.fresh_counts(
                    active, base=base.identity, since_ms=since_ms
                )
                num_new = newer.total
        # One that failed or was cancelled says nothing of the ratings; the next may come soon.
        is_rejected = last is not None and last.state == "rejected"
        num_rejected = await self._num_rejected(active, base) if is_rejected else 0
        return decide(fresh, num_new, self._moment(), self._settings, num_rejected=num_rejected)

    async def _num_rejected(self, active: str, base: Base) -> int:
        """Return how many runs in a row, from the active version, the gate has rejected.

        Those that it never judged don't count, and what is further back neither.
        """
        newest = await self._store.runs.list(limit=_NUM_RUNS)
        judged = [run for run in newest.data if run.state in ("passed", "rejected")]
        num = 0
        for run in judged:
            begins_alike = (run.parent or BASE, run.base) == (active, base.identity)
            if run.state != "rejected" or not begins_alike:
                break
            num += 1
        return num

    def _moment(self) -> Moment:
        idle_at = max(self._began_at, self._leases.idle_since())
        idle_s = 0.0 if self._leases.total else monotonic() - idle_at
        return Moment(datetime.now().astimezone(), idle_s)

    @property
    def _runs_folder(self) -> Path:
        return self._home / layout.RUNS

    async def _see_through(self, run: Run) -> bool:
        """Run the process of `run` to its end; return whether the run is over."""
        folder = run_folder.make(self._home, run.id)
        await self._note_prompts(run.parent or BASE, run.base)
        log_path = folder / "output.log"
        command = self._command(self._home, run.id)
        self._child = await Child.start(command, log_path=log_path)
        self.decision = _under_way(run)
        code = await self._end_of(self._child)
        self._child = None
        run = await self._store.runs.get(run.id) or run
        if run.state in UNFINISHED:
            await self._crashed(run, code, last_words(log_path), log_path)
            return False
        if run.state == "failed":
            reasons = "; ".join(orjson.loads(run.reasons))
            log.warning("training run failed", extra={"run": run.id, "reason": reasons})
        else:
            log.info("training run over", extra={"run": run.id, "state": run.state})
        return True

    async def _end_of(self, child: Child) -> int:
        """Return the exit status of `child`; what serves is followed meanwhile."""
        ended = asyncio.ensure_future(child.wait())
        try:
            while not ended.done():
                await asyncio.wait([ended], timeout=self._look_interval_s)
                with contextlib.suppress(StropError):
                    await self._follow()
            return ended.result()
        finally:
            ended.cancel()

    async def _follow(self) -> None:
        """Follow what serves; stop what the trigger builds on a version that was rolled back.

        Whoever did that, and be it before this start.
        """
        await self._promoter.follow(idle_s=self._moment().idle_s)
        run = await self._store.runs.unfinished()
        if run is None or run.is_cancelling or run.parent is None or run.requested_by != TRIGGER:
            return
        activation = await self._store.versions.activation()
        if run.parent not in (activation.version, *activation.below):
            log.info("stopping a run: what it continues was rolled back", extra={"run": run.id})
            await self._store.runs.cancel(
                run.id, reason=f"{run.parent}, which it continued, was rolled back"
            )

    async def _crashed(self, run: Run, code: int, said: str, log_path: Path) -> None:
        num_crashes = self._num_crashes[run.id] = self._num_crashes.get(run.id, 0) + 1
        log.error(
            "a training run's process died",
            extra={"run": run.id, "exit_code": code, "said": said, "log": str(log_path)},
        )
        if num_crashes >= MAX_CRASHES:
            is_killed = code == -signal.SIGKILL
            how = "killed by the system, mostly for lack of memory" if is_killed else f"exit {code}"
            reason = f"its process died {MAX_CRASHES} times ({how}): {said}"
            ended = RunUpdate(state="failed", reasons=orjson.dumps([reason]))
            await self._store.runs.update(run.id, ended)


def _under_way(run: Run) -> Decision:
    return Decision(False, f"{run.id} is under way")
