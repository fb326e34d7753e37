"""The table of what an error of the database calls for: every code in it exists, and no code of the server is left to chance."""

import asyncpg
import pytest
from asyncpg.exceptions._base import PostgresMessageMeta

from infra.postgres.schema import DatabaseUnfit
from infra.postgres.sqlstates import BY_CLASS, BY_CODE, Reaction, outside_a_step, reaction_of, reaction_to_code, within_a_step
from pipeline.model.invariants import InvariantViolation, Retryable

# The driver has one class for each SQLSTATE of PostgreSQL's manual, appendix A.
_KNOWN = {code for code in PostgresMessageMeta._message_map if len(code) == 5}


def test_every_code_and_class_of_the_table_exists() -> None:
    """A mistyped code would never fit, and its error would count as a defect."""
    assert BY_CODE.keys() - _KNOWN == {"25P04"} - _KNOWN
    assert BY_CLASS.keys() <= {code[:2] for code in _KNOWN}


def test_no_code_says_what_its_class_says_already() -> None:
    """An entry that changes nothing would only hide what counts."""
    assert [code for code, reaction in BY_CODE.items() if BY_CLASS.get(code[:2]) is reaction] == []


@pytest.mark.parametrize(
    ("reaction", "codes"),
    [
        (Reaction.RETRY, "08000 08003 08006 08001 08004 08007 08P01 25P03 25P04 40000 40001 40003 40P01 53000 53100 53200 53300 53400"),
        (Reaction.RETRY, "55P03 55006 57000 57014 57P01 57P02 57P03 57P05 58000 58030 58P01 58P02 72000"),
        (Reaction.RECONNECT, "25006"),
        (Reaction.UNFIT, "28000 28P01 3D000 3F000 42501"),
        (Reaction.REFUSED, "23000 23001 23502 23503 23505 23514 23P01"),
        (Reaction.DEFECT, "22000 22001 22003 22012 25001 25P02 26000 34000 42601 42703 42883 42P01 55000 P0001 XX000 XX001 XX002 99999"),
    ],
)
def test_code_has_its_reaction(reaction: Reaction, codes: str) -> None:
    """What passes is tried again, what a person must change says so, and what nobody has thought of is a defect."""
    assert {code: reaction_to_code(code) for code in codes.split()} == dict.fromkeys(codes.split(), reaction)


@pytest.mark.parametrize(
    ("error", "reaction"),
    [
        (asyncpg.TransactionTimeoutError("x"), Reaction.RETRY),
        (asyncpg.IdleInTransactionSessionTimeoutError("x"), Reaction.RETRY),
        (asyncpg.InvalidCachedStatementError("x"), Reaction.RETRY),
        (asyncpg.FeatureNotSupportedError("x"), Reaction.DEFECT),
        (asyncpg.ConnectionDoesNotExistError("x"), Reaction.RETRY),
        (asyncpg.InterfaceError("connection is closed"), Reaction.RETRY),
        (asyncpg.TargetServerAttributeNotMatched("x"), Reaction.RETRY),
        (asyncpg.exceptions._base.DataError("x"), Reaction.DEFECT),
        (asyncpg.ClientConfigurationError("x"), Reaction.UNFIT),
        (OSError(), Reaction.RETRY),
        (TimeoutError(), Reaction.RETRY),
        (ValueError(), Reaction.DEFECT),
    ],
)
def test_error_of_the_driver_has_its_reaction(error: Exception, reaction: Reaction) -> None:
    """A connection that is gone passes; a value that cannot be sent does not."""
    assert reaction_of(error) is reaction


def test_reaction_becomes_the_exception_that_calls_for_it() -> None:
    """What a constraint refuses is an impossible thing in a step, and an ordinary error of a command outside of one."""
    assert isinstance(within_a_step(asyncpg.UniqueViolationError("x"), "t/0"), InvariantViolation)
    assert outside_a_step(asyncpg.UniqueViolationError("x")) is None
    for named in (outside_a_step, lambda error: within_a_step(error, "t/0")):
        assert isinstance(named(asyncpg.TransactionTimeoutError("x")), Retryable)
        assert isinstance(named(asyncpg.InvalidPasswordError("x")), DatabaseUnfit)
        assert named(asyncpg.UndefinedTableError("x")) is None
