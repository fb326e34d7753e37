"""A gateway that asks an exchange with one stored key, for commands."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cli.terminal.exits import CommandFailed, Exit
from infra.exchange.ccxt.gateway import CcxtGateway
from infra.exchange.gateway import Credentials, UnknownVenue
from infra.keyring import Keyring, MasterKeyError
from infra.postgres.admin.key_administration import StoredKey
from infra.settings import Settings


@asynccontextmanager
async def asking_with(settings: Settings, keyring: Keyring, key: StoredKey) -> AsyncIterator[CcxtGateway]:
    """Opens the gateway. Raises CommandFailed where the key cannot be decrypted or its exchange cannot be asked."""
    try:
        secret = keyring.decrypt(key.user_id, key.api_key_id, key.ciphertext, key.encryption_key_id)
    except MasterKeyError as error:
        raise CommandFailed(f"{str(error)[0].upper()}{str(error)[1:]}", Exit.NOT_SO) from error

    async def credentials(_user_id: str, _api_key_id: str) -> Credentials:
        return Credentials(secret.api_key, secret.secret)

    try:
        gateway = CcxtGateway(
            key.exchange,
            credentials,
            base_url=settings.exchange_urls.get(key.exchange),
            timeout_ms=settings.exchange_timeout_ms,
            receive_window=settings.receive_window,
            venue_timeout=settings.venue_timeout,
        )
    except (UnknownVenue, ValueError) as error:
        raise CommandFailed(f"{key.exchange} cannot be asked: {error}.", Exit.NOT_SO) from error
    try:
        yield gateway
    finally:
        await gateway.close()
