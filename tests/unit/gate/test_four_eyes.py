"""Which changes of administration need two operators."""

from dataclasses import fields
from datetime import timedelta
from decimal import Decimal

import pytest

from pipeline.gate.four_eyes import address_needs_two, factor_needs_two, key_needs_two, widens_limit
from pipeline.gate.limits import DEFAULT_LIMITS, Limits

NARROWER_WHEN_LARGER = {"trade_usd_min", "cooldown", "duplicate_window"}


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
def test_limit_that_allows_more_than_the_settings_needs_two(name: str) -> None:
    """On either side of what the settings say, and exactly there, where nothing is widened."""
    value = getattr(DEFAULT_LIMITS, name)
    everybody = Decimal(value // timedelta(microseconds=1)) / 1_000_000 if isinstance(value, timedelta) else Decimal(value)
    step = Decimal("0.001")
    assert not widens_limit(name, everybody, DEFAULT_LIMITS)
    assert widens_limit(name, everybody + step, DEFAULT_LIMITS) is (name not in NARROWER_WHEN_LARGER)
    assert widens_limit(name, everybody - step, DEFAULT_LIMITS) is (name in NARROWER_WHEN_LARGER)


def test_what_moves_money_out_or_makes_an_operator_needs_two() -> None:
    """A key for withdrawals, an address without a wait, an operator's factor, and one that takes another's place."""
    assert [key_needs_two(permissions) for permissions in ({"trade"}, {"withdraw"}, {"trade", "withdraw"})] == [False, True, True]
    assert [address_needs_two(hours) for hours in (0, 1, 24)] == [True, False, False]
    assert factor_needs_two("operator", replaces=False)
    assert factor_needs_two("trader", replaces=True)
    assert not factor_needs_two("trader", replaces=False)
