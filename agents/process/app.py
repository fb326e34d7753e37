"""The only composition root: every part of a worker is made here and handed what it needs.

A newcomer reads `compose` once and then knows who holds what. Nothing below is made at import time.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from typing import Final

import faust
from aiokafka import AIOKafkaProducer, TopicPartition
from mode.supervisors import CrashingSupervisor

from agents.process.keys import KeyReader, SecondFactorReader
from agents.process.read_lags import read_lags_of
from agents.process.watchdog import Watchdog
from agents.steps.batch import StepContext
from agents.steps.control import ControlStep
from agents.steps.execution import ExecutionStep
from agents.steps.gap_watch import GapWatch
from agents.steps.halt_watch import HaltWatch
from agents.steps.intake import IntakeStep
from agents.steps.isolation import Isolation, quarantine_limit_of
from agents.steps.partitions import Partitions, TimeLimits
from agents.steps.settlement import SettlementStep
from agents.steps.step import Step, StepRunner
from agents.watches.balances import BalanceWatch
from agents.watches.circuit_breakers import CircuitBreakers, TripRules
from agents.watches.deposits import DepositWatch
from agents.watches.mass_cancel import MassCancel
from agents.watches.networks import NetworkFeed
from agents.watches.orders import Reconciler
from agents.watches.retention import Retention, retentions_of
from agents.watches.retry_queue import RetryQueue
from agents.watches.watch import Watch, WatchContext
from agents.watches.withdrawals import WithdrawalWatch
from infra.exchange.ccxt.gateway import CcxtGateway
from infra.exchange.gateway import Credentials, CredentialSource, Gateway
from infra.exchange.market_data import MarketDataFeed
from infra.exchange.paper_gateway import PaperGateway
from infra.kafka.connection import client_options, faust_credentials, report_producer_of
from infra.kafka.transactions import PartitionProducer
from infra.kafka.transport import OrchestratorApp
from infra.keyring import Keyring, keyring_of
from infra.limits import confirmation_rules_of, limits_of
from infra.postgres.database import Database
from infra.postgres.gate import read_halts
from infra.postgres.keys import stored_keys
from infra.postgres.withdrawals import keys_that_withdraw
from infra.settings import Settings
from infra.trusted_keys import token_verifier
from pipeline.model.call_record import CallRecord
from pipeline.model.crash_points import Reached
from pipeline.model.rules import Rules
from pipeline.model.venue import MarketData
from pipeline.model.withdrawal import Network
from schemas.orders import Mode
from schemas.topics import Topics

_CANCEL_ATTEMPTS_MAX: Final = 20
_HEARTBEAT_SECONDS_MAX: Final = 0.5
_KEYS_ASKED_WITH: Final = 5


def utc_now() -> datetime:
    """The clock of the system: UTC, microseconds."""
    return datetime.now(UTC)


def rules_of(settings: Settings) -> Rules:
    """The numbers of the settings as the pipeline wants them."""
    return Rules(
        exchanges=frozenset(settings.exchanges),
        slippage_allowance=settings.slippage_allowance,
        usd_assets=frozenset(settings.usd_assets),
        price_age_max=timedelta(milliseconds=settings.price_age_ms_max),
        submission_deadline=timedelta(seconds=settings.submission_deadline_seconds),
        key_lifetime=timedelta(hours=24),
        receive_window=settings.receive_window,
        venue_timeout=settings.venue_timeout,
        cancel_attempts_max=_CANCEL_ATTEMPTS_MAX,
        withdrawal_approval_usd=settings.withdrawal_approval_usd,
        withdrawal_approval_time=timedelta(hours=settings.withdrawal_approval_hours),
        address_wait=timedelta(hours=settings.address_wait_hours),
        withdrawal_history_lag=timedelta(seconds=settings.withdrawal_history_lag_seconds),
        balance_drift_halt_usd=settings.balance_drift_halt_usd,
        balance_drift_age=timedelta(seconds=settings.balance_drift_age_seconds),
        announcement_time=timedelta(hours=settings.deposit_announcement_hours),
        announcement_delay=timedelta(minutes=settings.deposit_announcement_delay_minutes),
        read_lags=read_lags_of(settings),
        doubt_four_eyes_usd=settings.doubt_four_eyes_usd,
        confirmation=confirmation_rules_of(settings),
    )


@dataclass(slots=True)
class Parts:
    """A worker's parts, in the order in which they are started; they are stopped in the reverse order."""

    database: Database
    gateways: dict[str, Gateway]
    feeds: dict[str, MarketDataFeed]
    network_feeds: dict[str, NetworkFeed]
    report_producer: AIOKafkaProducer
    watchdog: Watchdog
    halt_watch: HaltWatch
    app: OrchestratorApp
    partitions: Partitions
    watches: tuple[Watch, ...]


def credential_source(database: Database, keyring: Keyring) -> CredentialSource:
    """Where the gateways have the users' keys from. It raises Retryable when the database is out of reach."""

    def decrypt(user_id: str, api_key_id: str, ciphertext: bytes) -> Credentials:
        secret = keyring.decrypt(user_id, api_key_id, ciphertext)
        return Credentials(secret.api_key, secret.secret)

    return KeyReader(partial(stored_keys, database), decrypt)


def gateways_of(settings: Settings, credentials: CredentialSource) -> dict[str, CcxtGateway]:
    """The gateway of each exchange. Raises UnknownVenue, and ValueError for a receive window that a venue would refuse."""
    return {
        exchange: CcxtGateway(
            exchange,
            credentials,
            base_url=settings.exchange_urls.get(exchange),
            timeout_ms=settings.exchange_timeout_ms,
            receive_window=settings.receive_window,
            venue_timeout=settings.venue_timeout,
            rate_limit=settings.exchange_rate_limit,
            concurrency=settings.exchange_concurrency,
            clock=utc_now,
        )
        for exchange in settings.exchanges
    }


def _paper_gateway(feed: MarketDataFeed, rules: Rules) -> PaperGateway:
    return PaperGateway(feed.snapshot.exchange, lambda: feed.snapshot, price_age_max=rules.price_age_max, clock=utc_now)


def _faust_app(settings: Settings, bootstrap_servers: str, owner: Partitions) -> OrchestratorApp:
    return OrchestratorApp(
        settings.consumer_group,
        owner=owner,
        client_options=client_options(settings, bootstrap_servers),
        chunk_records_max=settings.batch_size_max,
        broker=[f"kafka://{server}" for server in bootstrap_servers.split(",")],
        broker_credentials=faust_credentials(settings),
        store="memory://",
        web_enabled=False,
        # Our own administration step makes the topics; leaders and standby tables are not used.
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        # A rebalance waits for the batch under way.
        stream_wait_empty=True,
        stream_buffer_maxsize=64,
        broker_session_timeout=settings.session_timeout_ms / 1000,
        # A heartbeat's answer is how a worker learns that another has left: its partitions stand still until then.
        broker_heartbeat_interval=min(_HEARTBEAT_SECONDS_MAX, settings.session_timeout_ms / 5000),
        broker_rebalance_timeout=settings.rebalance_timeout_ms / 1000,
        broker_request_timeout=40.0,
        broker_max_poll_interval=300.0,
        # Never by itself: what is missing is for a person to judge (agents/steps/gap_watch).
        consumer_auto_offset_reset="none",
        agent_supervisor=CrashingSupervisor,
    )


def _add_agent(app: OrchestratorApp, topic: str, name: str, partitions: Partitions) -> None:
    async def body(stream: faust.StreamT) -> AsyncIterator[None]:
        # A chunk is acknowledged by its partition's task, when it is committed.
        async for event in stream.noack().events():
            partitions.deliver(event)
            yield

    source = app.topic(topic, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
    app.agent(source, name=name, supervisor_strategy=CrashingSupervisor)(body)


def compose(
    settings: Settings,
    bootstrap_servers: str,
    database: Database,
    reached: Reached,
    fail: Callable[[BaseException], None],
) -> Parts:
    """Makes a worker's parts; nothing is started. Raises MasterKeyError and UnknownVenue for settings that cannot work."""
    topics, rules = Topics(settings.topic_prefix), rules_of(settings)
    keyring = keyring_of(settings)
    gateways = gateways_of(settings, credential_source(database, keyring))
    poll = timedelta(milliseconds=settings.price_poll_ms)
    feeds = {exchange: MarketDataFeed(gateway, poll, utc_now) for exchange, gateway in gateways.items()}

    def market_data() -> dict[str, MarketData]:
        return {exchange: feed.snapshot for exchange, feed in feeds.items()}

    by_mode: dict[str, dict[Mode, Gateway]] = {
        exchange: {Mode.LIVE: gateway, Mode.PAPER: _paper_gateway(feeds[exchange], rules)} for exchange, gateway in gateways.items()
    }
    network_feeds = _network_feeds(database, gateways)
    networks = partial(_networks, network_feeds)
    verifier = token_verifier(settings) if settings.authentication == "required" else None
    limits, unseal = limits_of(settings), SecondFactorReader(keyring.decrypt_second_factor)
    halt_watch = HaltWatch(partial(read_halts, database))
    runner = StepRunner(database, utc_now, settings.stall_seconds_max / 2)
    calls = {exchange: CallRecord() for exchange in gateways}
    isolation = Isolation(runner, topics, rules, quarantine_limit_of(settings), utc_now, reached)
    context = StepContext(runner, topics, rules, utc_now, reached, isolation)
    steps: dict[str, Step] = {
        topics.requests: IntakeStep(context, market_data, networks, verifier, limits, unseal, settings.batch_size_max),
        topics.commands: ControlStep(context, verifier, limits, unseal, settings.batch_size_max),
        topics.reports: SettlementStep(context, settings.batch_size_max),
    }
    at_once = settings.submission_batch_size_max
    for exchange, gateway in gateways.items():
        steps[topics.orders(exchange)] = ExecutionStep(
            context, exchange, by_mode[exchange], gateway, halt_watch, calls[exchange], limits, at_once
        )
    options = client_options(settings, bootstrap_servers)

    def new_producer(partition: TopicPartition) -> PartitionProducer:
        return PartitionProducer(partition, settings.consumer_group, options, settings.transaction_timeout_ms)

    gap_watch = GapWatch(
        database=database, runner=runner, topics=topics, log_range=lambda partition: app.log_range(partition), clock=utc_now  # noqa: PLW0108 — `app` is made below
    )
    partitions = Partitions(
        consumer_group=settings.consumer_group,
        database=database,
        steps=steps,
        runner=runner,
        isolation=isolation,
        new_producer=new_producer,
        limits=TimeLimits(settings.stall_seconds_max / 2, settings.rebalance_timeout_ms / 1000),
        gap_watch=gap_watch,
        clock=utc_now,
        reached=reached,
        fail=fail,
    )
    app = _faust_app(settings, bootstrap_servers, partitions)
    partitions.app = app
    for topic in steps:
        _add_agent(app, topic, topic.removeprefix(settings.topic_prefix), partitions)
    report_producer = report_producer_of(options)

    def owned(exchange: str) -> list[int]:
        return [tp.partition for tp in partitions.tasks if tp.topic == topics.orders(exchange)]

    looks_with = WatchContext(database, report_producer, owned, topics, rules, utc_now)

    return Parts(
        database=database,
        gateways=dict(gateways),
        feeds=feeds,
        network_feeds=network_feeds,
        report_producer=report_producer,
        watchdog=Watchdog(
            app, partitions, report_producer, database, feeds, settings.stall_seconds_max, settings.rebalance_timeout_ms / 1000, fail
        ),
        halt_watch=halt_watch,
        app=app,
        partitions=partitions,
        watches=(
            *(Reconciler(looks_with, exchange, by_mode[exchange], settings.reconcile_interval_ms / 1000).watch for exchange in gateways),
            *chain.from_iterable(
                _account_watches(settings, looks_with, exchange, gateway, market_data) for exchange, gateway in gateways.items()
            ),
            *(feed.watch for feed in network_feeds.values()),
            CircuitBreakers(looks_with, market_data=market_data, calls=calls, limits=limits, trip_rules=_trip_rules(settings, rules)).watch,
            *(MassCancel(looks_with, exchange).watch for exchange in gateways),
            *(RetryQueue(looks_with, exchange, feed).watch for exchange, feed in feeds.items()),
            Retention(looks_with, tuple(gateways), retentions_of(settings)).watch,
        ),
    )


def _account_watches(
    settings: Settings, context: WatchContext, exchange: str, gateway: CcxtGateway, market_data: Callable[[], dict[str, MarketData]]
) -> tuple[Watch, ...]:
    """What looks at the accounts of one exchange."""
    window = timedelta(hours=settings.deposit_window_hours)
    return (
        WithdrawalWatch(context, exchange, gateway, poll_seconds=settings.withdrawal_poll_ms / 1000).watch,
        DepositWatch(context, exchange, gateway, poll_seconds=settings.deposit_poll_ms / 1000, window=window).watch,
        BalanceWatch(
            context,
            exchange,
            gateway,
            market_data=market_data,
            interval_seconds=settings.balance_check_ms / 1000,
            calls_max=settings.balance_check_calls_max,
        ).watch,
    )


def _trip_rules(settings: Settings, rules: Rules) -> TripRules:
    slowest = max(rules.read_lag(exchange) for exchange in rules.exchanges)
    proof = rules.receive_window + rules.venue_timeout + 2 * slowest
    return TripRules(
        settings.in_doubt_halt_orders,
        proof + timedelta(seconds=settings.in_doubt_halt_seconds),
        timedelta(seconds=settings.price_stale_halt_seconds),
    )


def _network_feeds(database: Database, gateways: Mapping[str, CcxtGateway]) -> dict[str, NetworkFeed]:
    return {
        exchange: NetworkFeed(exchange, gateway, partial(_keys_to_ask_with, database, exchange)) for exchange, gateway in gateways.items()
    }


def _networks(feeds: Mapping[str, NetworkFeed]) -> dict[str, Mapping[tuple[str, str], Network]]:
    return {exchange: feed.snapshot for exchange, feed in feeds.items()}


async def _keys_to_ask_with(database: Database, exchange: str) -> Sequence[tuple[str, str]]:
    return await keys_that_withdraw(database, exchange, utc_now(), _KEYS_ASKED_WITH)
