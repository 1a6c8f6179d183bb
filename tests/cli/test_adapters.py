"""`strop adapters`, `strop runs` and `strop train`, beside a proxy and without one."""

import asyncio
import contextlib
import json
import re
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fake_probe
import fake_run
import models
import pytest
import shelved
from click.testing import CliRunner, Result
from fake_adapters import FakeAdapters
from fake_engine import FakeEngine
from fake_vllm import FakeVllm
from running import Running, running, settings_for
from store_values import MODEL, database_in, first_of_session, learnable, rate, record
from waiting import until

from strop.adapters import manifest
from strop.adapters.identity import identify
from strop.adapters.library import Library
from strop.configs import demo_model
from strop.proxy import foreground, run_requests
from strop.proxy.cli import training as cli_training
from strop.proxy.cli.root import main
from strop.proxy.engines.base import AdaptersFolder
from strop.proxy.engines.vllm import Vllm
from strop.proxy.home import Serves, hold
from strop.proxy.settings.settings import Settings, Training
from strop.proxy.settings.told import tell
from strop.proxy.store import layout, run_lock
from strop.proxy.store.run_records import Run, RunUpdate
from strop.proxy.store.store import Store
from strop.proxy.upstream.upstream import Upstream


class Home:
    """A home with a store, and the commands that are typed for it."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder = folder
        self.store = store
        self.library = Library(folder / "adapters")

    async def strop(self, *arguments: str) -> Result:
        """Run a command; the loop goes on meanwhile."""
        runner = CliRunner(env={"STROP_HOME": str(self.folder)})
        return await asyncio.to_thread(runner.invoke, main, arguments)

    async def publish(self, **how: Any) -> str:
        """Add a version."""
        return await shelved.publish(self.store, self.library, **how)


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    """A home from which nobody serves."""
    store = await Store.open(database_in(tmp_path), synchronous="off")
    yield Home(tmp_path, store)
    await store.close()


@contextlib.asynccontextmanager
async def serving(folder: Path, behaviour: str = "passes") -> AsyncIterator[tuple[Home, Running]]:
    """Serve from a home, with a fake engine that loads adapters, and runs that behave so."""
    async with FakeEngine(FakeAdapters()) as engine:
        driver = Vllm(
            Upstream(engine.url), adapters=AdaptersFolder(folder / "adapters"), scores=True
        )
        settings = settings_for(engine.url, model={"base": str(demo_model())})
        train = fake_run.command(behaviour)
        async with running(settings, folder, driver=driver, train_command=train) as proxy:
            with hold(folder, Serves(proxy.url)):
                yield Home(folder, proxy.services.store), proxy


def columns(text: str) -> list[list[str]]:
    """Return the words of each line."""
    return [line.split() for line in text.splitlines()]


async def test_versions_are_listed_newest_first(home: Home) -> None:
    """The active one is marked; what each learned from and how it was rated is shown."""
    learned = await learnable(home.store, 1)
    await home.publish(base=MODEL, feedback=[learned])
    await home.publish(base=MODEL, parent="v1")
    await home.store.versions.activate("v1", actor="cli")
    await home.store.versions.set_kept("v2", True)

    text = await home.strop("adapters", "list")
    found = json.loads((await home.strop("adapters", "list", "--json")).stdout)

    header, second, first, base = columns(text.stdout)
    assert ["VERSION", "STATE", "PARENT", "LEARNED", "LIKED", "MADE", "NOTE"] == header
    assert (["v2", "ready", "v1", "0"], "kept") == (second[:4], second[-1])
    assert ["*", "v1", "active", "base", "1"] == first[:5]
    assert ["base", "1.00", "(0.27-1.00)", "of", "1"] == base
    assert ("v1", "base", ["v2", "v1"]) == (
        found["active"], found["previous"], [one["id"] for one in found["data"]],
    )  # fmt: skip


async def test_versions_of_several_bases_say_which_they_are_of(tmp_path: Path) -> None:
    """By the name of the folder, or the hub id, that a run trained, and a few digits.

    And `base` is the one that serves.
    """
    hub = "/hub/models--acme--Large-3B/snapshots/0123abcd"
    served = identify(demo_model(), cache=None)
    store = await Store.open(database_in(tmp_path), synchronous="off")
    before = Home(tmp_path, store)
    for base, folder in ((MODEL, hub), (served, "/models/small")):
        made_by = await store.runs.create(
            objective="topr", preset="balanced", parent=None, base=base, requested_by="cli",
            config=json.dumps({"base_path": folder}).encode(),
        )  # fmt: skip
        await before.publish(base=base, run=made_by.id)
        await store.runs.update(made_by.id, RunUpdate(state="failed"))
        await record(store, f"cmp_{base[7:15]}", base=base, version="base")
        await rate(store, f"cmp_{base[7:15]}", 1.0 if base == served else -1.0)
    await before.publish(base=MODEL)
    await store.close()
    async with serving(tmp_path) as (home, _):
        listed = columns((await home.strop("adapters", "list")).stdout)
        refused = await home.strop("adapters", "activate", "v3")
        not_continued = await home.strop("train", "--detach", "--parent", "v1")

    large, small = f"acme/Large-3B ({MODEL[7:15]})", f"small ({served[7:15]})"
    assert "BASE" == listed[0][3]
    shown = [" ".join(line) for line in listed[1:]]
    assert f"v3 ready base {large}, not served 0 " in shown[0]
    assert f"v2 ready base {small} 0 " in shown[1]
    assert f"v1 ready base {large}, not served 0 " in shown[2]
    assert f"* base {small} 1.00 (" in shown[3]
    assert f"v3 was made for the base {large}, and the engine serves" in refused.stderr
    assert f"({served[7:15]}); serve its base" in refused.stderr
    assert f"but v1 is of {large}" in not_continued.stderr
    assert "sha256" not in refused.stderr + not_continued.stderr


async def test_what_another_base_answered_is_not_said_of_the_one_that_serves(
    tmp_path: Path,
) -> None:
    """Nor of any, where none serves and there are several."""
    store = await Store.open(database_in(tmp_path), synchronous="off")
    await learnable(store, 1)
    await Home(tmp_path, store).publish(base=MODEL)
    await store.close()
    async with serving(tmp_path) as (home, proxy):
        served = columns((await home.strop("adapters", "list")).stdout)
        await home.publish(base=proxy.services.serving.base)
    stopped = columns((await home.strop("adapters", "list")).stdout)

    digits = identify(demo_model(), cache=None)[7:15]
    assert ["*", "base", digits] == served[-1]
    assert ["*", "base"] == stopped[-1]


async def test_what_the_engine_can_not_serve_is_not_marked(home: Home) -> None:
    """Whatever is active, its own model answers; the note says so."""
    learned = await learnable(home.store, 1)
    await home.publish(base=MODEL, feedback=[learned])
    await home.store.versions.activate("v1", actor="cli")
    await home.store.withdraw(learned[0], None)
    async with (
        FakeEngine(FakeVllm()) as engine,
        running(settings_for(engine.url, kind="openai"), home.folder) as proxy,
    ):
        with hold(home.folder, Serves(proxy.url)):
            text = (await home.strop("adapters", "list")).stdout

    _, first, base = columns(text)
    assert ["v1", "active,", "stale", "base", "1"] == first[:5]
    assert "not served by this engine; v1 learned from" in text
    assert "base" == base[0]


async def test_a_version_is_shown_without_a_proxy(home: Home) -> None:
    """Where it comes from, and what happened to it."""
    await home.publish()

    text = (await home.strop("adapters", "show", "v1")).stdout
    found = json.loads((await home.strop("adapters", "show", "v1", "--json")).stdout)

    assert ["version", "v1"] in columns(text)
    assert ["state", "ready"] in columns(text)
    assert "passed" in text
    assert ("v1", []) == (found["id"], found["loaded"])


async def test_a_version_is_exported_as_any_tool_loads_it(home: Home, tmp_path: Path) -> None:
    """A copy of its verified folder, in one that wasn't there; what people asked stays here."""
    await home.publish()
    kept = home.library.read_manifest("v1")
    to = tmp_path / "mine"

    done = await home.strop("adapters", "export", "v1", str(to))
    again = await home.strop("adapters", "export", "v1", str(to))
    file = to / "adapter_model.safetensors"
    inside = await home.strop("adapters", "export", "v1", str(file / "new"))
    (home.library.path_of("v1") / "adapter_model.safetensors").chmod(0o600)
    (home.library.path_of("v1") / "adapter_model.safetensors").write_bytes(b"broken")
    broken = await home.strop("adapters", "export", "v1", str(tmp_path / "other"))

    assert (0, f"v1 is in {to}\n") == (done.exit_code, done.stdout)
    assert b"weights" * 100 == (to / "adapter_model.safetensors").read_bytes()
    assert kept.probe is not None
    assert replace(kept, probe=None) == manifest.loads((to / manifest.FILE).read_bytes())
    assert 2 == again.exit_code
    assert "expected a folder that doesn't exist yet" in again.stderr
    assert 1 == inside.exit_code
    assert "v1 can't be exported: " in inside.stderr
    assert 1 == broken.exit_code
    assert "adapter_model.safetensors" in broken.stderr
    assert not (tmp_path / "other").exists()


async def test_an_export_from_where_no_strop_was_leaves_nothing_there(tmp_path: Path) -> None:
    """A folder that is named by mistake is no home afterwards."""
    words = ["adapters", "export", "v1", str(tmp_path / "new"), "--home", str(tmp_path)]
    result = await asyncio.to_thread(CliRunner().invoke, main, words)

    assert 2 == result.exit_code
    assert f"there is no {tmp_path / layout.DATABASE}" in result.stderr
    assert "serve --home" in result.stderr
    assert [] == [*tmp_path.iterdir()]


async def test_an_export_that_is_cut_off_leaves_nothing(home: Home, tmp_path: Path) -> None:
    """Half a version looks like one; and the command can be given again."""

    def write(folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_bytes(bytes(200_000))

    await home.publish(write=write)
    to = tmp_path / "new" / "mine"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        cut_off = await home.strop("adapters", "export", "v1", str(to))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    left = [*to.parent.iterdir()]
    again = await home.strop("adapters", "export", "v1", str(to))

    assert (1, []) == (cut_off.exit_code, left)
    assert "v1 can't be exported: " in cut_off.stderr
    assert (0, 200_000) == (again.exit_code, (to / "adapter_model.safetensors").stat().st_size)


async def test_the_owner_moves_between_versions(tmp_path: Path) -> None:
    """Activate, keep, roll back and remove, through the proxy that serves."""
    async with serving(tmp_path) as (home, proxy):
        base = proxy.services.serving.base
        for _ in range(2):
            await home.publish(base=base)

        said = [
            await home.strop(*words.split())
            for words in (
                "adapters activate v1",
                "adapters activate v2",
                "adapters activate v2",
                "adapters show v2",
                "adapters keep v1",
                "adapters keep v1 --release",
                "adapters rollback",
                "adapters remove v2",
            )
        ]
        events = await home.store.versions.list_events("v1")

    assert [0] * 8 == [one.exit_code for one in said], [one.output for one in said]
    first, second, again, shown, kept, let_go, back, removed = (one.stdout for one in said)
    assert first.startswith("v1 serves, after base; it took ")
    assert "probe: proven" in first
    assert second.startswith("v2 serves, after v1; it took ")
    assert "v2 serves already\n" == again
    assert ["loaded", "vllm,", "0", "running", "requests"] in columns(shown)
    assert ("v1 is kept\n", "v1 is kept no longer than others\n") == (kept, let_go)
    assert back.startswith("v1 serves, after v2; it took ")
    assert "v2 is removed\n" == removed
    assert {"cli"} == {event.actor for event in events if event.kind == "activated"}


async def test_a_rollback_says_that_what_serves_is_stale(tmp_path: Path) -> None:
    """And why, and how to be rid of what was taken back."""
    async with serving(tmp_path) as (home, proxy):
        base = proxy.services.serving.base
        learned = await learnable(home.store, 1)
        await home.publish(base=base, feedback=[learned])
        await home.publish(base=base)
        said = [await home.strop("adapters", "activate", one) for one in ("v1", "v2")]
        await home.store.withdraw(learned[0], None)

        back = await home.strop("adapters", "rollback")

    assert not any("stale" in one.stdout for one in said)
    assert back.stdout.startswith("v1 serves, after v2; it took ")
    last = back.stdout.splitlines()[-1]
    assert last.startswith(f"it is stale: v1 learned from {learned[0]}, which was withdrawn since")
    assert "strop train --relearn" in last


async def test_an_adapter_is_imported(tmp_path: Path) -> None:
    """From any folder; what is none is refused, and what has no probe needs force."""
    async with serving(tmp_path) as (home, _):
        (tmp_path / "no-adapter").mkdir()
        lora = models.make_peft(
            demo_model(), tmp_path / "lora", rank=2, alpha=4, targets=models.ALL_LINEAR, seed=1,
            scale=0.1,
        )  # fmt: skip

        refused = await home.strop("adapters", "import", str(tmp_path / "no-adapter"))
        made = await home.strop("adapters", "import", str(lora))
        runs = home.folder / layout.RUNS
        runs.mkdir(exist_ok=True)
        with run_lock.hold(runs, "run_1"):
            later = await home.strop("adapters", "import", str(lora))

    assert (0, f"v2 is ready, but can't be proven to serve: {fake_probe.NO_PROBE}") == (
        made.exit_code,
        made.stdout.splitlines()[0],
    )
    assert "To let it serve: strop adapters activate v2 --force" in made.stdout
    says = f"v3 is ready, but can't be proven to serve yet: {run_requests.AWAITS_RUN}"
    assert says == later.stdout.splitlines()[0]
    assert later.stdout.splitlines()[1].startswith("Then: strop adapters activate v3")
    assert "--force" not in later.stdout
    assert 1 == refused.exit_code
    assert "no-adapter can't be imported" in refused.stderr


@pytest.mark.parametrize(
    "words",
    [
        "adapters activate v1",
        "adapters rollback",
        "adapters remove v1",
        "adapters keep v1",
        "adapters import .",
        "train --detach",
    ],
)
async def test_what_moves_traffic_needs_a_proxy(home: Home, words: str) -> None:
    """The line to start one is said."""
    result = await home.strop(*words.split())

    assert 2 == result.exit_code
    assert "strop serve" in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("adapters show v7", 1, "there is no version 'v7'; see: strop adapters list"),
        ("adapters export v7 {home}/new", 1, "there is no version 'v7'; see: strop adapters list"),
        ("adapters export base {home}/new", 1, "there is no version 'base'"),
        ("adapters export v1 {home}/new --home {home}/none", 2, "there is no {home}/none/strop.db"),
        ("runs show run_7", 1, "there is no run 'run_7'; see: strop runs list"),
        ("runs cancel run_7", 1, "no run 'run_7'"),
        ("runs list --after run_7", 2, "expected `after` to be an id"),
        ("train --preset bold", 2, "expected `preset` to be one of aggressive, balanced"),
        ("train --relearn --parent v1", 2, "expected --relearn or --parent, got both"),
        ("train --objective ppo", 2, "'ppo' is not one of"),
    ],
)
async def test_errors_are_one_line_and_an_exit_code(
    home: Home, words: str, code: int, says: str
) -> None:
    """2 for what was typed or set, 1 for the rest; on standard error, and no run is queued."""
    result = await home.strop(*words.format(home=home.folder).split())

    assert (code, "") == (result.exit_code, result.stdout), result.output
    assert says.format(home=home.folder) in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert () == (await home.store.runs.list()).data


@pytest.mark.parametrize(
    "words", ["show v7", "activate v7", "keep v7", "remove v7", "show ../runs"]
)
async def test_what_the_proxy_does_not_know_is_said(tmp_path: Path, words: str) -> None:
    """With the command that lists what there is, as where none serves."""
    async with serving(tmp_path) as (home, _):
        result = await home.strop("adapters", *words.split())

    name = words.split()[1]
    assert (1, f"Error: there is no version '{name}'; see: strop adapters list\n") == (
        result.exit_code,
        result.stderr,
    )


@pytest.mark.parametrize(
    ("words", "serves"),
    [
        *(("show v1", True), ("activate v1", True), ("keep v1", True), ("remove v1", True)),
        *(("show v1", False), ("export v1 {home}/new", False)),
    ],
)
async def test_of_what_was_removed_it_is_said_when(home: Home, words: str, serves: bool) -> None:
    """Runs and events name it still; that it never was would be untrue."""
    await home.publish()
    await home.store.versions.remove("v1", actor="api")
    (removed,) = await home.store.versions.list_events("v1", limit=1)
    day = time.strftime("%Y-%m-%d", time.localtime(removed.created_ms / 1000))

    async with serving(home.folder) if serves else contextlib.nullcontext():
        result = await home.strop("adapters", *words.format(home=home.folder).split())

    assert (1, f"Error: v1 was removed on {day}; see: strop adapters list\n") == (
        result.exit_code,
        result.stderr,
    )


async def test_an_error_of_the_proxys_is_said(tmp_path: Path) -> None:
    """Its message, and exit code 1."""
    async with serving(tmp_path) as (home, proxy):
        await home.publish(base=proxy.services.serving.base)
        await home.strop("adapters", "activate", "v1")
        result = await home.strop("adapters", "remove", "v1")

    assert (1, "Error: v1 is active; activate another version first, or roll back\n") == (
        result.exit_code,
        result.stderr,
    )


async def test_train_waits_for_the_run_of_the_proxy(tmp_path: Path) -> None:
    """It exits with 0 where a version passed, and says what was learned."""
    async with serving(tmp_path) as (home, _):
        how = ("--objective", "sft", "--preset", "careful", "--seed", "7")
        done = await home.strop("train", *how)
        found = json.loads((await home.strop("runs", "list", "--json")).stdout)

    assert 0 == done.exit_code, done.output
    assert ["version", "v1"] in columns(done.stdout)
    assert ["how", "sft,", "careful"] in columns(done.stdout)
    assert ["reason", "good", "enough"] in columns(done.stdout)
    # The proxy is at it, or through with it.
    assert done.stdout.splitlines()[-1].startswith(("v1 is ready; strop activates it now", "v1 se"))
    assert ("passed", "cli") == (found["data"][0]["state"], found["data"][0]["requested_by"])
    assert 7 == found["data"][0]["config"]["seed"]


async def test_train_fails_where_no_version_passed(tmp_path: Path) -> None:
    """With exit code 1, the reasons, and which version was rejected: it is there to be seen."""
    async with serving(tmp_path, "rejects") as (home, _):
        done = await home.strop("train")

    assert 1 == done.exit_code
    assert ["reason", "too", "odd"] in columns(done.stdout)
    told = "v1 was rejected, and doesn't serve. See all of it: strop adapters show v1"
    assert told in done.stdout
    assert "No version was made." not in done.stdout


async def test_status_says_what_is_to_be_done_about_versions(home: Home) -> None:
    """That the active one is stale, and which newer ones wait; not others of no use."""
    learned = await learnable(home.store, 1)
    await home.publish(base=MODEL)
    await home.publish(base=MODEL, feedback=[learned])
    fresh = (await home.strop("status")).stdout
    await home.store.versions.activate("v2", actor="cli")
    active = (await home.strop("status")).stdout

    await home.store.withdraw(learned[0], None)
    await home.publish(base=MODEL, feedback=[learned])
    await home.publish(base="sha256:" + "7" * 64)
    await home.publish(base=MODEL)
    stale = (await home.strop("status")).stdout
    found = json.loads((await home.strop("status", "--json")).stdout)["store"]
    await home.store.runs.create(
        objective="topr", preset="balanced", parent=None, base=MODEL, requested_by="cli"
    )
    training = (await home.strop("status")).stdout

    assert [
        "active version  base",
        "ready           v2, v1, not activated; to let it serve: strop adapters activate v2",
    ] == fresh.splitlines()[-2:]
    assert "active version  v2" == active.splitlines()[-1]
    why = f"v2 learned from {learned[0]}, which was withdrawn since"
    assert [
        f"active version  v2, stale: {why}",
        "                train anew: strop train --relearn",
        "ready           v5, not activated; to let it serve: strop adapters activate v5",
    ] == stale.splitlines()[-3:]
    assert (why, ["v5"]) == (found["stale"], found["ready"])
    assert f"v2, stale: {why}" in training
    assert "train anew" not in training


async def test_status_says_why_what_is_ready_does_not_serve(home: Home) -> None:
    """It passed, and could not be activated then: nothing tries again by itself."""
    await home.publish(base=MODEL)
    for reason in ("the engine was away", "v1 can't be converted: no gguf"):
        detail = json.dumps({"reason": reason}).encode()
        await home.store.versions.add_event("v1", "activation_failed", actor="cli", detail=detail)

    status = await home.strop("status")

    assert (
        "ready           v1, not activated (v1 can't be converted: no gguf); to let it serve:"
        " strop adapters activate v1"
    ) == status.stdout.splitlines()[-1]


async def test_status_says_what_is_ready_of_the_base_that_serves(tmp_path: Path) -> None:
    """Where the base is active, no version says which that is; whoever serves does."""
    async with serving(tmp_path) as (home, proxy):
        await until(lambda: proxy.services.serving.base is not None)
        await home.publish(base=identify(demo_model(), cache=None))
        await home.publish(base=MODEL)

        status = await home.strop("status")

    assert "ready           v1, not activated; to let it serve" in status.stdout


async def test_status_says_of_an_engine_without_versions_that_the_active_one_waits(
    home: Home,
) -> None:
    """The base answers there, whatever is active, and nothing else can be activated."""
    await home.publish(base=MODEL)
    await home.publish(base=MODEL)
    await home.store.versions.activate("v1", actor="cli")
    async with (
        FakeEngine(FakeVllm()) as engine,
        running(settings_for(engine.url, kind="openai"), home.folder) as proxy,
    ):
        with hold(home.folder, Serves(proxy.url)):
            status = await home.strop("status")

    lines = [re.split("  +", line) for line in status.stdout.splitlines()]
    assert ["active version", "v1, not served by this engine"] in lines
    assert [] == [line for line in lines if line[0] == "ready"]


async def test_status_says_which_of_the_engine_s_models_answers_under_another_name(
    home: Home,
) -> None:
    """A name of one's own, or one that was mistyped."""
    async with (
        FakeEngine(FakeVllm()) as engine,
        running(settings_for(engine.url, model={"name": "tinny"}), home.folder) as proxy,
    ):
        with hold(home.folder, Serves(proxy.url)):
            status = await home.strop("status")

    lines = [re.split("  +", line) for line in status.stdout.splitlines()]
    assert ["model", "tinny, the engine's tiny (base)"] in lines


async def test_status_says_of_each_replica_what_it_has_in_flight_and_once_why_it_is_left_out(
    home: Home,
) -> None:
    """What still runs there is of interest as well; a reason that stands below needs no more."""
    async with FakeEngine(FakeVllm()) as one, FakeEngine(FakeVllm()) as other:
        settings = settings_for(one.url, engine={"replicas": (other.url,)})
        async with running(settings, home.folder) as proxy:
            with hold(home.folder, Serves(proxy.url)):
                first, second = proxy.services.serving.engine.replicas
                await until(lambda: first.is_ready and second.is_ready)
                up = await home.strop("status")
                await one.stop()
                proxy.services.serving.suspect()
                await until(lambda: not first.is_in)
                half = await home.strop("status")
                await other.stop()
                proxy.services.serving.suspect()
                await until(lambda: not proxy.services.serving.is_ready)
                down = await home.strop("status")

    # A check of strop's own may be under way there.
    shown = [re.sub(r"\d+ in flight", "0 in flight", said.stdout) for said in (up, half, down)]
    ups, halves, downs = ([*map(str.strip, said.splitlines())] for said in shown)
    assert {f"{engine.url}: 0 in flight" for engine in (one, other)} <= {*ups}
    left_out = f"{one.url}: 0 in flight, left out: {first.reason}"
    assert {left_out, f"{other.url}: 0 in flight"} <= {*halves}
    assert [left_out] == [line for line in downs if first.reason in line]
    assert f"engine          vllm at {one.url}: not ready" in downs


async def test_a_run_is_watched_and_cancelled(tmp_path: Path) -> None:
    """`strop status` says how far it is, and `strop runs` too."""
    async with serving(tmp_path, "waits") as (home, _):
        detached = await home.strop("train", "--detach")
        (run,) = (await home.store.runs.list()).data
        await until(lambda: home.store.runs.list_steps(run.id))

        status = await home.strop("status")
        shown = await home.strop("runs", "show", run.id)
        unknown = await home.strop("runs", "cancel", "run_7")
        cancelled = await home.strop("runs", "cancel", run.id)
        await until(home.store.runs.unfinished, lambda unfinished: unfinished is None)
        listed = await home.strop("runs", "list")
        again = await home.strop("runs", "cancel", run.id)

    assert 0 == detached.exit_code, detached.output
    assert f"See how it goes: strop runs show {run.id}" in detached.stdout
    assert f"{run.id}: running, step 1 of 4, about 30 s left, loss 0.5000" in status.stdout
    assert ["training", run.id, "is", "under", "way"] in columns(status.stdout)
    assert ["active", "version", "base"] in columns(status.stdout)
    assert ["step", "1", "of", "4"] in columns(shown.stdout)
    assert "Error: there is no run 'run_7'; see: strop runs list\n" == unknown.stderr
    assert f"{run.id} stops at its next step\n" == cancelled.stdout
    assert [run.id, "cancelled"] == columns(listed.stdout)[1][:2]
    assert f"{run.id} is cancelled\n" == again.stdout


async def test_whoever_stops_waiting_for_a_run_is_told_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends the command alone; what ends the run is said."""
    async with serving(tmp_path, "waits") as (home, _):
        get, shown = home.store.runs.get, asyncio.Event()

        async def show(id_: str) -> Run | None:
            shown.set()
            return await get(id_)

        monkeypatch.setattr(home.store.runs, "get", show)
        waiting = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "strop.proxy.cli", "train", "--home", str(tmp_path)),
            stderr=asyncio.subprocess.PIPE,
        )
        # It asks for the run again once it waits.
        await shown.wait()
        (asked,) = (await home.store.runs.list()).data
        waiting.send_signal(signal.SIGINT)
        _, said = await waiting.communicate()
        left = await home.store.runs.unfinished()

    assert 130 == waiting.returncode
    stop = f"strop runs cancel {asked.id} --home {tmp_path}"
    assert f"{asked.id} goes on where strop serves; stop it: {stop}\n" in said.decode()
    assert left is not None


async def test_whoever_waits_for_a_run_that_can_not_begin_is_told_why(tmp_path: Path) -> None:
    """At once, where no terminal shows progress too; mended, the run begins."""
    async with serving(tmp_path) as (_, proxy):
        (tmp_path / "runs").write_text("no folder", encoding="utf-8")
        waiting = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "strop.proxy.cli", "train", "--home", str(tmp_path), "--json"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert waiting.stderr is not None
        told = (await waiting.stderr.readline()).decode()
        reason = proxy.services.trainer.decision.says
        (tmp_path / "runs").unlink()
        shown, more = await waiting.communicate()

    run = json.loads(shown)
    assert reason.startswith("a run can't begin yet: [Errno 20] Not a directory")
    assert (f"{run['id']} is queued: {reason}\n", b"") == (told, more)
    assert ("passed", 0) == (run["state"], waiting.returncode)


async def test_no_runs_are_said(home: Home) -> None:
    """An empty list is no error."""
    assert "No runs.\n" == (await home.strop("runs", "list")).stdout


async def test_a_run_that_nobody_makes_is_cancelled_at_once(home: Home) -> None:
    """Where no proxy serves, and no process is at it."""
    run = await home.store.runs.create(
        objective="topr", preset="balanced", parent=None, base=MODEL, requested_by="test"
    )
    await home.store.runs.update(run.id, RunUpdate(state="running"))

    result = await home.strop("runs", "cancel", run.id)

    assert (0, f"{run.id} is cancelled\n") == (result.exit_code, result.stdout)
    assert None is await home.store.runs.unfinished()


@pytest.mark.parametrize(("is_gone", "parent"), [(False, "v1"), (True, None)])
async def test_relearning_continues_the_newest_clean_ancestor(
    tmp_path: Path, is_gone: bool, parent: str | None
) -> None:
    """Not what learned a rating that was taken back, nor what came of it, nor what is gone."""
    async with serving(tmp_path) as (home, proxy):
        base = proxy.services.serving.base
        learned = await learnable(home.store, 1)
        await home.publish(base=base)
        await home.publish(base=base, parent="v1", feedback=[learned])
        await home.publish(base=base, parent="v2")
        await home.store.versions.activate("v3", actor="api")
        await home.store.withdraw(learned[0], None)
        if is_gone:
            await home.store.versions.mark_missing("v1", "its folder is gone", actor="start")

        done = await home.strop("train", "--relearn", "--detach")
        (run,) = (await home.store.runs.list()).data

    assert 0 == done.exit_code, done.output
    assert (parent, "") == (run.parent, done.stderr)


@pytest.mark.parametrize("active", ["v1", "base"])
async def test_where_nothing_is_stale_relearning_is_training(tmp_path: Path, active: str) -> None:
    """Which is said, not passed over."""
    async with serving(tmp_path) as (home, proxy):
        await home.publish(base=proxy.services.serving.base)
        await home.store.versions.activate(active, actor="api")

        done = await home.strop("train", "--relearn", "--detach", "--json")

    assert 0 == done.exit_code, done.output
    assert active == json.loads(done.stdout)["parent"]
    assert done.stderr.startswith(f"{active} isn't stale, so there is nothing to relearn: ")


async def test_what_is_relearned_takes_the_place_of_what_is_stale(tmp_path: Path) -> None:
    """It was asked for in its stead, and it has passed the gate."""
    async with serving(tmp_path) as (home, proxy):
        base = proxy.services.serving.base
        learned = await learnable(home.store, 1)
        await home.publish(base=base, feedback=[learned])
        assert 0 == (await home.strop("adapters", "activate", "v1")).exit_code
        await home.store.withdraw(learned[0], None)

        done = await home.strop("train", "--relearn")
        await until(home.store.versions.activation, lambda active: active.version == "v2")

    assert 0 == done.exit_code, done.output
    assert done.stdout.splitlines()[-1].startswith(("v2 is ready; strop activates it now", "v2 se"))


async def test_what_is_not_activated_by_itself_says_why_and_what_to_type(tmp_path: Path) -> None:
    """Where a run continued another version than the active one."""
    async with serving(tmp_path) as (home, proxy):
        base = proxy.services.serving.base
        await home.publish(base=base)
        await home.publish(base=base, parent="v1")
        await home.store.versions.activate("v2", actor="api")

        done = await home.strop("train", "--parent", "v1")

    assert 0 == done.exit_code, done.output
    assert done.stdout.endswith(
        "v3 is ready, but not activated by itself, since it was made from v1, and v2 is active"
        " now; activate it: strop adapters activate v3\n"
    )


async def heirs_of(home: Home, base: str | None, case: str) -> str:
    """Make versions that learned from one rating; return the answer that it is of."""
    assert base is not None
    learned, other = [await learnable(home.store, number) for number in (1, 2)]
    if case == "stale":
        await home.publish(base=base)
        await home.publish(base=base, parent="v1", feedback=[learned])
        await home.store.versions.activate("v2", actor="api")
    elif case in ("not stale", "stale by another"):
        # What is made from a stale one is not stale.
        await home.publish(base=base, feedback=[learned])
        await home.store.withdraw(learned[0], None)
        await home.publish(base=base, parent="v1")
        await home.publish(base=base, parent="v2", feedback=[other])
        await home.store.versions.activate("v3", actor="api")
    else:
        await home.publish(base=base, feedback=[learned])
    if case == "stale by another":
        await home.store.withdraw(other[0], None)
    if case == "kept":
        await home.store.versions.set_kept("v1", True)
    if case == "continued":
        await home.strop("train", "--parent", "v1", "--detach")
    return first_of_session(1)


@pytest.mark.parametrize("goes_back", [False, True])
@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("idle", []),
        ("kept", ["v1 is kept; let it go: strop adapters keep v1 --release"]),
        (
            "stale",
            ["v2 is active; make another without it: strop train --relearn, or go back: strop"
             " adapters activate v1"],
        ),
        (
            "not stale",
            ["v3 is active; make another without it: strop train --parent base, or go back: strop"
             " adapters activate base"],
        ),
        (
            "stale by another",
            ["v3 is active; make another without it: strop train --parent base, or go back: strop"
             " adapters activate base"],
        ),
    ],
)  # fmt: skip
async def test_what_learned_from_what_is_deleted_can_be_removed_as_is_said(
    tmp_path: Path, case: str, says: list[str], goes_back: bool
) -> None:
    """Each command is taken, in the order in which they are said."""
    async with serving(tmp_path) as (home, proxy):
        made = await heirs_of(home, proxy.services.serving.base, case)

        deleted = (await home.strop("completions", "delete", made, "--yes")).stdout
        assert says == deleted.splitlines()[2:-1]
        learners = deleted.splitlines()[1].partition(" learned from it")[0].split(", ")
        advised = re.findall(r": strop ([^,\n]+)", deleted)
        train, activate = ([one for one in advised if word in one] for word in ("train", "activ"))
        skipped = train if goes_back else activate
        done = [await home.strop(*one.split()) for one in advised[:-1] if one not in skipped]
        if (
            train
            and not goes_back
            and (step := re.search("activate it: strop (.*)", done[0].stdout))
        ):
            done.append(await home.strop(*step[1].split()))
        await until(home.store.versions.activation, lambda now: now.version not in learners)
        for one in learners:
            words = advised[-1].replace(learners[0], one)
            done.append(await home.strop(*words.split()))
        left = [one.id for one in await home.store.versions.list()]

    assert deleted.splitlines()[-1].startswith("Then remove ")
    assert {0} == {one.exit_code for one in done}, [one.output for one in done]
    assert [] == [one for one in left if one in learners]


async def test_what_continues_a_version_that_is_to_be_removed_is_stopped_first(
    tmp_path: Path,
) -> None:
    """Else that can't be removed, and what is made from it holds the same."""
    async with serving(tmp_path, "waits") as (home, proxy):
        made = await heirs_of(home, proxy.services.serving.base, "continued")
        (run,) = (await home.store.runs.list()).data

        deleted = (await home.strop("completions", "delete", made, "--yes")).stdout
        advised = re.findall(r": strop (runs cancel .+|adapters remove .+)", deleted)
        refused = await home.strop(*advised[1].split())
        done = [await home.strop(*advised[0].split())]
        await until(home.store.runs.unfinished, lambda unfinished: unfinished is None)
        done.append(await home.strop(*advised[1].split()))

    assert f"{run.id} continues v1; stop it: strop runs cancel {run.id}" in deleted.splitlines()
    assert f"{run.id} continues v1; wait for it, or cancel it" in refused.stderr
    assert [0, 0] == [one.exit_code for one in done], [one.output for one in done]


async def passed_run(home: Home, parent: str | None = None, **changes: Any) -> str:
    """Return the id of a run whose version, published with `changes`, has passed its gate."""
    runs = home.store.runs
    run = await runs.create(
        objective="topr", preset="balanced", parent=parent, base=MODEL, requested_by="test"
    )
    await runs.update(run.id, RunUpdate(state="running"))
    await home.publish(run=run.id, parent=parent, **changes)
    await runs.update(run.id, RunUpdate(state="gating"))
    await runs.update(run.id, RunUpdate(state="passed"))
    return run.id


async def test_what_was_stale_when_it_passed_says_how_to_train_anew(home: Home) -> None:
    """A rating that it learned from was taken back while it was made."""
    learned = await learnable(home.store, 1)
    await home.store.withdraw(learned[0], None)
    run = await passed_run(home, feedback=[learned])

    says = await cli_training.activation_of(home.folder, run)

    assert says.startswith("v1 is ready, but not activated by itself, since it is stale: v1 learn")
    assert "; train anew: strop train --relearn" in says


async def test_what_passed_is_activated_as_the_strop_that_serves_was_told(home: Home) -> None:
    """Its flags are in no file; where none serves, a start is as the file says."""
    run = await passed_run(home)
    found = tell(Settings(training=Training(promote="manual")))

    with hold(home.folder, Serves("http://127.0.0.1:9", {}, found)):
        served = await cli_training.activation_of(home.folder, run)
    alone = await cli_training.activation_of(home.folder, run)
    await home.store.versions.activate("v1", actor="api")
    then = await cli_training.activation_of(home.folder, run)

    manual = "v1 is ready, but not activated by itself, since training.promote is manual; activate"
    assert served.startswith(f"{manual} it: strop adapters activate v1")
    assert alone.startswith("v1 is ready; strop activates it when it serves: strop serve")
    assert "v1 serves now." == then


async def test_without_a_proxy_a_run_goes_on_in_the_terminal(home: Home) -> None:
    """The same process; here it finds nothing to learn from, and says so."""
    done = await home.strop("train", "--seed", "7")
    found = json.loads((await home.strop("runs", "list", "--json")).stdout)["data"][0]

    assert 1 == done.exit_code
    assert (
        f"No strop serves from {home.folder}: {found['id']} runs in this terminal." in done.stderr
    )
    assert ("failed", "cli", str(demo_model())) == (
        found["state"], found["requested_by"], found["config"]["base_path"],
    )  # fmt: skip
    assert 7 == found["config"]["seed"]
    assert "there is no rating to learn from" in done.stdout
    assert "No version was made." in done.stdout


@pytest.mark.parametrize("how", [[], ["--relearn"]])
async def test_after_a_trial_of_another_base_a_run_continues_what_that_displaced(
    home: Home, monkeypatch: pytest.MonkeyPatch, how: list[str]
) -> None:
    """A start with its own base activates that again, and then what the run makes."""
    see_through = partial(foreground.see_through, command=fake_run.command("fails"))
    monkeypatch.setattr(foreground, "see_through", see_through)
    own = identify(demo_model(), cache=None)
    for base in (own, MODEL):
        await home.publish(base=base)
    await home.store.versions.activate("v1", actor="api")
    await home.store.versions.activate("base", actor="start")

    done = await home.strop("train", *how, "--json")

    assert "v1" == json.loads(done.stdout)["parent"], done.stderr


async def test_what_continues_a_displaced_version_is_activated_with_it(home: Home) -> None:
    """At the start that activates that one again."""
    await home.publish(base=MODEL)
    await home.store.versions.activate("v1", actor="api")
    await home.store.versions.activate("base", actor="start")
    run = await passed_run(home, parent="v1", base=MODEL)

    says = await cli_training.activation_of(home.folder, run)

    assert says.startswith("v2 is ready; strop activates it when it serves: strop serve")


async def test_a_run_that_was_left_is_gone_on_with(home: Home) -> None:
    """Another one is refused until then."""
    run = await home.store.runs.create(
        objective="topr",
        preset="balanced",
        parent=None,
        base=MODEL,
        requested_by="test",
        config=json.dumps({"base_path": str(demo_model())}).encode(),
    )

    other = await home.strop("train", "--objective", "sft")
    done = await home.strop("train", "--json")

    assert 1 == other.exit_code
    assert f"{run.id} was left unfinished; go on with it: strop train" in other.stderr
    found = json.loads(done.stdout)
    assert (run.id, "failed") == (found["id"], found["state"])
    assert "its files changed" in found["reasons"][0]


async def test_a_run_that_was_left_goes_on_with_its_base_where_that_is_now(home: Home) -> None:
    """The base's folder was moved, and the settings say where to."""
    await home.store.runs.create(
        objective="topr",
        preset="balanced",
        parent=None,
        base=identify(demo_model(), cache=None),
        requested_by="test",
        config=json.dumps({"base_path": str(home.folder / "moved")}).encode(),
    )

    found = json.loads((await home.strop("train", "--json")).stdout)

    assert str(demo_model()) == found["config"]["base_path"]
    assert "there is no rating to learn from" in found["reasons"][0]
