"""Withdrawals through the gateway, over real HTTP: what each answer proves, held against the exchange's own log."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from infra.exchange.ccxt.transport import Call
from infra.exchange.venues.binance.venue import BINANCE, BINANCE_US
from infra.exchange.venues.binance.wallet import WITHDRAWAL_STATUSES
from infra.exchange.venues.venue import Evidence, proven_refusal
from pipeline.model.venue import InDoubt, LookUpFailed, Refused
from pipeline.model.withdrawal import Taken, VenueWithdrawal, WithdrawalSubmission
from schemas.orders import WithdrawalStatus
from schemas.reasons import ReasonCode
from tests.integration.test_gateway_simulator import Simulator, simulated
from tests.withdrawing import ADDRESS, APPLY, FAILING

TRON = "TR7NHqjeKQxGTCi8q8ZY4pL8otSzgjLj6t"
IN_DOUBT = (
    "hang_before_accept", "hang_after_accept", "drop_before_accept", "drop_after_accept", "http_500_before_accept", "http_500_after_accept",
    "http_502_before_accept", "http_502_after_accept", "http_503_before_accept", "http_503_after_accept", "http_503_unavailable",
    "http_504_before_accept", "http_504_after_accept", "truncated_body", "cut_json", "html_200", "empty_json_200", "duplicate",
)  # fmt: skip


def payout(number: int = 0, **fields: object) -> WithdrawalSubmission:
    values = {
        "withdrawal_id": f"w{number}",
        "client_withdrawal_id": f"cw{number:028x}",
        "exchange": "binance",
        "user_id": "alice",
        "api_key_id": "main",
        "asset": "USDT",
        "network": "ETH",
        "address": ADDRESS,
        "address_tag": None,
        "amount": Decimal("100.123456"),
        "fee": Decimal("0.5"),
        "submitting_at": datetime.now(UTC),
        "expires_at": datetime.now(UTC) + timedelta(seconds=30),
        **fields,
    }
    return WithdrawalSubmission(**values)  # type: ignore[arg-type]  # a test's own values


async def _taken(simulator: Simulator) -> list[tuple[str, str, str]]:
    """(client id, amount, tag) of every withdrawal in the exchange's own log."""
    async with simulator.http.get(f"{simulator.url}/simulator/log") as response:
        rows = [json.loads(line) for line in (await response.text()).splitlines() if line.strip()]
    return [(row["withdraw_order_id"], row["amount"], row["address_tag"]) for row in rows if row["record"] == "withdrawal"]


async def test_withdrawal_is_asked_for_with_its_fee_and_found_in_the_history(tmp_path: Path) -> None:
    """The exchange gets amount and fee, tag and client id as recorded; its history shows it until it is paid."""
    async with simulated(tmp_path) as (simulator, gateway):
        assert isinstance(await gateway.withdraw(payout(1)), Taken)
        assert isinstance(await gateway.withdraw(payout(2, network="TRX", address=TRON, address_tag="77")), Taken)
        assert isinstance(await gateway.withdraw(payout(3, address=FAILING)), Taken)
        assert [row[1:] for row in await _taken(simulator)] == [("100.623456", ""), ("100.623456", "77"), ("100.623456", "")]
        now = datetime.now(UTC)
        rows: dict[str, VenueWithdrawal] = {}
        while not rows or any(row.status is WithdrawalStatus.PROCESSING for row in rows.values()):
            found = await gateway.withdrawal_history("alice", "main", now - timedelta(minutes=5), now + timedelta(minutes=1))
            assert not isinstance(found, LookUpFailed), found
            rows = {row.client_withdrawal_id: row for row in found.rows}
        assert [rows[payout(number).client_withdrawal_id].status for number in (1, 2, 3)] == [
            WithdrawalStatus.COMPLETED, WithdrawalStatus.COMPLETED, WithdrawalStatus.FAILED,
        ]  # fmt: skip
        assert rows[payout(1).client_withdrawal_id].transaction_id
        # Times outside the window are not shown.
        earlier = await gateway.withdrawal_history("alice", "main", now - timedelta(hours=2), now - timedelta(hours=1))
        assert not isinstance(earlier, LookUpFailed) and earlier.rows == ()
        networks = await gateway.withdrawal_networks("alice", "main")
        assert {("USDT", "ETH"), ("USDT", "TRX"), ("BTC", "BTC")} <= networks.keys()
        assert networks["USDT", "ETH"].enabled and networks["USDT", "ETH"].fee == 0


@pytest.mark.parametrize("kind", IN_DOUBT)
async def test_answer_that_proves_nothing_leaves_a_withdrawal_in_doubt(kind: str, tmp_path: Path) -> None:
    """Silence, errors of the server and nonsense are no proof either way, whatever happened behind them."""
    async with simulated(tmp_path) as (simulator, gateway):
        await simulator.admin("POST", "faults", [{"kind": kind, "next_n": 1, "path": APPLY}])
        outcome = await gateway.withdraw(payout())
        assert isinstance(outcome, InDoubt), outcome
        accepted = kind.endswith("after_accept") or kind in {"truncated_body", "cut_json", "html_200", "empty_json_200", "duplicate"}
        assert len(await _taken(simulator)) == (1 if accepted else 0)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"amount": Decimal(10_000_000)}, ReasonCode.BALANCE_INSUFFICIENT),
        ({"asset": "ETH", "network": "BTC"}, ReasonCode.EXCHANGE_REFUSED),
        ({"asset": "DOGE"}, ReasonCode.EXCHANGE_REFUSED),
        ({"amount": Decimal("1.123456789")}, ReasonCode.PRECISION_INVALID),
        ({"submitting_at": datetime(2026, 1, 1, tzinfo=UTC)}, ReasonCode.REQUEST_EXPIRED),
        ({"exchange": "kraken"}, ReasonCode.REQUEST_UNSUPPORTED),
        # A form has no place for it: it would begin another field.
        ({"address_tag": "7&amount=9"}, ReasonCode.EXCHANGE_REFUSED),
    ],
)
async def test_withdrawal_that_is_proven_not_taken_is_refused(fields: dict[str, object], code: ReasonCode, tmp_path: Path) -> None:
    """By the exchange's own words, or because it never left this side."""
    async with simulated(tmp_path) as (simulator, gateway):
        outcome = await gateway.withdraw(payout(**fields))
        assert isinstance(outcome, Refused) and outcome.reason_code is code, outcome
        assert await _taken(simulator) == []


async def test_pre_send_check_stops_a_withdrawal_before_it_leaves(tmp_path: Path) -> None:
    """A halt behind all queues keeps it here, and a look that fails is told to the caller."""

    async def halted() -> Refused:
        return Refused(ReasonCode.TRADING_HALTED, "halted")

    async def unknown() -> None:
        raise RuntimeError("nobody can say")

    async with simulated(tmp_path) as (simulator, gateway):
        outcome = await gateway.withdraw(payout(), halted)
        assert isinstance(outcome, Refused) and outcome.reason_code is ReasonCode.TRADING_HALTED
        with pytest.raises(RuntimeError, match="nobody can say"):
            await gateway.withdraw(payout(), unknown)
        assert await _taken(simulator) == []


@pytest.mark.parametrize("kind", ["drop_before_accept", "http_500_before_accept", "html_200", "cut_json", "empty_json_200"])
async def test_history_that_is_not_whole_proves_nothing(kind: str, tmp_path: Path) -> None:
    """An answer that cannot be read is never taken for an empty history."""
    async with simulated(tmp_path) as (simulator, gateway):
        await gateway.withdraw(payout())
        path = "/sapi/v1/capital/withdraw/history"
        await simulator.admin("POST", "faults", [{"kind": kind, "next_n": 1, "path": path, "method": "GET"}])
        now = datetime.now(UTC)
        found = await gateway.withdrawal_history("alice", "main", now - timedelta(minutes=5), now)
        assert isinstance(found, LookUpFailed), found


def _evidence(code: str, status: int = 400) -> Evidence:
    call = Call(handed_over=True, connected=True, http_status=status, answer={"code": int(code), "msg": "x"})
    return call.evidence(BINANCE)


@pytest.mark.parametrize(
    "code", ["-4005", "-4025", "-4027", "-4032", "-4038", "-4041", "-4045", "-1000", "-1001", "-1007", "-2010", "-9999"]
)
def test_refusal_that_is_not_listed_proves_nothing(code: str) -> None:
    """An inner failure of the exchange, and a code that nobody knows, leave it in doubt."""
    assert BINANCE.withdrawals is not None
    assert proven_refusal(BINANCE.withdrawals.refusal, _evidence(code)) is None
    assert proven_refusal(BINANCE.withdrawals.refusal, _evidence("-4026", 500)) is None


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("-4026", ReasonCode.BALANCE_INSUFFICIENT),
        ("-4024", ReasonCode.BALANCE_INSUFFICIENT),
        ("-4019", ReasonCode.EXCHANGE_REFUSED),
        ("-4033", ReasonCode.EXCHANGE_REFUSED),
        ("-1021", ReasonCode.EXCHANGE_UNAVAILABLE),
        ("-2015", ReasonCode.API_KEY_PERMISSION),
        ("-1102", ReasonCode.EXCHANGE_REFUSED),
    ],
)
def test_refusal_that_is_listed_is_a_proof(code: str, reason: ReasonCode) -> None:
    """What the exchange says before it takes anything in."""
    assert BINANCE.withdrawals is not None
    assert proven_refusal(BINANCE.withdrawals.refusal, _evidence(code)) is reason


def test_every_status_of_the_history_has_its_meaning() -> None:
    """Binance: 0 email sent, 1 cancelled, 2 awaiting approval, 3 rejected, 4 processing, 5 failure, 6 completed."""
    assert BINANCE.withdrawals is not None and BINANCE_US.withdrawals is None
    names = {WithdrawalStatus.PROCESSING: "024", WithdrawalStatus.FAILED: "135", WithdrawalStatus.COMPLETED: "6"}
    assert {digit: status for status, digits in names.items() for digit in digits} == WITHDRAWAL_STATUSES
