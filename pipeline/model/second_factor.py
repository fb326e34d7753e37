"""The second factor: one-time codes by time (TOTP, RFC 6238) in the `x-totp` header, for whatever moves real money.

30 seconds, 6 digits, SHA-1, as authenticator apps make them. Invariants:
1. The time is the broker's append time of the record, never a clock: how long the record waited does not matter.
2. A step is accepted once: only one later than `last_step` is (RFC 6238, 5.2). The state that `check_code` returns must be stored in the
   same database transaction as what the code was for, under the user's lock.
3. `WRONG_CODES_MAX` wrong codes within `WRONG_CODES_WINDOW` lock the factor, right codes between them or not; no code opens it again, only
   an operator does. A missing and a replayed code are no guesses, and do not count.
4. Neither code nor secret is in a refusal or a repr.

Start at `check_code`.
"""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

import pyotp

from pipeline.model.refusal import Refusal
from schemas.reasons import ReasonCode

STEP_SECONDS: Final = 30
DIGITS: Final = 6
# RFC 6238, 5.2 recommends one step for the delay on the way; one to the other side for a clock that is ahead.
STEPS_AROUND: Final = 1
WRONG_CODES_MAX: Final = 5
WRONG_CODES_WINDOW: Final = timedelta(minutes=15)
SECRETS_KEPT_MAX: Final = 100_000

_HEADER: Final = "x-totp"


@dataclass(frozen=True, slots=True)
class SecondFactor:
    """A user's enrolled factor: the secret (base32), the newest accepted step (-1: none), the newest wrong codes' times, the lock."""

    secret: str = field(repr=False)
    last_step: int = -1
    wrong_at: tuple[datetime, ...] = ()
    locked: bool = False


_NOT_ENROLLED: Final = Refusal(
    ReasonCode.TOTP_MISSING,
    "this user has no second factor, which real money needs; nothing was executed. Have an operator enrol one.",
)
_MISSING: Final = Refusal(
    ReasonCode.TOTP_MISSING,
    "real money needs a second factor; nothing was executed. Send the current code of your authenticator in the `x-totp` header, or begin "
    "a session with it.",
)
_UNUSABLE: Final = Refusal(
    ReasonCode.TOTP_MISSING,
    "the second factor that is stored for this user cannot be used; nothing was executed. Have an operator enrol it anew.",
)
_LOCKED: Final = Refusal(
    ReasonCode.TOTP_LOCKED,
    f"the second factor is locked, because {WRONG_CODES_MAX} wrong codes came within {WRONG_CODES_WINDOW // timedelta(minutes=1)} minutes; "
    "nothing was executed. Have an operator unlock it, and find out who sent them.",
)
_WRONG: Final = Refusal(
    ReasonCode.TOTP_INVALID,
    "the code is not that of the time at which the broker appended the record; nothing was executed. Compare your device's clock, and send "
    "the current code.",
)
_LAST_WRONG: Final = replace(_WRONG, reason=f"{_WRONG.reason} This was one wrong code too many: the second factor is locked now.")
_REPLAYED: Final = Refusal(
    ReasonCode.TOTP_REPLAYED,
    "this code, or a later one, was used already; nothing was executed for it again. Wait for the next code.",
)
_AMBIGUOUS: Final = Refusal(
    ReasonCode.TOTP_INVALID, "the record has two `x-totp` headers that differ; nothing was executed, and neither was tried"
)


def code_of(headers: Iterable[tuple[str, bytes]]) -> bytes | Refusal | None:
    """The value of the record's `x-totp` header, whatever the case of its name; None when there is none. Two that differ are refused."""
    found: bytes | None = None
    for name, value in headers:
        if name == _HEADER or name.lower() == _HEADER:
            if found is not None and found != value:
                return _AMBIGUOUS
            found = value
    return found


def check_code(factor: SecondFactor | None, code: bytes | None, at: datetime) -> tuple[Refusal | None, SecondFactor | None]:
    """Whether a code is right at the append time `at` (UTC), and the factor's state afterwards, None when it did not change.

    Never raises for what a producer may have sent. A secret that cannot be read refuses, as one that is missing does.
    """
    if factor is None:
        return _NOT_ENROLLED, None
    if factor.locked:
        return _LOCKED, None
    if not code:
        return _MISSING, None
    step = int(at.timestamp()) // STEP_SECONDS
    try:
        expected = _codes(factor.secret, step)
    except ValueError:
        return _UNUSABLE, None
    # Every candidate is compared, in constant time: how long it takes says nothing about the code.
    matching = [candidate for candidate, right in expected if hmac.compare_digest(right, code)]
    if not matching:
        return _after_wrong(factor, at)
    # By chance two steps can have one code. The later one counts: the same code must not work again.
    accepted = max(matching)
    if accepted <= factor.last_step:
        return _REPLAYED, None
    return None, SecondFactor(factor.secret, accepted, factor.wrong_at, factor.locked)


def _codes(secret: str, step: int) -> list[tuple[int, bytes]]:
    """The codes of the steps around one. Raises ValueError for a secret that is no base32 or has less than 112 bits."""
    key = _key_of(secret)
    return [(near, _code(key, near)) for near in range(max(0, step - STEPS_AROUND), step + STEPS_AROUND + 1)]


@lru_cache(maxsize=SECRETS_KEPT_MAX)
def _key_of(secret: str) -> bytes:
    """The bytes of a secret. Kept, as pyotp decodes base32 character by character: three times as long as the codes take."""
    key: bytes = pyotp.TOTP(secret, digits=DIGITS, interval=STEP_SECONDS).byte_secret()
    return key


def _code(key: bytes, step: int) -> bytes:
    """The code of a step (RFC 4226, 5.3 and 5.4). What `pyotp.TOTP.generate_otp` gives, in a fifth of its time."""
    digest = hmac.digest(key, step.to_bytes(8, "big"), "sha1")
    offset = digest[-1] & 0xF
    return b"%0*d" % (DIGITS, (int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFFFFFF) % 10**DIGITS)


def _after_wrong(factor: SecondFactor, at: datetime) -> tuple[Refusal, SecondFactor]:
    """Partitions are not in step, so times may go back: wrong codes that came later by the broker's clock count as well.

    Only the newest `WRONG_CODES_MAX` times are kept, by time and not by arrival: with them the count is as exact as with all.
    """
    wrong_at = sorted((*factor.wrong_at, at))
    locked = sum(moment > at - WRONG_CODES_WINDOW for moment in wrong_at) >= WRONG_CODES_MAX
    return _LAST_WRONG if locked else _WRONG, replace(factor, wrong_at=tuple(wrong_at[-WRONG_CODES_MAX:]), locked=locked)
