"""Lift the halt of exactly this scope; those of other scopes stay. Exit codes as of `halt`."""


import typer

from cli.access.operator_options import Credentials, Reason, with_credentials
from cli.access.options import AsJson
from cli.commands.operate.halt import OnlyExchange, OnlySymbol, OnlyUser, send

app = typer.Typer(add_completion=False)


@app.command()
@with_credentials
def resume(
    reason: Reason,
    user: OnlyUser = None,
    symbol: OnlySymbol = None,
    exchange: OnlyExchange = None,
    as_json: AsJson = False,
    *,
    credentials: Credentials,
) -> None:
    send("resume", (user, symbol, exchange), reason, False, credentials, as_json)
