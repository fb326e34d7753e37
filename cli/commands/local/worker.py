"""Run one worker against the configured services, until it is stopped."""

import typer

app = typer.Typer(add_completion=False)


@app.command()
def worker() -> None:
    from agents.process.worker import run_worker  # noqa: PLC0415 — `--help` answers at once
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once

    installation = find_installation()
    raise typer.Exit(run_worker(installation.settings, installation.kafka, installation.database_url))
