"""Let positions only be made smaller: sales into US dollars and cancels pass, nothing else. Exit codes as of `halt`."""


import typer

from cli.access.operator_options import Credentials, Reason, with_credentials
from cli.access.options import AsJson
from cli.commands.operate.halt import CancelOpen, OnlyExchange, OnlySymbol, OnlyUser, send

app = typer.Typer(add_completion=False)


@app.command()
@with_credentials
def reduce(
    reason: Reason,
    user: OnlyUser = None,
    symbol: OnlySymbol = None,
    exchange: OnlyExchange = None,
    cancel_open: CancelOpen = False,
    as_json: AsJson = False,
    *,
    credentials: Credentials,
) -> None:
    send("reduce", (user, symbol, exchange), reason, cancel_open, credentials, as_json)
