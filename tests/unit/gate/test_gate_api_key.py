"""Step 4 of the gate, the exchange key: each code, on both sides of each boundary."""

from datetime import datetime

import pytest

from pipeline.gate.api_key import api_key_is_usable, api_key_may_trade
from pipeline.model.api_key import ApiKeyState
from schemas.reasons import ReasonCode
from tests.unit.builders import EXCHANGE, NOW, trade
from tests.unit.gate_builders import MICROSECOND, code_of, context_of

R = ReasonCode
BOTH = frozenset({"trade", "withdraw"})


def _key(status: str = "active", permissions: frozenset[str] = BOTH, expires_at: datetime | None = None) -> ApiKeyState:
    return ApiKeyState(EXCHANGE, status, permissions, expires_at)


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (_key(), None),
        (None, R.API_KEY_UNKNOWN),
        (ApiKeyState("kraken", "active", BOTH), R.API_KEY_PERMISSION),
        (_key("revoked"), R.API_KEY_REVOKED),
        (_key("refused"), R.API_KEY_PERMISSION),
        (_key("expired"), R.API_KEY_EXPIRED),
        (_key("anything else"), R.API_KEY_EXPIRED),
        # from its last moment on a key is expired
        (_key(expires_at=NOW + MICROSECOND), None),
        (_key(expires_at=NOW), R.API_KEY_EXPIRED),
        (_key(expires_at=NOW - MICROSECOND), R.API_KEY_EXPIRED),
        (_key("revoked", expires_at=NOW), R.API_KEY_REVOKED),
        (_key(permissions=frozenset({"trade"})), None),
        (_key(permissions=frozenset({"withdraw"})), R.API_KEY_PERMISSION),
        (_key(permissions=frozenset()), R.API_KEY_PERMISSION),
    ],
)
def test_key_answers_each_side_of_a_boundary(key: ApiKeyState | None, code: ReasonCode | None) -> None:
    """A key that may be used passes, every other is refused with its own code."""
    assert code_of(trade(), api_key=key) is code


def test_key_checks_refuse_without_a_key_in_any_order() -> None:
    """None of them passes a key that is not there."""
    context = context_of(trade(), api_key=None)
    refusals = [check(context) for check in (api_key_is_usable, api_key_may_trade)]
    assert [refusal.code if refusal else None for refusal in refusals] == [R.API_KEY_UNKNOWN, R.API_KEY_UNKNOWN]
