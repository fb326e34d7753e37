"""Which venues orders can be sent to. An exchange id that is not here is not offered (`venue` raises UnknownVenue)."""

from typing import Final
from urllib.parse import urlsplit

from infra.exchange.gateway import UnknownVenue
from infra.exchange.venues.binance.venue import BINANCE, BINANCE_US
from infra.exchange.venues.venue import Venue

# A venue needs two bounds that are not proven here for others: what refuses a late request (Kraken's requests are signed with a nonce, not
# a time), and how long a request that was taken in may still be executed. Without them no look-up could prove an order absent.
VENUES: Final = {one.exchange_id: one for one in (BINANCE, BINANCE_US)}


def is_real_money(address: str) -> bool:
    """Whether an address is one at which some venue trades for real money."""
    host = (urlsplit(address).hostname or "").rstrip(".").lower()
    domains = {domain for one in VENUES.values() for domain in one.real_money_domains}
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)


def venue(exchange_id: str) -> Venue:
    """The venue of a ccxt exchange id. Raises UnknownVenue."""
    found = VENUES.get(exchange_id)
    if found is None:
        raise UnknownVenue(
            f"no orders can be sent to {exchange_id!r}: it is not proven here which of its answers mean that an order was not accepted. "
            f"Nothing was sent. Venues with a proof: {', '.join(sorted(VENUES))}",
        )
    return found
