"""Whatever a venue says is read here, in one way: a value of the expected kind, or `UnreadableBooks`.

Invariants:
1. Nothing that a venue can send makes a reader raise anything but UnreadableBooks: `reading` turns every failure inside it into one. So no
   call site lists what Python raises for which nonsense, and none can leave one out.
2. What was read can be kept: text without NUL or halves of surrogate pairs and of bounded length, amounts within the contract's digits
   (schemas/decimals), times within the bounds of schemas/times.

Start with `reading`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Final

import aiohttp
import ccxt
from pydantic_core import PydanticCustomError

from infra.metrics import ANSWERS_UNREADABLE
from pipeline.model.detail import storable
from schemas.decimals import format_decimal, parse_decimal
from schemas.times import EARLIEST, moment_of

# Longer than any id, asset, address or transaction of a venue.
TEXT_MAX: Final = 512
_SHOWN_MAX: Final = 64
# What a call raises that got no answer, or a refusal.
_NO_ANSWER: Final = (ccxt.BaseError, aiohttp.ClientError, TimeoutError)


class UnreadableBooks(Exception):
    """The venue's answer does not add up, so it proves nothing. Its text says what is missing."""


class TooManyDigits(UnreadableBooks):
    """A number, but no amount of ours. A price or a market's rule of that kind concerns its market alone."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Around code that takes a venue's answer apart: whatever it raises comes out as UnreadableBooks, which names `what` and the kind of
    failure. Calls over the network do not belong inside: why they failed is evidence."""
    try:
        yield
    except UnreadableBooks:
        raise
    except Exception as error:
        raise UnreadableBooks(f"{what} cannot be read ({type(error).__name__})") from error


def note_unreadable(exchange: str, question: str, error: Exception) -> None:
    """Counts an answer that cannot be read; a call without an answer, or with one in the venue's own words, is none."""
    if isinstance(error, (UnreadableBooks, ccxt.BadResponse)) or not isinstance(error, _NO_ANSWER):
        ANSWERS_UNREADABLE.labels(exchange, question).inc()


def shown(value: object) -> str:
    """A value as an error text shows it: cut, because a venue's value may be of any size."""
    if isinstance(value, (str, bytes)):
        return repr(value[:_SHOWN_MAX])
    if isinstance(value, int) and abs(value) < 10**_SHOWN_MAX:
        return repr(value)
    return "None" if value is None else f"a value of type {type(value).__name__}"


def milliseconds(moment: datetime) -> int:
    """UTC time in whole ms since 1970, rounded down."""
    return (moment - EARLIEST) // timedelta(milliseconds=1)


def moment(timestamp_ms: object) -> datetime | None:
    """The UTC time of a timestamp in ms since 1970, None where the venue gave none that every store can carry (schemas/times)."""
    return moment_of(timestamp_ms, 1_000)


def amount(value: object, name: str) -> Decimal:
    """A venue's number.

    Raises UnreadableBooks for a float, for None, and for what no amount of ours can be: below zero, not finite, or with more digits than
    the contract has (schemas.decimals). A rebate is such a number: nothing of it is posted unseen.
    """
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise UnreadableBooks(f"{name} is {shown(value)}")
    if isinstance(value, str) and len(value) > TEXT_MAX:
        raise UnreadableBooks(f"{name} has {len(value)} characters")
    try:
        number = Decimal(value)
    except InvalidOperation as error:
        raise UnreadableBooks(f"{name} is {shown(value)}") from error
    if not number.is_finite() or number < 0:
        raise UnreadableBooks(f"{name} is {shown(value)}")
    # Before it is written out: an exponent of a million would be a million digits.
    if number and abs(number.adjusted()) > TEXT_MAX:
        raise TooManyDigits(f"{name} is {shown(value)}")
    try:
        return parse_decimal(format_decimal(number))
    except PydanticCustomError as error:
        raise TooManyDigits(f"{name} is {shown(value)}") from error


def text(value: object, name: str, longest: int = TEXT_MAX) -> str:
    """A venue's word as the database and a topic can keep it; '' where the venue gave none. A number counts as its digits. Raises
    UnreadableBooks for what is no word, and for one longer than `longest` characters."""
    if value is None:
        return ""
    if not isinstance(value, (str, int)) or isinstance(value, bool) or (isinstance(value, int) and abs(value) >= 10**_SHOWN_MAX):
        raise UnreadableBooks(f"{name} is {shown(value)}")
    found = str(value)
    if len(found) > longest:
        raise UnreadableBooks(f"{name} has {len(found)} characters")
    if storable(found) != found:
        raise UnreadableBooks(f"{name} has characters that cannot be kept")
    return found
