"""The users' API keys at exchanges, stored encrypted."""

from typing import Annotated

import typer

from cli.access.operator_options import Credentials, MayHaveReason, Yes, with_credentials
from cli.access.options import AsJson, AtMost, UserId
from cli.terminal.ending import finish

app = typer.Typer(no_args_is_help=True, add_completion=False)

_KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="Which of the user's keys, as requests name it in `api_key_id`.")]


@app.command("add")
@with_credentials
def keys_add(
    user: UserId,
    key_id: _KeyId,
    exchange: Annotated[str, typer.Option(metavar="ID", help="The exchange, by ccxt id.")],
    permissions: Annotated[str, typer.Option(help="What it may be used for: trade, withdraw or both, with a comma.")] = "trade",
    expires_at: Annotated[str | None, typer.Option(metavar="TIME", help="The end of its use, such as 2027-01-31T00:00:00Z.")] = None,
    source: Annotated[str, typer.Option("--from", metavar="FILE|-", help="Where key and secret are, a line each; - is stdin.")] = "-",
    replace: Annotated[bool, typer.Option("--replace", help="In place of an active key of this id.")] = False,
    yes: Yes = False,
    *,
    credentials: Credentials,
) -> None:
    """Store an API key and its secret, encrypted. They are read from a file, standard input or a prompt, never from arguments."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.keys import add  # noqa: PLC0415 — `--help` answers at once

    finish(
        add(
            find_installation(),
            user,
            key_id,
            exchange=exchange,
            permissions=permissions,
            expires_at=expires_at,
            source=source,
            replace=replace,
            yes=yes,
            credentials=credentials,
        )
    )


@app.command("list")
def keys_list(
    user: Annotated[str | None, typer.Option("--user", metavar="ID", help="Only this user's.")] = None,
    limit: AtMost = 1_000,
    as_json: AsJson = False,
) -> None:
    """List stored keys, without their secrets."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.keys import show_keys  # noqa: PLC0415 — `--help` answers at once

    finish(show_keys(find_installation(), user_id=user, limit=limit, as_json=as_json))


@app.command("check")
@with_credentials
def keys_check(user: UserId, key_id: _KeyId, *, credentials: Credentials) -> None:
    """Ask the exchange whether it takes a key, and what for. Ends with 1 where it refuses it; the key is then not used any more."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.key_check import check  # noqa: PLC0415 — `--help` answers at once

    finish(check(find_installation(), user, key_id, credentials=credentials))


@app.command("rotate")
@with_credentials
def keys_rotate(*, credentials: Credentials) -> None:
    """Encrypt all keys and second factors anew, under the newest master key. Can be cut off and run again."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.keys import rotate  # noqa: PLC0415 — `--help` answers at once

    finish(rotate(find_installation(), credentials=credentials))


@app.command("revoke")
@with_credentials
def keys_revoke(
    user: UserId, key_id: _KeyId, reason: MayHaveReason = None, yes: Yes = False, *, credentials: Credentials
) -> None:
    """Stop the use of a key at once."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.keys import revoke  # noqa: PLC0415 — `--help` answers at once

    finish(revoke(find_installation(), user, key_id, reason=reason, yes=yes, credentials=credentials))
