"""Gathers the evidence that verification/promises judges: topics, database, offsets, and the exchange's log where there is one."""

import asyncio
from pathlib import Path

from infra.settings import Settings
from schemas.topics import Topics
from verification.evidence.database import read_database, with_positions
from verification.evidence.exchange_log import read_books
from verification.evidence.topics import TopicReader, read_offsets, read_topics
from verification.promises.answers import Requested
from verification.promises.books import ExchangeBooks
from verification.promises.promises import Evidence
from verification.promises.trail import TopicTrail

NO_LOG = "the exchange's own log is not at hand"


async def gather_evidence(settings: Settings, bootstrap_servers: str, database_url: str, exchange_log: Path | None) -> Evidence:
    """Reads everything. Raises Retryable when broker or database is out of reach, LogDamaged or FileNotFoundError for the log."""
    topics = Topics(settings.topic_prefix)
    reader = TopicReader(topics)
    await read_topics(settings, bootstrap_servers, reader.takes)
    offsets = await read_offsets(settings, bootstrap_servers)
    database = await read_database(database_url, settings.consumer_group)
    books: ExchangeBooks | None = None if exchange_log is None else await asyncio.to_thread(read_books, exchange_log)
    partitions = with_positions(offsets, database)
    return Evidence(
        answers=reader.answers,
        requested=Requested(
            orders=database.orders,
            pending_cancels=database.pending_cancels,
            read_to={row.partition: row.committed_offset or 0 for row in partitions if row.topic == topics.requests},
            answers=database.answers,
            running=database.running,
            withdrawals=database.withdrawals,
        ),
        dead_letters=reader.dead_letters,
        snapshots=reader.snapshots,
        topic_trail=reader.trail,
        database_trail=database.trail,
        accounts=database.accounts,
        partitions=partitions,
        books=books,
        books_missing_because="" if books is not None else NO_LOG,
        deposited=database.deposited,
        sessions=database.sessions,
        snapshots_removed=database.snapshots_removed,
    )


async def gather_topic_trail(settings: Settings, bootstrap_servers: str) -> TopicTrail:
    """Reads `trade.audit` alone."""
    topics = Topics(settings.topic_prefix)
    reader = TopicReader(topics)
    await read_topics(settings, bootstrap_servers, {topics.audit: reader.takes[topics.audit]})
    return reader.trail
