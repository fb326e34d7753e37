"""What every part of the gateway that asks about an account shares; the abstract parts are the gateway's own (`CcxtGateway`)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Final

from infra.exchange.books import UnreadableBooks
from infra.exchange.connection import VenueConnection
from infra.exchange.gateway import Credentials
from infra.exchange.transport import Call
from infra.exchange.venues import RefusalRule, Venue
from pipeline.venue import InDoubt, Refused
from schemas.reasons import ReasonCode

_PAGES_MAX: Final = 10
TOO_LATE: Final = Refused(ReasonCode.REQUEST_EXPIRED, "too little is left until its deadline; nothing was sent")


class AccountCalls(ABC):
    """The venue, its connection, and how a call with an account's key is made and judged."""

    _venue: Venue
    _connection: VenueConnection
    _clock: Callable[[], datetime]

    @property
    @abstractmethod
    def exchange(self) -> str: ...

    @abstractmethod
    async def _account(self, user_id: str, api_key_id: str) -> tuple[Credentials, Any] | Refused: ...

    @abstractmethod
    def _window_ms(self, submitting_at: datetime, expires_at: datetime) -> int | None:
        """How long from its intent on the venue may take a request in, in ms; None where so little is left that it is not sent."""

    @abstractmethod
    def _calling(self, call: Call) -> AbstractAsyncContextManager[None]: ...

    @abstractmethod
    def _judge(
        self, call: Call, error: Exception, credentials: Credentials, refusals: tuple[RefusalRule, ...] | None = None
    ) -> Refused | InDoubt: ...

    @abstractmethod
    def _describe(self, call: Call, error: Exception, credentials: Credentials) -> str: ...

    @abstractmethod
    def _clean(self, text: str, credentials: Credentials) -> str: ...


async def whole_list(ask: Callable[[dict[str, object]], Any], window: Mapping[str, object], page: int, what: str) -> list[dict[str, Any]]:
    """Every row within the window; a row that moves from one page to the next comes twice, and counts once, by its id.

    Raises UnreadableBooks for what is no list, and for more than ten pages.
    """
    rows: list[dict[str, Any]] = []
    for number in range(_PAGES_MAX):
        found = await ask({**window, "limit": page, "offset": number * page})
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise UnreadableBooks(f"its {what} are no list")
        rows += found
        if len(found) < page:
            return list({str(row.get("id")): row for row in rows}.values())
    raise UnreadableBooks(f"it has more than {len(rows)} {what} in that time")
