"""`strop demo`: the whole loop on this machine, with the small model that strop ships.

Parses and prints. Serve, chat, rate, train, gate, swap: what runs is what a user runs.
"""

import fcntl
import importlib.util
import json
import os
import shlex
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import click

from strop.configs import installation
from strop.training.demo import introduction, picture
from strop.training.demo.rounds import Measured, Plan, Round, play
from strop.training.demo.served import DemoFailed, Served, serve
from strop.training.objectives import OBJECTIVES
from strop.training.options import CONTEXT

_MARK = "made-by-strop-demo"
_PNG = "good-rate.png"
_LOCK = "serve.lock"  # which a strop that serves from a home holds
_NEEDS = ("mlx_lm", "matplotlib", "openai")


@click.command(
    context_settings=CONTEXT,
    epilog="\b\nExamples:\n  strop demo\n  strop demo --rounds 2 --noise 0.2\n",
)
@click.option(
    "--rounds", default=4, show_default=True, type=click.IntRange(0, 50), metavar="N",
    help="Rounds of chatting, rating and training.",
)  # fmt: skip
@click.option(
    "--ratings", default=40, show_default=True, type=click.IntRange(4, 1000), metavar="N",
    help="Ratings a round.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, metavar="N", help="Who asks what, and when.")
@click.option(
    "--objective", default="topr", show_default=True, type=click.Choice(tuple(OBJECTIVES)),
    help="What is minimised.",
)  # fmt: skip
@click.option(
    "--noise", default=0.0, show_default=True, type=click.FloatRange(0, 0.5), metavar="SHARE",
    help="The share of ratings that the person gets wrong.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print only the figures, as JSON.")
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The demo's own home; emptied first. [default: demo in strop's home]",
)
def main(*, as_json: bool, home: Path | None, **given: object) -> None:
    """Chat, rate, train, gate and swap with the small model, and show what was learned."""
    plan = Plan(**given)  # type: ignore[arg-type]  # click has checked each
    folder = (home or _default_home()).expanduser().absolute()
    try:
        _check_installed()
        _make_empty(folder)
        with serve(folder, {"training.enabled": "false"}) as served:
            results = _play(served, plan, is_quiet=as_json)
    except DemoFailed as error:
        raise click.ClickException(str(error)) from error
    measured = [one.measured if isinstance(one, Round) else one for one in results]
    picture.draw(measured, folder / _PNG)
    if as_json:
        click.echo(json.dumps({"plan": asdict(plan), "results": list(map(asdict, results))}))
        return
    _close(measured, folder)


def _default_home() -> Path:
    return Path(os.environ.get("STROP_HOME") or "~/.strop").expanduser() / "demo"


def _make_empty(folder: Path) -> None:
    """Make the demo's home anew.

    Raises:
        DemoFailed: there is something that no demo made, somebody uses it, or it can't be made.
    """
    mark = folder / _MARK
    try:
        if folder.is_dir() and any(folder.iterdir()):
            if not mark.is_file():
                raise DemoFailed(
                    f"{folder} is not empty, and no earlier demo made it; name another folder with"
                    " --home"
                )
            if _is_served(folder):
                raise DemoFailed(
                    f"strop serves from {folder}, which is to be emptied; stop it, or name another"
                    " folder with --home"
                )
            shutil.rmtree(folder)
        # The mode is that of the last one alone: strop's home, for one, is made here.
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise DemoFailed(
            f"expected to make {folder} anew: {error}; name another folder with --home"
        ) from error


def _is_served(home: Path) -> bool:
    with (home / _LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _check_installed() -> None:
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoFailed(
            f"the demo needs {' and '.join(missing)}, not installed here:"
            f" {installation.install('strop[mlx,demo]')}"
        )


def _play(served: Served, plan: Plan, *, is_quiet: bool) -> list[Measured | Round]:
    if is_quiet:
        return list(play(served, plan, lambda *_: None))
    print(f"strop serves its small model at {served.url}")
    introduction.show(served)
    print(
        f"\nLearning: {plan.rounds} rounds of {plan.ratings} ratings from somebody who likes"
        "\nbullets, unless they are rude; the model is never told. Measured on questions that are"
        "\nnever rated.\n"
    )
    results: list[Measured | Round] = []
    number = 0
    for result in play(served, plan, _progress):
        results.append(result)
        _clear()
        if isinstance(result, Measured):
            print(f"  base      liked {_rate(result)}    e.g. {_line(result.example)}")
            continue
        number += 1
        swap = f", swapped in within {result.swap_ms:.0f} ms" if result.swap_ms is not None else ""
        print(
            f"  round {number}   {result.num_good} good, {result.num_bad} bad; trained and gated in"
            f" {result.train_s:.1f} s: {result.state}{swap}"
        )
        if result.state != "passed":
            print(f"            {'; '.join(result.reasons)}")
        measured = result.measured
        print(f"  {measured.version:<8}  liked {_rate(measured)}    e.g. {_line(measured.example)}")
    return results


def _close(measured: list[Measured], folder: Path) -> None:
    print("\nLiked, on questions that were never rated (fresh answers, 90 % intervals)\n")
    print(picture.bars(measured))
    last, strop = measured[-1], installation.strop()
    home = shlex.quote(str(folder))
    print(
        f"\n  well formed {last.well_formed.value:.2f} (base {measured[0].well_formed.value:.2f}),"
        f" right facts {last.right.value:.2f} (base {measured[0].right.value:.2f}): the person"
        "\n  rates style, so facts are not what is learned here."
        f"\n\nThe picture is {folder / _PNG}; the demo's home stays, to look around in:\n"
        f"\n    {strop} serve --home {home}"
        f"\n    {strop} adapters list --home {home}"
        "\n\nFor real, with any agent you like; with a model of yours by --model, a folder or a hub"
        "\nid; your ratings stay in ~/.strop:\n"
        f"\n    {strop} serve"
        "\n    export OPENAI_BASE_URL=http://127.0.0.1:8484/v1 OPENAI_API_KEY=strop"
    )


def _rate(measured: Measured) -> str:
    interval = measured.liked.interval
    return f"{measured.liked.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."


def _progress(doing: str, num_done: int, num: int) -> None:
    if sys.stdout.isatty():
        sys.stdout.write(f"\r\x1b[K  {doing} {num_done}/{num}" if num else f"\r\x1b[K  {doing} ...")
        sys.stdout.flush()


def _clear() -> None:
    if sys.stdout.isatty():
        sys.stdout.write("\r\x1b[K")


if __name__ == "__main__":
    # Whoever ends it ends what it started too, as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main(prog_name="strop demo")
