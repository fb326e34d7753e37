"""Decimal strings on the wire."""

from decimal import Decimal

import pytest
from pydantic_core import PydanticCustomError

from schemas.decimals import format_decimal, parse_decimal


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", "0"), ("0.10", "0.1"), ("007", "7"), ("1" * 20, "1" * 20), ("0." + "0" * 17 + "1", "1e-18"), ("9" * 20 + "." + "9" * 18, None)],
)
def test_decimal_parses_plain_digits_exactly(text: str, value: str | None) -> None:
    """20 digits before and 18 after the point, leading and trailing zeros included."""
    assert parse_decimal(text) == Decimal(text if value is None else value)


@pytest.mark.parametrize(
    "text", ["1" * 21, "0." + "0" * 18 + "1", "0" * 40, "1e5", "-1", "", ".", "1.", ".1", "١", None, 1, 1.0, b"1", True]
)
def test_decimal_refuses_every_other_form(text: object) -> None:
    """No number, no sign, no exponent, no digits beyond the database's scale."""
    with pytest.raises(PydanticCustomError):
        parse_decimal(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1.500", "1.5"),
        ("1E+3", "1000"),
        ("100", "100"),
        ("0.000", "0"),
        ("-0", "0"),
        ("0E-18", "0"),
        ("1E-18", "0." + "0" * 17 + "1"),
        ("10.0", "10"),
    ],
)
def test_decimal_has_one_written_form(value: str, text: str) -> None:
    """Equal amounts are equal bytes."""
    assert format_decimal(Decimal(value)) == text
