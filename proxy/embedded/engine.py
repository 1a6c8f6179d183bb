"""The engine as the event loop sees it: hands jobs to the worker and their events to who waits.

Belongs to the event loop's thread. Knows no HTTP and no text.
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from strop.adapters import peft
from strop.proxy.embedded import lora, prompts
from strop.proxy.embedded.errors import (
    BadRequest,
    EngineError,
    InvalidInput,
    NotFound,
    Overloaded,
    unknown_model,
)
from strop.proxy.embedded.group import Events
from strop.proxy.embedded.jobs import Event, Failed, Job
from strop.proxy.embedded.loading import LoadedModel
from strop.proxy.embedded.options import Options
from strop.proxy.embedded.protocol import Request
from strop.proxy.embedded.text import Vocabulary
from strop.proxy.embedded.worker import Worker, already_loaded

T = TypeVar("T")

_NUM_ENCODERS = 4  # A book takes seconds to encode; chats must not wait for it.


class Engine:
    """One worker with its model, versions and running exchanges.

    Args:
        options: what to serve and how.

    Attributes:
        worker: owns the model. What is put into it here skips the checks that `load` makes.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.versions: dict[str, str] = {}  # name -> path
        self.loaded: LoadedModel | None = None
        self.failure: BaseException | None = None
        self.ready = asyncio.Event()  # set once the model answers, or can't be loaded
        self.failed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._encoders = ThreadPoolExecutor(_NUM_ENCODERS, "encoder")
        self._numbers = itertools.count(1)
        self._exchanges: dict[int, Exchange] = {}
        self._num_rows = 0
        self.worker = Worker(
            options,
            lambda events: self._in_loop(self._deliver, events),
            lambda outcome: self._in_loop(self._changed, outcome),
        )
        self.worker.start()

    def model(self) -> LoadedModel:
        """Return the loaded model.

        Raises:
            Overloaded: it is not loaded yet.
        """
        if self.loaded is None:
            raise Overloaded("The model is not loaded yet; try again when /health answers 200.")
        return self.loaded

    def check_name(self, name: str) -> None:
        """Raise NotFound unless `name` is the base or a loaded version."""
        if name != self.options.name and name not in self.versions:
            raise unknown_model(name)

    async def encode(self, request: Request) -> list[Job]:
        """Return the request's jobs; raises BadRequest where they can't be made or answered."""
        loaded = self.model()
        jobs = await self._loop.run_in_executor(self._encoders, prompts.jobs, request, loaded)
        return [self._bounded(job) for job in jobs]

    @property
    def max_model_len(self) -> int:
        """The context limit in tokens: the model's, or what there is memory for."""
        return min(self.model().max_model_len, self.worker.room.longest)

    def open(self, jobs: Sequence[Job]) -> "Exchange":
        """Start jobs; all of them or none.

        Raises:
            BadRequest: they are more than the engine ever takes.
            Overloaded: too many answers run and wait already.
        """
        num_rows = sum(job.n for job in jobs)
        limit = self.options.max_rows + self.options.max_queued
        if num_rows > limit:
            raise BadRequest(
                f"This request asks for {num_rows} answers, and the engine takes no more than "
                f"{limit} at once; ask for fewer, or for fewer prompts.",
                param="n",
            )
        if self._num_rows + num_rows > limit:
            raise Overloaded(
                f"The engine has {self._num_rows} answers running and waiting, and takes no more "
                f"than {limit}; try again later."
            )
        self._num_rows += num_rows
        numbers = [next(self._numbers) for _ in jobs]
        exchange = Exchange(self, numbers, num_rows)
        for number, job in zip(numbers, jobs, strict=True):
            self._exchanges[number] = exchange
            self.worker.submit(number, job)
        return exchange

    def cancel(self, number: int, choice: int | None = None) -> None:
        """Stop a job, or one of its answers."""
        self.worker.cancel(number, choice)

    def close(self, exchange: "Exchange") -> None:
        """Forget an exchange, and stop what still runs of it."""
        for number in exchange.numbers:
            if self._exchanges.pop(number, None) and not exchange.is_complete:
                self.worker.cancel(number)
        self._num_rows -= exchange.num_rows
        exchange.num_rows = 0

    async def load(self, name: str, path: str) -> None:
        """Load an adapter and serve it as `name`.

        Raises:
            InvalidInput: the name is taken.
            NotFound: there is no adapter at `path`.
            EngineError: the adapter is broken or doesn't fit the base.
        """
        loaded = self.model()
        if name == self.options.name:
            raise InvalidInput(
                f"The lora adapter name '{name}' conflicts with a served base model.",
                param="lora_name",
            )
        if name in self.versions:
            raise already_loaded(name)
        try:
            weights = await asyncio.to_thread(
                lora.prepare,
                Path(path),
                loaded.shapes,
                max_rank=self.options.max_lora_rank,
                base_identity=self.options.base_identity,
            )
        except peft.AdapterNotFound as error:
            raise NotFound(f"Loading lora {name} failed: {error}", param="lora_path") from error
        except (peft.InvalidAdapter, OSError) as error:
            raise EngineError(f"Loading lora {name} failed: {error}", param="lora_path") from error
        await asyncio.wrap_future(self.worker.add_version(name, weights))
        self.versions[name] = path

    async def unload(self, name: str) -> None:
        """Take no new requests for a version; running ones keep it.

        Raises:
            NotFound: there is no such version.
        """
        await asyncio.wrap_future(self.worker.remove_version(name))
        self.versions.pop(name, None)

    def metrics(self) -> dict[str, int]:
        """Return counts by vLLM's names, and the memory of KV caches in bytes."""
        worker = self.worker
        return {
            "vllm:num_requests_running": worker.num_rows,
            "vllm:num_requests_waiting": worker.num_waiting,
            "vllm:num_preemptions_total": worker.num_withdrawn,
            "vllm:generation_tokens_total": worker.num_generated,
            "strop:kv_cache_used_bytes": worker.num_bytes,
            "strop:kv_cache_max_bytes": worker.room.max_bytes if self.loaded else 0,
        }

    async def stop(self) -> None:
        """End the worker after its current step."""
        self.worker.stop()
        await asyncio.to_thread(self.worker.join, 5.0)
        self._encoders.shutdown(wait=False, cancel_futures=True)

    def _bounded(self, job: Job) -> Job:
        """Return the job with no more tokens than there is memory for.

        Clients ask for far more than they use, so an answer is cut there and not refused.

        Raises:
            BadRequest: there is none for its prompt.
        """
        limit = self.worker.room.longest
        num_left = limit - len(job.prompt)
        if num_left < 1:
            raise BadRequest(
                f"This engine's maximum context length is {limit} tokens, for which it has memory."
                f" However, your request has {len(job.prompt)} input tokens. Please reduce the "
                "length of the input messages, or start the engine with more --kv-cache-bytes than "
                f"{self.worker.room.max_bytes}.",
                param="input_tokens",
            )
        return replace(job, max_tokens=min(job.max_tokens, num_left))

    def _in_loop(self, function: Callable[[T], None], argument: T) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, argument)

    def _deliver(self, events: Events) -> None:
        for number, event in events:
            if exchange := self._exchanges.get(number):
                exchange.put(number, event)

    def _changed(self, outcome: LoadedModel | BaseException) -> None:
        if isinstance(outcome, BaseException):
            self.loaded = None
            self.failure = outcome
            self.failed.set()
            error = EngineError(f"The engine has failed: {outcome}")
            for number, exchange in self._exchanges.items():
                exchange.put(number, Failed(error))
        else:
            self.vocabulary = Vocabulary(outcome.tokenizer)
            self.loaded = outcome
        self.ready.set()


class Exchange:
    """The jobs of one HTTP request, and their events in order.

    The queue has no limit: `max_tokens` bounds it, and a slow reader must not hold up others.

    Args:
        engine: runs them.
        numbers: of the jobs.
        num_rows: how many answers they make together.
    """

    def __init__(self, engine: Engine, numbers: Sequence[int], num_rows: int) -> None:
        self.numbers = numbers
        self.num_rows = num_rows
        self.is_complete = False
        self._engine = engine
        self._places = {number: place for place, number in enumerate(numbers)}
        self._failure: EngineError | None = None
        self._queue: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()

    def put(self, number: int, event: Event) -> None:
        """Queue an event of one of the jobs."""
        self._queue.put_nowait((self._places[number], event))

    def leave(self) -> None:
        """Stop everything now: the client is gone. `events` then gives None."""
        for number in self.numbers:
            self._engine.cancel(number)
        self._queue.put_nowait(None)

    def stop(self, place: int, choice: int) -> None:
        """Stop one answer of the job at `place`."""
        self._engine.cancel(self.numbers[place], choice)

    async def events(self) -> list[tuple[int, Event]] | None:
        """Return all events that have come, each with its job's place; None if the client left.

        Raises:
            EngineError: a job failed.
        """
        batch: list[tuple[int, Event]] = []
        while self._failure is None and not (batch and self._queue.empty()):
            item = await self._queue.get()
            if item is None:
                return None
            if isinstance(item[1], Failed):
                self._failure = item[1].error
            else:
                batch.append(item)
        if self._failure and not batch:
            raise self._failure
        return batch
