"""What a demo runs on: settings with short times, broker and database, a simulated exchange, and users with equal funds on both sides.

Invariant: nothing of a configured installation is touched; broker, database and exchange are the demo's own.

Start with `staged`.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final
from uuid import uuid4

from aiokafka.errors import KafkaError
from pydantic import SecretStr

from cli.access.credentials import login_name
from cli.local.audit_publication import publish_audit_events
from cli.local.demo_cast import Cast, equip, member_ids
from cli.local.demo_exchange import ExchangeAccount, SimulatorAdmin
from cli.local.demo_identities import AUDIENCE, ISSUER, Identities
from cli.local.demo_requests import ADDRESS, ADDRESS_NETWORK, API_KEY_ID, EXCHANGE, OPENING_BALANCES
from embedded.services import Endpoints, services
from infra.kafka.topics import ensure_topics
from infra.keyring import StoredSecret, keyring_of, new_master_key
from infra.postgres.admin.accounts import NewUser, add_users
from infra.postgres.admin.address_administration import NewAddress, add_address
from infra.postgres.admin.operators import set_up_by
from infra.postgres.database import Database, connect
from infra.postgres.migrate import migrate
from infra.settings import Settings
from pipeline.model.invariants import Retryable
from simulator.options import SimulatorOptions
from simulator.process import SimulatorProcess, start

_USERS: Final = 60
_PROGRAM: Final = "orchestrator demo"
# Of each asset; so that fees have something to show.
_WITHDRAWAL_FEE: Final = Decimal("0.0001")
_PUBLISH_SECONDS_MAX: Final = 30.0


@dataclass(frozen=True, slots=True)
class Stage:
    """`settings` name the simulated exchange and the master key; `database` is for reading how far things are; `identities` issue tokens
    and codes that workers take."""

    settings: Settings
    endpoints: Endpoints
    simulator: SimulatorProcess
    database: Database
    identities: Identities

    @property
    def kafka(self) -> str:
        return self.endpoints.kafka_bootstrap_servers


class DataDirectory:
    """The directory that ORCHESTRATOR_DATA_DIR names, else a temporary one."""

    def __init__(self) -> None:
        given = os.environ.get("ORCHESTRATOR_DATA_DIR")
        self._is_temporary = given is None
        self.path = Path(tempfile.mkdtemp(prefix="orchestrator-demo-") if given is None else given)
        if self._is_temporary:
            # Others may pass: PostgreSQL runs as another account when we are root.
            self.path.chmod(0o711)

    def remove(self) -> None:
        """Removes a temporary directory; one that was named stays."""
        if self._is_temporary:
            shutil.rmtree(self.path, ignore_errors=True)


def demo_settings(path: Path) -> Settings:
    """Everything short, so that what the demo breaks is fixed while somebody watches; no address of the environment is used."""
    containers = os.environ.get("ORCHESTRATOR_INFRA") == "containers"
    return Settings(
        infra="containers" if containers else "embedded",
        data_dir=path,
        kafka_bootstrap_servers=None,
        kafka_security_protocol="PLAINTEXT",
        kafka_replication_factor=1,
        kafka_min_insync_replicas=1,
        database_url=None,
        database_timeout_seconds=6,
        exchanges=(EXCHANGE,),
        exchange_rate_limit=False,
        exchange_timeout_ms=1_500,
        receive_window_ms=5_000,
        # What one account sends one after another must fit into half of the window, also on a machine that has other things to do.
        submission_batch_size_max=48,
        venue_timeout_ms=1_000,
        # The demo's exchange lags on request only (`--kill`, which sets what is known of the real one).
        venue_read_lag_ms=1_000,
        reconcile_interval_ms=500,
        # A sandbox may be quicker than real money: what the demo lists it uses at once, and doubts end within seconds.
        address_wait_hours=0,
        withdrawal_poll_ms=500,
        withdrawal_history_lag_seconds=1,
        deposit_poll_ms=2_500,
        transaction_timeout_ms=10_000,
        session_timeout_ms=6_000,
        rebalance_timeout_ms=10_000,
        stall_seconds_max=30,
        web_host="127.0.0.1",
        web_port=0,
        # Workers tell where they answer for their health at this level.
        log_level="info",
        # Two thousand orders of a few users within seconds: nobody may do that.
        **{**Settings.without_limits(), "authentication": "required"},
        token_keys_file=path / "token-keys.pem",
        token_issuer=ISSUER,
        token_audience=AUDIENCE,
        # Of the second factor the demo is as strict as production.
        session_minutes_max=7 * 24 * 60,
    )


@asynccontextmanager
async def staged(path: Path, seed: int, said: Callable[[str], None]) -> AsyncIterator[Stage]:
    """Starts everything but the workers, and stops it again. Raises a ServicesError, SimulatorNotReady or Retryable."""
    settings = demo_settings(path)
    identities = Identities()
    _write_key(path, identities.public_key)
    async with services(settings, progress=said) as endpoints:
        settings = settings.model_copy(update={"master_key": SecretStr(_master_key(path))})
        async with _simulator(settings, seed) as starting:
            await asyncio.gather(ensure_topics(settings, endpoints.kafka_bootstrap_servers), _migrated(endpoints.database_url))
            database = await connect(endpoints.database_url, 2, settings.database_timeout_seconds)
            try:
                simulator = await asyncio.shield(starting)
                addressed = settings.model_copy(update={"exchange_urls": {EXCHANGE: simulator.url}})
                yield Stage(addressed, endpoints, simulator, database, identities)
            finally:
                await database.close()


def _write_key(path: Path, public_key: bytes) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "token-keys.pem").write_bytes(public_key)


def _master_key(path: Path) -> str:
    """The key of the data directory, made at its first use: stored exchange keys of an earlier run must stay readable."""
    file = path / "master.key"
    if not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as key:
            key.write(new_master_key())
    return file.read_text(encoding="ascii").strip()


async def _migrated(database_url: str) -> None:
    try:
        await migrate(database_url)
    except (OSError, TimeoutError) as error:
        raise Retryable(f"the database is out of reach ({type(error).__name__}: {error})") from error


@asynccontextmanager
async def _simulator(settings: Settings, seed: int) -> AsyncIterator["asyncio.Task[SimulatorProcess]"]:
    """A simulated exchange that starts while other things do, and is stopped at the end."""
    options = SimulatorOptions(
        data_dir=settings.data_dir / "simulator",
        venue_timeout_ms=settings.venue_timeout_ms,
        seed=seed,
        withdrawal_fee=_WITHDRAWAL_FEE,
    )
    with (settings.data_dir / "simulator.log").open("ab") as errors:
        starting = asyncio.create_task(asyncio.to_thread(start, options, errors))
        try:
            yield starting
        finally:
            # Its thread ends within its own time limit, also when this block was left before.
            await asyncio.wait({starting})
            if starting.exception() is None:
                await asyncio.to_thread(starting.result().stop)


async def add_demo_users(stage: Stage, run: str) -> Cast:
    """Users of this run, with equal balances here and at the exchange; their audit events are published."""
    keyring = keyring_of(stage.settings)
    user_ids = [f"demo-{run}-{number:02}" for number in range(1, _USERS + 1)]
    with_accounts = [*user_ids, *member_ids(run)]
    accounts = [ExchangeAccount(user_id, f"key{uuid4().hex}", uuid4().hex, dict(OPENING_BALANCES)) for user_id in with_accounts]
    await SimulatorAdmin(stage.simulator.url).open_accounts(accounts)
    users = [
        NewUser(
            account.user_id,
            EXCHANGE,
            API_KEY_ID,
            keyring.key_id,
            keyring.encrypt(account.user_id, API_KEY_ID, StoredSecret(account.api_key, account.secret)),
            account.balances,
            permissions=("trade", "withdraw"),
            # The same again to play with, which the exchange knows nothing of.
            paper=dict(OPENING_BALANCES),
        )
        for account in accounts
    ]
    by = await set_up_by(stage.database, _PROGRAM, login_name())
    await add_users(stage.database, users, by.at, _PROGRAM)
    for user_id in with_accounts:
        await add_address(stage.database, NewAddress(user_id, ADDRESS_NETWORK, ADDRESS, "", None), 0, by)
    await equip(stage.database, keyring, stage.identities, with_accounts, run, by)
    try:
        async with asyncio.timeout(_PUBLISH_SECONDS_MAX):
            await publish_audit_events(stage.settings, stage.kafka, stage.database)
    except (KafkaError, OSError, TimeoutError) as error:
        raise Retryable(f"the broker is out of reach ({type(error).__name__}: {error})") from error
    keys = {account.user_id: account.api_key for account in accounts}
    return Cast({user_id: keys[user_id] for user_id in user_ids}, keys)
