"""Decimal arithmetic for money, and the one place where rounding is decided.

Invariants:
1. Sums, differences and products of amounts are exact: 80 digits hold the product of any two amounts of the contract (20 before and
   18 after the point each), where Python's default of 28 digits would round silently.
2. Nothing is rounded elsewhere, and never to the nearest: what is reserved or charged is rounded up, what is given down, a result
   downwards. To 18 places, the scale of the ledger, or to the venue's step where it gives one. docs/ledger.md has every place.
3. A float never becomes an amount: making a Decimal of one, or comparing the two, raises decimal.FloatOperation; arithmetic of the two is a
   TypeError in any case.

Import this module before computing with amounts: it sets the context of the importing thread, which tasks and new threads inherit.
"""

import decimal
from decimal import ROUND_DOWN, ROUND_FLOOR, ROUND_UP, Decimal, FloatOperation
from typing import Final

from schemas.decimals import INTEGER_DIGITS_MAX, PLACES_MAX

DIGITS: Final = 80
SCALE: Final = Decimal(1).scaleb(-PLACES_MAX)
# The first amount that is too large.
LIMIT: Final = Decimal(10) ** INTEGER_DIGITS_MAX

for _context in (decimal.DefaultContext, decimal.getcontext()):
    _context.prec = DIGITS
    _context.traps[FloatOperation] = True


def round_up(amount: Decimal, step: Decimal = SCALE) -> Decimal:
    """To whole steps, away from zero: for what is held or charged. A step of zero is none: 18 places."""
    return _rounded(amount, step, ROUND_UP)


def round_down(amount: Decimal, step: Decimal = SCALE) -> Decimal:
    """To whole steps, towards zero: for what is given, and for what is reported as an average. A step of zero is none: 18 places."""
    return _rounded(amount, step, ROUND_DOWN)


def round_result(usd: Decimal) -> Decimal:
    """To 18 places, downwards: a gain is never stated larger than it is, and a loss never smaller."""
    return usd.quantize(SCALE, rounding=ROUND_FLOOR)


def _rounded(amount: Decimal, step: Decimal, rounding: str) -> Decimal:
    if step not in {SCALE, 0}:
        # A venue's step may have more places than the ledger.
        amount = (amount / step).to_integral_value(rounding=rounding) * step
    return amount.quantize(SCALE, rounding=rounding)


def is_amount(amount: Decimal) -> bool:
    """Whether the ledger can move it: more than nothing, and no more digits than the contract's (schemas/decimals.py)."""
    return amount.is_finite() and 0 < amount < LIMIT and amount % SCALE == 0


def is_multiple(amount: Decimal, step: Decimal) -> bool:
    """Whether an amount lies on a venue's grid; a step of zero allows every amount."""
    return step == 0 or amount % step == 0
