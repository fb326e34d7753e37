"""The users that `up` puts into a trial installation: at the simulated exchange, in the database and on `trade.audit`.

Invariants:
1. Doing it again changes nothing: API keys are derived from the installation's master key, and what is there already is left alone.
2. After a crash between the database and Kafka the next start publishes the events that are missing, and those alone.

Start with `ensure_trial_users`.
"""

import asyncio
import hmac
from decimal import Decimal
from typing import Final

import aiohttp
from aiokafka.errors import KafkaError

from agents.process.app import utc_now
from cli.local.audit_publication import publish_audit_events
from infra.keyring import StoredSecret, keyring_of
from infra.postgres.admin.accounts import NewUser, add_users
from infra.postgres.database import connect
from infra.settings import Settings
from pipeline.model.invariants import Retryable

TRIAL_USERS: Final = ("alice", "bob", "carol", "dave", "erin")
API_KEY_ID: Final = "main"
START_BALANCES: Final = {"USDT": Decimal(100_000), "BTC": Decimal(5), "ETH": Decimal(50)}
_SECONDS_MAX: Final = 15.0


def trial_secret(installation_secret: bytes, user_id: str) -> StoredSecret:
    """The user's API key and secret at the simulated exchange: the same whenever they are asked for."""
    key, secret = (hmac.digest(installation_secret, f"trial:{part}:{user_id}".encode(), "sha256").hex() for part in ("key", "secret"))
    return StoredSecret(f"{user_id}-{key[:16]}", secret)


async def ensure_trial_users(
    settings: Settings, *, exchange: str, simulator_url: str, bootstrap_servers: str, database_url: str, installation_secret: bytes
) -> None:
    """Opens the accounts and adds the users. Tables and topics must exist. Raises Retryable when one of the services does not answer."""
    secrets = {user_id: trial_secret(installation_secret, user_id) for user_id in TRIAL_USERS}
    try:
        async with asyncio.timeout(_SECONDS_MAX):
            await _open_accounts(simulator_url, secrets)
            database = await connect(database_url, 2, settings.database_timeout_seconds)
            try:
                keyring = keyring_of(settings)
                users = [
                    NewUser(
                        user_id, exchange, API_KEY_ID, keyring.key_id, keyring.encrypt(user_id, API_KEY_ID, secret), dict(START_BALANCES)
                    )
                    for user_id, secret in secrets.items()
                ]
                await add_users(database, users, utc_now(), "orchestrator up")
                await publish_audit_events(settings, bootstrap_servers, database)
            finally:
                await database.close()
    except (OSError, TimeoutError, KafkaError, aiohttp.ClientError) as error:
        raise Retryable(f"the trial users could not be set up ({type(error).__name__}: {error})") from error


async def _open_accounts(simulator_url: str, secrets: dict[str, StoredSecret]) -> None:
    balances = {asset: f"{amount:f}" for asset, amount in START_BALANCES.items()}
    accounts = [
        {"label": user_id, "api_key": secret.api_key, "secret": secret.secret, "balances": balances} for user_id, secret in secrets.items()
    ]
    # An account that is open already is left as it is.
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS_MAX)) as http,
        http.post(f"{simulator_url}/simulator/accounts", json=accounts) as answer,
    ):
        answer.raise_for_status()
