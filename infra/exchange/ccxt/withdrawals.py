"""Withdrawals at a venue: sent once, its history, and what it pays out over which networks. The part of the gateway that moves funds out.

Invariants:
1. `Taken` only with the venue's own id; `Refused` only with a proof (the venue's white list for withdrawals); all else is `InDoubt`.
2. What is on the wire is compared whole with what was recorded before it is handed over (wire.py), and the venue may not take it in beyond
   its deadline.
3. A history is whole or it is a `LookUpFailed`: what it does not show counts as a proof elsewhere. A row that carries a client id of ours
   and cannot be read makes it unreadable.

Start with `PayoutCalls.withdraw`.
"""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from infra.exchange.ccxt.account_calls import TOO_LATE, AccountCalls, whole_list
from infra.exchange.ccxt.key_accounts import is_account_of, other_account
from infra.exchange.ccxt.reading import UnreadableBooks, amount, milliseconds, note_unreadable, reading, shown, text
from infra.exchange.ccxt.transport import Call
from infra.exchange.ccxt.wire import asked, withdrawal_form
from infra.exchange.gateway import LastLook, VenueUnavailable
from infra.exchange.venues.venue import VenueWithdrawals
from pipeline.model.detail import storable
from pipeline.model.venue import InDoubt, KeyVersion, LookUpFailed, Refused
from pipeline.model.withdrawal import Network, Taken, VenueWithdrawal, WithdrawalHistory, WithdrawalOutcome, WithdrawalSubmission
from schemas.reasons import ReasonCode

# What this system's own client withdrawal ids look like (pipeline.model.identifiers).
_OURS: Final = re.compile(r"cw[0-9a-f]{28}")
_DETAIL_MAX: Final = 200


class PayoutCalls(AccountCalls):
    """What `CcxtGateway` has for withdrawals."""

    async def withdraw(self, submission: WithdrawalSubmission, last_look: LastLook | None = None) -> WithdrawalOutcome:
        names = self._venue.withdrawals
        if names is None or submission.exchange != self.exchange:
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
        form = withdrawal_form(self._venue, names, submission, signed_ms, window_ms, credentials.api_key)
        call = Call(order=True, signed_ms=signed_ms, not_after_ms=intent_ms + window_ms, form=form, last_look=last_look)
        params: dict[str, object] = {
            names.network: submission.network,
            names.client_withdrawal_id: submission.client_withdrawal_id,
            self._venue.order.receive_window: window_ms,
        }
        if submission.address_tag is not None:
            # ccxt's own word for it.
            params["tag"] = submission.address_tag
        async with self._calling(call):
            try:
                total = format(asked(names, submission), "f")
                answer = await exchange.withdraw(submission.asset, total, submission.address, params)
            except Exception as error:  # noqa: BLE001  whatever failed after the hand-over, the evidence decides
                if call.look_failure is not None and not call.handed_over:
                    raise call.look_failure from None
                return self._judge(call, error, credentials, names.refusals)
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
        names = self._venue.withdrawals
        if names is None:
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
        window = {"startTime": milliseconds(since + difference), "endTime": milliseconds(until + difference)}

        async def ask() -> WithdrawalHistory:
            rows = await whole_list(getattr(exchange, names.history_call), window, names.history_page, "withdrawals")
            ours = [_read_row(row, names) for row in rows if _OURS.fullmatch(str(row.get(names.client_withdrawal_id)))]
            return WithdrawalHistory(looked_up_at, tuple(ours))

        return await self._answer_to("withdrawals", Call(), credentials, ask)

    async def withdrawal_networks(self, user_id: str, api_key_id: str) -> dict[tuple[str, str], Network]:
        names = self._venue.withdrawals
        if names is None:
            return {}
        account = await self._account(user_id, api_key_id)
        if isinstance(account, Refused):
            raise VenueUnavailable(account.detail)
        _, exchange = account
        observed_at = self._clock()

        async def ask() -> dict[tuple[str, str], Network]:
            return _read_networks(await getattr(exchange, names.networks_call)(), observed_at)

        async with self._calling(Call()):
            return await self._public_answer_to("networks", ask)


def _read_row(row: Mapping[str, Any], names: VenueWithdrawals) -> VenueWithdrawal:
    """One row of the history. Raises UnreadableBooks."""
    with reading("a withdrawal"):
        return _withdrawal(row, names)


def _withdrawal(row: Mapping[str, Any], names: VenueWithdrawals) -> VenueWithdrawal:
    status = names.statuses.get(str(row.get("status")))
    if status is None:
        raise UnreadableBooks(f"the status of a withdrawal is {shown(row.get('status'))}")
    withdrawal_id = text(row.get("id"), "the id of a withdrawal")
    if not withdrawal_id:
        raise UnreadableBooks("a withdrawal has no id")
    detail = storable(str(row.get("info") or "")[:_DETAIL_MAX])
    return VenueWithdrawal(
        client_withdrawal_id=str(row[names.client_withdrawal_id]),
        exchange_withdrawal_id=withdrawal_id,
        status=status,
        asset=text(row.get(names.asset), "its asset"),
        network=text(row.get(names.network), "its network"),
        address=text(row.get(names.address), "its address"),
        amount=amount(row.get("amount"), "the amount paid out"),
        fee=amount(row.get("transactionFee"), "the fee"),
        transaction_id=text(row.get("txId"), "its transaction") or None,
        detail=detail or None,
    )


def _read_networks(answer: object, observed_at: datetime) -> dict[tuple[str, str], Network]:
    """Networks by asset and name. One whose figures cannot be read is left out: nothing is paid out over it. Raises UnreadableBooks."""
    if not isinstance(answer, list):
        raise UnreadableBooks("its list of assets is no list")
    found: dict[tuple[str, str], Network] = {}
    problem: UnreadableBooks | None = None
    for asset in answer:
        try:
            with reading("an asset"):
                rows = list(asset.get("networkList") or ())
        except UnreadableBooks as error:
            problem = error
            continue
        for row in rows:
            try:
                with reading("a network"):
                    network = _network(asset, row, observed_at)
            except UnreadableBooks as error:
                problem = error
            else:
                found[network.asset, network.network] = network
    if problem is not None and not found:
        raise problem
    return found


def _network(asset: Mapping[str, Any], row: Mapping[str, Any], observed_at: datetime) -> Network:
    return Network(
        asset=text(asset["coin"], "the asset"),
        network=text(row["network"], "the network"),
        enabled=row.get("withdrawEnable") is True and asset.get("withdrawAllEnable") is True,
        fee=amount(row.get("withdrawFee"), "the fee"),
        amount_min=amount(row.get("withdrawMin"), "the least amount"),
        amount_max=amount(row["withdrawMax"], "the greatest amount") if row.get("withdrawMax") else None,
        amount_step=amount(row.get("withdrawIntegerMultiple") or "0", "the step"),
        observed_at=observed_at,
    )
