"""What is paid out, and what waits for an operator."""

from typing import Annotated

import typer

from cli.access.operator_options import Credentials, Reason, Yes, with_credentials
from cli.access.options import AsJson, AtMost, OneUser
from cli.terminal.ending import finish
from schemas.orders import WithdrawalStatus

app = typer.Typer(invoke_without_command=True, add_completion=False)

_Id = Annotated[str, typer.Argument(metavar="ID", help="The withdrawal's id.")]
_Status = Annotated[WithdrawalStatus | None, typer.Option(help="Only withdrawals in this state.")]


def _list(user: str | None, status: WithdrawalStatus | None, limit: int, as_json: bool) -> None:
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.operate.decisions import show_withdrawals  # noqa: PLC0415 — `--help` answers at once

    finish(show_withdrawals(find_installation(), user_id=user, status=status, limit=limit, as_json=as_json))


@app.callback()
def withdrawals(
    context: typer.Context, user: OneUser = None, status: _Status = None, limit: AtMost = 50, as_json: AsJson = False
) -> None:
    """List withdrawals, the newest first; or see below."""
    if context.invoked_subcommand is None:
        _list(user, status, limit, as_json)


@app.command("list")
def withdrawals_list(user: OneUser = None, status: _Status = None, limit: AtMost = 50, as_json: AsJson = False) -> None:
    """List withdrawals, the newest first."""
    _list(user, status, limit, as_json)


@app.command("show")
def withdrawals_show(withdrawal: _Id, as_json: AsJson = False) -> None:
    """Show one withdrawal with its audit history and its ledger transfers."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.operate.decisions import show_withdrawal  # noqa: PLC0415 — `--help` answers at once

    finish(show_withdrawal(find_installation(), withdrawal, as_json=as_json))


def _decide(
    word: str, withdrawal: str, reason: str, credentials: Credentials, as_json: bool, *, yes: bool = False
) -> None:
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.operate.decisions import DecisionOptions, decide  # noqa: PLC0415 — `--help` answers at once
    from schemas.commands import DecisionWord  # noqa: PLC0415 — `--help` answers at once

    options = DecisionOptions(DecisionWord(word), withdrawal, reason, credentials, as_json, yes)
    finish(decide(find_installation(), options))


@app.command("approve")
@with_credentials
def withdrawals_approve(
    withdrawal: _Id,
    reason: Reason,
    yes: Yes = False,
    as_json: AsJson = False,
    *,
    credentials: Credentials,
) -> None:
    """Let a withdrawal that waits for approval be paid out. Nobody approves a withdrawal of their own.

    Ends with 0 when it is approved, 1 when that was refused, 3 when no worker has applied it within 10 s.
    """
    _decide("approve_withdrawal", withdrawal, reason, credentials, as_json, yes=yes)


@app.command("refuse")
@with_credentials
def withdrawals_refuse(
    withdrawal: _Id,
    reason: Reason,
    as_json: AsJson = False,
    *,
    credentials: Credentials,
) -> None:
    """End a withdrawal that waits for approval; its funds are free again. Exit codes as of `approve`."""
    _decide("refuse_withdrawal", withdrawal, reason, credentials, as_json)
