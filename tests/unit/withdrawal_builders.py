"""Withdrawals that tests of the pure core start from: each function gives a valid one, and takes what a test wants different."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from pipeline.books.changes import Changes
from pipeline.books.ledger import Balance
from pipeline.model.api_key import ApiKeyState
from pipeline.model.identifiers import client_withdrawal_id_of
from pipeline.model.payee import Payee
from pipeline.model.tracked import Tracked
from pipeline.model.withdrawal import AllowedAddress, Network, Withdrawal
from pipeline.requests.intake_state import IntakeState
from schemas.orders import Mode, WithdrawalStatus
from schemas.wire import SourceOffset
from schemas.withdrawals import WithdrawalFinding, WithdrawalReport
from tests.unit.builders import EXCHANGE, NOW, TOPICS, USER, account, changes_of, intake_state

ADDRESS: Final = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
WITHDRAWAL_ID: Final = "w" + "1" * 32
FEE: Final = Decimal("0.5")
NETWORK: Final = Network("USDT", "ETH", True, FEE, Decimal(10), Decimal(1_000_000), Decimal("0.000001"), NOW)
ALLOWED: Final = AllowedAddress("ETH", ADDRESS, "", NOW - timedelta(hours=24))


def asking(**fields: Any) -> dict[str, Any]:
    """A request for 100 USDT over Ethereum as a JSON document; a field given as None is left out."""
    document = {
        "schema_version": 1,
        "type": "withdrawal",
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


def withdrawing_state(
    *, networks: Iterable[Network] = (NETWORK,), addresses: tuple[AllowedAddress, ...] = (ALLOWED,), **fields: Any
) -> IntakeState:
    """What a batch with withdrawals is decided by: a key that may withdraw, a network, an address that has waited."""
    key = ApiKeyState(EXCHANGE, "active", frozenset({"trade", "withdraw"}))
    state = intake_state(**{"api_keys": {(USER, "k1"): key}, **fields})
    return replace(state, networks={EXCHANGE: {(one.asset, one.network): one for one in networks}}, addresses={USER: addresses})


def withdrawal_of(**fields: Any) -> Withdrawal:
    """100 USDT with 100.5 held, accepted and not sent yet; `status` makes the rest agree with it."""
    status = fields.get("status", WithdrawalStatus.ACCEPTED)
    sent = status not in {WithdrawalStatus.ACCEPTED, WithdrawalStatus.PENDING_APPROVAL}
    over = status in {WithdrawalStatus.COMPLETED, WithdrawalStatus.FAILED, WithdrawalStatus.REJECTED}
    taken = status in {WithdrawalStatus.PROCESSING, WithdrawalStatus.COMPLETED, WithdrawalStatus.FAILED}
    withdrawal_id = fields.get("withdrawal_id", WITHDRAWAL_ID)
    values: dict[str, Any] = {
        "withdrawal_id": withdrawal_id,
        "client_withdrawal_id": client_withdrawal_id_of(withdrawal_id),
        "exchange_withdrawal_id": "x1" if taken else None,
        "transaction_id": "t1" if status is WithdrawalStatus.COMPLETED else None,
        "user_id": USER,
        "idempotency_key": "key-1",
        "request_id": "r1",
        "source": SourceOffset(TOPICS.requests, 0, 7),
        "mode": Mode.LIVE,
        "exchange": EXCHANGE,
        "api_key_id": "k1",
        "asset": "USDT",
        "network": "ETH",
        "address": ADDRESS,
        "address_tag": None,
        "amount": Decimal(100),
        "fee": FEE,
        "status": status,
        "reason_code": None,
        "reason": None,
        "hold_amount": Decimal(0) if over else 100 + FEE,
        "usd_value": 100 + FEE,
        "approved_by": None,
        "attempt": 1 if sent else 0,
        "fencing_epoch": 3 if sent else 0,
        "work_partition": 0 if sent else -1,
        "submitting_at": NOW - timedelta(seconds=1) if sent else None,
        "expires_at": NOW + timedelta(seconds=30),
        "requested_at": NOW - timedelta(seconds=2),
        "decided_at": NOW - timedelta(seconds=2),
        "updated_at": NOW - timedelta(seconds=1),
        "executed_at": NOW if over else None,
        "traceparent": None,
        "first_submitting_at": fields.get("submitting_at", NOW - timedelta(seconds=1) if sent else None),
    }
    return Withdrawal(**{**values, **fields})


def payee(**fields: Any) -> Payee:
    """An active user with a key that may withdraw, the address on the list, and a wide limit of which nothing is used."""
    values: dict[str, Any] = {
        "status": "active",
        "daily_limit_usd": Decimal(10**9),
        "api_keys": {"k1": ApiKeyState(EXCHANGE, "active", frozenset({"trade", "withdraw"}))},
        "addresses": (ALLOWED,),
    }
    return Payee(**{**values, **fields})


def changes_with(*withdrawals: Withdrawal, funds: Mapping[str, str] | None = None, **fields: Any) -> Changes:
    """An open batch about these withdrawals; what they hold is there on top of the users' free `funds`."""
    changes = changes_of(funds=funds, **fields)
    changes.withdrawals = Tracked({one.withdrawal_id: one for one in withdrawals})
    for one in withdrawals:
        changes.payees[one.user_id] = payee()
        key = account(one.asset, one.user_id)
        before = changes.ledger.balance(key)
        changes.ledger.balances[key] = Balance(before.posted + one.hold_amount, before.pending + one.hold_amount)
    return changes


def report(withdrawal: Withdrawal, finding: WithdrawalFinding = WithdrawalFinding.FOUND, **fields: Any) -> WithdrawalReport:
    """What the exchange's history says of it: completed, 100 paid and 0.5 kept, unless `fields` say otherwise."""
    values: dict[str, Any] = {
        "schema_version": 1,
        "withdrawal_id": withdrawal.withdrawal_id,
        "user_id": withdrawal.user_id,
        "attempt": withdrawal.attempt,
        "finding": finding,
        "looked_up_at": NOW,
    }
    if finding is WithdrawalFinding.FOUND:
        values |= {
            "exchange_withdrawal_id": "x1",
            "withdrawal_status": WithdrawalStatus.COMPLETED,
            "amount": Decimal(100),
            "fee": FEE,
            "transaction_id": "t1",
        }
    return WithdrawalReport(**{**values, **fields})
