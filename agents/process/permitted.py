"""Which exchanges a worker may send orders to with the settings it has: what must hold before anything is read or sent."""

from typing import Final

from agents.process.read_lags import lag_refusal, timeout_refusal
from infra.exchange.venues.registry import is_real_money
from infra.settings import Settings
from infra.trusted_keys import token_verifier

# What the contract promises where money is real.
_ADDRESS_WAIT_HOURS_MIN: Final = 24
_HISTORY_LAG_SECONDS_MIN: Final = 60


class ExchangeNotPermitted(Exception):
    """An exchange that no order may be sent to. A person must change the settings; nothing was read or sent."""


def trades_real_money(settings: Settings) -> bool:
    """Whether orders may reach a real exchange: the default address of one, or a known one."""
    return any(not (url := settings.exchange_urls.get(name)) or is_real_money(url) for name in settings.exchanges)


def require_permitted(settings: Settings) -> None:
    """Raises TrustedKeysError where tokens are asked for and the keys to check them by cannot be used, ExchangeNotPermitted in a sandbox
    unless every exchange has a base address of its own, as the simulator has.

    A sandbox does not ask who sends: whoever can write to the topic trades for any user. So no order may reach an exchange's default
    address, where the money is real.
    """
    if settings.authentication == "required":
        token_verifier(settings)
        if trades_real_money(settings):
            _require_careful_withdrawals(settings)
            if (refusal := lag_refusal(settings) or timeout_refusal(settings)) is not None:
                raise ExchangeNotPermitted(refusal)
        return
    missing = [exchange for exchange in settings.exchanges if not settings.exchange_urls.get(exchange)]
    if missing:
        raise ExchangeNotPermitted(
            f"{', '.join(missing)}: no base address in ORCHESTRATOR_EXCHANGE_URLS, so orders would go to the real exchange. With "
            "ORCHESTRATOR_AUTHENTICATION=sandbox requests are not authenticated, so real money is refused; nothing was read or sent, and "
            "requests wait in Kafka. Set ORCHESTRATOR_AUTHENTICATION=required with the keys of your tokens, or name a sandbox or the "
            f"simulated one, ORCHESTRATOR_EXCHANGE_URLS='{{\"{missing[0]}\": \"http://…\"}}', or take it out of ORCHESTRATOR_EXCHANGES."
        )
    real = [exchange for exchange in settings.exchanges if is_real_money(settings.exchange_urls[exchange])]
    if real:
        raise ExchangeNotPermitted(
            f"{', '.join(real)}: the base address in ORCHESTRATOR_EXCHANGE_URLS is that of a real exchange. With "
            "ORCHESTRATOR_AUTHENTICATION=sandbox requests are not authenticated, so real money is refused; nothing was read or sent, and "
            "requests wait in Kafka. Set ORCHESTRATOR_AUTHENTICATION=required, or name a sandbox or the simulated exchange."
        )


def _require_careful_withdrawals(settings: Settings) -> None:
    if settings.address_wait_hours < _ADDRESS_WAIT_HOURS_MIN or settings.withdrawal_history_lag_seconds < _HISTORY_LAG_SECONDS_MIN:
        raise ExchangeNotPermitted(
            f"ORCHESTRATOR_ADDRESS_WAIT_HOURS must be {_ADDRESS_WAIT_HOURS_MIN} or more, and ORCHESTRATOR_WITHDRAWAL_HISTORY_LAG_SECONDS "
            f"{_HISTORY_LAG_SECONDS_MIN} or more: shorter times are for sandboxes, where no real money can be paid out twice or to an "
            "address that somebody has just slipped in. Nothing was read or sent, and requests wait in Kafka."
        )
