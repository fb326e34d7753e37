"""Where a user may withdraw to."""

from typing import Annotated

import typer

from cli.access.operator_options import Credentials, Reason, with_credentials
from cli.access.options import AsJson, UserId
from cli.terminal.ending import finish

app = typer.Typer(no_args_is_help=True, add_completion=False)

_Network = Annotated[str, typer.Argument(metavar="NETWORK", help="The exchange's name of the network, such as ETH, BTC, TRX, SOL.")]
_Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="The address, with its checksum where the network has one.")]
_Tag = Annotated[str | None, typer.Option("--tag", metavar="TEXT", help="The tag or memo that belongs to the address.")]


@app.command("add")
@with_credentials
def addresses_add(
    user: UserId,
    network: _Network,
    address: _Address,
    reason: Reason,
    tag: _Tag = None,
    label: Annotated[str | None, typer.Option("--label", metavar="TEXT", help="Whose it is, for people.")] = None,
    *,
    credentials: Credentials,
) -> None:
    """Let a user withdraw to an address, after the waiting time."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.addresses import add  # noqa: PLC0415 — `--help` answers at once

    finish(add(find_installation(), user, network, address, tag=tag, label=label, reason=reason, credentials=credentials))


@app.command("list")
def addresses_list(
    user: UserId,
    removed: Annotated[bool, typer.Option("--removed", help="Those that were removed, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """List a user's addresses, and from when on each can be used."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.addresses import show  # noqa: PLC0415 — `--help` answers at once

    finish(show(find_installation(), user, removed=removed, as_json=as_json))


@app.command("remove")
@with_credentials
def addresses_remove(
    user: UserId, network: _Network, address: _Address, reason: Reason, tag: _Tag = None, *,
    credentials: Credentials,
) -> None:
    """Take an address off a user's list, at once."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.addresses import remove  # noqa: PLC0415 — `--help` answers at once

    finish(remove(find_installation(), user, network, address, tag=tag, reason=reason, credentials=credentials))
