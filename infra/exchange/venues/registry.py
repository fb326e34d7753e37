"""What each venue proves: client order ids on the wire, and the white list of answers that mean "not accepted".

Invariants:
1. An exchange id without a complete row here is not offered (`venue` raises UnknownVenue).
2. `proven_refusal` answers None, which is *in doubt*, for everything that no rule names. No rule names an HTTP 5xx answer, a time-out or
   an answer that could not be read in full.
3. A rule goes by what was on the wire (HTTP status, the venue's code, its text), not by ccxt's exception class: executed orders were seen
   under RequestTimeout, ExchangeNotAvailable, OperationFailed, ExchangeError and InvalidOrder alike.

Start with `BINANCE` and `proven_refusal`.
"""

from typing import Final
from urllib.parse import urlsplit

from infra.exchange.gateway import UnknownVenue
from infra.exchange.venues.binance import BINANCE, BINANCE_US
from infra.exchange.venues.venue import Venue

# A row needs two bounds that are not proven here for other venues: what refuses a late request (Kraken's requests are signed with a nonce,
# not a time), and how long a request that was taken in may still be executed. Without them no look-up could prove an order absent.
_VENUES: Final = {row.exchange_id: row for row in (BINANCE, BINANCE_US)}


def is_real_money(address: str) -> bool:
    """Whether an address is one at which some venue trades for real money."""
    host = (urlsplit(address).hostname or "").rstrip(".").lower()
    domains = {domain for row in _VENUES.values() for domain in row.real_money_domains}
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)


def venue(exchange_id: str) -> Venue:
    """The row of a ccxt exchange id. Raises UnknownVenue."""
    row = _VENUES.get(exchange_id)
    if row is None:
        raise UnknownVenue(
            f"no orders can be sent to {exchange_id!r}: it is not proven here which of its answers mean that an order was not accepted. "
            f"Nothing was sent. Venues with a proof: {', '.join(sorted(_VENUES))}",
        )
    return row
