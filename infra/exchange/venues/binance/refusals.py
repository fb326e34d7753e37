"""The white lists of Binance's answers that mean "not accepted"."""

from typing import Final

from infra.exchange.venues.venue import RefusalRule
from schemas.reasons import ReasonCode

_BAD_REQUEST: Final = frozenset({400})

_CLIENT_ERROR: Final = frozenset({400, 401, 403})

_TURNED_AWAY: Final = frozenset({403, 418, 429})

# Binance spot API, "Error codes"; of -1013: "The request didn't reach the Matching Engine". -1000 (unknown), -1001 (disconnected), -1006
# (unexpected response, execution status unknown), -1007 (time-out, execution status unknown), -1004 and -1008 (overloaded) prove nothing
# and are therefore missing.
_MALFORMED: Final = frozenset({
    "-1013", "-1014", "-1020", "-1100", "-1101", "-1102", "-1103", "-1104", "-1105", "-1106", "-1108", "-1111", "-1114", "-1115", "-1116",
    "-1117", "-1118", "-1119", "-1128", "-1130", "-1131", "-1134", "-1135", "-1139", "-1145", "-1151", "-1182",
})

# "Messages for -1010 ERROR_MSG_RECEIVED, -2010 NEW_ORDER_REJECTED, and -2011 CANCEL_REJECTED". The code is shared with "Duplicate order
# sent.", which says that *another copy* stands in the books; so the text decides, and a text that is not listed is in doubt.
_REJECTED_TEXTS: Final = (
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
_CLOSED_TEXTS: Final = ("Market is closed", "Rest API trading is not enabled", "REST API trading is not enabled")

ORDERS: Final = (
    RefusalRule(ReasonCode.EXCHANGE_UNAVAILABLE, _TURNED_AWAY),
    RefusalRule(ReasonCode.EXCHANGE_UNAVAILABLE, _BAD_REQUEST, frozenset({"-1003", "-1015", "-1016"})),
    # The receive window was over when the request arrived, or the clocks disagree.
    RefusalRule(ReasonCode.EXCHANGE_UNAVAILABLE, _BAD_REQUEST, frozenset({"-1021"})),
    RefusalRule(ReasonCode.BALANCE_INSUFFICIENT, _BAD_REQUEST, frozenset({"-2010"}), ("Account has insufficient balance",)),
    RefusalRule(ReasonCode.EXCHANGE_UNAVAILABLE, _BAD_REQUEST, frozenset({"-1013", "-2010"}), _CLOSED_TEXTS),
    RefusalRule(ReasonCode.EXCHANGE_REFUSED, _BAD_REQUEST, frozenset({"-2010"}), _REJECTED_TEXTS),
    # "Filter failures": those whose name says alone what was exceeded.
    RefusalRule(ReasonCode.PRICE_OUT_OF_BAND, _BAD_REQUEST, frozenset({"-1013"}), ("Filter failure: PERCENT_PRICE",)),
    RefusalRule(
        ReasonCode.OPEN_ORDERS_EXCEEDED, _BAD_REQUEST, frozenset({"-1013"}),
        ("Filter failure: MAX_NUM_ORDERS", "Filter failure: EXCHANGE_MAX_NUM_ORDERS"),
    ),
    RefusalRule(ReasonCode.POSITION_LIMIT_EXCEEDED, _BAD_REQUEST, frozenset({"-1013"}), ("Filter failure: MAX_POSITION",)),
    RefusalRule(ReasonCode.EXCHANGE_REFUSED, _BAD_REQUEST, _MALFORMED),
    RefusalRule(ReasonCode.SYMBOL_UNKNOWN, _BAD_REQUEST, frozenset({"-1121"})),
    RefusalRule(ReasonCode.API_KEY_UNKNOWN, _CLIENT_ERROR, frozenset({"-1022", "-2008", "-2014"})),
    # "Invalid API-key, IP, or permissions for action."
    RefusalRule(ReasonCode.API_KEY_PERMISSION, _CLIENT_ERROR, frozenset({"-1002", "-2015"})),
)

# Binance wallet API, "Error codes", 4xxx: what it says before anything is taken in. Not among them are those that name an inner failure
# (-4025, -4027, -4032, -4045) or a limit in time (-4005, -4038, -4041): they prove nothing.
WITHDRAWALS: Final = (
    *(rule for rule in ORDERS if rule.codes is None or not rule.codes & {"-1013", "-2010", "-1121"}),
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
