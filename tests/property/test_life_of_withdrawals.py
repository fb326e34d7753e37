"""Withdrawals under any order of crashes, lost answers, late looks and operators: paid once or not at all, and the ledger says which.

The pure core between a ledger and an exchange made of dictionaries; each rule is one step of an agent, stored or lost as a whole.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agents.watches.withdrawals import report_of
from pipeline.books.audit import AuditTrail, ChainHead
from pipeline.books.changes import Changes, Claim
from pipeline.books.ledger import AccountKey, Balance, Ledger
from pipeline.intake import decide
from pipeline.model.halts import NO_HALTS, Halt, HaltBook
from pipeline.model.intents import NotSent
from pipeline.model.tracked import Tracked
from pipeline.model.venue import InDoubt, Refused, acceptance_horizon
from pipeline.model.withdrawal import Taken, VenueWithdrawal, Withdrawal, WithdrawalSubmission
from pipeline.withdrawals.acceptance import decide_withdrawal
from pipeline.withdrawals.settlement import Outcome, apply_withdrawal_report, conclude_withdrawals, plan_withdrawals
from schemas.commands import DecisionWord, HaltLevel, HaltScope, WithdrawalDecision
from schemas.orders import WithdrawalStatus
from schemas.reasons import ReasonCode
from schemas.results import RESULT, Result
from schemas.routing import RoutedOrder
from schemas.withdrawals import WithdrawalFinding, WithdrawalReport
from tests.unit.builders import EXCHANGE, NOW, RULES, TOPICS, USER, account, account_state, arrival, market_data
from tests.unit.withdrawal_builders import ALLOWED, FEE, NETWORK, asking, payee, report, withdrawing_state

_S = WithdrawalStatus
FUNDS = Decimal(50_000)
OPERATOR = "olga"
HALTED = HaltBook(frozenset({Halt(HaltScope.ALL, "", HaltLevel.REDUCE)}))


class Withdrawing(RuleBasedStateMachine):
    """What the database, Kafka and the exchange hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now: datetime = NOW
        self.epoch = 1
        self.claims: dict[tuple[str, str], Claim] = {}
        self.withdrawals: dict[str, Withdrawal] = {}
        self.balances: dict[AccountKey, Balance] = {account("USDT"): Balance(FUNDS)}
        self.heads = {USER: ChainHead(), OPERATOR: ChainHead()}
        self.transfers: set[str] = set()
        self.out = Decimal(0)
        self.queue: list[RoutedOrder] = []
        self.reports: list[WithdrawalReport] = []
        self.finals: dict[str, Result] = {}
        # The exchange: what it took, by client id, and what is still on its way to it.
        self.taken: dict[str, VenueWithdrawal] = {}
        self.on_the_way: list[WithdrawalSubmission] = []
        self.requests = 0

    def _open(self) -> Changes:
        trail = AuditTrail(dict(self.heads), self.now)
        changes = Changes(topics=TOPICS, now=self.now, actor="test", trail=trail, ledger=Ledger(dict(self.balances)))
        changes.withdrawals, changes.claims = Tracked(self.withdrawals), dict(self.claims)
        changes.payees = {USER: payee()}
        return changes

    def _store(self, changes: Changes) -> None:
        """Everything at once, as one database and one Kafka transaction do; refuses what the database's constraints refuse."""
        for key in changes.finished:
            assert key in changes.claimed or self.claims[key].result is None, "a key would be answered twice"
        self.claims = {key: replace(claim, result=changes.finished.get(key, claim.result)) for key, claim in changes.claims.items()}
        self.withdrawals = dict(changes.withdrawals)
        self.heads, self.balances = changes.trail.heads, changes.ledger.balances
        for transfer in changes.ledger.transfers:
            assert transfer.transfer_id not in self.transfers, "a transfer would be written twice"
            self.transfers.add(transfer.transfer_id)
            if transfer.credit.owner in {"@clearing", "@fees"}:
                self.out += transfer.amount
        for output in changes.outputs:
            if output.topic == TOPICS.orders(EXCHANGE):
                self.queue.append(RoutedOrder.model_validate_json(output.value or b""))
            elif output.topic == TOPICS.results:
                result = RESULT.validate_json(output.value or b"")
                if result.final and not result.replayed and result.order_id is not None:
                    assert result.order_id not in self.finals
                    self.finals[result.order_id] = result

    @initialize(amounts=st.lists(st.sampled_from(["100", "100", "20000"]), min_size=1, max_size=4), far=st.booleans())
    def requests_come(self, amounts: list[str], far: bool) -> None:
        for amount in amounts:
            self.request(amount, far, False)

    @rule(seconds=st.sampled_from([1, 1, 7, 7, 40, 80, 4_000]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(amount=st.sampled_from(["100", "20000"]), far=st.booleans(), again=st.booleans())
    def request(self, amount: str, far: bool, again: bool) -> None:
        if not again:
            self.requests += 1
        document: dict[str, Any] = asking(amount=amount, idempotency_key=f"key-{self.requests}")
        if far:
            document["expires_at"] = "2100-01-01T00:00:00Z"
        changes = self._open()
        state = withdrawing_state(
            networks=(replace(NETWORK, observed_at=self.now),),
            addresses=(ALLOWED,),
            accounts={USER: account_state()},
            market_data={EXCHANGE: market_data(observed_at=self.now)},
        )
        record = arrival(document, 1_000 * self.requests + len(self.finals), appended_at=self.now)
        decide([record], state, changes)
        self._store(changes)

    @rule(position=st.integers(0, 9), approve=st.booleans())
    def operator_decides(self, position: int, approve: bool) -> None:
        waiting = [one for one in self.withdrawals.values() if one.status is _S.PENDING_APPROVAL]
        if not waiting:
            return
        one = waiting[position % len(waiting)]
        word = DecisionWord.APPROVE if approve else DecisionWord.REFUSE
        decision = WithdrawalDecision(
            schema_version=1, command_id="c", command=word, operator=OPERATOR, reason="x", withdrawal_id=one.withdrawal_id
        )
        changes = self._open()
        decide_withdrawal(decision, changes, {"actor": decision.operator})
        self._store(changes)

    @rule(
        ways=st.lists(st.sampled_from(["taken", "refused", "lost answer", "lost request", "late", "not sent"]), min_size=3, max_size=3),
        crash=st.sampled_from([None, None, "before intent", "after intent", "after call"]),
        size=st.integers(1, 3),
        halted=st.sampled_from([False, False, False, True]),
    )
    def execute(self, ways: list[str], crash: str | None, size: int, halted: bool) -> None:
        """One batch of the queue; what dies after its intent is read again by another worker under a newer epoch."""
        batch, rest = self.queue[:size], self.queue[size:]
        self.queue = []
        changes = self._open()
        submissions = plan_withdrawals(batch, changes, self.epoch, 0, HALTED if halted else NO_HALTS)
        if crash == "before intent":
            self.queue, self.epoch = [*batch, *rest], self.epoch + 1
            return
        self._store(changes)
        carried, self.queue = self.queue, []
        if crash != "after intent":
            outcomes = {one.withdrawal_id: self._call(one, way) for one, way in zip(submissions, ways, strict=False)}
        if crash is not None:
            self.queue, self.epoch = [*batch, *rest, *carried], self.epoch + 1
            return
        changes = self._open()
        conclude_withdrawals(outcomes, changes)
        self._store(changes)
        self.queue = [*rest, *carried, *self.queue]

    def _call(self, submission: WithdrawalSubmission, way: str) -> Outcome:
        match way:
            case "taken":
                return Taken(self._take(submission))
            case "refused":
                return Refused(ReasonCode.BALANCE_INSUFFICIENT, "no")
            case "lost answer":
                self._take(submission)
                return InDoubt("the answer was lost")
            case "late":
                self.on_the_way.append(submission)
                return InDoubt("the request is on its way")
            case "lost request":
                return InDoubt("the request was lost")
            case _:
                return NotSent("its turn did not come")

    def _take(self, submission: WithdrawalSubmission) -> str:
        # An exchange takes the same client id again: the harm that must never happen.
        assert submission.client_withdrawal_id not in self.taken, "it would be paid twice"
        self.taken[submission.client_withdrawal_id] = VenueWithdrawal(
            client_withdrawal_id=submission.client_withdrawal_id,
            exchange_withdrawal_id=f"x{len(self.taken)}",
            status=_S.PROCESSING,
            asset=submission.asset,
            network=submission.network,
            address=submission.address,
            amount=submission.amount,
            fee=submission.fee,
            transaction_id=None,
            detail=None,
        )
        return self.taken[submission.client_withdrawal_id].exchange_withdrawal_id

    @rule()
    def requests_land(self) -> None:
        """What is on its way is taken while its receive window and the venue's own time-out last, and dropped afterwards."""
        for submission in self.on_the_way:
            if self.now <= acceptance_horizon(submission.submitting_at, RULES.receive_window, RULES.venue_timeout):
                self._take(submission)
        self.on_the_way = []

    @rule(position=st.integers(0, 9), paid=st.booleans())
    def exchange_ends_one(self, position: int, paid: bool) -> None:
        under_way = [row for row in self.taken.values() if row.status is _S.PROCESSING]
        if under_way:
            row = under_way[position % len(under_way)]
            self.taken[row.client_withdrawal_id] = replace(row, status=_S.COMPLETED if paid else _S.FAILED, transaction_id="t")

    @rule(settled=st.booleans())
    def watch(self, settled: bool) -> None:
        """Reads the whole history and reports; a report is applied at once, or waits while other things happen."""
        # A late request may still land before the horizon, but never after it: that is what the horizon is.
        self.on_the_way = [
            one
            for one in self.on_the_way
            if self.now <= acceptance_horizon(one.submitting_at, RULES.receive_window, RULES.venue_timeout)
        ]
        for one in self.withdrawals.values():
            if one.status in {_S.IN_DOUBT, _S.PROCESSING}:
                found = self.taken.get(one.client_withdrawal_id)
                told = report_of(one, [found] if found is not None else [], self.now, RULES)
                if told is not None:
                    self.reports.append(WithdrawalReport.model_validate_json(told.model_dump_json()))
            elif one.status is _S.PENDING_APPROVAL and one.expires_at <= self.now:
                self.reports.append(report(one, WithdrawalFinding.UNAPPROVED, looked_up_at=self.now))
        if settled:
            self._apply(list(self.reports), keep=False)

    @rule(positions=st.lists(st.integers(0, 20), max_size=4), keep=st.booleans())
    def settle(self, positions: list[int], keep: bool) -> None:
        """Applies reports in any order, some of them twice or late."""
        if not self.reports:
            return
        self._apply([self.reports[position % len(self.reports)] for position in positions], keep=keep)

    def _apply(self, batch: list[WithdrawalReport], *, keep: bool) -> None:
        changes = self._open()
        for told in batch:
            apply_withdrawal_report(told, changes, RULES)
        self._store(changes)
        if not keep:
            self.reports = [told for told in self.reports if told not in batch]

    @invariant()
    def money_is_where_the_withdrawals_say(self) -> None:
        """Held is what is unfinished; gone is what is completed; nothing negative."""
        balance = self.balances[account("USDT")]
        unfinished = [one for one in self.withdrawals.values() if one.executed_at is None]
        assert balance.pending == sum((one.total for one in unfinished), Decimal(0))
        completed = [one for one in self.withdrawals.values() if one.status is _S.COMPLETED]
        assert self.out == sum((one.total for one in completed), Decimal(0))
        assert balance.posted == FUNDS - self.out and balance.available >= 0
        assert all(one.hold_amount == (0 if one.executed_at else one.total) and one.fee == FEE for one in self.withdrawals.values())

    @invariant()
    def answers_are_what_the_exchange_did(self) -> None:
        """Completed was paid, failed was not, rejected was never taken; one key has one withdrawal and one answer."""
        for one in self.withdrawals.values():
            row = self.taken.get(one.client_withdrawal_id)
            if one.status is _S.COMPLETED:
                assert row is not None and row.status is _S.COMPLETED
            elif one.status is _S.FAILED:
                assert row is not None and row.status is _S.FAILED
            elif one.status in {_S.REJECTED, _S.PENDING_APPROVAL, _S.ACCEPTED}:
                assert row is None, f"{one.status}, and the exchange took it"
            assert (one.withdrawal_id in self.finals) is (one.executed_at is not None)
        assert len({one.idempotency_key for one in self.withdrawals.values()}) == len(self.withdrawals)


TestWithdrawing = Withdrawing.TestCase
TestWithdrawing.settings = settings(stateful_step_count=40, deadline=None)
