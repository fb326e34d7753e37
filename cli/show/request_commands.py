"""The commands `submit`, `results`, `orders` and `order`: requests and what became of them. One function per command, which imports what it
needs when it runs.

Invariant: as in `cli.main`, `--help` and a usage error load no library of the database, of Kafka or of an exchange.
"""

from pathlib import Path
from typing import Annotated

import typer

from cli.terminal.ending import finish
from schemas.orders import OrderStatus
from schemas.results import ResultStatus

_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
_User = Annotated[str | None, typer.Option("--user", metavar="ID", help="Only this user.")]


def submit(
    file: Annotated[str, typer.Argument(metavar="FILE.jsonl|-", help="One request a line, as JSON; - is standard input.")],
    wait: Annotated[bool, typer.Option("--wait", help="Print the final result of each request, as it comes.")] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=86_400.0, metavar="SECONDS", help="With --wait: how long, after the last line.")
    ] = 60.0,
    raw: Annotated[bool, typer.Option("--raw", help="Publish lines that are no JSON objects too.")] = False,
    token_file: Annotated[Path | None, typer.Option("--token-file", metavar="FILE", help="A token to send with each line.")] = None,
    totp: Annotated[str | None, typer.Option("--totp", metavar="CODE", help="A one-time code, for the first line with real money.")] = None,
    totp_secret_file: Annotated[
        Path | None,
        typer.Option("--totp-secret-file", metavar="FILE", help="For trials: make the codes, one each 30 s, from a secret or otpauth URI."),
    ] = None,
    fail_on_reject: Annotated[
        bool, typer.Option("--fail-on-reject", help="With --wait: end with 1 where an answer is rejected or failed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Without --wait: print where each line was published.")] = False,
) -> None:
    """Publish requests from a file of JSON Lines, and wait for their answers if asked to.

    Ends with 1 where a line was not published, or not answered in time; see --fail-on-reject.
    """
    if fail_on_reject and not wait:
        raise typer.BadParameter("what becomes of a request is known with --wait alone", param_hint="--fail-on-reject")
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.show.submit import SubmitOptions  # noqa: PLC0415 — the module's invariant
    from cli.show.submit import submit as submit_lines  # noqa: PLC0415 — the module's invariant

    options = SubmitOptions(
        file=file,
        wait=wait,
        timeout_seconds=timeout,
        raw=raw,
        as_json=as_json,
        token_file=token_file,
        totp=totp,
        totp_secret_file=totp_secret_file,
        fail_on_reject=fail_on_reject,
    )
    finish(submit_lines(find_installation(), options))


def results(
    user: _User = None,
    status: Annotated[ResultStatus | None, typer.Option(help="Only answers with this status.")] = None,
    name: Annotated[str | None, typer.Option("--id", metavar="ID", help="Only answers with this id or key, of any kind.")] = None,
    final: Annotated[bool, typer.Option("--final", help="Only final answers.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    new: Annotated[bool, typer.Option("--new", help="With --follow: leave out what was published before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each answer as it was published, one JSON object a line.")] = False,
) -> None:
    """Read the answers on the topic of results, from its beginning; joins no consumer group."""
    if new and not follow:
        raise typer.BadParameter("there is nothing to read without --follow", param_hint="--new")
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.show.results import ResultsOptions, show_results  # noqa: PLC0415 — the module's invariant

    options = ResultsOptions(follow=follow, from_end=new, user_id=user, name=name, status=status, final=final, as_json=as_json)
    finish(show_results(find_installation(), options))


def orders(
    user: _User = None,
    status: Annotated[OrderStatus | None, typer.Option(help="Only orders in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 50,
    as_json: _AsJson = False,
) -> None:
    """List orders, the newest first."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.show.orders import show_orders  # noqa: PLC0415 — the module's invariant

    finish(show_orders(find_installation(), user_id=user, status=status, limit=limit, as_json=as_json))


def order(
    name: Annotated[
        str, typer.Argument(metavar="ID", help="An order id, client order id, exchange order id, request id or idempotency key.")
    ],
    user: _User = None,
    as_json: _AsJson = False,
) -> None:
    """Show one order with its audit history and its ledger transfers; or a request that became none, with why."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.show.order_search import show_order  # noqa: PLC0415 — the module's invariant

    finish(show_order(find_installation(), name, user_id=user, as_json=as_json))
