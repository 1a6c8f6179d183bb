"""The commands for what is recorded, in the home's own store: list, show, delete.

They work whether or not strop runs.
"""

import asyncio
import contextlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import click

from strop.proxy import objects
from strop.proxy.cli import learners, sessions, terminal
from strop.proxy.cli.options import (
    completion_argument,
    containing_option,
    examples,
    home_of,
    home_option,
    json_option,
    not_recorded,
    open_store,
)
from strop.proxy.command_line import to_copy
from strop.proxy.errors import StropError
from strop.proxy.home import serving
from strop.proxy.ids import completion_id
from strop.proxy.store import layout, run_folder
from strop.proxy.store.clock import now_ms
from strop.proxy.store.records import (
    CompletionFilter,
    CompletionSummary,
    Feedback,
    FeedbackFilter,
    State,
    StoredCompletion,
)
from strop.proxy.store.run_lock import AlreadyRunning

if TYPE_CHECKING:
    from strop.proxy.store.deletion_store import Deleted
    from strop.proxy.store.store import Store

_DAY_MS: Final = 24 * 60 * 60 * 1000
# So many are counted before they are deleted, which takes a moment.
_MOST_COUNTED: Final = 10_000


@click.group(epilog=examples("strop completions list --rated"))
def completions() -> None:
    """Look at recorded answers, and delete them."""


@completions.command(
    "list",
    epilog=examples(
        "strop completions list --limit 5 --unrated",
        "strop completions list --containing 'Ann Smith'",
    ),
)
@home_option
@click.option(
    "--limit",
    type=click.IntRange(1, 100),
    default=20,
    show_default=True,
    metavar="N",
    help="How many at most.",
)
@click.option("--after", metavar="ID", help="Go on after this one.")
@click.option("--session", help="Of the conversations of this name, one of each key that has it.")
@sessions.key_option
@click.option("--state", type=click.Choice(get_args(State)), help="That ended so.")
@click.option("--rated/--unrated", default=None, help="With ratings, or without.")
@containing_option
@json_option
def list_completions(home: Path | None, as_json: bool, **asked: Any) -> None:
    """List answers, newest first."""
    asyncio.run(_list_completions(home_of(home), as_json=as_json, **asked))


async def _list_completions(
    home: Path,
    *,
    limit: int,
    after: str | None,
    session: str | None,
    key: str | None,
    state: State | None,
    rated: bool | None,
    containing: str | None,
    as_json: bool,
) -> None:
    wanted = CompletionFilter(
        session=session, key_id=key, state=state, is_rated=rated, containing=containing
    )
    async with open_store(home) as store:
        page = await store.list_completions(wanted, limit=limit, after=after)
        if as_json:
            found = objects.list_of(map(objects.summary, page.data), has_more=page.has_more)
            click.echo(json.dumps(found))
            return
        rows = [await _row(store, one) for one in page.data]
    if not rows:
        click.echo("No answers.")
        return
    click.echo(terminal.table(rows, ("COMPLETION", "WHEN", "STATE", "MODEL", "RATED", "ANSWER")))
    if page.has_more:
        asked = {
            "limit": limit, "session": session, "key": key, "state": state,
            "containing": containing,
        }  # fmt: skip
        again = "".join(
            f" --{name} {shlex.quote(str(value))}" for name, value in asked.items() if value
        )
        again += {None: "", True: " --rated", False: " --unrated"}[rated]
        after = page.data[-1].id
        click.echo(f"More: {to_copy(f'completions list{again} --after {after}', home)}")


async def _row(store: "Store", one: CompletionSummary) -> tuple[str, ...]:
    whole = await store.get_completion(one.id)
    answer = terminal.first_words(whole, width=40) if whole else ""
    ratings = FeedbackFilter(completion=one.id, state="standing")
    standing = (await store.list_feedback(ratings)).data if one.num_feedback else ()
    model = terminal.excerpt(f"{one.model} ({one.version})", 40)
    return (
        one.id,
        terminal.since(one.created_ms),
        one.state,
        model,
        ", ".join(map(_rated, standing)) or "-",
        answer,
    )


def _rated(given: Feedback) -> str:
    """Return a rating, and of which answer it is where that isn't the one shown."""
    choice = f" (choice {given.choice})" if given.choice else ""
    return terminal.rating(given.rating) + choice


@completions.command(
    "show", epilog=examples("strop completions show cmp_0198c1d25a7e7f3ab6e1a2c4d5e6f708")
)
@completion_argument()
@home_option
@json_option
def show_completion(completion: str, home: Path | None, as_json: bool) -> None:
    """Show one answer: what was asked, its snapshot, its ratings."""
    asyncio.run(_show_completion(completion, home_of(home), as_json))


async def _show_completion(identity: str, home: Path, as_json: bool) -> None:
    async with open_store(home) as store:
        found = await _recorded(store, identity, home)
        of_it = FeedbackFilter(completion=found.completion.id)
        given = await store.list_feedback(of_it, limit=1000)
    if as_json:
        click.echo(json.dumps(objects.completion(found, given.data)))
        return
    c = found.completion
    rows = [
        ("completion", c.id),
        ("when", terminal.when(c.created_ms)),
        ("model", f"{c.model} ({c.version}), by {c.engine}"),
        ("state", c.state + (f": {c.error}" if c.error else "")),
        ("session", found.session),
        ("key", c.key_id),
        ("follows", found.parent or "nothing known"),
        ("tokens", f"{_or_unknown(c.prompt_tokens)} in, {_or_unknown(c.completion_tokens)} out"),
        *((f"snapshot {choice.index}", objects.snapshot_of(choice)) for choice in c.choices),
        *((f"rating {one.id}", _said(one)) for one in given.data),
    ]
    click.echo(terminal.table([(name, terminal.excerpt(value, 200)) for name, value in rows]))
    if asked := objects.asked_in(c.request):
        click.echo(f"\nasked:\n{terminal.safe(asked)}")
    for choice in c.choices:
        if thought := objects.thoughts_of(choice):
            click.echo(f"\nthought before answer {choice.index}:\n{terminal.safe(thought)}")
        click.echo(f"\nanswer {choice.index} ({choice.finish_reason or 'cut off'}):")
        click.echo(terminal.safe(objects.text_of(choice)))


async def _recorded(store: "Store", identity: str, home: Path) -> StoredCompletion:
    found = await store.get_completion(await store.id_of(identity))
    if found is None:
        raise not_recorded(identity, home)
    return found


@completions.command(
    "delete",
    epilog=examples(
        "strop completions delete cmp_0198c1d25a7e7f3ab6e1a2c4d5e6f708",
        "strop completions delete --session ses_0198c1d25a7e7f3ab6e1a2c4d5e6f708",
        "strop completions delete --key key_40716899757d",
        "strop completions delete --containing 'Ann Smith'",
        "strop completions delete --older-than 90 --yes",
    ),
)
@click.argument("named", metavar="[COMPLETION]...", nargs=-1)
@home_option
@click.option("--session", help="All of one conversation; where keys share its name, with --key.")
@sessions.key_option
@click.option(
    "--older-than",
    type=click.IntRange(0),
    metavar="DAYS",
    help="Those from before, of conversations in which no rating stands.",
)
@containing_option
@click.option("--yes", is_flag=True, help="Don't ask.")
def delete_completions(
    named: tuple[str, ...],
    home: Path | None,
    session: str | None,
    key: str | None,
    older_than: int | None,
    containing: str | None,
    yes: bool,
) -> None:
    """Delete answers for good, with what was asked.

    Their ratings are withdrawn, which makes the versions that learned from them stale. Until a
    version is removed, its probe keeps the prompts that it was made with. A training run that has
    collected any of them begins anew. The file stays as large as it is; what is freed is used
    again, or given back by `strop compact`.
    """
    by_filter = bool(session or key or containing)
    if (bool(named), by_filter, older_than is not None).count(True) != 1:
        raise click.UsageError(
            "expected COMPLETION..., --older-than, or any of --session, --key and --containing"
        )
    ids = tuple(map(completion_id, named))
    wanted = CompletionFilter(session=session, key_id=key, containing=containing)
    asyncio.run(_delete_completions(home_of(home), ids, wanted, older_than, is_sure=yes))


async def _delete_completions(
    home: Path,
    named: tuple[str, ...],
    wanted: CompletionFilter,
    older_than: int | None,
    *,
    is_sure: bool,
) -> None:
    async with open_store(home) as store:
        found = [await _recorded(store, one, home) for one in named]
        # One may have been named twice.
        ids = tuple({one.completion.id for one in found})
        session, key = wanted.session, wanted.key_id
        if session and not key:
            key = await sessions.key_of(store, session)
        holding: Sequence[CompletionSummary] = ()
        if wanted.containing:
            page = await store.list_completions(replace(wanted, key_id=key), limit=sys.maxsize)
            holding, ids = page.data, tuple(one.id for one in page.data)
            if not ids:
                click.echo("No answers.")
                return
        if not is_sure:
            if older_than is not None:
                what = f"the answers older than {older_than} days, where nothing is rated,"
            elif named:
                what = await _named(store, ids)
            elif holding:
                what = _found(holding, wanted)
            else:
                what = await _all_of(store, wanted, key)
            click.confirm(f"Delete {what} for good?", abort=True)
        if ids:
            done = await store.deletion.completions(ids)
        elif older_than is not None:
            # The system's clock begins in 1970, and so does all that is recorded.
            before_ms = max(0, now_ms() - older_than * _DAY_MS)
            done = await store.deletion.unrated(before_ms)
        else:
            done = await store.deletion.all_of(session=session, key_id=key)
        withdrawn = f"; {_ratings(done.num_ratings)} withdrawn" if done.num_ratings else ""
        click.echo(f"Deleted {sessions.answers(done.num)}{withdrawn}.")
        # A disk that is full may keep more from being told.
        with contextlib.suppress(*(() if done.is_whole else (StropError, OSError))):
            await _say_what_follows(store, done, found, home)
        rest: list[str] = []
        if named and not done.is_whole:
            rest = [one for one in sorted(ids) if await store.get_completion(one)]
    if not done.is_whole:
        again = to_copy(" ".join(["completions delete", *rest]), home)
        how = again if rest else "the same command again"
        raise click.ClickException(f"{done.failure}; the rest is still there, and goes with {how}")
    if not done.is_erased:
        raise click.ClickException(_not_erased(home, done.failure))


async def _say_what_follows(
    store: "Store", done: "Deleted", named: Sequence[StoredCompletion], home: Path
) -> None:
    """Say where else what was deleted may stand, and what to type against that."""
    if done.learners:
        async for line in learners.advice(store, done.learners, home):
            click.echo(line)
    if done.num and (told := await _forgotten_by_runs(store, home)):
        click.echo(told)
    for one, key_id in sorted({(one.session, one.completion.key_id) for one in named}):
        # Clients of other keys may name theirs alike.
        left = CompletionFilter(session=one, key_id=key_id)
        if (await store.list_completions(left, limit=1)).data:
            all_of = f"completions delete --session {shlex.quote(one)} --key {key_id}"
            click.echo(f"Its conversation goes on, and may repeat it: {to_copy(all_of, home)}")


async def _named(store: "Store", ids: Sequence[str]) -> str:
    """Return in words how many answers of these ids are to go, and how many ratings."""
    standing = [FeedbackFilter(completion=one, state="standing") for one in ids]
    given = [await store.list_feedback(one, limit=_MOST_COUNTED) for one in standing]
    return sessions.answers(len(ids)) + _with_ratings(sum(len(page.data) for page in given))


def _found(holding: Sequence[CompletionSummary], wanted: CompletionFilter) -> str:
    """Return the same of those that hold a text."""
    rated = _with_ratings(sum(one.num_feedback for one in holding)) or ","
    return f"{sessions.answers(len(holding))}{_of(wanted)}, found by {wanted.containing!r}{rated}"


async def _all_of(store: "Store", wanted: CompletionFilter, key: str | None) -> str:
    """Return the same of a session, or of all of a key."""
    page = await store.list_completions(replace(wanted, key_id=key), limit=_MOST_COUNTED)
    more = "over " if page.has_more else ""
    rated = await store.feedback_counts(wanted.session, key)
    return f"{more}{sessions.answers(len(page.data))}{_of(wanted)}{_with_ratings(rated.total)}"


def _of(wanted: CompletionFilter) -> str:
    of = f" of {wanted.session}" if wanted.session else ""
    return of + (f" made with {wanted.key_id}" if wanted.key_id else "")


def _with_ratings(num: int) -> str:
    return f", with {_ratings(num)}," if num else ""


def _ratings(num: int) -> str:
    return f"{num} rating{'' if num == 1 else 's'}"


def _not_erased(home: Path, failure: str | None) -> str:
    path = home / layout.DATABASE
    then = f"this overwrites it: {to_copy('status', home)}"
    if serving(home) is not None:
        then = "strop overwrites it, within a minute"
    why = "another program keeps the database busy; once that has ended"
    if failure is not None:
        why = f"{failure}; once that is mended"
    return f"what was deleted can still be read in {path} and {path}-wal, since {why}, {then}"


async def _forgotten_by_runs(store: "Store", home: Path) -> str | None:
    """Let no run keep or learn what was deleted; return what that means for the one under way."""
    run = await store.runs.unfinished()
    said = "was interrupted; it begins anew, without that"
    try:
        run_folder.clean_all(home / layout.RUNS, run.id if run else None)
    except AlreadyRunning as error:
        said = "was interrupted; what it has collected goes when it goes on"
        if run and error.run == run.id:
            said = "is under way; if it has collected any of that, it begins anew at its next step"
    # One that is queued has collected nothing.
    return f"{run.id} {said}." if run and run.state != "queued" else None


COMMANDS: Final = (completions,)


def _said(one: Feedback) -> str:
    by = one.rater or one.source
    tags = f", tagged {', '.join(one.tags)}" if one.tags else ""
    because = f": {one.comment}" if one.comment else ""
    instead = f"; better: {one.correction}" if one.correction else ""
    return (
        f"{terminal.rating(one.rating)} ({one.state}), choice {one.choice}, by {by}{tags}{because}"
        f"{instead}"
    )


def _or_unknown(count: int | None) -> str:
    return "unknown" if count is None else str(count)
