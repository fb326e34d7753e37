"""Whatever is sent in place of a token or a code: nothing is believed that was not issued, and nothing raises."""

from datetime import UTC, datetime, timedelta
from typing import Final

import orjson
import pyotp
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.refusal import Refusal
from pipeline.model.second_factor import STEPS_AROUND, WRONG_CODES_MAX, WRONG_CODES_WINDOW, SecondFactor, check_code
from pipeline.requests.authentication import ALGORITHMS, Token, TrustedKeys
from schemas.reasons import ReasonCode
from tests.unit.tokens import AT, CLAIMS, LEEWAY, Issuer, issuer, verifier

SECRET: Final = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"  # not a secret: that of RFC 6238, appendix B
ISSUERS: Final = {algorithm: issuer(algorithm, algorithm) for algorithm in ALGORITHMS}
BEARERS: Final = {algorithm: each.bearer() for algorithm, each in ISSUERS.items()}
VERIFIER: Final = verifier(*ISSUERS.values())
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MOMENTS: Final = st.integers(0, 2**37).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))


@given(authorization=st.binary(max_size=300) | st.builds(b"Bearer ".__add__, st.binary(max_size=300)), at=MOMENTS)
def test_bytes_at_random_are_refused(authorization: bytes, at: datetime) -> None:
    """Any bytes in the header are answered with a refusal."""
    assert isinstance(VERIFIER.verify(authorization, at), Refusal)


@given(algorithm=st.sampled_from(ALGORITHMS), place=st.integers(7), mask=st.integers(1, 255))
def test_token_with_a_changed_byte_is_refused(algorithm: str, place: int, mask: int) -> None:
    """Every byte of a token counts, the last bits of its base64url included."""
    changed = bytearray(BEARERS[algorithm])
    changed[7 + place % (len(changed) - 7)] ^= mask
    assert isinstance(VERIFIER.verify(bytes(changed), AT), Refusal)
    assert isinstance(VERIFIER.verify(BEARERS[algorithm], AT), Token)


@given(algorithm=st.sampled_from(ALGORITHMS), cut=st.integers(0, 60), more=st.binary(max_size=4))
def test_token_that_is_cut_or_longer_is_refused(algorithm: str, cut: int, more: bytes) -> None:
    """Only the token as it was issued is believed; blanks behind the header's value are no part of it."""
    bearer = BEARERS[algorithm]
    other = bearer[: len(bearer) - cut] + more
    believed = isinstance(VERIFIER.verify(other, AT), Token)
    assert believed == (other.strip(b" \t") == bearer)


@given(
    header=st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk", "x"]), JSON, max_size=4),
    claims=st.dictionaries(st.sampled_from([*CLAIMS, "nbf", "jti"]), JSON, max_size=4),
    at=MOMENTS,
)
def test_claims_at_random_never_raise_and_times_are_kept(header: dict[str, object], claims: dict[str, object], at: datetime) -> None:
    """Whatever an issuer signs is believed or refused, and what is believed is within its times."""
    by = issuer()
    found = verifier(by).verify(by.bearer(header, **claims), at)
    if isinstance(found, Token):
        assert found.user_id == {**CLAIMS, **claims}["sub"]
        assert at < found.expires_at + LEEWAY
    else:
        assert found.code in {ReasonCode.AUTH_TOKEN_INVALID, ReasonCode.AUTH_TOKEN_EXPIRED}


@given(payload=st.binary(max_size=100), algorithm=st.sampled_from(ALGORITHMS))
def test_payload_at_random_never_raises(payload: bytes, algorithm: str) -> None:
    """A signature that holds over bytes that are no claims."""
    by = ISSUERS[algorithm]
    token = by.signed({"alg": algorithm, "kid": algorithm}, payload or b"\x00")
    assert isinstance(VERIFIER.verify(b"Bearer " + token, AT), Refusal)


@given(
    trusted=st.sets(st.sampled_from(ALGORITHMS), min_size=1),
    signed_with=st.sampled_from(ALGORITHMS),
    says=st.sampled_from([*ALGORITHMS, "none", "HS512"]),
    names=st.sampled_from([*ALGORITHMS, "unknown"]),
)
def test_token_is_believed_only_for_the_key_that_signed_it(trusted: set[str], signed_with: str, says: str, names: str) -> None:
    """Algorithm, key and `kid` must be those of one trusted key, whatever else is trusted."""
    by = verifier(*(ISSUERS[algorithm] for algorithm in sorted(trusted)))
    believed = isinstance(by.verify(ISSUERS[signed_with].bearer({"alg": says, "kid": names}), AT), Token)
    assert believed == (signed_with == says == names and signed_with in trusted)


@given(trusted=st.sampled_from(["RS256", "ES256", "EdDSA"]), form=st.sampled_from(["pem", "jwk"]), kid=st.sampled_from([*ALGORITHMS]))
def test_public_key_is_never_a_secret(trusted: str, form: str, kid: str) -> None:
    """HS256 over the public key's bytes is refused, whichever key the token names."""
    public = ISSUERS[trusted]
    secret = public.public_pem() if form == "pem" else orjson.dumps(public.jwk())
    assert isinstance(VERIFIER.verify(Issuer("HS256", secret, kid).bearer(), AT), Refusal)


@given(names=st.lists(st.sampled_from([*ALGORITHMS, None]), max_size=4), asked=st.sampled_from([*ALGORITHMS, None, "unknown"]))
def test_key_is_found_only_when_there_is_no_choice(names: list[str | None], asked: str | None) -> None:
    """A set is refused, or each `kid` means at most one of its keys."""
    keys = [issuer("EdDSA", name).trusted() for name in names]
    ambiguous = len(set(names)) < len(names) or (len(names) > 1 and None in names)
    try:
        found = TrustedKeys(keys).named(asked)
    except ValueError:
        assert ambiguous
        return
    assert not ambiguous
    meant = [key for key in keys if key.key_id == asked] or (keys if len(keys) == 1 and (asked is None or names == [None]) else [])
    assert found is (meant[0] if meant else None)


@given(events=st.lists(st.tuples(st.integers(0, 2_000), st.integers(-3, 3) | st.none()), max_size=30))
def test_code_model_agrees_with_any_sequence(events: list[tuple[int, int | None]]) -> None:
    """Against a model that keeps everything: each step at most once, only later ones, a lock after five wrong codes within the window."""
    totp = pyotp.TOTP(SECRET)
    factor, accepted, wrong, locked = SecondFactor(SECRET), [-1], list[datetime](), False
    for seconds, near in events:
        at = AT + timedelta(seconds=seconds)
        step = int(at.timestamp()) // 30
        sent = step + near if near is not None else None
        around = {totp.generate_otp(step + offset) for offset in range(-1, 2)}
        code = totp.generate_otp(sent) if sent is not None else next(f"{guess:06}" for guess in range(4) if f"{guess:06}" not in around)
        refusal, changed = check_code(factor, code.encode(), at)
        if locked:
            expected = ReasonCode.TOTP_LOCKED
        elif sent is None or abs(sent - step) > STEPS_AROUND:
            expected = ReasonCode.TOTP_INVALID
            wrong.append(at)
            locked = sum(moment > at - WRONG_CODES_WINDOW for moment in wrong) >= WRONG_CODES_MAX
        elif sent <= max(accepted):
            expected = ReasonCode.TOTP_REPLAYED
        else:
            expected = None
            accepted.append(sent)
        assert (refusal.code if refusal else None) is expected
        factor = changed or factor
        assert (factor.locked, factor.last_step) == (locked, max(accepted))
        assert len(set(accepted)) == len(accepted)
