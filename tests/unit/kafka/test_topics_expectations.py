"""The table of topic settings: what we make is as it must be, and each row tells what it is there for."""

from collections.abc import Mapping

import pytest
from aiokafka import codec

from infra.kafka.topic_settings import EXPECTATIONS, Found, Wanted, problems_of
from schemas.topics import Topics, TopicSpec

_SPECS = {spec.name: spec for spec in Topics("").specs(("binance",))}
_WANTED = Wanted(copies=3, min_insync_replicas=2)
# Kafka's own defaults of what is not set on a topic.
_DEFAULTS = {
    "cleanup.policy": "delete",
    "compression.type": "producer",
    "delete.retention.ms": "86400000",
    "max.message.bytes": "1048588",
    "message.timestamp.after.max.ms": "3600000",
    "message.timestamp.type": "CreateTime",
    "min.insync.replicas": "2",
    "retention.bytes": "-1",
    "retention.ms": "604800000",
    "unclean.leader.election.enable": "false",
}


def _told(name: str, settings: Mapping[str, str] | None = None, copies: int = 3, in_sync: int = 3) -> list[tuple[str, str]]:
    spec: TopicSpec = _SPECS[name]
    made = {**_DEFAULTS, "cleanup.policy": spec.cleanup_policy, **spec.config, **(settings or {})}
    return [(problem.reaction, problem.text) for problem in problems_of(spec, Found(made, copies, in_sync), _WANTED)]


def test_topics_as_they_are_made_have_no_problem() -> None:
    """What a worker makes, it starts with."""
    assert {name: _told(name) for name in _SPECS} == {name: [] for name in _SPECS}


def test_workers_unpack_every_codec_of_kafka() -> None:
    """An operator or the cluster's default decides with which codec a worker's topics are stored."""
    assert (codec.has_gzip(), codec.has_snappy(), codec.has_lz4(), codec.has_zstd()) == (True, True, True, True)


@pytest.mark.parametrize(
    ("name", "setting", "value", "reaction"),
    [
        ("trade.requests", "cleanup.policy", "compact", "refuse"),
        ("trade.orders.binance", "cleanup.policy", "compact,delete", "refuse"),
        ("trade.audit", "cleanup.policy", "delete", "refuse"),
        ("trade.requests", "message.timestamp.type", "CreateTime", "refuse"),
        ("trade.commands", "message.timestamp.type", "CreateTime", "refuse"),
        ("trade.requests", "compression.type", "zstd", "refuse"),
        ("trade.reports", "compression.type", "brotli", "refuse"),
        ("trade.requests", "max.message.bytes", "2097152", "refuse"),
        ("trade.requests.dlq", "max.message.bytes", "1048588", "refuse"),
        ("trade.results", "max.message.bytes", "100000", "refuse"),
        ("trade.orders.binance", "max.message.bytes", "100000", "refuse"),
        ("trade.requests", "retention.ms", "3600000", "refuse"),
        ("trade.orders.binance", "retention.ms", "3600000", "refuse"),
        ("trade.reports", "retention.ms", "86400000", "warn"),
        ("trade.commands", "retention.bytes", "1073741824", "warn"),
        ("trade.results", "retention.ms", "3600000", "warn"),
        ("trade.state", "delete.retention.ms", "1000", "warn"),
        ("trade.audit", "unclean.leader.election.enable", "true", "refuse"),
        ("trade.requests", "unclean.leader.election.enable", "true", "refuse"),
        ("trade.results", "min.insync.replicas", "1", "refuse"),
        ("trade.results", "message.timestamp.after.max.ms", "1000", "warn"),
    ],
)
def test_setting_that_breaks_a_promise_is_told(name: str, setting: str, value: str, reaction: str) -> None:
    """With what it is, what it must be and what would happen; whether a worker starts with it is part of the table."""
    ((told, text),) = _told(name, {setting: value})
    assert told == reaction
    assert text.startswith(f"{setting} is {value}, must be ")
    assert text.endswith(")")


@pytest.mark.parametrize("setting", sorted({row.setting for row in EXPECTATIONS}))
def test_every_setting_of_the_table_can_be_wrong_somewhere(setting: str) -> None:
    """A row that no value offends would only look like a check."""
    wrong = "100000" if _DEFAULTS[setting].lstrip("-").isdigit() and not setting.startswith(("min.", "delete.", "message.")) else "1"
    assert any(_told(name, {setting: wrong}) for name in _SPECS)


@pytest.mark.parametrize("value", ["producer", "gzip", "snappy", "lz4", "zstd", "uncompressed"])
def test_codec_of_our_own_topics_is_free(value: str) -> None:
    """Only what comes from outside is measured unpacked."""
    assert _told("trade.reports", {"compression.type": value}) == []


def test_setting_that_the_broker_does_not_know_is_no_problem() -> None:
    """An older broker does not tell what it does not have."""
    assert problems_of(_SPECS["trade.results"], Found({"cleanup.policy": "delete"}), Wanted(1, 1)) == []


def test_copies_are_enough_and_one_may_be_away() -> None:
    """Too few copies, and a limit that they cannot reach or can only just reach."""
    assert _told("trade.results", copies=2, in_sync=2) == [
        ("warn", "has 2 copies, must have 3"),
        ("warn", "min.insync.replicas is 2, must be less than its 2 copies (one broker away, nothing could be written)"),
    ]
    assert ("refuse", "min.insync.replicas is 4, must be at most its 3 copies (nothing could be written)") in _told(
        "trade.results", {"min.insync.replicas": "4"}
    )
    assert _told("trade.results", in_sync=1) == [("warn", "1 copies are in sync, and nothing is written below 2")]
