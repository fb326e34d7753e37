"""Whose account a key belongs to, asked of the exchange before the key takes another's place."""

from dataclasses import replace

from cli.admin.key_gateway import asking_with
from cli.terminal.exits import CommandFailed
from cli.terminal.output import printable, say
from infra.keyring import Keyring
from infra.postgres.admin.administration import NotDone
from infra.postgres.admin.key_administration import NewKey, StoredKey, stored_key, watched_with, what_stands
from infra.postgres.database import Database
from infra.settings import Settings
from pipeline.model.venue import LookUpFailed


async def with_accounts(settings: Settings, keyring: Keyring, database: Database, key: NewKey) -> NewKey:
    """The key with the number of its account, and with that of the key that it replaces; as it is where nothing stands at the exchange with
    that one, or is watched. What the exchange does not tell is not known, which `add_key` judges."""
    try:
        before = await stored_key(database, key.user_id, key.api_key_id)
    except NotDone:
        return key
    async with database.connection() as connection:
        is_asked = await what_stands(connection, key.user_id, key.api_key_id) or await watched_with(connection, key.user_id, key.api_key_id)
        if before.exchange != key.exchange or not is_asked:
            return key
    new = StoredKey(
        key.user_id, key.api_key_id, key.exchange, "active", frozenset(key.permissions), key.expires_at, key.encryption_key_id,
        key.ciphertext,
    )  # fmt: skip
    account_before = before.account_id or await _account_of(settings, keyring, before, "stored")
    account_id = await _account_of(settings, keyring, new, "new")
    return replace(key, account_id=account_id, account_before=account_before, version_before=before.version)


async def _account_of(settings: Settings, keyring: Keyring, key: StoredKey, which: str) -> str | None:
    try:
        async with asking_with(settings, keyring, key) as gateway:
            shown = await gateway.account_balances(key.user_id, key.api_key_id)
    except CommandFailed as error:
        say(f"note: whose account the {which} key is cannot be asked: {error}")
        return None
    if isinstance(shown, LookUpFailed):
        say(f"note: {key.exchange} did not tell whose account the {which} key is: {printable(shown.detail)}")
        return None
    return shown.account_id
