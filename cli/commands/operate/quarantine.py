"""Records that could not be decided and were set aside."""

from enum import StrEnum
from typing import Annotated

import typer

from cli.access.operator_options import Credentials, Reason, Yes, with_credentials
from cli.access.options import AsJson
from cli.terminal.ending import finish

app = typer.Typer(no_args_is_help=True, add_completion=False)

_Id = Annotated[str, typer.Argument(metavar="ID", help="The entry's id, as `quarantine list` and the answer to the request name it.")]


class _State(StrEnum):
    OPEN = "open"
    RETRIED = "retried"
    DROPPED = "dropped"


@app.command("list")
def quarantine_list(
    state: Annotated[_State | None, typer.Option(help="Only entries in this state.")] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="ID", help="Only records about this user.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List what was set aside, the newest first."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.operate.quarantine import show_quarantine  # noqa: PLC0415 — `--help` answers at once
    from pipeline.model.quarantine import QuarantineState  # noqa: PLC0415 — `--help` answers at once

    wanted = QuarantineState(state.value) if state else None
    finish(show_quarantine(find_installation(), state=wanted, user_id=user, limit=limit, as_json=as_json))


@app.command("show")
def quarantine_show(entry: _Id, as_json: AsJson = False) -> None:
    """Show one entry: the record, what failed and where."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.operate.quarantine import show_record  # noqa: PLC0415 — `--help` answers at once

    finish(show_record(find_installation(), entry, as_json=as_json))


@app.command("retry")
@with_credentials
def quarantine_retry(entry: _Id, reason: Reason, *, credentials: Credentials) -> None:
    """Publish a record of the system's own again, to be judged anew once what failed is fixed."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.operate.quarantine import retry  # noqa: PLC0415 — `--help` answers at once

    finish(retry(find_installation(), entry, reason=reason, credentials=credentials))


@app.command("drop")
@with_credentials
def quarantine_drop(entry: _Id, reason: Reason, yes: Yes = False, *, credentials: Credentials) -> None:
    """Give an entry up: it is marked as dealt with for good, and what it names stays as it is."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.operate.quarantine import drop  # noqa: PLC0415 — `--help` answers at once

    finish(drop(find_installation(), entry, reason=reason, yes=yes, credentials=credentials))
