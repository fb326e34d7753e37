"""`users`: adding, listing, verifying, freezing and closing users, and their second factors.

Invariant: a second factor's secret is shown once, by the command that made it, after it was stored; nothing can show it again.

Start with `show_users`.
"""

from collections.abc import Mapping
from typing import Final

import pyotp
from sqlalchemy import text

from cli.access.administration import administering, asking, change, keyring_for, user_id_of
from cli.access.confirmation import confirm
from cli.access.database import Row, reading, rows_of, unknown_user
from cli.access.installation import Installation
from cli.access.operator_options import Credentials
from cli.admin.cooldowns import running_cooldowns
from cli.terminal.output import Cell, print_table, table_lines, to_json, to_text, write_line
from cli.terminal.qr import qr_lines
from infra.postgres.admin.administration import (
    Role,
    StatusChange,
    add_user,
    administration_event_types,
    clear_cooldown,
    enrol_second_factor,
    set_user_status,
    unlock_second_factor,
)
from infra.postgres.admin.operators import By

_ISSUER: Final = "Crypto Orchestrator"
_HISTORY_MAX: Final = 20
# What operators do to a user, and what a user who is an operator did or was refused.
_SHOWN: Final = [*administration_event_types(), "COMMAND_REFUSED", "OPERATOR_DECIDED", "HALT_SET", "HALT_LIFTED"]

_USERS: Final = """
    SELECT users.user_id, users.role, users.status,
        CASE WHEN factor.user_id IS NULL THEN 'none' WHEN factor.locked THEN 'locked' ELSE 'enrolled' END AS second_factor,
        (SELECT count(*) FROM api_keys WHERE api_keys.user_id = users.user_id AND api_keys.status = 'active') AS active_keys,
        (SELECT count(*) FROM user_limits WHERE user_limits.user_id = users.user_id) AS own_limits,
        users.created_at, users.credentials_changed_at
    FROM users LEFT JOIN second_factors AS factor USING (user_id)
"""
_LISTED: Final = text(
    f"""{_USERS} WHERE (CAST(:status AS text) IS NULL OR users.status = :status)
    ORDER BY users.user_id LIMIT :limit"""
)
_ONE: Final = text(f"{_USERS} WHERE users.user_id = :user_id")
_FACTOR: Final = text("""
    SELECT enrolled_at, encryption_key_id, last_step >= 0 AS used, cardinality(wrong_at) AS wrong_codes, locked
    FROM second_factors WHERE user_id = :user_id
""")
KEYS: Final = text("""
    SELECT user_id, api_key_id, exchange, array_to_string(permissions, ' ') AS permissions, status, status_reason, expires_at,
        encryption_key_id, created_at
    FROM api_keys WHERE CAST(:user_id AS text) IS NULL OR user_id = :user_id ORDER BY user_id, api_key_id LIMIT :limit
""")
KEY_COLUMNS: Final = ("user_id", "api_key_id", "exchange", "permissions", "status", "status_reason", "expires_at", "created_at")
_LIMITS: Final = text("SELECT name, amount, changed_at, changed_by FROM user_limits WHERE user_id = :user_id ORDER BY name")
# Bounded: of an account's newest events, those that are about no order.
_HISTORY: Final = text("""
    SELECT told ->> 'ts_event' AS time, told ->> 'event_type' AS event, told ->> 'reason' AS what,
        COALESCE(told ->> 'claimed_operator' || ' (claimed)', told ->> 'actor') AS actor, told ->> 'approved_by' AS approved_by,
        told ->> 'operator_reason' AS reason, told ->> 'command' AS command, told ->> 'target_id' AS target_id
    FROM (SELECT seq, order_id, body::jsonb AS told FROM audit_events WHERE account = :user_id ORDER BY seq DESC LIMIT 10000) AS newest
    WHERE order_id IS NULL AND told ->> 'event_type' = ANY(:shown) ORDER BY seq DESC LIMIT :limit
""")


async def show_users(installation: Installation, *, status: str | None, limit: int, as_json: bool) -> None:
    """Prints users by id. Raises CommandFailed when the database is out of reach."""
    async with reading(installation) as connection:
        rows = await rows_of(connection, _LISTED, status=status, limit=limit)
    columns = ("user_id", "role", "status", "second_factor", "active_keys", "own_limits", "created_at", "credentials_changed_at")
    print_table(rows, columns, as_json=as_json, nothing="No matching users.")


async def show_user(installation: Installation, user_id: str, *, as_json: bool) -> None:
    """Prints one user: second factor, keys, limits, and what was last changed by whom. Raises CommandFailed for an unknown one."""
    user_id = user_id_of(user_id)
    async with reading(installation) as connection:
        users = await rows_of(connection, _ONE, user_id=user_id)
        if not users:
            raise unknown_user(user_id)
        factors = await rows_of(connection, _FACTOR, user_id=user_id)
        keys = await rows_of(connection, KEYS, user_id=user_id, limit=1_000)
        limits = await rows_of(connection, _LIMITS, user_id=user_id)
        cooldowns = await running_cooldowns(connection, installation, user_id)
        history = await rows_of(connection, _HISTORY, user_id=user_id, shown=_SHOWN, limit=_HISTORY_MAX)
    factor = factors[0] if factors else None
    if as_json:
        cooldown = cooldowns[0] if cooldowns else None
        more = {"second_factor": factor, "cooldown": cooldown, "keys": keys, "limits": limits, "history": history}
        write_line(to_json({**users[0], **more}))
        return
    lines = _pairs(users[0])
    lines += ["", "== second factor", *(["none"] if factor is None else _pairs(factor))]
    lines += ["", "== cooldown", *(_pairs(cooldowns[0]) if cooldowns else ["none"])]
    sections: Mapping[str, tuple[list[Row], tuple[str, ...]]] = {
        "keys": (keys, KEY_COLUMNS[1:]),
        "limits of its own": (limits, ("name", "amount", "changed_at", "changed_by")),
        "changes, the newest first": (history, ("time", "event", "what", "actor", "approved_by")),
    }
    for title, (rows, columns) in sections.items():
        lines += ["", f"== {title}", *(table_lines(rows, columns) if rows else ["none"])]
    write_line("\n".join(lines))


def _pairs(row: Mapping[str, Cell]) -> list[str]:
    width = max(map(len, row))
    return [f"{name.replace('_', ' '):<{width}}  {to_text(value)}" for name, value in row.items()]


async def add(installation: Installation, user_id: str, *, role: Role, pending: bool, credentials: Credentials) -> None:
    """Adds a user. Raises CommandFailed for one who is there."""
    user_id = user_id_of(user_id)
    asked = asking("users add", user_id, credentials)
    await change(installation, asked, lambda database, by: add_user(database, user_id, role, pending=pending, by=by))


async def set_status(
    installation: Installation, user_id: str, status: StatusChange, *, reason: str, credentials: Credentials
) -> None:
    """Verifies, freezes, unfreezes or closes a user. Raises CommandFailed where the user's status does not allow it."""
    user_id = user_id_of(user_id)
    asked = asking(f"users {status.value}", user_id, credentials, reason)
    await change(installation, asked, lambda database, by: set_user_status(database, user_id, status, by))


async def close(installation: Installation, user_id: str, *, reason: str, yes: bool, credentials: Credentials) -> None:
    """Closes a user for good, once that is confirmed. Raises CommandFailed where something of the user's is left."""
    confirm("users close", user_id_of(user_id), yes)
    await set_status(installation, user_id, StatusChange.CLOSE, reason=reason, credentials=credentials)


async def unlock_totp(installation: Installation, user_id: str, *, reason: str | None, credentials: Credentials) -> None:
    """Unlocks a second factor after too many wrong codes. Raises CommandFailed for a user without one."""
    user_id = user_id_of(user_id)
    asked = asking("users unlock-totp", user_id, credentials, reason)
    await change(installation, asked, lambda database, by: unlock_second_factor(database, user_id, by))


async def end_cooldown(installation: Installation, user_id: str, *, reason: str, credentials: Credentials) -> None:
    """Forgets a user's failures in a row. Raises CommandFailed for an unknown user."""
    user_id = user_id_of(user_id)
    asked = asking("users clear-cooldown", user_id, credentials, reason)
    await change(installation, asked, lambda database, by: clear_cooldown(database, user_id, by))


async def enrol_totp(
    installation: Installation, user_id: str, *, replace: bool, yes: bool, credentials: Credentials, as_json: bool
) -> None:
    """Makes a second factor, stores it, and shows it once, as QR code and as `otpauth` URI. Raises CommandFailed."""
    user_id = user_id_of(user_id)
    asked = asking("users enrol-totp", user_id, credentials)
    if replace:
        confirm("users enrol-totp --replace", user_id, yes)
    keyring = keyring_for(installation.settings)
    # 160 bits, as RFC 4226, section 4 (R6) recommends.
    secret = pyotp.random_base32(32)
    async with administering(installation) as administration:
        by = await administration.by(asked)
        ciphertext = keyring.encrypt_second_factor(user_id, secret)
        done = await enrol_second_factor(administration.database, user_id, keyring.key_id, ciphertext, replace=replace, by=by)
        # Shown before it is published: it is in force, and without it the user could not trade.
        uri = pyotp.TOTP(secret).provisioning_uri(name=user_id, issuer_name=_ISSUER)
        write_line(to_json({"user_id": user_id, "otpauth_uri": uri}) if as_json else _enrolment(done.what, uri, by))
        await administration.publish()


def _enrolment(what: str, uri: str, by: By) -> str:
    return "\n".join([
        f"{what} Enrolled by {by.name}.",
        "",
        *qr_lines(uri),
        "",
        uri,
        "",
        "Scan the code with an authenticator app now: neither it nor the URI will be shown again. Clear the screen afterwards.",
    ])
