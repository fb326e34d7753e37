"""Every setting of the system, from the environment (`ORCHESTRATOR_…`) or a TOML file named by `ORCHESTRATOR_CONFIG`.

Secrets are `SecretStr` and never printed. Durations carry their unit in the name.
"""

import os
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

InfraMode = Literal["embedded", "containers", "external"]


class Settings(BaseSettings):
    """Validated when it is made: a wrong value is a pydantic ValidationError that names the variable."""

    model_config = SettingsConfigDict(env_prefix="ORCHESTRATOR_", extra="ignore", frozen=True)

    infra: InfraMode | None = None
    data_dir: Path = Path(".orchestrator")
    # Downloads that every data directory can share (the broker's jars).
    cache_dir: Path = Path("~/.cache/crypto-orchestrator")

    kafka_bootstrap_servers: str | None = None
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    kafka_sasl_username: str | None = None
    kafka_sasl_password: SecretStr | None = None
    kafka_ssl_ca_file: Path | None = None
    kafka_replication_factor: int = Field(default=1, ge=1)
    kafka_min_insync_replicas: int = Field(default=1, ge=1)
    kafka_partitions: int = Field(default=4, ge=1, le=256)
    topic_prefix: str = ""
    consumer_group: str = "orchestrator"

    database_url: SecretStr | None = None
    database_pool_size: int = Field(default=8, ge=2, le=64)
    database_timeout_seconds: int = Field(default=10, ge=1, le=60)

    exchanges: tuple[str, ...] = ("binance",)
    exchange_urls: dict[str, str] = Field(default_factory=dict)
    exchange_timeout_ms: int = Field(default=10_000, ge=100, le=60_000)
    # Binance: recvWindow at most 60,000; its own time-out is 10 s.
    receive_window_ms: int = Field(default=5_000, ge=500, le=60_000)
    venue_timeout_ms: int = Field(default=10_000, ge=0, le=60_000)
    exchange_concurrency: int = Field(default=32, ge=1, le=512)
    exchange_rate_limit: bool = True
    price_poll_ms: int = Field(default=500, ge=50)
    price_age_ms_max: int = Field(default=5_000, ge=100)

    master_key: SecretStr | None = None
    master_key_file: Path | None = None

    batch_size_max: int = Field(default=500, ge=1, le=5_000)
    # Orders of one account are sent one after another within the first half of the receive window, so fewer are taken at once.
    submission_batch_size_max: int = Field(default=128, ge=1, le=1_000)
    transaction_timeout_ms: int = Field(default=20_000, ge=1_000)
    session_timeout_ms: int = Field(default=10_000, ge=6_000)
    rebalance_timeout_ms: int = Field(default=20_000, ge=5_000)
    stall_seconds_max: int = Field(default=60, ge=5)
    reconcile_interval_ms: int = Field(default=1_000, ge=50)

    trade_usd_min: Decimal = Decimal("0.01")
    trade_usd_max: Decimal = Decimal(1_000_000)
    slippage_allowance: Decimal = Decimal("0.05")
    # Quote assets counted as one US dollar each.
    usd_assets: tuple[str, ...] = ("USD", "USDT", "USDC", "FDUSD")
    submission_deadline_seconds: int = Field(default=30, ge=1)

    web_host: str = "127.0.0.1"
    web_port: int = Field(default=0, ge=0, le=65_535)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

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
