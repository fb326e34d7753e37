"""Faust, extended where its own exactly-once is none: micro-batches as events, a fence before anything is read, no commits of its own.

Faust 0.15.3 is pinned: the methods overridden here are private, and tests/integration/test_faust_contract.py checks each.

Invariants:
1. One Faust event is one chunk: records of one partition, in order, with the offset at which the next chunk begins.
2. On assignment the owner fences and recovers before `super()` seeks to where the owner stands: nothing is read under an older claim.
3. On revocation the owner drops what has not begun, Faust waits for what has, and only then the owner lets go.
4. Faust commits nothing: offsets are committed with the outputs, by `infra.kafka.transactions`.
5. An offset that the broker does not have is never replaced by another one: the partition is paused and its owner told.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

import faust
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import NoOffsetForPartitionError, OffsetOutOfRangeError
from faust.transport.drivers import aiokafka as driver
from faust.types.tuples import TP
from mode.utils.futures import notify

CommittedOffset = Callable[[TopicPartition], Awaitable[int | None]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Records of one partition. `start_offset` is where the chunk before ended, or where the partition was sought to."""

    partition: TopicPartition
    records: tuple[ConsumerRecord, ...]
    start_offset: int | None
    next_offset: int


class PartitionOwner(Protocol):
    """What the worker does when input partitions come and go."""

    async def on_assigned(self, partitions: Iterable[TopicPartition], committed: CommittedOffset) -> None:
        """Fences and recovers the partitions. What it raises ends the worker."""

    def next_offsets(self) -> Mapping[TopicPartition, int]:
        """Where each partition that it owns goes on; known when `on_assigned` has returned."""

    def standing(self) -> set[TopicPartition]:
        """Those of its partitions whose next record is missing: they are not to be fetched."""

    def on_out_of_range(self, partition: TopicPartition) -> None:
        """Learns that the broker has no record where the consumer stands; nothing more of the partition is fetched until `seek`."""

    def on_revoking(self) -> None:
        """Drops everything that has not begun."""

    async def on_revoked(self) -> None:
        """Lets go of all partitions; nothing is under way any more."""


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread with our consumer in it, and with positions that are read where they cannot change meanwhile."""

    def _create_worker_consumer(self, transport: driver.Transport) -> AIOKafkaConsumer:
        conf = self.app.conf
        # Where each partition was sought to, and where the newest chunk of it ended.
        self._sought: dict[TopicPartition, int] = {}
        self._next_offsets: dict[TopicPartition, int] = {}
        self._assignor = RoundRobinPartitionAssignor
        return AIOKafkaConsumer(
            **transport.client_options,
            client_id=conf.broker_client_id,
            group_id=conf.id,
            partition_assignment_strategy=[RoundRobinPartitionAssignor],
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_poll_records=transport.chunk_records_max,
            max_poll_interval_ms=int(conf.broker_max_poll_interval * 1000),
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            fetch_max_wait_ms=500,
            retry_backoff_ms=50,
            metadata_max_age_ms=30_000,
        )

    async def _fetch_records(
        self,
        consumer: AIOKafkaConsumer,
        active_partitions: set[TP],
        timeout: float | None = None,  # noqa: ASYNC109 — Faust's signature
        max_records: int | None = None,
    ) -> dict[TP, list[Chunk]]:
        try:
            fetched = await super()._fetch_records(consumer, active_partitions, timeout=timeout, max_records=max_records)
        except OffsetOutOfRangeError as error:
            # aiokafka raises it alone, never in place of records that it has already handed out.
            for partition, offset in error.args[0].items():
                self._pause_out_of_range(consumer, partition, offset)
            return {}
        except NoOffsetForPartitionError as error:
            # A fetch that began before a rebalance meets a partition of the new assignment that is not sought yet, and of which the broker
            # does not tell an offset (the first one is committed by its owner a moment before). The seek is under way and decides.
            if error.args[0] not in self._sought:
                raise
            return {}
        chunks: dict[TP, list[Chunk]] = {}
        for partition, records in fetched.items():
            # aiokafka has moved the position before it returned, without giving way since: it is where the next chunk begins, behind any
            # transaction markers. Committing it, and not the last offset plus one, is what lets lag tools see zero.
            next_offset = self._position(consumer, partition)
            chunks[partition] = [Chunk(partition, tuple(records), self._next_offsets.get(partition), next_offset)]
            self._next_offsets[partition] = next_offset
        return chunks

    def _pause_out_of_range(self, consumer: AIOKafkaConsumer, partition: TopicPartition, offset: int) -> None:
        subscription = consumer._subscription.subscription
        state = subscription.assignment.state_value(partition) if subscription and subscription.assignment else None
        # An answer about an offset that was left since says nothing.
        if state is None or not state.has_valid_position or int(state.position) != offset or partition not in self._sought:
            return
        consumer.pause(partition)
        owner: PartitionOwner = self.transport.owner
        self.app.loop.call_soon_threadsafe(owner.on_out_of_range, partition)

    @staticmethod
    def _position(consumer: AIOKafkaConsumer, partition: TopicPartition) -> int:
        return int(consumer._subscription.subscription.assignment.state_value(partition).position)

    async def _idle_position(self, partition: TopicPartition, handed_out: int, beyond: int) -> int | None:
        """The position when it is past `beyond` and nothing was handed out since `handed_out`; runs in the consumer's own loop.

        A negative `handed_out` means since the seek.
        """
        subscription = self._ensure_consumer()._subscription.subscription
        state = subscription.assignment.state_value(partition) if subscription and subscription.assignment else None
        since = self._sought.get(partition) if handed_out < 0 else handed_out
        if state is None or not state.has_valid_position or since is None or self._next_offsets.get(partition) != since:
            return None
        position = int(state.position)
        return position if position > beyond else None

    async def idle_position(self, partition: TopicPartition, handed_out: int, beyond: int) -> int | None:
        result: int | None = await self.call_thread(self._idle_position, partition, handed_out, beyond)
        return result

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seeks every partition to where its owner stands, and leaves those alone that have none.

        Not to what the broker says is committed: it confirms a transaction before the offset in it can be read, and what a new owner has
        just published would be read again.
        """
        owner: PartitionOwner = self.transport.owner
        offsets: Mapping[TP, int] = await self.call_thread(self._seek, owner.next_offsets(), owner.standing())
        return offsets

    async def _seek(self, next_offsets: Mapping[TopicPartition, int], standing: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        # Counting begins anew here. A partition without an owner is counted again from its next assignment on.
        self._sought.clear()
        self._next_offsets.clear()
        offsets = {partition: offset for partition, offset in next_offsets.items() if partition in assigned}
        for partition, offset in offsets.items():
            # No waiting between a seek and its note: a fetch sees both or neither.
            consumer.seek(partition, offset)
            self._sought[partition] = self._next_offsets[partition] = offset
            if partition in standing:
                consumer.pause(partition)
        return offsets

    async def seek(self, partition: TopicPartition, offset: int) -> None:
        """Lets a paused partition go on at an offset."""
        await self.call_thread(self._seek_one, partition, offset)

    async def _seek_one(self, partition: TopicPartition, offset: int) -> None:
        consumer = self._ensure_consumer()
        # It may have been revoked meanwhile; its next owner seeks for itself.
        if partition in consumer.assignment():
            consumer.seek(partition, offset)
            self._sought[partition] = self._next_offsets[partition] = offset
            consumer.resume(partition)

    async def log_range(self, partition: TopicPartition) -> tuple[int, int]:
        """Where the log of a partition begins, and the end of what can be read of it. Raises what aiokafka raises."""
        begin_and_end: tuple[int, int] = await self.call_thread(self._log_range, partition)
        return begin_and_end

    async def _log_range(self, partition: TopicPartition) -> tuple[int, int]:
        consumer = self._ensure_consumer()
        begins = await consumer.beginning_offsets([partition])
        ends = await consumer.end_offsets([partition])
        return begins[partition], ends[partition]

    async def committed(self, partition: TopicPartition) -> int | None:
        """The group's committed offset as the broker has it now."""
        offset: int | None = await self.call_thread(self._ensure_consumer().committed, partition)
        return offset


class Consumer(driver.Consumer):
    """Faust's consumer: hands out chunks, leaves offsets alone, and tells the owner about every rebalance in the right order."""

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _to_message(self, tp: TP, record: Chunk) -> Any:
        last = record.records[-1]
        return driver.ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000,
            last.timestamp_type,
            [],
            None,
            record,
            None,
            -1,
            -1,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    def ack(self, message: Any) -> bool:
        """Marks a chunk as done, so that a rebalance waits for what is under way and for nothing else."""
        message.acked = True
        self._unacked_messages.discard(message)
        notify(self._waiting_for_ack)
        return True

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commits nothing: offsets are committed together with the outputs."""
        return False

    async def _wait_next_records(self, timeout: float) -> Any:  # noqa: ASYNC109 — Faust's signature
        # Counts as a poll also where every partition is held back: the loop is alive.
        self.app.polled_at = monotonic()
        return await super()._wait_next_records(timeout)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Keeps no record of gaps: they matter only to commits that are not made here."""

    async def verify_all_partitions_active(self) -> None:
        """Leaves progress to our own watchdog, which knows what an idle partition is."""

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        owner: PartitionOwner = self.transport.owner
        owner.on_revoking()
        await super().on_partitions_revoked(revoked)
        await owner.on_revoked()

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        owner: PartitionOwner = self.transport.owner
        await owner.on_assigned([TopicPartition(tp.topic, tp.partition) for tp in assigned], self._thread.committed)
        await super().on_partitions_assigned(assigned, generation_id)

    async def on_stop(self) -> None:
        owner: PartitionOwner = self.transport.owner
        owner.on_revoking()
        await super().on_stop()
        await owner.on_revoked()


class Transport(driver.Transport):
    """Faust's transport, with the owner of its partitions."""

    Consumer = Consumer
    owner: PartitionOwner
    client_options: dict[str, Any]
    chunk_records_max: int


class OrchestratorApp(faust.App):
    """A Faust app whose transport is ours. Made in the composition root, never at module level."""

    def __init__(
        self, *args: Any, owner: PartitionOwner, client_options: dict[str, Any], chunk_records_max: int, **kwargs: Any
    ) -> None:
        self._owner = owner
        self._client_options = client_options
        self._chunk_records_max = chunk_records_max
        self.polled_at = monotonic()
        super().__init__(*args, **kwargs)

    def _new_transport(self) -> Transport:
        transport = Transport(self.conf.broker_consumer, self)
        transport.owner = self._owner
        transport.client_options = self._client_options
        transport.chunk_records_max = self._chunk_records_max
        return transport

    def hold_partition(self, partition: TopicPartition) -> None:
        """Fetches no more of a partition until `resume_partition`; what was fetched still arrives."""
        self.consumer.on_buffer_full(TP(partition.topic, partition.partition))

    def resume_partition(self, partition: TopicPartition) -> None:
        self.consumer.on_buffer_drop(TP(partition.topic, partition.partition))

    async def idle_position(self, partition: TopicPartition, handed_out: int, beyond: int) -> int | None:
        """Where an idle partition stands, when that is past `beyond` and no record was handed out since `handed_out`; else None.

        Only markers of transactions and aborted records can lie between.
        """
        position: int | None = await self.consumer._thread.idle_position(partition, handed_out, beyond)
        return position

    async def seek(self, partition: TopicPartition, offset: int) -> None:
        """Lets a partition that was paused, because the broker has no record where it stood, go on at an offset."""
        await self.consumer._thread.seek(partition, offset)

    async def log_range(self, partition: TopicPartition) -> tuple[int, int]:
        """Where a partition's log begins, and the end of what can be read of it. Raises what aiokafka raises."""
        begin_and_end: tuple[int, int] = await self.consumer._thread.log_range(partition)
        return begin_and_end

    def loops(self) -> list[asyncio.AbstractEventLoop]:
        """The event loops that this app runs in, its consumer's own included."""
        consumer = self._consumer
        return [self.loop] if consumer is None else [self.loop, consumer._thread.thread_loop]

    def dead_agents(self) -> list[str]:
        """Agents that were started and read their topic no more."""
        return [
            agent.name
            for agent in self.agents.values()
            if agent.started and (agent.should_stop or any(actor.actor_task.done() for actor in agent._actors))
        ]

    def fetched_at_ms(self, partition: TopicPartition) -> int | None:
        """The time of the broker's newest answer about an assigned partition, with records or without; None before the first."""
        state = self._state_of(partition)
        return None if state is None else state.timestamp

    def last_stable_offset(self, partition: TopicPartition) -> int | None:
        """The end of what a read_committed consumer can see of a partition, as of the last fetch; None when it is not known."""
        state = self._state_of(partition)
        return None if state is None else state.lso

    def _state_of(self, partition: TopicPartition) -> Any | None:
        consumer = self.consumer._thread._consumer
        subscription = consumer._subscription.subscription if consumer is not None else None
        if subscription is None or subscription.assignment is None or partition not in subscription.assignment.tps:
            return None
        return subscription.assignment.state_value(partition)

    def _create_directories(self) -> None:
        """Makes none: there are no tables on disk, and what a killed worker leaves behind nobody would remove."""
