"""A model name means one served version, or is refused with the names there are."""

import asyncio

import pytest

from strop.proxy.alias import Alias, Leases, Served
from strop.proxy.errors import EngineNotReady, UnknownModel, VersionNotLoaded

BASE = Served("base", "qwen")
V3 = Served("v3", "qwen@v3")
ALIAS = Alias("mine", BASE, V3, {"base": BASE, "v3": V3}, others=("other",))


@pytest.mark.parametrize(
    ("model", "served"),
    [
        ("mine", V3),
        ("mine@v3", V3),
        ("mine@base", Served("base", "qwen")),
        ("other", Served("base", "other")),
    ],
)
def test_a_name_means_the_active_version_and_a_pin_its_own(model: str, served: Served) -> None:
    """Other bases of the engine keep their names."""
    assert served == ALIAS.resolve(model)


@pytest.mark.parametrize(
    "model", ["", "qwen", "mine@v4", "mine@v04", "mine@", "@v3", "MINE", None, 7, ["mine"]]
)
def test_any_other_name_is_unknown(model: object) -> None:
    """The error lists the names that may be used."""
    with pytest.raises(UnknownModel, match="mine, mine@base, mine@v3, other"):
        ALIAS.resolve(model)


def test_a_model_that_is_not_named_is_asked_for() -> None:
    """In words of JSON, not of Python."""
    said = ALIAS.no_such(None)

    assert "expected `model` to name one, got none; the models are: mine, mine@base" in said


def test_an_unknown_name_means_the_active_version_where_any_is_accepted() -> None:
    """`model.accept_any`, for clients whose model name can't be set."""
    assert V3 == Alias("mine", BASE, V3, {"v3": V3}, accepts_any=True).resolve("gpt-4o")


def test_a_pin_to_a_version_that_is_not_loaded_says_which() -> None:
    """Whether there is one is for the store to say, even where any other name is accepted."""
    alias = Alias("mine", BASE, V3, {"v3": V3}, accepts_any=True)

    with pytest.raises(VersionNotLoaded) as refused:
        alias.resolve("mine@v12")
    assert "v12" == refused.value.version


def test_an_active_version_that_is_not_loaded_is_not_served() -> None:
    """Nobody gets the base in its place, and the error says why."""
    alias = ALIAS.serving({"base": BASE})

    with pytest.raises(EngineNotReady, match="v3, the active version of mine, is not served"):
        alias.resolve("mine")
    assert BASE == alias.resolve("mine@base")
    assert not alias.is_served


def test_a_switch_makes_a_new_alias_and_leaves_the_old_one_as_it_was() -> None:
    """Whoever has resolved a name keeps what it was."""
    v4 = Served("v4", "mine@v4")

    switched = ALIAS.serving({**ALIAS.versions, "v4": v4}, v4)

    assert (v4, V3) == (switched.resolve("mine"), ALIAS.resolve("mine"))


def test_an_identity_reaches_each_version_and_no_other_base() -> None:
    """It is what each completion is recorded with."""
    known = ALIAS.identified("sha256:1")

    assert ["sha256:1"] * 3 == [
        known.resolve(name).base for name in ("mine", "mine@v3", "mine@base")
    ]
    assert known.resolve("other").base is None


@pytest.mark.parametrize(
    ("name", "alias", "served", "others"),
    [
        ("", "a", "a", ("b",)),
        ("b", "b", "a", ()),
        ("mine", "mine", "a", ("b",)),
    ],
)
def test_the_public_name_is_the_engines_own_unless_it_is_set(
    name: str, alias: str, served: str, others: tuple[str, ...]
) -> None:
    """Which of the engine's models serves is not its to say: the first is, and may hide another."""
    made = Alias.of_base(name, ["a", "b"], accepts_any=False)

    assert (alias, served, others) == (made.name, made.active.name, made.others)


@pytest.mark.parametrize(
    ("name", "synonyms"), [("", ("a:latest",)), ("a:latest", ("a",)), ("mine", ())]
)
def test_a_name_that_the_engine_takes_for_the_same_means_the_active_version(
    name: str, synonyms: tuple[str, ...]
) -> None:
    """And pins as the other does; where clients have a name of their own for it, that counts."""
    made = Alias.of_base(name, ["a", "b"], synonyms=["a:latest"], accepts_any=False)
    v1 = Served("v1", "a@v1")
    made = made.serving({**made.versions, "v1": v1}, v1)

    assert synonyms == made.synonyms
    for synonym in synonyms:
        assert v1 is made.resolve(synonym) is made.resolve(f"{synonym}@v1")
        assert "base" == made.resolve(f"{synonym}@base").version
        assert synonym in made.names()
    if not synonyms:
        with pytest.raises(UnknownModel):
            made.resolve("a:latest")


def test_a_lease_given_back_twice_is_an_error() -> None:
    """A request ends once."""
    leases = Leases()
    leases.take(V3)
    leases.release(V3)

    with pytest.raises(RuntimeError, match="v3"):
        leases.release(V3)
    assert leases.count("v3") == 0


def test_when_the_last_request_of_any_version_ended_is_known() -> None:
    """As it is for each."""
    leases = Leases()
    never = leases.idle_since()
    for served in (V3, BASE):
        leases.take(served)
        leases.release(served)

    assert 0.0 == never < leases.idle_since("v3") <= leases.idle_since("base")
    assert leases.idle_since("base") == leases.idle_since()


async def test_waiting_for_a_version_ends_with_its_last_request() -> None:
    """Others may go on."""
    leases = Leases()
    for served in (V3, V3, BASE):
        leases.take(served)

    waiting = asyncio.create_task(leases.wait_until_free("v3"))
    leases.release(V3)
    await asyncio.sleep(0)
    assert not waiting.done()
    leases.release(V3)
    await waiting

    assert (0, 1, 1) == (leases.count("v3"), leases.count("base"), leases.total)
