"""What no look-up has proven yet, and an operator's last word on it."""

from typing import Annotated

import typer

from cli.access.operator_options import Credentials, Reason, with_credentials
from cli.access.options import AsJson, AtMost
from cli.terminal.ending import finish

app = typer.Typer(no_args_is_help=True, add_completion=False)

_Id = Annotated[str, typer.Argument(metavar="ID", help="The order's or withdrawal's id, or its client id at the exchange.")]


@app.command("list")
def in_doubt_list(limit: AtMost = 50, as_json: AsJson = False) -> None:
    """List orders and withdrawals in doubt, the oldest first."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.operate.doubts import show_doubts  # noqa: PLC0415 — `--help` answers at once

    finish(show_doubts(find_installation(), limit=limit, as_json=as_json))


@app.command("show")
def in_doubt_show(target: _Id, as_json: AsJson = False) -> None:
    """Show one of them: how many look-ups proved nothing and why, who has proposed what, and its audit history."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.operate.doubts import show_doubt  # noqa: PLC0415 — `--help` answers at once

    finish(show_doubt(find_installation(), target, as_json=as_json))


@app.command("resolve")
@with_credentials
def in_doubt_resolve(
    target: _Id,
    reason: Reason,
    evidence: Annotated[str, typer.Option("--evidence", metavar="TEXT", help="What was seen where, for the audit trail.")],
    executed: Annotated[
        str | None,
        typer.Option(
            "--executed",
            metavar="QUANTITY,COST[,FEES]",
            help='An order: what was executed in base, its value in quote, fees such as "0.0005 BTC". A withdrawal: amount, fee.',
        ),
    ] = None,
    not_executed: Annotated[bool, typer.Option("--not-executed", help="The exchange never took it.")] = False,
    exchange_id: Annotated[str | None, typer.Option("--exchange-id", metavar="ID", help="Its id there; needed of a withdrawal.")] = None,
    as_json: AsJson = False,
    *,
    credentials: Credentials,
) -> None:
    """Say what became of an order or withdrawal in doubt. Above an amount a second operator must say the same.

    Ends with 0 when it is applied or kept for the second operator, 1 when it was refused, 3 when no worker has applied it within 10 s.
    """
    from cli.access.credentials import usage  # noqa: PLC0415 — `--help` answers at once
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.operate.doubts import Resolution, resolve  # noqa: PLC0415 — `--help` answers at once

    if not_executed == (executed is not None):
        raise usage("Say either --executed QUANTITY,COST or --not-executed.")
    asked = Resolution(target, executed, exchange_id, evidence, reason, credentials, as_json)
    finish(resolve(find_installation(), asked))
