"""`verify balances`: the ledger beside the exchanges' balances, account by account, now.

Invariants:
1. Nothing is changed, here or at the exchange: the timer of the workers does the same and keeps what it finds (agents/watches/balances).
2. What is under way is no drift. An account that does not fit, or that moved while it was looked at, is looked at again: a drift counts
   only when the last look that counts still shows it and an earlier one did.

Start with `run_verify_balances`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import asyncpg

from agents.process.app import credential_source, gateways_of, rules_of, utc_now
from agents.watches.balance_look import BalanceLooks
from cli.access.administration import exchange_here, keyring_for, user_id_of
from cli.access.credentials import usage
from cli.access.database import Row, database_failed, reading, require_user
from cli.access.installation import Installation
from cli.terminal.exits import Exit
from cli.terminal.output import printable, say, table_lines, to_json, write_line
from infra.exchange.ccxt.gateway import CcxtGateway
from infra.exchange.gateway import UnknownVenue, VenueUnavailable
from infra.postgres.account_ledgers import compared_accounts
from infra.postgres.database import Database, connect
from infra.postgres.schema import DatabaseUnfit
from pipeline.model.invariants import Retryable
from pipeline.model.rules import Rules
from pipeline.model.venue import MarketData
from pipeline.reconciliation.balances import Drift, ExchangeAccount, Judged, Look, NotJudged, value_of

_LOOKS_MAX: Final = 4
_PAUSE_SECONDS: Final = 1.5
_AT_ONCE: Final = 4
_PAGE: Final = 500
_COLUMNS: Final = ("user_id", "exchange", "asset", "ledger", "at_exchange", "difference", "usd", "age_seconds")


@dataclass(frozen=True, slots=True)
class BalancesOptions:
    """Which accounts: one user's, at one exchange; None for all."""

    user_id: str | None = None
    exchange: str | None = None
    as_json: bool = False


@dataclass(slots=True)
class _Found:
    """What came of the accounts: rows of drifts, and those that could not be judged, with the reason."""

    accounts: int = 0
    drifts: list[Row] = field(default_factory=list)
    under_way: list[Row] = field(default_factory=list)
    unanswered: list[Row] = field(default_factory=list)


async def run_verify_balances(installation: Installation, options: BalancesOptions) -> Exit:
    """Compares and prints. Returns NOT_SO where there is a drift, OUT_OF_REACH where an exchange did not answer for some account; raises
    CommandFailed."""
    settings = installation.settings
    user_id = user_id_of(options.user_id) if options.user_id is not None else None
    exchanges = settings.exchanges if options.exchange is None else (exchange_here(settings, options.exchange),)
    async with reading(installation) as connection:
        await require_user(connection, user_id)
    keyring = keyring_for(settings)
    found, rules = _Found(), rules_of(settings)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(_database(installation))
        try:
            gateways = gateways_of(settings, credential_source(database, keyring))
        except (UnknownVenue, ValueError) as error:
            raise usage(f"{error}.") from error
        for gateway in gateways.values():
            stack.push_async_callback(gateway.close)
        for exchange in exchanges:
            await _compare(database, gateways[exchange], user_id, rules, found)
    _print(found, as_json=options.as_json)
    if found.drifts:
        return Exit.NOT_SO
    return Exit.OUT_OF_REACH if found.unanswered else Exit.DONE


@asynccontextmanager
async def _database(installation: Installation) -> AsyncIterator[Database]:
    try:
        database = await connect(installation.database_url, _AT_ONCE + 1, installation.settings.database_timeout_seconds)
    except (Retryable, DatabaseUnfit) as error:
        raise database_failed(installation, error.__cause__ if isinstance(error.__cause__, Exception) else error) from None
    try:
        yield database
    except DatabaseUnfit as error:
        raise database_failed(installation, error.__cause__ if isinstance(error.__cause__, Exception) else error) from None
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as error:
        raise database_failed(installation, error) from None
    finally:
        await database.close()


async def _compare(database: Database, gateway: CcxtGateway, user_id: str | None, rules: Rules, found: _Found) -> None:
    """Compares all accounts at one exchange, a page at a time."""
    looks, slots, after = BalanceLooks(database, {gateway.exchange: gateway}), asyncio.Semaphore(_AT_ONCE), ""
    while True:
        page = await compared_accounts(
            database, gateway.exchange, utc_now(), after_user_id=after, only_user_id=user_id, limit=_PAGE
        )
        found.accounts += len(page)
        results = await asyncio.gather(*(_settled(account, looks, slots) for account in page))
        drifts = [drift for look in results if isinstance(look, Judged) for drift in look.drifts]
        market_data = await _prices(gateway) if drifts else None
        for account, look in zip(page, results, strict=True):
            if isinstance(look, NotJudged):
                row: Row = {"user_id": account.user_id, "exchange": account.exchange, "why": look.why}
                (found.unanswered if look.unanswered else found.under_way).append(row)
            else:
                found.drifts += [_row(account, drift, look, market_data, rules) for drift in look.drifts]
        if len(page) < _PAGE:
            return
        after = page[-1].user_id


async def _settled(account: ExchangeAccount, looks: BalanceLooks, slots: asyncio.Semaphore) -> Look:
    """Looks until the account fits, the same assets differ twice, or the looks are used up."""
    earlier: set[str] = set()
    look: Look = NotJudged("it was not looked at")
    for number in range(_LOOKS_MAX):
        if number:
            await asyncio.sleep(_PAUSE_SECONDS)
        async with slots:
            look = await looks.look(account)
        if isinstance(look, NotJudged):
            continue
        assets = {drift.asset for drift in look.drifts}
        if assets <= earlier:
            return look
        earlier = assets
    return look if isinstance(look, NotJudged) else NotJudged("it differed in another way at every look")


def _row(account: ExchangeAccount, drift: Drift, look: Judged, market_data: MarketData | None, rules: Rules) -> Row:
    known = look.stored.get(drift.asset)
    now = utc_now()
    return {
        "user_id": account.user_id,
        "exchange": account.exchange,
        "asset": drift.asset,
        "ledger": drift.ledger_amount,
        "at_exchange": drift.exchange_amount,
        "difference": drift.difference,
        "usd": value_of(drift, market_data, now, rules),
        "seen_since": known.first_seen_at if known is not None else None,
        "age_seconds": _age_seconds(known.first_seen_at, now) if known is not None else None,
    }


def _age_seconds(since: datetime, now: datetime) -> int:
    return max(0, int((now - since).total_seconds()))


async def _prices(gateway: CcxtGateway) -> MarketData:
    """Fresh prices of every pair, as what differs may be worth something only by way of others; none where the exchange tells none."""
    try:
        return MarketData(gateway.exchange, quotes=await gateway.quotes(await gateway.markets()))
    except VenueUnavailable:
        return MarketData(gateway.exchange)


def _print(found: _Found, *, as_json: bool) -> None:
    if as_json:
        row: Row = {
            "holds": not found.drifts,
            "accounts": found.accounts,
            "drifts": found.drifts,
            "under_way": found.under_way,
            "unanswered": found.unanswered,
        }
        write_line(to_json(row))
        return
    if found.drifts:
        for line in table_lines(found.drifts, _COLUMNS):
            write_line(line)
    judged = found.accounts - len(found.under_way) - len(found.unanswered)
    differ = len({(row["user_id"], row["exchange"]) for row in found.drifts})
    say(f"{judged} of {found.accounts} accounts were compared; {differ} differ from the ledger.")
    for row in found.under_way:
        say(printable(f"not compared  {row['user_id']} at {row['exchange']}: {row['why']}"))
    for row in found.unanswered:
        say(printable(f"no answer     {row['user_id']} at {row['exchange']}: {row['why']}"))
