"""The contract for programs."""

from pathlib import Path
from typing import Annotated

import typer

from cli.terminal.output import write_line

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _schema() -> None:
    pass


@app.command("export")
def schema_export(
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to write; else AsyncAPI goes to standard output.")] = None,
) -> None:
    """Write JSON Schema of every record, and an AsyncAPI 3.0 document of the topics."""
    from cli.check.schema_export import ASYNCAPI_NAME, documents, export  # noqa: PLC0415 — `--help` answers at once

    if out is None:
        write_line(documents()[ASYNCAPI_NAME].rstrip("\n"))
        return
    for path in export(out):
        write_line(str(path))
