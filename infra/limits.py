"""What a user may do where nothing else is set for it, and what confirms it: numbers of the settings as the gate wants them."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from typing import Any, Final

from infra.settings import Settings
from pipeline.gate.limits import Limits
from pipeline.model.rules import ConfirmationRules

_TIMES: Final[Mapping[str, timedelta]] = {"_seconds": timedelta(seconds=1), "_ms": timedelta(milliseconds=1)}


def limits_of(settings: Settings) -> Limits:
    """What a user may do, where nothing else is set for it: each limit as the setting of its name says, times in the unit that ends it."""
    return Limits(**{field.name: _setting(settings, field.name) for field in fields(Limits)})


# Any: each setting has its own type, which is that of its limit.
def _setting(settings: Settings, limit: str) -> Any:
    for ending, unit in _TIMES.items():
        if limit + ending in Settings.model_fields:
            return getattr(settings, limit + ending) * unit
    return getattr(settings, limit)


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
