"""Every setting of the system, from the environment (`ORCHESTRATOR_…`) or a TOML file named by `ORCHESTRATOR_CONFIG`.

Secrets are `SecretStr` and never printed. Durations carry their unit in the name.
"""

import os
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

InfraMode = Literal["embedded", "containers", "external"]


# RFC 8176, section 2: what a user knows, or where and how the user is, is no second factor beside a password.
_NO_SECOND_FACTOR: Final = frozenset({"pwd", "pin", "kba", "rba", "geo", "wia", "user"})


def _require_second_factor(value: str) -> str:
    if value in _NO_SECOND_FACTOR or not value:
        raise ValueError(f"{value!r} says nothing of a second factor (RFC 8176): name values such as mfa, otp or hwk")
    return value


def _require_none_or(least: int, days: int) -> int:
    if 0 < days < least:
        raise ValueError(f"{days} days are fewer than what is still looked at: {least} or more, or 0 for ever")
    return days


class Settings(BaseSettings):
    """Validated when it is made: a wrong value is a pydantic ValidationError that names the variable."""

    model_config = SettingsConfigDict(env_prefix="ORCHESTRATOR_", extra="ignore", frozen=True, use_attribute_docstrings=True)

    infra: InfraMode | None = None
    """Where broker and database come from: `embedded`, `containers` or `external`. Unset: `external` for each service whose address is set,
    else `embedded`."""
    data_dir: Path = Path(".orchestrator")
    """Where the embedded services keep their data; one start at a time uses it."""
    cache_dir: Path = Path("~/.cache/crypto-orchestrator")
    """Downloads that every data directory can share (the broker's jars)."""

    kafka_bootstrap_servers: str | None = None
    """Addresses of your brokers, `host:port,host:port`."""
    kafka_port: int = Field(default=0, ge=0, le=65_535)
    """The embedded broker's port; 0: the one that it had in this data directory before, else a free one."""
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How the brokers are spoken to."""
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    """With a SASL protocol: how the user is proven."""
    kafka_sasl_username: str | None = None
    """With a SASL protocol: the user."""
    kafka_sasl_password: SecretStr | None = None
    """With a SASL protocol: the password."""
    kafka_ssl_ca_file: Path | None = None
    """With SSL: certificates of the authorities to trust, PEM; unset: those of the system."""
    kafka_replication_factor: int = Field(default=1, ge=1)
    """Of topics that are created. Use 3 where money is real."""
    kafka_min_insync_replicas: int = Field(default=1, ge=1)
    """Of topics that are created, and the least that existing ones must have. Use 2 with three replicas."""
    kafka_partitions: int = Field(default=4, ge=1, le=256)
    """Of topics that are created. More partitions let more workers share the load; each user's order of requests holds within one."""
    topic_prefix: str = ""
    """Put before every topic's name, so that installations can share a cluster."""
    consumer_group: str = "orchestrator"
    """The workers' group. The database knows how far each group is: never give one group's name to another database."""

    database_url: SecretStr | None = None
    """Your PostgreSQL, `postgresql://user:password@host:port/name`."""
    database_pool_size: int = Field(default=8, ge=2, le=64)
    """Connections of one worker."""
    database_timeout_seconds: int = Field(default=10, ge=1, le=60)
    """Limit of one statement and of one connection attempt."""

    exchanges: tuple[str, ...] = ("binance",)
    """The exchanges that requests may name, by ccxt id, as a JSON list."""
    exchange_urls: dict[str, str] = Field(default_factory=dict)
    """Exchange id → base address, as a JSON object: a sandbox or the simulated exchange in place of the real one."""
    exchange_timeout_ms: int = Field(default=10_000, ge=100, le=60_000)
    """Limit of one call. An order whose call took longer is in doubt, and looked up."""
    # Binance: recvWindow at most 60,000; its own time-out is 10 s.
    receive_window_ms: int = Field(default=5_000, ge=500, le=60_000)
    """How old a signed request may be when the exchange gets it. Orders are sent in its first half."""
    venue_timeout_ms: int = Field(default=10_000, ge=0, le=60_000)
    """How long the exchange itself may take over a request. With the receive window it says from when on `not found` is a proof. Less than
    the exchange's own time-out (Binance: 10,000) only in a sandbox."""
    # Facts: infra/exchange/venues/venue.
    venue_read_lag_ms: int | None = Field(default=None, ge=0, le=3_600_000)
    """How long the exchange's books may not show what it has accepted. Unset: what is known of each exchange (Binance: 120,000). So long,
    and the two times above, an order in doubt must stay unseen before it counts as not executed. Less only in a sandbox."""
    exchange_concurrency: int = Field(default=32, ge=1, le=512)
    """Calls under way at once, per exchange and worker."""
    exchange_rate_limit: bool = True
    """Keep to the exchange's published request rate. Switch off only against a simulated exchange."""
    price_poll_ms: int = Field(default=500, ge=50)
    """How often prices are read."""
    price_stale_halt_seconds: int = Field(default=60, ge=1)
    """An exchange whose prices are older than this is halted until an operator resumes it."""
    in_doubt_halt_orders: int = Field(default=25, ge=1)
    """So many orders and withdrawals without an answer halt their exchange until an operator resumes it: in doubt for longer than a look-up
    needs, or at least half of the newest calls of a worker there, over three batches or more. A worker that dies trips nothing."""
    in_doubt_halt_seconds: int = Field(default=300, ge=1)
    """How much longer than the proof of an absence takes (the receive window, the exchange's time-out, and two looks that are its read lag
    apart) an order is in doubt before it counts for that."""
    price_age_ms_max: int = Field(default=5_000, ge=100)
    """A price older than this is no price: orders that need one are refused as `PRICE_UNAVAILABLE`."""

    master_key: SecretStr | None = None
    """32 random bytes, base64: exchange keys are stored encrypted under it. Make one with `head -c 32 /dev/urandom | base64`. Several as
    `id:base64`, the newest first, while keys are rotated (administration.md)."""
    master_key_file: Path | None = None
    """A file that holds the master key, in its place."""

    authentication: Literal["required", "sandbox"] = "required"
    """`required`: every request needs a token, and real money a second factor. `sandbox`: neither; a worker then starts only when every
    exchange has a base address that is not the real exchange's."""
    token_keys_file: Path | None = None
    """The keys that tokens are signed with: a public key in PEM, a JWK set, or an HMAC secret. Read again when it changes."""
    token_issuer: str | None = None
    """What a token's `iss` must be; unset: it is not looked at."""
    token_audience: str | None = None
    """This installation's name in a token's `aud`. Unset: tokens that are for an audience are refused."""
    token_leeway_seconds: int = Field(default=30, ge=0, le=300)
    """How far the clock of the tokens' issuer may be off the broker's."""
    token_scope_claim: str | None = Field(default=None, min_length=1, max_length=256)
    """The claim that says what a token allows, as words or a list of them. Unset: `scope`, `scp` and `permissions` do, together."""
    token_amr_confirming: tuple[Annotated[str, AfterValidator(_require_second_factor)], ...] = ()
    """Values of a token's `amr` (RFC 8176) that stand for a second factor, as a JSON list: a trade whose token has one of them and a young
    `auth_time` needs no code. Unset: the issuer's word confirms nothing. Withdrawals need a code all the same."""
    token_auth_age_seconds_max: int = Field(default=900, ge=1, le=24 * 3_600)
    """How long ago `auth_time` may lie for that, when the broker appended the record."""
    session_minutes_max: int = Field(default=480, ge=0, le=7 * 24 * 60)
    """How long a session, begun with one code, confirms trades at most (authentication.md). 0: there are none, every trade needs a code."""
    session_orders_max: int = Field(default=1_000, ge=1, le=10**9)
    """How many orders a session confirms at most."""
    session_amount_usd_max: Decimal = Field(default=Decimal(1_000_000), ge=0)
    """What the orders that a session confirms may be worth together, in US dollars."""

    batch_size_max: int = Field(default=500, ge=1, le=5_000)
    """The most records that intake and settlement decide in one database transaction."""
    # Orders of one account are sent one after another within the first half of the receive window, so fewer are taken at once.
    submission_batch_size_max: int = Field(default=128, ge=1, le=1_000)
    """The most orders that are sent between two database transactions."""
    transaction_timeout_ms: int = Field(default=20_000, ge=1_000)
    """When the broker gives up on a Kafka transaction of a worker that is gone."""
    session_timeout_ms: int = Field(default=10_000, ge=6_000)
    """When the broker gives a silent worker's partitions to others."""
    rebalance_timeout_ms: int = Field(default=20_000, ge=5_000)
    """How long a rebalance waits for batches under way."""
    stall_seconds_max: int = Field(default=60, ge=5)
    """How long anything in a worker may stand still before it ends itself."""
    quarantine_records_max: int = Field(default=20, ge=1)
    """How many records of a partition may be set aside within the window before the partition stops: a defect that hits every record must
    not drain the topic. One user counts for 3 at most, all together for ten times the number."""
    quarantine_window_seconds: int = Field(default=600, ge=1)
    """See above."""
    state_retention_days: Annotated[int, AfterValidator(partial(_require_none_or, 2))] = Field(default=30, ge=0, le=36_500)
    """How long the snapshot of what is over stays on `trade.state`: 2 days or more. 0: for ever. The database keeps every order."""
    record_retention_days: Annotated[int, AfterValidator(partial(_require_none_or, 8))] = Field(default=90, ge=0, le=36_500)
    """How long cancels that are over, realised results, closed quarantine entries and notes on look-ups stay in the database: 8 days or
    more. 0: for ever."""
    reconcile_interval_ms: int = Field(default=1_000, ge=50)
    """How often orders in doubt are looked up; resting orders a quarter as often."""

    trade_usd_min: Decimal = Field(default=Decimal("0.01"), ge=0)
    """The smallest order, in US dollars. This and the limits below can be replaced for one user: `orchestrator limits set`."""
    trade_usd_max: Decimal = Field(default=Decimal(1_000_000), ge=0)
    """The largest order, in US dollars."""
    daily_volume_usd_max: Decimal = Field(default=Decimal(10_000_000), ge=0)
    """What a user may trade in 24 hours (rolling), in US dollars."""
    hourly_trades_max: int = Field(default=100, ge=0)
    """How many orders a user may make in an hour (rolling)."""
    cooldown_failures: int = Field(default=3, ge=1)
    """So many failures in a row begin a cooldown."""
    cooldown_seconds: int = Field(default=300, ge=0)
    """How long a cooldown lasts."""
    price_band: Decimal = Field(default=Decimal("0.10"), ge=0)
    """How far from the market's a price may be, as a fraction of it, to either side."""
    position_usd_max: Decimal = Field(default=Decimal(5_000_000), ge=0)
    """What a user may hold of one asset by buying, in US dollars."""
    open_orders_max: int = Field(default=200, ge=0)
    """How many orders of a user may be open at once."""
    open_orders_usd_max: Decimal = Field(default=Decimal(5_000_000), ge=0)
    """What a user's open orders may be worth together, in US dollars."""
    exchange_open_usd_max: Decimal = Field(default=Decimal(5_000_000), ge=0)
    """The same at one exchange."""
    daily_loss_usd_max: Decimal = Field(default=Decimal(250_000), ge=0)
    """What a user may lose by sales in 24 hours (rolling), in US dollars; then only orders that make a position smaller are taken."""
    daily_withdrawal_usd_max: Decimal = Field(default=Decimal(500_000), ge=0)
    """What a user may withdraw in 24 hours (rolling), in US dollars."""
    withdrawal_approval_usd: Decimal = Field(default=Decimal(10_000), ge=0)
    """A withdrawal worth more, in US dollars, waits until an operator approves it (withdrawals.md). 0: every withdrawal does."""
    withdrawal_approval_hours: int = Field(default=24, ge=1, le=24 * 30)
    """How long it waits; then it ends as `REQUEST_EXPIRED` and its funds are free again."""
    doubt_four_eyes_usd: Decimal = Field(default=Decimal(1_000), ge=0)
    """What became of an order or withdrawal in doubt that is worth more, in US dollars, two operators must say (`in-doubt resolve`)."""
    address_wait_hours: int = Field(default=24, ge=0, le=24 * 30)
    """How long a new withdrawal address waits before it can be used. Less than 24 only in a sandbox."""
    withdrawal_poll_ms: int = Field(default=15_000, ge=100)
    """How often the withdrawal history of one account at an exchange is read, while a withdrawal of it is not over. Binance lets an account
    ask ten times a minute."""
    withdrawal_history_lag_seconds: int = Field(default=60, ge=0, le=86_400)
    """How long after it could have been accepted at the latest a withdrawal may still be missing in the exchange's history. Only then does
    it count as never accepted. Less than 60 only in a sandbox."""
    balance_check_ms: int = Field(default=300_000, ge=100)
    """How often the ledger is compared with the exchanges' balances (reconciliation.md)."""
    balance_check_calls_max: int = Field(default=200, ge=1, le=10_000)
    """How many questions a worker may ask one exchange for that at a time: one for each account and one for each resting order of it. What
    is left has its turn the next time."""
    balance_drift_halt_usd: Decimal = Field(default=Decimal(100), ge=0)
    """A user whose balances at an exchange differ from the ledger's by more, in US dollars, is halted. What has no fresh price counts as
    more."""
    balance_drift_age_seconds: int = Field(default=600, ge=0)
    """For so long a difference must have been there before it is audited, and more than the above before it halts: a deposit may be on its
    way into the ledger."""
    deposit_poll_ms: int = Field(default=30_000, ge=100)
    """How often the deposits of each account with an active key are read at its exchange (deposits.md)."""
    # Binance: "time between startTime and endTime must be less than 90 days".
    deposit_window_hours: int = Field(default=24 * 7, ge=1, le=24 * 80)
    """How far back that goes: what is listed, or taken back, later than this after it came is not seen."""
    deposit_announcement_hours: int = Field(default=24 * 7, ge=1, le=24 * 80)
    """How long an announced deposit is waited for, unless the request says otherwise (`expires_at`)."""
    deposit_announcement_delay_minutes: int = Field(default=60, ge=0, le=60 * 24 * 30)
    """How long after a deposit was credited an announcement of it may still come."""
    messages_per_second_max: int = Field(default=20, ge=0)
    """How many trade requests a user may send each second, in the long run."""
    messages_burst_max: int = Field(default=100, ge=0)
    """How many at once."""
    duplicate_window_ms: int = Field(default=2_000, ge=0)
    """An order equal to one that was sent within this time under another key is refused. 0 switches that off."""
    suspicion_flag: int = Field(default=50, ge=0)
    """From this score on, what fits a pattern of misuse goes to the audit trail."""
    suspicion_block: int = Field(default=100, ge=0)
    """From this score on, the request is refused and its user frozen until an operator has looked."""
    slippage_allowance: Decimal = Field(default=Decimal("0.05"), ge=0, lt=1)
    """What is held on top of the market price for a market purchase, as a fraction of it."""
    usd_assets: tuple[str, ...] = ("USD", "USDT", "USDC", "FDUSD")
    """Quote assets counted as one US dollar each, as a JSON list."""
    submission_deadline_seconds: int = Field(default=30, ge=1)
    """An order is not sent later than this after its request was appended, unless the request says otherwise (`expires_at`)."""

    web_host: str = "127.0.0.1"
    """Where a worker answers `/livez`, `/readyz` and `/metrics`."""
    web_port: int = Field(default=0, ge=0, le=65_535)
    """The port of that; 0 takes a free one, which the worker logs. Under `orchestrator up` worker n has this one plus n - 1, or with 0 the
    one that it had in this data directory before."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged."""

    @classmethod
    def without_limits(cls) -> dict[str, Any]:
        """Values for an installation where the limits of users are not what is looked at: demonstrations, benchmarks, tests of mechanics.

        Only a sandbox takes them (`authentication`), and a sandbox takes no real exchange.
        """
        amount, count = Decimal(10**15), 10**9
        return {
            "authentication": "sandbox",
            **dict.fromkeys(("daily_volume_usd_max", "position_usd_max", "open_orders_usd_max"), amount),
            **dict.fromkeys(("exchange_open_usd_max", "daily_loss_usd_max", "daily_withdrawal_usd_max"), amount),
            **dict.fromkeys(("hourly_trades_max", "open_orders_max", "cooldown_failures"), count),
            "session_orders_max": count,
            "session_amount_usd_max": amount,
            **dict.fromkeys(("messages_per_second_max", "messages_burst_max", "suspicion_flag", "suspicion_block"), 10**6),
            "price_band": Decimal(10**6),
            "duplicate_window_ms": 0,
            "price_stale_halt_seconds": 10**6,
            "balance_drift_halt_usd": amount,
        }

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the TOML file."""
        config = os.environ.get("ORCHESTRATOR_CONFIG")
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        if config:
            sources += (TomlConfigSettingsSource(settings_cls, toml_file=Path(config)),)
        return sources

    @property
    def receive_window(self) -> timedelta:
        return timedelta(milliseconds=self.receive_window_ms)

    @property
    def venue_timeout(self) -> timedelta:
        return timedelta(milliseconds=self.venue_timeout_ms)

    def service_mode(self, service: Literal["kafka", "database"]) -> InfraMode:
        """`external` for a service whose address is set, else what `ORCHESTRATOR_INFRA` says, else `embedded`."""
        address = self.kafka_bootstrap_servers if service == "kafka" else self.database_url
        if address is not None:
            return "external"
        return self.infra or "embedded"
