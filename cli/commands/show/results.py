"""Read the answers on the topic of results, from its beginning; joins no consumer group."""

from typing import Annotated

import typer

from cli.access.options import OneUser
from cli.terminal.ending import finish
from schemas.results import ResultStatus

app = typer.Typer(add_completion=False)


@app.command()
def results(
    user: OneUser = None,
    status: Annotated[ResultStatus | None, typer.Option(help="Only answers with this status.")] = None,
    name: Annotated[str | None, typer.Option("--id", metavar="ID", help="Only answers with this id or key, of any kind.")] = None,
    final: Annotated[bool, typer.Option("--final", help="Only final answers.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    new: Annotated[bool, typer.Option("--new", help="With --follow: leave out what was published before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each answer as it was published, one JSON object a line.")] = False,
) -> None:
    if new and not follow:
        raise typer.BadParameter("there is nothing to read without --follow", param_hint="--new")
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.show.results import ResultsOptions, show_results  # noqa: PLC0415 — `--help` answers at once

    options = ResultsOptions(follow=follow, from_end=new, user_id=user, name=name, status=status, final=final, as_json=as_json)
    finish(show_results(find_installation(), options))
