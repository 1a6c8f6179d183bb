"""Which served version a model name means, and who is being served by which.

Pure state of one process. Does not load, probe or unload anything, and never reads the database.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from strop.proxy.errors import UnknownModel

BASE = "base"


@dataclass(frozen=True, slots=True)
class Served:
    """A version as the engine knows it: `v3` or `base`, and the name it is served under there."""

    version: str
    name: str


@dataclass(frozen=True, slots=True)
class Alias:
    """The model name that clients use, and what it means in this epoch.

    Immutable: a switch of version puts a new one in its place.

    Attributes:
        name: the public model name; `<name>@<version>` pins a version.
        active: what unpinned requests get.
        versions: every version that is loaded, `active` among them.
        others: the names of other bases that the engine serves; they have no versions.
        accepts_any: whether an unknown name means `name` instead of an error.
    """

    name: str
    active: Served
    versions: Mapping[str, Served]
    others: tuple[str, ...] = ()
    accepts_any: bool = False
    epoch: int = 0

    @classmethod
    def of_base(cls, name: str, models: Sequence[str], *, accepts_any: bool) -> "Alias":
        """Return the alias of an engine that serves `models`, and no versions of them.

        An empty `name` means the first one's; a `name` that is one of them means that one; any
        other is a new name for the first.
        """
        served = name if name in models else models[0]
        base = Served(BASE, served)
        others = tuple(model for model in models if model != served)
        return cls(name or served, base, {BASE: base}, others, accepts_any)

    def resolve(self, model: object) -> Served:
        """Return the version that a request's `model` means.

        Raises:
            UnknownModel: it is none of `names()`.
        """
        if model == self.name:
            return self.active
        if isinstance(model, str):
            name, _, version = model.rpartition("@")
            if name == self.name and version in self.versions:
                return self.versions[version]
            if model in self.others:
                return Served(BASE, model)
        if self.accepts_any:
            return self.active
        raise UnknownModel(
            f"the model {_shown(model)} does not exist here; the models are: "
            + ", ".join(self.names()),
            param="model",
        )

    def names(self) -> list[str]:
        """Return every name that a request may use."""
        pins = (f"{self.name}@{version}" for version in self.versions)
        return [self.name, *pins, *self.others]


def _shown(model: object) -> str:
    return repr(model[:100]) if isinstance(model, str) else f"of type {type(model).__name__}"


@dataclass(slots=True)
class Leases:
    """How many requests are being served by each version."""

    _held: Counter[str] = field(default_factory=Counter)

    def take(self, served: Served) -> None:
        """Hold `served` for one request."""
        self._held[served.version] += 1

    def release(self, served: Served) -> None:
        """Give one hold back.

        Raises:
            RuntimeError: none is held; a request was finished twice.
        """
        if not self._held[served.version]:
            raise RuntimeError(f"no lease on {served.version} is held")
        self._held[served.version] -= 1

    def count(self, version: str) -> int:
        """Return how many requests hold `version`."""
        return self._held[version]
