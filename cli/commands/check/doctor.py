"""Check every dependency and setting, and say what to fix."""


import typer

from cli.access.options import AsJson
from cli.terminal.ending import finish

app = typer.Typer(add_completion=False)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    from cli.check.doctor import run_doctor  # noqa: PLC0415 — `--help` answers at once

    finish(run_doctor(as_json=as_json))
