"""Money begins in three places and nowhere else: an import, funds for playing, and users who are added with it where no money is real."""

import ast

from checks.tree import PACKAGES, ROOT, modules

MAY_BEGIN_MONEY = {"infra/postgres/admin/accounts.py", "infra/postgres/admin/balance_imports.py", "infra/postgres/admin/paper_funds.py"}
# `orchestrator up` and the demonstration, both at a simulated exchange of their own.
MAY_ADD_USERS_WITH_MONEY = {"cli/local/trial_users.py", "cli/local/demo_stage.py"}
OWN = {"pipeline/books/ledger.py"}


def users_of(name: str) -> set[str]:
    """The shipped modules that use a name, as a name or behind a dot."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in modules(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name)
    }


def test_only_three_modules_make_opening_transfers() -> None:
    """The kind and the account it comes from are used by nobody else, and no step opens an account; whoever adds a place says why here."""
    assert users_of("OPENING") - OWN == MAY_BEGIN_MONEY
    elsewhere = {path.relative_to(ROOT).as_posix() for path in modules("agents", "cli", "infra/postgres", "pipeline")} - OWN
    assert users_of("opening") & elsewhere == MAY_BEGIN_MONEY
    steps = {path.relative_to(ROOT).as_posix() for path in modules("agents", "pipeline")}
    assert users_of("open") & steps == set()


def test_only_where_no_money_is_real_users_are_added_with_it() -> None:
    """`orchestrator users add` adds them without."""
    assert users_of("add_users") - {"infra/postgres/admin/accounts.py"} == MAY_ADD_USERS_WITH_MONEY


def test_account_that_money_comes_from_is_named_in_one_place() -> None:
    """Nobody else writes `@opening` into a transfer, or into SQL that makes one."""
    named = {
        path.relative_to(ROOT).as_posix()
        for path in modules(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value == "@opening"
    }
    assert named == OWN
