"""Evidence of a small installation in which everything holds: one order filled, one refused, one resting, one key used again, one
withdrawal paid out, one deposit announced and credited, one credited and taken back.

Tests change one thing and look which promise is reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from typing import Any

from pipeline.books.audit import AuditTrail, ChainHead
from pipeline.books.ledger import AccountKey, Balance, Ledger, TransferKind, clearing, fees
from pipeline.books.order_words import order_fields, result_of_order, state_of
from pipeline.deposits.announcements import result_of_announcement
from pipeline.deposits.settlement import account_of_deposit, apply_deposit_report, deposit_state
from pipeline.model.deposit import Announcement, Deposit
from pipeline.model.identifiers import client_order_id_of
from pipeline.model.order import Order
from pipeline.model.withdrawal import Withdrawal
from pipeline.orders.paper import paper_order_id
from pipeline.withdrawals.acceptance import account_of, result_of_withdrawal, withdrawal_state
from schemas.audit import EventType
from schemas.deposits import DEPOSIT_STATE
from schemas.orders import AnnouncementStatus, DepositStatus, Mode, OrderStatus, OrderType, Side, TimeInForce, WithdrawalStatus
from schemas.reasons import ReasonCode
from schemas.results import RESULT, Result
from schemas.state import ORDER_STATE
from schemas.wire import SourceOffset
from schemas.withdrawals import WITHDRAWAL_STATE
from tests.unit.deposit_builders import ADDRESS, arriving, deposit_report
from tests.unit.withdrawal_builders import withdrawal_of
from verification.promises.accounts import Accounts, TransferTotal
from verification.promises.answers import Answers, Requested
from verification.promises.books import BookedOrder, ExchangeBooks
from verification.promises.dead_letters import DeadLetters
from verification.promises.deposits import Booked, BookedDeposit, Deposited, Movement
from verification.promises.payouts import BookedPayout
from verification.promises.progress import PartitionProgress
from verification.promises.promises import Evidence
from verification.promises.sessions import SessionCount
from verification.promises.trail import DatabaseTrail, TopicTrail

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
USER = "alice"
FILLED, REFUSED, RESTING, PAPER = "o-filled", "o-refused", "o-resting", "o-paper"
PAID = "w-paid"
SESSION = "s0"
# The exchange's ids of deposits.
ARRIVED, TAKEN_BACK = "e-arrived", "e-back"
ANNOUNCED = "n-announced"


def source(offset: int) -> SourceOffset:
    return SourceOffset("trade.requests", 0, offset)


def client_id(order_id: str) -> str:
    return client_order_id_of(order_id)


def make_order(order_id: str, offset: int, status: OrderStatus, **changes: Any) -> Order:
    """A limit purchase of 1 BTC at 100 USDT, with fields changed by name."""
    ended = status in {OrderStatus.FILLED, OrderStatus.REJECTED}
    order = Order(
        order_id=order_id,
        client_order_id=client_id(order_id),
        exchange_order_id=None if status is OrderStatus.REJECTED else f"x-{order_id}",
        user_id=USER,
        idempotency_key=f"key-{order_id}",
        request_id=f"r-{order_id}",
        source=source(offset),
        mode=Mode.LIVE,
        exchange="binance",
        api_key_id="main",
        symbol="BTC/USDT",
        side=Side.BUY,
        order_type=OrderType.LIMIT,
        time_in_force=TimeInForce.GTC,
        quantity=Decimal(1),
        quote_quantity=None,
        price=Decimal(100),
        status=status,
        reason_code=ReasonCode.EXCHANGE_REFUSED if status is OrderStatus.REJECTED else None,
        reason=None,
        cum_quantity=Decimal(0),
        cum_quote=Decimal(0),
        fee=Decimal(0),
        fee_asset=None,
        hold_asset="USDT",
        hold_amount=Decimal(0) if ended else Decimal(100),
        attempt=1,
        fencing_epoch=1,
        work_partition=0,
        submitting_at=NOW,
        expires_at=NOW + timedelta(hours=1),
        requested_at=NOW,
        decided_at=NOW,
        updated_at=NOW,
        executed_at=NOW if ended else None,
        traceparent=None,
        usd_value=Decimal(100),
    )
    return replace(order, **changes)


@dataclass
class Sound:
    """The parts of an `Evidence`, open to change. `evidence` puts them together."""

    orders: dict[str, Order] = field(default_factory=dict)
    withdrawals: dict[str, Withdrawal] = field(default_factory=dict)
    deposits: dict[str, Deposit] = field(default_factory=dict)
    announcements: dict[str, Announcement] = field(default_factory=dict)
    movements: dict[str, Movement] = field(default_factory=dict)
    disputed: set[str] = field(default_factory=set)
    answers: Answers = field(default_factory=Answers)
    stored: dict[tuple[str, str], bytes] = field(default_factory=dict)
    running: set[tuple[str, str]] = field(default_factory=set)
    pending_cancels: set[SourceOffset] = field(default_factory=set)
    letters: DeadLetters = field(default_factory=DeadLetters)
    snapshots: dict[str, bytes] = field(default_factory=dict)
    sessions: dict[str, SessionCount] = field(default_factory=dict)
    snapshots_removed: dict[tuple[str, str], datetime] = field(default_factory=dict)
    topic: TopicTrail = field(default_factory=TopicTrail)
    database: DatabaseTrail = field(default_factory=DatabaseTrail)
    balances: dict[AccountKey, Balance] = field(default_factory=dict)
    totals: list[TransferTotal] = field(default_factory=list)
    held: dict[str, Decimal] = field(default_factory=dict)
    partitions: list[PartitionProgress] = field(default_factory=list)
    books: ExchangeBooks = field(default_factory=ExchangeBooks)
    trail: AuditTrail = field(default_factory=lambda: AuditTrail({USER: ChainHead()}, NOW))

    def evidence(self) -> Evidence:
        return Evidence(
            answers=self.answers,
            requested=Requested(self.orders, self.pending_cancels, {0: 10}, self.stored, self.running, self.withdrawals),
            dead_letters=self.letters,
            snapshots=self.snapshots,
            sessions=self.sessions,
            snapshots_removed=self.snapshots_removed,
            topic_trail=self.topic,
            database_trail=self.database,
            accounts=Accounts(self.balances, self.totals, self.held, {}),
            partitions=self.partitions,
            books=self.books,
            deposited=Deposited(
                self.deposits, self.announcements, self.movements, {(USER, "binance"): NOW - timedelta(days=1)}, self.disputed
            ),
        )

    def deposit(self, exchange_deposit_id: str) -> Deposit:
        """A deposit by the exchange's id."""
        return next(one for one in self.deposits.values() if one.exchange_deposit_id == exchange_deposit_id)

    def change_deposit(self, exchange_deposit_id: str, **changes: Any) -> None:
        """Has the database say something else of a deposit."""
        changed = replace(self.deposit(exchange_deposit_id), **changes)
        self.deposits[changed.deposit_id] = changed
        self.snapshots[changed.deposit_id] = DEPOSIT_STATE.dump_json(deposit_state(changed))

    def tell(self, result: Result, *, stored: bool = True) -> None:
        """Publishes a result, and stores it as its key's answer where it is one."""
        value = RESULT.dump_json(result)
        self.answers.add_result(result, value, 2_000)
        if stored and result.final and not result.replayed and result.user_id and result.idempotency_key:
            self.stored[result.user_id, result.idempotency_key] = sha256(value).digest()

    def record(self, event_type: EventType, order: Order, before: OrderStatus, more: Mapping[str, str] | None = None) -> None:
        """Writes an audit event to the database and the topic."""
        fields = {**order_fields(order), "status_before": before.value, **(more or {})}
        row = self.trail.append(USER, order.order_id, event_type, fields)
        self.database.add(row.account, row.seq, row.event_id, row.hash, row.body.decode())
        self.database.heads[USER] = (row.seq, row.hash)
        self.topic.add(row.event_id.encode(), row.value, f"trade.audit/0/{row.seq}")


def sound() -> Sound:
    """A fresh one."""
    made = Sound()
    filled = make_order(
        FILLED, 0, OrderStatus.FILLED,
        cum_quantity=Decimal(1), cum_quote=Decimal(99), fee=Decimal("0.001"), fee_asset="BTC",
    )  # fmt: skip
    simulated = replace(filled, order_id=PAPER, client_order_id=client_id(PAPER), source=source(6), mode=Mode.PAPER)
    simulated = replace(
        simulated, idempotency_key=f"key-{PAPER}", request_id=f"r-{PAPER}", exchange_order_id=paper_order_id(simulated.client_order_id)
    )
    orders = [filled, make_order(REFUSED, 1, OrderStatus.REJECTED), make_order(RESTING, 2, OrderStatus.NEW), simulated]
    for order in orders:
        made.orders[order.order_id] = order
        made.answers.add_request(order.source, 1_000)
        accepted = replace(order, status=OrderStatus.ACCEPTED)
        # One session has confirmed all that is real.
        confirmed = {"confirmed_by": "session", "session_id": SESSION} if order.mode is Mode.LIVE else {}
        made.record(EventType.ORDER_ACCEPTED, accepted, OrderStatus.RECEIVED, confirmed)
        submitting = replace(order, status=OrderStatus.SUBMITTING)
        made.record(EventType.ORDER_SUBMITTED, submitting, OrderStatus.ACCEPTED)
        made.record(EventType.ORDER_ACKNOWLEDGED, order, OrderStatus.SUBMITTING)
        made.tell(result_of_order(order))
        made.snapshots[order.order_id] = ORDER_STATE.dump_json(state_of(order))
    made.sessions[SESSION] = SessionCount(3, 10, Decimal(300), Decimal(1_000))
    made.running.add((USER, orders[2].idempotency_key))
    made.answers.add_request(source(3), 1_000)
    made.tell(replace(result_of_order(filled), source=source(3), replayed=True, duplicate_of=filled.request_id))
    _bury(made)
    _book(made, orders)
    _pay(made)
    _withdraw(made)
    _deposit(made)
    made.partitions = [PartitionProgress("trade.requests", 0, 10, 10, 10), PartitionProgress("trade.reports", 0, 0, None, -1)]
    return made


def _bury(made: Sound) -> None:
    """A record that is no JSON, answered by its source alone."""
    made.answers.add_request(source(4), 1_000)
    made.letters.add_request(source(4), b"k", b"{")
    made.letters.add_dead_letter(b"k", b"{", [("dlq-source", b"forged"), ("dlq-source", str(source(4)).encode())], "trade.requests.dlq/0/0")
    refused = result_of_order(made.orders[REFUSED])
    nobody = replace(refused, source=source(4), user_id=None, idempotency_key=None, order_id=None, client_order_id=None, type=None)
    made.tell(replace(nobody, reason_code=ReasonCode.SCHEMA_INVALID))


def booked_order(order: Order) -> BookedOrder:
    """The exchange's row for an order as it stands with us."""
    return BookedOrder(
        exchange_order_id=order.exchange_order_id or "x",
        client_order_id=order.client_order_id,
        user_id=order.user_id,
        symbol=order.symbol,
        side=order.side,
        order_type=order.order_type,
        quantity=order.quantity,
        quote_quantity=order.quote_quantity,
        price=order.price,
        status=order.status,
        cum_quantity=order.cum_quantity,
        cum_quote=order.cum_quote,
        fees={order.fee_asset: order.fee} if order.fee_asset else {},
    )


def _book(made: Sound, orders: list[Order]) -> None:
    made.books.orders += [booked_order(order) for order in orders if order.status is not OrderStatus.REJECTED and order.mode is Mode.LIVE]
    made.books.balances |= {(USER, "USDT"): Decimal(901), (USER, "BTC"): Decimal("0.999")}


def _pay(made: Sound) -> None:
    """The ledger's side: 1,000 USDT at first, 99 paid for 1 BTC less its fee, 100 held for the order that rests."""
    ledger = Ledger({})
    usdt, btc = AccountKey(USER, "binance", "live", "USDT"), AccountKey(USER, "binance", "live", "BTC")
    ledger.open("opening", usdt, Decimal(1_000))
    for order_id in (FILLED, REFUSED, RESTING):
        ledger.hold(f"{order_id}:hold", order_id, usdt, Decimal(100))
    ledger.post_held("pay", FILLED, usdt, clearing("binance", "live", "USDT"), Decimal(99))
    ledger.post("receive", FILLED, clearing("binance", "live", "BTC"), btc, Decimal(1))
    ledger.post("fee", FILLED, btc, fees("binance", "live", "BTC"), Decimal("0.001"))
    ledger.release("rest", FILLED, usdt, Decimal(1))
    ledger.release("void", REFUSED, usdt, Decimal(100))
    paper_usdt, paper_btc = (AccountKey(USER, "binance", "paper", asset) for asset in ("USDT", "BTC"))
    ledger.open("fund", paper_usdt, Decimal(100))
    ledger.hold(f"{PAPER}:hold", PAPER, paper_usdt, Decimal(100))
    ledger.post_held("paper pay", PAPER, paper_usdt, clearing("binance", "paper", "USDT"), Decimal(99))
    ledger.post("paper receive", PAPER, clearing("binance", "paper", "BTC"), paper_btc, Decimal(1))
    ledger.post("paper fee", PAPER, paper_btc, fees("binance", "paper", "BTC"), Decimal("0.001"))
    ledger.release("paper rest", PAPER, paper_usdt, Decimal(1))
    made.balances = dict(ledger.balances)
    made.totals = [TransferTotal(row.kind, row.debit, row.credit, row.amount) for row in ledger.transfers]
    for row in ledger.transfers:
        if row.order_id is not None:
            change = {TransferKind.HOLD: row.amount, TransferKind.RELEASE: -row.amount, TransferKind.POST_HELD: -row.amount}
            made.held[row.order_id] = made.held.get(row.order_id, Decimal(0)) + change.get(row.kind, Decimal(0))


def booked_payout(withdrawal: Withdrawal) -> BookedPayout:
    """The exchange's row for a withdrawal that was paid."""
    return BookedPayout(
        exchange_withdrawal_id=withdrawal.exchange_withdrawal_id or "x",
        client_withdrawal_id=withdrawal.client_withdrawal_id,
        user_id=withdrawal.user_id,
        asset=withdrawal.asset,
        network=withdrawal.network,
        address=withdrawal.address,
        address_tag=withdrawal.address_tag or "",
        amount=withdrawal.total,
        fee=withdrawal.fee,
        paid=True,
        transaction_id=withdrawal.transaction_id or "",
    )


def _withdraw(made: Sound) -> None:
    """2 SOL at first, of which 1 is paid out for a fee of 0.5."""
    paid = withdrawal_of(
        withdrawal_id=PAID,
        idempotency_key="key-w-paid",
        source=source(7),
        status=WithdrawalStatus.COMPLETED,
        asset="SOL",
        amount=Decimal(1),
    )
    made.withdrawals[PAID] = paid
    made.answers.add_request(paid.source, 1_000)
    made.tell(result_of_withdrawal(paid))
    made.snapshots[PAID] = WITHDRAWAL_STATE.dump_json(withdrawal_state(paid))
    made.books.payouts.append(booked_payout(paid))
    made.books.balances[USER, "SOL"] = Decimal("0.5")
    ledger, account = Ledger({}), account_of(paid)
    ledger.open("opening-sol", account, Decimal(2))
    ledger.hold("w-hold", PAID, account, paid.total)
    ledger.post_held("w-pay", PAID, account, clearing("binance", "live", "SOL"), paid.amount)
    ledger.post_held("w-fee", PAID, account, fees("binance", "live", "SOL"), paid.fee)
    made.balances |= ledger.balances
    made.totals += [TransferTotal(row.kind, row.debit, row.credit, row.amount) for row in ledger.transfers]
    made.held[PAID] = Decimal(0)


def booked_deposit(deposit: Deposit) -> BookedDeposit:
    """The exchange's row for a deposit as it stands with us."""
    return BookedDeposit(
        exchange_deposit_id=deposit.exchange_deposit_id,
        transaction_id=deposit.transaction_id,
        user_id=deposit.user_id,
        asset=deposit.asset,
        address=deposit.address,
        amount=deposit.amount,
        state=Booked.TAKEN_BACK if deposit.status is DepositStatus.REVERSED else Booked.CREDITED,
        credited_at=NOW,
    )


def _deposit(made: Sound) -> None:
    """3 ETH that were announced, and 5 ETH that came and were taken back."""
    changes = arriving()
    times = {"arrived_at": NOW, "looked_up_at": NOW}
    apply_deposit_report(deposit_report(exchange_deposit_id=ARRIVED, asset="ETH", amount="3", **times), changes)
    back = {"exchange_deposit_id": TAKEN_BACK, "transaction_id": "t2", "asset": "ETH", "amount": "5", **times}
    apply_deposit_report(deposit_report(**back), changes)
    apply_deposit_report(deposit_report(DepositStatus.REJECTED, **back), changes)
    made.deposits |= changes.deposits.deposits
    for one in made.deposits.values():
        taken_back = one.amount if one.status is DepositStatus.REVERSED else Decimal(0)
        made.movements[one.deposit_id] = Movement(1, one.amount, taken_back)
        made.held[one.deposit_id] = Decimal(0)
        made.snapshots[one.deposit_id] = DEPOSIT_STATE.dump_json(deposit_state(one))
        made.books.deposits.append(booked_deposit(one))
    arrived = made.deposit(ARRIVED)
    announced = announcement_of(deposit_id=arrived.deposit_id, exchange_deposit_id=ARRIVED)
    made.announcements[ANNOUNCED] = announced
    made.answers.add_request(announced.source, 1_000)
    made.tell(result_of_announcement(announced))
    made.balances[account_of_deposit(arrived)] = changes.ledger.balance(account_of_deposit(arrived))
    made.totals += [TransferTotal(row.kind, row.debit, row.credit, row.amount) for row in changes.ledger.transfers]
    made.books.balances[USER, "ETH"] = Decimal(3)


def announcement_of(**changes: Any) -> Announcement:
    """3 ETH that were announced and have arrived, with fields changed by name."""
    announcement = Announcement(
        announcement_id=ANNOUNCED,
        user_id=USER,
        idempotency_key="key-n-announced",
        request_id="r-n-announced",
        source=source(8),
        mode=Mode.LIVE,
        exchange="binance",
        api_key_id="main",
        asset="ETH",
        amount=Decimal(3),
        network="ETH",
        address=ADDRESS,
        address_tag=None,
        status=AnnouncementStatus.COMPLETED,
        reason_code=None,
        reason=None,
        deposit_id="d",
        exchange_deposit_id="e",
        expires_at=NOW + timedelta(days=7),
        requested_at=NOW,
        decided_at=NOW,
        updated_at=NOW,
        executed_at=NOW,
        traceparent=None,
    )
    return replace(announcement, **changes)
