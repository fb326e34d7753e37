"""Start everything, trade at a simulated exchange under load, check every promise, stop everything."""

from typing import Annotated

import typer

from cli.access.options import AsJson
from cli.terminal.ending import finish

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    requests: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many requests to publish.")] = 2_000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many worker processes.")] = 2,
    kill: Annotated[bool, typer.Option("--kill", help="Kill and pause workers at random times, with exchange faults.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the requests and the faults.")] = 1,
    as_json: AsJson = False,
) -> None:
    from cli.local.demo import DemoOptions, run_demo  # noqa: PLC0415 — `--help` answers at once

    finish(run_demo(DemoOptions(requests=requests, workers=workers, kill=kill, seed=seed, as_json=as_json)))
