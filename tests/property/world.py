"""The whole system without Kafka, PostgreSQL and network: the pure core between a database and an exchange made of dictionaries.

`World` does what the agents and the database step do, in the same order, one batch at a time, and refuses what the database's constraints
refuse. `Exchange` knows the truth about every order, and shows it late. Crashes lose a batch after any of its parts, as a killed worker
does. The exchange has a clock of its own, which nobody sets.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from pipeline.books.audit import AuditRow, AuditTrail, ChainHead, hash_of_value
from pipeline.books.changes import Changes, Claim, OutputRecord, PendingCancel
from pipeline.books.ledger import AccountKey, Balance, Ledger, Transfer, TransferKind, opening
from pipeline.intake import decide
from pipeline.model.halts import NO_HALTS
from pipeline.model.intents import NotSent
from pipeline.model.invariants import LocksMissing
from pipeline.model.order import RESTING, TERMINAL, Order
from pipeline.model.tracked import Tracked
from pipeline.model.venue import Confirmed, Fee, InDoubt, Refused, Submission, VenueOrder, acceptance_horizon
from pipeline.orders.execution import Outcome, conclude, plan
from pipeline.orders.settlement import apply_report
from pipeline.requests.record import Arrival
from schemas.audit import AuditEvent
from schemas.commands import COMMANDS_ACCOUNT, TRIPS_ACCOUNT, HaltScope
from schemas.orders import OrderStatus, Side
from schemas.reasons import ReasonCode
from schemas.results import RESULT, Result
from schemas.routing import Action, Report, ReportedFee, RoutedOrder
from schemas.state import ORDER_STATE
from tests.unit.builders import (
    EXCHANGE,
    NOW,
    RULES,
    TOPICS,
    EveryUser,
    account,
    account_state,
    arrival,
    intake_state,
    market_data,
)

USERS: Final = ("alice", "bob")
FUNDS: Final = {"USDT": Decimal(1_000), "BTC": Decimal(1), "BNB": Decimal("0.001")}
ZERO: Final = Decimal(0)


@dataclass(slots=True)
class Standing:
    """An order in the exchange's books."""

    submission: Submission
    exchange_order_id: str
    # Not shown before, by the exchange's clock.
    shown_from: datetime
    status: OrderStatus = OrderStatus.NEW
    quantity: Decimal = ZERO
    quote: Decimal = ZERO
    fees: Counter[str] = field(default_factory=Counter)

    def told(self) -> VenueOrder:
        fees = tuple(Fee(asset, amount) for asset, amount in sorted(self.fees.items()) if amount)
        order_id = self.submission.client_order_id
        return VenueOrder(order_id, self.exchange_order_id, self.status, self.quantity, self.quote, fees, NOW)


class Exchange:
    """The books, and requests that are still on their way to them."""

    def __init__(self) -> None:
        self.now = NOW
        self.books: dict[str, Standing] = {}
        # With the time, by the exchange's clock, that each was signed with.
        self.in_flight: list[tuple[Submission, datetime]] = []
        # How long after its acceptance the next order is not shown.
        self.read_lag = timedelta(0)

    def shown(self, client_order_id: str) -> Standing | None:
        """An order as a look-up finds it."""
        standing = self.books.get(client_order_id)
        return None if standing is None or self.now < standing.shown_from else standing

    def accept(self, submission: Submission) -> Standing:
        # An exchange would take the same client order id again once the first order is over: the harm that must never happen.
        assert submission.client_order_id not in self.books, "the same order reached the exchange twice"
        standing = Standing(submission, f"x{len(self.books)}", self.now + self.read_lag)
        self.books[submission.client_order_id] = standing
        return standing

    def land(self) -> None:
        """Accepts what is in flight while its receive window and the venue's own time-out last, and drops the rest."""
        for submission, signed_at in self.in_flight:
            if self.now <= acceptance_horizon(signed_at, RULES.receive_window, RULES.venue_timeout):
                self.accept(submission)
        self.in_flight = []

    def fill(self, standing: Standing, tenths: int, price: Decimal, fee_asset: str) -> None:
        """Executes some tenths of the whole order, the last of them ending it."""
        if standing.status not in RESTING:
            return
        whole = standing.submission.quantity or ZERO
        step = min(whole * tenths / 10, whole - standing.quantity)
        if step == 0:
            return
        standing.quantity += step
        standing.quote += step * price
        standing.fees[fee_asset] += (step if fee_asset == "BTC" else step * price) / 1000
        standing.status = OrderStatus.FILLED if standing.quantity == whole else OrderStatus.PARTIALLY_FILLED

    def end(self, standing: Standing, status: OrderStatus) -> None:
        if standing.status in RESTING:
            standing.status = status


class World:
    """See the module."""

    def __init__(self) -> None:
        self.now = NOW
        self.exchange = Exchange()
        self.fencing_epoch = 1
        self.claims: dict[tuple[str, str], Claim] = {}
        self.orders: dict[str, Order] = {}
        self.cancels: dict[tuple[object, ...], PendingCancel] = {}
        self.transfers: dict[str, Transfer] = {}
        self.balances: dict[AccountKey, Balance] = {}
        self.heads: dict[str, ChainHead] = {}
        self.events: list[AuditRow] = []
        self.results: list[Result] = []
        self.queue: list[RoutedOrder] = []
        self.reports: list[Report] = []
        self.requests: list[Arrival] = []
        self.inbox: list[Arrival] = []
        self.halted: set[str] = set()
        for user in USERS:
            for asset, amount in FUNDS.items():
                to, source = account(asset, user), opening(EXCHANGE, "live", asset)
                self._store_transfer(Transfer(f"opening:{to}", TransferKind.OPENING, None, source, to, amount))
                self.balances[to] = Balance(amount)

    # What producers and time do

    def publish(self, value: dict[str, Any] | bytes) -> None:
        record = arrival(value, len(self.requests), appended_at=self.now)
        self.requests.append(record)
        self.inbox.append(record)

    def tick(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.exchange.now += timedelta(seconds=seconds)

    def set_clock(self, seconds: float) -> None:
        """Somebody sets this machine's clock."""
        self.now += timedelta(seconds=seconds)

    # The three agents, one batch each

    def intake(self, batch_size: int, *, crash: bool = False) -> None:
        batch, rest = self.inbox[:batch_size], self.inbox[batch_size:]
        users = {record.claim_key[0] for record in batch if record.claim_key}
        changes = self._changes(users, ())
        changes.claims = dict(self.claims)
        changes.orders = Tracked(self.orders)
        changes.cancels = self._pending(self.orders)
        state = intake_state(
            accounts=EveryUser({user: account_state(user) for user in USERS}),
            api_keys={(user, "k1"): intake_state().api_keys["alice", "k1"] for user in USERS},
            market_data={EXCHANGE: market_data(observed_at=self.now)},
        )
        decide(batch, state, changes)
        if not crash:
            self._store(changes)
            self.inbox = rest

    def execute(self, batch_size: int, outcome_of: Callable[[Submission], str], *, crash_after: str | None = None) -> None:
        """`outcome_of` names what becomes of each call. A crash after the `intent` or the `call` leaves the batch to the next owner."""
        batch, rest = self.queue[:batch_size], self.queue[batch_size:]
        changes = self._loaded({routed.order_id for routed in batch}, {routed.user_id for routed in batch})
        decided = plan(batch, changes, self.fencing_epoch, 0, NO_HALTS, RULES.usd_assets)
        self._store(changes, publish=False)
        carried = changes.outputs
        if crash_after != "intent":
            submitted = {submission.order_id: self._call(submission, outcome_of(submission)) for submission in decided.submissions}
            canceled: dict[str, Confirmed | Refused | InDoubt] = {}
            for reference in decided.cancels:
                standing = self.exchange.books[reference.client_order_id]
                self.exchange.end(standing, OrderStatus.CANCELED)
                canceled[reference.order_id] = (
                    Confirmed(standing.told()) if standing.status is OrderStatus.CANCELED else Refused(ReasonCode.ORDER_NOT_CANCELABLE, "")
                )
        if crash_after is not None:
            # What was carried is stored with the partition: the next owner publishes it with the batch.
            self.fencing_epoch += 1
            self._publish(carried)
            return
        changes = self._loaded({routed.order_id for routed in batch}, {routed.user_id for routed in batch})
        conclude(submitted, canceled, changes, RULES)
        self.queue = rest
        self._publish(carried)
        self._store(changes)

    def retry(self) -> None:
        """The retry queue: what is due is queued again, also where it is queued already."""
        for order in self.orders.values():
            if order.retry_at is not None and (order.retry_at <= self.now or order.updated_at > self.now):
                self.queue.append(
                    RoutedOrder(
                        schema_version=1, action=Action.SUBMIT, order_id=order.order_id, user_id=order.user_id, attempt=order.attempt + 1
                    )
                )

    def look_up(self) -> None:
        """The reconciler: one report for each order without an end, and for each that ended without the exchange's own word."""
        for order in self.orders.values():
            watched = order.watched_until is not None and self.now < order.watched_until
            if order.status not in RESTING | {OrderStatus.IN_DOUBT} and not watched:
                continue
            standing = self.exchange.shown(order.client_order_id)
            values: dict[str, Any] = {
                "schema_version": 1, "order_id": order.order_id, "user_id": order.user_id, "attempt": order.attempt,
                "found": standing is not None, "looked_up_at": self.exchange.now,
            }  # fmt: skip
            if standing is not None:
                told = standing.told()
                values |= {
                    "exchange_order_id": told.exchange_order_id, "order_status": told.order_status, "cum_quantity": told.cum_quantity,
                    "cum_quote": told.cum_quote, "fees": tuple(ReportedFee(asset=fee.asset, amount=fee.amount) for fee in told.fees),
                }  # fmt: skip
            self.reports.append(Report.model_validate_json(Report(**values).model_dump_json()))

    def settle(self, positions: Iterable[int], *, keep: bool = False) -> None:
        """Applies reports in any order; `keep` leaves them there to be applied again."""
        batch = [self.reports[position % len(self.reports)] for position in positions] if self.reports else []
        orders, users = {report.order_id for report in batch}, {report.user_id for report in batch}
        changes = self._loaded(orders, users)
        try:
            for report in batch:
                apply_report(report, changes, RULES)
        except LocksMissing:
            changes = self._loaded(orders, users | {COMMANDS_ACCOUNT, TRIPS_ACCOUNT})
            for report in batch:
                apply_report(report, changes, RULES)
        self._store(changes)
        if not keep:
            self.reports = [report for report in self.reports if report not in batch]

    def _call(self, submission: Submission, outcome: str) -> Outcome:
        match outcome:
            case "accepted":
                return Confirmed(self.exchange.accept(submission).told())
            case "filled":
                standing = self.exchange.accept(submission)
                self.exchange.fill(standing, 10, submission.price or Decimal(100), "BTC")
                return Confirmed(standing.told())
            case "refused":
                return Refused(ReasonCode.EXCHANGE_REFUSED, "no")
            case "lost answer":
                self.exchange.accept(submission)
                return InDoubt("the answer was lost")
            case "lost request":
                return InDoubt("the request was lost")
            case "late":
                self.exchange.in_flight.append((submission, self.exchange.now))
                return InDoubt("the request is on its way")
            case _:
                return NotSent("its turn did not come")

    # The database

    def _changes(self, users: Iterable[str], orders: Iterable[str]) -> Changes:
        heads = {user: self.heads.get(user, ChainHead()) for user in users}
        trail = AuditTrail(heads, self.now)
        balances = {key: balance for key, balance in self.balances.items() if key.owner in heads}
        loaded = Tracked({order_id: self.orders[order_id] for order_id in orders})
        return Changes(topics=TOPICS, now=self.now, actor="world", trail=trail, ledger=Ledger(balances), orders=loaded)

    def _loaded(self, order_ids: Iterable[str], users: Iterable[str]) -> Changes:
        changes = self._changes(users, order_ids)
        changes.cancels = self._pending(changes.orders)
        return changes

    def _pending(self, order_ids: Iterable[str]) -> dict[str, list[PendingCancel]]:
        wanted = set(order_ids)
        pending: dict[str, list[PendingCancel]] = {}
        for cancel in self.cancels.values():
            if cancel.order_id in wanted:
                pending.setdefault(cancel.order_id, []).append(cancel)
        return pending

    def _store(self, changes: Changes, *, publish: bool = True) -> None:
        for key in changes.claimed:
            before = self.claims.get(key)
            lives_from = None if before is None else before.key_lives_from
            assert before is None or (lives_from is not None and lives_from <= self.now - RULES.key_lifetime)
            self.claims[key] = changes.claims[key]
        for key, result in changes.finished.items():
            if key not in changes.claimed:
                assert self.claims[key].result is None, "a request would get a second final answer"
                self.claims[key] = replace(self.claims[key], result=result, ended_at=changes.now)
        for key, result in changes.corrected.items():
            self.claims[key] = replace(self.claims[key], result=result)
        self.halted |= {target for scope, target in changes.halts_moved if scope is HaltScope.USER}
        assert not changes.orders.made & self.orders.keys()
        for order_id in changes.orders.made | changes.orders.changed:
            self.orders[order_id] = changes.orders[order_id]
        for cancel in (*changes.cancels_made, *changes.cancels_repeated):
            self.cancels[cancel.source, cancel.requested_at] = cancel
        for cancel in changes.cancels_ended:
            del self.cancels[cancel.source, cancel.requested_at]
        for transfer in changes.ledger.transfers:
            self._store_transfer(transfer)
        self.balances.update({key: changes.ledger.balances[key] for key in changes.ledger.changed})
        for row in changes.trail.rows:
            assert row.seq == self.heads.get(row.account, ChainHead()).seq + 1
            self.heads[row.account] = ChainHead(row.seq, row.hash)
            self.events.append(row)
        if publish:
            self._publish(changes.outputs)

    def _store_transfer(self, transfer: Transfer) -> None:
        assert transfer.transfer_id not in self.transfers, "a transfer would be written twice"
        self.transfers[transfer.transfer_id] = transfer

    def _publish(self, outputs: Iterable[OutputRecord]) -> None:
        for output in outputs:
            if output.topic == TOPICS.results:
                self.results.append(RESULT.validate_json(output.value or b""))
            elif output.topic == TOPICS.orders(EXCHANGE):
                self.queue.append(RoutedOrder.model_validate_json(output.value or b""))
            elif output.topic == TOPICS.state:
                assert ORDER_STATE.validate_json(output.value or b"", strict=True).order_id.encode() == output.key
            elif output.topic == TOPICS.audit:
                event = AuditEvent.model_validate_json(output.value or b"", strict=True)
                assert event.event_id.encode() == output.key
                assert hash_of_value(output.value or b"") == (event.hash, event.hash)

    # What must always hold

    def check(self) -> None:
        self._check_money()
        finals = [result for result in self.results if result.final]
        assert max(Counter(result.source for result in finals).values(), default=0) <= 1, "a record was answered twice"
        firsts = Counter((result.user_id, result.idempotency_key) for result in finals if not result.replayed and result.user_id)
        assert max(firsts.values(), default=0) <= 1, "a key has two first answers"

    def _check_money(self) -> None:
        posted: Counter[AccountKey] = Counter()
        pending: Counter[AccountKey] = Counter()
        per_order: Counter[str] = Counter()
        for transfer in self.transfers.values():
            match transfer.kind:
                case TransferKind.HOLD:
                    pending[transfer.debit] += transfer.amount
                    per_order[transfer.order_id or ""] += transfer.amount
                case TransferKind.RELEASE:
                    pending[transfer.debit] -= transfer.amount
                    per_order[transfer.order_id or ""] -= transfer.amount
                case _:
                    posted[transfer.debit] -= transfer.amount
                    posted[transfer.credit] += transfer.amount
                    if transfer.kind is TransferKind.POST_HELD:
                        pending[transfer.debit] -= transfer.amount
                        per_order[transfer.order_id or ""] -= transfer.amount
        for key, balance in self.balances.items():
            assert (balance.posted, balance.pending) == (posted[key], pending[key]), "a balance is not the sum of its transfers"
            assert balance.pending >= 0
            assert balance.available >= 0
        for asset in FUNDS:
            assert sum(amount for key, amount in posted.items() if key.asset == asset) == 0, "money was made or lost"
        for order in self.orders.values():
            assert per_order[order.order_id] == order.hold_amount, "an order's hold is not what its transfers say"
            assert (order.status in TERMINAL) <= (order.hold_amount == 0), "an order that is over holds funds"
            assert order.retry_at is None or order.status is OrderStatus.ACCEPTED, "an order that moved on waits for its next attempt"

    def finish(self) -> None:
        """Lets everything come to its end: all is read, all horizons pass, every resting order ends."""
        self.exchange.read_lag = timedelta(0)
        for _ in range(40):
            self.exchange.land()
            self.tick(60)
            self.intake(100)
            self.retry()
            self.execute(100, lambda _: "accepted")
            for standing in self.exchange.books.values():
                self.exchange.end(standing, OrderStatus.CANCELED)
            self.look_up()
            self.settle(range(len(self.reports)))
            late = any(self.exchange.shown(client_order_id) is None for client_order_id in self.exchange.books)
            if not (late or self.inbox or self.queue or any(order.status not in TERMINAL for order in self.orders.values())):
                break
        self.check()

    def check_end(self) -> None:
        """Every record has its one answer, nothing is held, and the orders are what the exchange's books say."""
        answered = Counter(result.source for result in self.results if result.final)
        assert answered == Counter(record.source for record in self.requests), "a record has no final answer"
        assert not self.cancels
        assert all(claim.result is not None for claim in self.claims.values())
        assert all(balance.pending == 0 for balance in self.balances.values())
        for order in self.orders.values():
            standing = self.exchange.books.get(order.client_order_id)
            theirs = (standing.quantity, standing.quote, standing.fees) if standing else (ZERO, ZERO, Counter())
            assert (order.cum_quantity, order.cum_quote, Counter({fee.asset: fee.amount for fee in order.fees})) == theirs
            not_executed = order.reason_code is ReasonCode.ORDER_NOT_EXECUTED
            taken = standing is not None and (standing.status is not OrderStatus.REJECTED or standing.quantity > 0)
            assert not (not_executed and taken), "an order that is there was called not executed"
            corrected = [result for result in self.results if result.corrects and result.order_id == order.order_id]
            assert bool(corrected) == (order.corrected_at is not None), "what was said wrongly was not corrected"
            assert order.corrected_at is None or order.user_id in self.halted, "a user whose books were wrong trades on"
        self._check_against_books()

    @property
    def corrected(self) -> int:
        """How many orders showed up after they had counted as not executed."""
        return sum(1 for order in self.orders.values() if order.corrected_at is not None)

    def _check_against_books(self) -> None:
        """What the users own now is what they had and what the exchange did, but for what the house advanced."""
        expected: Counter[AccountKey] = Counter({account(asset, user): amount for user in USERS for asset, amount in FUNDS.items()})
        for standing in self.exchange.books.values():
            submission = standing.submission
            sign = 1 if submission.side is Side.BUY else -1
            expected[account("BTC", submission.user_id)] += sign * standing.quantity
            expected[account("USDT", submission.user_id)] -= sign * standing.quote
            for asset, amount in standing.fees.items():
                expected[account(asset, submission.user_id)] -= amount
        for transfer in self.transfers.values():
            if transfer.debit.owner == "@shortfall":
                user_id = self.orders[transfer.order_id or ""].user_id
                expected[account(transfer.debit.asset, user_id)] += transfer.amount
        for key, amount in expected.items():
            assert self.balances.get(key, Balance()).posted == amount, f"{key} does not own what the exchange's books say"
