"""Progress: nothing is left under way, and Kafka and the database stand at the same offsets."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.model.order import Order
from pipeline.model.withdrawal import Withdrawal
from schemas.orders import OrderStatus, WithdrawalStatus
from verification.promises.finding import Check, Finding

_UNFINISHED: Final = frozenset({OrderStatus.ACCEPTED, OrderStatus.SUBMITTING})
_PAYING: Final = frozenset({WithdrawalStatus.ACCEPTED, WithdrawalStatus.SUBMITTING, WithdrawalStatus.PROCESSING})


@dataclass(frozen=True, slots=True)
class PartitionProgress:
    """One input partition: the topic's end, the group's committed offset, and where the database stands (None: no row, no offset)."""

    topic: str
    partition: int
    end_offset: int
    committed_offset: int | None
    next_offset: int | None
    carries: bool = False


def check_progress(
    partitions: Sequence[PartitionProgress], orders: Iterable[Order], pending_cancels: int, withdrawals: Iterable[Withdrawal] = ()
) -> list[Finding]:
    """Every finding about what is unfinished. `pending_cancels` counts cancels whose order rests at the exchange."""
    return [_offsets(partitions), _lag(partitions), *_orders(list(orders), pending_cancels, list(withdrawals))]


def _offsets(partitions: Sequence[PartitionProgress]) -> Finding:
    check = Check("offsets_match_database", "the committed offset of every input partition is where the database stands", len(partitions))
    for row in partitions:
        where = f"{row.topic}/{row.partition}"
        # -1 is the database's word for: taken over, nothing read yet.
        if (row.committed_offset if row.committed_offset is not None else -1) != (row.next_offset if row.next_offset is not None else -1):
            check.breach(f"{where}: committed {row.committed_offset}, the database has {row.next_offset}")
        elif row.carries:
            # With the position, so that two steps of a busy partition are not taken for one that never ends.
            check.breach(f"{where}: outputs of an unfinished step are stored, the database has {row.next_offset}")
    return check.finding()


def _lag(partitions: Sequence[PartitionProgress]) -> Finding:
    check = Check("nothing_waits", "lag is zero on every input partition", len(partitions))
    for row in partitions:
        if row.end_offset > (row.committed_offset or 0):
            check.breach(f"{row.topic}/{row.partition}: ends at {row.end_offset}, committed {row.committed_offset}")
    return check.finding()


def _orders(orders: Sequence[Order], pending_cancels: int, withdrawals: Sequence[Withdrawal]) -> list[Finding]:
    count = len(orders) + len(withdrawals)
    unfinished = Check("nothing_unfinished", "no order is left queued or being sent, and no withdrawal on its way", count)
    in_doubt = Check("in_doubt", "no order and no withdrawal is without proof", count)
    for order in orders:
        if order.status in _UNFINISHED:
            unfinished.breach(f"order {order.order_id} is {order.status} (attempt {order.attempt}, since {order.updated_at:%H:%M:%S} UTC)")
        elif order.status is OrderStatus.IN_DOUBT:
            in_doubt.breach(f"order {order.order_id} is in doubt since {order.updated_at:%H:%M:%S} UTC: {order.reason}")
    for withdrawal in withdrawals:
        name, since = f"withdrawal {withdrawal.withdrawal_id}", f"since {withdrawal.updated_at:%H:%M:%S} UTC"
        if withdrawal.status in _PAYING:
            unfinished.breach(f"{name} is {withdrawal.status} (attempt {withdrawal.attempt}, {since})")
        elif withdrawal.status is WithdrawalStatus.IN_DOUBT:
            in_doubt.breach(f"{name} is in doubt {since}: {withdrawal.reason}")
    if pending_cancels:
        unfinished.breach(f"{pending_cancels} cancels wait for their orders")
    return [unfinished.finding(), in_doubt.finding()]
