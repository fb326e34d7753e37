"""The accounts of the ledger."""

from typing import Annotated

import typer

from cli.access.operator_options import Credentials, MayHaveReason, Yes, with_credentials
from cli.access.options import AsJson, OneUser, UserId
from cli.terminal.ending import finish

app = typer.Typer(add_completion=False)


@app.command("import")
@with_credentials
def balances_import(
    user: UserId,
    exchange: Annotated[str, typer.Option(metavar="ID", help="At which exchange, by ccxt id.")],
    key_id: Annotated[str, typer.Option("--key", metavar="KEY_ID", help="With which of the user's keys the exchange is asked.")],
    reason: MayHaveReason = None,
    yes: Yes = False,
    as_json: AsJson = False,
    *,
    credentials: Credentials,
) -> None:
    """Take what an exchange account holds already into the ledger, once. Ends with 1 where it was imported before or is not idle."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.balance_import import import_account  # noqa: PLC0415 — `--help` answers at once

    finish(
        import_account(
            find_installation(),
            user,
            exchange=exchange,
            api_key_id=key_id,
            reason=reason,
            yes=yes,
            credentials=credentials,
            as_json=as_json,
        )
    )


@app.command("fund-paper")
@with_credentials
def balances_fund_paper(
    user: UserId,
    asset: Annotated[str, typer.Argument(metavar="ASSET", help="A currency code, such as USDT.")],
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="In units of the asset. It is added each time.")],
    exchange: Annotated[str, typer.Option(metavar="ID", help="At which exchange it is to be simulated, by ccxt id.")],
    reason: MayHaveReason = None,
    *,
    credentials: Credentials,
) -> None:
    """Give a user simulated money for orders in mode `paper`. No exchange is asked, no real balance is touched."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.paper_funds import fund  # noqa: PLC0415 — `--help` answers at once

    finish(fund(find_installation(), user, asset, amount, exchange=exchange, reason=reason, credentials=credentials))


@app.callback(invoke_without_command=True)
def balances(context: typer.Context, user: OneUser = None, as_json: AsJson = False) -> None:
    """List every account: posted, pending (held for orders) and available, in units of the asset. The book says whether it is real."""
    if context.invoked_subcommand is not None:
        return
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.show.orders import show_balances  # noqa: PLC0415 — `--help` answers at once

    finish(show_balances(find_installation(), user_id=user, as_json=as_json))
