"""An order in the words of ccxt, which are the same for all venues."""

from collections.abc import Mapping
from typing import Any, Final

from infra.exchange.venues.venue import Order
from pipeline.model.venue import Submission
from schemas.orders import OrderType

_CCXT_TYPE: Final[Mapping[OrderType, str]] = {OrderType.MARKET: "market", OrderType.LIMIT: "limit", OrderType.LIMIT_MAKER: "limit"}


async def create_order(exchange: Any, submission: Submission, own: Mapping[str, object]) -> Order:
    """ccxt's own way of creating an order, with parameters of the venue's own. Amounts are handed over as text."""
    parameters = dict(own)
    if submission.quote_quantity is not None:
        parameters["cost"] = format(submission.quote_quantity, "f")
    if submission.order_type is OrderType.LIMIT_MAKER:
        parameters["postOnly"] = True
    elif submission.time_in_force is not None:
        parameters["timeInForce"] = submission.time_in_force.value
    answer: Order = await exchange.create_order(
        submission.symbol,
        _CCXT_TYPE[submission.order_type],
        submission.side.value,
        None if submission.quantity is None else format(submission.quantity, "f"),
        None if submission.price is None else format(submission.price, "f"),
        parameters,
    )
    return answer
