"""What every part of the gateway that asks about an account shares; the abstract parts are the gateway's own (`CcxtGateway`)."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Final, TypeVar

from infra.exchange.ccxt.connection import VenueConnection
from infra.exchange.ccxt.transport import Call
from infra.exchange.gateway import Credentials, VenueUnavailable
from infra.exchange.venues.reading import UnreadableBooks, note_unreadable
from infra.exchange.venues.venue import Venue, WhiteList
from pipeline.model.venue import InDoubt, LookUpFailed, Refused
from schemas.reasons import ReasonCode

TOO_LATE: Final = Refused(ReasonCode.REQUEST_EXPIRED, "too little is left until its deadline; nothing was sent")
Answer = TypeVar("Answer")


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
    def _judge(self, call: Call, error: Exception, credentials: Credentials, white_list: WhiteList) -> Refused | InDoubt: ...

    @abstractmethod
    def _describe(self, call: Call, error: Exception, credentials: Credentials) -> str: ...

    @abstractmethod
    def _clean(self, text: str, credentials: Credentials) -> str: ...

    async def _answer_to(
        self, question: str, call: Call, credentials: Credentials, ask: Callable[[], Awaitable[Answer]]
    ) -> Answer | LookUpFailed:
        """The one way in which a question about an account is asked and its answer read: whatever goes wrong, in the call or the reading,
        leaves it open. `question` names it in the metric of unreadable answers."""
        async with self._calling(call):
            try:
                return await ask()
            except UnreadableBooks as error:
                note_unreadable(self.exchange, question, error)
                return LookUpFailed(self._clean(f"{self.exchange} answered, but {error}", credentials))
            except Exception as error:  # noqa: BLE001  whatever broke the reading, the question is not answered
                note_unreadable(self.exchange, question, error)
                return LookUpFailed(self._describe(call, error, credentials))

    async def _public_answer_to(self, question: str, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """The same for a question that belongs to no order or payment. Raises VenueUnavailable for whatever goes wrong."""
        try:
            return await ask()
        except VenueUnavailable:
            raise
        except Exception as error:  # noqa: BLE001  whatever broke the reading, the question is not answered
            note_unreadable(self.exchange, question, error)
            # Without the chain: ccxt's text is not ours to show.
            raise VenueUnavailable(f"{self.exchange} told no {question} ({type(error).__name__})") from None
