"""Show all that waits: records of each partition, and orders, cancels, payments and deposits, with who holds them up."""


import typer

from cli.access.options import AsJson
from cli.terminal.ending import finish

app = typer.Typer(add_completion=False)


@app.command()
def lag(as_json: AsJson = False) -> None:
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.show.lag import show_lag  # noqa: PLC0415 — `--help` answers at once

    finish(show_lag(find_installation(), as_json=as_json))
