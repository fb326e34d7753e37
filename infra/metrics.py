"""Prometheus metrics of a worker. Labels have few values: never a user, an order or an address."""

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
RECORDS_BEHIND: Final = Gauge("orchestrator_records_behind", "Records not worked on yet, by input partition", ["topic", "partition"])
