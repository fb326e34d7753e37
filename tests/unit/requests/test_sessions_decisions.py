"""Sessions: how one begins, what it confirms, what ends it, and that nothing confirms a withdrawal but its own code."""

import json
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.books.changes import Changes
from pipeline.gate.sessions import SESSION_GATE
from pipeline.model.invariants import InvariantViolation
from pipeline.model.refusal import Refusal
from pipeline.model.rules import ConfirmationRules
from pipeline.model.session import SESSIONS_MAX, session_id_of
from pipeline.requests.confirmation import Asked, Confirmation, way_of
from schemas.audit import ConfirmedBy
from schemas.reasons import ReasonCode
from schemas.requests import SessionRequest, Unreadable, decode_request
from schemas.results import ResultStatus
from tests.unit.builders import NOW, RULES, TOPICS, USER, account_state, cancel, finals_of, outputs_on, results_of, trade
from tests.unit.session_builders import ISSUER_KEY, SESSION_ID, TOKEN, asking, code, decided, proven, session_of, state_with
from tests.unit.withdrawal_builders import asking as withdrawal
from tests.unit.withdrawal_builders import withdrawing_state
from verification.promises.sessions import SessionCount, check_sessions
from verification.promises.trail import DatabaseTrail

R = ReasonCode
# The market purchase of `trade()` is worth this many US dollars.
VALUE = Decimal(50)
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


def events(changes: Changes) -> list[dict[str, Any]]:
    return [json.loads(output.value or b"") for output in outputs_on(changes, TOPICS.audit)]


def reasons(changes: Changes) -> list[ReasonCode | None]:
    return [result.reason_code for result in finals_of(changes)]


def test_code_begins_a_session_and_the_session_confirms_what_follows() -> None:
    """One code, then orders without: each accepted, each telling which way it was confirmed, and counted."""
    orders = [proven(trade(idempotency_key=f"k{number}"), number + 1) for number in range(3)]
    changes = decided([proven(asking(), code=code()), *orders])
    begun, *accepted = results_of(changes)
    assert (begun.status, begun.final, begun.type) == (ResultStatus.COMPLETED, True, "session")
    assert (begun.order_id, begun.mode) == (SESSION_ID, None)
    assert [result.status for result in accepted] == [ResultStatus.ACCEPTED] * 3
    session = changes.sessions[SESSION_ID]
    assert (session.orders_used, session.amount_usd_used) == (3, 3 * VALUE)
    assert [event["event_type"] for event in events(changes)] == ["SESSION_STARTED", *["ORDER_ACCEPTED"] * 3]
    assert {(event["confirmed_by"], event["session_id"]) for event in events(changes)[1:]} == {("session", SESSION_ID)}
    assert changes.sessions_begun == {SESSION_ID}


@pytest.mark.parametrize(
    ("sent", "reason"),
    [(None, R.TOTP_MISSING), (b"000000", R.TOTP_INVALID)],
)
def test_session_without_the_right_code_does_not_begin(sent: bytes | None, reason: ReasonCode) -> None:
    """No session, no claim: the right code may come later under the same key."""
    changes = decided([proven(asking(), code=sent), proven(trade(), 1)])
    assert reasons(changes) == [reason, R.SESSION_UNKNOWN]
    assert not changes.sessions and not changes.claimed


def test_code_that_began_a_session_confirms_nothing_else() -> None:
    """It is used up, as every code is."""
    changes = decided([proven(asking(), code=code()), proven(trade(), 1, code=code())])
    assert reasons(changes) == [None, R.TOTP_REPLAYED]


def test_session_that_is_not_wider_than_asked_for_is_begun_so() -> None:
    """Time, orders, amount and symbols are those of the request; what it does not say is the installation's most."""
    until = NOW + HOUR
    bounds = {"session_expires_at": until.isoformat(), "orders_max": 2, "amount_max_usd": "120", "symbols": ["BTC/USDT"]}
    session = decided([proven(asking(**bounds), code=code())]).sessions[SESSION_ID]
    assert (session.expires_at, session.orders_max, session.amount_usd_max) == (until, 2, Decimal(120))
    assert session.symbols == {"BTC/USDT"}
    widest = decided([proven(asking(), code=code())]).sessions[SESSION_ID]
    assert (widest.expires_at, widest.orders_max, widest.amount_usd_max) == (
        NOW + RULES.confirmation.session_time, RULES.confirmation.session_orders_max, RULES.confirmation.session_amount_usd_max,
    )  # fmt: skip
    assert widest.symbols is None


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"session_expires_at": (NOW + RULES.confirmation.session_time + SECOND).isoformat()}, R.SESSION_TOO_WIDE),
        ({"session_expires_at": (NOW + RULES.confirmation.session_time).isoformat()}, None),
        ({"session_expires_at": NOW.isoformat()}, R.SESSION_EXPIRED),
        ({"orders_max": RULES.confirmation.session_orders_max + 1}, R.SESSION_TOO_WIDE),
        ({"orders_max": RULES.confirmation.session_orders_max}, None),
        ({"amount_max_usd": f"{RULES.confirmation.session_amount_usd_max}.01"}, R.SESSION_TOO_WIDE),
        ({"amount_max_usd": str(RULES.confirmation.session_amount_usd_max)}, None),
        ({"expires_at": (NOW - SECOND).isoformat()}, R.REQUEST_EXPIRED),
    ],
)
def test_session_is_never_wider_than_the_installation_lets_it_be(bounds: dict[str, Any], reason: ReasonCode | None) -> None:
    """At the bound it begins, beyond it is refused and the code is not spent."""
    changes = decided([proven(asking(**bounds), code=code())])
    assert reasons(changes) == [reason]
    assert (SESSION_ID in changes.sessions) is (reason is None) is bool(changes.factors)


@pytest.mark.parametrize(
    ("status", "reason"), [(None, R.USER_UNKNOWN), ("pending", R.USER_UNVERIFIED), ("frozen", R.USER_INACTIVE), ("closed", R.USER_INACTIVE)]
)
def test_session_of_a_user_who_may_not_trade_does_not_begin(status: str | None, reason: ReasonCode) -> None:
    """Not by its own request, and not with another."""
    state = state_with({"status": status})
    for sent in (proven(asking(), code=code()), proven(cancel(), code=code(), begins=True)):
        changes = decided([sent], state=state)
        assert reasons(changes) == [reason]
        assert not changes.sessions


def test_sessions_are_switched_off_by_a_time_of_nothing() -> None:
    """With `session_minutes_max` 0 each trade needs its own code."""
    state = state_with(rules=replace(RULES, confirmation=ConfirmationRules(session_time=timedelta(0))))
    assert reasons(decided([proven(asking(), code=code())], state=state)) == [R.REQUEST_UNSUPPORTED]


def test_sandbox_has_no_sessions() -> None:
    """Where nobody is asked for a code there is nothing to spare."""
    sent = replace(proven(asking()), needs_second_factor=False, token=None)
    assert reasons(decided([sent])) == [R.REQUEST_UNSUPPORTED]


def test_user_has_a_bounded_number_of_sessions() -> None:
    """The one that would be too many is refused; one that takes the place of an older one with its `sid` is not more."""
    others = [session_of(session_id=session_id_of(USER, f"other-{number}")) for number in range(SESSIONS_MAX)]
    assert reasons(decided([proven(asking(), code=code())], *others)) == [R.SESSIONS_EXCEEDED]
    assert reasons(decided([proven(asking(), code=code())], *others[1:], session_of())) == [None]
    over = replace(others[0], expires_at=NOW)
    assert reasons(decided([proven(asking(), code=code())], *others[1:], over)) == [None]


def test_session_with_any_request_begins_with_its_code() -> None:
    """`x-session: start` on an order, a cancel or a simulated order begins one as wide as may be; the order is confirmed by that code."""
    changes = decided([proven(trade(), code=code(), begins=True), proven(trade(idempotency_key="k2"), 1)])
    assert [event["confirmed_by"] for event in events(changes)] == ["code", "code", "session"]
    for sent in (cancel(), trade(mode="paper")):
        changes = decided([proven(sent, code=code(), begins=True), proven(trade(idempotency_key="k2"), 1)])
        assert changes.sessions[SESSION_ID].orders_used == 1


def test_request_whose_session_cannot_begin_is_not_executed() -> None:
    """Without a code, or with another word in the header, nothing is done and the key stays free."""
    for sent in (proven(trade(), begins=True), proven(cancel(), code=b"123456", begins=True)):
        changes = decided([sent])
        assert reasons(changes)[0] in {R.TOTP_MISSING, R.TOTP_INVALID}
        assert not changes.claimed and not changes.sessions
    odd = replace(proven(trade(), code=code()), headers=(("x-session", b"stop"), ("x-totp", code())))
    changes = decided([odd])
    assert reasons(changes) == [R.SCHEMA_INVALID] and not changes.claimed and not changes.factors


def test_copies_use_nothing_of_a_session() -> None:
    """A copy gets the first answer, or is told that it runs; the session counts one order."""
    changes = decided([proven(trade(), number) for number in range(4)], session_of())
    assert changes.sessions[SESSION_ID].orders_used == 1 and changes.sessions_moved == {SESSION_ID}
    again = decided([proven(asking(), code=code()), proven(asking(), 1, code=code())])
    assert [result.replayed for result in finals_of(again)] == [False, True]
    assert len([event for event in events(again) if event["event_type"] == "SESSION_STARTED"]) == 1


def test_refused_orders_use_nothing_of_a_session() -> None:
    """What the gate refuses, or the funds do not cover, is not counted."""
    refused = [trade(idempotency_key="k1", api_key_id="none"), trade(idempotency_key="k2", side="sell", quantity="200")]
    wide = session_of(amount_usd_max=Decimal(10**9))
    changes = decided([proven(document, number) for number, document in enumerate(refused)], wide)
    assert reasons(changes) == [R.API_KEY_UNKNOWN, R.AMOUNT_ABOVE_MAXIMUM]
    assert changes.sessions[SESSION_ID] == wide and not changes.sessions_moved


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"orders_max": 3, "orders_used": 3}, R.SESSION_LIMIT_EXCEEDED),
        ({"orders_max": 3, "orders_used": 2}, None),
        ({"amount_usd_used": Decimal("950.01")}, R.SESSION_LIMIT_EXCEEDED),
        ({"amount_usd_used": Decimal(950)}, None),
        ({"symbols": frozenset({"ETH/BTC"})}, R.SESSION_SYMBOL_NOT_ALLOWED),
        ({"symbols": frozenset({"BTC/USDT"})}, None),
        ({"expires_at": NOW}, R.SESSION_EXPIRED),
        ({"expires_at": NOW + timedelta(microseconds=1)}, None),
        ({"started_at": NOW + timedelta(seconds=6)}, R.SESSION_UNKNOWN),
        ({"started_at": NOW + timedelta(seconds=5)}, None),
        ({"generation": 1}, R.SESSION_REVOKED),
        ({"issuer_key": "cd" * 16}, R.SESSION_REVOKED),
        ({"ended_at": NOW + HOUR, "ended_because": "its user revoked it"}, R.SESSION_REVOKED),
        ({"session_id": session_id_of(USER, "other")}, R.SESSION_UNKNOWN),
        ({"session_id": session_id_of("bob", "login-1"), "user_id": "bob"}, R.SESSION_UNKNOWN),
    ],
)
def test_session_confirms_within_its_bounds_and_nothing_beyond(fields: dict[str, Any], reason: ReasonCode | None) -> None:
    """Each bound at its very edge; what is refused claims nothing, and the next with a code is executed."""
    changes = decided([proven(trade())], session_of(**fields))
    assert [result.reason_code for result in results_of(changes)] == [reason]
    assert bool(changes.claimed) is (reason is None)
    if reason is not None:
        changes = decided([proven(trade(), code=code())], session_of(**fields))
        assert [event["confirmed_by"] for event in events(changes)] == ["code"]


def test_code_that_is_wrong_is_not_made_good_by_a_session() -> None:
    """A code that is there decides."""
    assert reasons(decided([proven(trade(), code=b"000000")], session_of())) == [R.TOTP_INVALID]


def test_withdrawal_needs_its_own_code_in_every_session() -> None:
    """Neither a session nor the issuer's word pays anything out."""
    rules = replace(RULES, confirmation=ConfirmationRules(amr_confirming=frozenset({"mfa"})))
    token = replace(TOKEN, scopes=frozenset({"withdraw"}), authenticated_by=frozenset({"mfa"}), authenticated_at=NOW)
    account = state_with().accounts[USER]
    state = withdrawing_state(accounts={USER: account}, rules=rules, issuer_keys=frozenset({ISSUER_KEY}))
    changes = decided([proven(withdrawal(), token=token)], session_of(), state=state)
    assert reasons(changes) == [R.TOTP_MISSING] and not changes.withdrawals
    state = withdrawing_state(accounts={USER: state_with().accounts[USER]}, rules=rules)
    changes = decided([proven(withdrawal(), token=token, code=code())], session_of(), state=state)
    assert [event["confirmed_by"] for event in events(changes)] == ["code"]


def test_user_revokes_a_session_without_a_code() -> None:
    """The token's own, or another one of the same user by its id; what follows is refused, whenever it was appended."""
    changes = decided([proven(asking(revoke=True)), proven(trade(), 1, at=NOW - SECOND)], session_of())
    assert reasons(changes) == [None, R.SESSION_REVOKED]
    assert [event["event_type"] for event in events(changes)] == ["SESSION_ENDED", "REQUEST_REJECTED"]
    other = session_of(session_id=session_id_of(USER, "other"))
    changes = decided([proven(asking(revoke=True, session_id=other.session_id))], session_of(), other)
    assert changes.sessions[other.session_id].ended_at == NOW and changes.sessions[SESSION_ID].ended_at is None


def test_nobody_revokes_what_is_not_there_or_not_their_own() -> None:
    """Another user's session is unknown, whatever its id."""
    foreign = session_of(session_id=session_id_of("bob", "x"), user_id="bob")
    for sent in (asking(revoke=True), asking(revoke=True, session_id=foreign.session_id)):
        changes = decided([proven(sent)], foreign)
        assert reasons(changes) == [R.SESSION_UNKNOWN]
        assert not changes.sessions_moved


def test_frozen_user_can_still_revoke() -> None:
    """To end what may act in one's name takes no standing."""
    assert reasons(decided([proven(asking(revoke=True))], session_of(), state=state_with({"status": "frozen"}))) == [None]


def test_session_begun_anew_counts_from_nothing() -> None:
    """The code begins it afresh, wider or narrower; the older one is told to have ended."""
    used = session_of(orders_used=9, amount_usd_used=Decimal(900))
    changes = decided([proven(asking(orders_max=1), code=code()), proven(trade(), 1)], used)
    assert [event["event_type"] for event in events(changes)] == ["SESSION_ENDED", "SESSION_STARTED", "ORDER_ACCEPTED"]
    session = changes.sessions[SESSION_ID]
    assert (session.orders_used, session.orders_max, session.ended_at) == (1, 1, None)


def test_session_begun_anew_is_verified_by_what_it_confirmed_since() -> None:
    """It keeps its id, so what the audit trail says of it before it began again is no breach; a count that is wrong since then is one."""
    begins, orders = proven(asking(), code=code()), [proven(trade(idempotency_key=f"k{n}"), n + 1) for n in range(3)]
    again = proven(asking(idempotency_key="s2"), 4, code=code(steps=1))
    changes = decided([begins, *orders, again, proven(trade(idempotency_key="k4"), 5)])
    trail = DatabaseTrail()
    for row in changes.trail.rows:
        trail.add(row.account, row.seq, row.event_id, row.hash, row.body.decode())
    session = changes.sessions[SESSION_ID]
    assert len(changes.orders) == 4 and session.orders_used == 1
    count = SessionCount(session.orders_used, session.orders_max, session.amount_usd_used, session.amount_usd_max)
    assert check_sessions({SESSION_ID: count}, trail.confirmed, changes.orders).examples == ()
    assert not check_sessions({SESSION_ID: replace(count, orders_used=4)}, trail.confirmed, changes.orders).holds


def test_session_refuses_in_code_what_it_does_not_cover() -> None:
    """The invariant holds whoever forgets to ask."""
    with pytest.raises(InvariantViolation, match="would confirm more"):
        session_of(orders_max=1, orders_used=1).using(VALUE)
    with pytest.raises(InvariantViolation, match="would confirm more"):
        session_of(amount_usd_max=Decimal(49)).using(VALUE)


ASKED = Asked(False, True, "BTC/USDT", VALUE, NOW, 0, frozenset({ISSUER_KEY}))
WORD = replace(TOKEN, authenticated_by=frozenset({"pwd", "otp"}), authenticated_at=NOW - timedelta(minutes=1))
TRUSTING = ConfirmationRules(amr_confirming=frozenset({"otp", "hwk", "mfa"}))


@pytest.mark.parametrize(
    ("token", "rules", "confirms"),
    [
        (WORD, TRUSTING, True),
        (WORD, RULES.confirmation, False),
        (replace(WORD, authenticated_by=frozenset({"pwd"})), TRUSTING, False),
        (replace(WORD, authenticated_at=None), TRUSTING, False),
        (replace(WORD, authenticated_at=NOW - TRUSTING.auth_age_max - TRUSTING.token_leeway), TRUSTING, True),
        (replace(WORD, authenticated_at=NOW - TRUSTING.auth_age_max - TRUSTING.token_leeway - SECOND), TRUSTING, False),
        (replace(WORD, authenticated_at=NOW + TRUSTING.token_leeway + SECOND), TRUSTING, False),
        (replace(WORD, session_id=None), TRUSTING, True),
    ],
)
def test_issuers_word_confirms_where_it_is_taken_and_young(token: Any, rules: Any, confirms: bool) -> None:
    """A second factor in `amr` and a young `auth_time`, and only in an installation that says so."""
    found = way_of(ASKED, token, None, rules)
    assert (isinstance(found, Confirmation) and found.by is ConfirmedBy.ISSUER) is confirms


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"ended_at": NOW, "ended_because": "its user revoked it"}, R.SESSION_REVOKED),
        ({"orders_used": 10}, R.SESSION_LIMIT_EXCEEDED),
        ({"symbols": frozenset({"ETH/BTC"})}, R.SESSION_SYMBOL_NOT_ALLOWED),
        ({"generation": 7}, R.SESSION_REVOKED),
        ({"expires_at": NOW}, None),
    ],
)
def test_issuers_word_does_not_undo_what_a_user_has_bounded(fields: dict[str, Any], reason: ReasonCode | None) -> None:
    """A session that was revoked or is used up refuses its token, whose word may be as young as it likes."""
    found = way_of(ASKED, WORD, session_of(**fields), TRUSTING)
    assert (found.code if isinstance(found, Refusal) else None) == reason


def test_issuers_word_is_told_in_the_audit_trail() -> None:
    """The acceptance says which way it was confirmed, and no session with it."""
    changes = decided([proven(trade(), token=WORD)], state=state_with(rules=replace(RULES, confirmation=TRUSTING)))
    [event] = events(changes)
    assert event["confirmed_by"] == "issuer" and "session_id" not in event


@pytest.mark.parametrize(
    "document",
    [
        asking(revoke=True, orders_max=1),
        asking(session_id=SESSION_ID),
        asking(orders_max=0),
        asking(orders_max="1"),
        asking(symbols=[]),
        asking(symbols=["BTC/USDT"] * 101),
        asking(mode="live"),
        asking(revoke="true"),
        asking(amount_max_usd=5),
        asking(revoke=True, session_id="login-1"),
    ],
)
def test_session_request_that_says_nothing_clear_is_refused(document: dict[str, Any]) -> None:
    """Bounds with a revocation, an id with a start, a `sid` in the clear: none of it is guessed at."""
    assert isinstance(decode_request(json.dumps(document).encode()), Unreadable)


def test_session_request_is_read() -> None:
    """The request as the guide shows it."""
    document = asking(session_expires_at="2026-11-24T15:00:00Z", amount_max_usd="5000", orders_max=200, symbols=["BTC/USDT", "ETH/USDT"])
    assert isinstance(decode_request(json.dumps(document).encode()), SessionRequest)


def test_session_id_keeps_user_and_claim_apart() -> None:
    """No two pairs share one, and the claim is not in it."""
    pairs = [("a", "bc"), ("ab", "c"), ("a", "b\0c"), ("a\0b", "c"), ("bc", "a")]
    assert len({session_id_of(*pair) for pair in pairs}) == len(pairs)


def test_every_check_of_the_session_gate_gives_what_it_lists() -> None:
    """Every code in the table is one of the enum, and every check explains itself."""
    for check in SESSION_GATE.checks:
        assert check.codes and check.sentence.endswith(".")
        assert "nit" in (check.function.__doc__ or "") and "Source:" in (check.function.__doc__ or "")


def test_rate_of_messages_holds_for_beginning_and_not_for_ending() -> None:
    """Who wants a session ended need not wait."""
    limits = replace(account_state().limits, messages_burst_max=1, messages_per_second_max=1)
    state = state_with({"limits": limits})
    changes = decided([proven(asking(), code=code()), proven(asking(idempotency_key="s2"), 1, code=code(steps=1))], state=state)
    assert reasons(changes) == [None, R.MESSAGE_RATE_EXCEEDED]
    changes = decided([proven(asking(idempotency_key="s3", revoke=True), 2)], session_of(), state=state)
    assert reasons(changes) == [None]
