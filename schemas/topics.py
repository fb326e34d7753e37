"""Topic names and what each one promises to those who read it.

Invariant: audit and state are compacted, and the audit key `order_id:seq` is unique per event, so that compaction removes only exact
re-emissions. `trade.requests` carries the broker's append time, which no producer can set back, and what its records really measure:
the broker unpacks what producers have compressed, with any codec, and refuses what is too large then. A worker never meets a codec that
it cannot read, nor a record that grows beyond its memory.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

# Records above this size are not decoded: a request needs less than 2 KiB.
REQUEST_BYTES_MAX: Final = 64 * 1024
# Kafka's default limit for one record batch (broker configuration message.max.bytes), set on the topic so that it is known.
REQUESTS_MESSAGE_BYTES_MAX: Final = 1_048_588
# A dead letter holds the original bytes and what was wrong with them.
DEAD_LETTER_BYTES_MAX: Final = 1_048_576
DEAD_LETTER_KEY_BYTES_MAX: Final = 64 * 1024
DEAD_LETTER_HEADERS_BYTES_MAX: Final = 64 * 1024
DLQ_MESSAGE_BYTES_MAX: Final = REQUESTS_MESSAGE_BYTES_MAX + 256 * 1024
# What every topic must take at least: twice what a worker puts into one record batch.
OUTPUT_BATCH_BYTES_MAX: Final = 512 * 1024
# Kafka's default for a cluster, which may have another: set on the topic so that it is known.
_INPUT_RETENTION_MS: Final = 7 * 24 * 3_600_000

# input: from outside. queue: between our agents, read by nobody else. output: for others. compacted: the newest record of each key.
TopicKind = Literal["input", "queue", "output", "compacted"]
# Acknowledged records must not vanish from any topic, and none of those that wait to be read.
_EVERY: Final = {"unclean.leader.election.enable": "false"}
_READ_BY_US: Final = {**_EVERY, "retention.ms": str(_INPUT_RETENTION_MS), "retention.bytes": "-1"}


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic as the administration step creates it."""

    name: str
    kind: TopicKind
    config: dict[str, str] = field(default_factory=dict)

    @property
    def cleanup_policy(self) -> Literal["delete", "compact"]:
        return "compact" if self.kind == "compacted" else "delete"


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of one installation; `prefix` keeps installations on one cluster apart."""

    prefix: str = ""

    @property
    def requests(self) -> str:
        return f"{self.prefix}trade.requests"

    @property
    def reports(self) -> str:
        return f"{self.prefix}trade.reports"

    @property
    def commands(self) -> str:
        return f"{self.prefix}trade.commands"

    @property
    def results(self) -> str:
        return f"{self.prefix}trade.results"

    @property
    def audit(self) -> str:
        return f"{self.prefix}trade.audit"

    @property
    def state(self) -> str:
        return f"{self.prefix}trade.state"

    @property
    def requests_dlq(self) -> str:
        return f"{self.prefix}trade.requests.dlq"

    def orders(self, exchange: str) -> str:
        """The queue of one exchange, so that a slow one delays only its own orders."""
        return f"{self.orders_prefix}{exchange}"

    @property
    def orders_prefix(self) -> str:
        """What the queues' names begin with."""
        return f"{self.prefix}trade.orders."

    def specs(self, exchanges: tuple[str, ...]) -> tuple[TopicSpec, ...]:
        """Every topic of an installation, with the settings that its promise needs."""
        queues = (self.reports, *(self.orders(exchange) for exchange in exchanges))
        return (
            TopicSpec(
                self.requests,
                "input",
                {
                    **_READ_BY_US,
                    "message.timestamp.type": "LogAppendTime",
                    "max.message.bytes": str(REQUESTS_MESSAGE_BYTES_MAX),
                    "compression.type": "uncompressed",
                },
            ),
            # Operators' tokens and codes are judged at the broker's time, too.
            TopicSpec(
                self.commands,
                "input",
                {**_READ_BY_US, "message.timestamp.type": "LogAppendTime", "compression.type": "uncompressed"},
            ),
            *(TopicSpec(name, "queue", dict(_READ_BY_US)) for name in queues),
            TopicSpec(self.results, "output", dict(_EVERY)),
            TopicSpec(self.audit, "compacted", dict(_EVERY)),
            TopicSpec(self.state, "compacted", dict(_EVERY)),
            TopicSpec(self.requests_dlq, "output", {**_EVERY, "max.message.bytes": str(DLQ_MESSAGE_BYTES_MAX)}),
        )
