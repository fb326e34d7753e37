"""The commands of operators: `users`, `keys`, `balances`, `limits`, `tokens`. One function per command, which imports what it needs when
it runs.

Invariant: as in `cli.main`, `--help` and a usage error load no library of the database, of Kafka or of an exchange.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.access.operator_options import Credentials, MayHaveReason, Reason, Yes, with_credentials
from cli.terminal.ending import finish

users_app = typer.Typer(no_args_is_help=True, help="Who may trade: users, their state and their second factor.")
keys_app = typer.Typer(no_args_is_help=True, help="The users' API keys at exchanges, stored encrypted.")
balances_app = typer.Typer(help="The accounts of the ledger.")
limits_app = typer.Typer(no_args_is_help=True, help="How much a user may do, where that differs from the settings.")
tokens_app = typer.Typer(no_args_is_help=True, help="Tokens for trials, where no identity provider issues them.")

_UserId = Annotated[str, typer.Argument(metavar="USER", help="The user's id, as requests name it.")]
_KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="Which of the user's keys, as requests name it in `api_key_id`.")]
_Limit = Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


class _Role(StrEnum):
    TRADER = "trader"
    OPERATOR = "operator"


class _Status(StrEnum):
    PENDING = "pending"
    ACTIVE = "active"
    FROZEN = "frozen"
    CLOSED = "closed"


@users_app.command("add")
@with_credentials
def users_add(
    user: _UserId,
    role: Annotated[_Role, typer.Option(help="An operator may also send commands.")] = _Role.TRADER,
    pending: Annotated[bool, typer.Option("--pending", help="No real money until `users verify`.")] = False,
    *,
    credentials: Credentials,
) -> None:
    """Add a user, without keys and money."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.users import add  # noqa: PLC0415 — the module's invariant

    finish(add(find_installation(), user, role=role.value, pending=pending, credentials=credentials))


@users_app.command("list")
def users_list(
    status: Annotated[_Status | None, typer.Option(help="Only users in this state.")] = None,
    limit: _Limit = 1_000,
    as_json: _AsJson = False,
) -> None:
    """List users."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.users import show_users  # noqa: PLC0415 — the module's invariant

    finish(show_users(find_installation(), status=status.value if status else None, limit=limit, as_json=as_json))


@users_app.command("show")
def users_show(user: _UserId, as_json: _AsJson = False) -> None:
    """Show a user: second factor, keys, limits, and what was changed by whom."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.users import show_user  # noqa: PLC0415 — the module's invariant

    finish(show_user(find_installation(), user, as_json=as_json))


def _set_status(user: str, change: str, reason: str, credentials: Credentials) -> None:
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.users import set_status  # noqa: PLC0415 — the module's invariant
    from infra.postgres.admin.administration import StatusChange  # noqa: PLC0415 — the module's invariant

    finish(set_status(find_installation(), user, StatusChange(change), reason=reason, credentials=credentials))


@users_app.command("verify")
@with_credentials
def users_verify(user: _UserId, reason: Reason, *, credentials: Credentials) -> None:
    """Let a user who waits for verification trade with real money."""
    _set_status(user, "verify", reason, credentials)


@users_app.command("freeze")
@with_credentials
def users_freeze(user: _UserId, reason: Reason, *, credentials: Credentials) -> None:
    """Refuse every new order of a user, until it is unfrozen."""
    _set_status(user, "freeze", reason, credentials)


@users_app.command("unfreeze")
@with_credentials
def users_unfreeze(user: _UserId, reason: Reason, *, credentials: Credentials) -> None:
    """Let a frozen user trade again."""
    _set_status(user, "unfreeze", reason, credentials)


@users_app.command("close")
@with_credentials
def users_close(user: _UserId, reason: Reason, yes: Yes = False, *, credentials: Credentials) -> None:
    """Close a user for good. Its history stays. Ends with 1 where the user has money, orders, withdrawals or usable keys."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.users import close  # noqa: PLC0415 — the module's invariant

    finish(close(find_installation(), user, reason=reason, yes=yes, credentials=credentials))


@users_app.command("enrol-totp")
@with_credentials
def users_enrol_totp(
    user: _UserId,
    replace: Annotated[bool, typer.Option("--replace", help="In place of a second factor that the user has.")] = False,
    yes: Yes = False,
    as_json: _AsJson = False,
    *,
    credentials: Credentials,
) -> None:
    """Make a second factor and show its QR code and URI, once."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.users import enrol_totp  # noqa: PLC0415 — the module's invariant

    finish(enrol_totp(find_installation(), user, replace=replace, yes=yes, credentials=credentials, as_json=as_json))


@users_app.command("unlock-totp")
@with_credentials
def users_unlock_totp(user: _UserId, reason: MayHaveReason = None, *, credentials: Credentials) -> None:
    """Unlock a second factor after too many wrong codes."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.users import unlock_totp  # noqa: PLC0415 — the module's invariant

    finish(unlock_totp(find_installation(), user, reason=reason, credentials=credentials))


@users_app.command("clear-cooldown")
@with_credentials
def users_clear_cooldown(user: _UserId, reason: Reason, *, credentials: Credentials) -> None:
    """Forget a user's failures in a row, and with them the cooldown that they began."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.users import end_cooldown  # noqa: PLC0415 — the module's invariant

    finish(end_cooldown(find_installation(), user, reason=reason, credentials=credentials))


@users_app.command("publish")
def users_publish(
    users: Annotated[list[str] | None, typer.Argument(metavar="[USER…]", help="Whose events, all of them again.")] = None,
    as_json: _AsJson = False,
) -> None:
    """Publish audit events that wait because the broker was away; with users, all of theirs again. Changes nothing."""
    from cli.access.administration import publish, user_id_of  # noqa: PLC0415 — the module's invariant
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant

    finish(publish(find_installation(), [user_id_of(user) for user in users or ()], as_json=as_json))


@keys_app.command("add")
@with_credentials
def keys_add(
    user: _UserId,
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
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.keys import add  # noqa: PLC0415 — the module's invariant

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


@keys_app.command("list")
def keys_list(
    user: Annotated[str | None, typer.Option("--user", metavar="ID", help="Only this user's.")] = None,
    limit: _Limit = 1_000,
    as_json: _AsJson = False,
) -> None:
    """List stored keys, without their secrets."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.keys import show_keys  # noqa: PLC0415 — the module's invariant

    finish(show_keys(find_installation(), user_id=user, limit=limit, as_json=as_json))


@keys_app.command("check")
@with_credentials
def keys_check(user: _UserId, key_id: _KeyId, *, credentials: Credentials) -> None:
    """Ask the exchange whether it takes a key, and what for. Ends with 1 where it refuses it; the key is then not used any more."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.key_check import check  # noqa: PLC0415 — the module's invariant

    finish(check(find_installation(), user, key_id, credentials=credentials))


@keys_app.command("rotate")
@with_credentials
def keys_rotate(*, credentials: Credentials) -> None:
    """Encrypt all keys and second factors anew, under the newest master key. Can be cut off and run again."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.keys import rotate  # noqa: PLC0415 — the module's invariant

    finish(rotate(find_installation(), credentials=credentials))


@keys_app.command("revoke")
@with_credentials
def keys_revoke(
    user: _UserId, key_id: _KeyId, reason: MayHaveReason = None, yes: Yes = False, *, credentials: Credentials
) -> None:
    """Stop the use of a key at once."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.keys import revoke  # noqa: PLC0415 — the module's invariant

    finish(revoke(find_installation(), user, key_id, reason=reason, yes=yes, credentials=credentials))


@balances_app.command("import")
@with_credentials
def balances_import(
    user: _UserId,
    exchange: Annotated[str, typer.Option(metavar="ID", help="At which exchange, by ccxt id.")],
    key_id: Annotated[str, typer.Option("--key", metavar="KEY_ID", help="With which of the user's keys the exchange is asked.")],
    reason: MayHaveReason = None,
    yes: Yes = False,
    as_json: _AsJson = False,
    *,
    credentials: Credentials,
) -> None:
    """Take what an exchange account holds already into the ledger, once. Ends with 1 where it was imported before or is not idle."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.balance_import import import_account  # noqa: PLC0415 — the module's invariant

    finish(
        import_account(
            find_installation(),
            user,
            exchange=exchange,
            api_key_id=key_id,
            reason=reason,
            yes=yes,
            credentials=credentials,
            as_json=as_json,
        )
    )


@balances_app.command("fund-paper")
@with_credentials
def balances_fund_paper(
    user: _UserId,
    asset: Annotated[str, typer.Argument(metavar="ASSET", help="A currency code, such as USDT.")],
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="In units of the asset. It is added each time.")],
    exchange: Annotated[str, typer.Option(metavar="ID", help="At which exchange it is to be simulated, by ccxt id.")],
    reason: MayHaveReason = None,
    *,
    credentials: Credentials,
) -> None:
    """Give a user simulated money for orders in mode `paper`. No exchange is asked, no real balance is touched."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.paper_funds import fund  # noqa: PLC0415 — the module's invariant

    finish(fund(find_installation(), user, asset, amount, exchange=exchange, reason=reason, credentials=credentials))


@limits_app.command("show")
def limits_show(user: _UserId, as_json: _AsJson = False) -> None:
    """Show a user's limits, and which of them are its own."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.limits import show  # noqa: PLC0415 — the module's invariant

    finish(show(find_installation(), user, as_json=as_json))


@limits_app.command("set")
@with_credentials
def limits_set(
    user: _UserId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `limits show` lists it.")],
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="In its unit; 0 forbids, except for windows of time.")],
    reason: Reason,
    *,
    credentials: Credentials,
) -> None:
    """Give a user a limit of its own."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.limits import set_one  # noqa: PLC0415 — the module's invariant

    finish(set_one(find_installation(), user, name, amount, reason=reason, credentials=credentials))


@limits_app.command("clear")
@with_credentials
def limits_clear(
    user: _UserId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `limits show` lists it.")],
    reason: MayHaveReason = None,
    *,
    credentials: Credentials,
) -> None:
    """Take a user's own limit away: the one of the settings holds again."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.limits import clear  # noqa: PLC0415 — the module's invariant

    finish(clear(find_installation(), user, name, reason=reason, credentials=credentials))


@tokens_app.callback()
def _tokens() -> None:
    pass


@tokens_app.command("issue")
def tokens_issue(
    user: _UserId,
    signing_key: Annotated[Path, typer.Option("--signing-key", metavar="FILE", help="A private key in PEM, or an HMAC secret.")],
    scope: Annotated[list[str], typer.Option(help="trade, withdraw, operate; several with commas or repeated.")] = ["trade"],  # noqa: B006 — typer's form
    hours: Annotated[float, typer.Option(help="How long it is good for.")] = 1.0,
    key_id: Annotated[str | None, typer.Option("--key-id", metavar="KID", help="The key's `kid`, where workers trust several.")] = None,
    session: Annotated[
        str | None, typer.Option("--session", metavar="SID", help="The token's `sid`, which a session is bound to; else a new one.")
    ] = None,
    as_json: _AsJson = False,
) -> None:
    """Sign a token and print it. For trials: whoever holds the key can trade for anybody."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.tokens import issue  # noqa: PLC0415 — the module's invariant

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
