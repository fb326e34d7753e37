"""Prometheus metrics of a worker. Labels have few values: never a user, an order or an address.

They are for people and alarms. Nothing is decided by them, and no promise is judged by them.
"""

import platform
from collections import Counter as Tally
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

BATCH_SECONDS: Final = Histogram(
    "orchestrator_batch_seconds",
    "Time from taking a batch to its Kafka commit",
    ["topic"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
RECORDS: Final = Counter("orchestrator_records_total", "Input records whose batch is committed in the database and in Kafka", ["topic"])
OUTPUTS: Final = Counter("orchestrator_outputs_total", "Records published, by topic", ["topic"])
RECORDS_BEHIND: Final = Gauge(
    "orchestrator_records_behind", "Records not worked on yet, for each input partition of this worker", ["topic", "partition"]
)
PARTITIONS_ASSIGNED: Final = Gauge("orchestrator_partitions_assigned", "Input partitions that this worker owns")
PARTITIONS_STOPPED: Final = Gauge(
    "orchestrator_partitions_stopped", "Input partitions of this worker that stand still because records are missing"
)
RECORDS_SET_ASIDE: Final = Counter(
    "orchestrator_records_set_aside_total",
    "Records that could not be decided and were set aside, see `orchestrator quarantine list`; any is a reason to look",
    ["topic", "stage"],
)
LOOKS_FAILED: Final = Counter(
    "orchestrator_looks_failed_total",
    "Looks at one order, account or exchange that ended in an error of this system's own and left it as it was, by what looks",
    ["what"],
)
ORDERS_IN_DOUBT: Final = Gauge(
    "orchestrator_orders_in_doubt", "Orders whose outcome is not proven yet, in the whole database: the same at every worker", ["exchange"]
)
WITHDRAWALS_IN_DOUBT: Final = Gauge(
    "orchestrator_withdrawals_in_doubt", "The same of withdrawals", ["exchange"]
)
DOUBT_AGE: Final = Gauge(
    "orchestrator_doubt_age_seconds",
    "How long the oldest order or withdrawal is in doubt, 0 without any; alert on more than the proof takes (operations.md)",
    ["exchange"],
)
LOOKS_UNPROVEN: Final = Counter(
    "orchestrator_looks_unproven_total", "Looks at what is in doubt that proved nothing either way, by what was looked at", ["what"]
)
BALANCE_DRIFTS: Final = Gauge(
    "orchestrator_balance_drifts",
    "Assets of which an exchange shows another amount than the ledger, in the whole database, as of the last complete round",
    ["exchange"],
)
BALANCE_DRIFT_AGE: Final = Gauge(
    "orchestrator_balance_drift_age_seconds", "Age of the oldest of them as of that round, 0 without any", ["exchange"]
)
BALANCES_NOT_JUDGED: Final = Gauge(
    "orchestrator_balances_not_judged",
    "Looks of the last complete round that said nothing: something was under way, or the exchange did not answer",
    ["exchange"],
)
BALANCE_ROUND_AT: Final = Gauge(
    "orchestrator_balance_round_timestamp_seconds", "When this worker has last compared all of its accounts, Unix time", ["exchange"]
)
ANSWERS_UNREADABLE: Final = Counter(
    "orchestrator_exchange_answers_unreadable_total",
    "Answers of an exchange that had another shape than it documents, so that they say nothing, by what was asked",
    ["exchange", "question"],
)
BUILD_INFO: Final = Gauge("orchestrator_build_info", "Always 1; the labels say what runs", ["version", "python"])


def record_batch(topic: str, records: int, seconds: float, output_topics: Iterable[str]) -> None:
    """Counts a batch that is committed in the database and in Kafka."""
    BATCH_SECONDS.labels(topic).observe(seconds)
    RECORDS.labels(topic).inc(records)
    for output_topic, count in Tally(output_topics).items():
        OUTPUTS.labels(output_topic).inc(count)


def record_balance_round(exchange: str, drifts: int, oldest_seconds: float, not_judged: int, now: datetime) -> None:
    """Tells what the last complete comparison of this worker's accounts with an exchange has shown."""
    BALANCE_DRIFTS.labels(exchange).set(drifts)
    BALANCE_DRIFT_AGE.labels(exchange).set(oldest_seconds)
    BALANCES_NOT_JUDGED.labels(exchange).set(not_judged)
    BALANCE_ROUND_AT.labels(exchange).set(now.timestamp())


def record_build(version: str) -> None:
    """Tells once what runs."""
    BUILD_INFO.labels(version, platform.python_version()).set(1)
