"""Snapshots: the newest value per key of `trade.state` is the row of its order, withdrawal or deposit; it is gone where long over."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import orjson

from pipeline.books.order_words import state_of
from pipeline.deposits.settlement import deposit_state
from pipeline.model.deposit import Deposit
from pipeline.model.order import Order
from pipeline.model.withdrawal import Withdrawal
from pipeline.withdrawals.acceptance import withdrawal_state
from schemas.deposits import DEPOSIT_STATE
from schemas.orders import DepositStatus
from schemas.state import ORDER_STATE
from schemas.withdrawals import WITHDRAWAL_STATE
from verification.promises.finding import Check, Finding

_DEPOSIT_IS_OVER: Final = frozenset({DepositStatus.CREDITED, DepositStatus.REVERSED, DepositStatus.REJECTED})


@dataclass(frozen=True, slots=True)
class _Row:
    """One row whose snapshot is due. `over_at` is when it was over, None while it is not."""

    kind: str
    key: str
    exchange: str
    status: str
    over_at: datetime | None
    snapshot: bytes


def _rows(orders: Iterable[Order], withdrawals: Iterable[Withdrawal], deposits: Iterable[Deposit]) -> Iterator[_Row]:
    for order in orders:
        yield _Row("order", order.order_id, order.exchange, order.status, order.executed_at, ORDER_STATE.dump_json(state_of(order)))
    for one in withdrawals:
        snapshot = WITHDRAWAL_STATE.dump_json(withdrawal_state(one))
        yield _Row("withdrawal", one.withdrawal_id, one.exchange, one.status, one.executed_at, snapshot)
    for deposit in deposits:
        over_at = deposit.updated_at if deposit.status in _DEPOSIT_IS_OVER else None
        snapshot = DEPOSIT_STATE.dump_json(deposit_state(deposit))
        yield _Row("deposit", deposit.deposit_id, deposit.exchange, deposit.status, over_at, snapshot)


def check_state(
    snapshots: Mapping[str, bytes],
    orders: Iterable[Order],
    withdrawals: Iterable[Withdrawal] = (),
    deposits: Iterable[Deposit] = (),
    removed_until: Mapping[tuple[str, str], datetime] | None = None,
) -> Finding:
    """The newest value per key of `trade.state` against the rows of orders, withdrawals and deposits.

    `removed_until`: per kind (`order`, `withdrawal`, `deposit`) and exchange, what was over by then may have no snapshot any more.
    """
    claim = "the newest snapshot of every order, withdrawal and deposit on the state topic is its row in the database"
    check = Check("state_matches_database", claim)
    removed = removed_until or {}
    known: set[str] = set()
    for row in _rows(orders, withdrawals, deposits):
        check.checked += 1
        known.add(row.key)
        value = snapshots.get(row.key)
        if value is None:
            until = removed.get((row.kind, row.exchange))
            if row.over_at is None or until is None or row.over_at > until:
                check.breach(f"{row.kind} {row.key} ({row.status}) has no snapshot")
        elif value != row.snapshot:
            check.breach(f"{row.kind} {row.key} is {row.status}, its snapshot says {orjson.loads(value).get(f'{row.kind}_status')}")
    for key in sorted(snapshots.keys() - known):
        check.breach(f"a snapshot names order {key}, which is not in the database")
    return check.finding()
