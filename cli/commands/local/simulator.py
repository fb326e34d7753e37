"""Run the simulated exchange alone; `orchestrator simulator --help` lists its options."""

import typer

from cli.terminal.exits import Exit

app = typer.Typer(add_completion=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def simulator(context: typer.Context) -> None:
    from cli.access.installation import data_directory, read_settings  # noqa: PLC0415 — `--help` answers at once
    from simulator.options import parse  # noqa: PLC0415 — `--help` answers at once
    from simulator.server import run as run_simulator  # noqa: PLC0415 — `--help` answers at once

    books = data_directory(read_settings()) / "simulator"
    options = parse(["--data-dir", str(books), *context.args], "orchestrator simulator")
    raise typer.Exit(Exit.OUT_OF_REACH if run_simulator(options) else Exit.DONE)
