"""Which base a folder holds: one hash over its config, tokenizer and weights.

The same for every copy of the folder, wherever it lies. Loads no weights.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from strop.adapters import base_model

# What says how or when the folder was saved, not what the model computes.
_VOLATILE = frozenset(
    {"_name_or_path", "name_or_path", "transformers_version", "transformers.js_config", "use_cache"}
)
# A chat template makes prompts; what the ids in them mean, and do, is the same under another.
_NOT_IDENTITY = frozenset({"chat_template"})
_TOKENIZER_JSON = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")

# Within this time of a change, a file may change again and keep its size and time.
_SETTLED_NS = 2_000_000_000


def identify(folder: Path, *, cache: Path | None) -> str:
    """Return the identity of the base in `folder`, `sha256:` and 64 hexadecimal digits.

    Reading the weights takes a second for each gigabyte or two, so each file's hash is kept in the
    JSON file `cache`, by path, size and modification time; the identity is always put together
    anew. A cache that can't be read or written is no error.

    Raises:
        InvalidBase: the folder is no model in Hugging Face format, or changes while it is read.
    """
    known = _Cache(cache)
    lines = [f"config {_json_digest(base_model.read_config(folder), _VOLATILE)}"]
    for name in _TOKENIZER_JSON:
        with suppress(FileNotFoundError):
            lines.append(f"{name} {_json_file_digest(folder / name)}")
    lines += [
        f"{name} {known.digest_of(folder / name)}"
        for name in _TOKENIZER_FILES
        if (folder / name).is_file()
    ]
    lines += [f"{path.name} {known.digest_of(path)}" for path in base_model.weight_files(folder)]
    known.save()
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _json_file_digest(path: Path) -> str:
    try:
        return _json_digest(json.loads(path.read_bytes()), _VOLATILE | _NOT_IDENTITY)
    except (ValueError, RecursionError) as error:
        raise base_model.InvalidBase(f"{path} is not JSON: {error}") from error


def _json_digest(value: Any, without: frozenset[str]) -> str:
    """Return the hash of a JSON value, whatever its layout and the order of its members."""
    if isinstance(value, Mapping):
        value = {key: member for key, member in value.items() if key not in without}
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


class _Cache:
    """Hashes of files, by path; each is good while the file's size and time stay the same."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._is_changed = False
        self._files: dict[str, Any] = {}
        if path is not None:
            with suppress(OSError, ValueError, RecursionError):
                files = json.loads(path.read_bytes())
                self._files = files if isinstance(files, dict) else {}

    def digest_of(self, path: Path) -> str:
        """Return the sha256 of a file's bytes."""
        key = str(path.resolve())
        before = path.stat()
        size, mtime_ns = before.st_size, before.st_mtime_ns
        match self._files.get(key):
            case {"size": int(a), "mtime_ns": int(b), "sha256": str(digest)} if (a, b) == (
                size,
                mtime_ns,
            ):
                return digest
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = path.stat()
        if (after.st_size, after.st_mtime_ns) != (size, mtime_ns):
            raise base_model.InvalidBase(f"{path} changed while it was read; is it being copied?")
        if time.time_ns() - mtime_ns > _SETTLED_NS:
            self._files[key] = {"size": size, "mtime_ns": mtime_ns, "sha256": digest}
            self._is_changed = True
        return digest

    def save(self) -> None:
        """Write what was learned, whole or not at all."""
        if self._path is None or not self._is_changed:
            return
        with suppress(OSError):
            handle, scratch = tempfile.mkstemp(prefix=".identity-", dir=self._path.parent)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(self._files, file, indent=1, sort_keys=True)
                Path(scratch).replace(self._path)
            except BaseException:
                Path(scratch).unlink(missing_ok=True)
                raise
