"""A one-time code counts at the broker's append time, once, and not for ever when somebody guesses."""

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyotp
import pytest

from pipeline.model.refusal import Refusal
from pipeline.model.second_factor import WRONG_CODES_MAX, WRONG_CODES_WINDOW, SecondFactor, check_code, code_of
from schemas.reasons import ReasonCode

STEP = 59_850_000
# The first moment of the step, far from any other step that the tests look at.
AT = datetime.fromtimestamp(STEP * 30, UTC)
MOMENT = timedelta(microseconds=1)
SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"  # not a secret: that of RFC 6238, appendix B
FACTOR = SecondFactor(SECRET)


def code(step: int) -> bytes:
    text: str = pyotp.TOTP(SECRET).generate_otp(step)
    return text.encode()


# A code of none of the steps around, whatever the test's moment: of digits, so that it is a guess.
WRONG = next(guess for number in range(1_000) if (guess := b"%06d" % number) not in {code(STEP + near) for near in range(-100, 101)})


def refused(outcome: tuple[Refusal | None, SecondFactor | None]) -> ReasonCode | None:
    return outcome[0].code if outcome[0] is not None else None


def after_wrong(factor: SecondFactor, *moments: datetime) -> SecondFactor:
    for moment in moments:
        refusal, changed = check_code(factor, WRONG, moment)
        assert refusal is not None
        assert changed is not None
        factor = changed
    return factor


@pytest.mark.parametrize(
    ("seconds", "expected"), [(59, b"287082"), (1_111_111_109, b"081804"), (1_234_567_890, b"005924"), (20_000_000_000, b"353130")]
)
def test_codes_are_those_of_the_standard(seconds: int, expected: bytes) -> None:
    """RFC 6238, appendix B: the last six digits of its SHA-1 rows, with leading zeros."""
    refusal, state = check_code(FACTOR, expected, datetime.fromtimestamp(seconds, UTC))
    assert refusal is None
    assert state == replace(FACTOR, last_step=seconds // 30)


@pytest.mark.parametrize("secret", [base64.b32encode(bytes([number]) * (14 + number)).decode().rstrip("=") for number in range(20)])
def test_codes_are_those_of_authenticator_apps(secret: str) -> None:
    """For secrets of every length pyotp, which apps' secrets are made with, gives the codes that are accepted; also in small letters."""
    for step in range(STEP, STEP + 50):
        right = pyotp.TOTP(secret).generate_otp(step).encode()
        for spelt in (secret, secret.lower()):
            assert check_code(SecondFactor(spelt), right, datetime.fromtimestamp(step * 30, UTC))[0] is None


@pytest.mark.parametrize(("near", "accepted"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
@pytest.mark.parametrize("moment", [AT, AT + timedelta(seconds=30) - MOMENT], ids=["first", "last"])
def test_code_of_the_steps_around_is_accepted(near: int, accepted: bool, moment: datetime) -> None:
    """From the first to the last moment of a step its own code and those of its neighbours are right, and no other."""
    refusal, state = check_code(FACTOR, code(STEP + near), moment)
    assert (refusal is None) == accepted
    assert state is not None
    assert state.last_step == (STEP + near if accepted else -1)


def test_each_step_is_accepted_once() -> None:
    """The same code again, and the code of an earlier step, are replays; the next step's is accepted. A replay is no wrong code."""
    refusal, used = check_code(FACTOR, code(STEP), AT)
    assert refusal is None
    assert used is not None
    for replayed in (STEP, STEP - 1):
        assert check_code(used, code(replayed), AT)[1] is None
        assert refused(check_code(used, code(replayed), AT)) is ReasonCode.TOTP_REPLAYED
    refusal, later = check_code(used, code(STEP + 1), AT)
    assert refusal is None
    assert later == replace(FACTOR, last_step=STEP + 1)


def test_code_that_two_steps_share_is_accepted_once() -> None:
    """By chance neighbours can have the same code: it is used up for both."""
    # Found by trying: one step in a million has the code of the next.
    step = 910_737
    assert code(step) == code(step + 1)
    at = datetime.fromtimestamp(step * 30, UTC)
    refusal, used = check_code(FACTOR, code(step), at)
    assert refusal is None
    assert used is not None
    assert used.last_step == step + 1
    assert refused(check_code(used, code(step), at + timedelta(seconds=30))) is ReasonCode.TOTP_REPLAYED


@pytest.mark.parametrize(
    "sent", [b"12345", b"1234567", b"abcdef", b" 28708", b"287082 ", b"\xd9\xa0" * 6, b"\xff" * 6, b"\x00" * 6, b"-87082", b"9" * 100_000]
)
def test_what_is_no_code_is_wrong(sent: bytes) -> None:
    """Anything but six digits is a wrong code like another, and raises nothing."""
    refusal, state = check_code(FACTOR, sent, datetime.fromtimestamp(59, UTC))
    assert refusal is not None
    assert refusal.code is ReasonCode.TOTP_INVALID
    assert state is not None
    assert len(state.wrong_at) == 1


@pytest.mark.parametrize("sent", [None, b""], ids=["absent", "empty"])
def test_missing_code_is_no_wrong_code(sent: bytes | None) -> None:
    """Who sends none is told to, and comes no nearer to a lock."""
    outcome = check_code(after_wrong(FACTOR, AT, AT, AT, AT), sent, AT)
    assert refused(outcome) is ReasonCode.TOTP_MISSING
    assert outcome[1] is None


@pytest.mark.parametrize("sent", [None, code(STEP), WRONG])
def test_user_without_a_factor_is_told_to_enrol(sent: bytes | None) -> None:
    """No factor, no real money; there is nothing to count."""
    refusal, state = check_code(None, sent, AT)
    assert refusal is not None
    assert refusal.code is ReasonCode.TOTP_MISSING
    assert "enrol" in refusal.reason
    assert state is None


@pytest.mark.parametrize("secret", ["", "not base32!", "GEZDGNBV", "GEZDGNBVGY3TQOJQGEZDGN", "é" * 32, "A", "1" * 32])
def test_secret_that_cannot_be_used_refuses(secret: str) -> None:
    """A stored secret that is no base32, or below 112 bits, refuses every code and stops nobody else's request."""
    refusal, state = check_code(SecondFactor(secret), code(STEP), AT)
    assert refusal is not None
    assert refusal.code is ReasonCode.TOTP_MISSING
    assert "enrol" in refusal.reason
    assert state is None


def test_fifth_wrong_code_within_the_window_locks() -> None:
    """Four leave it open, the fifth locks, and from then on the right code is refused too, however much later."""
    four = after_wrong(FACTOR, *(AT + timedelta(minutes=minute) for minute in range(4)))
    assert not four.locked
    refusal, five = check_code(four, WRONG, AT + WRONG_CODES_WINDOW - MOMENT)
    assert refusal is not None
    assert refusal.code is ReasonCode.TOTP_INVALID
    assert "locked" in refusal.reason
    assert five is not None
    assert five.locked
    for later in (timedelta(0), timedelta(minutes=1), timedelta(days=300)):
        for sent in (code(STEP + later // timedelta(seconds=30)), WRONG, None):
            outcome = check_code(five, sent, AT + later)
            assert refused(outcome) is ReasonCode.TOTP_LOCKED
            assert outcome[1] is None


def test_wrong_codes_longer_ago_than_the_window_do_not_lock() -> None:
    """The first of five is forgotten exactly when the window is over."""
    four = after_wrong(FACTOR, *(AT + timedelta(minutes=minute) for minute in range(4)))
    later = AT + WRONG_CODES_WINDOW
    five = after_wrong(four, later)
    assert not five.locked
    assert after_wrong(five, later).wrong_at == (*four.wrong_at[1:], later, later)


def test_right_code_does_not_wipe_out_wrong_ones() -> None:
    """The owner's own codes give nobody else a fresh start at guessing."""
    guessed = after_wrong(FACTOR, *[AT] * 4)
    refusal, used = check_code(guessed, code(STEP), AT)
    assert refusal is None
    assert used == replace(guessed, last_step=STEP)
    assert after_wrong(used, AT).locked


def test_wrong_codes_of_other_partitions_count_in_any_order() -> None:
    """Records of one user may come with times that go back; later ones count as well."""
    moments = [AT + timedelta(seconds=offset) for offset in (40, 0, 30, 10, 20)]
    assert not after_wrong(FACTOR, *moments[:-1]).locked
    assert after_wrong(FACTOR, *moments).locked
    # A code of much later does not make the earlier ones forgotten for a record that waited.
    waited = [AT, AT, AT, AT + timedelta(hours=1)]
    assert not after_wrong(FACTOR, *waited).locked
    assert after_wrong(FACTOR, *waited, AT).locked


def test_newest_wrong_codes_are_kept_by_time_not_by_arrival() -> None:
    """A record that waited does not push out a wrong code that still counts."""
    moments = [AT + timedelta(minutes=minute) for minute in (40, 20, 20, 0, 60, 60, 54)]
    assert not after_wrong(FACTOR, *moments).locked
    assert after_wrong(FACTOR, *moments, moments[-1]).locked


def test_state_never_grows() -> None:
    """No more moments are kept than the lock needs."""
    overfull = replace(FACTOR, wrong_at=tuple(AT for _ in range(50)))
    state = after_wrong(overfull, AT)
    assert state.locked
    assert len(state.wrong_at) == WRONG_CODES_MAX


def test_unlocked_factor_counts_from_the_start() -> None:
    """After an operator unlocked it (no lock, no wrong codes) it takes five again; used steps stay used."""
    refusal, used = check_code(FACTOR, code(STEP), AT)
    assert refusal is None
    assert used is not None
    locked = after_wrong(used, *[AT] * 5)
    assert locked.locked
    unlocked = replace(locked, locked=False, wrong_at=())
    assert refused(check_code(unlocked, code(STEP), AT)) is ReasonCode.TOTP_REPLAYED
    assert not after_wrong(unlocked, *[AT] * 4).locked


def test_headers_that_differ_are_refused() -> None:
    """Two codes in one record would be two guesses at the price of one: neither is tried. Two equal ones are one."""
    assert code_of((("authorization", b"a"),)) is None
    assert code_of((("X-TOTP", b"123456"),)) == b"123456"
    assert code_of((("x-totp", b"123456"), ("X-Totp", b"123456"))) == b"123456"
    found = code_of((("x-totp", b"123456"), ("x-totp", b"123457")))
    assert isinstance(found, Refusal)
    assert found.code is ReasonCode.TOTP_INVALID


def test_nothing_of_secret_or_code_is_shown() -> None:
    """Neither the repr nor a refusal repeats what must stay hidden."""
    secret = base64.b32encode(b"a telling secret of 112 bits").decode()
    factor = SecondFactor(secret)
    outcomes = [check_code(factor, sent, AT) for sent in (b"918273", None)] + [check_code(replace(factor, locked=True), b"918273", AT)]
    shown = [repr(factor), *(repr(outcome) for outcome in outcomes), repr(code_of((("x-totp", b"918273"), ("x-totp", b"1"))))]
    assert [text for text in shown if secret in text or "918273" in text] == []
