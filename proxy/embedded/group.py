"""The running jobs of one version: admits them, steps them, and scores what they draw.

Belongs to the owner thread. The caller sets the version's weights before each step; knows no other
version, no text and no HTTP.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx

from strop.adapters.mlx_rows import Float32Logits
from strop.proxy.embedded.batch import Batch, Drawn, KVCache, materialise
from strop.proxy.embedded.errors import EngineError
from strop.proxy.embedded.jobs import Event, Failed, Job, Place, Sampled, Scored, Started, Waiting
from strop.proxy.embedded.lora import Version
from strop.proxy.embedded.memory import Room
from strop.proxy.embedded.options import Options
from strop.proxy.embedded.prefix import Key, PrefixCache
from strop.proxy.embedded.sampling import Samplers, Tap, processors
from strop.proxy.embedded.scoring import score, score_prompt

Events = list[tuple[int, Event]]  # with the number of the job

_PADDING = 1 / 8  # of the memory that each stack of rows may waste
_SCORE_CHUNK = 128  # every position's logits are kept: at 150,000 tokens 77 MB


@dataclass(slots=True, eq=False)
class _Row:
    """One answer being generated."""

    number: int
    choice: int
    job: Job
    tap: Tap | None
    drawn: list[int]


@dataclass(slots=True, eq=False)
class _Prefill:
    """A prompt that is run outside the batch: once for several answers, or to score it."""

    number: int
    job: Job
    cache: KVCache
    num_cached: int
    num_done: int
    scores: list[Scored] = field(default_factory=list)


class Group:
    """The jobs of one version.

    Args:
        version: what they are answered with.
        model: the resident base with slots.
        prefix: shared by all groups; this one uses its version's key only.
        samplers: shared by all groups.
        vocab_size: the width of the logits.
        options: batch sizes.
        room: the memory for KV caches.
    """

    def __init__(
        self,
        version: Version,
        model: Float32Logits,
        prefix: PrefixCache,
        samplers: Samplers,
        vocab_size: int,
        options: Options,
        room: Room,
    ) -> None:
        self.version = version
        self._room = room
        self._model = model
        self._prefix = prefix
        self._samplers = samplers
        self._vocab_size = vocab_size
        self._options = options
        self._rows: dict[int, _Row] = {}
        self._prefills: list[_Prefill] = []
        self._stepped: frozenset[int] = frozenset()
        self._batch = self._new_batch()

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to step."""
        return bool(self._rows or self._prefills)

    @property
    def is_full(self) -> bool:
        """Whether as many answers run as are generated at once.

        One more would only take memory, and not find in the prefix cache what those leave there.
        """
        return self.num_rows >= self._options.max_rows

    @property
    def num_rows(self) -> int:
        """How many answers run; of a job that asks for many, some wait for others to end."""
        return len(self._rows) + sum(prefill.job.n for prefill in self._prefills)

    def num_bytes(self, ahead: int = 0, joining: Waiting | None = None) -> int:
        """Return what the KV caches of all rows take when each has drawn `ahead` tokens more.

        `joining` is counted as if it had been admitted.
        """
        rows: list[tuple[int, int]] = []
        if joining is not None:
            length = len(joining.job.prompt)
            row = length + len(joining.drawn), length + joining.job.max_tokens
            rows = [row] * joining.num_rows
        extents = self._batch.extents(ahead, rows)
        extents += [
            (job.n, len(job.prompt) + min(ahead, job.max_tokens))
            for job in (prefill.job for prefill in self._prefills)
        ]
        return sum(num * self._room.footprint.num_bytes(length) for num, length in extents)

    def places(self) -> list[Place]:
        """Return the places of all that runs; of a job that is not yet answered, its first."""
        return [(row.number, row.choice) for row in self._rows.values()] + [
            (prefill.number, 0) for prefill in self._prefills
        ]

    def withdraw(self, place: Place) -> Waiting:
        """Stop what runs at `place`, free its memory, and return what `admit` goes on with."""
        for prefill in self._prefills:
            if (prefill.number, 0) == place:
                self._prefills.remove(prefill)
                return Waiting(prefill.number, prefill.job)
        uid, row = next(
            each for each in self._rows.items() if (each[1].number, each[1].choice) == place
        )
        self._batch.drop(uid)  # First: where it raises, the job is one of those to fail.
        del self._rows[uid]
        return Waiting(row.number, row.job, row.choice, tuple(row.drawn))

    def admit(self, waiting: Waiting) -> Events:
        """Take a job, or an answer that was withdrawn; its prompt is run in later steps."""
        number, job = waiting.number, waiting.job
        if waiting.choice is not None:
            ids = (*job.prompt, *waiting.drawn)
            cache, num_cached = self._prefix.fetch(self._key(job), ids)
            self._insert(number, job, waiting.choice, cache, num_cached, waiting.drawn)
            return []
        cache, num_cached = None, 0
        if job.prompt_logprobs is None:
            cache, num_cached = self._prefix.fetch(self._key(job), job.prompt)
        is_shared = job.n > 1 or job.prompt_logprobs is not None
        if is_shared and len(job.prompt) > 1:
            self._prefills.append(
                _Prefill(number, job, cache or self._batch.new_cache(), num_cached, num_cached)
            )
            return []
        for choice in range(job.n):
            self._insert(number, job, choice, cache, num_cached)
        scores = None if job.prompt_logprobs is None else ()
        return [(number, Started(num_cached, scores))]

    def cancel(self, number: int, choice: int | None) -> None:
        """Stop one answer of a job, or all; nothing more of it comes."""
        if choice is None:
            self._prefills = [each for each in self._prefills if each.number != number]
        for row, left in self._remove(number, choice):
            if left:
                self._keep(row, *left)

    def step(self) -> Events:
        """Run one chunk of a prompt and draw one token for every running row."""
        # Where this raises, its events are lost, those too that end a job.
        self._stepped = self._numbers()
        events: Events = []
        drawn = self._batch.step() if self._rows else []
        broken = set()
        for each, token in zip(drawn, self._score(drawn), strict=True):
            row = self._rows[each.uid]
            row.drawn.append(each.token)
            if not math.isfinite(token.logprob):
                broken.add(row.number)
                continue
            events.append((row.number, Sampled(row.choice, token, each.finish)))
            if each.finish:
                del self._rows[each.uid]
                if each.cache and each.tokens:
                    self._keep(row, each.cache, each.tokens)
        events += [self._fail(number) for number in sorted(broken)]
        # Last: of the rows that it inserts, some may have to go before they take any memory.
        events += self._step_prefill() if self._prefills else []
        self._stepped = frozenset()
        return events

    def abandon(self) -> set[int]:
        """Drop all jobs after an error, start afresh, and return their numbers."""
        numbers = {*self._numbers(), *self._stepped}
        self._stepped = frozenset()
        self._rows.clear()
        self._prefills.clear()
        self._prefix.drop(self.version.uid)
        self._batch.close()
        self._batch = self._new_batch()
        return numbers

    def _numbers(self) -> frozenset[int]:
        rows = (row.number for row in self._rows.values())
        return frozenset([*rows, *(prefill.number for prefill in self._prefills)])

    def _key(self, job: Job) -> Key:
        return self.version.uid, job.cache_salt

    def _new_batch(self) -> Batch:
        return Batch(
            self._model,
            max_rows=self._options.max_rows,
            prefill_chunk=self._options.prefill_chunk,
            max_padding=self._room.longest * _PADDING,
        )

    def _remove(
        self, number: int, choice: int | None = None
    ) -> list[tuple[_Row, tuple[KVCache, list[int]] | None]]:
        """End rows of a job; return each with its KV cache and the ids in it, if it had any."""
        uids = [
            uid
            for uid, row in self._rows.items()
            if row.number == number and choice in (None, row.choice)
        ]
        return [(self._rows.pop(uid), self._batch.remove(uid)) for uid in uids]

    def _fail(self, number: int) -> tuple[int, Failed]:
        """End a job whose logits are not numbers; its KV caches are as broken, so none is kept."""
        self._remove(number)
        return number, Failed(
            EngineError(
                "The model computed logits that are no finite numbers, so there is nothing to "
                f"sample from: the weights of {self.version.name!r} are broken, or too large."
            )
        )

    def _keep(self, row: _Row, cache: KVCache, tokens: list[int]) -> None:
        # Of several answers the first: they share the prompt, and only one will be continued.
        if row.choice == 0:
            self._prefix.insert(self._key(row.job), tokens, cache)

    def _insert(
        self,
        number: int,
        job: Job,
        choice: int,
        cache: KVCache | None,
        num_cached: int,
        drawn: Sequence[int] = (),
    ) -> None:
        chain = processors(
            job.sampling,
            prompt_length=len(job.prompt),
            stop_ids=job.stop_ids,
            vocab_size=self._vocab_size,
        )
        tap = Tap() if chain else None
        uid = self._batch.insert(
            (*job.prompt, *drawn),
            cache=cache,
            num_cached=num_cached,
            max_tokens=job.max_tokens - len(drawn),
            stop_ids=job.stop_ids,
            sampler=self._samplers.sampler(job.sampling, choice, len(drawn)),
            processors=[tap, *chain] if tap else [],
        )
        self._rows[uid] = _Row(number, choice, job, tap, [*drawn])

    def _step_prefill(self) -> Events:
        """Run one chunk of the first waiting prompt; at its end, insert its answers' rows."""
        prefill = self._prefills[0]
        job = prefill.job
        end = len(job.prompt) - 1  # The batch runs the last id: it wants its logits.
        is_scored = job.prompt_logprobs is not None
        size = min(self._options.prefill_chunk, _SCORE_CHUNK if is_scored else end)
        start, stop = prefill.num_done, min(prefill.num_done + size, end)
        if start < stop:
            logits_TV = self._batch.forward(job.prompt[start:stop], prefill.cache)
            if job.prompt_logprobs is not None:
                with self._batch.stream():
                    scores = score_prompt(
                        logits_TV, job.prompt[start + 1 : stop + 1], job.prompt_logprobs
                    )
                if not all(math.isfinite(scored.logprob) for scored in scores):
                    self._prefills.pop(0)
                    return [self._fail(prefill.number)]
                prefill.scores += scores
            materialise(prefill.cache)
            prefill.num_done = stop
        if prefill.num_done < end:
            return []
        self._prefills.pop(0)
        for choice in range(job.n):
            cache = copy.deepcopy(prefill.cache) if choice + 1 < job.n else prefill.cache
            self._insert(prefill.number, job, choice, cache, end)
        all_scores = tuple(prefill.scores) if is_scored else None
        return [(prefill.number, Started(prefill.num_cached, all_scores))]

    def _score(self, drawn: Sequence[Drawn]) -> list[Scored]:
        """Return the drawn tokens with raw logprobs, all rows in one evaluation."""
        if not drawn:
            return []
        rows = [self._rows[each.uid] for each in drawn]
        with self._batch.stream():
            logprobs_BV = mx.stack(
                [
                    row.tap.take() if row.tap else each.logprobs
                    for each, row in zip(drawn, rows, strict=True)
                ]
            )
            tokens = score(
                logprobs_BV, [each.token for each in drawn], max(row.job.num_top for row in rows)
            )
        return [
            replace(token, top=token.top[: row.job.num_top])
            for token, row in zip(tokens, rows, strict=True)
        ]
