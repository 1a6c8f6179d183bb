"""The folder of adapter versions: each is written once, whole or not at all, and never changed.

But for a manifest without a probe, which gets one when it can be made.

Does not know which versions the store has, nor what is in their weights.

A version's folder is `v3-5d41402a`: its id, and the first digits of a hash of its files. Engines
that outlive a home keep weights and prefix caches by path, and the next home at the same place has
a v3 too.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from strop.adapters import durable
from strop.adapters import manifest as manifests
from strop.adapters.manifest import Manifest
from strop.adapters.peft_config import AdapterNotFound, InvalidAdapter
from strop.adapters.probe_values import Probe

_UNFINISHED = ".unfinished-"
_ADVICE = "put its folder back as it was, from a copy, or import or train it anew"
# Without digits where a person, or an early strop, has put it.
_FOLDER = re.compile(rf"({manifests.VERSION_ID.pattern})(?:-([0-9a-f]{{8}}))?")


class Library:
    """The versions under one folder, each in a folder of its own.

    Folders are 0700 and files 0600. Several processes may use one library at once.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folder where it isn't there; its parent must be."""
        self.folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)

    def path_of(self, version: str) -> Path:
        """Return where a version's folder is; where there is none, a path at which nothing is.

        Raises:
            ValueError: `version` is no version id.
        """
        if manifests.VERSION_ID.fullmatch(version) is None:
            raise ValueError(f"{version!r} is no version id; expected v and a number")
        names = [entry.name for entry, found in self._entries() if found == version]
        return self.folder / max(names, default=version)

    def create(self, version: str, write: Callable[[Path], None], manifest: Manifest) -> Path:
        """Add a version; once this returns, it is on disk for good.

        Args:
            version: its id, which no other version ever had.
            write: writes the version's files into the empty folder it is given.
            manifest: what to say of it; its `files` are filled in here.

        Raises:
            FileExistsError: the version is there already.
            InvalidAdapter: what was written are not plain files.
            OSError: it can't be written, for instance because the disk is full.

        Whatever is raised, by `write` too, nothing is left behind.
        """
        if manifest.version != version:
            raise ValueError(f"the manifest is of {manifest.version}, the folder is {version}'s")
        _refuse_existing(self.path_of(version))
        with self.scratch() as scratch:
            write(scratch)
            files = {path.name: _sha256(path) for path in _plain_files(scratch)}
            target = self.folder / f"{version}-{_digits(files)}"
            (scratch / manifests.FILE).write_bytes(manifests.dumps(replace(manifest, files=files)))
            for path in _plain_files(scratch):
                path.chmod(0o600)
                durable.sync(path)
            durable.sync(scratch)
            # Another writer's may have other digits, and a rename replaces an empty folder.
            with _locked(self.folder, fcntl.LOCK_EX):
                _refuse_existing(self.path_of(version))
                scratch.rename(target)
        try:
            durable.sync(self.folder)
        except OSError:
            shutil.rmtree(target, ignore_errors=True)
            raise
        return target

    def add_probe(self, version: str, probe: Probe) -> None:
        """Write a version's manifest again, with its probe; all else stays as it was.

        Raises:
            AdapterNotFound, InvalidAdapter: as `read_manifest`.
            OSError: it can't be written; the manifest is then as it was.
        """
        made = replace(self.read_manifest(version), probe=probe)
        folder = self.path_of(version)
        with self.scratch() as scratch:
            file = scratch / manifests.FILE
            file.write_bytes(manifests.dumps(made))
            file.chmod(0o600)
            durable.publish(file, folder / manifests.FILE)

    def read_manifest(self, version: str) -> Manifest:
        """Return a version's manifest; its files are not looked at.

        Raises:
            AdapterNotFound: there is no such version.
            InvalidAdapter: the manifest is broken, or another version's.
        """
        folder = self.path_of(version)
        try:
            manifest = manifests.loads((folder / manifests.FILE).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise AdapterNotFound(f"there is no version {version} in {self.folder}") from None
        own = manifest.version, f"{manifest.version}-{_digits(manifest.files)}"
        if manifest.version != version or folder.name not in own:
            raise InvalidAdapter(f"the manifest in {folder} is of {' or '.join(own)}")
        return manifest

    def verify(self, version: str) -> Manifest:
        """Return a version's manifest, once all of its files are as they were written.

        Raises:
            AdapterNotFound: there is no such version.
            InvalidAdapter: a file was changed, is missing, is no plain file, or was added; the
                message names it.
        """
        manifest = self.read_manifest(version)
        folder = self.path_of(version)
        if folder.is_symlink():
            raise InvalidAdapter(f"{folder} is a link; a version is a plain folder")
        found = {path.name: path for path in _plain_files(folder) if path.name != manifests.FILE}
        if missing := manifest.files.keys() - found.keys():
            raise InvalidAdapter(f"{version} lacks its file {min(missing)}; {_ADVICE}")
        if added := found.keys() - manifest.files.keys():
            raise InvalidAdapter(
                f"{version} has the file {min(added)}, which its manifest doesn't name; {_ADVICE}"
            )
        for name, digest in manifest.files.items():
            if _sha256(found[name]) != digest:
                raise InvalidAdapter(
                    f"{name} of {version} was changed after it was written: its hash is another;"
                    f" {_ADVICE}"
                )
        return manifest

    def versions_on_disk(self) -> tuple[str, ...]:
        """Return the ids of the versions that have a folder, oldest first; none is looked into."""
        found = {
            version for entry, version in self._entries() if entry.is_dir(follow_symlinks=False)
        }
        return tuple(sorted(found, key=lambda version: int(version[1:])))

    def remove(self, version: str) -> None:
        """Delete a version's folder, at once as far as others see; no error where there is none."""
        folder = self.path_of(version)
        # Beside it, not in a folder made for it: a full disk has no room for one.
        scratch = folder.with_name(f"{_UNFINISHED}{folder.name}")
        with suppress(FileNotFoundError):
            folder.rename(scratch)
        durable.sync(self.folder)
        shutil.rmtree(scratch, ignore_errors=True)

    def clean(self) -> tuple[str, ...]:
        """Delete what writers left that died, and return the names; what is being written stays."""
        removed = []
        with _locked(self.folder, fcntl.LOCK_EX):
            for path in sorted(self.folder.glob(f"{_UNFINISHED}*")):
                with suppress(OSError), _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(path)
                    removed.append(path.name)
        return tuple(removed)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a folder that `clean` leaves alone while this process lives; it goes at the end."""
        with ExitStack() as stack:
            with _locked(self.folder, fcntl.LOCK_EX):
                scratch = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.folder))
                stack.enter_context(_locked(scratch, fcntl.LOCK_EX))
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def _entries(self) -> list[tuple[os.DirEntry[str], str]]:
        """Return what has a version's name, and the version's id."""
        with suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            named = [(entry, _FOLDER.fullmatch(entry.name)) for entry in entries]
            return [(entry, name[1]) for entry, name in named if name is not None]
        return []


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise FileExistsError(
            errno.EEXIST, "a version's folder is never written again", str(target)
        )


def _plain_files(folder: Path) -> list[Path]:
    """Return the files in a folder by name, once nothing else is in it."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        if not entry.is_file(follow_symlinks=False):
            raise InvalidAdapter(
                f"{entry.name} in {folder.name} is a link or a folder; a version has plain files"
            )
    return [Path(entry.path) for entry in entries]


def _digits(files: Mapping[str, str]) -> str:
    """Return what stands for the content of files, by their hashes."""
    said = json.dumps(files, sort_keys=True).encode()
    return hashlib.sha256(said).hexdigest()[:8]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Hold a lock on a folder; the death of this process frees it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)
