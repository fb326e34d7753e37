"""What infra/kafka relies on in Faust and aiokafka beyond their documented interfaces, so that an upgrade that changes it is noticed.

Two kinds of proof: the private code that ours overrides or reads is the very code that was read when ours was written (a digest of its
syntax tree; comments and blanks do not count), and the order of calls, on a real broker.
"""

import ast
import asyncio
import hashlib
import importlib
import inspect
import textwrap
from collections.abc import AsyncIterator, Callable, Iterable
from importlib.metadata import version
from typing import Any

import faust
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import ProducerFenced
from faust.transport.drivers import aiokafka as driver

from infra.kafka.transport import Chunk, CommittedOffset, ConsumerThread, OrchestratorApp

WITHIN_SECONDS = 60

# Module and name of what is relied on: the digest of its syntax tree, and what about it.
RELIED_ON = {
    "faust.app.base:App._new_transport": ("fa850ae0e84f", "the app asks it for the transport; ours returns an extended one"),
    "faust.app.base:App._create_directories": ("3b4a468dc084", "makes nothing but directories of tables"),
    "faust.app.base:App._on_partitions_revoked": (
        "ea71bb689b78",
        "stops the flow and clears the agents' queues before it waits for what is under way, and returns at once when the app stops",
    ),
    "faust.app.base:App._on_partitions_assigned": ("1d21ff587e62", "leads to perform_seek, and only then to fetching"),
    "faust.app.base:App._stop_consumer": ("c359d04c4484", "stops the fetcher, then waits for what is under way, before the consumer stops"),
    "faust.transport.consumer:Consumer.on_partitions_revoked": ("5fc60fe389d4", "returns when nothing is under way any more"),
    "faust.transport.consumer:Consumer.on_partitions_assigned": ("72c0cd6b61ff", "does nothing to offsets before its callback"),
    "faust.transport.consumer:Consumer.perform_seek": ("5d469bd9b458", "goes through seek_to_committed"),
    "faust.transport.consumer:Consumer.ack": (
        "841682c571fd",
        "keeps _unacked_messages and wakes up _waiting_for_ack; the rest serves commits",
    ),
    "faust.transport.consumer:Consumer.track_message": ("50811b9dfe65", "puts a message into _unacked_messages before an agent sees it"),
    "faust.transport.consumer:Consumer.wait_empty": (
        "db654fbf2e98",
        "waits until _unacked_messages is empty, and commits by `commit` alone",
    ),
    "faust.transport.consumer:Consumer.on_stop": ("1865626b5d75", "waits for what is under way"),
    "faust.transport.consumer:Consumer._commit_handler": ("dedf16c09514", "commits by `commit` alone"),
    "faust.transport.consumer:Consumer.getmany": (
        "ec44a14b6229",
        "drops what was fetched under an older generation, and calls _to_message for each",
    ),
    "faust.transport.consumer:Consumer._wait_next_records": ("76ecab68a00e", "is called for every poll, also with all partitions held"),
    "faust.transport.consumer:Consumer._drain_messages": ("534d036692b6", "polls in the main loop, one getmany after another"),
    "faust.transport.consumer:Consumer.on_buffer_full": ("5e7c907f8638", "takes a partition out of the fetches until on_buffer_drop"),
    "faust.transport.consumer:Consumer.on_buffer_drop": ("cd73cbad8da7", "puts it back"),
    "faust.transport.consumer:Consumer.verify_all_partitions_active": ("8487ee2cbf67", "only complains in the log"),
    "faust.transport.drivers.aiokafka:Consumer._to_message": ("a1b4080f1f22", "the order of ConsumerMessage's arguments"),
    "faust.transport.drivers.aiokafka:Consumer._new_consumer_thread": ("935107c5390d", "the consumer's thread is made here"),
    "faust.transport.drivers.aiokafka:ConsumerRebalanceListener.on_partitions_revoked": (
        "4b69827779fb",
        "marks the rebalance before anything else",
    ),
    "faust.transport.drivers.aiokafka:ConsumerRebalanceListener.on_partitions_assigned": (
        "45495597a41e",
        "sets app.consumer_generation_id before the callback",
    ),
    "faust.transport.drivers.aiokafka:AIOKafkaConsumerThread._create_worker_consumer": (
        "f65f5b363397",
        "makes the aiokafka consumer and sets _assignor; ours does the same with our settings",
    ),
    "faust.transport.drivers.aiokafka:AIOKafkaConsumerThread._fetch_records": (
        "01e3dc0c5361",
        "returns what fetched_records returns without giving way to other tasks in between",
    ),
    "faust.transport.drivers.aiokafka:AIOKafkaConsumerThread.getmany": ("ef61b8b9dc67", "calls _fetch_records in the thread's loop"),
    "faust.transport.drivers.aiokafka:AIOKafkaConsumerThread.seek_to_committed": ("d0559fb73345", "runs in the thread's loop"),
    "faust.transport.consumer:ConsumerThread.on_partitions_assigned": ("2a86ec9f145b", "runs the callback in the main loop"),
    "mode.threads:QueueServiceThread.call_thread": ("e40b679cb0f2", "runs a call in the thread's loop, gives its result"),
    "faust.agents.agent:Agent._execute_actor": ("52dac2ec1f6c", "an agent whose body ends has a finished actor_task"),
    "aiokafka.consumer.fetcher:Fetcher.fetched_records": (
        "ef4a86671698",
        "moves positions by getall and returns without giving way to other tasks in between",
    ),
    "aiokafka.consumer.fetcher:FetchResult.getall": (
        "cfc44f35ec35",
        "moves the position behind markers and aborted records, not only behind records",
    ),
    "aiokafka.consumer.fetcher:Fetcher._proc_fetch_request": ("0358258eb105", "sets lso and timestamp of a partition at every answer"),
    "aiokafka.consumer.subscription_state:TopicPartitionState.consumed_to": ("fdd33ceabceb", "sets the position"),
    "aiokafka:AIOKafkaProducer.start": ("ea7c66a3d465", "returns after InitProducerId: the previous owner is fenced"),
    "aiokafka:AIOKafkaProducer.send_offsets_to_transaction": (
        "cd0d41f2da8d",
        "takes a group's name and waits until the offsets are part of the transaction",
    ),
    "aiokafka:AIOKafkaProducer.commit_transaction": ("b888b0875433", "returns when the broker has confirmed"),
}


def resolve(name: str) -> Callable[..., Any]:
    """The function of a `module:name.name`."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    function: Callable[..., Any] = found
    return function


def digest(function: Callable[..., Any]) -> str:
    """What changes when the code changes, and not when its comments do."""
    # Background tasks of a mode service are objects that hold their function.
    plain = inspect.unwrap(getattr(function, "fun", function))
    tree = ast.parse(textwrap.dedent(inspect.getsource(plain)))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]


@pytest.mark.parametrize(("name", "pinned"), [("faust-streaming", "0.15.3"), ("aiokafka", "0.14.0"), ("mode-streaming", "0.7.1")])
def test_library_has_the_version_that_was_read(name: str, pinned: str) -> None:
    """The private code that ours extends was read in these versions; the lock file keeps them."""
    assert version(name) == pinned, f"{name} is {version(name)}: read again what RELIED_ON names before it goes into production"


@pytest.mark.parametrize("name", RELIED_ON)
def test_private_code_is_what_was_read(name: str) -> None:
    """Nothing that infra/kafka overrides or reads has changed since it was read."""
    known, relied_on = RELIED_ON[name]
    found = digest(resolve(name))
    assert found == known, (
        f"{name} has changed ({known} → {found}). infra/kafka relies on it: {relied_on}. Read it again, see that "
        "infra/kafka/transport.py and transactions.py still keep their invariants, then write the new digest here."
    )


def test_methods_that_are_overridden_exist_with_their_parameters() -> None:
    """What our classes override is still called so, with parameters of the same names."""
    for ours, theirs in ((ConsumerThread, driver.AIOKafkaConsumerThread), (OrchestratorApp, faust.App)):
        for name in ("_create_worker_consumer", "_fetch_records", "seek_to_committed") if ours is ConsumerThread else ("_new_transport",):
            wanted = list(inspect.signature(getattr(theirs, name)).parameters)
            assert list(inspect.signature(getattr(ours, name)).parameters) == wanted, name
    consumer = inspect.signature(driver.ConsumerMessage.__init__).parameters
    assert list(consumer)[1:13] == [
        "topic", "partition", "offset", "timestamp", "timestamp_type", "headers", "key", "value", "checksum", "serialized_key_size",
        "serialized_value_size", "tp",
    ]  # fmt: skip


class RecordingOwner:
    """Writes down what the transport tells it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.committed_at_assignment: list[int | None] = []
        self.owned: dict[TopicPartition, int] = {}

    async def on_assigned(self, partitions: Iterable[TopicPartition], committed: CommittedOffset) -> None:
        partitions = list(partitions)
        self.calls.append(f"assigned {len(partitions)}")
        self.committed_at_assignment += [await committed(partition) for partition in partitions]
        self.owned = dict.fromkeys(partitions, 0)

    def next_offsets(self) -> dict[TopicPartition, int]:
        return self.owned

    def standing(self) -> set[TopicPartition]:
        return set()

    def on_out_of_range(self, partition: TopicPartition) -> None:
        self.calls.append(f"out of range {partition}")

    def on_revoking(self) -> None:
        self.calls.append("revoking")

    async def on_revoked(self) -> None:
        self.calls.append("revoked")


class Bench:
    """A Faust app with our transport, one agent that acknowledges nothing by itself, and one topic."""

    def __init__(self, kafka: str, prefix: str) -> None:
        self.kafka = kafka
        self.group, self.topic = f"{prefix}group", f"{prefix}input"
        self.owner = RecordingOwner()
        self.events: list[Any] = []
        self.app = OrchestratorApp(
            self.group,
            owner=self.owner,
            client_options={"bootstrap_servers": kafka},
            chunk_records_max=100,
            broker=f"kafka://{kafka}",
            store="memory://",
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            table_standby_replicas=0,
            stream_wait_empty=True,
            broker_session_timeout=10.0,
            broker_heartbeat_interval=0.5,
            broker_rebalance_timeout=10.0,
            broker_max_poll_interval=60.0,
        )
        source = self.app.topic(self.topic, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")

        async def body(stream: faust.StreamT) -> AsyncIterator[None]:
            async for event in stream.noack().events():
                self.events.append(event)
                yield

        self.app.agent(source, name="agent")(body)

    async def create_topic(self, partitions: int) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(self.topic, partitions, 1)])
        finally:
            await admin.close()

    async def publish(self, values: list[bytes]) -> None:
        """All in one transaction: a marker follows."""
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka, transactional_id=f"{self.group}.test")
        await producer.start()
        try:
            async with producer.transaction():
                for value in values:
                    await producer.send_and_wait(self.topic, value, partition=0)
        finally:
            await producer.stop()

    async def stop(self) -> None:
        """Stops the app. Faust would wait for what is under way without a limit."""
        for event in self.events:
            event.ack()
        await self.app.stop()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_SECONDS):
            while not condition():
                await asyncio.sleep(0.02)


async def test_transport_hands_out_chunks_in_order_and_lets_go_after_they_are_done(
    kafka: str, unique_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Assignment: the owner first, then the seek. Chunks: the next offset lies behind the marker. Revocation: the owner drops, Faust
    waits for the chunk under way, then the owner lets go."""
    bench = Bench(kafka, unique_prefix)
    await bench.create_topic(2)
    await bench.publish([b"one", b"two"])
    calls = bench.owner.calls
    seek = ConsumerThread.seek_to_committed

    async def recording_seek(self: ConsumerThread) -> Any:
        calls.append("seek")
        return await seek(self)

    monkeypatch.setattr(ConsumerThread, "seek_to_committed", recording_seek)
    await bench.app.start()
    other = AIOKafkaConsumer(
        bootstrap_servers=kafka,
        group_id=bench.group,
        partition_assignment_strategy=[RoundRobinPartitionAssignor],
        rebalance_timeout_ms=10_000,
    )
    try:
        await bench.until(lambda: len(bench.events) == 1)
        first: Chunk = bench.events[0].message.value
        assert [record.value for record in first.records] == [b"one", b"two"]
        # Two records and the marker: the position, not the last offset plus one.
        assert first.next_offset == 3
        assert calls == ["revoking", "revoked", "assigned 2", "seek"]
        assert bench.owner.committed_at_assignment == [None, None]
        partition = TopicPartition(bench.topic, 0)
        assert bench.app.last_stable_offset(partition) == 3
        assert bench.app.fetched_at_ms(partition) is not None
        assert bench.app.dead_agents() == []
        assert await bench.app.idle_position(partition, 3, 3) is None

        calls.clear()
        other.subscribe([bench.topic])
        joining = asyncio.create_task(other.start())
        await bench.until(lambda: "revoking" in calls)
        await asyncio.sleep(0.5)
        # Faust may seek here, when a fetch ends while its flow is stopped; nothing is handed out until the next assignment.
        assert [call for call in calls if call != "seek"] == ["revoking"], "Faust did not wait for the chunk under way"
        bench.events[0].ack()
        await bench.until(lambda: "assigned 1" in calls and calls[-1] == "seek")
        assert [call for call in calls if call != "seek"] == ["revoking", "revoked", "assigned 1"]
        await joining
        await other.stop()
        # Nothing was committed: the chunk comes again after the rebalances, and its count begins anew.
        await bench.until(lambda: len(bench.events) >= 2 and calls[-1] == "seek" and "assigned 2" in calls)
        again: Chunk = bench.events[-1].message.value
        assert ([record.offset for record in again.records], again.next_offset) == ([0, 1], 3)
    finally:
        async with asyncio.timeout(WITHIN_SECONDS):
            await other.stop()
            await bench.stop()


async def test_stop_lets_go_after_what_is_under_way_is_done(kafka: str, unique_prefix: str) -> None:
    """A stop: the owner drops, Faust waits for the chunk under way, then the owner lets go."""
    bench = Bench(kafka, unique_prefix)
    await bench.create_topic(1)
    await bench.publish([b"one"])
    calls = bench.owner.calls
    await bench.app.start()
    try:
        await bench.until(lambda: len(bench.events) == 1)
        calls.clear()
        stopping = asyncio.create_task(bench.app.stop())
        # Another wait before this one would be Faust's own; it comes first, and the owner is told when it is over.
        await asyncio.sleep(0.5)
        assert "revoked" not in calls
        bench.events[0].ack()
        await asyncio.wait_for(stopping, WITHIN_SECONDS)
        assert calls == ["revoking", "revoked"]
    finally:
        async with asyncio.timeout(WITHIN_SECONDS):
            await bench.stop()


async def test_starting_a_producer_fences_the_one_before_and_ends_its_transaction(kafka: str, unique_prefix: str) -> None:
    """After `start` of a second producer the first can commit nothing, and the group's offset is what was committed before."""
    bench = Bench(kafka, unique_prefix)
    await bench.create_topic(1)
    partition = TopicPartition(bench.topic, 0)
    first, second = (AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=f"{bench.group}.fenced") for _ in range(2))
    await first.start()
    await first.begin_transaction()
    await first.send_and_wait(bench.topic, b"never seen", partition=0)
    await first.send_offsets_to_transaction({partition: 7}, bench.group)
    await second.start()
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=bench.group, isolation_level="read_committed", enable_auto_commit=False)
    await consumer.start()
    try:
        assert await consumer.committed(partition) is None
        with pytest.raises(ProducerFenced):
            await first.commit_transaction()
        await second.begin_transaction()
        await second.send_offsets_to_transaction({partition: 9}, bench.group)
        await second.commit_transaction()
        # The commit is confirmed before its offset can be read; nobody may seek by what it reads meanwhile.
        async with asyncio.timeout(WITHIN_SECONDS):
            while await consumer.committed(partition) is None:
                await asyncio.sleep(0.02)
        assert await consumer.committed(partition) == 9
    finally:
        await consumer.stop()
        await first.stop()
        await second.stop()
