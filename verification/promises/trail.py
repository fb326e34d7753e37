"""Trail: the audit chains in the database and on the topic, each alone and against one another.

Invariants that are checked (schemas/audit states them for readers of the topic):
1. Per account `seq` counts 1, 2, 3 … without a gap, `prev_hash` is the hash before, and `hash` is right: in the database, and from the
   topic alone.
2. The record's key is the event's id, and one key never stands for two events: else compaction would remove history.
3. Topic and database have the same events, byte by byte. A topic may repeat one.
4. Per order each event begins with the status with which the one before ended.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise

import orjson

from pipeline.books.audit import canonical
from schemas.audit import GENESIS_HASH, ConfirmedBy, EventType
from verification.promises.finding import Check, Finding


@dataclass(frozen=True, slots=True)
class Link:
    """One event as far as its chain is concerned. `digest` is the SHA-256 of the record value; `is_right` whether its own hash is."""

    event_id: str
    account: str
    seq: int
    prev_hash: str
    hash: str
    digest: bytes
    is_right: bool


@dataclass(frozen=True, slots=True)
class StatusStep:
    """What one event says of its order's status; None where it says nothing."""

    account: str
    seq: int
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Told:
    """What an event tells beside its link: its order, its status step, the session that confirmed the order's acceptance, and the session
    that begins with it."""

    order_id: str | None
    step: StatusStep
    confirmed_by: str | None
    begun: str | None


def link_of(value: bytes) -> tuple[Link, Told]:
    """Reads a value from `trade.audit`. Raises ValueError for what is no event."""
    event = orjson.loads(value)
    if not isinstance(event, dict):
        raise ValueError("not an object")  # noqa: TRY004 — a wrong value of a record, not a wrong call
    stated = str(event.pop("hash", ""))
    account, seq = str(event.get("account")), int(event.get("seq") or 0)
    is_right = sha256(canonical(event)).hexdigest() == stated
    link = Link(str(event.get("event_id")), account, seq, str(event.get("prev_hash")), stated, sha256(value).digest(), is_right)
    step = StatusStep(account, seq, event.get("status_before"), event.get("status_after"))
    event_type, session_id = event.get("event_type"), event.get("session_id")
    is_confirmation = event_type == EventType.ORDER_ACCEPTED and event.get("confirmed_by") == ConfirmedBy.SESSION
    begun = session_id if event_type == EventType.SESSION_STARTED else None
    return link, Told(event.get("order_id"), step, session_id if is_confirmation else None, begun)


@dataclass(slots=True)
class TopicTrail:
    """`trade.audit` as read from its beginning. A key that comes again with other bytes is kept with both."""

    links: dict[str, Link] = field(default_factory=dict)
    records: int = 0
    unreadable: list[str] = field(default_factory=list)
    # Keys with more than one event, and keys that are not their event's id.
    reused_keys: dict[str, set[str]] = field(default_factory=dict)
    wrong_keys: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    _event_of_key: dict[str, str] = field(default_factory=dict)

    def add(self, key: bytes | None, value: bytes | None, where: str) -> None:
        self.records += 1
        try:
            link, _ = link_of(value or b"")
        except ValueError as error:
            self.unreadable.append(f"{where}: {error}")
            return
        name = (key or b"").decode(errors="replace")
        if name != link.event_id:
            self.wrong_keys.append(f"{where}: key {name!r} carries event {link.event_id}")
        first = self._event_of_key.setdefault(name, link.event_id)
        if first != link.event_id:
            self.reused_keys.setdefault(name, {first}).add(link.event_id)
        known = self.links.setdefault(link.event_id, link)
        if known.digest != link.digest:
            self.differing.append(f"{where}: event {link.event_id} came again with other bytes")


@dataclass(slots=True)
class DatabaseTrail:
    """The table `audit_events`, with the chain heads as stored. Steps are per order, in the order of `seq`."""

    links: dict[str, Link] = field(default_factory=dict)
    steps: dict[str, list[StatusStep]] = field(default_factory=dict)
    # By session: the orders whose acceptance it confirmed since it last began.
    confirmed: dict[str, list[str]] = field(default_factory=dict)
    wrong_rows: list[str] = field(default_factory=list)
    heads: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, account: str, seq: int, event_id: str, hash_: str, body: str) -> None:
        """One row; rows of an account must come in the order of `seq`."""
        try:
            link, told = link_of(body.encode()[:-1] + b',"hash":"' + hash_.encode() + b'"}')
        except ValueError as error:
            self.wrong_rows.append(f"event {event_id}: {error}")
            return
        if (link.event_id, link.account, link.seq) != (event_id, account, seq):
            self.wrong_rows.append(f"row {account}:{seq} ({event_id}) holds event {link.event_id} of {link.account}:{link.seq}")
        self.links[link.event_id] = link
        if told.begun is not None:
            # One that begins anew keeps its id, which stands for user and `sid`, and counts from nothing.
            self.confirmed.pop(told.begun, None)
        if told.order_id is None:
            return
        if told.step.before is not None and told.step.after is not None:
            self.steps.setdefault(told.order_id, []).append(told.step)
        if told.confirmed_by is not None:
            self.confirmed.setdefault(told.confirmed_by, []).append(told.order_id)


def check_trail(topic: TopicTrail, database: DatabaseTrail) -> list[Finding]:
    """Every finding about the audit trail, both sides at hand."""
    return [
        check_database_chain(database),
        *check_topic_trail(topic),
        _topic_matches(topic, database),
        _status_steps(database),
    ]


def check_topic_trail(topic: TopicTrail) -> list[Finding]:
    """What can be said from the topic alone."""
    chain = Check("audit_chain_on_topic", "the audit trail on the topic has no gap and no changed event", topic.records)
    for text in (*topic.unreadable, *topic.differing):
        chain.breach(text)
    _check_chains(topic.links.values(), chain)
    keys = Check("audit_key_unique", "no key on the audit topic stands for two events, so compaction removes no history", topic.records)
    for key, events in topic.reused_keys.items():
        keys.breach(f"key {key!r} stands for {len(events)} events: {', '.join(sorted(events)[:3])} …")
    for text in topic.wrong_keys:
        keys.breach(text)
    return [chain.finding(), keys.finding()]


def check_database_chain(database: DatabaseTrail) -> Finding:
    """The chains in the database against themselves and their heads."""
    check = Check("audit_chain", "the audit trail in the database has no gap and no changed event", len(database.links))
    for text in database.wrong_rows:
        check.breach(text)
    ends = _check_chains(database.links.values(), check)
    for account, head in database.heads.items():
        end = ends.get(account, (0, GENESIS_HASH))
        if head != end:
            check.breach(f"account {account}: the head is event {head[0]}, the newest event is {end[0]}, or their hashes differ")
    for account in ends.keys() - database.heads.keys():
        check.breach(f"account {account} has events and no chain head")
    return check.finding()


def _check_chains(links: Iterable[Link], check: Check) -> dict[str, tuple[int, str]]:
    """Follows every chain from its first event; returns the ends, `(seq, hash)` per account."""
    chains: dict[str, list[Link]] = {}
    for link in links:
        chains.setdefault(link.account, []).append(link)
    ends: dict[str, tuple[int, str]] = {}
    for account, events in chains.items():
        events.sort(key=lambda link: link.seq)
        end = (0, GENESIS_HASH)
        for link in events:
            if link.seq != end[0] + 1:
                check.breach(f"account {account}: event {link.seq} follows event {end[0]}")
            elif link.prev_hash != end[1]:
                check.breach(f"account {account}: event {link.seq} does not name the hash of the event before it")
            if not link.is_right:
                check.breach(f"account {account}: the hash of event {link.seq} is not that of its contents")
            end = (link.seq, link.hash)
        ends[account] = end
    return ends


def _topic_matches(topic: TopicTrail, database: DatabaseTrail) -> Finding:
    check = Check("audit_on_topic_matches_database", "the audit topic and the database have the same events, byte by byte")
    for event_id in sorted(topic.links.keys() | database.links.keys()):
        check.checked += 1
        published, stored = topic.links.get(event_id), database.links.get(event_id)
        if published is None:
            check.breach(f"event {event_id} is in the database and not on the topic")
        elif stored is None:
            check.breach(f"event {event_id} is on the topic and not in the database")
        elif published.digest != stored.digest:
            check.breach(f"event {event_id} differs between topic and database")
    return check.finding()


def _status_steps(database: DatabaseTrail) -> Finding:
    check = Check("status_steps_join", "each event of an order begins with the status with which the one before ended", len(database.steps))
    for order_id, steps in database.steps.items():
        for before, after in pairwise(steps):
            if after.before != before.after:
                check.breach(f"order {order_id}: event {before.seq} ends {before.after}, event {after.seq} begins {after.before}")
    return check.finding()
