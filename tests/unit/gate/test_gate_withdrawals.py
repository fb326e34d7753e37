"""The gate of a withdrawal: each check, on both sides of its boundary, and the order in which they are made."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.gate.check import Step
from pipeline.gate.context import AccountState, Usage
from pipeline.gate.ladder import GIVEN_ELSEWHERE, TRADE_GATE
from pipeline.gate.limits import Limits
from pipeline.gate.throttle import after_failure
from pipeline.gate.withdrawals import WITHDRAWAL_GATE, WithdrawalContext
from pipeline.model.api_key import ApiKeyState
from pipeline.model.conduct import Conduct
from pipeline.model.halts import NO_HALTS, Halt, HaltBook
from pipeline.model.venue import Quote
from pipeline.model.withdrawal import AllowedAddress, Network
from schemas.commands import HaltLevel, HaltScope
from schemas.reasons import ReasonCode
from schemas.requests import WithdrawalRequest, decode_request
from tests.unit.builders import EXCHANGE, NOW, RULES, USER, account_state, market_data
from tests.unit.withdrawal_builders import ADDRESS, ALLOWED, NETWORK, asking

BTC_ADDRESS = "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"
WITHDRAWING = ApiKeyState(EXCHANGE, "active", frozenset({"withdraw"}))


def context(request: Mapping[str, Any] | None = None, **fields: Any) -> WithdrawalContext:
    """One that passes every check; `request` and `fields` replace."""
    decoded = decode_request(json.dumps(asking(**(request or {}))).encode())
    assert isinstance(decoded, WithdrawalRequest), decoded
    values: dict[str, Any] = {
        "request": decoded,
        "appended_at": NOW,
        "now": NOW,
        "rules": RULES,
        "account": account_state(),
        "api_key": WITHDRAWING,
        "market_data": market_data(),
        "networks": {("USDT", "ETH"): NETWORK},
        "addresses": (ALLOWED,),
        "halts": NO_HALTS,
    }
    return WithdrawalContext(**{**values, **fields})


def refused(found: WithdrawalContext) -> ReasonCode | None:
    """The code that the steps give in their order."""
    for step in (Step.SAFETY, Step.API_KEY, Step.RISK):
        refusal = WITHDRAWAL_GATE.refusal(found, step)
        if refusal is not None:
            assert "othing was sent" in refusal.reason or "nothing was executed" in refusal.reason
            return refusal.code
    return None


def test_withdrawal_in_order_passes_every_check() -> None:
    """The starting point of the other tests is one that nothing stops."""
    assert refused(context()) is None


def _network(**fields: Any) -> dict[str, Any]:
    return {"networks": {("USDT", "ETH"): replace(NETWORK, **fields)}}


def _state(**fields: Any) -> dict[str, Any]:
    return {"account": account_state(**fields)}


def _halted(scope: HaltScope, target: str, level: HaltLevel) -> dict[str, Any]:
    return {"halts": HaltBook(frozenset({Halt(scope, target, level)}))}


def _key(**fields: Any) -> dict[str, Any]:
    return {"api_key": replace(WITHDRAWING, **fields)}


def _used(usd: str) -> AccountState:
    return account_state(usage=Usage(withdrawn_24h_usd=Decimal(usd)), limits=Limits(daily_withdrawal_usd_max=Decimal(1_000)))


SIDES: tuple[tuple[str, dict[str, Any], dict[str, Any], ReasonCode | None], ...] = (
    ("age of a key's life", {"expires_at": "2027-01-01T00:00:00Z"}, {"appended_at": NOW - timedelta(hours=24)}, None),
    (
        "past a key's life",
        {"expires_at": "2027-01-01T00:00:00Z"},
        {"appended_at": NOW - timedelta(hours=24, microseconds=1)},
        ReasonCode.REQUEST_STALE,
    ),
    ("the deadline", {}, {"appended_at": NOW - timedelta(seconds=30)}, None),
    ("past the deadline", {}, {"appended_at": NOW - timedelta(seconds=30, microseconds=1)}, ReasonCode.REQUEST_EXPIRED),
    ("past its own deadline", {"expires_at": "2026-11-24T06:59:59Z"}, {}, ReasonCode.REQUEST_EXPIRED),
    ("paper money", {"mode": "paper"}, {}, ReasonCode.REQUEST_UNSUPPORTED),
    ("another exchange", {"exchange": "kraken"}, {}, ReasonCode.EXCHANGE_UNKNOWN),
    ("a halt of all", {}, _halted(HaltScope.ALL, "", HaltLevel.HALT), ReasonCode.TRADING_HALTED),
    ("a reduce of all", {}, _halted(HaltScope.ALL, "", HaltLevel.REDUCE), ReasonCode.TRADING_HALTED),
    ("a reduce of the user", {}, _halted(HaltScope.USER, USER, HaltLevel.REDUCE), ReasonCode.TRADING_HALTED),
    ("a halt of the exchange", {}, _halted(HaltScope.EXCHANGE, EXCHANGE, HaltLevel.HALT), ReasonCode.TRADING_HALTED),
    ("a halt of another user", {}, _halted(HaltScope.USER, "bob", HaltLevel.HALT), None),
    ("a halt of a symbol", {}, _halted(HaltScope.SYMBOL, "BTC/USDT", HaltLevel.HALT), None),
    ("no such user", {}, _state(status=None), ReasonCode.USER_UNKNOWN),
    ("an unverified user", {}, _state(status="pending"), ReasonCode.USER_UNVERIFIED),
    ("a frozen user", {}, _state(status="frozen"), ReasonCode.USER_INACTIVE),
    ("no such key", {}, {"api_key": None}, ReasonCode.API_KEY_UNKNOWN),
    ("a key of another exchange", {}, _key(exchange="kraken"), ReasonCode.API_KEY_PERMISSION),
    ("a revoked key", {}, _key(status="revoked"), ReasonCode.API_KEY_REVOKED),
    ("a refused key", {}, _key(status="refused"), ReasonCode.API_KEY_PERMISSION),
    ("an expired key", {}, _key(expires_at=NOW), ReasonCode.API_KEY_EXPIRED),
    ("a key before it expires", {}, _key(expires_at=NOW + timedelta(microseconds=1)), None),
    ("a key that may only trade", {}, _key(permissions=frozenset({"trade"})), ReasonCode.API_KEY_PERMISSION),
    ("too many messages", {}, _state(limits=Limits(messages_per_second_max=0)), ReasonCode.MESSAGE_RATE_EXCEEDED),
    (
        "a cooldown",
        {},
        _state(limits=Limits(cooldown_failures=1), conduct=after_failure(Conduct(), Limits(), ReasonCode.ADDRESS_NOT_ALLOWED, NOW)),
        ReasonCode.COOLDOWN_ACTIVE,
    ),
    ("no network", {"network": None}, {}, ReasonCode.ADDRESS_NOT_ALLOWED),
    ("an unknown network", {"network": "DOGE"}, {}, ReasonCode.ADDRESS_NOT_ALLOWED),
    ("a wrong checksum", {"address": ADDRESS.swapcase().replace("0X", "0x")}, {}, ReasonCode.ADDRESS_NOT_ALLOWED),
    ("an address that is not listed", {"address": "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"}, {}, ReasonCode.ADDRESS_NOT_ALLOWED),
    ("an address listed for another network", {"network": "BSC"}, {}, ReasonCode.ADDRESS_NOT_ALLOWED),
    ("an address listed without its tag", {"address_tag": "7"}, {}, ReasonCode.ADDRESS_NOT_ALLOWED),
    ("an address listed with its tag", {"address_tag": "7"}, {"addresses": (replace(ALLOWED, address_tag="7"),)}, None),
    ("an address that needs its tag", {}, {"addresses": (replace(ALLOWED, address_tag="7"),)}, ReasonCode.ADDRESS_NOT_ALLOWED),
    (
        "an address one moment too young",
        {},
        {"addresses": (replace(ALLOWED, added_at=NOW - timedelta(hours=24) + timedelta(microseconds=1)),)},
        ReasonCode.ADDRESS_NOT_ALLOWED,
    ),
    ("no network told", {}, {"networks": {}}, ReasonCode.EXCHANGE_UNAVAILABLE),
    ("a fee told an hour ago", {}, _network(observed_at=NOW - timedelta(hours=1)), None),
    ("a fee told earlier", {}, _network(observed_at=NOW - timedelta(hours=1, microseconds=1)), ReasonCode.EXCHANGE_UNAVAILABLE),
    ("a network that is closed", {}, _network(enabled=False), ReasonCode.EXCHANGE_UNAVAILABLE),
    ("nothing", {"amount": "0"}, {}, ReasonCode.AMOUNT_BELOW_MINIMUM),
    ("the least with the fee", {"amount": "9.5"}, {}, None),
    ("less than the least", {"amount": "9.499999"}, {}, ReasonCode.AMOUNT_BELOW_MINIMUM),
    ("the greatest with the fee", {"amount": "9.5"}, _network(amount_max=Decimal(10)), None),
    ("more than the greatest", {"amount": "9.500001"}, _network(amount_max=Decimal(10)), ReasonCode.AMOUNT_ABOVE_MAXIMUM),
    ("a part of a step", {"amount": "100.0000001"}, {}, ReasonCode.PRECISION_INVALID),
    ("the daily limit", {"amount": "500"}, {"account": _used("499.5")}, None),
    ("more than the daily limit", {"amount": "500"}, {"account": _used("499.500001")}, ReasonCode.DAILY_WITHDRAWAL_EXCEEDED),
)


@pytest.mark.parametrize(("request_fields", "fields", "code"), [row[1:] for row in SIDES], ids=[row[0].replace(" ", "-") for row in SIDES])
def test_withdrawal_check_answers_each_side_of_its_boundary(
    request_fields: dict[str, Any], fields: dict[str, Any], code: ReasonCode | None
) -> None:
    """What is allowed passes all checks; what is not is refused under its own code, and says that nothing was sent."""
    assert refused(context(request_fields, **fields)) is code


def test_every_code_of_a_check_is_met_by_some_case() -> None:
    """No check is left that was never seen to refuse, and every code has its place in the tables."""
    met = {code for *_, code in SIDES if code is not None} | {ReasonCode.PRICE_UNAVAILABLE}
    given = {code for check in WITHDRAWAL_GATE.checks for code in check.codes}
    assert given == met
    assert given <= {code for check in TRADE_GATE.checks for code in check.codes} | GIVEN_ELSEWHERE.keys()


def test_withdrawal_without_fresh_price_cannot_be_valued() -> None:
    """What is no dollar needs a price of known age: none, an old one, and one from the future refuse."""
    network = Network("BTC", "BTC", True, Decimal("0.0001"), Decimal(0), None, Decimal("0.00000001"), NOW)
    allowed = AllowedAddress("BTC", BTC_ADDRESS, "", NOW - timedelta(days=2))
    request = {"asset": "BTC", "network": "BTC", "address": BTC_ADDRESS, "amount": "0.01"}

    def with_price(observed_at: Any) -> WithdrawalContext:
        data = replace(market_data(), quotes={"BTC/USDT": Quote(Decimal(50_000), observed_at)})
        return context(request, networks={("BTC", "BTC"): network}, addresses=(allowed,), market_data=data)

    assert refused(with_price(NOW - timedelta(seconds=5))) is None
    assert with_price(NOW).usd_value == Decimal("505")
    assert refused(with_price(NOW - timedelta(seconds=5, microseconds=1))) is ReasonCode.PRICE_UNAVAILABLE
    assert refused(with_price(NOW + timedelta(seconds=6))) is ReasonCode.PRICE_UNAVAILABLE
    nothing = context(request, networks={("BTC", "BTC"): network}, addresses=(allowed,), market_data=None)
    assert refused(nothing) is ReasonCode.PRICE_UNAVAILABLE


@pytest.mark.parametrize(
    ("amount", "changed", "needed"),
    [("9999.5", None, False), ("9999.500001", None, True), ("10", timedelta(hours=24), False), ("10", timedelta(hours=23), True)],
)
def test_approval_is_needed_above_the_amount_and_after_a_change_of_credentials(
    amount: str, changed: timedelta | None, needed: bool
) -> None:
    """Worth more than 10,000 USD with the fee, or within 24 hours of a change of key, second factor or addresses."""
    account = account_state(credentials_changed_at=NOW - changed if changed is not None else None)
    assert context({"amount": amount}, account=account).needs_approval is needed


def test_deadline_of_what_waits_for_approval_is_longer_unless_the_producer_says_otherwise() -> None:
    """30 seconds, a day for an operator to look, or the producer's own word."""
    assert context().expires_at == NOW + timedelta(seconds=30)
    assert context({"amount": "20000"}).expires_at == NOW + timedelta(hours=24)
    assert context({"amount": "20000", "expires_at": "2026-11-24T07:05:00Z"}).expires_at == NOW + timedelta(minutes=5)
