"""Users, their exchange keys and what they start with. Secrets pass through here only as ciphertext."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from infra.postgres.audit_outbox import await_publication
from infra.postgres.database import Connection, Database
from infra.postgres.rows import columns_of
from infra.postgres.step import lock_chains
from infra.postgres.transfers import apply_transfers
from pipeline.books.audit import AuditRow, AuditTrail, Value
from pipeline.books.changes import transfer_entry
from pipeline.books.ledger import AccountKey, Transfer, TransferKind, book_of, opening
from schemas.audit import EventType
from schemas.orders import Mode


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user to add, with one exchange key and opening balances (asset → amount) that already lie at the exchange.

    `permissions` are the key's: `trade`, `withdraw`. `paper` is simulated money, which lies nowhere.
    """

    user_id: str
    exchange: str
    api_key_id: str
    encryption_key_id: str
    ciphertext: bytes
    balances: dict[str, Decimal]
    permissions: tuple[str, ...] = ("trade",)
    paper: dict[str, Decimal] = field(default_factory=dict)


async def add_users(database: Database, users: Sequence[NewUser], now: datetime, actor: str) -> list[AuditRow]:
    """Adds those users that are not there yet, in one database transaction; returns their audit events, which
    wait to be published.

    Opening balances are transfers from `@opening`: nothing else creates money. Raises ValueError for a negative one and for a user who is
    named twice; nothing is added then.
    """
    if len({user.user_id for user in users}) != len(users):
        raise ValueError("a user is named twice; nobody was added")
    if any(amount < 0 for user in users for amount in (*user.balances.values(), *user.paper.values())):
        raise ValueError("an opening balance is negative; nobody was added")
    async with database.connection() as connection, connection.transaction():
        # A rejected request of somebody who was no user yet may have begun the chain already; it goes on from there. Behind the locks it is
        # clear who is there: two that add the same users queue up.
        heads = await lock_chains(connection, sorted({user.user_id for user in users}))
        known = await connection.fetch("SELECT user_id FROM users WHERE user_id = ANY($1::text[])", [user.user_id for user in users])
        existing = {row["user_id"] for row in known}
        added = sorted((user for user in users if user.user_id not in existing), key=lambda user: user.user_id)
        if not added:
            return []
        trail = AuditTrail({user.user_id: heads[user.user_id] for user in added}, now)
        transfers: list[Transfer] = []
        for user in added:
            own = [
                _opening(user, mode, asset, amount)
                for mode, given in ((Mode.LIVE, user.balances), (Mode.PAPER, user.paper))
                for asset, amount in sorted(given.items())
                if amount > 0
            ]
            transfers += own
            fields: dict[str, Value] = {"actor": actor, "ts_event": now, "user_id": user.user_id, "exchange": user.exchange}
            fields["transfers"] = [transfer_entry(transfer) for transfer in own]
            trail.append(user.user_id, None, EventType.USER_ADDED, fields)
        await _insert_users(connection, added, now)
        await apply_transfers(connection, transfers, now)
        await store_events(connection, trail, now)
        return trail.rows


def _opening(user: NewUser, mode: Mode, asset: str, amount: Decimal) -> Transfer:
    account = AccountKey(user.user_id, user.exchange, book_of(mode), asset)
    source = opening(user.exchange, account.book, asset)
    return Transfer(f"opening:{account}", TransferKind.OPENING, None, source, account, amount)


async def _insert_users(connection: Connection, users: Sequence[NewUser], now: datetime) -> None:
    await connection.execute(
        "INSERT INTO users (user_id, status, created_at) SELECT user_id, 'active', $2 FROM unnest($1::text[]) AS user_id",
        [user.user_id for user in users],
        now,
    )
    rows = [
        # An array per row cannot travel in an array of them: unnest would flatten it.
        (user.user_id, user.api_key_id, user.exchange, user.encryption_key_id, user.ciphertext, ",".join(user.permissions))
        for user in users
    ]
    await connection.execute(
        """
        INSERT INTO api_keys (user_id, api_key_id, exchange, encryption_key_id, ciphertext, permissions, status, created_at)
        SELECT user_id, api_key_id, exchange, encryption_key_id, ciphertext, string_to_array(permissions, ','), 'active', $7
        FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::text[])
            AS given (user_id, api_key_id, exchange, encryption_key_id, ciphertext, permissions)
        """,
        *columns_of(rows, 6),
        now,
    )


async def store_events(connection: Connection, trail: AuditTrail, now: datetime) -> None:
    """Writes a trail's events and moves its accounts' chain heads, inside the caller's transaction, which holds their locks. They wait for
    their publication (infra/postgres/audit_outbox)."""
    heads = [(account, head.seq, head.hash) for account, head in trail.heads.items()]
    await connection.execute(
        """
        UPDATE audit_chains SET seq = given.seq, hash = given.hash
        FROM unnest($1::text[], $2::bigint[], $3::text[]) AS given (account, seq, hash) WHERE audit_chains.account = given.account
        """,
        *columns_of(heads, 3),
    )
    rows = [(row.account, row.seq, row.event_id, row.hash, row.body.decode()) for row in trail.rows]
    await connection.execute(
        """
        INSERT INTO audit_events (account, seq, event_id, hash, body, recorded_at)
        SELECT given.*, $6 FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[]) AS given
        """,
        *columns_of(rows, 5),
        now,
    )
    await await_publication(connection, trail.rows)
