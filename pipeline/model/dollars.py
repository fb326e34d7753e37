"""What a unit of an asset is worth in US dollars: through whatever pairs the exchange has prices of.

Invariants:
1. Every link is a fresh price of its own, so the chain is as old as its oldest link, and no link is made up.
2. The shortest chain counts; of several, the first by the names of its assets. The same prices give the same answer.
3. At most `LINKS_MAX` links: what is worth something only by way of more is valued by nobody.
4. A pair is used in either direction. Where a division leaves more than 18 places the rate is rounded up: an amount never counts for less
   than it is worth.

Start with `usd_rate_of`.
"""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Final

from pipeline.model.money import LIMIT, round_up
from pipeline.model.venue import MarketData

LINKS_MAX: Final = 3
_ONE: Final = Decimal(1)


def usd_rate_of(asset: str, data: MarketData | None, now: datetime, age_max: timedelta, usd_assets: Collection[str]) -> Decimal | None:
    """US dollars per unit of an asset: 1 for what counts as dollars, else what a chain of prices no older than `age_max` makes of it; None
    without one."""
    if asset in usd_assets:
        return _ONE
    if data is None:
        return None
    # What nearly every request asks for, without a look at the others.
    for usd in sorted(usd_assets):
        quote = data.fresh_quote(f"{asset}/{usd}", now, age_max)
        if quote is not None:
            return quote.price
    neighbours = _neighbours(tuple(data.quotes))
    seen = {asset}
    paths: list[tuple[tuple[str, ...], Decimal]] = [((asset,), _ONE)]
    for _ in range(LINKS_MAX):
        longer: list[tuple[tuple[str, ...], Decimal]] = []
        reached: set[str] = set()
        for path, rate in sorted(paths):
            for neighbour, symbol, is_base in neighbours.get(path[-1], ()):
                if neighbour in seen or neighbour in reached:
                    continue
                quote = data.fresh_quote(symbol, now, age_max)
                if quote is None:
                    continue
                reached.add(neighbour)
                longer.append(((*path, neighbour), rate * quote.price if is_base else rate / quote.price))
        ends = sorted((path, rate) for path, rate in longer if path[-1] in usd_assets)
        if ends:
            worth = ends[0][1]
            return round_up(worth) if worth < LIMIT else None
        seen |= reached
        paths = longer
    return None


@lru_cache(maxsize=16)
def _neighbours(symbols: tuple[str, ...]) -> Mapping[str, list[tuple[str, str, bool]]]:
    """By asset: the assets that it has a pair with, in the order of their names, the pair's symbol, and whether the asset is its base."""
    found: dict[str, list[tuple[str, str, bool]]] = {}
    for symbol in symbols:
        base, _, quote = symbol.partition("/")
        found.setdefault(base, []).append((quote, symbol, True))
        found.setdefault(quote, []).append((base, symbol, False))
    for pairs in found.values():
        # Where both directions are listed, the one that needs no division first.
        pairs.sort(key=lambda pair: (pair[0], not pair[2]))
    return found
