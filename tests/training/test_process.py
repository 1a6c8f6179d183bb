"""Tests of a training run as a process: killed, stopped and resumed, and without what it needs."""

import asyncio
import contextlib
import json
import os
import pty
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from rated_home import HURRIED, RatedHome, command, hurry
from store_values import database_in
from waiting import until

from strop.adapters import peft
from strop.adapters.library import Library
from strop.configs import installation
from strop.proxy.store.records import Revision
from strop.proxy.store.run_records import UNFINISHED, RatedTurn, Run
from strop.proxy.store.store import Store
from strop.training.run import take

# Ends the process where it would publish what it has written.
DIES_UNPUBLISHED = f"""
{HURRIED}
import os, signal, sys
from strop.proxy.store.version_store import VersionStore
VersionStore.publish = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from strop.training.run import main
sys.exit(main(sys.argv[1:]))
"""
# Aborts where Python ends, as it does while a thread of MLX's frees what it has compiled.
ABORTS_AT_PYTHONS_END = f"""
{HURRIED}
import atexit, os, runpy
atexit.register(os.abort)
runpy.run_module("strop.training.run", run_name="__main__", alter_sys=True)
"""
# Takes so many steps, and before the next one waits until it is asked to stop.
HOLDS = """
import runpy, time
from strop.training.loop import Loop
run = Loop.run
def run_held(loop, on_step, is_stopping):
    def is_stopping_held():
        while loop.step >= {} and not is_stopping():
            time.sleep(0.01)
        return is_stopping()
    return run(loop, on_step, is_stopping_held)
Loop.run = run_held
runpy.run_module("strop.training.run", run_name="__main__", alter_sys=True)
"""
# What `strop train` does where no strop serves, with a run that holds.
SEES_THROUGH = """
import sys
from pathlib import Path
from strop.proxy import foreground
def command(home, run):
    return [sys.executable, "-c", sys.argv[3], "--home", str(home), "--run", run]
foreground.see_through(Path(sys.argv[1]), sys.argv[2], is_quiet=True, command=command)
"""
# A machine on which none of these is installed.
LACKS = """
import sys
for name in {}:
    sys.modules[name] = None
from strop.training.run import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with sixty ratings, for others to be copied from."""
    folder = tmp_path_factory.mktemp("rated")

    async def rate() -> None:
        async with opened(folder) as home:
            await home.rate(60)

    asyncio.run(rate())
    return folder


@pytest.fixture(scope="module")
def interrupted(rated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with a run that was killed at its second step."""
    folder = tmp_path_factory.mktemp("interrupted") / "home"
    shutil.copytree(rated, folder)

    async def kill() -> None:
        async with opened(folder) as home:
            run = await home.new_run()
            process = await start(home, run, code=HOLDS.format(3))
            await reaches(home, run, 2)
            process.kill()
            await process.wait()

    asyncio.run(kill())
    return folder


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[RatedHome]:
    """A home in this folder, its store open until the block ends."""
    store = await Store.open(database_in(folder))
    try:
        yield RatedHome(folder, store)
    finally:
        await store.close()


@pytest.fixture
async def home(
    rated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RatedHome]:
    """A home with sixty ratings."""
    hurry(monkeypatch)
    shutil.copytree(rated, tmp_path / "home")
    async with opened(tmp_path / "home") as home:
        yield home


@pytest.fixture
async def killed(
    interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[RatedHome, Run]]:
    """A home with sixty ratings, and its run, which was killed at its second step."""
    hurry(monkeypatch)
    shutil.copytree(interrupted, tmp_path / "home")
    async with opened(tmp_path / "home") as home:
        run = await home.store.runs.unfinished()
        assert run is not None
        yield home, run


async def start(
    home: RatedHome,
    run: Run,
    *,
    code: str = "",
    parent_fd: int | None = None,
    stdout: int = DEVNULL,
) -> Process:
    """Start a run's process; with `code`, by that program."""
    line = command(home.folder, run.id)
    if code:
        line = [sys.executable, "-c", code, *line[3:]]
    if parent_fd is not None:
        line += ["--parent-fd", str(parent_fd)]
    given = () if parent_fd is None else (parent_fd,)
    return await asyncio.create_subprocess_exec(
        *line, pass_fds=given, stdout=stdout, stderr=DEVNULL
    )


async def reaches(home: RatedHome, run: Run, step: int) -> None:
    """Return once a run has taken `step` steps."""
    await until(lambda: row(home, run), lambda now: now.step >= step)


async def row(home: RatedHome, run: Run) -> Run:
    """A run as it is now."""
    found = await home.store.runs.get(run.id)
    assert found is not None
    return found


async def undisturbed(home: RatedHome, run: Run, folder: Path) -> Path:
    """Take a run to its end in a copy of the home; return its version's folder."""
    # Not by this process: closing a file of the open database gives up its locks, and who opens it
    # next would cut off what is mapped here.
    copying = await asyncio.create_subprocess_exec("cp", "-R", str(home.folder), str(folder))
    assert 0 == await copying.wait()
    assert 0 == await take(folder, run.id), (folder / "runs" / run.id / "log.jsonl").read_text()
    return Library(folder / "adapters").path_of("v1")


def assert_same_weights(expected: Path, folder: Path) -> None:
    """Every weight is the same to 1e-6."""
    one, other = peft.read(expected), peft.read(folder)
    assert one.modules.keys() == other.modules.keys()
    for path, module in one.modules.items():
        np.testing.assert_allclose(other.modules[path].a, module.a, rtol=0, atol=1e-6)
        np.testing.assert_allclose(other.modules[path].b, module.b, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("step", "objective"), [(1, "topr"), (9, "kto")])
async def test_a_killed_run_goes_on_where_it_was(
    home: RatedHome, tmp_path: Path, step: int, objective: str
) -> None:
    """After kill -9 it makes the very version that it would have made undisturbed.

    What an objective knows of all that is learned from, as KTO does, it knows again.
    """
    run = await home.new_run(objective=objective)
    expected = await undisturbed(home, run, tmp_path / "copy")

    process = await start(home, run, code=HOLDS.format(step + 1))
    await reaches(home, run, step)
    process.kill()
    await process.wait()
    killed = await row(home, run)
    status = await take(home.folder, run.id)

    assert killed.state in UNFINISHED
    assert killed.version is None
    assert 0 == status
    assert ("passed", "v1") == ((await row(home, run)).state, (await row(home, run)).version)
    assert_same_weights(expected, Library(home.folder / "adapters").path_of("v1"))
    steps = await home.store.runs.list_steps(run.id)
    assert [*range(1, len(steps) + 1)] == [one.step for one in steps]


async def test_a_run_ends_its_process_before_python_would(home: RatedHome) -> None:
    """Nothing is left to be done by then."""
    run = await home.new_run()

    status = await (await start(home, run, code=ABORTS_AT_PYTHONS_END)).wait()

    assert (0, "passed") == (status, (await row(home, run)).state)


async def test_a_version_written_but_not_published_is_published_as_it_is(
    home: RatedHome,
) -> None:
    """A run that died in between trains nothing anew."""
    run = await home.new_run()

    died = await (await start(home, run, code=DIES_UNPUBLISHED)).wait()
    file = Library(home.folder / "adapters").path_of("v1") / "manifest.json"
    written = file.read_bytes()
    before = await home.store.versions.get("v1")
    await take(home.folder, run.id)

    assert -signal.SIGKILL == died
    assert before is not None
    assert "candidate" == before.state
    assert "passed" == (await row(home, run)).state
    after = await home.store.versions.get("v1")
    assert after is not None
    assert "ready" == after.state
    assert written == file.read_bytes()


def by_signal(process: Process, _: int) -> None:
    """Stop a run as a service manager does."""
    process.send_signal(signal.SIGTERM)


def by_pipe(_: Process, write_end: int) -> None:
    """Stop a run by the death of its parent."""
    os.close(write_end)


@pytest.mark.parametrize("stop", [by_signal, by_pipe])
async def test_a_stopped_run_can_be_resumed(
    home: RatedHome, stop: Callable[[Process, int], None]
) -> None:
    """Strop's own end, or a signal, ends the run at a step; the next start goes on from there."""
    run = await home.new_run()
    read_end, write_end = os.pipe()

    process = await start(home, run, code=HOLDS.format(3), parent_fd=read_end)
    os.close(read_end)
    await reaches(home, run, 2)
    stop(process, write_end)
    await process.wait()
    stopped = await row(home, run)
    await take(home.folder, run.id)

    assert 0 == process.returncode
    assert stopped.state in UNFINISHED
    assert stopped.step < stopped.num_steps
    assert "passed" == (await row(home, run)).state
    log = (home.folder / "runs" / run.id / "log.jsonl").read_text().splitlines()
    assert any(json.loads(line)["event"] == "resumed" for line in log)


def begins(home: RatedHome, run: Run) -> list[str]:
    """How a run that was interrupted went on."""
    log = (home.folder / "runs" / run.id / "log.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in log]
    return [one for one in events if one in ("began_anew", "resumed")]


async def delete(store: Store, turn: RatedTurn) -> None:
    """Delete the answer."""
    await store.deletion.completions([turn.completions[0].completion.id])


async def withdraw(store: Store, turn: RatedTurn) -> None:
    """Take the rating back."""
    await store.withdraw(turn.feedback[0].id, None)


async def revise(store: Store, turn: RatedTurn) -> None:
    """Think otherwise of the answer."""
    (rated,) = turn.feedback
    said = Revision(-rated.rating, b"{}", None, None, (), rated.scope)
    await store.revise(rated.id, None, said)


@pytest.mark.parametrize("change", [delete, withdraw, revise])
async def test_an_interrupted_run_begins_anew_where_what_it_learns_from_changed(
    killed: tuple[RatedHome, Run], change: Callable[[Store, RatedTurn], Awaitable[None]]
) -> None:
    """It learns from what stands now, and its version isn't stale."""
    home, run = killed
    turns = [turn async for turn in home.store.training.fresh_turns("base", base=home.base)]
    before = {(one.id, one.revision) for turn in turns for one in turn.feedback}

    await change(home.store, turns[0])
    await take(home.folder, run.id)

    now = await row(home, run)
    assert "passed" == now.state
    learned = set(Library(home.folder / "adapters").read_manifest("v1").feedback)
    (old,) = before - learned
    assert turns[0].feedback[0].id == old[0]
    assert learned - before == ({(old[0], 2)} if change is revise else set())
    version = await home.store.versions.get("v1")
    assert version is not None
    assert version.stale is None
    assert begins(home, run) == ["began_anew"]
    steps = await home.store.runs.list_steps(run.id)
    assert [*range(1, now.step + 1)] == [one.step for one in steps]


async def test_an_interrupted_run_begins_anew_where_it_would_be_judged_by_what_is_deleted(
    killed: tuple[RatedHome, Run],
) -> None:
    """Prompts of what is held out are also asked for the version's probe."""
    home, run = killed
    turn = await anext(home.store.training.held_out_turns(base=home.base))

    await delete(home.store, turn)
    await take(home.folder, run.id)

    assert "passed" == (await row(home, run)).state
    assert begins(home, run) == ["began_anew"]


async def test_a_run_that_an_older_strop_began_begins_anew(
    killed: tuple[RatedHome, Run],
) -> None:
    """Its set doesn't say what it holds, so nobody knows whether that was deleted."""
    home, run = killed
    file = home.folder / "runs" / run.id / "set.npz"
    arrays = dict(np.load(file))
    said = json.loads(arrays["meta"].tobytes())
    del said["completions"]
    arrays["meta"] = np.frombuffer(json.dumps(said).encode(), np.uint8)
    np.savez(file, **arrays)

    await take(home.folder, run.id)

    assert "passed" == (await row(home, run)).state
    assert begins(home, run) == ["began_anew"]


@pytest.mark.parametrize(
    "missing", ["torch,mlx", "torch,mlx,mlx_lm,numpy,transformers,peft,jinja2"]
)
async def test_without_torch_and_mlx_a_run_says_what_to_install(
    home: RatedHome, missing: str
) -> None:
    """It fails with the command; nothing is used up."""
    run = await home.new_run(backend="auto")

    code = await (await start(home, run, code=LACKS.format(missing.split(",")))).wait()

    failed = await row(home, run)
    assert (1, "failed") == (code, failed.state)
    assert installation.install("strop[torch]").encode() in failed.reasons


async def test_a_ctrl_c_stops_a_run_in_the_terminal(home: RatedHome) -> None:
    """It reaches all of the terminal's job; the run ends at its next step, to be resumed."""
    run = await home.new_run()

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SEES_THROUGH, str(home.folder), run.id, HOLDS.format(3)),
        stderr=DEVNULL,
        start_new_session=True,
    )
    await reaches(home, run, 2)
    os.killpg(process.pid, signal.SIGINT)
    await process.wait()
    stopped = await row(home, run)

    assert stopped.state in UNFINISHED
    assert stopped.step < stopped.num_steps


async def test_a_run_is_of_low_priority(home: RatedHome) -> None:
    """It gives way to what serves."""
    run = await home.new_run()

    process = await start(home, run)
    await until(
        lambda: os.getpriority(os.PRIO_PROCESS, process.pid),
        lambda priority: priority == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10),
    )
    process.terminate()
    await process.wait()


async def test_progress_is_one_line_on_a_terminal(home: RatedHome) -> None:
    """A person who watches sees one line that is written over, and how it ended."""
    run = await home.new_run()
    seen_by_us, terminal = pty.openpty()

    process = await start(home, run, stdout=terminal)
    os.close(terminal)
    shown = b""
    with os.fdopen(seen_by_us, "rb", buffering=0) as reader:
        try:
            while chunk := await asyncio.to_thread(reader.read, 65536):
                shown += chunk
        except OSError:  # Linux says so of a terminal that nobody holds any more.
            pass
    await process.wait()

    lines = shown.decode().replace("\r\n", "\n").split("\n")
    assert any("\rtraining 1/" in line and " left" in line for line in lines)
    assert lines[-2].rpartition("\r")[2].startswith("v1: passed.")
