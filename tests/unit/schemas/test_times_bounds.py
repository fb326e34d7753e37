"""One bound for every moment that comes from outside, whoever tells it."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.admin.keys import expiry_of
from cli.terminal.exits import CommandFailed, Exit
from infra.exchange.venues.binance.wallet import KEY
from infra.exchange.venues.reading import UnreadableBooks, moment
from infra.exchange.venues.registry import venue
from schemas.deposits import AnnouncementReport
from schemas.reasons import ReasonCode
from schemas.requests import Unreadable, decode_request
from schemas.times import EARLIEST, END, OutOfBounds, bounded, moment_of
from schemas.wire import format_time
from tests.unit.builders import NOW, trade
from tests.unit.withdrawal_builders import asking

OUT_OF_BOUNDS = (
    "9999-12-31T23:59:59.9999999Z",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59.999999-14:00",
    "9999-01-01T00:00:00Z",
    "1969-12-31T23:59:59.999999Z",
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
)
DEPOSIT: dict[str, Any] = {
    "schema_version": 1, "type": "deposit", "idempotency_key": "k", "user_id": "alice", "mode": "live", "exchange": "binance",
    "api_key_id": "k1", "asset": "BTC", "amount": "1",
}  # fmt: skip


@pytest.mark.parametrize("text", OUT_OF_BOUNDS)
@pytest.mark.parametrize("request_fields", [trade(), asking(), DEPOSIT], ids=["trade", "withdrawal", "deposit"])
def test_deadline_that_a_store_cannot_carry_is_refused_by_name(text: str, request_fields: dict[str, Any]) -> None:
    """The largest times of .NET and Python are what the driver takes for `infinity`: refused before anything is held."""
    decoded = decode_request(json.dumps({**request_fields, "expires_at": text}).encode())
    assert isinstance(decoded, Unreadable)
    assert (decoded.reason_code, decoded.user_id) == (ReasonCode.SCHEMA_INVALID, "alice")
    assert decoded.reason == "expires_at: must lie between the years 1970 and 9998 in UTC"


def test_deadline_finer_than_a_microsecond_is_cut_off_and_never_rounded() -> None:
    """The last moment there is stays inside the bound, whatever digits follow."""
    decoded = decode_request(json.dumps(trade(expires_at="9998-12-31T23:59:59.9999999Z")).encode())
    assert decoded.expires_at == END - timedelta(microseconds=1)  # type: ignore[union-attr]


@given(st.datetimes(timezones=st.timezones() | st.just(timezone(timedelta(hours=14))) | st.just(timezone(timedelta(hours=-12)))))
def test_bounded_moment_can_be_carried_in_every_zone(value: datetime) -> None:
    """What passes can be written, read again as the same, moved by a day and told in the outermost zones; the rest is refused."""
    try:
        passed = bounded(value)
    except OutOfBounds:
        assert _refused_rightly(value)
        return
    assert passed == value.astimezone(UTC)
    assert datetime.fromisoformat(format_time(passed)) == passed
    for hours in (-12, 14):
        assert (passed + timedelta(days=1)).astimezone(timezone(timedelta(hours=hours))).year <= 9999


def _refused_rightly(value: datetime) -> bool:
    try:
        return not EARLIEST <= value.astimezone(UTC) < END
    except OverflowError:
        return True


def test_internal_record_with_a_moment_out_of_bounds_is_refused() -> None:
    """No worker hands another a time that its database could not give back."""
    with pytest.raises(ValueError, match="between the years 1970 and 9998"):
        AnnouncementReport(schema_version=1, announcement_id="n1", user_id="alice", looked_up_at=datetime.max.replace(tzinfo=UTC))


@pytest.mark.parametrize("told", [-1, 253_370_764_800_000, 2**63, 10**40, True, "1", 1.5, None, [1]])
def test_exchange_moment_out_of_bounds_is_none(told: object) -> None:
    """Nonsense in an answer is unreadable and never an error of arithmetic."""
    assert moment(told) is None
    assert moment_of(told, 1_000) is None


def test_exchange_moments_inside_the_bound_are_exact() -> None:
    """Milliseconds and microseconds alike, the first and the last moment included."""
    assert moment(0) == EARLIEST
    assert moment(253_370_764_799_999) == END - timedelta(milliseconds=1)
    assert moment_of(1, 1_000_000) == EARLIEST + timedelta(microseconds=1)


@pytest.mark.parametrize("told", [10**18, -5, 0])
def test_deposit_with_a_moment_out_of_bounds_is_unreadable_and_not_a_crash(told: int) -> None:
    """Also when only the difference of the clocks moves it out."""
    deposits = venue("binance").deposits
    assert deposits is not None
    row = {"status": 1, "id": "1", "txId": "t", "coin": "BTC", "amount": "1", "insertTime": told}
    with pytest.raises(UnreadableBooks, match="does not say when it came"):
        deposits.read(row, timedelta(seconds=1))


@pytest.mark.parametrize("until", [2**63, 10**30, 253_370_764_800_000])
def test_key_answer_with_an_end_out_of_bounds_is_unreadable(until: int) -> None:
    """It says nothing about the key; it used to be an error of the system's own."""
    granted = {"enableSpotAndMarginTrading": True, "enableWithdrawals": False}
    assert KEY.read({**granted, "tradingAuthorityExpirationTime": until}) is None
    accepted = KEY.read({**granted, "tradingAuthorityExpirationTime": 1_800_000_000_000})
    assert accepted is not None
    assert accepted.trading_until is not None


@pytest.mark.parametrize("text", [*OUT_OF_BOUNDS, "2027-01-31T00:00:00", "soon"])
def test_key_expiry_out_of_bounds_is_a_usage_error(text: str) -> None:
    """`keys add --expires-at` stores nothing that no worker could read."""
    with pytest.raises(CommandFailed) as failed:
        expiry_of(text, NOW)
    assert failed.value.code == Exit.USAGE
