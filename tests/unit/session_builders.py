"""Values that tests of sessions start from: a session that began a minute ago, the token that names it, and records that carry it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import pyotp

from pipeline.books.changes import Changes
from pipeline.intake import decide
from pipeline.model.second_factor import SecondFactor
from pipeline.model.session import Session, session_id_of
from pipeline.requests.authentication import Token
from pipeline.requests.intake_state import IntakeState
from pipeline.requests.record import Arrival
from tests.unit.builders import NOW, USER, account_state, arrival, changes_of, intake_state

SECRET: Final = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"  # not a secret: that of RFC 6238, appendix B
ISSUER_KEY: Final = "ab" * 16
SESSION_ID: Final = session_id_of(USER, "login-1")
TOKEN: Final = Token(USER, frozenset({"trade"}), NOW + timedelta(hours=1), SESSION_ID, ISSUER_KEY)


def code(at: datetime = NOW, steps: int = 0) -> bytes:
    """The code of the step that `at` is in, or of one so many steps later."""
    return str(pyotp.TOTP(SECRET).at(at + steps * timedelta(seconds=30))).encode()


def session_of(**fields: Any) -> Session:
    """A session that began a minute ago: 8 hours, 10 orders, 1,000 USD, every symbol."""
    values: dict[str, Any] = {
        "session_id": SESSION_ID,
        "user_id": USER,
        "issuer_key": ISSUER_KEY,
        "generation": 0,
        "request_id": "r0",
        "started_at": NOW - timedelta(minutes=1),
        "expires_at": NOW + timedelta(hours=8) - timedelta(minutes=1),
        "amount_usd_max": Decimal(1_000),
        "orders_max": 10,
        "symbols": None,
    }
    return Session(**{**values, **fields})


def asking(**fields: Any) -> dict[str, Any]:
    """A request that begins a session, as a JSON document; a field given as None is left out."""
    document = {"schema_version": 1, "type": "session", "idempotency_key": "s1", "user_id": USER, **fields}
    return {name: value for name, value in document.items() if value is not None}


def proven(
    value: Mapping[str, Any],
    offset: int = 0,
    *,
    token: Token = TOKEN,
    code: bytes | None = None,
    begins: bool = False,
    at: datetime = NOW,
    partition: int = 0,
) -> Arrival:
    """A record whose sender the token proves; `begins`: with the header that begins a session."""
    headers = [("x-totp", code)] if code is not None else []
    headers += [("x-session", b"start")] if begins else []
    made = arrival(value, offset, appended_at=at, headers=headers, partition=partition)
    return replace(made, needs_second_factor=True, token=token)


def state_with(account: Mapping[str, Any] | None = None, **changes: Any) -> IntakeState:
    """One active user with a second factor; the issuer's key is trusted."""
    given = {"factor": SecondFactor(SECRET), **(account or {})}
    return intake_state(**{"accounts": {USER: account_state(**given)}, "issuer_keys": frozenset({ISSUER_KEY}), **changes})


def decided(arrivals: Iterable[Arrival], *sessions: Session, state: IntakeState | None = None, now: datetime = NOW) -> Changes:
    """A batch with these sessions begun before."""
    changes = changes_of(now=now)
    changes.sessions = {session.session_id: session for session in sessions}
    decide(list(arrivals), state or state_with(), changes)
    return changes
