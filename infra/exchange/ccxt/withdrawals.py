"""Withdrawals at a venue: sent once, its history, and what it pays out over which networks. The part of the gateway that moves funds out.

Invariants:
1. `Taken` only with the venue's own id; `Refused` only with a proof (the venue's white list for withdrawals); all else is `InDoubt`.
2. What is on the wire is compared whole with what was recorded before it is handed over (venues/wire.py), and the venue may not take it in
   beyond its deadline.
3. A history is whole or it is a `LookUpFailed`: what it does not show counts as a proof elsewhere. A row that carries a client id of ours
   and cannot be read makes it unreadable.

Start with `PayoutCalls.withdraw`.
"""

from datetime import datetime, timedelta

from infra.exchange.ccxt.account_calls import TOO_LATE, AccountCalls
from infra.exchange.ccxt.key_accounts import is_account_of, other_account
from infra.exchange.ccxt.transport import Call
from infra.exchange.gateway import PreSendCheck, VenueUnavailable
from infra.exchange.venues.reading import UnreadableBooks, milliseconds, note_unreadable, reading, text
from pipeline.model.venue import InDoubt, KeyVersion, LookUpFailed, Refused
from pipeline.model.withdrawal import Network, Taken, WithdrawalHistory, WithdrawalOutcome, WithdrawalSubmission
from schemas.reasons import ReasonCode


class PayoutCalls(AccountCalls):
    """What `CcxtGateway` has for withdrawals."""

    @property
    def history_span(self) -> timedelta:
        return self._venue.history_span

    @property
    def listed_within(self) -> timedelta:
        return self._venue.listed_within

    async def withdraw(self, submission: WithdrawalSubmission, pre_send_check: PreSendCheck | None = None) -> WithdrawalOutcome:
        withdrawals = self._venue.withdrawals
        if withdrawals is None or submission.exchange != self.exchange:
            return Refused(ReasonCode.REQUEST_UNSUPPORTED, f"{self.exchange} pays nothing out here; nothing was sent")
        account = await self._account(submission.user_id, submission.api_key_id)
        if isinstance(account, Refused):
            return account
        credentials, exchange = account
        if submission.sent_with is not None and credentials.version not in {None, submission.sent_with.version}:
            # The intent names another key. Its turn comes again, with an intent that names this one.
            return Refused(ReasonCode.EXCHANGE_UNAVAILABLE, f"key {submission.api_key_id} was replaced meanwhile; nothing was sent")
        window_ms = self._window_ms(submission.submitting_at, submission.expires_at)
        if window_ms is None:
            return TOO_LATE
        intent_ms = milliseconds(submission.submitting_at)
        signed_ms = intent_ms + self._connection.clock_difference_ms
        form = withdrawals.form(submission, signed_ms, window_ms, credentials.api_key)
        call = Call(order=True, signed_ms=signed_ms, not_after_ms=intent_ms + window_ms, form=form, pre_send_check=pre_send_check)
        async with self._calling(call):
            try:
                answer = await withdrawals.pay(exchange, submission, signed_ms, window_ms)
            except Exception as error:  # noqa: BLE001  whatever failed after the hand-over, the evidence decides
                if call.look_failure is not None and not call.handed_over:
                    raise call.look_failure from None
                return self._judge(call, error, credentials, withdrawals.refusal)
        try:
            with reading("the answer"):
                taken_as = text(answer.get("id"), "the id of the withdrawal")
        except UnreadableBooks as error:
            note_unreadable(self.exchange, "withdraw", error)
            return InDoubt(self._clean(f"{self.exchange} answered, but {error}", credentials))
        return Taken(taken_as) if taken_as else InDoubt(f"{self.exchange} answered without an id of the withdrawal")

    async def withdrawal_history(
        self,
        user_id: str,
        api_key_id: str,
        since: datetime,
        until: datetime,
        sent_with: KeyVersion | None = None,
        sent_at: datetime | None = None,
    ) -> WithdrawalHistory | LookUpFailed:
        withdrawals = self._venue.withdrawals
        if withdrawals is None:
            return LookUpFailed(f"{self.exchange} has no history of withdrawals here")
        account = await self._account(user_id, api_key_id)
        if isinstance(account, Refused):
            return LookUpFailed(account.detail)
        credentials, exchange = account
        if not is_account_of(credentials, sent_with, sent_at):
            return LookUpFailed(other_account(api_key_id))
        # Before the question: a history never counts as read later than it was.
        looked_up_at = await self._connection.venue_time()
        if looked_up_at is None:
            return LookUpFailed(f"{self.exchange} did not tell its clock, so what its history does not show proves nothing")
        difference = timedelta(milliseconds=self._connection.clock_difference_ms)

        async def ask() -> WithdrawalHistory:
            rows = await withdrawals.history(exchange, milliseconds(since + difference), milliseconds(until + difference))
            return WithdrawalHistory(looked_up_at, tuple(ours for row in rows if (ours := withdrawals.read(row)) is not None))

        return await self._answer_to("withdrawals", Call(), credentials, ask)

    async def withdrawal_networks(self, user_id: str, api_key_id: str) -> dict[tuple[str, str], Network]:
        withdrawals = self._venue.withdrawals
        if withdrawals is None:
            return {}
        account = await self._account(user_id, api_key_id)
        if isinstance(account, Refused):
            raise VenueUnavailable(account.detail)
        _, exchange = account
        observed_at = self._clock()

        async def ask() -> dict[tuple[str, str], Network]:
            return await withdrawals.networks(exchange, observed_at)

        async with self._calling(Call()):
            return await self._public_answer_to("networks", ask)
