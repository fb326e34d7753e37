"""`keys`: a user's API keys at the exchanges, and the master key that they are encrypted under.

Invariants:
1. An API key and its secret are read from a file, standard input or a prompt without echo, never from the command line, where every process
   of the machine can see them. They appear in no message.
2. A key is called refused only when the exchange itself refused it.

Start with `add`.
"""

import getpass
import re
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cli.access.administration import administering, asking, change, exchange_of, key_id_of, keyring_for, user_id_of
from cli.access.confirmation import confirm
from cli.access.credentials import usage
from cli.access.database import reading, require_user, rows_of
from cli.access.installation import Installation
from cli.access.operator_options import Credentials
from cli.admin.key_accounts import with_accounts
from cli.admin.users import KEY_COLUMNS, KEYS
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import print_table, say
from infra.exchange.gateway import UnknownVenue
from infra.exchange.venues.registry import venue
from infra.keyring import MasterKeyError, StoredSecret
from infra.postgres.admin.administration import ADMINISTRATION, Done
from infra.postgres.admin.key_administration import NewKey, Permission, add_key, revoke_key
from infra.postgres.admin.operators import By
from infra.postgres.admin.rotation import rotate as rotate_secrets
from infra.postgres.database import Database
from schemas.times import OutOfBounds, bounded

_INPUT_BYTES_MAX: Final = 8_192
# No exchange has one that is longer, or that has blanks in it.
_CREDENTIAL: Final = re.compile(r"[\x21-\x7e]{1,1024}")
_PERMISSIONS: Final[dict[str, Permission]] = {"trade": "trade", "withdraw": "withdraw"}
_TWO_LINES: Final = "The API key is the first line and its secret the second; there is nothing else."


def read_secret(source: str) -> StoredSecret:
    """The API key and its secret from a file, or from standard input for `-`. Raises CommandFailed, whose text repeats neither."""
    if source == "-" and sys.stdin.isatty():
        lines = [getpass.getpass("API key (not shown): "), getpass.getpass("Secret (not shown): ")]
    else:
        lines = [line for line in _read(source).splitlines() if line.strip()]
    if len(lines) != 2:
        raise usage(f"There are {len(lines)} lines where two are wanted. {_TWO_LINES}")
    api_key, secret = (line.strip() for line in lines)
    if not _CREDENTIAL.fullmatch(api_key) or not _CREDENTIAL.fullmatch(secret):
        raise usage(f"The API key or its secret has blanks or other characters than an exchange gives out. {_TWO_LINES}")
    if api_key == secret:
        raise usage(f"Both lines are the same. {_TWO_LINES}")
    return StoredSecret(api_key, secret)


def _read(source: str) -> str:
    try:
        if source == "-":
            content = sys.stdin.buffer.read(_INPUT_BYTES_MAX + 1)
        else:
            path = Path(source)
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                say(f"warning: {source} can be read by others on this machine. Delete it when the key is stored.")
            with path.open("rb") as file:
                content = file.read(_INPUT_BYTES_MAX + 1)
    except OSError as error:
        raise usage(f"{source} cannot be read ({error.strerror}).") from error
    if len(content) > _INPUT_BYTES_MAX:
        raise usage(f"There are more than {_INPUT_BYTES_MAX} bytes. {_TWO_LINES}")
    try:
        return content.decode("ascii")
    except UnicodeDecodeError:
        # Without the error behind it: it holds the bytes.
        raise usage(f"It is no ASCII text. {_TWO_LINES}") from None


def permissions_of(text: str) -> frozenset[Permission]:
    """Permissions from `trade,withdraw`. Raises CommandFailed."""
    words = {word.strip() for word in text.split(",") if word.strip()}
    if not words or not words <= _PERMISSIONS.keys():
        raise usage("--permissions takes `trade`, `withdraw` or `trade,withdraw`.")
    return frozenset(_PERMISSIONS[word] for word in words)


def expiry_of(text: str | None, now: datetime) -> datetime | None:
    """The end of a key's life from RFC 3339, later than now. Raises CommandFailed."""
    if text is None:
        return None
    try:
        expires_at = bounded(datetime.fromisoformat(text))
    except OutOfBounds as error:
        raise usage(f"--expires-at takes a time with its zone, such as 2027-01-31T00:00:00Z; it {error}.") from None
    except ValueError:
        raise usage("--expires-at takes a time with its zone, such as 2027-01-31T00:00:00Z.") from None
    if expires_at <= now:
        raise usage("--expires-at is not in the future: the key could never be used.")
    return expires_at


async def show_keys(installation: Installation, *, user_id: str | None, limit: int, as_json: bool) -> None:
    """Prints stored keys, without their secrets. Raises CommandFailed when the database is out of reach."""
    if user_id is not None:
        user_id = user_id_of(user_id)
    async with reading(installation) as connection:
        await require_user(connection, user_id)
        rows = await rows_of(connection, KEYS, user_id=user_id, limit=limit)
    print_table(rows, KEY_COLUMNS, as_json=as_json, nothing="No matching keys.")


async def add(
    installation: Installation,
    user_id: str,
    api_key_id: str,
    *,
    exchange: str,
    permissions: str,
    expires_at: str | None,
    source: str,
    replace: bool,
    yes: bool,
    credentials: Credentials,
) -> None:
    """Stores an exchange key, encrypted. Raises CommandFailed."""
    user_id, api_key_id, exchange = user_id_of(user_id), key_id_of(api_key_id), exchange_of(exchange)
    asked = asking("keys add", f"{user_id}/{api_key_id}", credentials)
    granted, until = permissions_of(permissions), expiry_of(expires_at, datetime.now(UTC))
    try:
        venue(exchange)
    except UnknownVenue as error:
        raise CommandFailed(f"{error}. Nothing was changed.", Exit.NOT_SO) from error
    if replace:
        confirm("keys add --replace", f"{user_id}/{api_key_id}", yes)
    keyring = keyring_for(installation.settings)
    ciphertext = keyring.encrypt(user_id, api_key_id, read_secret(source))
    key = NewKey(user_id, api_key_id, exchange, granted, until, keyring.key_id, ciphertext)

    async def store(database: Database, by: By) -> Done:
        asked_about = await with_accounts(installation.settings, keyring, database, key) if replace else key
        return await add_key(database, asked_about, replace=replace, by=by)

    await change(installation, asked, store)


async def revoke(
    installation: Installation, user_id: str, api_key_id: str, *, reason: str | None, yes: bool, credentials: Credentials
) -> None:
    """Revokes a key at once. Raises CommandFailed for one that is not there."""
    user_id, api_key_id = user_id_of(user_id), key_id_of(api_key_id)
    asked = asking("keys revoke", f"{user_id}/{api_key_id}", credentials, reason)
    confirm("keys revoke", asked.about.target_id, yes)
    await change(installation, asked, lambda database, by: revoke_key(database, user_id, api_key_id, by))


async def rotate(installation: Installation, *, credentials: Credentials) -> None:
    """Re-encrypts every stored secret under the newest master key. Raises CommandFailed, also where one could not be decrypted."""
    asked = asking("keys rotate", ADMINISTRATION, credentials)
    keyring = keyring_for(installation.settings)
    async with administering(installation) as administration:
        by = await administration.by(asked)
        try:
            rotation = await rotate_secrets(administration.database, keyring, by)
        except MasterKeyError as error:
            raise CommandFailed(str(error), Exit.NOT_SO) from error
        is_changed = bool(rotation.keys or rotation.factors)
        what = f"Nothing to do: everything that can be decrypted is under master key {rotation.key_id}."
        if is_changed:
            what = f"{rotation.keys} API keys and {rotation.factors} second factors were re-encrypted under master key {rotation.key_id}."
        await administration.tell(Done(what, changed=is_changed))
    if rotation.unreadable:
        named = ", ".join(rotation.unreadable[:10]) + (" …" if len(rotation.unreadable) > 10 else "")
        raise CommandFailed(
            f"{len(rotation.unreadable)} could not be decrypted with any master key that is set, and are as they were: {named}. Add the "
            "master key they were stored under and rotate again, or store the keys and enrol the users again.",
            Exit.NOT_SO,
        )
    older = [key_id for key_id in keyring.key_ids if key_id != rotation.key_id]
    if older:
        say(f"No row needs master key {', '.join(older)} any more: take it out of the settings, and restart the workers.")
