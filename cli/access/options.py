"""Options that many commands have, each worded once."""

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
OneUser = Annotated[str | None, typer.Option("--user", metavar="ID", help="Only this user.")]
UserId = Annotated[str, typer.Argument(metavar="USER", help="The user's id, as requests name it.")]
AtMost = Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")]
