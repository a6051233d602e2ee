"""Which system account a user's jobs run as."""

import pytest

from workerd.access.accounts import Accounts
from workerd.access.policy import On, Resource
from workerd.engine.job import User

ANN = User("11111111-1111-4111-8111-111111111111", "ann")
IMPOSTOR = User("22222222-2222-4222-8222-222222222222", ANN.id)


@pytest.mark.parametrize(
    ("default", "of_users", "account"),
    [
        ("", {}, "workerd"),
        ("jobs", {}, "jobs"),
        ("jobs", {"bob": "build"}, "jobs"),
        ("jobs", {"ann": "build"}, "build"),
        ("", {"ann": "build", ANN.id: "deploy"}, "deploy"),
    ],
)
def test_a_users_own_account_wins_over_the_one_for_all_and_an_id_over_a_name(
    default: str, of_users: dict[str, str], account: str
) -> None:
    assert Accounts("workerd", default, of_users).default_of(ANN) == account


def test_a_user_who_is_called_like_an_id_does_not_get_the_account_of_that_user() -> None:
    assert Accounts("workerd", "jobs", {ANN.id: "deploy"}).default_of(IMPOSTOR) == "jobs"


@pytest.mark.parametrize(
    ("named", "account", "is_default"), [("", "build", True), ("build", "build", True), ("jobs", "jobs", False)]
)
def test_it_is_the_account_that_counts_and_not_whether_it_was_named(named: str, account: str, is_default: bool) -> None:
    accounts = Accounts("workerd", "jobs", {"ann": "build"})
    assert accounts.effective(ANN, named) == Resource(On.ACCOUNT, account, is_default=is_default)


def test_the_daemons_own_account_is_nothing_to_take_on() -> None:
    accounts = Accounts("workerd")
    assert [accounts.to_take_on(name) for name in ("workerd", "build")] == ["", "build"]
