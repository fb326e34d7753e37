"""The words of an order's life, in FIX's terms: side, type, time in force, status; and the statuses of withdrawals and deposits."""

from enum import StrEnum


class RequestType(StrEnum):
    TRADE = "trade"
    CANCEL = "cancel"
    WITHDRAWAL = "withdrawal"
    DEPOSIT = "deposit"
    SESSION = "session"


class Mode(StrEnum):
    """`live` is real money; `paper` is a simulation with a book of its own."""

    LIVE = "live"
    PAPER = "paper"


class Side(StrEnum):
    BUY = "buy"
    SELL = "sell"


class OrderType(StrEnum):
    MARKET = "market"
    LIMIT = "limit"
    STOP_LOSS = "stop_loss"
    STOP_LOSS_LIMIT = "stop_loss_limit"
    TAKE_PROFIT = "take_profit"
    TAKE_PROFIT_LIMIT = "take_profit_limit"
    LIMIT_MAKER = "limit_maker"
    TRAILING_STOP = "trailing_stop"


class TimeInForce(StrEnum):
    GTC = "GTC"
    IOC = "IOC"
    FOK = "FOK"


class OrderStatus(StrEnum):
    """FIX OrdStatus words, with `submitting` (intent recorded, the call may be under way) and `in_doubt` (no proof either way)."""

    RECEIVED = "received"
    ACCEPTED = "accepted"
    SUBMITTING = "submitting"
    IN_DOUBT = "in_doubt"
    NEW = "new"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    CANCELED = "canceled"
    EXPIRED = "expired"
    REJECTED = "rejected"


class WithdrawalStatus(StrEnum):
    """`processing`: the exchange has taken it and pays it out. `failed`: it has taken it and not paid. `rejected`: it never took it."""

    RECEIVED = "received"
    PENDING_APPROVAL = "pending_approval"
    ACCEPTED = "accepted"
    SUBMITTING = "submitting"
    IN_DOUBT = "in_doubt"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    REJECTED = "rejected"


class DepositStatus(StrEnum):
    """`detected`: the exchange has seen it and waits for its user or for something else. `confirming`: it waits for the network.
    `credited`: its user has it. `reversed`: the exchange has taken it back afterwards. `rejected`: it never counted."""

    DETECTED = "detected"
    CONFIRMING = "confirming"
    CREDITED = "credited"
    REVERSED = "reversed"
    REJECTED = "rejected"


class AnnouncementStatus(StrEnum):
    """`expected`: no deposit has arrived yet that fits what was announced. `failed`: none did in time."""

    EXPECTED = "expected"
    COMPLETED = "completed"
    FAILED = "failed"
