"""What the rest of strop may ask of an engine, whichever it is.

Knows no engine. A driver declares what its engine can do; nobody asks for an engine's name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from strop.proxy.upstream.upstream import Upstream
from strop.proxy.wire import body
from strop.proxy.wire.headers import Headers
from strop.proxy.wire.restore import Restorer

if TYPE_CHECKING:
    from strop.proxy.engines.findings import Findings
    from strop.proxy.engines.replica import Replica

Dialect = Literal["chat", "completions"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do.

    Attributes:
        token_ids: it returns the sampled ids.
        stream_logprobs: streams carry logprobs too.
        score_tokens: it returns the logprobs of given ids.
        adapters: how many adapter versions may be live at once; 0 for none.
        is_local: the weights behind it are the person's own, so answers are on-policy.
        prompt_ids: with the sampled ids it returns the prompt's.
        body_ids_are_unique: the `id` in its answers names one answer.
        logprobs: its JSON answers carry the logprob of each sampled token.
        logprobs_kind: what its logprobs are: `raw` log-softmax at T = 1, or `processed`.
        logprobs_show_penalties: those of a request with penalties or logit_bias are `processed`.
        may_drop_tokens: its logprobs may lack tokens, those that end inside a character for
            instance; so they count only where there are as many as it says it sampled.
        obeys_n: it gives as many choices as `n` says, and not one whatever it says.
        dtype: what it keeps its weights or its cache in, whichever is coarser; empty where it
            doesn't say.
        sampling: by which parameters it samples where a request says nothing, as far as it tells.
    """

    token_ids: bool
    stream_logprobs: bool
    score_tokens: bool
    adapters: int
    is_local: bool
    prompt_ids: bool = True
    body_ids_are_unique: bool = True
    logprobs: bool = True
    logprobs_kind: Literal["raw", "processed"] = "raw"
    logprobs_show_penalties: bool = False
    may_drop_tokens: bool = False
    obeys_n: bool = True
    dtype: str = ""
    sampling: Mapping[str, int | float] = field(default_factory=dict)


class Ask(msgspec.Struct, frozen=True):
    """A client's request as the relay has read it.

    Attributes:
        dialect: which API it speaks.
        raw: the body as the client sent it.
        fields: the body's members, inline commands taken out.
        served: the engine's name for the version that serves.
        is_rewritten: whether `fields` differ from `raw`.
        is_captured: whether the answer is recorded, so that a snapshot is of use.
        follows: the completion whose answer the client names as the last of its history.
    """

    dialect: Dialect
    raw: bytes
    fields: Mapping[str, object]
    served: str = ""
    is_rewritten: bool = False
    is_captured: bool = True
    follows: str | None = None

    @property
    def is_stream(self) -> bool:
        """Whether the client wants server-sent events."""
        return self.fields.get("stream") is True


class Plan(msgspec.Struct, frozen=True):
    """What goes to the engine, and what the client gets of its answer.

    Attributes:
        body: the request.
        restore: what comes out of the answer again; None: nothing.
        reword: makes an OpenAI error object of an error's body, where the engine writes others.
        rechunk: makes the stream that the client asked for of a JSON answer, where the engine was
            asked for one in its place.
    """

    body: bytes
    restore: Restorer | None
    reword: Callable[[int, bytes], bytes] | None = None
    rechunk: Callable[[bytes], bytes] | None = None

    @classmethod
    def of(
        cls, ask: Ask, served: str, changes: Mapping[str, object], restore: Restorer | None = None
    ) -> "Plan":
        """Return the plan that asks `served` with `changes`; as it came where nothing changes."""
        if ask.fields.get("model") != served:
            changes = {**changes, "model": served}
        if not changes and not ask.is_rewritten:
            return cls(ask.raw, None)
        return cls(body.dumps({**ask.fields, **changes}), restore)


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an engine says of itself: the names of the bases it serves, and its version.

    `digest` is what it says identifies its base's weights, where it has better than names.
    `synonyms` are further names that it takes for the first of `models`, which has them not.
    `sampling` is as in `Capabilities`.
    """

    models: tuple[str, ...]
    version: str | None
    max_model_len: int | None = None
    digest: str | None = None
    synonyms: tuple[str, ...] = ()
    sampling: Mapping[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdaptersFolder:
    """Strop's adapters folder: where it is `here`, and what an engine elsewhere calls it.

    `there` is `engine.adapters_dir`, empty where the engine sees the same paths.
    """

    here: Path
    there: str = ""

    def seen(self, folder: Path) -> str:
        """Return the path under which the engine sees `folder`."""
        if not self.there:
            return str(folder)
        return str(PurePosixPath(self.there) / folder.relative_to(self.here).as_posix())

    def known(self, path: str) -> str:
        """Return what strop calls the engine's `path`: its own folder if it is one."""
        seen = PurePosixPath(path)
        if not self.there or not seen.is_relative_to(self.there):
            return path
        return str(self.here / seen.relative_to(self.there))


class AdapterControl(Protocol):
    """What a server that can serve adapter versions is asked about them.

    Names are served names, unique for each version of a home. Folders are never used again for
    other weights, not even by another home in the place of this one. Every method raises
    UpstreamError where the engine isn't there, or says no; the message is its own.
    """

    async def prepare(self, name: str, folder: Path) -> None:
        """Validate, convert and upload, so that `load` is quick; nothing that serves changes."""
        ...

    async def load(self, name: str, folder: Path) -> None:
        """Make the engine serve the PEFT adapter in `folder` as `name`; converted where it must be.

        `folder` is immutable, and no other version ever has it. Done when a request for `name`
        would be served; at once where it is loaded from there already. Where the engine holds one
        version at a time, its former one is gone then.
        """
        ...

    async def unload(self, name: str) -> None:
        """Make the engine forget `name`; no error where it doesn't know it.

        Where it holds one version at a time, it serves its base then.
        """
        ...

    async def loaded(self) -> Mapping[str, str]:
        """Return the names that the engine serves beside its bases, and the folder of each.

        The folder as strop knows it where it is one of strop's, else the engine's own word for it.
        It is the truth after the engine's restart: that is how a restart is noticed.
        """
        ...

    async def generate(
        self, name: str, prompt_ids: Sequence[int], num_tokens: int, *, uses_cache: bool
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return `num_tokens` ids at T = 0 (past an end-of-text token), and the logprob of each.

        Without `uses_cache` no part of the prompt may come from a prefix cache. An engine that
        gives no ids returns what it can match to the tokenizer, or raises.
        """
        ...

    async def score(
        self, name: str, prompt_ids: Sequence[int], ids: Sequence[int]
    ) -> tuple[float, ...]:
        """Return the logprobs of `ids` after `prompt_ids`; only where it has `score_tokens`."""
        ...


class AdapterControls(Protocol):
    """The controls of an engine's servers."""

    def members(self) -> Mapping[str, AdapterControl]:
        """Return those of the servers that can be asked now, by label."""
        ...


class Engine(Protocol):
    """One engine, local or remote, or several that serve the same."""

    label: str

    @property
    def adapters(self) -> AdapterControls | None:
        """How its adapter versions are loaded; None where it can't serve any."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can do, as far as it is known."""
        ...

    @property
    def upstream(self) -> Upstream:
        """The connections to it."""
        ...

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """What it claims and doesn't deliver, for people; known once it is verified."""
        ...

    @property
    def replicas(self) -> "tuple[Replica, ...]":
        """The servers it is made of; empty for one."""
        ...

    def pick(self, ask: Ask, session: str | None) -> "Engine":
        """Return the driver of the server that is to answer `ask`, of the session so labelled.

        Raises:
            EngineNotReady: there is none now.
        """
        ...

    def suspect(self, engine: "Engine") -> None:
        """Note that requests could not reach the server of a driver that was picked, or fail."""
        ...

    def plan(self, ask: Ask) -> Plan:
        """Return the request to send for `ask`, with a snapshot asked for where the engine can.

        Raises:
            BadRequest: `ask` has fields that choose weights or files.
        """
        ...

    def headers(self, client: Headers) -> Headers:
        """Return the request headers to send, from those the client sent."""
        ...

    async def count_prompt(self, served: str, chat: Mapping[str, object]) -> int:
        """Return how many tokens the model that the engine calls `served` reads of a chat.

        Raises:
            NotFound: this engine can't tell.
            BadRequest: it can't read the chat; the message is its own.
            UpstreamError: it isn't there, or fails.
        """
        ...

    async def render(self, served: str, chat: Mapping[str, object]) -> str:
        """Return what the model that the engine calls `served` reads of a chat, as text.

        Raises:
            NotFound: this engine can't tell.
            BadRequest: it can't read the chat; the message is its own.
            UpstreamError: it isn't there, or fails.
        """
        ...

    async def check(self) -> EngineState:
        """Return what the engine says of itself, once it is ready to answer.

        Raises:
            UpstreamError: it isn't there, or isn't ready.
        """
        ...

    async def verify(self, model: str) -> None:
        """Find out what it claims and doesn't deliver: `capabilities` and `shortfalls` then say so.

        Raises:
            EngineNotReady: it fails, though it says that it is ready.
            UpstreamError, UpstreamTimeout: it could not be found out.
        """
        ...

    def findings(self) -> "Findings":
        """Return what was found out."""
        ...

    def adopt(self, findings: "Findings") -> None:
        """Take over what another process has found out."""
        ...
