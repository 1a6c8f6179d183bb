"""Several servers of one kind that serve the same model, behind one name.

Chooses the server of each request, and which servers may be chosen. Opens no connection, and loads
no adapter: who does says when a server that came back holds what it should.

    out    it doesn't answer, or serves another model
    back   it answers, and may lack adapter versions, or fail at what it is asked while another
           doesn't: it can be asked, and gets no requests
    in     it gets requests, unless one could not reach it: then none until it answers a check
"""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from strop.proxy.engines.base import (
    AdapterControl,
    AdapterControls,
    Ask,
    Capabilities,
    Engine,
    EngineState,
    Plan,
)
from strop.proxy.engines.findings import Findings, ReplicaFindings
from strop.proxy.engines.replica import Replica
from strop.proxy.errors import EngineNotReady, StropError
from strop.proxy.upstream.upstream import Upstream
from strop.proxy.wire.headers import Headers

MAX_CONVERSATIONS: Final = 10_000
"""How many conversations are remembered; those not heard of longest are forgotten first."""

SLACK: Final = 16
"""How many more requests than the least busy server a conversation's own one may have under way.

Beyond, waiting costs more than reading the prompt again ("consistent hashing with bounded loads",
Mirrokni, Thorup and Zadimoghaddam, 2016).
"""

# Enough of a prompt to tell conversations apart.
_NUM_KEY_ITEMS = 512


class Replicas:
    """One engine made of several.

    Args:
        engines: their drivers, two or more, of one kind.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.replicas = tuple(Replica(engine) for engine in engines)
        self.label = engines[0].label
        self.adapters: AdapterControls | None = None
        if all(engine.adapters is not None for engine in engines):
            self.adapters = ReplicaAdapters(self.replicas)
        self._conversations: OrderedDict[Hashable, Replica] = OrderedDict()
        self._num_picks = 0
        self._models: tuple[str, ...] = ()

    @property
    def _first(self) -> Engine:
        """The driver that speaks for all."""
        best = max(self.replicas, key=lambda r: (r.is_ready, r.state is not None))
        return best.engine

    @property
    def upstream(self) -> Upstream:
        """The connections to one that answers."""
        return self._first.upstream

    @property
    def capabilities(self) -> Capabilities:
        """What all can do, as far as they answer."""
        known = [r.engine.capabilities for r in self.replicas if r.state is not None]
        first = self._first.capabilities
        return replace(
            first,
            # Versions are loaded on all or on none.
            adapters=min(one.adapters for one in known or [first]),
            token_ids=all(one.token_ids for one in known or [first]),
            prompt_ids=all(one.prompt_ids for one in known or [first]),
            logprobs=all(one.logprobs for one in known or [first]),
            stream_logprobs=all(one.stream_logprobs for one in known or [first]),
        )

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """What each claims and doesn't deliver, with its address."""
        return tuple(
            f"{replica.engine.upstream.url}: {what}"
            for replica in self.replicas
            for what in replica.engine.shortfalls
        )

    def pick(self, ask: Ask, session: str | None) -> Engine:
        """Return the driver of the server for one request.

        A conversation stays with its server, where its prompt is cached; a new one goes to the
        least busy, of equals the one that was not chosen longest.

        Raises:
            EngineNotReady: none gets requests now.
        """
        ready = [r for r in self.replicas if r.is_in]
        # Better one that failed than none.
        ready = [r for r in ready if not r.is_suspect] or ready
        if not ready:
            reasons = "; ".join(f"{r.engine.upstream.url}: {r.reason}" for r in self.replicas)
            raise EngineNotReady(f"no engine is ready: {reasons}; try again soon")
        least = min(ready, key=lambda r: (r.num_in_flight, r.picked))
        conversation = conversation_of(ask, session)
        chosen = self._conversations.get(conversation)
        if chosen not in ready or chosen.num_in_flight > least.num_in_flight + SLACK:
            chosen = least
        self._num_picks += 1
        chosen.picked = self._num_picks
        if conversation is not None:
            self._conversations[conversation] = chosen
            self._conversations.move_to_end(conversation)
            if len(self._conversations) > MAX_CONVERSATIONS:
                self._conversations.popitem(last=False)
        return chosen.engine

    def suspect(self, engine: object) -> None:
        """Send no more requests to a server until it answers a check, and verify it anew then."""
        for replica in self.replicas:
            if replica.engine is engine:
                replica.is_suspect = True

    def plan(self, ask: Ask) -> Plan:
        """Return what one of them would be sent; who sends asks the one it picked."""
        return self._first.plan(ask)

    def headers(self, client: Headers) -> Headers:
        """Return the headers for any of them."""
        return self._first.headers(client)

    async def count_prompt(self, served: str, chat: Mapping[str, object]) -> int:
        """Ask one that answers: all read alike."""
        return await self._first.count_prompt(served, chat)

    async def render(self, served: str, chat: Mapping[str, object]) -> str:
        """Ask one that answers: all read alike."""
        return await self._first.render(served, chat)

    async def verify(self, model: str) -> None:
        """Do nothing: each is verified as it is checked."""

    def findings(self) -> Findings:
        """Return what was found out of each, and which of them get requests."""
        found = [
            ReplicaFindings(r.engine.findings(), r.state, r.reason, r.is_in, r.is_suspect)
            for r in self.replicas
        ]
        return Findings(replicas=tuple(found))

    def adopt(self, findings: Findings) -> None:
        """Take over what another process has found out of the same servers, in the same order."""
        for replica, found in zip(self.replicas, findings.replicas, strict=True):
            replica.engine.adopt(found.findings)
            replica.state, replica.reason = found.state, found.reason
            replica.is_in, replica.is_suspect = found.is_in, found.is_suspect

    async def check(self) -> EngineState:
        """Look at each, and return what the first that answers says of itself.

        One that still serves what they served before speaks rather than one that came back with
        another model.

        Raises:
            StropError: none answers.
        """
        await asyncio.gather(*(self._look(replica) for replica in self.replicas))
        states = [r.state for r in self.replicas if r.state is not None]
        if not states:
            reasons = "; ".join(r.reason for r in self.replicas)
            raise EngineNotReady(f"none of {len(self.replicas)} engines is ready: {reasons}")
        known = next((state for state in states if state.models == self._models), states[0])
        self._models = known.models
        for replica in self.replicas:
            if replica.state is not None and replica.state.models != known.models:
                expected, got = ", ".join(known.models), ", ".join(replica.state.models)
                replica.leave(f"expected it to serve {expected}, got {got}")
        return known

    async def _look(self, replica: Replica) -> None:
        try:
            state = await replica.engine.check()
        except StropError as error:
            replica.leave(error.message)
            return
        if replica.is_suspect:
            replica.is_suspect = False
            replica.verification.doubt()
        await replica.verification.attempt(replica.engine, state.models[0])
        replica.state = state


def conversation_of(ask: Ask, session: str | None) -> Hashable:
    """Return what tells a conversation from others: its label, or how it began; None: nothing."""
    if session is not None:
        return session
    if ask.dialect == "completions":
        prompt = ask.fields.get("prompt")
        return _key(prompt[:_NUM_KEY_ITEMS] if isinstance(prompt, str | list) else prompt)
    messages = ask.fields.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and message.get("role") == "user":
            return _key(message.get("content"))
    return None


def _key(value: object) -> Hashable:
    # A hash: thousands are kept, and a first message may hold whole files.
    return None if value is None else hash(value if isinstance(value, str) else repr(value))


class ReplicaAdapters:
    """The adapter controls of all servers.

    Args:
        replicas: the servers.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas

    def members(self) -> Mapping[str, AdapterControl]:
        """Return the control of each server that answers, by its address."""
        return {
            replica.engine.upstream.url: control
            for replica in self._replicas
            if replica.state is not None and replica.engine.adapters is not None
            for control in replica.engine.adapters.members().values()
        }
