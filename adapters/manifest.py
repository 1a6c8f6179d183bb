"""A version's `manifest.json`: where it comes from, what it learned from, its files' hashes.

Strict: reads what it writes and nothing else. Touches no files.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from strop.adapters import probe_codec
from strop.adapters.peft import InvalidAdapter
from strop.adapters.probe_values import Probe

FILE = "manifest.json"
FORMAT = 1

VERSION_ID = re.compile(r"v[1-9][0-9]{0,8}")
_IDENTITY = re.compile(r"sha256:[0-9a-f]{64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class InvalidManifest(InvalidAdapter):
    """The manifest is not one, is of another format, or was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What is known of a version when it is written; never changed after.

    Attributes:
        version: its id.
        parent: the version it was trained on from; None for the base.
        base: the identity of the base it is of.
        origin: whether a run made it or it was imported.
        run: the run that made it.
        objective: the name of what it was trained with.
        feedback: (id, revision) of each rating it learned from itself.
        metrics: what was measured while it was trained, JSON values by name.
        verdict: what the gate found, as the gate writes it; None for an import.
        files: the sha256 of each of its files but the manifest, by name.
        probe: how to tell it from others; None until one was made.
        created_ms: when it was written, Unix time.
    """

    version: str
    base: str
    origin: Literal["run", "import"]
    created_ms: int
    parent: str | None = None
    run: str | None = None
    objective: str | None = None
    feedback: tuple[tuple[str, int], ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    verdict: Mapping[str, Any] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    probe: Probe | None = None


def dumps(manifest: Manifest) -> bytes:
    """Return the manifest as JSON, with a digest of itself as its last member.

    Raises:
        InvalidManifest: a value is not of its kind, or is no JSON (NaN included).
    """
    raw = {
        "format": FORMAT,
        "version": manifest.version,
        "parent": manifest.parent,
        "base": manifest.base,
        "origin": manifest.origin,
        "run": manifest.run,
        "objective": manifest.objective,
        "feedback": [list(pair) for pair in manifest.feedback],
        "metrics": dict(manifest.metrics),
        "verdict": None if manifest.verdict is None else dict(manifest.verdict),
        "files": dict(sorted(manifest.files.items())),
        "probe": None if manifest.probe is None else probe_codec.to_json(manifest.probe),
        "created_ms": manifest.created_ms,
    }
    _parse(raw)
    # The digest is of what will be read: JSON's names are strings, and are sorted as such.
    read = json.loads(_canonical(raw))
    return json.dumps({**read, "digest": _digest(read)}, indent=1).encode() + b"\n"


def loads(data: bytes) -> Manifest:
    """Return the manifest that `data` holds.

    Raises:
        InvalidManifest: it is none, of another format, or not as it was written.
    """
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidManifest(f"{FILE} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InvalidManifest(f"{FILE} must be a JSON object, got {type(raw).__name__}")
    if raw.get("format") != FORMAT:
        raise InvalidManifest(
            f"{FILE} has format {raw.get('format')!r}; this strop reads format {FORMAT}. Was it "
            "written by a newer one?"
        )
    digest = raw.pop("digest", None)
    manifest = _parse(raw)
    if digest != _digest(raw):
        raise InvalidManifest(f"{FILE} was changed after it was written: its digest doesn't fit")
    return manifest


def _digest(raw: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(raw).encode()).hexdigest()


def _canonical(raw: Mapping[str, Any]) -> str:
    try:
        return json.dumps(raw, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidManifest(f"the manifest has a value that JSON can't hold: {error}") from error


def _parse(raw: Mapping[str, Any]) -> Manifest:
    if unknown := raw.keys() - _MEMBERS.keys() - {"format"}:
        raise InvalidManifest(f"{FILE} has the unknown member {sorted(unknown)[0]!r}")
    for name, (is_right, expected) in _MEMBERS.items():
        if name not in raw:
            raise InvalidManifest(f"{FILE} has no {name!r}; expected {expected}")
        if not is_right(raw[name]):
            raise InvalidManifest(f"{FILE}: {name} must be {expected}, got {str(raw[name])[:80]!r}")
    try:
        probe = None if raw["probe"] is None else probe_codec.from_json(raw["probe"])
    except probe_codec.InvalidProbe as error:
        raise InvalidManifest(f"{FILE}: {error}") from error
    return Manifest(
        version=raw["version"],
        parent=raw["parent"],
        base=raw["base"],
        origin=raw["origin"],
        run=raw["run"],
        objective=raw["objective"],
        feedback=tuple((str(id_), int(revision)) for id_, revision in raw["feedback"]),
        metrics=raw["metrics"],
        verdict=raw["verdict"],
        files=raw["files"],
        probe=probe,
        created_ms=raw["created_ms"],
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_text_or_none(value: object) -> bool:
    return value is None or _is_text(value)


def _is_version(value: object) -> bool:
    return isinstance(value, str) and VERSION_ID.fullmatch(value) is not None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_feedback(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and _is_text(pair[0]) and _is_count(pair[1])
        for pair in value
    )


def _is_object_or_none(value: object) -> bool:
    return value is None or isinstance(value, dict)


def _is_files(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_file_name(name) and isinstance(digest, str) and _SHA256.fullmatch(digest)
        for name, digest in value.items()
    )


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..", FILE) and not set(name) & set("/\\\0")


# Each member, what checks it, and how an error names what was expected.
_MEMBERS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "version": (_is_version, "a version id such as v3"),
    "parent": (lambda value: value is None or _is_version(value), "a version id or null"),
    "base": (
        lambda value: isinstance(value, str) and _IDENTITY.fullmatch(value) is not None,
        "an identity, sha256: and 64 hexadecimal digits",
    ),
    "origin": (lambda value: value in ("run", "import"), "run or import"),
    "run": (_is_text_or_none, "a run's id or null"),
    "objective": (_is_text_or_none, "an objective's name or null"),
    "feedback": (_is_feedback, "a list of [feedback id, revision]"),
    "metrics": (lambda value: isinstance(value, dict), "an object"),
    "verdict": (_is_object_or_none, "an object or null"),
    "files": (_is_files, "an object of file names and their sha256"),
    "probe": (_is_object_or_none, "a probe or null"),
    "created_ms": (_is_count, "a Unix time in milliseconds"),
}
