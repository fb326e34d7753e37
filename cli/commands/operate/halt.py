"""Stop trading: nothing new is sent, for everybody, or for one user, symbol or exchange. Cancels still pass.

Ends with 0 when it is in force, 1 when it was refused, 3 when no worker has applied it within 10 s.
"""

from typing import Annotated, NoReturn

import typer

from cli.access.operator_options import Credentials, Reason, with_credentials
from cli.access.options import AsJson
from cli.terminal.ending import finish

app = typer.Typer(add_completion=False)

OnlyUser = Annotated[str | None, typer.Option("--user", metavar="ID", help="Only for this user.")]
OnlySymbol = Annotated[str | None, typer.Option("--symbol", metavar="BASE/QUOTE", help="Only for this symbol.")]
OnlyExchange = Annotated[str | None, typer.Option("--exchange", metavar="ID", help="Only at this exchange.")]
CancelOpen = Annotated[
    bool, typer.Option("--cancel-open", help="Cancel what rests at the exchange and would not pass, while this is in force.")
]


def send(
    word: str,
    scope: tuple[str | None, str | None, str | None],
    reason: str,
    cancel_open: bool,
    credentials: Credentials,
    as_json: bool,
) -> NoReturn:
    """Sends the command of this word, and ends the process with what came of it."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.operate.halts import CommandOptions, command, scope_of  # noqa: PLC0415 — `--help` answers at once
    from schemas.commands import CommandWord  # noqa: PLC0415 — `--help` answers at once

    named = scope_of(*scope)
    options = CommandOptions(CommandWord(word), *named, reason, cancel_open, credentials, as_json)
    finish(command(find_installation(), options))


@app.command()
@with_credentials
def halt(
    reason: Reason,
    user: OnlyUser = None,
    symbol: OnlySymbol = None,
    exchange: OnlyExchange = None,
    cancel_open: CancelOpen = False,
    as_json: AsJson = False,
    *,
    credentials: Credentials,
) -> None:
    send("halt", (user, symbol, exchange), reason, cancel_open, credentials, as_json)
