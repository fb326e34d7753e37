"""How long each exchange may work on a request, and how long its books may not show what it has accepted: what is known of it, or the
setting."""

from datetime import timedelta

from infra.exchange.gateway import UnknownVenue
from infra.exchange.venues.registry import venue
from infra.settings import Settings


def read_lags_of(settings: Settings) -> dict[str, timedelta]:
    """The read lag of each exchange. Raises UnknownVenue."""
    given = settings.venue_read_lag_ms
    return {exchange: venue(exchange).read_lag if given is None else timedelta(milliseconds=given) for exchange in settings.exchanges}


def timeout_refusal(settings: Settings) -> str | None:
    """Why ORCHESTRATOR_VENUE_TIMEOUT_MS cannot be used where money is real; None where it can."""
    for exchange in settings.exchanges:
        try:
            known = venue(exchange).request_timeout
        except UnknownVenue:
            continue
        if settings.venue_timeout < known:
            return (
                f"ORCHESTRATOR_VENUE_TIMEOUT_MS must be {known // timedelta(milliseconds=1)} or more for {exchange}: less is for "
                "sandboxes. An order that the exchange still works on would count as not executed. Nothing was read or sent, and requests "
                "wait in Kafka."
            )
    return None


def lag_refusal(settings: Settings) -> str | None:
    """Why the setting cannot be used where money is real; None where it can."""
    if settings.venue_read_lag_ms is None:
        return None
    for exchange in settings.exchanges:
        try:
            known = venue(exchange).read_lag
        except UnknownVenue:
            # Refused by its own words when its gateway is made.
            continue
        if timedelta(milliseconds=settings.venue_read_lag_ms) < known:
            return (
                f"ORCHESTRATOR_VENUE_READ_LAG_MS must be {known // timedelta(milliseconds=1)} or more for {exchange}, or unset: less is "
                "for sandboxes. An order in doubt would count as not executed while the exchange's books do not show it yet. Nothing was "
                "read or sent, and requests wait in Kafka."
            )
    return None
