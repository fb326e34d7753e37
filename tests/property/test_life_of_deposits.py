"""Deposits under any order, repetition and delay of reports, crashes between them, and announcements before and after: credited once.

The pure core between a ledger and an exchange made of dictionaries; each rule is one step of an agent, stored or lost as a whole.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipeline.books.audit import AuditTrail, ChainHead
from pipeline.books.changes import Changes, Claim
from pipeline.books.ledger import AccountKey, Balance, Ledger
from pipeline.deposits.announcements import apply_announcement_report
from pipeline.deposits.settlement import apply_deposit_report, deposit_id_in, verdict_on
from pipeline.intake import decide
from pipeline.model.deposit import Announcement, Deposit, DepositBook, DisputeKind
from pipeline.model.tracked import Tracked
from schemas.commands import COMMANDS_ACCOUNT, TRIPS_ACCOUNT
from schemas.deposits import AnnouncementReport, DepositReport
from schemas.orders import AnnouncementStatus, DepositStatus
from schemas.results import RESULT, Result
from tests.unit.builders import EXCHANGE, NOW, TOPICS, USER, account, account_state, arrival, intake_state
from tests.unit.deposit_builders import OTHER, announcing, deposit_report, expiry

_S = DepositStatus
USERS = (USER, OTHER)
KEYS = ("k1", "k2")
OPENING = Decimal(40)
ON_ITS_WAY = frozenset({_S.DETECTED, _S.CONFIRMING})


class Depositing(RuleBasedStateMachine):
    """What the database, Kafka and the exchange hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now: datetime = NOW
        self.claims: dict[tuple[str, str], Claim] = {}
        self.deposits: dict[str, Deposit] = {}
        self.announcements: dict[str, Announcement] = {}
        self.disputes: set[tuple[str, str, DisputeKind]] = set()
        self.balances: dict[AccountKey, Balance] = {account("USDT", user): Balance(OPENING) for user in USERS}
        self.heads = {name: ChainHead() for name in (*USERS, COMMANDS_ACCOUNT, TRIPS_ACCOUNT)}
        self.status = dict.fromkeys(USERS, "active")
        self.transfers: set[str] = set()
        self.cleared: dict[str, Decimal] = {}
        self.advanced = Decimal(0)
        self.reports: list[DepositReport | AnnouncementReport] = []
        self.finals: dict[str, Result] = {}
        # The exchange: its entries, by id, as it would show them now.
        self.entries: dict[str, DepositReport] = {}
        self.ever_credited: set[str] = set()
        # Entries that are listed a second time under another id, as if they were other outputs.
        self.listed_again: set[str] = set()
        self.requests = self.records = 0

    def _open(self) -> Changes:
        trail = AuditTrail(dict(self.heads), self.now)
        changes = Changes(topics=TOPICS, now=self.now, actor="test", trail=trail, ledger=Ledger(dict(self.balances)))
        changes.claims = dict(self.claims)
        changes.deposits = DepositBook(
            deposits=Tracked(self.deposits),
            announcements=Tracked(self.announcements),
            disputes=set(self.disputes),
            opened_at={(user, EXCHANGE): NOW - timedelta(hours=1) for user in USERS},
            watched_from={(user, key): NOW - timedelta(hours=1) for user in USERS for key in KEYS},
            user_status=dict(self.status),
        )
        return changes

    def _store(self, changes: Changes) -> None:
        """Everything at once, as one database and one Kafka transaction do; refuses what the database's constraints refuse."""
        for key in changes.finished:
            assert key in changes.claimed or self.claims[key].result is None, "a key would be answered twice"
        self.claims = {key: replace(claim, result=changes.finished.get(key, claim.result)) for key, claim in changes.claims.items()}
        book = changes.deposits
        for deposit_id in book.deposits.made:
            assert deposit_id not in self.deposits, "a deposit would be written twice"
        for dispute in book.disputes_made:
            assert dispute.key not in self.disputes, "a dispute would be noted twice"
        self.deposits, self.announcements, self.disputes = dict(book.deposits), dict(book.announcements), book.disputes
        entries = [one.exchange_deposit_id for one in self.deposits.values()]
        assert len(entries) == len(set(entries)), "one entry of the history would be two deposits"
        for user in changes.frozen:
            assert self.status[user] == "active", "a user would be frozen twice"
            self.status[user] = "frozen"
        self.heads, self.balances = changes.trail.heads, changes.ledger.balances
        for transfer in changes.ledger.transfers:
            assert transfer.transfer_id not in self.transfers, "a transfer would be written twice"
            self.transfers.add(transfer.transfer_id)
            sign = (transfer.debit.owner == "@clearing") - (transfer.credit.owner == "@clearing")
            assert transfer.order_id is not None
            self.cleared[transfer.order_id] = self.cleared.get(transfer.order_id, Decimal(0)) + sign * transfer.amount
            self.advanced += transfer.amount if transfer.debit.owner == "@shortfall" else 0
        for output in changes.outputs:
            if output.topic == TOPICS.results:
                result = RESULT.validate_json(output.value or b"")
                if result.final and not result.replayed and result.order_id is not None:
                    assert result.order_id not in self.finals
                    self.finals[result.order_id] = result

    @rule(seconds=st.sampled_from([1, 30, 3_000]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(amount=st.sampled_from(["10", "20"]), user=st.sampled_from(USERS), soon=st.booleans(), again=st.booleans())
    def announce(self, amount: str, user: str, soon: bool, again: bool) -> None:
        self.requests += 0 if again else 1
        document = announcing(amount=amount, user_id=user, idempotency_key=f"key-{self.requests}")
        if soon:
            document["expires_at"] = (self.now + timedelta(seconds=20)).isoformat()
        changes = self._open()
        accounts = {one: account_state(user_id=one) for one in USERS}
        state = intake_state(accounts=accounts, api_keys={(one, "k1"): key for one in USERS for key in intake_state().api_keys.values()})
        self.records += 1
        record = arrival(document, self.records, appended_at=self.now)
        decide([record], state, changes)
        self._store(changes)

    @rule(
        user=st.sampled_from(USERS),
        amount=st.sampled_from(["10", "20"]),
        shared=st.booleans(),
        status=st.sampled_from(sorted(ON_ITS_WAY)),
    )
    def somebody_sends(self, user: str, amount: str, shared: bool, status: DepositStatus) -> None:
        """A deposit arrives; `shared`: as another output of the newest transaction."""
        number = len(self.entries)
        transaction = f"t{max(number - 1, 0) if shared else number}"
        self.entries[f"e{number}"] = deposit_report(
            status, exchange_deposit_id=f"e{number}", transaction_id=transaction, user_id=user, amount=amount, arrived_at=self.now
        )

    @rule(position=st.integers(0, 9), status=st.sampled_from(sorted({_S.CONFIRMING, _S.CREDITED, _S.REJECTED})))
    def exchange_decides(self, position: int, status: DepositStatus) -> None:
        """What is on its way goes on, what is credited may be taken back; what is lost stays so."""
        moving = [one for one in self.entries.values() if one.deposit_status is not _S.REJECTED]
        if not moving:
            return
        entry = moving[position % len(moving)]
        if entry.deposit_status is _S.CREDITED and status is not _S.REJECTED:
            return
        self.entries[entry.exchange_deposit_id] = entry.model_copy(update={"deposit_status": status})
        if status is _S.CREDITED:
            self.ever_credited.add(entry.exchange_deposit_id)

    @rule(position=st.integers(0, 9))
    def exchange_lists_again(self, position: int) -> None:
        if self.entries:
            self.listed_again.add(list(self.entries)[position % len(self.entries)])

    @rule(key=st.sampled_from(KEYS), skip=st.integers(0, 3), settled=st.booleans(), shared=st.sampled_from([False, False, True]))
    def watch(self, key: str, skip: int, settled: bool, shared: bool) -> None:
        """Reads the history with one of the user's keys; some entries may not be listed yet. `settled`: its reports are applied at once.
        `shared`: another user's key is for the same account."""
        shown = [entry for number, entry in enumerate(self.entries.values()) if not skip or number % 4 != skip]
        shown += [self.entries[name].model_copy(update={"exchange_deposit_id": f"{name}-again"}) for name in sorted(self.listed_again)]
        if shared:
            shown = [entry.model_copy(update={"user_id": OTHER}) for entry in shown]
        book = self._open().deposits
        told: list[DepositReport | AnnouncementReport] = []
        for entry in shown:
            report = DepositReport.model_validate_json(
                entry.model_copy(update={"looked_up_at": self.now, "api_key_id": key}).model_dump_json()
            )
            if verdict_on(report, book) is not None:
                told.append(report)
        told += [expiry(one) for one in book.expected() if one.expires_at <= self.now]
        # Two looks never carry the same time.
        self.now += timedelta(microseconds=1)
        if settled:
            self._apply(told)
        else:
            self.reports += told

    @rule(positions=st.lists(st.integers(0, 20), min_size=1, max_size=5), keep=st.booleans(), crash=st.booleans())
    def settle(self, positions: list[int], keep: bool, crash: bool) -> None:
        """Applies reports in any order, some of them twice or late; a worker that dies leaves nothing, and they are read again."""
        if not self.reports:
            return
        batch = [self.reports[position % len(self.reports)] for position in positions]
        if not crash:
            self._apply(batch)
            if not keep:
                self.reports = [report for report in self.reports if report not in batch]

    def _apply(self, batch: list[DepositReport | AnnouncementReport]) -> None:
        changes = self._open()
        for report in batch:
            if isinstance(report, DepositReport):
                apply_deposit_report(report, changes)
            else:
                apply_announcement_report(report, changes)
        self._store(changes)

    @rule(user=st.sampled_from(USERS), amount=st.sampled_from([5, 40]))
    def user_holds(self, user: str, amount: int) -> None:
        """An order holds funds; nobody fills it."""
        before = self.balances[account("USDT", user)]
        if before.available >= amount:
            self.balances[account("USDT", user)] = replace(before, pending=before.pending + amount)

    @invariant()
    def each_deposit_is_credited_once(self) -> None:
        """Credited is in, reversed is out again, all else never was; and nothing is credited that the exchange never had."""
        for one in self.deposits.values():
            assert self.cleared.get(one.deposit_id, Decimal(0)) == (one.amount if one.status is _S.CREDITED else 0)
            if one.credited_at is not None:
                assert one.exchange_deposit_id.removesuffix("-again") in self.ever_credited
        credited = {one.exchange_deposit_id for one in self.deposits.values() if one.status is _S.CREDITED}
        assert not any({name, f"{name}-again"} <= credited for name in self.listed_again), "listed twice, credited twice"
        assert self.cleared.keys() <= self.deposits.keys()

    @invariant()
    def money_is_where_the_deposits_say(self) -> None:
        """Nothing negative, holds untouched; what users have is their opening, what was credited, and what the house advanced."""
        credited = sum((one.amount for one in self.deposits.values() if one.status is _S.CREDITED), Decimal(0))
        owned = sum((balance.posted for balance in self.balances.values()), Decimal(0))
        assert owned == 2 * OPENING + credited + self.advanced
        assert all(balance.available >= 0 and balance.pending >= 0 for balance in self.balances.values())
        short = {one.user_id for one in self.deposits.values() if one.advanced > 0}
        assert short == {user for user, status in self.status.items() if status == "frozen"}

    @invariant()
    def announcements_have_one_answer_and_one_deposit(self) -> None:
        """A deposit completes one, and an answer is final when its announcement is over."""
        completed = [one for one in self.announcements.values() if one.status is AnnouncementStatus.COMPLETED]
        assert len({one.deposit_id for one in completed}) == len(completed)
        for one in self.announcements.values():
            assert (one.announcement_id in self.finals) is (one.status is not AnnouncementStatus.EXPECTED)
            if one.status is AnnouncementStatus.COMPLETED:
                deposit = self.deposits[one.deposit_id or ""]
                assert one.fits(deposit) and deposit.credited_at is not None

    def teardown(self) -> None:
        """When all is looked at once more, our books are the exchange's, but for what a person must look at."""
        self.now += timedelta(seconds=1)
        self._apply(list(self.reports))
        self.watch(KEYS[0], 0, True, False)
        self.watch(KEYS[0], 0, True, False)
        disputed = {deposit_id for _, deposit_id, _ in self.disputes}
        for entry in self.entries.values():
            ours = self.deposits.get(deposit_id_in(entry))
            is_credited = ours is not None and ours.status is _S.CREDITED
            assert is_credited == (entry.deposit_status is _S.CREDITED) or deposit_id_in(entry) in disputed


TestDepositing = Depositing.TestCase
TestDepositing.settings = settings(stateful_step_count=40, deadline=None)
