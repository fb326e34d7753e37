"""What must be known of a user before a withdrawal leaves (`pipeline.gate.payouts` judges it)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from pipeline.model.api_key import ApiKeyState
from pipeline.model.withdrawal import AllowedAddress


@dataclass(slots=True)
class Payee:
    """What is known now of a user who withdraws. `status` is None where there is no such user; `addresses` are those of the list that have
    waited long enough.

    In US dollars: `left_usd` is what was sent in the last 24 hours and not given back, `queued_usd` what is accepted and not sent yet. A
    batch adds to them what it decides.
    """

    status: str | None
    daily_limit_usd: Decimal
    api_keys: Mapping[str, ApiKeyState] = field(default_factory=dict)
    addresses: tuple[AllowedAddress, ...] = ()
    left_usd: Decimal = Decimal(0)
    queued_usd: Decimal = Decimal(0)


NOBODY: Final = Payee(None, Decimal(0))
