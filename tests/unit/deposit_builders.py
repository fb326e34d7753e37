"""Deposits that tests of the pure core start from: each function gives a valid one, and takes what a test wants different."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final

from pipeline.books.audit import AuditTrail, ChainHead
from pipeline.books.changes import Changes
from pipeline.books.ledger import Balance, Ledger
from pipeline.deposits.settlement import account_of_deposit, apply_deposit_report, deposit_id_in
from pipeline.model.deposit import Announcement, Deposit, DepositBook
from pipeline.model.tracked import Tracked
from schemas.commands import COMMANDS_ACCOUNT, TRIPS_ACCOUNT
from schemas.deposits import AnnouncementReport, DepositReport
from schemas.orders import DepositStatus
from tests.unit.builders import EXCHANGE, NOW, TOPICS, USER

ADDRESS: Final = "0x71C7656EC7ab88b098defB751B7401B5f6d8976F"
OTHER: Final = "bob"


def announcing(**fields: Any) -> dict[str, Any]:
    """An announcement of 100 USDT over Ethereum as a JSON document; a field given as None is left out."""
    document = {
        "schema_version": 1,
        "type": "deposit",
        "idempotency_key": "key-1",
        "user_id": USER,
        "mode": "live",
        "exchange": EXCHANGE,
        "api_key_id": "k1",
        "asset": "USDT",
        "amount": "100",
        "network": "ETH",
        "address": ADDRESS,
        **fields,
    }
    return {name: value for name, value in document.items() if value is not None}


def deposit_report(status: DepositStatus = DepositStatus.CREDITED, **fields: Any) -> DepositReport:
    """What the exchange's history shows of a deposit of 100 USDT that came a minute ago."""
    values: dict[str, Any] = {
        "schema_version": 1,
        "exchange_deposit_id": "e1",
        "transaction_id": "t1",
        "user_id": USER,
        "exchange": EXCHANGE,
        "api_key_id": "k1",
        "asset": "USDT",
        "network": "ETH",
        "address": ADDRESS,
        "amount": "100",
        "deposit_status": status,
        "arrived_at": NOW - timedelta(minutes=1),
        "looked_up_at": NOW,
        **fields,
    }
    return DepositReport.model_validate(values)


def expiry(announcement: Announcement) -> AnnouncementReport:
    """What the watch says of an announcement whose time is over."""
    return AnnouncementReport(
        schema_version=1, announcement_id=announcement.announcement_id, user_id=announcement.user_id, looked_up_at=NOW
    )


def arriving(
    *deposits: Deposit, announcements: Iterable[Announcement] = (), users: Iterable[str] = (USER, OTHER), **fields: Any
) -> Changes:
    """An open batch of settlement about these deposits, of users whose accounts were opened an hour ago and are empty."""
    named = list(users)
    heads = {account: ChainHead() for account in (*named, COMMANDS_ACCOUNT, TRIPS_ACCOUNT)}
    now = fields.pop("now", NOW)
    changes = Changes(topics=TOPICS, now=now, actor="test", trail=AuditTrail(heads, now), ledger=Ledger({}))
    changes.deposits = DepositBook(
        deposits=Tracked({one.deposit_id: one for one in deposits}),
        announcements=Tracked({one.announcement_id: one for one in announcements}),
        opened_at={(user, EXCHANGE): NOW - timedelta(hours=1) for user in named},
        watched_from={(user, key): NOW - timedelta(hours=3) for user in named for key in ("k1", "k2")},
        user_status=dict.fromkeys(named, "active"),
    )
    for one in deposits:
        if one.status is DepositStatus.CREDITED:
            account = account_of_deposit(one)
            changes.ledger.balances[account] = Balance(changes.ledger.balance(account).posted + one.amount)
    return changes


def deposit_of(status: DepositStatus = DepositStatus.CREDITED, **fields: Any) -> Deposit:
    """The deposit of `deposit_report` as a batch makes it."""
    told = deposit_report(DepositStatus.CREDITED if status is DepositStatus.REVERSED else status, **fields)
    changes = arriving()
    apply_deposit_report(told, changes)
    if status is DepositStatus.REVERSED:
        apply_deposit_report(deposit_report(DepositStatus.REJECTED, **fields), changes)
    return changes.deposits.deposits[deposit_id_in(told)]
