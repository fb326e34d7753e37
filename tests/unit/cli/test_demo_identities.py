"""The demo's tokens and codes: each proof is what its name says, judged by the verifier and the check that workers use."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli.local.demo_cast import member_ids
from cli.local.demo_identities import AUDIENCE, ISSUER, Identities, Proof
from cli.local.demo_members import BY_NAME, MEMBERS, OF_MEMBERS, OPERATOR, Standing, member_id
from cli.local.demo_requests import KINDS, Generator
from infra.trusted_keys import TrustedKeyFile
from pipeline.gate.limits import DEFAULT_LIMITS
from pipeline.model.refusal import Refusal
from pipeline.model.second_factor import SecondFactor, check_code
from pipeline.model.session import session_id_of
from pipeline.requests.authentication import Scope, Token, TokenRules, TokenVerifier, scope_refusal, user_refusal
from schemas.reasons import ReasonCode
from tests.unit.builders import NOW

R = ReasonCode
AT = NOW.timestamp()
RULES = TokenRules(ISSUER, AUDIENCE, timedelta(seconds=30))


@pytest.fixture
def identities() -> Identities:
    return Identities()


def _judged(identities: Identities, directory: Path, proof: Proof, at: float = AT) -> tuple[Token | Refusal, dict[str, bytes]]:
    (directory / "keys.pem").write_bytes(identities.public_key)
    headers = dict(identities.headers("alice", proof, now=at))
    verifier = TokenVerifier(TrustedKeyFile(directory / "keys.pem").current, RULES)
    return verifier.verify(headers.get("authorization"), datetime.fromtimestamp(at, UTC)), headers


@pytest.mark.parametrize(
    ("proof", "code"),
    [
        (Proof.SESSION, None), (Proof.CODE, None), (Proof.NO_CODE, None), (Proof.OTHER_LOGIN, None), (Proof.WRONG_CODE, None),
        (Proof.USED_CODE, None), (Proof.ANONYMOUS, R.AUTH_TOKEN_MISSING), (Proof.ALTERED, R.AUTH_TOKEN_INVALID),
        (Proof.STRANGER, R.AUTH_TOKEN_INVALID), (Proof.LATE, R.AUTH_TOKEN_EXPIRED), (Proof.FOREIGN, R.AUTH_USER_MISMATCH),
        (Proof.UNSCOPED, R.AUTH_TOKEN_INVALID), (Proof.OPERATOR, R.AUTH_TOKEN_INVALID),
    ],
)  # fmt: skip
def test_token_is_as_good_or_bad_as_its_proof_says(identities: Identities, tmp_path: Path, proof: Proof, code: ReasonCode | None) -> None:
    """What a producer gets wrong is answered by its own code."""
    found, _ = _judged(identities, tmp_path, proof)
    refusal = found if isinstance(found, Refusal) else user_refusal(found, "alice") or scope_refusal(found, Scope.TRADE)
    assert (refusal.code if refusal is not None else None) == code


def test_tokens_name_the_login_that_a_session_is_bound_to(identities: Identities, tmp_path: Path) -> None:
    """Session and code share one login; another login names another session, and one without names none."""
    named = {proof: _judged(identities, tmp_path, proof)[0] for proof in (Proof.SESSION, Proof.CODE, Proof.OTHER_LOGIN, Proof.NO_CODE)}
    ids = {proof: token.session_id for proof, token in named.items() if isinstance(token, Token)}
    assert ids[Proof.SESSION] == ids[Proof.CODE] == session_id_of("alice", "login of alice")
    assert ids[Proof.OTHER_LOGIN] not in {None, ids[Proof.SESSION]} and ids[Proof.NO_CODE] is None


def test_codes_are_given_once_and_hold_while_a_record_is_on_its_way(identities: Identities) -> None:
    """Two codes at once, then one per step; each is right now and 25 seconds later. What is asked for beyond is a used one."""
    factor: SecondFactor | None = SecondFactor(identities.enrol("alice"))
    answers = []
    for now in (AT, AT, AT, AT + 29, AT + 30, AT + 60):
        code = dict(identities.headers("alice", Proof.CODE, now=now))["x-totp"]
        for appended_at in (now, now + 25):
            refusal, _ = check_code(factor, code, datetime.fromtimestamp(appended_at, UTC))
            assert refusal is None or refusal.code is R.TOTP_REPLAYED
        refusal, after = check_code(factor, code, datetime.fromtimestamp(now, UTC))
        factor = after or factor
        answers.append(refusal.code if refusal is not None else None)
    assert answers == [None, None, R.TOTP_REPLAYED, R.TOTP_REPLAYED, None, None]


def test_wrong_and_used_codes_are_what_they_say(identities: Identities) -> None:
    """A wrong code is wrong in every step around; a used one was right."""
    factor = SecondFactor(identities.enrol("alice"))
    wrong = dict(identities.headers("alice", Proof.WRONG_CODE, now=AT))["x-totp"]
    for seconds in (-60, 0, 60):
        refusal, _ = check_code(factor, wrong, datetime.fromtimestamp(AT + seconds, UTC))
        assert refusal is not None and refusal.code is R.TOTP_INVALID
    good, used = (dict(identities.headers("alice", proof, now=AT))["x-totp"] for proof in (Proof.CODE, Proof.USED_CODE))
    assert good == used


def test_identities_show_no_secret(identities: Identities) -> None:
    """Neither a repr nor what workers get holds a secret or a private key."""
    secret = identities.enrol("alice")
    assert secret not in repr(vars(identities)) and b"PRIVATE" not in identities.public_key


def test_members_have_limits_that_exist_and_kinds_that_meet_them() -> None:
    """A misspelt limit or member would show nothing."""
    for member in MEMBERS:
        DEFAULT_LIMITS.with_overrides(member.limits)
    assert {name for name, _ in OF_MEMBERS.values()} <= BY_NAME.keys()
    assert {kind for kind, _ in KINDS} >= OF_MEMBERS.keys()
    assert len({kind for kind, _ in KINDS}) == len(KINDS), "two kinds of one name: only one of them would be made"
    assert member_id("run", "pending") not in member_ids("run") and BY_NAME["pending"].standing is Standing.PENDING
    assert OPERATOR not in BY_NAME


def test_every_record_names_its_signer_where_it_names_a_user() -> None:
    """What carries no token is what means to: records that name nobody, and those without one."""
    records = list(Generator(3, "run", [f"u{number}" for number in range(10)], NOW).records(2_000))
    unsigned = {record.kind for record in records if record.signer is None}
    assert unsigned <= {"tombstone", "broken_json", "not_a_number", "not_utf8", "missing_field", "wrong_type"}
    assert {record.proof for record in records} >= set(Proof) - {Proof.OPERATOR}
    assert all(record.proof is Proof.CODE for record in records if record.kind in {"withdrawal", "with_code"})
