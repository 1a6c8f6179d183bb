"""Which served version a model name means, and who is being served by which.

Pure state of one process. Does not load, probe or unload anything, and never reads the database.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic

from strop.proxy.errors import EngineNotReady, UnknownModel, VersionNotLoaded

BASE = "base"
_VERSION = re.compile(r"base|v[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class Served:
    """A version as the engine knows it.

    Attributes:
        version: `v3`, or `base`.
        name: what it is served under there.
        base: the identity of the base behind it; None where that isn't known.
    """

    version: str
    name: str
    base: str | None = None


@dataclass(frozen=True, slots=True)
class Alias:
    """The model name that clients use, and what it means now.

    Immutable: a switch of version puts a new one in its place.

    Attributes:
        name: the public model name; `<name>@<version>` pins a version.
        base: the base, loaded or not.
        active: what unpinned requests get, once it is among `versions`.
        versions: every version that is loaded and proven.
        others: the names of other bases that the engine serves; they have no versions.
        synonyms: what else means `name`; each pins as `name` does.
        accepts_any: whether an unknown name means `name` instead of an error.
        why_not: why the active version isn't among `versions`, for people.
    """

    name: str
    base: Served
    active: Served
    versions: Mapping[str, Served]
    others: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    accepts_any: bool = False
    why_not: str = "the engine does not hold it yet"

    @classmethod
    def of_base(
        cls,
        name: str,
        models: Sequence[str],
        *,
        synonyms: Sequence[str] = (),
        accepts_any: bool,
        active: str = BASE,
        base: str | None = None,
    ) -> "Alias":
        """Return the alias of an engine that serves `models`, and no versions of them yet.

        The first of them answers to `name`, or to its own where that is empty, and to its own
        `synonyms` with that. `active` is the version that it is to serve, and `base` the identity
        of its base.
        """
        served = Served(BASE, models[0], base)
        public = name or served.name
        # Who asks for one that `name` hides gets what `name` means.
        others = tuple(model for model in models if model not in (served.name, public))
        first = served if active == BASE else Served(active, f"{public}@{active}", base)
        own = (served.name, *synonyms)
        same = tuple(one for one in own if one != public) if public in own else ()
        return cls(public, served, first, {BASE: served}, others, same, accepts_any)

    @property
    def is_served(self) -> bool:
        """Whether unpinned requests can be served."""
        return self.active.version in self.versions

    def serving(self, versions: Mapping[str, Served], active: Served | None = None) -> "Alias":
        """Return the next alias: with these versions, and `active` if it is another now."""
        active = active or versions.get(self.active.version, self.active)
        return replace(self, versions=versions, active=active)

    def identified(self, base: str | None) -> "Alias":
        """Return the next alias: its versions known to be of the base with this identity."""
        versions = {key: replace(one, base=base) for key, one in self.versions.items()}
        known = self.serving(versions, replace(self.active, base=base))
        return replace(known, base=replace(self.base, base=base))

    def resolve(self, model: object) -> Served:
        """Return the version that a request's `model` means.

        Raises:
            VersionNotLoaded: it pins a version that isn't loaded; there may be none such.
            UnknownModel: it is none of `names()`.
            EngineNotReady: the active version isn't loaded.
        """
        if model == self.name or model in self.synonyms:
            return self._active()
        if isinstance(model, str):
            if model in self.others:
                return Served(BASE, model)
            name, _, version = model.rpartition("@")
            if name == self.name or name in self.synonyms:
                if version in self.versions:
                    return self.versions[version]
                if _VERSION.fullmatch(version):
                    raise VersionNotLoaded(self.no_such(model), version=version)
        if self.accepts_any:
            return self._active()
        raise UnknownModel(self.no_such(model), param="model")

    def _active(self) -> Served:
        if self.active.version not in self.versions:
            raise EngineNotReady(self.not_served())
        return self.active

    def not_served(self) -> str:
        """Return what to say of the active version while it isn't among `versions`."""
        return (
            f"{self.active.version}, the active version of {self.name}, is not served:"
            f" {self.why_not}; try again soon, or activate another version"
        )

    def no_such(self, model: object) -> str:
        """Return what to say of a name that is none of `names()`."""
        there = f"the models are: {', '.join(self.names())}"
        if isinstance(model, str):
            return f"the model {model[:100]!r} does not exist here; {there}"
        came = "none" if model is None else f"a value of type {type(model).__name__}"
        return f"expected `model` to name one, got {came}; {there}"

    def names(self) -> list[str]:
        """Return every name that a request may use, once."""
        pins = (f"{self.name}@{version}" for version in self.versions)
        # Another strop, as the engine, has pins of its own.
        return list(dict.fromkeys((self.name, *self.synonyms, *pins, *self.others)))


@dataclass(slots=True)
class Leases:
    """How many requests are being served by each version."""

    _held: Counter[str] = field(default_factory=Counter)
    _idle_since: dict[str, float] = field(default_factory=dict)
    _freed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, served: Served) -> None:
        """Hold `served` for one request."""
        self._held[served.version] += 1

    def release(self, served: Served) -> None:
        """Give one hold back.

        Raises:
            RuntimeError: none is held; a request was finished twice.
        """
        version = served.version
        left = self._held[version] - 1
        if left < 0:
            raise RuntimeError(f"no lease on {version} is held")
        self._held[version] = left
        if not left:
            self._idle_since[version] = monotonic()
            self._freed.set()

    def count(self, version: str) -> int:
        """Return how many requests hold `version`."""
        return self._held[version]

    @property
    def total(self) -> int:
        """How many requests hold any version."""
        return self._held.total()

    def idle_since(self, version: str | None = None) -> float:
        """Return the monotonic time at which nobody held `version` any more; 0.0 if never held.

        Without one, the last such time of any version.
        """
        if version is None:
            return max(self._idle_since.values(), default=0.0)
        return self._idle_since.get(version, 0.0)

    async def wait_until_free(self, version: str | None = None) -> None:
        """Return when nobody holds `version`, or any version at all."""
        while self.total if version is None else self._held[version]:
            self._freed.clear()
            await self._freed.wait()
