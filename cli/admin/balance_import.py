"""`balances import`: what an exchange account holds already becomes the user's opening balance, once.

Start with `import_account`.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from cli.access.administration import administering, asking, exchange_here, key_id_of, keyring_for, user_id_of
from cli.access.confirmation import confirm
from cli.access.credentials import usage
from cli.access.database import Row
from cli.access.installation import Installation
from cli.access.operator_options import Credentials
from cli.admin.key_gateway import asking_with
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import printable, to_json, write_line
from infra.exchange.gateway import DepositGateway
from infra.postgres.admin.balance_imports import AskedAccount, chain_seq, import_balances, listed
from infra.postgres.admin.key_administration import stored_key
from pipeline.model.venue import AccountBalances, LookUpFailed
from schemas.decimals import format_decimal
from schemas.orders import DepositStatus

# Room for clocks that differ.
_JUST_NOW: Final = timedelta(seconds=60)
_ON_ITS_WAY: Final = frozenset({DepositStatus.DETECTED, DepositStatus.CONFIRMING})


async def import_account(
    installation: Installation,
    user_id: str,
    *,
    exchange: str,
    api_key_id: str,
    reason: str | None,
    yes: bool,
    credentials: Credentials,
    as_json: bool,
) -> None:
    """Asks the exchange and books what it shows. Raises CommandFailed, also where the exchange does not answer; nothing is changed then."""
    user_id = user_id_of(user_id)
    asked_for = asking("balances import", user_id, credentials, reason)
    settings = installation.settings
    user_id, api_key_id, exchange = user_id_of(user_id), key_id_of(api_key_id), exchange_here(settings, exchange)
    confirm("balances import", f"the account of {user_id} at {exchange}", yes)
    keyring = keyring_for(settings)
    async with administering(installation) as administration:
        by = await administration.by(asked_for)
        key = await stored_key(administration.database, user_id, api_key_id)
        if key.exchange != exchange:
            raise usage(f"Key {api_key_id} of {user_id} is for {key.exchange}, not for {exchange}.")
        if key.status != "active":
            raise CommandFailed(f"Key {api_key_id} of {user_id} is {key.status}. Nothing was asked or changed.", Exit.NOT_SO)
        # Before the exchange is asked: whatever happens to the user from here on makes the answer void.
        seq = await chain_seq(administration.database, user_id)
        looked_up_at = datetime.now(UTC)
        async with asking_with(settings, keyring, key) as gateway:
            shown = await gateway.account_balances(user_id, api_key_id)
            if isinstance(shown, AccountBalances):
                await _require_no_arrivals(gateway, user_id, api_key_id, timedelta(hours=settings.deposit_window_hours))
        if isinstance(shown, LookUpFailed):
            raise CommandFailed(
                f"{exchange} did not tell what the account holds: {printable(shown.detail)}. Nothing was changed; import again later.",
                Exit.OUT_OF_REACH,
            )
        asked = AskedAccount(user_id, exchange, api_key_id, seq, looked_up_at)
        # Booked as of the answer: what the account gets later is not in it.
        by = replace(by, at=datetime.now(UTC))
        imported = await import_balances(administration.database, asked, shown, by)
        if as_json:
            found: Row = {"user_id": user_id, "exchange": exchange, "account_id": imported.account_id, "amounts": dict(imported.amounts)}
            write_line(to_json(found))
        else:
            account = f"account {imported.account_id} at {exchange}"
            write_line(f"Imported for {user_id} from {account}: {listed(imported.amounts)}. It cannot be imported again.")
        await administration.publish()


async def _require_no_arrivals(gateway: DepositGateway, user_id: str, api_key_id: str, window: timedelta) -> None:
    """Raises CommandFailed where a deposit is on its way or has just come: nobody can tell whether the balances show it already, and it is
    credited by itself."""
    now = datetime.now(UTC)
    found = await gateway.deposit_history(user_id, api_key_id, now - window, now + _JUST_NOW)
    if isinstance(found, LookUpFailed):
        raise CommandFailed(
            f"The exchange did not tell whether deposits are on their way: {printable(found.detail)}. Nothing was changed; import again "
            "later.",
            Exit.OUT_OF_REACH,
        )
    for row in found.rows:
        if row.status in _ON_ITS_WAY or (row.completed_at or row.arrived_at) > now - _JUST_NOW:
            raise CommandFailed(
                f"A deposit of {format_decimal(row.amount)} {row.asset} is on its way, or came within the last minute "
                f"({printable(row.exchange_deposit_id)}: {row.status}), so it may or may not be in what the exchange shows. Nothing was "
                "changed; import again when the exchange has credited it for a minute.",
                Exit.NOT_SO,
            )
