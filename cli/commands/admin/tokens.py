"""Tokens for trials, where no identity provider issues them."""

from pathlib import Path
from typing import Annotated

import typer

from cli.access.options import AsJson, UserId
from cli.terminal.ending import finish

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _tokens() -> None:
    pass


@app.command("issue")
def tokens_issue(
    user: UserId,
    signing_key: Annotated[Path, typer.Option("--signing-key", metavar="FILE", help="A private key in PEM, or an HMAC secret.")],
    scope: Annotated[list[str], typer.Option(help="trade, withdraw, operate; several with commas or repeated.")] = ["trade"],  # noqa: B006 — typer's form
    hours: Annotated[float, typer.Option(help="How long it is good for.")] = 1.0,
    key_id: Annotated[str | None, typer.Option("--key-id", metavar="KID", help="The key's `kid`, where workers trust several.")] = None,
    session: Annotated[
        str | None, typer.Option("--session", metavar="SID", help="The token's `sid`, which a session is bound to; else a new one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sign a token and print it. For trials: whoever holds the key can trade for anybody."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.tokens import issue  # noqa: PLC0415 — `--help` answers at once

    finish(
        issue(
            find_installation(),
            user,
            scopes=scope,
            hours=hours,
            signing_key=signing_key,
            key_id=key_id,
            session=session,
            as_json=as_json,
        )
    )
