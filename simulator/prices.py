"""Current prices: a recorded tape for one symbol, seeded random walks for the others, and prices pinned by hand.

A walk is a function of the seed and the number of its steps alone. It stays within a tenth of its start price, so that a long run does
not drift away from what limit orders were written for. Its moves are not logged: after a restart it begins at the start price again.
"""

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Final

from simulator.symbols import Symbol

TAPE_COLUMNS: Final = ("timestamp", "trade_id", "price", "quantity", "side")


class TapeMode(StrEnum):
    """How the tape moves: by the wall clock, by POST /simulator/tape/step, or by one row for each accepted order of its symbol."""

    CLOCK = "clock"
    STEP = "step"
    PER_ORDER = "per-order"


class TapeUnreadable(Exception):
    """The tape file is not what it should be."""


@dataclass(frozen=True, slots=True)
class TapeRow:
    """One recorded trade; `offset_us` since the first row."""

    trade_id: str
    price: Decimal
    offset_us: int


@dataclass(frozen=True, slots=True)
class Tape:
    """Recorded trades of one symbol. After its last row it begins again, so that it never runs out."""

    symbol: str
    rows: Sequence[TapeRow]

    def row(self, number: int) -> TapeRow:
        """Row `number`, counted from 0 and without end."""
        return self.rows[number % len(self.rows)]

    def number_at(self, elapsed_us: int) -> int:
        """The row that is current `elapsed_us` (tape time) after the first."""
        span_us = max(1, self.rows[-1].offset_us + 1)
        rounds, within_us = divmod(elapsed_us, span_us)
        low, high = 0, len(self.rows)
        while low < high:
            middle = (low + high) // 2
            if self.rows[middle].offset_us <= within_us:
                low = middle + 1
            else:
                high = middle
        return rounds * len(self.rows) + low - 1


def read_tape(path: Path, symbol: str) -> Tape:
    """Reads a CSV with the header `timestamp,trade_id,price,quantity,side` (timestamps RFC 3339). Raises TapeUnreadable."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.DictReader(file)
            if tuple(lines.fieldnames or ()) != TAPE_COLUMNS:
                raise TapeUnreadable(f"{path.name}: the header must be {','.join(TAPE_COLUMNS)}")
            rows: list[TapeRow] = []
            begin: datetime | None = None
            for line in lines:
                moment = datetime.fromisoformat(line["timestamp"])
                begin = begin or moment
                offset_us = max(int((moment - begin).total_seconds() * 1_000_000), rows[-1].offset_us if rows else 0)
                rows.append(TapeRow(line["trade_id"], Decimal(line["price"]), offset_us))
    except (OSError, ValueError, ArithmeticError) as error:
        raise TapeUnreadable(f"{path.name}: cannot be read as a tape: {error}") from error
    if not rows or any(not row.price.is_finite() or row.price <= 0 for row in rows):
        raise TapeUnreadable(f"{path.name}: a tape needs rows, and every price above zero")
    return Tape(symbol, rows)


class Walk:
    """A seeded random walk of one symbol's price."""

    def __init__(self, symbol: Symbol, seed: int) -> None:
        self._symbol = symbol
        self._random = random.Random(f"{seed}:{symbol.name}")
        self._span = max(1, int(symbol.start_price / symbol.tick) // 5_000)
        self._low = symbol.start_price * Decimal("0.9")
        self._high = symbol.start_price * Decimal("1.1")

    def step(self, price: Decimal) -> Decimal:
        """The next price, at most 0.02 % of the start price away."""
        moved = price + self._random.randint(-self._span, self._span) * self._symbol.tick
        return self._symbol.round_to_tick(min(max(moved, self._low), self._high))
