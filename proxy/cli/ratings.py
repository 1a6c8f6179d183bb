"""The commands that rate what is recorded, in the home's own store, and take ratings back.

They work whether or not strop runs. They ask for no key: whoever can open the store owns it, and
may rate what was asked with any client key.
"""

import asyncio
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import click

from strop.proxy import ratings
from strop.proxy.auth import LOCAL_KEY_ID
from strop.proxy.cli import terminal
from strop.proxy.cli.newest import newest
from strop.proxy.cli.options import (
    completion_argument,
    examples,
    home_of,
    home_option,
    in_force,
    not_recorded,
    open_store,
)
from strop.proxy.command_line import to_copy
from strop.proxy.errors import BadRequest, NotFound, UnknownCompletion
from strop.proxy.redaction import Redaction
from strop.proxy.store.records import Feedback, FeedbackFilter, Scope

if TYPE_CHECKING:
    from strop.proxy.store.store import Store


def _choice_option(command: Any) -> Any:
    return click.option(
        "--choice",
        type=int,
        default=0,
        show_default=True,
        metavar="N",
        help="Which of several answers to one request.",
    )(command)


def _rating_command(word: str) -> click.Command:
    why = "too long" if word == "bad" else "short and right"

    @click.command(
        word,
        help=f"Rate an answer {word}: the one named, else the newest.\n\nThe rating is for the"
        " whole turn, the tool calls that led to the answer included.",
        epilog=examples(f"strop {word}", f"strop {word} -m '{why}'"),
    )
    @completion_argument(required=False)
    @home_option
    @click.option("-m", "--comment", metavar="TEXT", help="Why.")
    @_choice_option
    def command(
        completion: str | None, home: Path | None, comment: str | None, choice: int
    ) -> None:
        body = {"rating": word, "comment": comment, "choice": choice, "scope": "turn"}
        asyncio.run(_rate(completion, body, home_of(home)))

    return command


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog=examples(
        "strop rate cmp_0198c1d25a7e7f3ab6e1a2c4d5e6f708 4/5 --tag style",
        "strop rate cmp_0198c1d25a7e7f3ab6e1a2c4d5e6f708 -0.5 --correction 'Bern.'",
    ),
)
@completion_argument()
@click.argument("rating")
@home_option
@click.option("-m", "--comment", metavar="TEXT", help="Why.")
@_choice_option
@click.option(
    "--correction", metavar="TEXT", help="What should have been answered; - takes standard input."
)
@click.option("--tag", "tags", multiple=True, help="A tag; may be given often.")
@click.option("--rater", help="Who rates.")
@click.option("--scope", type=click.Choice(get_args(Scope)), help="[default: completion]")
def rate(
    home: Path | None, completion: str, rating: str, tags: tuple[str, ...], **said: Any
) -> None:
    """Rate an answer in detail.

    RATING is good or bad, a number from -1 to 1, or stars as in 4/5.
    """
    if said["correction"] == "-":
        said["correction"] = _standard_input()
    value = _rating_in(rating)
    try:
        ratings.parse_rating(value)
    except BadRequest as error:
        raise BadRequest(
            "expected RATING to be good or bad, a number from -1 to 1, or stars as in 4/5; got"
            f" {rating!r}"
        ) from error
    body = {**said, "rating": value, "tags": list(tags)}
    asyncio.run(_rate(completion, body, home_of(home)))


def _standard_input() -> str:
    """Return what standard input says.

    Raises:
        BadRequest: it says nothing, or no text.
    """
    # Where it is closed, Python has none.
    if sys.stdin is None:
        raise BadRequest("expected the correction on standard input, which is closed")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"expected the correction on standard input as {error.encoding} text: {error.reason}"
        ) from error


def _rating_in(text: str) -> object:
    """Return a rating as the API takes it; `4/5` are stars."""
    stars, slash, of = text.partition("/")
    if not slash or of.strip() != "5":
        return text
    try:
        return {"stars": float(stars)}
    except ValueError:
        return text


async def _rate(identity: str | None, said: Mapping[str, object], home: Path) -> None:
    async with open_store(home) as store:
        passed_over = ""
        if identity is None:
            identity, passed_over = await _newest(store)
        else:
            identity = await store.id_of(identity)
        found = await store.get_completion(identity)
        key_id = LOCAL_KEY_ID if found is None else found.completion.key_id
        body = {name: value for name, value in said.items() if value is not None}
        new = ratings.parse_feedback(
            {**body, "completion_id": identity}, key_id=key_id, source="cli"
        )
        settings = in_force(home)
        redaction = Redaction.of(settings.capture.redact)
        try:
            outcome = await store.add_feedback(redaction.feedback(new), _is_in_flight)
        except UnknownCompletion as error:
            raise not_recorded(identity, home) from error
        given, replaced = outcome.feedback, outcome.replaced
        rated = found or await store.get_completion(given.completion)
    assert rated is not None
    click.echo(f"Rated {terminal.rating(given.rating)}: {terminal.described(rated, given.choice)}")
    if passed_over:
        click.echo(f"Passed over, newer: {passed_over}")
    if settings.model.base and rated.completion.base is None:
        served = terminal.excerpt(rated.completion.served)
        click.echo(f"Nothing is learned from it: {served} is not known to be model.base")
    if replaced is not None:
        click.echo(f"It replaces: {_standing(replaced)}")
    click.echo(f"Take it back: {_undo_command(given, home)}")


def _standing(replaced: Feedback) -> str:
    """Return a rating that stands no more: its value, when, how and by whom it was given, why."""
    given = f"{terminal.since(replaced.created_ms)}, by {replaced.source}"
    if replaced.key_id != LOCAL_KEY_ID:
        given += f" with {replaced.key_id}"
    because = f': "{terminal.excerpt(replaced.comment)}"' if replaced.comment else ""
    correction = ", with a correction" if replaced.correction else ""
    return f"{terminal.rating(replaced.rating)} ({given}){correction}{because}"


@click.command(epilog=examples("strop undo"))
@completion_argument(required=False)
@home_option
@click.option("--rater", default="", help="Whose rating; by default the one without a name.")
def undo(completion: str | None, home: Path | None, rater: str) -> None:
    """Take a rating back.

    That of the answer named, else the newest that was given in the shell.
    """
    asyncio.run(_undo(completion, rater, home_of(home)))


async def _undo(identity: str | None, rater: str, home: Path) -> None:
    async with open_store(home) as store:
        if identity is None:
            # In the chat, and with a client's own code, others rate too.
            wanted = FeedbackFilter(source="cli", state="standing")
        else:
            wanted = FeedbackFilter(completion=await store.id_of(identity), state="standing")
        standing = await store.list_feedback(replace(wanted, rater=rater), limit=1)
        if not standing.data:
            others = await store.list_feedback(wanted, limit=1)
            other = next(iter(others.data), None)
            raise NotFound(_nothing_to_undo(identity, rater, other, home))
        undone = await store.withdraw(standing.data[0].id, None)
        rated = await store.get_completion(undone.completion)
    assert rated is not None
    word = terminal.rating(undone.rating)
    click.echo(f"Took back {word}: {terminal.described(rated, undone.choice)}")


def _nothing_to_undo(identity: str | None, rater: str, other: Feedback | None, home: Path) -> str:
    """Return that a rater has no such rating, and how to name another: a rater's that there is."""
    of = f"of {identity}" if identity else "from the shell"
    by = f" by {rater}" if rater else ""
    said = f"there is no rating {of}{by} to take back"
    if other is not None:
        whose = f"by {other.rater}" if other.rater else "without a rater"
        return f"{said}; one {whose} stands: {_undo_command(other, home)}"
    if identity:
        return said
    return (
        f"{said}; for another, name its answer: {to_copy('undo ID', home)}, or type /rl undo in its"
        " chat"
    )


def _undo_command(given: Feedback, home: Path) -> str:
    by = f" --rater {shlex.quote(given.rater)}" if given.rater else ""
    return to_copy(f"undo {given.completion}{by}", home)


COMMANDS: Final = (_rating_command("good"), _rating_command("bad"), rate, undo)


async def _newest(store: "Store") -> tuple[str, str]:
    """Return the id of the newest answer, and which newer ones are none to rate, and why."""
    last = await newest(store)
    passed_over = ", ".join(
        f"{ids[0]}{f' and {len(ids) - 1} more' * (len(ids) > 1)} ({reason})"
        for reason, ids in last.passed_over.items()
    )
    if last.answer is None:
        found = f"; none is {passed_over}" if passed_over else ""
        raise UnknownCompletion(
            f"there is no answer to rate yet; ask the model something first{found}"
        )
    return last.answer.completion.id, passed_over


def _is_in_flight(_completion: str) -> bool:
    # Only the process that relays it knows; a rating by hand comes later.
    return False
