"""Watches withdrawals that are in doubt, being paid out, not approved in time, or counted as not executed a short while ago, and reports on
`trade.reports` what is proven.

It changes nothing itself: every change goes through the settlement agent's step. So a report that is lost is made again at the next look,
and one that comes twice changes nothing. Each worker looks after the withdrawals that were sent from the partitions it owns, and the owner
of an exchange's partition 0 after those that nobody approved.

Invariants:
1. An account's history is asked for as a whole, not per withdrawal, and no more often than the setting: Binance lets an account ask ten
   times a minute (UID weight 18,000 of 180,000).
2. Of a withdrawal in doubt the first look that does not show it is reported, and the one after which that is a proof. What is between says
   nothing new.
3. The history is asked from a withdrawal's first attempt on, however often it was queued again: all attempts have one client id.
4. Two rows with the same client id are money paid twice: nothing is concluded, its user is halted, and a person must look.
"""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from time import monotonic
from typing import Final

import structlog

from agents.watches.looks import by_itself
from agents.watches.watch import Watch, WatchContext
from infra.exchange.gateway import WithdrawalGateway
from infra.metrics import LOOKS_UNPROVEN
from infra.postgres.doubts import note_looks
from infra.postgres.withdrawals import unapproved_withdrawals, unfinished_withdrawals
from pipeline.model.absence import absence_is_proven
from pipeline.model.detail import storable
from pipeline.model.rules import Rules
from pipeline.model.venue import KeyVersion, LookUpFailed
from pipeline.model.withdrawal import TERMINAL, VenueWithdrawal, Withdrawal
from schemas.commands import HaltLevel, HaltScope, HaltTrip
from schemas.orders import WithdrawalStatus
from schemas.withdrawals import WithdrawalFinding, WithdrawalReport

log = structlog.get_logger(__name__)

_PAGE: Final = 500
_LOOK_SECONDS: Final = 1.0
# Room for clocks that differ, and for times that a history shows in whole seconds.
_MARGIN: Final = timedelta(seconds=60)
# Where nothing of an account is unfinished, and something only watched, it is asked about more seldom.
_WATCHED_POLLS: Final = 4

# A user's, by the key that is asked with.
Account = tuple[str, str]


def report_of(withdrawal: Withdrawal, found: list[VenueWithdrawal], looked_up_at: datetime, rules: Rules) -> WithdrawalReport | None:
    """The report that the rows of a history with this withdrawal's client id are worth; None when they prove nothing new. `looked_up_at` is
    when its reading began, by the exchange's clock.

    Raises ValueError for rows that cannot be: two of them, or one about another asset or address.
    """
    if len(found) > 1:
        ids = ", ".join(row.exchange_withdrawal_id for row in found)
        raise ValueError(f"the exchange has {len(found)} withdrawals with its client id: {ids}")
    if not found:
        is_news = withdrawal.absent_since is None or absence_is_proven(withdrawal, looked_up_at, rules)
        if withdrawal.status is not WithdrawalStatus.IN_DOUBT or not is_news:
            return None
        return _report(withdrawal, WithdrawalFinding.ABSENT, looked_up_at)
    [row] = found
    asked = withdrawal.asset, withdrawal.address.lower()
    if (row.asset, row.address.lower()) != asked or row.network not in {"", withdrawal.network}:
        raise ValueError(f"the exchange's withdrawal {row.exchange_withdrawal_id} with its client id is about another asset or address")
    # What counts as not executed and was not paid is what was said of it.
    if row.status is withdrawal.status or (withdrawal.status in TERMINAL and row.status is WithdrawalStatus.FAILED):
        return None
    return WithdrawalReport(
        schema_version=1,
        withdrawal_id=withdrawal.withdrawal_id,
        user_id=withdrawal.user_id,
        attempt=withdrawal.attempt,
        finding=WithdrawalFinding.FOUND,
        looked_up_at=looked_up_at,
        exchange_withdrawal_id=row.exchange_withdrawal_id,
        withdrawal_status=row.status,
        amount=row.amount,
        fee=row.fee,
        transaction_id=row.transaction_id,
        detail=row.detail,
    )


def _report(withdrawal: Withdrawal, finding: WithdrawalFinding, at: datetime) -> WithdrawalReport:
    return WithdrawalReport(
        schema_version=1,
        withdrawal_id=withdrawal.withdrawal_id,
        user_id=withdrawal.user_id,
        attempt=withdrawal.attempt,
        finding=finding,
        looked_up_at=at,
    )


def windows_of(withdrawals: Iterable[Withdrawal], span: timedelta) -> list[list[Withdrawal]]:
    """The withdrawals that were sent with one key id, oldest first, in groups that one question of `span` can cover. Those that
    were sent with different keys under that id are asked about apart: one key may answer for some of them only."""
    groups: list[list[Withdrawal]] = []
    newest: dict[KeyVersion | None, list[Withdrawal]] = {}
    sent = [(one.sent_from, one) for one in withdrawals if one.sent_from is not None]
    for sent_from, withdrawal in sorted(sent, key=lambda pair: pair[0]):
        group = newest.get(withdrawal.sent_with)
        first = group[0].sent_from if group else None
        if group is None or first is None or sent_from - first > span:
            newest[withdrawal.sent_with] = group = []
            groups.append(group)
        group.append(withdrawal)
    return groups


def spans_of(group: Sequence[Withdrawal], now: datetime, span: timedelta, listed_within: timedelta) -> list[tuple[datetime, datetime]]:
    """The times, one after another, in which the exchange can have taken in any attempt of these withdrawals: from the first intent of all
    to `listed_within` after the newest, each no longer than `span`."""
    since = min(one.sent_from for one in group if one.sent_from is not None) - _MARGIN
    newest = max(one.submitting_at for one in group if one.submitting_at is not None)
    end = min(newest + listed_within, now) + _MARGIN
    spans = []
    while since < end:
        spans.append((since, min(since + span, end)))
        since += span
    return spans


class WithdrawalWatch:
    """Watches one exchange. `poll_seconds`: how often one account's history may be asked for."""

    def __init__(self, context: WatchContext, exchange: str, gateway: WithdrawalGateway, poll_seconds: float) -> None:
        self._context = context
        self._exchange = exchange
        self._gateway = gateway
        self._poll_seconds = poll_seconds
        self._due: dict[Account, float] = {}
        self._told: set[str] = set()
        # Why looks of this round proved nothing, by withdrawal in doubt.
        self._unproven: dict[str, str] = {}

    @property
    def watch(self) -> Watch:
        return Watch("withdrawals", min(_LOOK_SECONDS, self._poll_seconds), self.round, self._exchange)

    async def round(self) -> None:
        """Looks at the accounts that are due. Raises Retryable and KafkaError while a service is out of reach."""
        partitions, database, clock = list(self._context.owned(self._exchange)), self._context.database, self._context.clock
        if 0 in partitions:
            for late in await unapproved_withdrawals(database, self._exchange, clock(), _PAGE):
                await self._publish(_report(late, WithdrawalFinding.UNAPPROVED, clock()))
        accounts: dict[Account, list[Withdrawal]] = {}
        after = ""
        while partitions:
            page = await unfinished_withdrawals(database, self._exchange, partitions, after, _PAGE, clock())
            for one in page:
                accounts.setdefault((one.user_id, one.api_key_id), []).append(one)
            if len(page) < _PAGE:
                break
            after = page[-1].withdrawal_id
        now = monotonic()
        self._due = {account: due for account, due in self._due.items() if due > now}
        async with asyncio.TaskGroup() as group:
            for account, unfinished in accounts.items():
                if account not in self._due:
                    # Counted from the answer on as well: it may take a while.
                    self._due[account] = now + self._poll_seconds
                    name = ":".join((self._exchange, *account))
                    group.create_task(by_itself("withdrawals", name, partial(self._look_up, account, unfinished)))
        unproven, self._unproven = self._unproven, {}
        await by_itself("withdrawals", "looks", partial(note_looks, database, unproven, clock()))

    async def _look_up(self, account: Account, unfinished: list[Withdrawal]) -> None:
        user_id, api_key_id = account
        for group in windows_of(unfinished, self._gateway.history_span):
            # By the exchange's own id: one that moves from one page or span to the next comes twice.
            by_client_id: dict[str, dict[str, VenueWithdrawal]] = {}
            looks: list[datetime] = []
            sent_at = min(one.submitting_at for one in group if one.submitting_at is not None)
            spans = spans_of(group, self._context.clock(), self._gateway.history_span, self._gateway.listed_within)
            for since, until in spans:
                history = await self._gateway.withdrawal_history(user_id, api_key_id, since, until, group[0].sent_with, sent_at)
                if isinstance(history, LookUpFailed):
                    log.debug("withdrawal_history_unknown", exchange=self._exchange, detail=history.detail)
                    looks.clear()
                    self._note_unproven(group, history.detail)
                    break
                looks.append(history.looked_up_at)
                for row in history.rows:
                    by_client_id.setdefault(row.client_withdrawal_id, {})[row.exchange_withdrawal_id] = row
            # A history that was not shown whole says nothing of its group; the others are asked about all the same.
            for one in group if looks else ():
                try:
                    report = report_of(one, list(by_client_id.get(one.client_withdrawal_id, {}).values()), min(looks), self._context.rules)
                except ValueError as error:
                    await self._halt_user(one, str(error))
                    continue
                is_proof = report is not None and one.absent_since is not None
                if one.client_withdrawal_id not in by_client_id and not is_proof:
                    self._note_unproven([one], "the exchange's history does not show it, which proves nothing yet")
                if report is not None:
                    await self._publish(report)
        only_watched = all(one.status in TERMINAL for one in unfinished)
        self._due[account] = monotonic() + self._poll_seconds * (_WATCHED_POLLS if only_watched else 1)

    def _note_unproven(self, withdrawals: Iterable[Withdrawal], detail: str) -> None:
        for one in withdrawals:
            if one.status is WithdrawalStatus.IN_DOUBT:
                LOOKS_UNPROVEN.labels("withdrawal").inc()
                self._unproven[one.withdrawal_id] = storable(detail)

    async def _halt_user(self, withdrawal: Withdrawal, what: str) -> None:
        """Stops the user: what the exchange shows cannot be, so nobody knows what is true of the account. Again at every look."""
        if withdrawal.withdrawal_id not in self._told:
            self._told.add(withdrawal.withdrawal_id)
            money = "its funds stay held and its user is halted; compare the exchange's own list"
            log.error("withdrawal_does_not_fit", withdrawal_id=withdrawal.withdrawal_id, what=what, money=money)
        now = self._context.clock()
        trip = HaltTrip(
            schema_version=1,
            trip_id=f"trip:withdrawal:{withdrawal.withdrawal_id}:{int(now.timestamp())}",
            scope=HaltScope.USER,
            target=withdrawal.user_id,
            level=HaltLevel.HALT,
            reason=f"withdrawal {withdrawal.withdrawal_id}: {what}"[:300],
            tripped_at=now,
        )
        await self._context.report(trip, trip.trip_id)

    async def _publish(self, report: WithdrawalReport) -> None:
        await self._context.report(report, report.withdrawal_id)
