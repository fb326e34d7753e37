"""The programs in docs/producers.md do what they say: run as they stand there, against the test run's broker."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from checks.tree import ROOT
from schemas.requests import TradeRequest, decode_request
from tests.kcat import needs_kcat

TEXT = (ROOT / "docs/producers.md").read_text(encoding="utf-8")
PARTITIONS = 8


def program(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def create_topics(kafka: str, prefix: str) -> None:
    topics = [NewTopic(f"{prefix}{name}", PARTITIONS, 1) for name in ("trade.requests", "trade.results")]
    # Held until all is made: its end would cancel the requests.
    admin = AdminClient({"bootstrap.servers": kafka})
    for made in admin.create_topics(topics).values():
        made.result(30)
    # A new partition has its leader a moment after the broker has confirmed the topic.
    deadline = time.monotonic() + 30
    for topic in topics:
        while not has_leaders(kafka, topic.topic):
            assert time.monotonic() < deadline, f"{topic.topic} got no leaders"
            time.sleep(0.1)


def has_leaders(kafka: str, topic: str) -> bool:
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": topic})
    try:
        for number in range(PARTITIONS):
            consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)
    except KafkaException:
        return False
    finally:
        consumer.close()
    return True


def published(kafka: str, topic: str) -> list[tuple[int, bytes, bytes]]:
    """(partition, key, value) of every record on a topic."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": topic, "enable.auto.commit": False, "isolation.level": "read_committed"})
    found = []
    try:
        for number in range(PARTITIONS):
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)
            consumer.assign([TopicPartition(topic, number, low)])
            while low < high:
                message = consumer.poll(10)
                assert message is not None
                assert message.error() is None
                found.append((number, message.key(), message.value()))
                low = message.offset() + 1
    finally:
        consumer.close()
    return found


def run(command: list[str], kafka: str, prefix: str) -> None:
    environment = os.environ | {
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "TOPIC_PREFIX": prefix,
        "IDEMPOTENCY_KEY": "documented",
        # No worker runs: it stops right after the broker has the record.
        "WAIT_SECONDS": "0",
    }
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@needs_kcat
def test_documented_programs_publish_the_same_order_to_the_same_partition(kafka: str, unique_prefix: str, tmp_path: Path) -> None:
    """Python's and kcat's program publish a request that can be read, with the same content, to the partition of its user."""
    create_topics(kafka, unique_prefix)
    script = tmp_path / "publish.py"
    script.write_text(program("python"))
    run([sys.executable, str(script)], kafka, unique_prefix)
    run(["sh", "-c", program("sh")], kafka, unique_prefix)
    records = published(kafka, f"{unique_prefix}trade.requests")
    assert len(records) == 2
    assert len({(partition, key) for partition, key, _ in records}) == 1
    requests = [decode_request(value) for _, _, value in records]
    assert isinstance(requests[0], TradeRequest)
    assert requests[0] == requests[1]
    assert requests[0].idempotency_key == "documented"


@pytest.mark.parametrize("language", ["java", "go", "javascript"])
def test_documented_program_asks_for_durable_writes(language: str) -> None:
    """Programs that are not run here publish idempotently, to the topic that the installation reads, and quote their amounts."""
    text = program(language)
    assert "trade.requests" in text
    assert re.search(r'"?quantity"?: "0\.001"', text)
    assert {"java": '"enable.idempotence", "true"', "go": "kgo.NewClient(", "javascript": "idempotent: true"}[language] in text
