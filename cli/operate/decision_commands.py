"""The commands `withdrawals` and `addresses`. One function per command, which imports what it needs when it runs.

Invariant: as in `cli.main`, `--help` and a usage error load no library of the database, of Kafka or of an exchange.
"""

from typing import Annotated

import typer

from cli.access.operator_options import Credentials, Reason, Yes, with_credentials
from cli.terminal.ending import finish
from schemas.orders import WithdrawalStatus

withdrawals_app = typer.Typer(invoke_without_command=True, help="What is paid out, and what waits for an operator.")
addresses_app = typer.Typer(no_args_is_help=True, help="Where a user may withdraw to.")

_UserId = Annotated[str, typer.Argument(metavar="USER", help="The user's id, as requests name it.")]
_Network = Annotated[str, typer.Argument(metavar="NETWORK", help="The exchange's name of the network, such as ETH, BTC, TRX, SOL.")]
_Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="The address, with its checksum where the network has one.")]
_Tag = Annotated[str | None, typer.Option("--tag", metavar="TEXT", help="The tag or memo that belongs to the address.")]
_Id = Annotated[str, typer.Argument(metavar="ID", help="The withdrawal's id.")]
_User = Annotated[str | None, typer.Option("--user", metavar="ID", help="Only this user.")]
_Status = Annotated[WithdrawalStatus | None, typer.Option(help="Only withdrawals in this state.")]
_Limit = Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def _list(user: str | None, status: WithdrawalStatus | None, limit: int, as_json: bool) -> None:
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.operate.decisions import show_withdrawals  # noqa: PLC0415 — the module's invariant

    finish(show_withdrawals(find_installation(), user_id=user, status=status, limit=limit, as_json=as_json))


@withdrawals_app.callback()
def withdrawals(
    context: typer.Context, user: _User = None, status: _Status = None, limit: _Limit = 50, as_json: _AsJson = False
) -> None:
    """List withdrawals, the newest first; or see below."""
    if context.invoked_subcommand is None:
        _list(user, status, limit, as_json)


@withdrawals_app.command("list")
def withdrawals_list(user: _User = None, status: _Status = None, limit: _Limit = 50, as_json: _AsJson = False) -> None:
    """List withdrawals, the newest first."""
    _list(user, status, limit, as_json)


@withdrawals_app.command("show")
def withdrawals_show(withdrawal: _Id, as_json: _AsJson = False) -> None:
    """Show one withdrawal with its audit history and its ledger transfers."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.operate.decisions import show_withdrawal  # noqa: PLC0415 — the module's invariant

    finish(show_withdrawal(find_installation(), withdrawal, as_json=as_json))


def _decide(
    word: str, withdrawal: str, reason: str, credentials: Credentials, as_json: bool, *, yes: bool = False
) -> None:
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.operate.decisions import DecisionOptions, decide  # noqa: PLC0415 — the module's invariant
    from schemas.commands import DecisionWord  # noqa: PLC0415 — the module's invariant

    options = DecisionOptions(DecisionWord(word), withdrawal, reason, credentials, as_json, yes)
    finish(decide(find_installation(), options))


@withdrawals_app.command("approve")
@with_credentials
def withdrawals_approve(
    withdrawal: _Id,
    reason: Reason,
    yes: Yes = False,
    as_json: _AsJson = False,
    *,
    credentials: Credentials,
) -> None:
    """Let a withdrawal that waits for approval be paid out. Nobody approves a withdrawal of their own.

    Ends with 0 when it is approved, 1 when that was refused, 3 when no worker has applied it within 10 s.
    """
    _decide("approve_withdrawal", withdrawal, reason, credentials, as_json, yes=yes)


@withdrawals_app.command("refuse")
@with_credentials
def withdrawals_refuse(
    withdrawal: _Id,
    reason: Reason,
    as_json: _AsJson = False,
    *,
    credentials: Credentials,
) -> None:
    """End a withdrawal that waits for approval; its funds are free again. Exit codes as of `approve`."""
    _decide("refuse_withdrawal", withdrawal, reason, credentials, as_json)


@addresses_app.command("add")
@with_credentials
def addresses_add(
    user: _UserId,
    network: _Network,
    address: _Address,
    reason: Reason,
    tag: _Tag = None,
    label: Annotated[str | None, typer.Option("--label", metavar="TEXT", help="Whose it is, for people.")] = None,
    *,
    credentials: Credentials,
) -> None:
    """Let a user withdraw to an address, after the waiting time."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.addresses import add  # noqa: PLC0415 — the module's invariant

    finish(add(find_installation(), user, network, address, tag=tag, label=label, reason=reason, credentials=credentials))


@addresses_app.command("list")
def addresses_list(
    user: _UserId,
    removed: Annotated[bool, typer.Option("--removed", help="Those that were removed, too.")] = False,
    as_json: _AsJson = False,
) -> None:
    """List a user's addresses, and from when on each can be used."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.addresses import show  # noqa: PLC0415 — the module's invariant

    finish(show(find_installation(), user, removed=removed, as_json=as_json))


@addresses_app.command("remove")
@with_credentials
def addresses_remove(
    user: _UserId, network: _Network, address: _Address, reason: Reason, tag: _Tag = None, *,
    credentials: Credentials,
) -> None:
    """Take an address off a user's list, at once."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.addresses import remove  # noqa: PLC0415 — the module's invariant

    finish(remove(find_installation(), user, network, address, tag=tag, reason=reason, credentials=credentials))
