"""The gateway: the one door to an exchange's order books, as the rest of the system sees it.

Invariants:
1. `submit` and `cancel` hand at most one order request to the network per call, and never repeat one. What they cannot prove they
   return as `InDoubt`.
2. `look_up` only reads. What an `Absent` proves is decided in pipeline/orders/settlement.
3. An API key's secret leaves the process only as a signature. It is in no repr, log line, error or outcome.

Start with `Gateway`; `ccxt.gateway.CcxtGateway` is the one for real venues and for the simulator.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from infra.exchange.key_check import KeyAnswer
from pipeline.model.deposit import VenueDeposits
from pipeline.model.venue import (
    AccountBalances,
    Confirmed,
    InDoubt,
    KeyVersion,
    LookUpFailed,
    LookUpOutcome,
    Market,
    OrderReference,
    Quote,
    Refused,
    Submission,
    SubmissionOutcome,
)
from pipeline.model.withdrawal import Network, WithdrawalHistory, WithdrawalOutcome, WithdrawalSubmission

CancelOutcome = Confirmed | Refused | InDoubt


@dataclass(frozen=True, slots=True)
class Credentials:
    """An account's API key at a venue. `password` is the passphrase that some venues add to the pair. The repr shows none of them."""

    api_key: str = field(repr=False)
    secret: str = field(repr=False)
    password: str | None = field(default=None, repr=False)
    # Which of the keys that were stored under one id it is, counted from 1; None where nobody counts.
    version: int | None = None
    # The exchange's own number of the account, where it is known, and when the key was stored.
    account_id: str | None = field(default=None, compare=False)
    stored_at: datetime | None = field(default=None, compare=False)


CredentialSource = Callable[[str, str], Awaitable[Credentials | None]]
"""`(user_id, api_key_id)` → the credentials, or None where the user has no such key or it is revoked, expired or cannot be decrypted. It is
asked before every account call, so that a revoked key stops at once; what it raises goes to the caller, before anything was sent."""


PreSendCheck = Callable[[], Awaitable[Refused | None]]


class VenueUnavailable(Exception):
    """A question about public data (markets, prices, clock) was not answered. Nothing was ordered; ask again later."""


class UnknownVenue(ValueError):
    """The exchange id has no proof table in `venues`, so no order may be sent there."""


class Gateway(Protocol):
    """One venue, all its accounts. Every method has a time limit of its own."""

    @property
    def exchange(self) -> str:
        """The ccxt exchange id."""
        ...

    @property
    def receive_window(self) -> timedelta:
        """How long after its signed time the venue still takes a request in. With `venue_timeout` it makes the acceptance horizon."""
        ...

    @property
    def venue_timeout(self) -> timedelta:
        """How long the venue may work on a request that it took in."""
        ...

    async def submit(self, submission: Submission, pre_send_check: PreSendCheck | None = None) -> SubmissionOutcome:
        """Sends one order, once. `pre_send_check` is asked behind every queue, right before the order is handed to the network: a refusal
        of its stops the order. Raises only what the credential source and `pre_send_check` raise (nothing was sent then) and CancelledError
        (then the outcome is in doubt)."""
        ...

    async def cancel(self, reference: OrderReference) -> CancelOutcome:
        """Cancels an order and says how the venue's books show it afterwards: `Confirmed` carries the order as it is now and it is
        canceled or expired; `Refused` with `ORDER_NOT_CANCELABLE` (it was filled first), `ORDER_NOT_FOUND` or the venue's reason;
        `InDoubt` leaves it to the next look-up."""
        ...

    async def look_up(self, reference: OrderReference) -> LookUpOutcome:
        """Finds one order in the venue's books. Repeats nothing by itself."""
        ...

    async def check_key(self, user_id: str, api_key_id: str) -> KeyAnswer:
        """Asks the venue whether it takes a key, and what for. Only reads. Raises only what the credential source raises."""
        ...

    async def markets(self) -> dict[str, Market]:
        """The spot trading rules, read afresh, by symbol. Raises VenueUnavailable."""
        ...

    async def quotes(self, symbols: Iterable[str]) -> dict[str, Quote]:
        """Last prices. A symbol the venue has no price for is left out. Raises VenueUnavailable."""
        ...

    async def close(self) -> None:
        """Closes the connections. Calls still under way end in doubt."""
        ...


class AccountGateway(Protocol):
    """One venue's view of what its accounts hold and of their orders. Only reads; every method has a time limit of its own."""

    async def account_balances(self, user_id: str, api_key_id: str) -> AccountBalances | LookUpFailed:
        """What the venue shows of the account that a key belongs to, whole or not at all. Raises only what the credential source raises."""
        ...

    async def look_up(self, reference: OrderReference) -> LookUpOutcome:
        """As `Gateway.look_up`."""
        ...


class WithdrawalGateway(Protocol):
    """One venue's way of paying out, for all its accounts. Every method has a time limit of its own."""

    @property
    def history_span(self) -> timedelta:
        """The longest time that one question about the history may cover."""
        ...

    @property
    def listed_within(self) -> timedelta:
        """How long after it was sent a withdrawal may be dated in the history."""
        ...

    async def withdraw(self, submission: WithdrawalSubmission, pre_send_check: PreSendCheck | None = None) -> WithdrawalOutcome:
        """Sends one withdrawal, once; as `Gateway.submit` in all else."""
        ...

    async def withdrawal_history(
        self,
        user_id: str,
        api_key_id: str,
        since: datetime,
        until: datetime,
        sent_with: KeyVersion | None = None,
        sent_at: datetime | None = None,
    ) -> WithdrawalHistory | LookUpFailed:
        """Every withdrawal of an account that carries a client id of ours and was accepted between the two times (UTC, at most
        `history_span` apart); `LookUpFailed` unless the venue showed the whole list and told its clock. Raises only what the credential
        source raises.

        `sent_with`, or `sent_at` where that was not kept, says which account is meant: a key that was replaced by one of another account
        tells nothing, so it is `LookUpFailed` as well.
        """
        ...

    async def withdrawal_networks(self, user_id: str, api_key_id: str) -> dict[tuple[str, str], Network]:
        """What the venue pays out over which networks, by asset and network, with its fees; asked with one account's key, where the venue
        tells nobody else. Empty where it pays nothing out. Raises VenueUnavailable and what the credential source raises."""
        ...


class DepositGateway(Protocol):
    """What arrives at one venue, for all its accounts. Every method has a time limit of its own."""

    async def deposit_history(self, user_id: str, api_key_id: str, since: datetime, until: datetime) -> VenueDeposits | LookUpFailed:
        """The deposits of an account that came between the two times (UTC, no further apart than the venue answers for), as the venue shows
        them now; `LookUpFailed` unless it showed a whole list. What is not among them may be listed later. Raises only what the credential
        source raises."""
        ...
