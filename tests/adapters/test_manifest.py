"""The manifest's codec: what goes in comes out, and nothing else is taken for one."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.adapters import manifest as manifests
from strop.adapters.manifest import InvalidManifest, Manifest
from strop.adapters.probe import Item, Probe

BASE = "sha256:" + "0123456789abcdef" * 4

ITEM = Item((1, 2), (3, 4), (0.5, 1e-7), (-0.1, -0.2), None, (-1.0, -2.0))

FULL = Manifest(
    version="v3",
    parent="v2",
    base=BASE,
    origin="run",
    run="run_1",
    objective="topr",
    feedback=(("fb_1", 1), ("fb_2", 3)),
    metrics={"loss": 0.1, "steps": [1, 2], "by": {"a": None}},
    verdict={"outcome": "passed", "reasons": ["fine"]},
    files={"adapter_config.json": "a" * 64, "adapter_model.safetensors": "b" * 64},
    probe=Probe((ITEM,), "float32"),
    created_ms=1_700_000_000_000,
)
LEAST = Manifest(version="v1", base=BASE, origin="import", created_ms=0)


@pytest.mark.parametrize("manifest", [FULL, LEAST])
def test_what_is_written_is_read(manifest: Manifest) -> None:
    """Every member, and every float exactly."""
    assert manifest == manifests.loads(manifests.dumps(manifest))


def test_names_that_are_numbers_are_read_as_written() -> None:
    """JSON has them as strings, which sort otherwise; the digest fits what is read."""
    manifest = replace(LEAST, metrics={"by_step": {2: 0.5, 10: 0.25}})

    assert {"by_step": {"2": 0.5, "10": 0.25}} == manifests.loads(manifests.dumps(manifest)).metrics


finite = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def items(draw: st.DrawFn) -> Item:
    size = draw(st.integers(0, 3))
    numbers = st.lists(finite, min_size=size, max_size=size).map(tuple)
    ids = st.lists(st.integers(0, 2**31), min_size=size, max_size=size).map(tuple)
    prompt = draw(st.lists(st.integers(0, 2**31), min_size=1, max_size=3).map(tuple))
    return Item(
        prompt, draw(ids), draw(numbers), draw(numbers), draw(st.none() | numbers), draw(numbers)
    )


@given(st.lists(items(), max_size=3).map(tuple), st.sampled_from(["float32", "bfloat16"]))
def test_any_probe_is_read_again(probe_items: tuple[Item, ...], dtype: str) -> None:
    """With all its floats exact."""
    manifest = Manifest(
        version="v1", base=BASE, origin="run", created_ms=0, probe=Probe(probe_items, dtype)
    )

    assert manifest == manifests.loads(manifests.dumps(manifest))


def changed(**members: Any) -> bytes:
    """Return the full manifest's JSON with other members."""
    return json.dumps(json.loads(manifests.dumps(FULL)) | members).encode()


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"format": 2}, "reads format 1"),
        ({"version": "3"}, "version must be a version id"),
        ({"version": "base"}, "version must be a version id"),
        ({"parent": "base"}, "parent must be"),
        ({"base": "sha256:12"}, "base must be an identity"),
        ({"origin": "found"}, "origin must be"),
        ({"run": ""}, "run must be"),
        ({"feedback": [["fb_1"]]}, "feedback must be"),
        ({"feedback": [["fb_1", "1"]]}, "feedback must be"),
        ({"metrics": []}, "metrics must be"),
        ({"verdict": "passed"}, "verdict must be"),
        ({"files": {"../x": "a" * 64}}, "files must be"),
        ({"files": {"manifest.json": "a" * 64}}, "files must be"),
        ({"files": {"x": "a"}}, "files must be"),
        ({"created_ms": -1}, "created_ms must be"),
        ({"created_ms": True}, "created_ms must be"),
        ({"probe": {}}, "a probe must be"),
        ({"probe": {"dtype": "float32", "items": [{}]}}, "item 0 of the probe must have"),
        ({"more": 1}, "unknown member 'more'"),
        ({"metrics": {"loss": 0.2}}, "was changed after it was written"),
        ({"digest": None}, "was changed after it was written"),
    ],
)
def test_what_is_not_as_it_was_written_is_refused(members: dict[str, Any], says: str) -> None:
    """The message names the member and what was expected."""
    with pytest.raises(InvalidManifest, match=says):
        manifests.loads(changed(**members))


@pytest.mark.parametrize("name", [*json.loads(manifests.dumps(FULL))])
def test_every_member_is_needed(name: str) -> None:
    """One that is missing is not taken for empty."""
    raw = json.loads(manifests.dumps(FULL))
    del raw[name]

    with pytest.raises(InvalidManifest):
        manifests.loads(json.dumps(raw).encode())


def shorten(item: dict[str, Any]) -> None:
    item["margins"].pop()


def make_nan(item: dict[str, Any]) -> None:
    item["base"][0] = float("nan")


def make_bool(item: dict[str, Any]) -> None:
    item["ids"][0] = True


def empty_prompt(item: dict[str, Any]) -> None:
    item["prompt_ids"] = []


def text_parent(item: dict[str, Any]) -> None:
    item["parent"] = "base"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (shorten, "margins must be a list of 2"),
        (make_nan, "base must be finite"),
        (make_bool, "ids must be a list of token ids"),
        (empty_prompt, "has no prompt"),
        (text_parent, "parent must be a list"),
    ],
)
def test_a_probe_that_does_not_hang_together_is_refused(
    change: Callable[[dict[str, Any]], None], says: str
) -> None:
    """Each id has its margin and its logprobs, all of them numbers."""
    raw = json.loads(manifests.dumps(FULL))
    change(raw["probe"]["items"][0])

    with pytest.raises(InvalidManifest, match=says):
        manifests.loads(json.dumps(raw).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b"{}"])
def test_other_bytes_are_refused(data: bytes) -> None:
    """Whatever they are, the error is ours."""
    with pytest.raises(InvalidManifest):
        manifests.loads(data)


@pytest.mark.parametrize(
    "manifest",
    [
        Manifest(version="v1", base="qwen3", origin="run", created_ms=0),
        Manifest(version="1", base=BASE, origin="run", created_ms=0),
        Manifest(version="v1", base=BASE, origin="run", created_ms=0, metrics={"a": float("nan")}),
        Manifest(version="v1", base=BASE, origin="run", created_ms=0, metrics={"a": object()}),
        Manifest(version="v1", base=BASE, origin="run", created_ms=0, files={"a/b": "0" * 64}),
    ],
)
def test_what_could_not_be_read_is_not_written(manifest: Manifest) -> None:
    """A mistake shows when it is made, not when the version is needed."""
    with pytest.raises(InvalidManifest):
        manifests.dumps(manifest)
