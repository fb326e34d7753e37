"""A venue's lists, read whole in bounded pages: what they do not show counts as a proof elsewhere.

Start with `by_time`.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from infra.exchange.venues.reading import UnreadableBooks

_PAGES_MAX: Final = 10

Rows = list[dict[str, Any]]


async def by_time(ask: Callable[[int], Awaitable[Rows]], since_ms: int, page: int, what: str) -> Rows:
    """Every entry of a list in ccxt's form, from `since_ms` on: each page begins with the time with which the one before ended.

    Raises UnreadableBooks for more than ten pages, and where one page holds entries of one time alone: there may be more.
    """
    found: dict[str, dict[str, Any]] = {}
    for _ in range(_PAGES_MAX):
        entries = await ask(since_ms)
        found |= {str(entry.get("id")): entry for entry in entries}
        if len(entries) < page:
            return list(found.values())
        newest = max((time for entry in entries if isinstance(time := entry.get("timestamp"), int)), default=since_ms)
        if newest <= since_ms:
            raise UnreadableBooks(f"the venue's list of {what} cannot be read on after {len(found)}, so it may not show every one")
        since_ms = newest
    raise UnreadableBooks(f"the venue's list has more than {len(found)} {what} in that time, so it may not show every one")


async def by_offset(ask: Callable[[int], Awaitable[Any]], page: int, what: str) -> Rows:
    """Every row of a list in the venue's form; one that moves from one page to the next comes twice, and counts once, by its `id`.

    Raises UnreadableBooks for what is no list, and for more than ten pages.
    """
    rows: Rows = []
    for number in range(_PAGES_MAX):
        found = await ask(number * page)
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise UnreadableBooks(f"its {what} are no list")
        rows += found
        if len(found) < page:
            return list({str(row.get("id")): row for row in rows}.values())
    raise UnreadableBooks(f"it has more than {len(rows)} {what} in that time")
