"""What a user may do where nothing else is set for it, and what confirms it: numbers of the settings as the gate wants them."""

from datetime import timedelta

from infra.settings import Settings
from pipeline.gate.limits import Limits
from pipeline.model.rules import ConfirmationRules


def limits_of(settings: Settings) -> Limits:
    """What a user may do, where nothing else is set for it."""
    return Limits(
        trade_usd_min=settings.trade_usd_min,
        trade_usd_max=settings.trade_usd_max,
        daily_volume_usd_max=settings.daily_volume_usd_max,
        hourly_trades_max=settings.hourly_trades_max,
        cooldown_failures=settings.cooldown_failures,
        cooldown=timedelta(seconds=settings.cooldown_seconds),
        daily_withdrawal_usd_max=settings.daily_withdrawal_usd_max,
        price_band=settings.price_band,
        position_usd_max=settings.position_usd_max,
        open_orders_max=settings.open_orders_max,
        open_orders_usd_max=settings.open_orders_usd_max,
        exchange_open_usd_max=settings.exchange_open_usd_max,
        daily_loss_usd_max=settings.daily_loss_usd_max,
        messages_per_second_max=settings.messages_per_second_max,
        messages_burst_max=settings.messages_burst_max,
        duplicate_window=timedelta(milliseconds=settings.duplicate_window_ms),
        suspicion_flag=settings.suspicion_flag,
        suspicion_block=settings.suspicion_block,
    )


def confirmation_rules_of(settings: Settings) -> ConfirmationRules:
    """What may stand for a code of its own."""
    return ConfirmationRules(
        session_time=timedelta(minutes=settings.session_minutes_max),
        session_orders_max=settings.session_orders_max,
        session_amount_usd_max=settings.session_amount_usd_max,
        amr_confirming=frozenset(settings.token_amr_confirming),
        auth_age_max=timedelta(seconds=settings.token_auth_age_seconds_max),
        token_leeway=timedelta(seconds=settings.token_leeway_seconds),
    )
