"""What commands and trips do to the halts in force, and what is said of each in the audit trail."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from pipeline.books.audit import ChainHead
from pipeline.books.changes import Changes, SetHalt
from pipeline.books.ledger import Balance
from pipeline.books.trip import TRIP_AGE_MAX, apply_trip
from pipeline.commands.halts import COMMAND_BYTES_MAX, arrive_command, decide_commands
from pipeline.gate.context import AccountState
from pipeline.model.halts import Halt, HaltBook
from pipeline.model.second_factor import SecondFactor
from pipeline.orders.execution import plan
from schemas.commands import COMMANDS_ACCOUNT, TRIPS_ACCOUNT, HaltLevel, HaltScope, HaltTrip
from schemas.orders import OrderStatus
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus
from schemas.routing import ON_REPORTS, Action, Report, RoutedOrder
from schemas.wire import SourceOffset
from tests.unit.builders import NOW, ORDER_ID, RULES, TOPICS, account, changes_of, finals_of, order_of, pending_cancel, sale_of

Key = tuple[HaltScope, str]
ALL: Key = (HaltScope.ALL, "")
EXCHANGE: Key = (HaltScope.EXCHANGE, "binance")


def _command(word: str, **fields: Any) -> dict[str, Any]:
    given = {"command_id": "c1", "scope": "all", "target": "", "operator": "ana", "reason": "why", **fields}
    return {"schema_version": 1, "command": word, **given}


def _decided(*values: dict[str, Any] | bytes | None, before: dict[Key, SetHalt] | None = None) -> Changes:
    """The commands decided where nobody is asked who sends them."""
    changes = changes_of(heads={name: ChainHead() for name in ("ana", COMMANDS_ACCOUNT, TRIPS_ACCOUNT)})
    changes.halts = dict(before or {})
    encoded = [json.dumps(value).encode() if isinstance(value, dict) else value for value in values]
    arrivals = [arrive_command(SourceOffset(TOPICS.commands, 0, number), NOW, value, [], None) for number, value in enumerate(encoded)]
    decide_commands(arrivals, {"ana": AccountState("ana", None)}, changes, RULES)
    return changes


def _levels(changes: Changes) -> dict[Key, HaltLevel]:
    return {key: found.halt.level for key, found in changes.halts.items()}


def _events(changes: Changes) -> list[dict[str, Any]]:
    return [json.loads(row.body) for row in changes.trail.rows]


def _halt(key: Key, level: HaltLevel = HaltLevel.HALT, cancel_open: bool = False) -> dict[Key, SetHalt]:
    return {key: SetHalt(Halt(*key, level), "before", "olga", "c0", NOW, cancel_open)}


def _trip(key: Key, level: HaltLevel, **fields: Any) -> HaltTrip:
    given = {"trip_id": "trip", "scope": key[0], "target": key[1], "level": level, "reason": "why", "tripped_at": NOW, **fields}
    return HaltTrip(schema_version=1, **given)


def test_command_moves_its_own_scope_only() -> None:
    """Halts of other scopes stay; the newest command about a scope is what holds there; each has its event, in order."""
    changes = _decided(
        _command("halt", command_id="c1"),
        _command("reduce", command_id="c2", scope="exchange", target="binance", cancel_open=True),
        _command("reduce", command_id="c3"),
        _command("resume", command_id="c4", scope="exchange", target="binance"),
        _command("resume", command_id="c5", scope="user", target="alice"),
    )
    assert _levels(changes) == {ALL: HaltLevel.REDUCE}
    assert changes.halts_moved == {ALL, EXCHANGE}
    assert [(event["event_type"], event["request_id"], event["halt_level"]) for event in _events(changes)] == [
        ("HALT_SET", "c1", "halt"),
        ("HALT_SET", "c2", "reduce"),
        ("HALT_SET", "c3", "reduce"),
        ("HALT_LIFTED", "c4", "reduce"),
        ("HALT_LIFTED", "c5", None),
    ]
    assert changes.halts[ALL] == SetHalt(Halt(*ALL, HaltLevel.REDUCE), "why", "ana", "c3", NOW)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"\xff",
        b" " * (COMMAND_BYTES_MAX + 1),
        _command("stop"),
        _command("halt", until="tomorrow"),
        _command("halt", schema_version=2),
        _command("halt", target="binance"),
        _command("halt", scope="exchange"),
        _command("halt", scope="symbol", target="BTCUSDT"),
        _command("halt", scope="symbol", target="btc/usdt"),
        _command("halt", reason=""),
        _command("halt", reason="a\x00b"),
        _command("halt", operator=""),
    ],
)
def test_record_that_is_no_command_changes_nothing_and_is_audited_by_its_place(value: dict[str, Any] | bytes | None) -> None:
    """In the chain of nobody; the commands around it are applied."""
    changes = _decided(_command("halt", command_id="c1"), value, _command("resume", command_id="c2"))
    first, wrong, last = _events(changes)
    assert (first["request_id"], last["request_id"], changes.halts) == ("c1", "c2", {})
    assert (wrong["event_type"], wrong["account"], wrong["request_id"], wrong["reason_code"]) == (
        "COMMAND_REFUSED", COMMANDS_ACCOUNT, f"{TOPICS.commands}/0/1", "SCHEMA_INVALID",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "trip", "after"),
    [
        ({}, HaltLevel.HALT, HaltLevel.HALT),
        ({}, HaltLevel.REDUCE, HaltLevel.REDUCE),
        (_halt(ALL), HaltLevel.HALT, None),
        (_halt(ALL), HaltLevel.REDUCE, None),
        (_halt(ALL, HaltLevel.REDUCE), HaltLevel.REDUCE, None),
        (_halt(ALL, HaltLevel.REDUCE, cancel_open=True), HaltLevel.HALT, HaltLevel.HALT),
        (_halt(EXCHANGE), HaltLevel.HALT, HaltLevel.HALT),
    ],
)
def test_trip_only_makes_things_stricter(before: dict[Key, SetHalt], trip: HaltLevel, after: HaltLevel | None) -> None:
    """`after` is what it sets; None where one at least as strict is in force. That of an operator keeps its cancels."""
    changes = _decided(before=before)
    apply_trip(_trip(ALL, trip), changes)
    apply_trip(_trip(ALL, trip, trip_id="of another worker"), changes)
    if after is None:
        assert (changes.halts, changes.halts_moved, _events(changes)) == (before, set(), [])
        return
    found = changes.halts[ALL]
    assert (found.halt.level, found.set_by, found.command_id) == (after, TRIPS_ACCOUNT, "trip")
    assert found.cancel_open == any(halt.cancel_open for halt in before.values())
    assert [(event["event_type"], event["account"]) for event in _events(changes)] == [("HALT_SET", TRIPS_ACCOUNT)]


@pytest.mark.parametrize(("age", "taken"), [(TRIP_AGE_MAX, True), (TRIP_AGE_MAX + timedelta(microseconds=1), False)])
def test_trip_that_comes_late_does_not_undo_a_resume(age: timedelta, taken: bool) -> None:
    """While its cause is there a younger one follows."""
    changes = _decided()
    apply_trip(_trip(ALL, HaltLevel.HALT, tripped_at=NOW - age), changes)
    assert bool(changes.halts) is taken


def test_records_of_reports_read_as_what_they_are() -> None:
    """A trip is no look-up's report and the other way round."""
    trip = _trip(EXCHANGE, HaltLevel.HALT)
    report = Report(schema_version=1, order_id="o", user_id="u", attempt=1, found=False, looked_up_at=NOW)
    for record in (trip, report):
        assert ON_REPORTS.validate_json(record.model_dump_json()) == record


_SALE = replace(sale_of(), symbol="BTC/USDT")
_OTHER_SALE = sale_of(symbol="ETH/BTC", hold_asset="ETH")


@pytest.mark.parametrize(
    ("order", "level", "code"),
    [
        (order_of(), HaltLevel.HALT, ReasonCode.TRADING_HALTED),
        (_SALE, HaltLevel.HALT, ReasonCode.TRADING_HALTED),
        (order_of(), HaltLevel.REDUCE, ReasonCode.REDUCE_ONLY),
        (_SALE, HaltLevel.REDUCE, None),
        # Sold for what is no dollar it makes another position larger.
        (_OTHER_SALE, HaltLevel.REDUCE, ReasonCode.REDUCE_ONLY),
    ],
)
@pytest.mark.parametrize("key", [ALL, EXCHANGE, (HaltScope.USER, "alice"), (HaltScope.SYMBOL, None)])
def test_queued_order_that_a_halt_covers_ends_unsent(order: Any, level: HaltLevel, code: ReasonCode | None, key: Any) -> None:
    """Refused with its funds free where it may not pass, sent where it may."""
    changes = changes_of(order)
    book = HaltBook(frozenset({Halt(key[0], order.symbol if key[1] is None else key[1], level)}))
    work = RoutedOrder(schema_version=1, action=Action.SUBMIT, order_id=ORDER_ID, user_id="alice", attempt=1)
    decided = plan([work], changes, 4, 0, book, RULES.usd_assets)
    if code is None:
        assert len(decided.submissions) == 1
        return
    assert not decided.submissions
    (result,) = finals_of(changes)
    assert (result.status, result.reason_code) == (ResultStatus.REJECTED, code)
    assert changes.ledger.balance(account(order.hold_asset)).pending == 0
    assert changes.ledger.balance(account(order.hold_asset)) != Balance()


def test_cancel_passes_every_halt() -> None:
    """What rests can be canceled whatever is in force."""
    changes = changes_of(order_of(status=OrderStatus.NEW, exchange_order_id="x1"))
    changes.cancels[ORDER_ID] = [pending_cancel(1)]
    work = RoutedOrder(schema_version=1, action=Action.CANCEL, order_id=ORDER_ID, user_id="alice", attempt=1)
    decided = plan([work], changes, 4, 0, HaltBook(frozenset({Halt(*ALL, HaltLevel.HALT)})), RULES.usd_assets)
    assert len(decided.cancels) == 1


def _judged(*values: dict[str, Any], before: dict[Key, SetHalt] | None = None, code: str | None = None) -> Changes:
    """The commands decided where their operator's token was proven; the operator is enrolled, and `code` is what comes with them."""
    changes = changes_of(heads={name: ChainHead() for name in ("ana", COMMANDS_ACCOUNT)})
    changes.halts = dict(before or {})
    headers = [] if code is None else [("x-totp", code.encode())]
    read = [
        arrive_command(SourceOffset(TOPICS.commands, 0, number), NOW, json.dumps(value).encode(), headers, None)
        for number, value in enumerate(values)
    ]
    arrivals = [replace(arrival, needs_second_factor=True) for arrival in read]
    ana = AccountState("ana", "active", role="operator", factor=SecondFactor("JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"))
    decide_commands(arrivals, {"ana": ana}, changes, RULES)
    return changes


_HARD = _halt(ALL, cancel_open=True)


@pytest.mark.parametrize(
    ("before", "command", "refused"),
    [
        ({}, _command("halt"), None),
        ({}, _command("reduce"), None),
        (_halt(ALL, HaltLevel.REDUCE), _command("halt"), None),
        (_halt(EXCHANGE), _command("reduce"), None),
        (_HARD, _command("halt", cancel_open=True), None),
        (_halt(ALL), _command("reduce"), "TOTP_MISSING"),
        (_HARD, _command("halt"), "TOTP_MISSING"),
        (_halt(ALL), _command("resume"), "TOTP_MISSING"),
        ({}, _command("resume"), "TOTP_MISSING"),
    ],
)
def test_only_what_makes_something_less_strict_needs_a_code(
    before: dict[Key, SetHalt], command: dict[str, Any], refused: str | None
) -> None:
    """Easy to stop, hard to resume: a token is enough for what leaves nothing less strict than it is."""
    changes = _judged(command, before=before)
    (event,) = _events(changes)
    assert (event["reason_code"], event["actor"], event["command"]) == (refused, "ana", command["command"])
    assert (changes.halts == before) is (refused is not None)


def test_code_that_comes_with_a_stop_is_not_used_up() -> None:
    """Nor does a wrong one count: nobody can lock an operator out of stopping."""
    changes = _judged(_command("halt"), code="000000")
    assert (changes.factors, [event["event_type"] for event in _events(changes)]) == ({}, ["HALT_SET"])


def test_refused_command_names_what_it_was_about() -> None:
    """Its kind, its target and the words that came with it; who sent it is the actor only where that was proven."""
    words = "  two\nlines, \t kept  "
    decision = {
        "schema_version": 1, "command_id": "c2", "command": "approve_withdrawal", "operator": "ana", "reason": words, "withdrawal_id": "w1",
    }  # fmt: skip
    (claimed,) = _events(_decided(decision))
    assert (claimed["event_type"], claimed["command"], claimed["target_id"]) == ("COMMAND_REFUSED", "approve_withdrawal", "w1")
    assert (claimed["operator_reason"], claimed["actor"], claimed["claimed_operator"]) == (words, "@unverified", "ana")
    (proven,) = _events(_judged(_command("resume", scope="exchange", target="binance", reason=words)))
    assert (proven["command"], proven["target_id"], proven["halt_target"]) == ("resume", "binance", "binance")
    assert (proven["operator_reason"], proven["actor"], proven.get("claimed_operator")) == (words, "ana", None)
