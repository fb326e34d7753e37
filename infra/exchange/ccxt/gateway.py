"""The gateway over ccxt: one instance per venue, all accounts, real HTTP.

Invariants:
1. An outcome is `Confirmed` only with the venue's order id, our client order id and a status that can be read; `Refused` only with a proof
   (venues.proven_refusal); all else is `InDoubt`.
2. The signed timestamp of an order is its recorded intent (`submitting_at`) plus the measured clock difference, never the time of signing:
   a process that was paused between intent and sending cannot land an order after the receive window.
3. No text that leaves this module holds a key, a secret, a signature or a URL's query.
4. Everything is bounded: calls at a time, accounts kept, the time of each call, pages read.
Start with `submit`, then `_judge`.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import ccxt

from infra.exchange.ccxt.account_calls import TOO_LATE
from infra.exchange.ccxt.balances import BalanceCalls
from infra.exchange.ccxt.books import ID_MAX, read_markets, read_order, search, with_fees
from infra.exchange.ccxt.connection import VenueConnection
from infra.exchange.ccxt.deposits import DepositCalls
from infra.exchange.ccxt.key_accounts import is_account_of, other_account
from infra.exchange.ccxt.key_calls import KeyCalls
from infra.exchange.ccxt.resting import after_cancel, knowing
from infra.exchange.ccxt.transport import Call, current_call
from infra.exchange.ccxt.withdrawals import PayoutCalls
from infra.exchange.gateway import CancelOutcome, Credentials, CredentialSource, PreSendCheck, VenueUnavailable
from infra.exchange.venues.reading import UnreadableBooks, milliseconds, note_unreadable, reading, text
from infra.exchange.venues.registry import venue
from infra.exchange.venues.venue import Order, WhiteList, canceled_id, proven_refusal
from infra.exchange.venues.wire import NotHandedOver
from pipeline.model.detail import storable
from pipeline.model.venue import (
    Absent,
    Confirmed,
    Found,
    InDoubt,
    LookUpFailed,
    LookUpOutcome,
    Market,
    OrderReference,
    Quote,
    Refused,
    Submission,
    SubmissionOutcome,
    VenueOrder,
    window_of,
)
from schemas.orders import Mode, OrderStatus
from schemas.reasons import ReasonCode

_DETAIL_MAX: Final = 300
# Room for the error of the clock difference around the time in which the venue can have accepted an order.
_SEARCH_MARGIN: Final = timedelta(seconds=60)
_SIGNATURE: Final = re.compile(r"(?i)(signature|sign|apikey|api_key)=[^&\s\"']*")
_QUERY: Final = re.compile(r"(https?://[^\s?]*)\?\S*")
_NOTHING_SENT: Final = "nothing was sent"


def _now() -> datetime:
    return datetime.now(UTC)


class CcxtGateway(PayoutCalls, DepositCalls, BalanceCalls, KeyCalls):
    """See `gateway.Gateway`, for what is paid out `gateway.WithdrawalGateway`, for what arrives `gateway.DepositGateway`, and for what
    accounts hold `gateway.AccountGateway`.

    `base_url` redirects every endpoint to a sandbox or the simulator, keeping its path. `timeout_ms` bounds each HTTP request. Raises
    UnknownVenue for an exchange without a proof table and ValueError for a receive window that the venue would refuse.
    """

    def __init__(
        self,
        exchange_id: str,
        credentials: CredentialSource,
        *,
        base_url: str | None = None,
        timeout_ms: int = 10_000,
        receive_window: timedelta = timedelta(seconds=5),
        venue_timeout: timedelta = timedelta(seconds=10),
        rate_limit: bool = True,
        concurrency: int = 32,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._venue = venue(exchange_id)
        if not timedelta(0) < receive_window <= self._venue.receive_window_max:
            raise ValueError(f"{exchange_id} takes a receive window of up to {self._venue.receive_window_max}, not {receive_window}")
        self._credential_source = credentials
        self._receive_window = receive_window
        self._venue_timeout = venue_timeout
        self._clock = clock
        self._slots = asyncio.Semaphore(concurrency)
        self._connection = VenueConnection(
            self._venue,
            base_url=base_url,
            timeout_ms=timeout_ms,
            receive_window=receive_window,
            rate_limit=rate_limit,
            # Public questions do not wait for a slot.
            connections_max=concurrency + 4,
            clock=clock,
        )

    @property
    def exchange(self) -> str:
        return self._venue.exchange_id

    @property
    def receive_window(self) -> timedelta:
        return self._receive_window

    @property
    def venue_timeout(self) -> timedelta:
        return self._venue_timeout

    async def submit(self, submission: Submission, pre_send_check: PreSendCheck | None = None) -> SubmissionOutcome:
        refusal = self._unsupported(submission)
        if refusal is not None:
            return refusal
        account = await self._account(submission.user_id, submission.api_key_id)
        if isinstance(account, Refused):
            return account
        credentials, exchange = account
        if submission.sent_with is not None and credentials.version not in {None, submission.sent_with.version}:
            # The intent names another key. Its turn comes again, with an intent that names this one.
            return Refused(ReasonCode.EXCHANGE_UNAVAILABLE, f"key {submission.api_key_id} was replaced meanwhile; {_NOTHING_SENT}")
        if submission.symbol not in exchange.markets:
            return Refused(ReasonCode.SYMBOL_UNKNOWN, f"{self.exchange} has no market {submission.symbol}; {_NOTHING_SENT}")
        window_ms = self._window_ms(submission.submitting_at, submission.expires_at)
        if window_ms is None:
            return TOO_LATE
        intent_ms = milliseconds(submission.submitting_at)
        signed_ms = intent_ms + self._connection.clock_difference_ms
        market_id = submission.market_id or str(exchange.markets[submission.symbol]["id"])
        form = self._venue.order_form(submission, market_id, signed_ms, window_ms, credentials.api_key)
        call = Call(order=True, signed_ms=signed_ms, not_after_ms=intent_ms + window_ms, form=form, pre_send_check=pre_send_check)
        async with self._calling(call):
            try:
                answer = await self._venue.create(exchange, submission, signed_ms, window_ms)
            except Exception as error:  # noqa: BLE001  whatever failed after the hand-over, the evidence decides
                if call.look_failure is not None and not call.handed_over:
                    raise call.look_failure from None
                return self._judge(call, error, credentials, self._venue.refusal)
        return await self._accepted(exchange, submission, answer, credentials)

    async def cancel(self, reference: OrderReference) -> CancelOutcome:
        if reference.mode is not Mode.LIVE:
            return Refused(ReasonCode.REQUEST_UNSUPPORTED, f"{self.exchange} has no simulated orders; {_NOTHING_SENT}")
        account = await self._account(reference.user_id, reference.api_key_id)
        if isinstance(account, Refused):
            return account
        credentials, exchange = account
        if not is_account_of(credentials, reference.sent_with, reference.submitting_at):
            return Refused(ReasonCode.API_KEY_UNKNOWN, f"{other_account(reference.api_key_id)}; {_NOTHING_SENT}")
        exchange, market_id = knowing(exchange, self._venue, reference)
        deadline_ms = window_ms = None
        if reference.cancel_before is not None:
            deadline_ms = milliseconds(reference.cancel_before)
            window_ms = self._window_ms(self._clock(), reference.cancel_before)
            if window_ms is None:
                return TOO_LATE
        call = Call(order=True, deadline_ms=deadline_ms, form=self._venue.cancel_form(reference, market_id, credentials.api_key))
        gone = False
        async with self._calling(call):
            try:
                # The venue itself turns away what arrives after the deadline.
                answer = await self._venue.cancel(exchange, reference, window_ms)
                # The order may have another client order id from now on, so it is looked up by the venue's id.
                with reading("the answer to the cancel"):
                    named = text(answer.get("id"), "its order id", ID_MAX)
                reference = replace(reference, exchange_order_id=reference.exchange_order_id or named or None)
            except Exception as error:  # noqa: BLE001  whatever failed after the hand-over, the evidence decides
                gone = call.evidence(self._venue).code in self._venue.not_cancelable_codes
                if not gone:
                    return self._judge(call, error, credentials, self._venue.refusal)
        return after_cancel(await self.look_up(reference), gone)

    async def look_up(self, reference: OrderReference) -> LookUpOutcome:
        if reference.mode is not Mode.LIVE:
            # Its absence would prove nothing.
            return LookUpFailed(f"{self.exchange} has no simulated orders")
        account = await self._account(reference.user_id, reference.api_key_id)
        if isinstance(account, Refused):
            return LookUpFailed(account.detail)
        credentials, exchange = account
        if not is_account_of(credentials, reference.sent_with, reference.submitting_at):
            return LookUpFailed(other_account(reference.api_key_id))
        exchange, _ = knowing(exchange, self._venue, reference)
        # Before the question: a look-up never counts as begun later than it was.
        looked_up_at = await self._connection.venue_time()
        call = Call()

        async def ask() -> Found | Absent | LookUpFailed:
            answer = await self._find(exchange, reference, call)
            if answer is None:
                clockless = LookUpFailed(f"{self.exchange} does not know the order, but did not tell its clock: that proves nothing")
                return clockless if looked_up_at is None else Absent(looked_up_at)
            order = self._ours(answer, reference)
            return Found(await self._with_fees(exchange, reference.symbol, order))

        return await self._answer_to("order", call, credentials, ask)

    async def markets(self) -> dict[str, Market]:
        async def ask() -> dict[str, Market]:
            await self._connection.reload()
            found = read_markets(self._venue, self._connection.public.markets)
            if not found:
                raise UnreadableBooks("not one of its markets can be read")
            return found

        return await self._public_answer_to("markets", ask)

    async def quotes(self, symbols: Iterable[str]) -> dict[str, Quote]:
        async def ask() -> dict[str, Quote]:
            await self._connection.ready()
            public = self._connection.public
            wanted = {public.markets[symbol]["id"]: symbol for symbol in symbols if symbol in public.markets}
            if not wanted:
                return {}
            # Before the question, not after the answer: a price is never made to look younger than it is.
            observed_at = self._clock()
            return {symbol: Quote(price, observed_at) for symbol, price in (await self._venue.prices(public, wanted)).items()}

        return await self._public_answer_to("prices", ask)

    async def close(self) -> None:
        await self._connection.close()

    def _unsupported(self, submission: Submission) -> Refused | None:
        if submission.mode is not Mode.LIVE:
            return Refused(ReasonCode.REQUEST_UNSUPPORTED, f"a simulated order is not sent to {self.exchange}; {_NOTHING_SENT}")
        if submission.exchange != self.exchange:
            return Refused(ReasonCode.EXCHANGE_UNKNOWN, f"this gateway is {self.exchange}, not {submission.exchange}; {_NOTHING_SENT}")
        if submission.order_type not in self._venue.order_types:
            return Refused(ReasonCode.REQUEST_UNSUPPORTED, f"{submission.order_type} orders cannot be sent yet; {_NOTHING_SENT}")
        if submission.time_in_force not in {None, *self._venue.times_in_force}:
            return Refused(ReasonCode.REQUEST_UNSUPPORTED, f"{self.exchange} takes no {submission.time_in_force} orders; {_NOTHING_SENT}")
        if not self._venue.client_order_id_pattern.fullmatch(submission.client_order_id):
            return Refused(ReasonCode.EXCHANGE_REFUSED, f"{self.exchange} does not take this client order id; {_NOTHING_SENT}")
        return None

    async def _account(self, user_id: str, api_key_id: str) -> tuple[Credentials, Any] | Refused:
        credentials = await self._credential_source(user_id, api_key_id)
        if credentials is None:
            return Refused(ReasonCode.API_KEY_UNKNOWN, f"user {user_id} has no usable key {api_key_id}; {_NOTHING_SENT}")
        try:
            await self._connection.ready()
        except VenueUnavailable as error:
            return Refused(ReasonCode.EXCHANGE_UNAVAILABLE, f"{error}; {_NOTHING_SENT}")
        return credentials, self._connection.account(credentials)

    def _window_ms(self, submitting_at: datetime, expires_at: datetime) -> int | None:
        window = window_of(submitting_at, expires_at, self._receive_window)
        # Counted in whole ms from the intent's whole ms on: never a part of one beyond the deadline.
        return None if window is None else milliseconds(submitting_at + window) - milliseconds(submitting_at)

    async def _accepted(self, exchange: Any, submission: Submission, answer: Order | str, credentials: Credentials) -> SubmissionOutcome:
        """Reads the answer to a create. Its fills tell the fees; where they do not cover the executed quantity, the trade list does."""
        if isinstance(answer, str):
            shown = await self._taken(exchange, submission, answer, credentials)
            if isinstance(shown, InDoubt):
                return shown
            answer = shown
        try:
            order = read_order(answer, self._clock())
        except UnreadableBooks as error:
            note_unreadable(self.exchange, "submit", error)
            return InDoubt(self._clean(f"{self.exchange} answered, but {error}", credentials))
        if order.client_order_id != submission.client_order_id:
            return InDoubt(f"{self.exchange} answered with order {order.exchange_order_id}, which carries another client order id")
        if order.order_status is OrderStatus.REJECTED and not order.cum_quantity:
            return Refused(ReasonCode.EXCHANGE_REFUSED, f"{self.exchange} rejected order {order.exchange_order_id}")
        try:
            with reading("its fills"):
                return Confirmed(with_fees(order, answer.get("trades") or []))
        except UnreadableBooks:
            pass
        call = Call()
        async with self._calling(call):
            try:
                return Confirmed(await self._with_fees(exchange, submission.symbol, order))
            except Exception as error:  # noqa: BLE001  the order stands; the next look-up reads what is missing
                return InDoubt(f"{self.exchange} took order {order.exchange_order_id}; {self._describe(call, error, credentials)}")

    async def _taken(self, exchange: Any, submission: Submission, exchange_order_id: str, credentials: Credentials) -> Order | InDoubt:
        """The order that the venue took and said no more of than its id, as its books show it."""
        of = submission
        reference = OrderReference(
            of.mode, of.order_id, of.client_order_id, exchange_order_id, of.exchange, of.user_id, of.api_key_id, of.symbol, of.submitting_at
        )
        call = Call()
        async with self._calling(call):
            try:
                order = await self._venue.order(exchange, reference)
            except Exception as error:  # noqa: BLE001  it may stand; the next look-up reads it
                return InDoubt(f"{self.exchange} took order {exchange_order_id}; {self._describe(call, error, credentials)}")
        return InDoubt(f"{self.exchange} took order {exchange_order_id}; its books do not show it") if order is None else order

    async def _find(self, exchange: Any, reference: OrderReference, call: Call) -> dict[str, Any] | None:
        """Asks for the order by its id; only when the venue says that there is none are its lists searched."""
        try:
            order = await self._venue.order(exchange, reference)
        except ccxt.BaseError:
            if call.evidence(self._venue).code not in self._venue.unknown_order_codes:
                raise
            order = None
        return await search(exchange, self._venue, reference, self._acceptance_ms(reference)) if order is None else order

    def _acceptance_ms(self, reference: OrderReference) -> tuple[int, int] | None:
        if reference.submitting_at is None:
            return None
        begin = milliseconds(reference.submitting_at - _SEARCH_MARGIN)
        end = milliseconds(reference.submitting_at + self._receive_window + self._venue_timeout + _SEARCH_MARGIN)
        # Both ways: this machine's clock may have been set since the intent, and the difference measured after that.
        difference_ms = self._connection.clock_difference_ms
        return begin + min(difference_ms, 0), end + max(difference_ms, 0)

    def _ours(self, answer: dict[str, Any], reference: OrderReference) -> VenueOrder:
        """The order that was asked for, under the client order id that we gave it. Where the venue's id is not known, another client order
        id counts only on a canceled order. Raises UnreadableBooks."""
        order = read_order(answer, self._clock())
        if reference.exchange_order_id not in {None, order.exchange_order_id}:
            raise UnreadableBooks(f"it is about order {order.exchange_order_id}, not {reference.exchange_order_id}")
        ours = {reference.client_order_id, canceled_id(reference.client_order_id)}
        is_known = reference.exchange_order_id is not None or order.order_status is OrderStatus.CANCELED
        if order.client_order_id not in ours and not is_known:
            raise UnreadableBooks(f"order {order.exchange_order_id} carries another client order id")
        return replace(order, client_order_id=reference.client_order_id)

    async def _with_fees(self, exchange: Any, symbol: str, order: VenueOrder) -> VenueOrder:
        """With the fees from the trade list, because a venue's order does not show them."""
        if not order.cum_quantity:
            return order
        return with_fees(order, await self._venue.trades_of(exchange, symbol, order.exchange_order_id))

    def _judge(self, call: Call, error: Exception, credentials: Credentials, white_list: WhiteList) -> Refused | InDoubt:
        """What a failed call proves."""
        evidence = call.evidence(self._venue)
        if evidence.code in self._venue.clock_refused_codes:
            self._connection.doubt_clock()
        if not evidence.handed_over:
            return Refused(_reason_before_sending(error), self._clean(f"{_NOTHING_SENT}: {error}", credentials))
        detail = self._describe(call, error, credentials)
        reason = proven_refusal(white_list, evidence)
        return InDoubt(detail) if reason is None else Refused(reason, detail, by_venue=True)

    def _describe(self, call: Call, error: Exception, credentials: Credentials) -> str:
        """What happened, in the venue's words where it has any."""
        evidence = call.evidence(self._venue)
        if evidence.code or evidence.message:
            return self._clean(f"{self.exchange} HTTP {evidence.http_status}: {evidence.code} {evidence.message}", credentials)
        if evidence.http_status is not None and call.text:
            return self._clean(f"{self.exchange} HTTP {evidence.http_status}: {call.text}", credentials)
        return self._clean(f"{self.exchange} gave no whole answer: {type(error).__name__}: {error}", credentials)

    def _clean(self, text: str, credentials: Credentials) -> str:
        for secret in (credentials.secret, credentials.api_key, credentials.password):
            if secret:
                text = text.replace(secret, "***")
        return storable(_SIGNATURE.sub(r"\1=***", _QUERY.sub(r"\1", text))[:_DETAIL_MAX])

    @asynccontextmanager
    async def _calling(self, call: Call) -> AsyncIterator[None]:
        """A slot among the calls at a time, with `call` watched by the transport."""
        async with self._slots:
            token = current_call.set(call)
            try:
                yield
            finally:
                current_call.reset(token)


def _reason_before_sending(error: Exception) -> ReasonCode:
    """Why an order was stopped on this side of the network."""
    if isinstance(error, NotHandedOver):
        return error.reason_code
    if isinstance(error, ccxt.BadSymbol):
        return ReasonCode.SYMBOL_UNKNOWN
    if isinstance(error, ccxt.AuthenticationError):
        return ReasonCode.API_KEY_UNKNOWN
    return ReasonCode.EXCHANGE_REFUSED
