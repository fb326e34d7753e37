"""The gateway of simulated orders: one venue's market prices, and no exchange behind it.

What `Gateway` promises holds here too, and more:
1. No call leaves the process: prices come from the market data that the worker has already, and no key is read.
2. It keeps nothing. An order that rests stands in our own database alone, and comes along with the question about it.
3. What is not stored did not happen: an order that was interrupted before its outcome was stored is `Absent` at once, and its outcome is
   stored in a step that is fenced. No horizon has to be waited for.

What an order trades at is decided in pipeline/orders/paper.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from infra.exchange.gateway import CancelOutcome, PreSendCheck
from infra.exchange.key_check import KeyAnswer, KeyUnanswered
from pipeline.model.venue import (
    Absent,
    Confirmed,
    Found,
    LookUpFailed,
    LookUpOutcome,
    Market,
    MarketData,
    OrderReference,
    Quote,
    Refused,
    Submission,
    SubmissionOutcome,
)
from pipeline.orders.paper import at_rest, at_submission, canceled, is_simulated, resting
from schemas.orders import Mode
from schemas.reasons import ReasonCode


def _now() -> datetime:
    return datetime.now(UTC)


class PaperGateway:
    """See `gateway.Gateway`. `market_data` gives what is known of the venue at the moment of the call; `price_age_max` is the age from
    which a price is not traded at any more."""

    def __init__(
        self,
        exchange: str,
        market_data: Callable[[], MarketData],
        *,
        price_age_max: timedelta,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._exchange = exchange
        self._market_data = market_data
        self._price_age_max = price_age_max
        self._clock = clock

    @property
    def exchange(self) -> str:
        return self._exchange

    @property
    def receive_window(self) -> timedelta:
        return timedelta(0)

    @property
    def venue_timeout(self) -> timedelta:
        return timedelta(0)

    async def submit(self, submission: Submission, pre_send_check: PreSendCheck | None = None) -> SubmissionOutcome:
        """Trades at the market price. Refused as EXCHANGE_UNAVAILABLE while no fresh price is there: nothing happened, ask again."""
        if submission.mode is not Mode.PAPER or submission.exchange != self._exchange:
            text = f"this is the simulation of {self._exchange}, not {submission.mode} at {submission.exchange}; nothing was executed"
            return Refused(ReasonCode.REQUEST_UNSUPPORTED, text)
        if not is_simulated(submission.order_type):
            return Refused(ReasonCode.REQUEST_UNSUPPORTED, f"{submission.order_type} orders are not simulated; nothing was executed")
        refused = await pre_send_check() if pre_send_check is not None else None
        if refused is not None:
            return refused
        if self._clock() >= submission.expires_at:
            return Refused(ReasonCode.REQUEST_EXPIRED, "its deadline was over before its turn came; the simulated order was not executed")
        priced = self._priced(submission.symbol)
        if priced is None:
            text = f"no fresh price of {submission.symbol} at {self._exchange}; the simulated order was not executed"
            return Refused(ReasonCode.EXCHANGE_UNAVAILABLE, text)
        return Confirmed(at_submission(submission, *priced))

    async def cancel(self, reference: OrderReference) -> CancelOutcome:
        """Ends at once: nobody else has the order."""
        return Confirmed(canceled(reference, self._clock()))

    async def look_up(self, reference: OrderReference) -> LookUpOutcome:
        """How an order that rests stands at the market price of now; one that never came to rest is absent."""
        now = self._clock()
        if reference.exchange_order_id is None:
            return Absent(now)
        if reference.paper is None:
            return LookUpFailed(f"order {reference.order_id} rests in the simulation without a price of its own")
        priced = self._priced(reference.symbol)
        filled = at_rest(reference, reference.paper, *priced) if priced is not None else None
        return Found(filled or resting(reference, now))

    async def check_key(self, user_id: str, api_key_id: str) -> KeyAnswer:
        return KeyUnanswered(f"simulated orders need no key, so {api_key_id} of {user_id} was not asked about")

    async def markets(self) -> dict[str, Market]:
        return dict(self._market_data().markets)

    async def quotes(self, symbols: Iterable[str]) -> dict[str, Quote]:
        known = self._market_data().quotes
        return {symbol: known[symbol] for symbol in symbols if symbol in known}

    async def close(self) -> None:
        """Nothing is open."""

    def _priced(self, symbol: str) -> tuple[Market, Quote] | None:
        data = self._market_data()
        market, quote = data.markets.get(symbol), data.fresh_quote(symbol, self._clock(), self._price_age_max)
        return None if market is None or quote is None or not market.active else (market, quote)
