"""The prompts of rated answers, as text: engines that give no ids of them may show what they read.

Asked for before a run, since few answers are rated. Encodes nothing.
"""

import logging
from collections.abc import AsyncIterator, Iterator

from strop.proxy.errors import BadRequest, NotFound, UpstreamError, UpstreamUnreachable
from strop.proxy.serving import Serving
from strop.proxy.store import prompt
from strop.proxy.store.records import Completion
from strop.proxy.store.run_records import RatedTurn
from strop.proxy.store.store import Store

log = logging.getLogger(__name__)


class Prompts:
    """Notes what the model read before the answers that a run may learn from.

    Args:
        store: where they are kept.
        serving: the engine, and what it serves.
    """

    def __init__(self, store: Store, serving: Serving) -> None:
        self._store = store
        self._serving = serving

    async def note(self, parent: str, base: str) -> None:
        """Ask for the prompts that are missing, of answers of `base` with ratings new to `parent`.

        What the engine can't tell now is left: the trainer goes by the base's own template then.
        """
        if self._serving.engine.capabilities.prompt_ids or self._serving.base != base:
            return
        num_noted = 0
        try:
            async for completion in self._unknown(parent, base):
                if text := await self._shown(completion):
                    await self._store.note_prompt(completion.id, text)
                    num_noted += 1
        except (NotFound, UpstreamUnreachable) as error:
            log.info("the engine shows no prompts", extra={"reason": error.message})
        if num_noted:
            log.info("prompts noted", extra={"num": num_noted})

    async def _unknown(self, parent: str, base: str) -> AsyncIterator[Completion]:
        """Yield the chats that are learned from, or judged by, and whose prompts nobody knows."""
        seen: set[str] = set()
        ratings = self._store.training
        for turns in (ratings.fresh_turns(parent, base=base), ratings.held_out_turns(base=base)):
            async for turn in turns:
                for completion in _unknown_in(turn, seen):
                    yield completion

    async def _shown(self, completion: Completion) -> str | None:
        """Return the prompt of a chat; None where the engine doesn't take it any more.

        Raises:
            NotFound: this engine shows none.
            UpstreamUnreachable: nobody answers there.
        """
        alias = self._serving.alias
        # Every version reads as its base does: what is loaded need not make room.
        served = alias.active if alias.is_served else alias.base
        try:
            return await self._serving.engine.render(served.name, prompt.fields(completion) or {})
        except (BadRequest, UpstreamError) as error:
            if isinstance(error, UpstreamUnreachable):
                raise
            return None


def _unknown_in(turn: RatedTurn, seen: set[str]) -> Iterator[Completion]:
    for stored in turn.completions:
        one = stored.completion
        is_unknown = one.prompt_ids is None and one.prompt_text is None
        if is_unknown and one.dialect == "chat" and one.id not in seen:
            seen.add(one.id)
            if not prompt.is_redacted(one.request):
                yield one
