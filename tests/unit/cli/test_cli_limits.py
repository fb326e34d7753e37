"""Every limit has a setting, with the gate's own default."""

from dataclasses import asdict
from datetime import timedelta
from decimal import Decimal

from cli.admin.limits import NAMES
from infra.limits import limits_of
from infra.settings import Settings
from pipeline.gate.limits import DEFAULT_LIMITS


def test_limits_of_the_settings_are_those_that_workers_apply() -> None:
    """With every setting another one than its default, so that none is left out; and as they come."""
    changed = {}
    for name in NAMES:
        value = getattr(DEFAULT_LIMITS, name)
        if isinstance(value, timedelta):
            setting = next(f"{name}_{unit}" for unit in ("seconds", "ms") if f"{name}_{unit}" in Settings.model_fields)
            changed[setting] = 77
        else:
            changed[name] = value + (Decimal("0.01") if isinstance(value, Decimal) else 1)
    settings = Settings(**changed)
    differing = {name for name, value in asdict(limits_of(settings)).items() if value != getattr(DEFAULT_LIMITS, name)}
    assert differing == set(NAMES)
    assert limits_of(Settings()) == DEFAULT_LIMITS
