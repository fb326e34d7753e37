"""The FIX values of reason codes."""

import pytest

from schemas.reasons import ReasonCode, fix_ord_rej_reason

# FIX 5.0 SP2, tag 103 (OrdRejReason), as published: 17 was never given out.
_SP2 = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 99}


@pytest.mark.parametrize("code", ReasonCode)
def test_fix_value_of_a_code_is_one_of_the_standard(code: ReasonCode) -> None:
    """A system that speaks FIX can pass it on as it is."""
    assert fix_ord_rej_reason(code) in _SP2


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (ReasonCode.REQUEST_UNSUPPORTED, 11),
        (ReasonCode.SUSPICIOUS_ACTIVITY, 12),
        (ReasonCode.SELF_TRADE, 12),
        (ReasonCode.SCHEMA_INVALID, 99),
    ],
)
def test_fix_value_is_the_nearest_of_the_standard(code: ReasonCode, value: int) -> None:
    """An order type that is not offered is a characteristic that is not supported; what looks like misuse is a matter of surveillance."""
    assert fix_ord_rej_reason(code) == value
