"""Decimal strings: the only form in which money crosses the wire.

Invariants:
1. A JSON number is never accepted where money is meant: it may have been a float on its way (`0.1` is not one tenth).
2. A value has at most 18 places after the point and 20 before it, so every sum of 10**6 of them fits `numeric(38, 18)`.
"""

from decimal import Decimal
from typing import Annotated, Final

from pydantic import BeforeValidator, PlainSerializer
from pydantic_core import PydanticCustomError

PLACES_MAX: Final = 18
INTEGER_DIGITS_MAX: Final = 20
LENGTH_MAX: Final = INTEGER_DIGITS_MAX + PLACES_MAX + 1
_PLAIN: Final = frozenset("0123456789.")


def parse_decimal(value: object) -> Decimal:
    """Reads a plain decimal string such as `"0.00100000"`: digits, one optional point, no sign, exponent or blank.

    Raises PydanticCustomError of type `invalid_decimal` for anything else, numbers among them. A sign is refused because no
    money field of the contract can be negative.
    """
    if isinstance(value, Decimal):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("invalid_decimal", "must be a decimal string such as \"0.1\", not a JSON number or another type")
    whole, _, places = value.partition(".")
    if not value or len(value) > LENGTH_MAX or not _PLAIN.issuperset(value) or not whole or "." in places or value.endswith("."):
        raise PydanticCustomError("invalid_decimal", "must be plain digits with one optional point, such as \"0.1\"")
    if len(whole) > INTEGER_DIGITS_MAX or len(places) > PLACES_MAX:
        raise PydanticCustomError("invalid_decimal", "has more than 20 digits before or 18 after the point")
    return Decimal(value)


def format_decimal(value: Decimal) -> str:
    """The shortest plain form of a value, without exponent or trailing zeros: `Decimal("1.500")` gives `"1.5"`.

    One form per value, so that equal amounts are equal bytes in hashes and comparisons.
    """
    if value == 0:
        return "0"
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


DecimalString = Annotated[
    Decimal,
    BeforeValidator(parse_decimal),
    PlainSerializer(format_decimal, return_type=str, when_used="json"),
]


def parse_signed_decimal(value: object) -> Decimal:
    """As `parse_decimal`, with a minus sign before it where it is below zero: for differences, never for what is moved."""
    if isinstance(value, str) and value.startswith("-"):
        return -parse_decimal(value[1:])
    return parse_decimal(value)


SignedDecimalString = Annotated[
    Decimal,
    BeforeValidator(parse_signed_decimal),
    PlainSerializer(format_decimal, return_type=str, when_used="json"),
]
