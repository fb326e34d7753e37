"""The white list of each venue, rule by rule, and what no rule may ever prove."""

import itertools
from decimal import Decimal

import pytest

from infra.exchange.gateway import Credentials, UnknownVenue
from infra.exchange.venues.binance import refusals
from infra.exchange.venues.binance.venue import BINANCE
from infra.exchange.venues.reading import UnreadableBooks, amount
from infra.exchange.venues.registry import venue
from infra.exchange.venues.venue import Evidence, proven_refusal
from schemas.reasons import ReasonCode

ALL_CODES = sorted({code for rule in refusals.ORDERS for code in rule.codes or ()})
UNKNOWN_OUTCOME = ["-1000", "-1001", "-1004", "-1006", "-1007", "-1008", "-2011", "-2013", "-2021", "-2022", "", "-9999"]


def _answered(status: int | None, code: str = "", message: str = "") -> Evidence:
    return Evidence(handed_over=True, unconnected=False, http_status=status, code=code, message=message)


@pytest.mark.parametrize("exchange_id", ["kraken", "binanceusdm", "Binance", "", "no-such-exchange"])
def test_venue_without_a_row_is_refused_with_a_clear_message(exchange_id: str) -> None:
    """An exchange id without a proof table is not offered, and the message says what is."""
    with pytest.raises(UnknownVenue, match=r"Nothing was sent.*binance"):
        venue(exchange_id)


def test_venue_with_a_row_is_found() -> None:
    """Binance and Binance.US are offered."""
    assert venue("binance") is BINANCE
    assert venue("binanceus").exchange_id == "binanceus"


@pytest.mark.parametrize(("status", "code"), list(itertools.product([500, 502, 503, 504, 520, 200, 302, 404, 408, 409, None], ALL_CODES)))
def test_refusal_codes_prove_nothing_under_another_status(status: int | None, code: str) -> None:
    """No code of the white list counts under a 5xx, a 200 or an answer that was not read whole."""
    assert proven_refusal(BINANCE.refusal, _answered(status, code, "Account has insufficient balance for requested action.")) is None


@pytest.mark.parametrize("code", UNKNOWN_OUTCOME)
def test_refusal_of_an_unknown_outcome_is_none(code: str) -> None:
    """Codes whose execution status is unknown, and unknown codes, stay in doubt."""
    assert proven_refusal(BINANCE.refusal, _answered(400, code, "Anything.")) is None


@pytest.mark.parametrize("message", ["Duplicate order sent.", "", "Something new.", "duplicate: Account has insufficient balance"])
def test_refusal_by_a_rejection_text_not_listed_is_none(message: str) -> None:
    """-2010 is shared with "Duplicate order sent.": another copy stands, so the text decides."""
    assert proven_refusal(BINANCE.refusal, _answered(400, "-2010", message)) is None


@pytest.mark.parametrize(("status", "code", "message", "reason"), [
    (429, "-1003", "Too many requests.", ReasonCode.EXCHANGE_UNAVAILABLE),
    (429, "", "", ReasonCode.EXCHANGE_UNAVAILABLE),
    (418, "-1003", "", ReasonCode.EXCHANGE_UNAVAILABLE),
    (403, "", "", ReasonCode.EXCHANGE_UNAVAILABLE),
    (400, "-1021", "Timestamp for this request was 1000ms ahead of the server's time.", ReasonCode.EXCHANGE_UNAVAILABLE),
    (400, "-2010", "Account has insufficient balance for requested action.", ReasonCode.BALANCE_INSUFFICIENT),
    (400, "-2010", "Order would trigger immediately.", ReasonCode.EXCHANGE_REFUSED),
    (400, "-1013", "Filter failure: LOT_SIZE", ReasonCode.EXCHANGE_REFUSED),
    (400, "-1121", "Invalid symbol.", ReasonCode.SYMBOL_UNKNOWN),
    (400, "-1022", "Signature for this request is not valid.", ReasonCode.API_KEY_UNKNOWN),
    (401, "-2014", "API-key format invalid.", ReasonCode.API_KEY_UNKNOWN),
    (401, "-2015", "Invalid API-key, IP, or permissions for action.", ReasonCode.API_KEY_PERMISSION),
    (400, "-2015", "Invalid API-key, IP, or permissions for action.", ReasonCode.API_KEY_PERMISSION),
])
def test_refusal_each_rule_has_its_reason(status: int, code: str, message: str, reason: ReasonCode) -> None:
    """The white list, row by row."""
    assert proven_refusal(BINANCE.refusal, _answered(status, code, message)) is reason


def test_refusal_nothing_handed_over_or_no_connection_is_proof() -> None:
    """What never left is not accepted, whatever else is known."""
    assert proven_refusal(BINANCE.refusal, Evidence(handed_over=False, unconnected=False)) is ReasonCode.EXCHANGE_REFUSED
    assert proven_refusal(BINANCE.refusal, Evidence(handed_over=True, unconnected=True)) is ReasonCode.EXCHANGE_UNAVAILABLE
    assert proven_refusal(BINANCE.refusal, Evidence(handed_over=True, unconnected=False)) is None


def test_credentials_repr_shows_no_secret() -> None:
    """Neither repr nor str tells a key, a secret or a passphrase."""
    shown = repr(Credentials("the-key", "the-secret", "the-passphrase")) + str(Credentials("the-key", "the-secret", "the-passphrase"))
    assert "the-" not in shown


@pytest.mark.parametrize("told", ["-0.1", "0.1234567890123456789", "1" * 21, "NaN", 0.1, None])
def test_amount_that_the_ledger_cannot_hold_is_unreadable(told: object) -> None:
    """A rebate, too many digits, a float or nothing at all: the venue's word proves nothing, and no worker meets it in a report later."""
    with pytest.raises(UnreadableBooks):
        amount(told, "fee")


def test_amount_in_any_notation_of_json_is_read_exactly() -> None:
    """Exponents and trailing zeros are the same amount."""
    assert (amount("1E-8", "fee"), amount("0.10000000000000000000", "fee")) == (Decimal("0.00000001"), Decimal("0.1"))


@pytest.mark.parametrize(
    ("code", "message", "reason"),
    [
        ("-2010", "Market is closed.", ReasonCode.EXCHANGE_UNAVAILABLE),
        ("-1013", "Market is closed.", ReasonCode.EXCHANGE_UNAVAILABLE),
        ("-2010", "Rest API trading is not enabled.", ReasonCode.EXCHANGE_UNAVAILABLE),
        ("-2010", "REST API trading is not enabled.", ReasonCode.EXCHANGE_UNAVAILABLE),
        ("-1013", "Filter failure: PERCENT_PRICE_BY_SIDE", ReasonCode.PRICE_OUT_OF_BAND),
        ("-1013", "Filter failure: MAX_NUM_ORDERS", ReasonCode.OPEN_ORDERS_EXCEEDED),
        ("-1013", "Filter failure: EXCHANGE_MAX_NUM_ORDERS", ReasonCode.OPEN_ORDERS_EXCEEDED),
        ("-1013", "Filter failure: MAX_POSITION", ReasonCode.POSITION_LIMIT_EXCEEDED),
        ("-1013", "Filter failure: LOT_SIZE", ReasonCode.EXCHANGE_REFUSED),
        ("-2010", "This symbol is restricted for this account.", ReasonCode.EXCHANGE_REFUSED),
    ],
)
def test_refusal_says_whether_it_is_the_exchange_s_state_or_the_order(code: str, message: str, reason: ReasonCode) -> None:
    """What is closed at the exchange is no failure of the user's, and is tried again until the deadline."""
    evidence = Evidence(handed_over=True, unconnected=False, http_status=400, code=code, message=message)
    assert proven_refusal(BINANCE.refusal, evidence) is reason
