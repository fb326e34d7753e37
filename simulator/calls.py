"""One request after its signature was verified, and the readers of its parameters that every endpoint shares."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from simulator import refusals
from simulator.exchange import Account, Exchange
from simulator.horizon import Horizon
from simulator.symbols import Symbol

_DECIMAL_LEGAL: Final = r"^([0-9]{1,20})(\.[0-9]{1,20})?$"
_DECIMAL: Final = re.compile(r"[0-9]{1,20}(?:\.([0-9]{1,20}))?")
_DIGITS: Final = re.compile(r"[0-9]{1,20}")
_PLACES_MAX: Final = 8


@dataclass(slots=True)
class Call:
    """`account` is None on public endpoints; `now_us` is read anew just before the call is carried out. `partial`: a fault asks for it;
    `hidden_us`: a fault hides the order so long after its acceptance."""

    exchange: Exchange
    parameters: dict[str, str]
    account: Account | None
    horizon: Horizon
    now_us: int
    partial: bool = False
    partial_applied: bool = False
    hidden_us: int = 0
    hidden_applied: bool = False

    @property
    def owner(self) -> Account:
        if self.account is None:
            raise refusals.unknown_key()
        return self.account

    def require(self, name: str) -> str:
        value = self.parameters.get(name)
        if not value:
            raise refusals.missing(name)
        return value

    def symbol(self) -> Symbol:
        found = self.exchange.rules.symbols.get(self.require("symbol"))
        if found is None:
            raise refusals.invalid_symbol()
        return found

    def amount(self, name: str) -> Decimal | None:
        """A decimal parameter with at most 8 places that count, or None where it was not sent."""
        text = self.parameters.get(name)
        if text is None:
            return None
        if not text:
            raise refusals.missing(name)
        match = _DECIMAL.fullmatch(text)
        if match is None:
            raise refusals.illegal_characters(name, _DECIMAL_LEGAL)
        places = match.group(1)
        if places is not None and len(places) > _PLACES_MAX and places[_PLACES_MAX:].strip("0"):
            raise refusals.too_precise(name)
        return Decimal(text)

    def integer(self, name: str) -> int | None:
        text = self.parameters.get(name)
        if text is None:
            return None
        if _DIGITS.fullmatch(text) is None:
            raise refusals.illegal_characters(name, "^[0-9]{1,20}$")
        return int(text)

    def limit(self, default: int = 500, most: int = 1000) -> int:
        return min(self.integer("limit") or default, most)
