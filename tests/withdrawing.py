"""What tests of withdrawals add to an installation: keys that may withdraw, an address that has waited, and the exchange's own pay-outs."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import asyncpg

from simulator.records import WithdrawalAccepted, WithdrawalEnded, read_log
from tests.installation import USERS, Installation

ADDRESS: Final = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
# One that the simulated exchange takes and then fails to pay.
FAILING: Final = "0x000000000000000000000000000000000000dEaD"
# For workers: a sandbox may be quicker than real money.
QUICK: Final = {
    "ORCHESTRATOR_WITHDRAWAL_POLL_MS": "300",
    "ORCHESTRATOR_WITHDRAWAL_HISTORY_LAG_SECONDS": "1",
    "ORCHESTRATOR_WITHDRAWAL_APPROVAL_USD": "10000",
}
APPLY: Final = "/sapi/v1/capital/withdraw/apply"


def withdrawal(number: int, **fields: Any) -> dict[str, Any]:
    """A withdrawal of 100 USDT over Ethereum by one of the users; `fields` replace or (None) remove."""
    request = {
        "schema_version": 1,
        "type": "withdrawal",
        "idempotency_key": f"withdrawal-{number}",
        "user_id": USERS[number % len(USERS)],
        "mode": "live",
        "exchange": "binance",
        "api_key_id": "main",
        "asset": "USDT",
        "amount": "100",
        "network": "ETH",
        "address": ADDRESS,
        **fields,
    }
    return {name: value for name, value in request.items() if value is not None}


def database_url_of(made: Installation) -> str:
    if made.settings.database_url is None:
        raise RuntimeError("an installation has a database")
    return made.settings.database_url.get_secret_value()


async def run_sql(made: Installation, statement: str, *values: object) -> list[dict[str, Any]]:
    """Rows of the installation's database."""
    connection = await asyncpg.connect(database_url_of(made), timeout=10)
    try:
        return [dict(row) for row in await connection.fetch(statement, *values)]
    finally:
        await connection.close(timeout=10)


async def allow_withdrawals(made: Installation, *addresses: str, waited: timedelta = timedelta(days=2)) -> None:
    """Lets every user's key withdraw, and puts addresses on every list as if they had been added `waited` ago."""
    await run_sql(made, "UPDATE api_keys SET permissions = '{trade,withdraw}'")
    for address in addresses or (ADDRESS, FAILING):
        statement = """
            INSERT INTO addresses (user_id, network, address, added_at, added_by)
            SELECT user_id, 'ETH', $1, $2, 'test' FROM users WHERE role = 'trader'
        """
        await run_sql(made, statement, address, datetime.now(UTC) - waited)


@dataclass
class PaidOut:
    """The exchange's own log of one user's or everybody's withdrawals."""

    accepted: list[WithdrawalAccepted] = field(default_factory=list)
    completed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)


def paid_out(made: Installation) -> PaidOut:
    """What the exchange's own log says that it accepted, paid and did not pay."""
    found = PaidOut()
    for record in read_log(made.exchange_log):
        if isinstance(record, WithdrawalAccepted):
            found.accepted.append(record)
        elif isinstance(record, WithdrawalEnded):
            (found.completed if record.completed else found.failed).add(record.withdrawal_id)
    return found


async def balance(made: Installation, user_id: str, asset: str = "USDT") -> tuple[Decimal, Decimal]:
    """(posted, pending) of a user's account."""
    [row] = await run_sql(made, "SELECT posted, pending FROM balances WHERE user_id = $1 AND asset = $2", user_id, asset)
    return row["posted"], row["pending"]
