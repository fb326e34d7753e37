"""Binance's wallet: withdrawals and deposits, what an account holds, and what a key may do.

Sources: Binance wallet API, "Withdraw", "Withdraw History", "All Coins' Information", "Deposit History" and "Get API Key Permission"; spot
API, "Account information".
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Final

from infra.exchange.key_check import KeyAccepted
from infra.exchange.venues.binance import refusals
from infra.exchange.venues.pages import by_offset
from infra.exchange.venues.reading import UnreadableBooks, amount, moment, reading, shown, text
from infra.exchange.venues.venue import OUR_WITHDRAWAL_ID, Deposits, Evidence, KeyQuestion, Row, Withdrawals, first_of
from infra.exchange.venues.wire import WireForm
from pipeline.model.deposit import VenueDeposit
from pipeline.model.detail import storable
from pipeline.model.venue import AccountBalances
from pipeline.model.withdrawal import Network, VenueWithdrawal, WithdrawalSubmission
from schemas.orders import DepositStatus, WithdrawalStatus
from schemas.reasons import ReasonCode
from schemas.times import OutOfBounds, bounded, moment_of

KEY_HEADER: Final = "X-MBX-APIKEY"
_PAGE: Final = 1_000
_DETAIL_MAX: Final = 200
_ASSET_MAX: Final = 64

# Statuses 1 and 5 are no longer documented; they are read as earlier versions had them.
WITHDRAWAL_STATUSES: Final[Mapping[str, WithdrawalStatus]] = {
    # Email sent, awaiting approval, processing.
    "0": WithdrawalStatus.PROCESSING,
    "2": WithdrawalStatus.PROCESSING,
    "4": WithdrawalStatus.PROCESSING,
    # Cancelled, rejected, failure.
    "1": WithdrawalStatus.FAILED,
    "3": WithdrawalStatus.FAILED,
    "5": WithdrawalStatus.FAILED,
    "6": WithdrawalStatus.COMPLETED,
}

_DEPOSIT_STATUSES: Final[Mapping[str, DepositStatus]] = {
    # Pending; credited but cannot withdraw: it may be used for trading there, and needs more confirmations before it is success.
    "0": DepositStatus.CONFIRMING,
    "6": DepositStatus.CONFIRMING,
    # Waiting for the user to confirm.
    "8": DepositStatus.DETECTED,
    "1": DepositStatus.CREDITED,
    # Rejected, wrong deposit.
    "2": DepositStatus.REJECTED,
    "7": DepositStatus.REJECTED,
}


class BinanceWithdrawals(Withdrawals):
    def refusal(self, evidence: Evidence) -> ReasonCode | None:
        return first_of(refusals.WITHDRAWALS, evidence)

    def form(self, submission: WithdrawalSubmission, signed_ms: int, window_ms: int, key: str) -> WireForm:
        return WireForm(
            method="POST",
            path="/sapi/v1/capital/withdraw/apply",
            fields={
                "withdrawOrderId": submission.client_withdrawal_id,
                "coin": submission.asset,
                "network": submission.network,
                "address": submission.address,
                "addressTag": submission.address_tag,
                "amount": _asked(submission),
                "timestamp": str(signed_ms),
                "recvWindow": str(window_ms),
            },
            others={"signature": None},
            key_header=KEY_HEADER,
            key=key,
        )

    async def pay(self, exchange: Any, submission: WithdrawalSubmission, signed_ms: int, window_ms: int) -> Mapping[str, Any]:
        parameters: dict[str, object] = {
            "network": submission.network,
            "withdrawOrderId": submission.client_withdrawal_id,
            "recvWindow": window_ms,
        }
        if submission.address_tag is not None:
            # ccxt's own word for it.
            parameters["tag"] = submission.address_tag
        total = format(_asked(submission), "f")
        answer: Mapping[str, Any] = await exchange.withdraw(submission.asset, total, submission.address, parameters)
        return answer

    async def history(self, exchange: Any, since_ms: int, until_ms: int) -> list[Row]:
        return await _whole(exchange.sapiGetCapitalWithdrawHistory, since_ms, until_ms, "withdrawals")

    def read(self, row: Row) -> VenueWithdrawal | None:
        if not OUR_WITHDRAWAL_ID.fullmatch(str(row.get("withdrawOrderId"))):
            return None
        with reading("a withdrawal"):
            return _withdrawal(row)

    async def networks(self, exchange: Any, observed_at: datetime) -> dict[tuple[str, str], Network]:
        return _networks(await exchange.sapiGetCapitalConfigGetall(), observed_at)


class BinanceDeposits(Deposits):
    """Its list names no output of the transaction; each entry has an id."""

    async def history(self, exchange: Any, since_ms: int, until_ms: int) -> list[Row]:
        return await _whole(exchange.sapiGetCapitalDepositHisrec, since_ms, until_ms, "deposits")

    def read(self, row: Row, clock_difference: timedelta) -> VenueDeposit | None:
        try:
            with reading("it"):
                return _deposit(row, clock_difference)
        except UnreadableBooks as error:
            raise UnreadableBooks(f"deposit {shown(row.get('id'))}: {error}") from error


async def _whole(call: Callable[[dict[str, object]], Any], since_ms: int, until_ms: int, what: str) -> list[Row]:
    window = {"startTime": since_ms, "endTime": until_ms}
    return await by_offset(lambda offset: call({**window, "limit": _PAGE, "offset": offset}), _PAGE, what)


def _asked(submission: WithdrawalSubmission) -> Decimal:
    """The amount asked for is what leaves the account, and the fee is kept of it."""
    return submission.amount + submission.fee


def _withdrawal(row: Mapping[str, Any]) -> VenueWithdrawal:
    status = WITHDRAWAL_STATUSES.get(str(row.get("status")))
    if status is None:
        raise UnreadableBooks(f"the status of a withdrawal is {shown(row.get('status'))}")
    withdrawal_id = text(row.get("id"), "the id of a withdrawal")
    if not withdrawal_id:
        raise UnreadableBooks("a withdrawal has no id")
    detail = storable(str(row.get("info") or "")[:_DETAIL_MAX])
    return VenueWithdrawal(
        client_withdrawal_id=str(row["withdrawOrderId"]),
        exchange_withdrawal_id=withdrawal_id,
        status=status,
        asset=text(row.get("coin"), "its asset"),
        network=text(row.get("network"), "its network"),
        address=text(row.get("address"), "its address"),
        amount=amount(row.get("amount"), "the amount paid out"),
        fee=amount(row.get("transactionFee"), "the fee"),
        transaction_id=text(row.get("txId"), "its transaction") or None,
        detail=detail or None,
    )


def _networks(answer: object, observed_at: datetime) -> dict[tuple[str, str], Network]:
    """Networks by asset and name. One whose figures cannot be read is left out: nothing is paid out over it. Raises UnreadableBooks."""
    if not isinstance(answer, list):
        raise UnreadableBooks("its list of assets is no list")
    found: dict[tuple[str, str], Network] = {}
    problem: UnreadableBooks | None = None
    for asset in answer:
        try:
            with reading("an asset"):
                rows = list(asset.get("networkList") or ())
        except UnreadableBooks as error:
            problem = error
            continue
        for row in rows:
            try:
                with reading("a network"):
                    network = _network(asset, row, observed_at)
            except UnreadableBooks as error:
                problem = error
            else:
                found[network.asset, network.network] = network
    if problem is not None and not found:
        raise problem
    return found


def _network(asset: Mapping[str, Any], row: Mapping[str, Any], observed_at: datetime) -> Network:
    return Network(
        asset=text(asset["coin"], "the asset"),
        network=text(row["network"], "the network"),
        enabled=row.get("withdrawEnable") is True and asset.get("withdrawAllEnable") is True,
        fee=amount(row.get("withdrawFee"), "the fee"),
        amount_min=amount(row.get("withdrawMin"), "the least amount"),
        amount_max=amount(row["withdrawMax"], "the greatest amount") if row.get("withdrawMax") else None,
        amount_step=amount(row.get("withdrawIntegerMultiple") or "0", "the step"),
        observed_at=observed_at,
    )


def _deposit(row: Row, clock_difference: timedelta) -> VenueDeposit | None:
    status = _DEPOSIT_STATUSES.get(str(row.get("status")))
    if status is None:
        raise UnreadableBooks(f"its status is {shown(row.get('status'))}")
    transaction_id = text(row.get("txId"), "its txId")
    if not transaction_id and status in {DepositStatus.DETECTED, DepositStatus.CONFIRMING}:
        return None
    for name in ("id", "txId", "coin"):
        if not text(row.get(name), f"its {name}"):
            raise UnreadableBooks(f"it has no {name}")
    arrived_at, completed_at = (_by_our_clock(row.get(name), clock_difference) for name in ("insertTime", "completeTime"))
    if arrived_at is None:
        raise UnreadableBooks("it does not say when it came")
    deposited = amount(row.get("amount"), "the amount")
    if deposited <= 0:
        raise UnreadableBooks("its amount is not above zero")
    return VenueDeposit(
        exchange_deposit_id=text(row.get("id"), "its id"),
        transaction_id=transaction_id,
        asset=text(row.get("coin"), "its coin"),
        network=text(row.get("network"), "its network"),
        address=text(row.get("address"), "its address"),
        address_tag=text(row.get("addressTag"), "its addressTag") or None,
        amount=deposited,
        status=status,
        arrived_at=arrived_at,
        completed_at=completed_at,
    )


def _by_our_clock(timestamp_ms: object, clock_difference: timedelta) -> datetime | None:
    """A moment of the venue's clock by ours; None where it gave none, or none that every store can carry."""
    told = moment(timestamp_ms)
    with suppress(OutOfBounds):
        return None if told is None else bounded(told - clock_difference)
    return None


def read_balances(answer: Any, *, numbered: bool, code_of: Callable[[str], str]) -> AccountBalances:
    """The spot wallet, free and locked in orders, as amounts by asset, those of zero left out; what lies in other wallets is not shown.
    `numbered`: the answer has the account's number. `code_of` makes the codes that symbols have of the venue's own names.

    Raises UnreadableBooks.
    """
    with reading("the account"):
        return _balances(answer, numbered, code_of)


def _balances(answer: Any, numbered: bool, code_of: Callable[[str], str]) -> AccountBalances:
    rows = answer.get("balances") if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise UnreadableBooks("without a list of balances")
    account_id = None
    if numbered:
        account_id = text(answer.get("uid"), "the id of the account")
        if not account_id:
            raise UnreadableBooks("without the id of the account")
    totals: dict[str, Decimal] = {}
    locked: dict[str, Decimal] = {}
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("asset"), str) or not row["asset"]:
            raise UnreadableBooks("with a balance of no asset")
        asset = text(code_of(row["asset"]), "an asset", _ASSET_MAX)
        free, held = amount(row.get("free"), f"free {asset}"), amount(row.get("locked"), f"locked {asset}")
        if asset in totals:
            raise UnreadableBooks(f"with two balances of {asset}")
        totals[asset] = amount(format(free + held, "f"), f"all of {asset}")
        if held:
            locked[asset] = held
    return AccountBalances(account_id, {asset: total for asset, total in totals.items() if total}, locked)


def _key_answer(trade: str, withdraw: str, is_of_key: bool, answer: Any) -> KeyAccepted | None:
    if not isinstance(answer, dict):
        return None
    granted = {"trade": answer.get(trade), "withdraw": answer.get(withdraw)}
    if not all(isinstance(value, bool) for value in granted.values()):
        return None
    restricted = answer.get("ipRestrict") if is_of_key else None
    until = answer.get("tradingAuthorityExpirationTime") if is_of_key else None
    # Milliseconds since 1970, UTC.
    trading_until = moment_of(until, 1_000)
    if isinstance(until, int) and until > 0 and trading_until is None:
        return None
    return KeyAccepted(
        permissions=frozenset(name for name, value in granted.items() if value),
        is_of_key=is_of_key,
        is_ip_restricted=restricted if isinstance(restricted, bool) else None,
        trading_until=trading_until if until else None,
    )


# About the key itself.
KEY: Final = KeyQuestion("sapiGetAccountApiRestrictions", partial(_key_answer, "enableSpotAndMarginTrading", "enableWithdrawals", True))
# About the account, where there are no wallet endpoints, as in its spot sandbox.
ACCOUNT: Final = KeyQuestion("privateGetAccount", partial(_key_answer, "canTrade", "canWithdraw", False))
