"""Where the workers stand in their input topics, and records that were lost before they were read."""

from typing import Annotated

import typer

from cli.access.operator_options import Credentials, Reason, Yes, with_credentials
from cli.access.options import AsJson
from cli.terminal.ending import finish

app = typer.Typer(invoke_without_command=True, add_completion=False)


def _show(as_json: bool) -> None:
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.operate.offsets import show_offsets  # noqa: PLC0415 — `--help` answers at once

    finish(show_offsets(find_installation(), as_json=as_json))


@app.callback()
def offsets(context: typer.Context, as_json: AsJson = False) -> None:
    """Show where each input partition stands, and which records are missing; or see below."""
    if context.invoked_subcommand is None:
        _show(as_json)


@app.command("show")
def offsets_show(as_json: AsJson = False) -> None:
    """Show where each input partition stands, and which records are missing."""
    _show(as_json)


@app.command("accept-loss")
@with_credentials
def offsets_accept_loss(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="The topic's name, with its prefix.")],
    partition: Annotated[int, typer.Argument(metavar="PARTITION", min=0, help="The number of the partition that stands.")],
    position: Annotated[int, typer.Option("--from", min=0, help="Where it stands, as `orchestrator offsets` shows it.")],
    resume_at: Annotated[int, typer.Option("--to", min=0, help="Where it goes on, as `orchestrator offsets` shows it.")],
    reason: Reason,
    yes: Yes = False,
    *,
    credentials: Credentials,
) -> None:
    """Let a partition go on although records were lost. What was lost is not answered: look at what producers wait for first."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.operate.offsets import accept  # noqa: PLC0415 — `--help` answers at once

    finish(
        accept(
            find_installation(),
            topic=topic,
            partition=partition,
            position=position,
            resume_at=resume_at,
            reason=reason,
            yes=yes,
            credentials=credentials,
        )
    )
