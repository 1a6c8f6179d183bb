"""The library of versions on disk: whole or not at all, never changed, and noticed where it was."""

import errno
import os
import re
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import LIMIT_S

from strop.adapters import manifest as manifests
from strop.adapters.library import Library
from strop.adapters.manifest import Manifest
from strop.adapters.peft import AdapterNotFound, InvalidAdapter

BASE = "sha256:" + "0" * 64


def manifest(version: str = "v1") -> Manifest:
    return Manifest(version=version, base=BASE, origin="run", created_ms=1)


def write(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights" * 1000)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "adapters")


def left_over(library: Library) -> list[str]:
    """Return all names in the library that are no version's."""
    versions = {library.path_of(version).name for version in library.versions_on_disk()}
    return sorted(set(names_in(library.folder)) - versions)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_version_appears_with_its_files_and_their_hashes(library: Library) -> None:
    """The manifest names every file but itself, and what it says is read again."""
    path = library.create("v1", write, manifest())

    assert library.path_of("v1") == path
    assert re.fullmatch("v1-[0-9a-f]{8}", path.name)
    assert {"adapter_config.json", "adapter_model.safetensors"} == set(library.verify("v1").files)
    assert library.read_manifest("v1") == library.verify("v1")
    assert (["v1"], []) == ([*library.versions_on_disk()], left_over(library))


def test_other_files_are_in_another_folder(tmp_path: Path) -> None:
    """An engine that outlives a home has never seen the path of the next home's v1."""
    first, same, other = (Library(tmp_path / name) for name in ("first", "same", "other"))

    def write_other(folder: Path) -> None:
        write(folder)
        (folder / "adapter_config.json").write_text("{ }")

    names = [library.create("v1", write, manifest()).name for library in (first, same)]
    names.append(other.create("v1", write_other, manifest()).name)

    assert names[0] == names[1] != names[2]


def test_a_folder_without_digits_is_a_version_too(library: Library) -> None:
    """One with the digits of other files is none."""
    path = library.create("v1", write, manifest())
    bare = path.rename(library.folder / "v1")

    assert (bare, ("v1",)) == (library.path_of("v1"), library.versions_on_disk())
    library.verify("v1")
    with pytest.raises(FileExistsError, match="never written again"):
        library.create("v1", write, manifest())

    bare.rename(library.folder / "v1-00000000")
    with pytest.raises(InvalidAdapter, match="is of v1 or v1-"):
        library.verify("v1")


def test_only_the_owner_reads_it(library: Library) -> None:
    """Folders are 0700 and files 0600, whatever the writer's mask was."""

    def write_open(folder: Path) -> None:
        write(folder)
        (folder / "adapter_config.json").chmod(0o666)

    path = library.create("v1", write_open, manifest())

    assert {0o700} == {stat.S_IMODE(each.stat().st_mode) for each in (library.folder, path)}
    assert {0o600} == {stat.S_IMODE(each.stat().st_mode) for each in path.iterdir()}


def test_a_version_is_never_written_again(library: Library) -> None:
    """Neither over another version nor over an empty folder of its name."""
    library.create("v1", write, manifest())
    library.path_of("v2").mkdir()

    for version in ("v1", "v2"):
        with pytest.raises(FileExistsError, match="never written again"):
            library.create(version, write, manifest(version))

    assert [] == left_over(library)
    assert [] == names_in(library.path_of("v2"))


def test_of_two_writers_of_one_version_one_wins(library: Library) -> None:
    """The other is told, and leaves nothing behind."""
    barrier = threading.Barrier(2, timeout=LIMIT_S)
    outcomes: list[str] = []

    def meet(folder: Path) -> None:
        write(folder)
        barrier.wait()

    def create() -> None:
        try:
            library.create("v1", meet, manifest())
            outcomes.append("written")
        except FileExistsError:
            outcomes.append("refused")

    threads = [threading.Thread(target=create) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ["refused", "written"] == sorted(outcomes)
    assert [] == left_over(library)
    library.verify("v1")


class Broken(Exception):
    """What a writer raises here."""


def fail(folder: Path) -> None:
    write(folder)
    raise Broken


def run_out_of_space(folder: Path) -> None:
    write(folder)
    raise OSError(28, "No space left on device")


def make_folder(folder: Path) -> None:
    write(folder)
    (folder / "checkpoint").mkdir()


def make_link(folder: Path) -> None:
    write(folder)
    (folder / "extra").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("writer", "error"),
    [
        (fail, Broken),
        (run_out_of_space, OSError),
        (make_folder, InvalidAdapter),
        (make_link, InvalidAdapter),
    ],
)
def test_a_writer_that_fails_leaves_nothing(
    library: Library, writer: Callable[[Path], None], error: type[Exception]
) -> None:
    """Its error comes out, the version isn't there, and may be written later."""
    with pytest.raises(error):
        library.create("v1", writer, manifest())

    assert ([], ()) == (left_over(library), library.versions_on_disk())
    library.create("v1", write, manifest())


def test_a_full_disk_leaves_nothing(library: Library) -> None:
    """Where a real write is cut off by the system, the folder is gone again."""
    script = """
        import resource, signal, sys
        from pathlib import Path
        from strop.adapters.library import Library
        from strop.adapters.manifest import Manifest

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        manifest = Manifest(version="v1", base=sys.argv[2], origin="run", created_ms=1)
        try:
            Library(Path(sys.argv[1])).create(
                "v1", lambda folder: (folder / "weights").write_bytes(bytes(6000)), manifest
            )
        except OSError as error:
            print(error.strerror)
    """

    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(library.folder), BASE],
        check=True,
        capture_output=True,
        text=True,
    )

    assert "File too large" == ran.stdout.strip()
    assert [] == names_in(library.folder)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", manifests.FILE]
)
def test_one_changed_byte_is_noticed(library: Library, name: str) -> None:
    """Of any file, the manifest's own included; the message names it."""
    path = library.create("v1", write, manifest())
    flip_a_bit(path / name)

    with pytest.raises(InvalidAdapter, match=name):
        library.verify("v1")


def link_weights(path: Path) -> None:
    weights = path / "adapter_model.safetensors"
    weights.rename(path.parent / "elsewhere")
    weights.symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: (path / "adapter_config.json").unlink(), "lacks its file adapter_config"),
        (lambda path: (path / "adapter_model.bin").write_bytes(b"pickle"), "adapter_model.bin"),
        (lambda path: (path / "checkpoint").mkdir(), "checkpoint"),
        (link_weights, "adapter_model.safetensors in v1-.* is a link"),
    ],
)
def test_what_is_missing_added_or_linked_is_noticed(
    library: Library, change: Callable[[Path], object], says: str
) -> None:
    """A version has exactly the plain files that were written."""
    change(library.create("v1", write, manifest()))

    with pytest.raises(InvalidAdapter, match=says):
        library.verify("v1")


def test_a_folder_under_another_name_is_no_version(library: Library) -> None:
    """Neither a copy of a version nor a link to one passes for it."""
    path = library.create("v1", write, manifest())
    path.rename(library.path_of("v2"))
    library.path_of("v1").symlink_to(library.path_of("v2"))

    with pytest.raises(InvalidAdapter, match="is of v1"):
        library.verify("v2")
    with pytest.raises(InvalidAdapter, match="is a link"):
        library.verify("v1")
    assert ("v2",) == library.versions_on_disk()


def test_what_is_not_there_is_told_apart(library: Library) -> None:
    """A version without a folder, or with an empty one, is not found."""
    library.path_of("v2").mkdir()

    for version in ("v1", "v2"):
        with pytest.raises(AdapterNotFound):
            library.verify(version)


@pytest.mark.parametrize("version", ["", "v0", "v01", "1", "base", "v1/../v2", "../v1", "v1\n"])
def test_only_version_ids_name_folders(library: Library, version: str) -> None:
    """No name leads out of the library."""
    with pytest.raises(ValueError, match="is no version id"):
        library.path_of(version)


def test_versions_are_listed_by_number(library: Library) -> None:
    """And nothing else that lies there is."""
    for version in ("v10", "v2", "v1"):
        library.create(version, write, manifest(version))
    (library.folder / "notes").mkdir()
    (library.folder / "v3").write_text("a file")

    assert ("v1", "v2", "v10") == library.versions_on_disk()


def test_a_removed_version_is_gone(library: Library) -> None:
    """Wholly; removing it again, or what never was, is no error."""
    library.create("v1", write, manifest())

    library.remove("v1")
    library.remove("v1")

    assert [] == names_in(library.folder)


def test_a_version_can_be_removed_from_a_full_disk(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is how room is made; a new folder would have none."""

    def refuse(path: str, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    library.create("v1", write, manifest())
    monkeypatch.setattr(os, "mkdir", refuse)

    library.remove("v1")

    assert [] == names_in(library.folder)


def test_what_a_dead_writer_left_is_cleaned_up(library: Library) -> None:
    """A killed process leaves its folder; the next start removes it and no version."""
    library.create("v1", write, manifest())
    script = """
        import os, signal, sys
        from pathlib import Path
        from strop.adapters.library import Library
        from strop.adapters.manifest import Manifest

        manifest = Manifest(version="v2", base=sys.argv[2], origin="run", created_ms=1)

        def die(folder):
            (folder / "adapter_config.json").write_text("{}")
            os.kill(os.getpid(), signal.SIGKILL)

        Library(Path(sys.argv[1])).create("v2", die, manifest)
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(library.folder), BASE], check=False
    )
    unfinished = left_over(library)

    cleaned = library.clean()

    assert 1 == len(unfinished)
    assert tuple(unfinished) == cleaned
    assert (["v1"], []) == ([*library.versions_on_disk()], left_over(library))


def test_what_is_being_written_is_not_cleaned_up(library: Library) -> None:
    """A start of the proxy doesn't take the folder from under a trainer's feet."""

    def write_while_cleaning(folder: Path) -> None:
        assert () == Library(library.folder).clean()
        write(folder)

    library.create("v1", write_while_cleaning, manifest())

    library.verify("v1")


def test_the_manifest_is_of_the_version_it_lies_in(library: Library) -> None:
    """A mistake of the caller's is one before anything is written."""
    with pytest.raises(ValueError, match="the manifest is of v2"):
        library.create("v1", write, manifest("v2"))

    assert [] == names_in(library.folder)
