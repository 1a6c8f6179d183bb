"""A model name means one served version, or is refused with the names there are."""

import pytest

from strop.proxy.alias import Alias, Leases, Served
from strop.proxy.errors import UnknownModel

V3 = Served("v3", "qwen@v3")
ALIAS = Alias("mine", V3, {"base": Served("base", "qwen"), "v3": V3}, others=("other",))


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
    "model", ["", "qwen", "mine@v4", "mine@", "@v3", "MINE", None, 7, ["mine"]]
)
def test_any_other_name_is_unknown(model: object) -> None:
    """The error lists the names that may be used."""
    with pytest.raises(UnknownModel, match="mine, mine@base, mine@v3, other"):
        ALIAS.resolve(model)


def test_an_unknown_name_means_the_active_version_where_any_is_accepted() -> None:
    """`model.accept_any`, for clients whose model name can't be set."""
    assert V3 == Alias("mine", V3, {"v3": V3}, accepts_any=True).resolve("gpt-4o")


@pytest.mark.parametrize(
    ("name", "alias", "served", "others"),
    [
        ("", "a", "a", ("b",)),
        ("b", "b", "b", ("a",)),
        ("mine", "mine", "a", ("b",)),
    ],
)
def test_the_public_name_is_the_engines_own_unless_it_is_set(
    name: str, alias: str, served: str, others: tuple[str, ...]
) -> None:
    """A name that the engine serves chooses that model."""
    made = Alias.of_base(name, ["a", "b"], accepts_any=False)

    assert (alias, served, others) == (made.name, made.active.name, made.others)


def test_a_lease_given_back_twice_is_an_error() -> None:
    """A request ends once."""
    leases = Leases()
    leases.take(V3)
    leases.release(V3)

    with pytest.raises(RuntimeError, match="v3"):
        leases.release(V3)
    assert leases.count("v3") == 0
