"""The one database transaction of a step: fence, lock, load, store.

Invariants:
1. The first statement of every step locks the row of its input partition and compares the fencing epoch: a worker that lost the partition
   writes nothing (Fenced).
2. `next_offset` moves from exactly where this worker last left it. The same row keeps what the batch publishes, so that whoever comes
   next can publish it when this worker dies before Kafka has it.
3. Every writer of a user's rows holds the lock of the user's audit chain, taken in sorted order: no circle of waiting, and what is read
   after the lock is the newest.
4. One statement writes a batch (infra/postgres/storing).

Start with `StepTransaction`.
"""

import zlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
import msgpack

from infra.postgres.database import Connection, Database, InputPartition
from infra.postgres.rows import Columns, cancel_of, claim_of, columns_of, order_of
from infra.postgres.storing import store
from infra.postgres.transfers import stored_transfers
from pipeline.books.audit import ChainHead
from pipeline.books.changes import Changes, Claim, OutputRecord, PendingCancel
from pipeline.books.ledger import AccountKey, Balance, Transfer
from pipeline.model.conduct import Conduct
from pipeline.model.invariants import Fenced, InvariantViolation, MustStop
from pipeline.model.order import Order
from pipeline.model.tracked import Tracked
from schemas.audit import GENESIS_HASH


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the database is with an input partition: the newest batch took it from `base_offset` to `next_offset` (-1: none yet).

    `outputs` is what that batch publishes; `carried` is what an unfinished step has stored for the next batch to publish.
    """

    base_offset: int
    next_offset: int
    outputs: tuple[OutputRecord, ...]
    carried: tuple[OutputRecord, ...]


def pack(outputs: Sequence[OutputRecord]) -> bytes | None:
    """Output records as bytes; None for none."""
    if not outputs:
        return None
    return zlib.compress(msgpack.packb([(record.topic, record.key, record.value, record.headers) for record in outputs]), 1)


def unpack(packed: bytes | None) -> tuple[OutputRecord, ...]:
    """The inverse of `pack`."""
    if packed is None:
        return ()
    rows = msgpack.unpackb(zlib.decompress(packed))
    return tuple(OutputRecord(topic, key, value, tuple((name, text) for name, text in headers)) for topic, key, value, headers in rows)


async def lock_chains(connection: Connection, accounts: Sequence[str]) -> dict[str, ChainHead]:
    """Locks the audit chains of these accounts in the database's sort order, new ones at genesis; returns their heads.

    New chains are begun before the first lock is taken: whoever begins one holds it from then on, so that beginning it between two locks
    would take it out of order, and two steps could wait for each other.
    """
    rows = await _lock_rows(connection, accounts)
    return {row["account"]: ChainHead(row["seq"], row["hash"]) for row in rows}


async def _lock_rows(connection: Connection, accounts: Sequence[str]) -> list[asyncpg.Record]:
    await connection.execute(
        """
        INSERT INTO audit_chains (account, seq, hash) SELECT given.account, 0, $2 FROM unnest($1::text[]) AS given (account)
        WHERE NOT EXISTS (SELECT FROM audit_chains WHERE audit_chains.account = given.account) ORDER BY given.account
        ON CONFLICT DO NOTHING
        """,
        accounts,
        GENESIS_HASH,
    )
    rows: list[asyncpg.Record] = await connection.fetch(
        """
        SELECT account, seq, hash, failures_in_row, failed_at, message_clock FROM audit_chains WHERE account = ANY($1::text[])
        ORDER BY account FOR UPDATE
        """,
        accounts,
    )
    return rows


@dataclass(frozen=True, slots=True)
class LockedAccounts:
    """What the accounts' lock rows hold: the heads of their audit chains, and how they behave."""

    heads: dict[str, ChainHead]
    conduct: dict[str, Conduct]


class StepTransaction:
    """An open database transaction that holds its input partition's row. Made by `open_step`."""

    def __init__(self, connection: Connection, partition: InputPartition, progress: Progress) -> None:
        self._connection = connection
        self._partition = partition
        self.progress = progress

    @property
    def connection(self) -> Connection:
        """For what reads inside the step (infra/postgres/gate)."""
        return self._connection

    async def lock_accounts(self, accounts: Iterable[str]) -> LockedAccounts:
        """Takes the locks of these accounts, in sorted order, and returns what their rows hold."""
        rows = await _lock_rows(self._connection, sorted(set(accounts)))
        return LockedAccounts(
            heads={row["account"]: ChainHead(row["seq"], row["hash"]) for row in rows},
            conduct={row["account"]: Conduct(row["failures_in_row"], row["failed_at"], row["message_clock"]) for row in rows},
        )

    async def balances(self, user_ids: Sequence[str]) -> dict[AccountKey, Balance]:
        rows = await self._connection.fetch(
            """
            SELECT user_id, exchange, book, asset, posted, pending, cost_quantity, cost_usd FROM balances WHERE user_id = ANY($1::text[])
            """,
            user_ids,
        )
        return {AccountKey(*row[:4]): Balance(*row[4:]) for row in map(tuple, rows)}

    async def transfers(self, transfer_ids: Iterable[str]) -> dict[str, Transfer]:
        """Those of these transfers that an earlier batch has applied: `Ledger.known`, where a batch may meet one again."""
        return await stored_transfers(self._connection, transfer_ids)

    async def claims(self, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Claim]:
        """The claims of these keys that are not purged yet; whether one has expired depends on the record that asks (pipeline.intake)."""
        rows = await self._connection.fetch(
            """
            SELECT claims.* FROM unnest($1::text[], $2::text[]) AS wanted (user_id, idempotency_key)
            JOIN claims ON claims.user_id = wanted.user_id AND claims.idempotency_key = wanted.idempotency_key
            """,
            *columns_of(sorted(set(keys)), 2),
        )
        return {(row["user_id"], row["idempotency_key"]): claim_of(row) for row in rows}

    async def orders(self, order_ids: Sequence[str]) -> Tracked[Order]:
        """These orders, by id."""
        if not order_ids:
            return Tracked()
        rows = await self._connection.fetch("SELECT * FROM orders WHERE order_id = ANY($1::text[])", order_ids)
        return Tracked({row["order_id"]: order_of(row) for row in rows})

    async def users_of(self, columns: Columns[Any], ids: Sequence[str]) -> dict[str, str]:
        """Whose these rows are: what never changes of them, and may be read before the user's lock."""
        if not ids:
            return {}
        sql = f"SELECT {columns.key}, user_id FROM {columns.table} WHERE {columns.key} = ANY($1::text[])"  # noqa: S608 — literals
        return {row[columns.key]: row["user_id"] for row in await self._connection.fetch(sql, ids)}

    async def unpublished(self, columns: Columns[Any], ids: Sequence[str], orders_topic_prefix: str) -> set[str]:
        """Those orders or withdrawals whose newest change another input partition has stored and not published yet, as far as the database
        knows.

        The accounts' locks put the words about an order in order in the database; nothing does so between the Kafka transactions of two
        partitions. A word about one of these orders, published now, could be overtaken by the older one. A batch and its orders carry the
        same time, which is how they are matched: exactly for most partitions, and from its first part on for an execution batch, which has
        two.
        """
        if not ids:
            return set()
        rows = await self._connection.fetch(
            f"""
            SELECT one.{columns.key} FROM {columns.table} AS one JOIN input_partitions AS stored ON
                (stored.updated_at = one.updated_at
                 OR (stored.topic = $2 || one.exchange AND stored.partition = one.work_partition AND stored.updated_at <= one.updated_at))
            WHERE one.{columns.key} = ANY($1::text[]) AND stored.consumer_group = $3
              AND (stored.base_offset <> stored.next_offset OR stored.carried IS NOT NULL)
              AND (stored.topic, stored.partition) <> ($4, $5)
            """,  # noqa: S608 — literals
            ids,
            orders_topic_prefix,
            *self._row,
        )
        return {row[columns.key] for row in rows}

    async def pending_cancels(self, order_ids: Sequence[str]) -> dict[str, list[PendingCancel]]:
        rows = await self._connection.fetch(
            "SELECT * FROM cancels WHERE order_id = ANY($1::text[]) AND NOT ended ORDER BY order_id, requested_at", order_ids
        )
        cancels: dict[str, list[PendingCancel]] = {}
        for row in rows:
            cancels.setdefault(row["order_id"], []).append(cancel_of(row))
        return cancels

    async def store(self, changes: Changes, claims_older_than: datetime) -> None:
        """Writes everything a batch decided. Raises InvariantViolation when the database disagrees with what was loaded."""
        await store(self._connection, changes, claims_older_than, str(self._partition))

    async def carry(self, outputs: Sequence[OutputRecord], now: datetime) -> None:
        """Keeps outputs of an unfinished step, to be published with the batch that ends it."""
        if not outputs:
            return
        await self._connection.execute(
            """
            UPDATE input_partitions SET carried = $4, updated_at = CASE WHEN carried IS NULL THEN $5 ELSE updated_at END
            WHERE consumer_group = $1 AND topic = $2 AND partition = $3
            """,
            *self._row,
            pack([*self.progress.carried, *outputs]),
            now,
        )

    async def finish(self, next_offset: int, outputs: Sequence[OutputRecord], now: datetime) -> tuple[OutputRecord, ...]:
        """Moves the partition on to `next_offset`; returns all that the batch publishes, what was carried first."""
        everything = (*self.progress.carried, *outputs)
        await self._expect(
            1,
            """
            UPDATE input_partitions SET base_offset = next_offset, next_offset = $4, outputs = $5, carried = NULL,
                updated_at = CASE WHEN carried IS NULL THEN $6 ELSE updated_at END
            WHERE consumer_group = $1 AND topic = $2 AND partition = $3 AND fencing_epoch = $7
            """,
            *self._row,
            next_offset,
            pack(everything),
            now,
            self._partition.fencing_epoch,
        )
        return everything

    async def stored_outputs(self) -> tuple[OutputRecord, ...]:
        """What the newest stored batch publishes."""
        packed = await self._connection.fetchval(
            "SELECT outputs FROM input_partitions WHERE consumer_group = $1 AND topic = $2 AND partition = $3", *self._row
        )
        return unpack(packed)

    @property
    def _row(self) -> tuple[str, str, int]:
        return self._partition.consumer_group, self._partition.topic, self._partition.partition

    async def _expect(self, rows: int, sql: str, *arguments: object) -> None:
        status = await self._connection.execute(sql, *arguments)
        written = int(status.rsplit(" ", 1)[-1])
        if written != rows:
            table = sql.split(" ", 3)[1:3]
            raise InvariantViolation(
                f"{written} rows were written where {rows} were meant ({' '.join(table)}, {self._partition}). The batch was rolled back, "
                "no funds were moved. This is a defect: run `orchestrator verify` and report it with this line."
            )


async def take_partition(
    database: Database, consumer_group: str, topic: str, partition: int, now: datetime
) -> tuple[InputPartition, Progress]:
    """Makes this worker the owner: from now on every older owner's step fails. Waits for a step that is under way.

    Call it after Kafka has fenced the older owner's producer: a step that the old owner still stores cannot be published by it any
    more, and is found here.

    The epoch is drawn from a sequence of the whole database, by a trigger on the row: an order keeps the epoch that it was sent under,
    and an epoch that two partitions could share would let the second take the first's order for its own.
    """
    async with database.connection() as connection:
        row = await connection.fetchrow(
            """
            INSERT INTO input_partitions (consumer_group, topic, partition, fencing_epoch, base_offset, next_offset, updated_at)
            VALUES ($1, $2, $3, nextval('fencing_epochs'), -1, -1, $4)
            ON CONFLICT (consumer_group, topic, partition) DO UPDATE SET fencing_epoch = EXCLUDED.fencing_epoch
            RETURNING fencing_epoch, base_offset, next_offset, outputs, carried
            """,
            consumer_group,
            topic,
            partition,
            now,
        )
    if row is None:
        raise InvariantViolation(f"input partition {topic}/{partition} could not be taken over; nothing was written.")
    return InputPartition(consumer_group, topic, partition, row["fencing_epoch"]), _progress_of(row)


@asynccontextmanager
async def open_step(database: Database, partition: InputPartition) -> AsyncIterator[StepTransaction]:
    """Opens the step's transaction and checks the fencing epoch; commits when the block ends well.

    Raises Fenced when another worker owns the partition, and what `Database.transaction` raises. After Retryable the commit's outcome is
    unknown: look at `progress` of the next step.
    """
    async with database.transaction(str(partition)) as connection:
        row = await connection.fetchrow(
            """
            SELECT fencing_epoch, base_offset, next_offset, carried FROM input_partitions
            WHERE consumer_group = $1 AND topic = $2 AND partition = $3 FOR UPDATE
            """,
            partition.consumer_group,
            partition.topic,
            partition.partition,
        )
        check_fencing_epoch(partition, row["fencing_epoch"] if row is not None else 0)
        if row is None:
            raise MustStop(f"input partition {partition} has no row any more; nothing was written.")
        yield StepTransaction(connection, partition, _progress_of(row, outputs=False))


def check_fencing_epoch(partition: InputPartition, stored_epoch: int) -> None:
    """Raises Fenced when the database knows a newer owner of the partition than this worker."""
    if stored_epoch != partition.fencing_epoch:
        raise Fenced(
            f"another worker has taken over {partition} (fencing epoch {stored_epoch}, ours was {partition.fencing_epoch}). "
            "Nothing was written here; the other worker finishes what was under way."
        )


def _progress_of(row: asyncpg.Record, *, outputs: bool = True) -> Progress:
    # Unpacking the newest outputs is needed by a new owner only.
    return Progress(row["base_offset"], row["next_offset"], unpack(row["outputs"]) if outputs else (), unpack(row["carried"]))
