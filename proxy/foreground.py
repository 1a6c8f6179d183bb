"""A training run in the terminal, while no proxy serves from the home.

The same row and the same process as beside a proxy; here a person waits for it. Activates nothing.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from strop.proxy import run_requests
from strop.proxy.command_line import to_copy
from strop.proxy.errors import ConfigError, Conflict
from strop.proxy.run_requests import Base, TrainCommand, Wanted
from strop.proxy.settings.settings import Settings
from strop.proxy.store import layout, run_lock
from strop.proxy.store.run_records import UNFINISHED, Run, RunUpdate
from strop.proxy.store.store import Store
from strop.proxy.versions.displaced import to_continue
from strop.proxy.versions.pairing import base_folder, identity_of

_STANDARD_ERROR: Final = 2


async def take_up(store: Store, home: Path, settings: Settings, wanted: Wanted) -> Run:
    """Return the run to be made: a new one, or the one that was left unfinished.

    Raises:
        ConfigError: there is no base to train.
        Conflict: a run is under way; or one was left unfinished, and another is asked for.
        StropError: see `run_requests.create`.
    """
    left = await store.runs.unfinished()
    if left is not None:
        if run_lock.is_held(home / layout.RUNS):
            raise Conflict(f"{left.id} is under way in another process; wait for it, or cancel it")
        if wanted != Wanted():
            raise Conflict(
                f"{left.id} was left unfinished; go on with it: {to_copy('train', home)}; or give"
                f" it up: {to_copy(f'runs cancel {left.id}', home)}"
            )
    base = await _base(settings, home)
    if left is not None:
        return await run_requests.follow_base(store, left, base)
    # Nobody serves: where another base did last, what is active then says nothing of this one.
    parent = wanted.parent or await to_continue(store.versions, base.identity)
    wanted = replace(wanted, parent=parent)
    return await run_requests.create(store, settings.training, base, wanted, actor="cli")


async def _base(settings: Settings, home: Path) -> Base:
    folder = base_folder(settings)
    if folder is None:
        raise ConfigError(run_requests.no_base(settings.model.base))
    identity = await identity_of(settings, home)
    if identity is None:
        raise ConfigError(f"expected a model in Hugging Face format in {folder}, found none")
    return Base(folder, identity)


def see_through(
    home: Path, run: str, *, is_quiet: bool, command: TrainCommand = run_requests.command
) -> None:
    """Run the process of `run` until it ends; Ctrl-C stops it at its next step, to be resumed.

    So does the end of this process, however it comes. It shows its progress on a terminal;
    `is_quiet` keeps standard output free.
    """
    output = _STANDARD_ERROR if is_quiet else None
    read_end, write_end = os.pipe()
    line = [*command(home, run), "--parent-fd", str(read_end)]
    try:
        with subprocess.Popen(
            line, stdout=output, pass_fds=(read_end,), start_new_session=True
        ) as process:
            while process.returncode is None:
                try:
                    process.wait()
                except KeyboardInterrupt:
                    process.terminate()
                    print(
                        f"\n{run} stops at its next step, to be resumed; while its version is"
                        " judged, it goes on to the end",
                        file=sys.stderr,
                    )
    finally:
        os.close(read_end)
        os.close(write_end)


async def cancel(store: Store, home: Path, id_: str) -> Run:
    """Ask a run to stop; where no process is at it, it is cancelled at once.

    Raises:
        NotFound: there is no such run.
        Conflict: it is over.
    """
    run = await store.runs.cancel(id_)
    if run.state in UNFINISHED and not run_lock.is_held(home / layout.RUNS):
        run = await store.runs.update(id_, RunUpdate(state="cancelled"))
    return run
