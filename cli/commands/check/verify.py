"""Check every promise: one line each; or see below."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cli.access.operator_options import Credentials, Reason, with_credentials
from cli.access.options import AsJson, OneUser
from cli.terminal.ending import finish

app = typer.Typer(add_completion=False)

_OnlyUser = Annotated[str | None, typer.Option("--user", metavar="ID", help="Only for this user.")]
_OnlySymbol = Annotated[str | None, typer.Option("--symbol", metavar="BASE/QUOTE", help="Only for this symbol.")]
_OnlyExchange = Annotated[str | None, typer.Option("--exchange", metavar="ID", help="Only at this exchange.")]
_CancelOpen = Annotated[
    bool, typer.Option("--cancel-open", help="Cancel what rests at the exchange and would not pass, while this is in force.")
]


@app.callback(invoke_without_command=True)
def verify(
    context: typer.Context,
    from_topic: Annotated[bool, typer.Option("--from-topic", help="Judge the audit trail from Kafka alone.")] = False,
    exchange_log: Annotated[Path | None, typer.Option(metavar="FILE", help="A simulated exchange's log, where `up` runs none.")] = None,
    halt: Annotated[bool, typer.Option("--halt", help="Halt everybody when the ledger or the audit trail is broken.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check every promise: one line each; or see below."""
    if context.invoked_subcommand is not None:
        if from_topic or exchange_log or halt or as_json:
            raise typer.BadParameter(f"options of `verify` alone say nothing to `{context.invoked_subcommand}`: put its own behind it")
        return
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.check.verify import VerifyOptions, run_verify  # noqa: PLC0415 — `--help` answers at once
    from embedded.services import Endpoints  # noqa: PLC0415 — `--help` answers at once

    installation = find_installation()
    options = VerifyOptions(
        settings=installation.settings,
        endpoints=Endpoints(installation.kafka, "" if from_topic else installation.database_url),
        exchange_log=exchange_log or (installation.running.exchange_log if installation.running else None),
        from_topic=from_topic,
        halt=installation if halt else None,
        as_json=as_json,
    )
    finish(run_verify(options))


@app.command("balances")
def verify_balances(
    user: OneUser = None,
    exchange: Annotated[str | None, typer.Option("--exchange", metavar="ID", help="Only at this exchange.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the ledger with the exchanges' balances, now: one line for each asset that differs.

    Ends with 0 when nothing differs, 1 when something does, 3 when the database or an exchange did not answer.
    """
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.check.verify_balances import BalancesOptions, run_verify_balances  # noqa: PLC0415 — `--help` answers at once

    finish(run_verify_balances(find_installation(), BalancesOptions(user_id=user, exchange=exchange, as_json=as_json)))


def _command(
    word: str,
    scope: tuple[str | None, str | None, str | None],
    reason: str,
    cancel_open: bool,
    credentials: Credentials,
    as_json: bool,
) -> NoReturn:
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
    user: _OnlyUser = None,
    symbol: _OnlySymbol = None,
    exchange: _OnlyExchange = None,
    cancel_open: _CancelOpen = False,
    as_json: AsJson = False,
    *,
    credentials: Credentials,
) -> None:
    """Stop trading: nothing new is sent, for everybody, or for one user, symbol or exchange. Cancels still pass.

    Ends with 0 when it is in force, 1 when it was refused, 3 when no worker has applied it within 10 s.
    """
    _command("halt", (user, symbol, exchange), reason, cancel_open, credentials, as_json)
