"""Binance and Binance.US: their wire, and the white list of answers that mean "not accepted"."""

import re
from dataclasses import replace
from datetime import timedelta
from typing import Final

from infra.exchange.key_check import KeyQuestion
from infra.exchange.venues.venue import OrderOnTheWire, RefusalRule, Venue, VenueAccount, VenueDepositList, VenueWithdrawals
from schemas.orders import DepositStatus, OrderType, Side, TimeInForce, WithdrawalStatus
from schemas.reasons import ReasonCode

_BAD_REQUEST: Final = frozenset({400})


_CLIENT_ERROR: Final = frozenset({400, 401, 403})


_TURNED_AWAY: Final = frozenset({403, 418, 429})


# Binance spot API, "Error codes"; of -1013: "The request didn't reach the Matching Engine". -1000 (unknown), -1001 (disconnected), -1006
# (unexpected response, execution status unknown), -1007 (time-out, execution status unknown), -1004 and -1008 (overloaded) prove nothing
# and are therefore missing.
_BINANCE_MALFORMED: Final = frozenset({
    "-1013", "-1014", "-1020", "-1100", "-1101", "-1102", "-1103", "-1104", "-1105", "-1106", "-1108", "-1111", "-1114", "-1115", "-1116",
    "-1117", "-1118", "-1119", "-1128", "-1130", "-1131", "-1134", "-1135", "-1139", "-1145", "-1151", "-1182",
})


# "Messages for -1010 ERROR_MSG_RECEIVED, -2010 NEW_ORDER_REJECTED, and -2011 CANCEL_REJECTED". The code is shared with "Duplicate order
# sent.", which says that *another copy* stands in the books; so the text decides, and a text that is not listed is in doubt.
_BINANCE_REJECTED_TEXTS: Final = (
    "This action is disabled on this account.",
    "This account may not place or cancel orders.",
    "Unsupported order combination",
    "Order would trigger immediately.",
    "Order would immediately match and take.",
    "Market orders are not supported for this symbol.",
    "Quote order qty market orders are not support",
    "Iceberg orders are not supported for this symbol.",
    "Price * QTY is zero or less.",
    "Price X QTY is zero or less.",
    "This symbol is restricted for this account.",
    "This symbol is not permitted for this account.",
    "Order amend is not supported",
    "Order book liquidity is less than",
)


# The state of the exchange, and nothing about the order: the same order is taken when it has changed.
_BINANCE_CLOSED_TEXTS: Final = ("Market is closed", "Rest API trading is not enabled", "REST API trading is not enabled")


_BINANCE_REFUSALS: Final = (
    RefusalRule(ReasonCode.EXCHANGE_UNAVAILABLE, _TURNED_AWAY),
    RefusalRule(ReasonCode.EXCHANGE_UNAVAILABLE, _BAD_REQUEST, frozenset({"-1003", "-1015", "-1016"})),
    # The receive window was over when the request arrived, or the clocks disagree.
    RefusalRule(ReasonCode.EXCHANGE_UNAVAILABLE, _BAD_REQUEST, frozenset({"-1021"})),
    RefusalRule(ReasonCode.BALANCE_INSUFFICIENT, _BAD_REQUEST, frozenset({"-2010"}), ("Account has insufficient balance",)),
    RefusalRule(ReasonCode.EXCHANGE_UNAVAILABLE, _BAD_REQUEST, frozenset({"-1013", "-2010"}), _BINANCE_CLOSED_TEXTS),
    RefusalRule(ReasonCode.EXCHANGE_REFUSED, _BAD_REQUEST, frozenset({"-2010"}), _BINANCE_REJECTED_TEXTS),
    # "Filter failures": those whose name says alone what was exceeded.
    RefusalRule(ReasonCode.PRICE_OUT_OF_BAND, _BAD_REQUEST, frozenset({"-1013"}), ("Filter failure: PERCENT_PRICE",)),
    RefusalRule(
        ReasonCode.OPEN_ORDERS_EXCEEDED, _BAD_REQUEST, frozenset({"-1013"}),
        ("Filter failure: MAX_NUM_ORDERS", "Filter failure: EXCHANGE_MAX_NUM_ORDERS"),
    ),
    RefusalRule(ReasonCode.POSITION_LIMIT_EXCEEDED, _BAD_REQUEST, frozenset({"-1013"}), ("Filter failure: MAX_POSITION",)),
    RefusalRule(ReasonCode.EXCHANGE_REFUSED, _BAD_REQUEST, _BINANCE_MALFORMED),
    RefusalRule(ReasonCode.SYMBOL_UNKNOWN, _BAD_REQUEST, frozenset({"-1121"})),
    RefusalRule(ReasonCode.API_KEY_UNKNOWN, _CLIENT_ERROR, frozenset({"-1022", "-2008", "-2014"})),
    # "Invalid API-key, IP, or permissions for action."
    RefusalRule(ReasonCode.API_KEY_PERMISSION, _CLIENT_ERROR, frozenset({"-1002", "-2015"})),
)


# Binance wallet API, "Get API Key Permission". Its spot sandbox has no wallet endpoints; there, "Account information" is about the account.
_BINANCE_KEY: Final = KeyQuestion(
    call="sapiGetAccountApiRestrictions",
    trade="enableSpotAndMarginTrading",
    withdraw="enableWithdrawals",
    ip_restricted="ipRestrict",
    trading_until="tradingAuthorityExpirationTime",
)


_BINANCE_ACCOUNT: Final = KeyQuestion(call="privateGetAccount", trade="canTrade", withdraw="canWithdraw", is_of_key=False)


# Binance wallet API, "Error codes", 4xxx: what it says before anything is taken in. Not among them are those that name an inner failure
# (-4025, -4027, -4032, -4045) or a limit in time (-4005, -4038, -4041): they prove nothing.
_BINANCE_WITHDRAWAL_REFUSALS: Final = (
    *(rule for rule in _BINANCE_REFUSALS if rule.codes is None or not rule.codes & {"-1013", "-2010", "-1121"}),
    RefusalRule(
        ReasonCode.EXCHANGE_REFUSED,
        _BAD_REQUEST,
        frozenset({
            "-1100", "-1101", "-1102", "-1103", "-1104", "-1105", "-1106", "-1111", "-1130", "-4006", "-4007", "-4008", "-4012", "-4013",
            "-4014", "-4015", "-4016", "-4017", "-4018", "-4019", "-4021", "-4022", "-4023", "-4028", "-4033", "-4034", "-4035", "-4036",
            "-4044", "-4046",
        }),
    ),
    RefusalRule(ReasonCode.BALANCE_INSUFFICIENT, _BAD_REQUEST, frozenset({"-4024", "-4026"})),
)


# Binance wallet API, "Withdraw", "Withdraw History" and "All Coins' Information". Statuses 1 and 5 are no longer documented; they are
# read as earlier versions had them.
_BINANCE_WITHDRAWALS: Final = VenueWithdrawals(
    path="/sapi/v1/capital/withdraw/apply",
    client_withdrawal_id="withdrawOrderId",
    asset="coin",
    network="network",
    address="address",
    address_tag="addressTag",
    amount="amount",
    others={"signature": None},
    takes_fee_from_amount=True,
    refusals=_BINANCE_WITHDRAWAL_REFUSALS,
    statuses={
        # Email sent, awaiting approval, processing.
        "0": WithdrawalStatus.PROCESSING,
        "2": WithdrawalStatus.PROCESSING,
        "4": WithdrawalStatus.PROCESSING,
        # Cancelled, rejected, failure.
        "1": WithdrawalStatus.FAILED,
        "3": WithdrawalStatus.FAILED,
        "5": WithdrawalStatus.FAILED,
        "6": WithdrawalStatus.COMPLETED,
    },
    history_call="sapiGetCapitalWithdrawHistory",
    history_page=1_000,
    networks_call="sapiGetCapitalConfigGetall",
)


# Binance spot API, "Account information": the spot wallet, free and locked in orders; what lies in other wallets is not shown.
_BINANCE_BALANCES: Final = VenueAccount(
    call="privateGetAccount",
    parameters={"omitZeroBalances": "true"},
    balances="balances",
    asset="asset",
    free="free",
    locked="locked",
    account_id="uid",
)


# Binance wallet API, "Deposit History". It names no output of the transaction; each entry has an id.
_BINANCE_DEPOSITS: Final = VenueDepositList(
    entry_id="id",
    transaction_id="txId",
    asset="coin",
    network="network",
    address="address",
    address_tag="addressTag",
    amount="amount",
    arrived="insertTime",
    completed="completeTime",
    statuses={
        # Pending; credited but cannot withdraw: it may be used for trading there, and needs more confirmations before it is success.
        "0": DepositStatus.CONFIRMING,
        "6": DepositStatus.CONFIRMING,
        # Waiting for the user to confirm.
        "8": DepositStatus.DETECTED,
        "1": DepositStatus.CREDITED,
        # Rejected, wrong deposit.
        "2": DepositStatus.REJECTED,
        "7": DepositStatus.REJECTED,
    },
    history_call="sapiGetCapitalDepositHisrec",
    history_page=1_000,
)


BINANCE: Final = Venue(
    exchange_id="binance",
    client_order_id_pattern=re.compile(r"[.A-Z:/a-z0-9_-]{1,36}"),
    create_parameter="clientOrderId",
    look_up_parameter="clientOrderId",
    cancel_parameter="clientOrderId",
    # "`newClientOrderId` will replace `clientOrderId` of the canceled order, freeing it up for new orders" (Cancel order).
    cancel_id_parameter="newClientOrderId",
    key_header="X-MBX-APIKEY",
    order=OrderOnTheWire(
        path="/api/v3/order",
        symbol="symbol",
        side="side",
        sides={Side.BUY: "BUY", Side.SELL: "SELL"},
        order_type="type",
        order_types={OrderType.MARKET: "MARKET", OrderType.LIMIT: "LIMIT", OrderType.LIMIT_MAKER: "LIMIT_MAKER"},
        time_in_force="timeInForce",
        times_in_force={TimeInForce.GTC: "GTC", TimeInForce.IOC: "IOC", TimeInForce.FOK: "FOK"},
        time_in_force_default="GTC",
        client_order_id="newClientOrderId",
        original_client_order_id="origClientOrderId",
        exchange_order_id="orderId",
        quantity="quantity",
        quote_quantity="quoteOrderQty",
        price="price",
        timestamp="timestamp",
        receive_window="recvWindow",
        # The form of the answer.
        others={"newOrderRespType": frozenset({"ACK", "RESULT", "FULL"}), "signature": None},
    ),
    error_code="code",
    error_message="msg",
    refusals=_BINANCE_REFUSALS,
    unknown_order_codes=frozenset({"-2013"}),
    not_cancelable_codes=frozenset({"-2011"}),
    clock_refused_codes=frozenset({"-1021"}),
    receive_window_max=timedelta(seconds=60),
    history_page=1_000,
    listed_quote_quantity="origQuoteOrderQty",
    prices_call="publicGetTickerPrice",
    key_questions=(_BINANCE_KEY, _BINANCE_ACCOUNT),
    options={
        "defaultType": "spot",
        # Spot only: load_markets then asks for /api/v3/exchangeInfo and for nothing that needs a key.
        "fetchMarkets": {"types": ["spot"]},
        "fetchMargins": False,
        "fetchCurrencies": False,
        "warnOnFetchOpenOrdersWithoutSymbol": False,
    },
    # Its sandbox is under binance.vision (Binance spot API, Testnet).
    real_money_domains=frozenset({"binance.com"}),
    account=_BINANCE_BALANCES,
    withdrawals=_BINANCE_WITHDRAWALS,
    deposits=_BINANCE_DEPOSITS,
    # Its order queries read memory, then a database that is written to asynchronously (Binance spot API, "Data Sources"): some delay is
    # to be expected and no bound is published. Several bots have seen an order in none of its lists for minutes.
    read_lag=timedelta(seconds=120),
)


# Binance.US publishes the same rules for its spot API: return codes, timing security, order endpoints, error codes
# (github.com/binance-us/binance-us-api-docs). ccxt switches orders by quote quantity off there, the API takes them.
BINANCE_US: Final = replace(
    BINANCE,
    exchange_id="binanceus",
    # It publishes no endpoint about the key itself.
    key_questions=(_BINANCE_ACCOUNT,),
    options={**BINANCE.options, "quoteOrderQty": True},
    real_money_domains=frozenset({"binance.us"}),
    # Its documentation names neither the parameter nor the account's number.
    account=replace(_BINANCE_BALANCES, parameters={}, account_id=None),
    # Its history is not proven here to show the client's own id.
    withdrawals=None,
    # Nor what its deposits are shown as.
    deposits=None,
)
