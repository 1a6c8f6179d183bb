"""The owner thread: the one thread that runs the model. Jobs and commands go in, events come out.

Knows ids and versions; no text and no HTTP. Several versions live over one resident base, a step of
each in turn. A job takes its version when it is admitted here and keeps it to its last token, so a
version that is unloaded meanwhile goes when its last job ends.
"""

import dataclasses
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

import mlx.core as mx

from strop.adapters.mlx_rows import rows_are_independent
from strop.proxy import heap
from strop.proxy.embedded.admission import Admission
from strop.proxy.embedded.errors import EngineError, InvalidInput, NotFound, unknown_model
from strop.proxy.embedded.group import Events, Group
from strop.proxy.embedded.jobs import Failed, Job, Sampled, Waiting
from strop.proxy.embedded.loading import LoadedModel, load
from strop.proxy.embedded.lora import Slots, Version, Weights
from strop.proxy.embedded.memory import room
from strop.proxy.embedded.options import Options
from strop.proxy.embedded.prefix import PrefixCache
from strop.proxy.embedded.sampling import Samplers
from strop.proxy.embedded.stack import has_gpu_failed

T = TypeVar("T")

_log = logging.getLogger(__name__)

_BASE_UID = 0
# What a conversation's next turn comes within: it finds the memory that the last one left.
_IDLE_S = 2.0


class Worker(threading.Thread):
    """Owns the model.

    Args:
        options: what to serve and how.
        sink: called in this thread with the events of one step, each with its job's number.
        on_change: called in this thread with the model once it answers, or with the error that
            ended the thread; nothing is answered after that.
    """

    def __init__(
        self,
        options: Options,
        sink: Callable[[Events], None],
        on_change: Callable[[LoadedModel | BaseException], None],
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self._options = options
        self._sink = sink
        self._on_change = on_change
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._is_stopping = False
        self._events: Events = []
        self._groups: list[Group] = []
        self._named: dict[str, Group] = {}
        self._next_uid = _BASE_UID
        # Read by other threads, for metrics only.
        self.num_rows = 0
        self.num_waiting = 0
        self.num_withdrawn = 0
        self.num_bytes = 0
        self.num_generated = 0

    def submit(self, number: int, job: Job) -> None:
        """Queue a job; its events come with `number`. Never blocks; may be called in any thread."""
        self._commands.put(lambda: self._take(number, job))

    def cancel(self, number: int, choice: int | None = None) -> None:
        """Stop a job, or one of its answers. Unknown and finished ones are ignored."""

        def cancel() -> None:
            self._admission.cancel(number, choice)
            for group in self._groups:
                try:
                    group.cancel(number, choice)
                except Exception as error:  # noqa: BLE001 - the edge of one version's jobs
                    self._abandon(group, error)

        self._commands.put(cancel)

    def add_version(self, name: str, weights: Mapping[str, Weights]) -> "Future[None]":
        """Serve `weights` as `name` from the next admission on.

        The future raises InvalidInput if the name is taken.
        """

        def add() -> None:
            if name in self._named:
                raise already_loaded(name)
            self._named[name] = self._new_group(name, weights)

        return self._call(add)

    def remove_version(self, name: str) -> "Future[None]":
        """Take no new jobs for `name`; its memory is freed when its last job ends.

        The future raises NotFound if there is no such version.
        """

        def remove() -> None:
            group = self._named.get(name)
            if group is None or group.version.uid == _BASE_UID:
                raise NotFound(f"The lora adapter '{name}' cannot be found.", param="lora_name")
            del self._named[name]

        return self._call(remove)

    def stop(self) -> None:
        """End the thread after the current step; what is queued is not run any more."""
        self._is_stopping = True
        self._commands.put(lambda: None)  # wakes it

    def run(self) -> None:
        """Load, check, and step until stopped."""
        try:
            self._start_up()
            self._on_change(self._loaded)
            self._step_until_stopped()
        except BaseException as error:  # noqa: BLE001 - the edge of the thread
            _log.critical("the engine's thread ends", exc_info=error)
            self._on_change(error)

    def _start_up(self) -> None:
        self._loaded = load(self._options)
        self._slots = Slots(self._loaded.module)
        # Only now: it depends on what the weights take.
        self.room = room(self._loaded.module, self._options.kv_cache_bytes)
        self._admission = Admission(self.room)
        self._prefix = PrefixCache(self._options.prefix_cache_bytes)
        self._samplers = Samplers(int.from_bytes(os.urandom(8)))
        # It also warms up: the first request finds everything compiled and loaded.
        if not rows_are_independent(self._loaded.module):
            _log.warning("this model's answers change with those beside them: one runs at a time")
            self._options = dataclasses.replace(self._options, max_rows=1)
        name = self._options.name
        self._named[name] = self._new_group(name, {})

    def _step_until_stopped(self) -> None:
        while True:
            self._run_commands()
            if self._is_stopping:
                return
            self._share_memory()
            self._step_all()
            self._forget_unloaded()
            self.num_rows = sum(group.num_rows for group in self._groups)
            self.num_waiting = self._admission.num_rows
            self.num_bytes = self._admission.num_bytes(self._groups) + self._prefix.num_bytes
            if self._events:
                self.num_generated += sum(isinstance(e, Sampled) for _, e in self._events)
                self._sink(self._events)
                self._events = []

    def _step_all(self) -> None:
        for group in self._groups:
            if group.is_busy:
                self._step(group)

    def _call(self, function: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - raised again where the future is awaited
                future.set_exception(error)

        self._commands.put(run)
        return future

    def _run_commands(self) -> None:
        """Run all queued commands; wait for one where there is nothing else to do."""
        is_idle = not (self._events or self._admission.num_rows) and not any(
            group.is_busy for group in self._groups
        )
        if is_idle:
            self._wait()()
        with suppress(queue.Empty):
            while not self._is_stopping:
                self._commands.get_nowait()()

    def _wait(self) -> Callable[[], None]:
        """Return the next command; let go of what MLX keeps if none comes for a while.

        What answers have freed, a training run may need, which begins when nobody asks for any.
        """
        try:
            return self._commands.get(timeout=_IDLE_S)
        except queue.Empty:
            _give_back()
        return self._commands.get()

    def _take(self, number: int, job: Job) -> None:
        group = self._named.get(job.model)
        if group is None:
            self._events.append((number, Failed(unknown_model(job.model))))
        else:
            self._admission.add(Waiting(number, job), group)

    def _share_memory(self) -> None:
        """Let in who waits, and send back who must, so that the next step has the memory it needs.

        The prefix cache gets what running answers leave.
        """
        while coming := self._admission.next(self._groups):
            self._admit(*coming)
        # Then: of several answers to one prompt, not all may fit.
        while excess := self._admission.excess(self._groups):
            group, place = excess
            try:
                self._admission.add(group.withdraw(place), group)
                self.num_withdrawn += 1
            except Exception as error:  # noqa: BLE001 - the edge of one version's jobs
                self._abandon(group, error)
        self._prefix.shrink(self._admission.left(self._groups))

    def _admit(self, group: Group, waiting: Waiting) -> None:
        try:
            self._events += group.admit(waiting)
        except Exception as error:  # noqa: BLE001 - the edge of one job
            if has_gpu_failed(error):
                self._fail_all({waiting.number}, error)
            else:
                group.cancel(waiting.number, None)
                self._fail({waiting.number}, error)

    def _step(self, group: Group) -> None:
        self._slots.activate(group.version)
        try:
            events = group.step()
        except Exception as error:  # noqa: BLE001 - the edge of one version's jobs
            self._abandon(group, error)
            return
        self._events += events
        for number, event in events:
            if isinstance(event, Failed):
                self._admission.cancel(number)

    def _abandon(self, group: Group, error: Exception) -> None:
        if has_gpu_failed(error):
            self._fail_all(set(), error)
        else:
            self._fail(group.abandon(), error)

    def _fail_all(self, numbers: set[int], error: Exception) -> None:
        """Fail these jobs and all that run or have events; forget what any answer has left.

        Which of it the GPU has not computed isn't known.
        """
        failed = [each for each in self._events if isinstance(each[1], Failed)]
        told = {number for number, _ in self._events} - {number for number, _ in failed}
        self._events = failed
        running = (group.abandon() for group in self._groups)
        self._fail(numbers.union(told, self._admission.begun, *running), error)

    def _fail(self, numbers: set[int], error: Exception) -> None:
        _log.error("generation failed", exc_info=error)
        failure = Failed(EngineError(f"Generation failed: {type(error).__name__}: {error}"))
        for number in sorted(numbers):
            self._admission.cancel(number)
            self._events.append((number, failure))

    def _new_group(self, name: str, weights: Mapping[str, Weights]) -> Group:
        version = Version(self._next_uid, name, weights)
        self._next_uid += 1
        self._slots.install(version)
        group = Group(
            version,
            self._loaded.model,
            self._prefix,
            self._samplers,
            self._loaded.vocab_size,
            self._options,
            self.room,
        )
        self._groups.append(group)
        return group

    def _forget_unloaded(self) -> None:
        """Free what unloaded versions took, once their last jobs have ended."""
        named = self._named.values()
        gone = {
            each.version.uid
            for each in self._groups
            if not (each.is_busy or each in named or self._admission.holds(each))
        }
        if not gone:
            return
        # Nothing may hold a group below, a local variable neither, or its memory stays.
        self._groups = [each for each in self._groups if each.version.uid not in gone]
        self._slots.activate(self._named[self._options.name].version)
        for uid in gone:
            self._prefix.drop(uid)
        _give_back()


def _give_back() -> None:
    mx.clear_cache()
    heap.trim()


def already_loaded(name: str) -> InvalidInput:
    """Return the error for a name that is served already."""
    return InvalidInput(
        f"The lora adapter '{name}' has already been loaded. Unload it first, or use another name.",
        param="lora_name",
    )
