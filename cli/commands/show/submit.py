"""Publish requests from a file of JSON Lines, and wait for their answers if asked to.

Ends with 1 where a line was not published, or not answered in time; see --fail-on-reject.
"""

from pathlib import Path
from typing import Annotated

import typer

from cli.terminal.ending import finish

app = typer.Typer(add_completion=False)


@app.command()
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
    if fail_on_reject and not wait:
        raise typer.BadParameter("what becomes of a request is known with --wait alone", param_hint="--fail-on-reject")
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.show.submit import SubmitOptions  # noqa: PLC0415 — `--help` answers at once
    from cli.show.submit import submit as submit_lines  # noqa: PLC0415 — `--help` answers at once

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
