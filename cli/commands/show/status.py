"""Show what is stopped, by whom and why, and orders in doubt, balances that differ, frozen users and locked second factors."""


import typer

from cli.access.options import AsJson
from cli.terminal.ending import finish

app = typer.Typer(add_completion=False)


@app.command()
def status(as_json: AsJson = False) -> None:
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.check.status import show_status  # noqa: PLC0415 — `--help` answers at once

    finish(show_status(find_installation(), as_json=as_json))
