"""What tests of deposits add to an installation: deposits that arrive at the simulated exchange, and what became of them."""

from decimal import Decimal
from typing import Any, Final

import aiohttp

from tests.installation import USERS, Installation
from tests.withdrawing import run_sql

ADDRESS: Final = "0x71C7656EC7ab88b098defB751B7401B5f6d8976F"
# For workers: a sandbox may be quicker than real money.
QUICK: Final = {"ORCHESTRATOR_DEPOSIT_POLL_MS": "300"}
HISTORY: Final = "/sapi/v1/capital/deposit/hisrec"


async def simulator(made: Installation, path: str, value: dict[str, Any]) -> dict[str, Any]:
    """A request to the simulated exchange's own endpoints, which must succeed."""
    async with aiohttp.ClientSession() as session, session.post(f"{made.simulator_url}/simulator/{path}", json=value) as response:
        response.raise_for_status()
        answer: dict[str, Any] = await response.json()
        return answer


async def arrive(made: Installation, user_id: str = USERS[0], amount: str = "25", **fields: Any) -> dict[str, Any]:
    """A deposit of USDT over Ethereum for one of the users; `fields` as the simulator takes them. Returns its `id` and `txId`."""
    given = {"api_key": f"key-{user_id}", "asset": "USDT", "amount": amount, "network": "ETH", "address": ADDRESS, **fields}
    return await simulator(made, "deposits", given)


async def credit(made: Installation, deposit: dict[str, Any]) -> None:
    """Lets the exchange credit a deposit that is held."""
    await simulator(made, "deposits/credit", {"id": deposit["id"]})


async def mark(made: Installation, deposit: dict[str, Any], status: int) -> None:
    """Lets the exchange show another status of a deposit; 2 and 7 take a credited one back."""
    await simulator(made, "deposits/mark", {"id": deposit["id"], "status": status})


def announcement(number: int, **fields: Any) -> dict[str, Any]:
    """An announced deposit of 25 USDT over Ethereum for one of the users; `fields` replace or (None) remove."""
    request = {
        "schema_version": 1,
        "type": "deposit",
        "idempotency_key": f"deposit-{number}",
        "user_id": USERS[number % len(USERS)],
        "mode": "live",
        "exchange": "binance",
        "api_key_id": "main",
        "asset": "USDT",
        "amount": "25",
        "network": "ETH",
        "address": ADDRESS,
        **fields,
    }
    return {name: value for name, value in request.items() if value is not None}


async def deposits(made: Installation) -> dict[str, dict[str, Any]]:
    """The rows of `deposits`, by the exchange's id."""
    return {row["exchange_deposit_id"]: row for row in await run_sql(made, "SELECT * FROM deposits")}


async def credited_amounts(made: Installation) -> dict[str, list[Decimal]]:
    """What was credited to users for each deposit, by the exchange's id: one amount, or something is wrong."""
    statement = """
        SELECT exchange_deposit_id, array_agg(transfers.amount) AS amounts FROM deposits
        JOIN transfers ON transfers.order_id = deposit_id AND debit_owner = '@clearing' GROUP BY exchange_deposit_id
    """
    return {row["exchange_deposit_id"]: row["amounts"] for row in await run_sql(made, statement)}
