"""What each error of the database calls for: one table, by SQLSTATE class and code (PostgreSQL manual, appendix A).

| reaction | meaning | who sees it |
|---|---|---|
| retry | it passes by itself, or when somebody has looked after the server: the same step is tried again, within a bound | `Retryable` |
| reconnect | the same, but this session will never work again: every connection is replaced first | `Retryable` |
| unfit | the address, the user or its rights are wrong: a person must change the settings | `DatabaseUnfit` |
| refused | a constraint or a trigger refused what a step wanted to store: the second half of an invariant | `InvariantViolation` |
| defect | everything else, a code that nobody has thought of included: the worker ends, and the error is told as it is | itself |

A code wins over its class. Start with `reaction_of`.
"""

from enum import StrEnum
from typing import Final

import asyncpg

from infra.postgres.schema import DatabaseUnfit
from pipeline.model.invariants import InvariantViolation, Retryable


class Reaction(StrEnum):
    """See the module."""

    RETRY = "retry"
    RECONNECT = "reconnect"
    UNFIT = "unfit"
    REFUSED = "refused"
    DEFECT = "defect"


BY_CLASS: Final[dict[str, Reaction]] = {
    # Connection exceptions, with what a pooler between us and the server says of one.
    "08": Reaction.RETRY,
    "23": Reaction.REFUSED,
    "28": Reaction.UNFIT,
    # Two transactions met: deadlock, serialization failure.
    "40": Reaction.RETRY,
    # Its disk, its memory, its connections.
    "53": Reaction.RETRY,
    # Somebody or a time limit of the server stopped the statement, the session or the server.
    "57": Reaction.RETRY,
    # An error of the system below it.
    "58": Reaction.RETRY,
}
BY_CODE: Final[dict[str, Reaction]] = {
    # A primary that has become a standby behind our back. Its sessions stay open and refuse every write.
    "25006": Reaction.RECONNECT,
    # The server's limits for a session that is idle in a transaction, and for a transaction as a whole: a worker that was paused, or a
    # server that is slow. What was open is rolled back.
    "25P03": Reaction.RETRY,
    "25P04": Reaction.RETRY,
    # No such database, schema, or right.
    "3D000": Reaction.UNFIT,
    "3F000": Reaction.UNFIT,
    "42501": Reaction.UNFIT,
    # lock_timeout, and statements that do not wait.
    "55P03": Reaction.RETRY,
    "55006": Reaction.RETRY,
    "72000": Reaction.RETRY,
}
# What the driver itself raises, without a SQLSTATE: a connection that is gone or was never made, a time limit of ours.
_OF_THE_DRIVER: Final = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
# A migration has changed a table under a prepared statement. The driver has forgotten its plans when it raises this.
_PLAN_IS_OLD: Final = asyncpg.InvalidCachedStatementError
# Everything that comes from server or driver: what `reaction_of` is asked about.
OF_THE_DATABASE: Final = (asyncpg.PostgresError, *_OF_THE_DRIVER)


def reaction_to_code(sqlstate: str) -> Reaction:
    """What an SQLSTATE of five characters calls for."""
    return BY_CODE.get(sqlstate) or BY_CLASS.get(sqlstate[:2], Reaction.DEFECT)


def reaction_of(error: BaseException) -> Reaction:
    """What an error of the database or of its driver calls for."""
    if isinstance(error, _PLAN_IS_OLD):
        return Reaction.RETRY
    if isinstance(error, asyncpg.PostgresError):
        return reaction_to_code(str(error.sqlstate or ""))
    if isinstance(error, asyncpg.ClientConfigurationError):
        return Reaction.UNFIT
    # What the driver itself cannot make sense of is a wrong value or a wrong statement.
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        return Reaction.DEFECT
    return Reaction.RETRY if isinstance(error, _OF_THE_DRIVER) else Reaction.DEFECT


def outside_a_step(error: BaseException) -> Exception | None:
    """The exception that an error calls for where nothing of a batch is under way; None where it must be told as it is."""
    match reaction_of(error):
        case Reaction.RETRY | Reaction.RECONNECT:
            return Retryable(f"the database is out of reach ({type(error).__name__}: {error})")
        case Reaction.UNFIT:
            return DatabaseUnfit(
                f"the database refuses: {error} (SQLSTATE {getattr(error, 'sqlstate', None) or 'none'}). Nothing was read or sent. Check "
                "ORCHESTRATOR_DATABASE_URL, and that its user may create tables."
            )
        case _:
            return None


def within_a_step(error: BaseException, partition: str) -> Exception | None:
    """The same for a step of an input partition, whose batch was rolled back."""
    if reaction_of(error) is Reaction.REFUSED:
        return InvariantViolation(
            f"the database refused to store a batch of {partition}: {error}. The batch was rolled back, no funds were moved. "
            "This is a defect: run `orchestrator verify` and report it with this line."
        )
    return outside_a_step(error)
