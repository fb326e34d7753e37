"""The stops in force, and what they mean for one order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from schemas.commands import HaltLevel, HaltScope


@dataclass(frozen=True, slots=True)
class Halt:
    """A stop that an operator or a rule has set. `target` is '' for scope `all`, else the exchange, the symbol or the user."""

    scope: HaltScope
    target: str
    level: HaltLevel


@dataclass(frozen=True, slots=True)
class HaltBook:
    """All halts in force. `canceling` are those of them that ask for the cancel of what rests and would not pass."""

    rows: frozenset[Halt] = frozenset()
    canceling: frozenset[Halt] = frozenset()
    _levels: dict[tuple[HaltScope, str], HaltLevel] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.rows:
            if self._levels.get((row.scope, row.target)) is not HaltLevel.HALT:
                self._levels[row.scope, row.target] = row.level

    def level_for(self, exchange: str, symbol: str, user: str) -> HaltLevel | None:
        """What holds for a user's order in a symbol at an exchange: the strictest of the halts that cover it, None when none does."""
        if not self._levels:
            return None
        found: HaltLevel | None = None
        for scope, target in (
            (HaltScope.ALL, ""), (HaltScope.EXCHANGE, exchange), (HaltScope.SYMBOL, symbol), (HaltScope.USER, user)
        ):
            level = self._levels.get((scope, target))
            if level is HaltLevel.HALT:
                return level
            found = level or found
        return found


NO_HALTS: Final = HaltBook()
