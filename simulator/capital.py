"""The signed wallet endpoints: withdrawals, deposits, the coins' networks, and what an API key may do.

Source: https://developers.binance.com/docs/wallet/capital and .../account. Every network has the same fee (`--withdrawal-fee`); it is
taken from the amount, and the history shows what arrives and the fee.
"""

import random
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from simulator import refusals
from simulator.calls import Call
from simulator.funding import Deposit, Listing, Withdrawal, WithdrawalRequest
from simulator.symbols import ASSETS

NETWORKS: Final = {"BTC": ("BTC",), "ETH": ("ETH",), "SOL": ("SOL",), "BNB": ("BSC",), "USDT": ("ETH", "TRX", "BSC", "SOL")}
_PLAIN_TEXT: Final = re.compile(r"[A-Za-z0-9_.:\-]{1,256}")
_PROCESSING, _COMPLETED, _FAILED = 4, 6, 5


def _text(call: Call, name: str) -> str:
    value = call.parameters.get(name, "")
    if value and _PLAIN_TEXT.fullmatch(value) is None:
        raise refusals.illegal_characters(name, _PLAIN_TEXT.pattern)
    return value


def withdraw(call: Call) -> object:
    """POST /sapi/v1/capital/withdraw/apply."""
    asset = call.require("coin")
    if asset not in ASSETS:
        raise refusals.Refusal(-4018, "Currency not exist.")
    network = _text(call, "network") or NETWORKS[asset][0]
    if network not in NETWORKS[asset]:
        raise refusals.Refusal(-4021, "The withdrawal network is not supported for this currency.")
    call.require("address")
    amount = call.amount("amount")
    if amount is None:
        raise refusals.missing("amount")
    if amount <= 0:
        raise refusals.Refusal(-4003, "Amount must be greater than zero.")
    fee = call.exchange.rules.withdrawal_fee
    if amount <= fee:
        raise refusals.Refusal(-4028, "The amount of withdrawal must be greater than the Commission.")
    request = WithdrawalRequest(
        asset, amount, _text(call, "address"), _text(call, "addressTag"), network, _text(call, "withdrawOrderId"),
        call.horizon, fee,
    )  # fmt: skip
    withdrawal = call.exchange.funding.withdraw(call.owner.api_key, call.owner.label, request, call.now_us)
    return {"id": withdrawal.accepted.withdrawal_id}


# When the simulated exchange "made" every key: Binance shows milliseconds since 1970.
_KEYS_MADE_MS: Final = 1_700_000_000_000


def key_permissions(_call: Call) -> object:
    """GET /sapi/v1/account/apiRestrictions. Every key of an account may trade and withdraw, from any address."""
    return {
        "ipRestrict": False,
        "createTime": _KEYS_MADE_MS,
        "enableInternalTransfer": False,
        "enableFutures": False,
        "enablePortfolioMarginTrading": False,
        "enableVanillaOptions": False,
        "permitsUniversalTransfer": False,
        "enableReading": True,
        "enableFixApiTrade": False,
        "enableFixReadOnly": False,
        "enableSpotAndMarginTrading": True,
        "enableWithdrawals": True,
        "enableMargin": False,
    }


def _status(withdrawal: Withdrawal) -> int:
    if withdrawal.ended is None:
        return _PROCESSING
    return _COMPLETED if withdrawal.ended.completed else _FAILED


def _moment(time_us: int) -> str:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _withdrawal_row(withdrawal: Withdrawal) -> dict[str, object]:
    accepted, ended = withdrawal.accepted, withdrawal.ended
    row: dict[str, object] = {
        "id": accepted.withdrawal_id,
        "amount": f"{accepted.amount - accepted.fee:.8f}",
        "transactionFee": f"{accepted.fee:.8f}" if accepted.fee else "0",
        "coin": accepted.asset,
        "status": _status(withdrawal),
        "address": accepted.address,
        "addressTag": accepted.address_tag,
        "txId": "" if ended is None else ended.transaction_id,
        "applyTime": _moment(accepted.time_us),
        "network": accepted.network,
        "transferType": 0,
        "withdrawOrderId": accepted.withdraw_order_id,
        "info": "",
        "confirmNo": 0,
        "walletType": 0,
        "txKey": "",
    }
    if ended is not None:
        row["completeTime"] = _moment(ended.time_us)
    return row


def _is_wanted(call: Call, api_key: str, asset: str, status: int, time_us: int) -> bool:
    begin_ms, end_ms, wanted = call.integer("startTime"), call.integer("endTime"), call.integer("status")
    return (
        api_key == call.owner.api_key
        and call.parameters.get("coin", asset) == asset
        and wanted in (None, status)
        and (begin_ms is None or time_us // 1000 >= begin_ms)
        and (end_ms is None or time_us // 1000 <= end_ms)
    )


def _page(call: Call, rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Newest first, as Binance shows them."""
    offset = call.integer("offset") or 0
    return rows[::-1][offset : offset + call.limit(default=1000)]


def withdrawal_history(call: Call) -> object:
    """GET /sapi/v1/capital/withdraw/history."""
    client_id = call.parameters.get("withdrawOrderId")
    rows = [
        _withdrawal_row(withdrawal)
        for withdrawal in call.exchange.funding.withdrawals.values()
        if client_id in (None, withdrawal.accepted.withdraw_order_id)
        and _is_wanted(call, withdrawal.accepted.api_key, withdrawal.accepted.asset, _status(withdrawal), withdrawal.accepted.time_us)
    ]
    return _page(call, rows)


def _deposit_row(deposit: Deposit) -> dict[str, object]:
    # Binance calls a deposit "credited but cannot withdraw" (6) before its last confirmations; here the balance has it with success alone.
    seen, credited = deposit.seen, deposit.credited
    row: dict[str, object] = {
        "id": seen.deposit_id,
        "amount": f"{seen.amount:.8f}",
        "coin": seen.asset,
        "network": seen.network,
        "status": deposit.status,
        "address": seen.address,
        "addressTag": seen.address_tag,
        "txId": seen.transaction_id,
        "insertTime": seen.time_us // 1000,
        "transferType": 0,
        "confirmTimes": "0/1" if credited is None else "1/1",
        "unlockConfirm": 1,
        "walletType": 0,
    }
    if credited is not None:
        row["completeTime"] = credited.time_us // 1000
    return row


def deposit_history(call: Call) -> object:
    """GET /sapi/v1/capital/deposit/hisrec, in the order that the exchange is told to list in."""
    transaction_id = call.parameters.get("txId")
    rows = [
        _deposit_row(deposit)
        for deposit in call.exchange.funding.deposits.values()
        if transaction_id in (None, deposit.seen.transaction_id)
        and call.now_us >= deposit.seen.listed_from_us
        and _is_wanted(call, deposit.seen.api_key, deposit.seen.asset, deposit.status, deposit.seen.time_us)
        for _ in range(deposit.seen.listings)
    ]
    return _page(call, _in_order(rows, call.exchange.funding.listing))


def _in_order(rows: Sequence[dict[str, object]], listing: Listing) -> list[dict[str, object]]:
    """Rows that `_page` turns around: it shows the last first."""
    if listing is Listing.OLDEST_FIRST:
        return list(rows[::-1])
    # Another order at each question: nobody may rely on one.
    return random.sample(rows, len(rows)) if listing is Listing.SHUFFLED else list(rows)


def coins(call: Call) -> object:
    """GET /sapi/v1/capital/config/getall."""
    holding = call.owner.holding
    return [
        {
            "coin": asset,
            "name": asset,
            "free": f"{holding.free[asset]:.8f}",
            "locked": f"{holding.locked[asset]:.8f}",
            "depositAllEnable": True,
            "withdrawAllEnable": True,
            "trading": True,
            "isLegalMoney": False,
            "networkList": [_network_row(asset, network, call.exchange.rules.withdrawal_fee) for network in NETWORKS[asset]],
        }
        for asset in ASSETS
    ]


def _network_row(asset: str, network: str, fee: Decimal) -> dict[str, object]:
    return {
        "coin": asset,
        "network": network,
        "name": network,
        "isDefault": network == NETWORKS[asset][0],
        "depositEnable": True,
        "withdrawEnable": True,
        "withdrawFee": f"{fee:f}",
        "withdrawMin": "0.00000001",
        "withdrawMax": "10000000",
        "withdrawIntegerMultiple": "0.00000001",
        "depositDust": "0.00000001",
        "minConfirm": 1,
        "unLockConfirm": 1,
        "sameAddress": False,
        "busy": False,
    }
