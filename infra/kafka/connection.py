"""How every Kafka client of ours reaches the brokers."""

import ssl
from typing import Any

from aiokafka import AIOKafkaProducer
from faust import SASLCredentials, SSLCredentials

from infra.kafka.records import read_any_header_name
from infra.settings import Settings


def _ssl_context(settings: Settings) -> ssl.SSLContext | None:
    if settings.kafka_security_protocol not in {"SSL", "SASL_SSL"}:
        return None
    return ssl.create_default_context(cafile=str(settings.kafka_ssl_ca_file) if settings.kafka_ssl_ca_file else None)


def client_options(settings: Settings, bootstrap_servers: str) -> dict[str, Any]:
    """The options that aiokafka's producer, consumer and admin client share."""
    # Here, because no consumer of ours is made without these options: one that could not read a record would stop at it for ever.
    read_any_header_name()
    options: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers,
        "security_protocol": settings.kafka_security_protocol,
        "ssl_context": _ssl_context(settings),
    }
    if settings.kafka_security_protocol.startswith("SASL") and settings.kafka_sasl_password is not None:
        options |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_sasl_username,
            "sasl_plain_password": settings.kafka_sasl_password.get_secret_value(),
        }
    return options


def faust_credentials(settings: Settings) -> SASLCredentials | SSLCredentials | None:
    """The same as Faust wants it."""
    context = _ssl_context(settings)
    if settings.kafka_security_protocol.startswith("SASL"):
        password = settings.kafka_sasl_password
        return SASLCredentials(
            username=settings.kafka_sasl_username,
            password=password.get_secret_value() if password else None,
            ssl_context=context,
            mechanism=settings.kafka_sasl_mechanism,
        )
    return SSLCredentials(context) if context is not None else None


def report_producer_of(options: dict[str, Any]) -> AIOKafkaProducer:
    """What looks publish their reports with. Not transactional: a report changes nothing by itself, and is made again when it was lost."""
    return AIOKafkaProducer(**options, enable_idempotence=True, acks="all", request_timeout_ms=10_000, retry_backoff_ms=50, linger_ms=2)
