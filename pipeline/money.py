"""Decimal arithmetic for money, and the one place where rounding is decided.

Invariants:
1. Sums, differences and products of amounts are exact: 80 digits hold the product of any two amounts of the contract (20 before and
   18 after the point each), where Python's default of 28 digits would round silently.
2. What is reserved is rounded up and what is given is rounded down, to 18 places, the scale of the database's columns.

Import this module before computing with amounts: it sets the context of the importing thread, which tasks and new threads inherit.
"""

import decimal
from decimal import ROUND_DOWN, ROUND_UP, Decimal
from typing import Final

from schemas.decimals import INTEGER_DIGITS_MAX, PLACES_MAX

DIGITS: Final = 80
SCALE: Final = Decimal(1).scaleb(-PLACES_MAX)
# The first amount that is too large.
LIMIT: Final = Decimal(10) ** INTEGER_DIGITS_MAX

decimal.DefaultContext.prec = DIGITS
decimal.getcontext().prec = DIGITS


def round_up(amount: Decimal) -> Decimal:
    """To 18 places, away from zero: for what is held or charged."""
    return amount.quantize(SCALE, rounding=ROUND_UP)


def round_down(amount: Decimal) -> Decimal:
    """To 18 places, towards zero: for what is reported as an average."""
    return amount.quantize(SCALE, rounding=ROUND_DOWN)


def is_amount(amount: Decimal) -> bool:
    """Whether the ledger can move it: more than nothing, and no more digits than the contract's (schemas/decimals.py)."""
    return 0 < amount < LIMIT and amount % SCALE == 0


def is_multiple(amount: Decimal, step: Decimal) -> bool:
    """Whether an amount lies on a venue's grid; a step of zero allows every amount."""
    return step == 0 or amount % step == 0
