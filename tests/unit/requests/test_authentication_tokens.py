"""A token is believed when everything about it holds at the broker's append time, and never otherwise."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import orjson
import pytest
from jwt import PyJWK

from pipeline.model.refusal import Refusal
from pipeline.requests.authentication import (
    ALGORITHMS,
    TOKEN_BYTES_MAX,
    Scope,
    Token,
    TokenRules,
    TokenVerifier,
    TrustedKey,
    TrustedKeys,
    authorization_of,
    scope_refusal,
    session_claim_refusal,
    user_refusal,
)
from schemas.reasons import ReasonCode
from tests.unit.tokens import ABSENT, AT, AUDIENCE, CLAIMS, ISSUER, LEEWAY, RULES, Issuer, base64url, issuer, verifier

MOMENT = timedelta(microseconds=1)
SECONDS = int(AT.timestamp())


def code_of(found: Token | Refusal | None) -> ReasonCode | None:
    return found.code if isinstance(found, Refusal) else None


def verified(authorization: bytes | None, at: datetime = AT, rules: TokenRules = RULES, by: Issuer | None = None) -> Token | Refusal:
    return verifier(by or issuer(), rules=rules).verify(authorization, at)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_token_of_each_algorithm_is_believed(algorithm: str) -> None:
    """User, scopes and expiry are those of the token, for every algorithm that is offered."""
    token = verified(issuer(algorithm).bearer(), by=issuer(algorithm))
    fingerprint = issuer(algorithm).trusted().fingerprint
    assert token == Token("alice", frozenset({"trade", "withdraw"}), AT + timedelta(seconds=300), None, fingerprint)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_token_of_another_key_is_refused(algorithm: str) -> None:
    """The `kid` of a trusted key does not help a token that another key signed."""
    other = Issuer(algorithm, b"another secret, also of 32 bytes or more", "k1") if algorithm == "HS256" else issuer(algorithm, "other")
    stranger = Issuer(algorithm, other.private_key, "k1")
    assert code_of(verified(stranger.bearer(), by=issuer(algorithm))) is ReasonCode.AUTH_TOKEN_INVALID


@pytest.mark.parametrize("authorization", [None, b""], ids=["absent", "empty"])
def test_record_without_token_is_refused(authorization: bytes | None) -> None:
    """No header, and one without a value, are a missing token."""
    assert code_of(verified(authorization)) is ReasonCode.AUTH_TOKEN_MISSING


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER ", b"bEaReR   ", b" \tBearer "])
def test_scheme_in_any_case_is_believed(scheme: bytes) -> None:
    """RFC 9110: schemes have no case. RFC 6750: one space or more. Blanks around a header's value are no part of it."""
    assert isinstance(verified(scheme + issuer().token() + b" "), Token)


@pytest.mark.parametrize("scheme", [b"", b"Basic ", b"Bearer", b"Bearer\t", b"Bearer: ", b"Token ", b"Bearer\xc2\xa0"])
def test_other_scheme_is_refused(scheme: bytes) -> None:
    """What is not `Bearer` and a space is not read as a token."""
    assert code_of(verified(scheme + issuer().token())) is ReasonCode.AUTH_TOKEN_INVALID


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b"a.b",
        b"a.b.c.d",
        b"a.b.c.d.e",
        b"..",
        b"a..c",
        b"!!!!.b.c",
        "é.b.c".encode(),
        b"\xff\xfe.b.c",
        b"a.b.c\n",
        b"a.b. c",
        b"a.b.c=",
        b"\x00" * 20,
    ],
)
def test_what_is_no_token_is_refused(token: bytes) -> None:
    """Anything but three parts in unpadded base64url is refused, and raises nothing."""
    assert code_of(verified(b"Bearer " + token)) is ReasonCode.AUTH_TOKEN_INVALID


@pytest.mark.parametrize("addition", [b"=", b"==", b"\n", b"\r\n", b".", b".a", b"!", "é".encode(), b", Bearer x"])
def test_token_with_an_addition_is_refused(addition: bytes) -> None:
    """A good token has one form: nothing may follow it, not even padding."""
    assert code_of(verified(issuer().bearer() + addition)) is ReasonCode.AUTH_TOKEN_INVALID


def test_signature_in_another_spelling_is_refused() -> None:
    """The last character of 86 has four bits that say nothing: all but one of its spellings would be a second form of the token."""
    bearer = issuer().bearer()
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(bearer[-1:])
    assert last % 16 == 0
    for other in range(last + 1, last + 16):
        assert code_of(verified(bearer[:-1] + alphabet[other : other + 1])) is ReasonCode.AUTH_TOKEN_INVALID
    assert isinstance(verified(bearer), Token)


@pytest.mark.parametrize("header", [b"null", b"[]", b'"a"', b"{", b"", b"\xff\xfe{\x00}\x00", b'{"alg":"EdDSA","kid":"k1"'])
def test_token_whose_header_is_no_object_is_refused(header: bytes) -> None:
    """The header must be a JSON object in UTF-8."""
    parts = issuer().token().split(b".")
    assert code_of(verified(b"Bearer " + b".".join((base64url(header) or b"A", *parts[1:])))) is ReasonCode.AUTH_TOKEN_INVALID


def test_token_at_the_size_limit_is_believed_and_above_it_refused() -> None:
    """A token may have 8 KiB and not a byte more; it is refused before anything else is done with it."""
    # base64url has no parts of some lengths: the header is made longer as well, until every length is there.
    tokens = [issuer().token({"more": "x" * more}, padding="x" * size) for more in range(3) for size in range(5_800, 6_000)]
    by_length = {len(token): token for token in tokens}
    assert isinstance(verified(b"Bearer " + by_length[TOKEN_BYTES_MAX]), Token)
    refusal = verified(b"Bearer " + by_length[TOKEN_BYTES_MAX + 1])
    assert isinstance(refusal, Refusal)
    assert "larger than" in refusal.reason


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", ABSENT, None, 1, ["EdDSA"], "HS384", "ES384", "PS256", "eddsa"])
@pytest.mark.parametrize("signature", ["kept", "removed"])
def test_token_without_or_of_another_algorithm_is_refused(algorithm: Any, signature: str) -> None:
    """`none` in any spelling, no `alg`, and one that its key is not for, with a signature or without."""
    token = issuer().token({"alg": algorithm})
    if signature == "removed":
        token = token.rpartition(b".")[0] + b"."
    assert code_of(verified(b"Bearer " + token)) is ReasonCode.AUTH_TOKEN_INVALID


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("key_id", ["k1", ABSENT])
def test_token_signed_with_the_public_key_as_a_secret_is_refused(algorithm: str, key_id: Any) -> None:
    """Key confusion (RFC 8725, 2.1): everybody has the public key's bytes, and HS256 over them proves nothing."""
    public = issuer(algorithm)
    for secret in (public.public_pem(), public.public_pem().strip(), orjson.dumps(public.jwk())):
        forged = Issuer("HS256", secret, "k1").bearer({"kid": key_id})
        assert code_of(verified(forged, by=public)) is ReasonCode.AUTH_TOKEN_INVALID
        # Not even when a secret is trusted as well.
        both = verifier(public, issuer("HS256", "k2"))
        for named in ("k1", "k2"):
            assert code_of(both.verify(Issuer("HS256", secret, "k1").bearer({"kid": named}), AT)) is ReasonCode.AUTH_TOKEN_INVALID


def test_token_that_brings_its_own_key_is_refused() -> None:
    """A `jwk` in the header is the sender's word, and is not looked at."""
    stranger = issuer("EdDSA", "stranger")
    brought = stranger.bearer({"kid": "k1", "jwk": stranger.jwk(), "jku": "https://stranger.example/keys"})
    assert code_of(verified(brought)) is ReasonCode.AUTH_TOKEN_INVALID


@pytest.mark.parametrize("key_id", ["unknown", "", "K1", " k1", "../../k1", 1, ["k1"], {"k": 1}, ABSENT, None])
def test_token_whose_key_is_not_named_is_refused(key_id: Any) -> None:
    """With several keys, `kid` must be exactly the id of one."""
    both = verifier(issuer(), issuer("EdDSA", "k2"))
    assert code_of(both.verify(issuer().bearer({"kid": key_id}), AT)) is ReasonCode.AUTH_TOKEN_INVALID


def test_unknown_key_id_is_refused_when_one_key_is_trusted() -> None:
    """The only key of a set has an id too: a token that names another means another key."""
    assert code_of(verified(issuer().bearer({"kid": "k2"}))) is ReasonCode.AUTH_TOKEN_INVALID
    assert isinstance(verified(issuer().bearer({"kid": ABSENT})), Token)


@pytest.mark.parametrize("key_id", [ABSENT, "anything"])
def test_key_without_id_is_meant_by_any_key_id(key_id: Any) -> None:
    """A PEM or secret file has one key and no id: issuers may name one or not."""
    nameless = issuer("ES256", None)
    assert isinstance(verified(nameless.bearer({"kid": key_id}), by=nameless), Token)


def test_each_of_several_keys_is_found_by_its_id() -> None:
    """Keys of all algorithms can be trusted at once, each for its own tokens."""
    issuers = [issuer(algorithm, f"key-{algorithm}") for algorithm in ALGORITHMS]
    several = verifier(*issuers)
    assert [type(several.verify(each.bearer(), AT)) for each in issuers] == [Token] * 4
    assert code_of(several.verify(issuers[1].bearer({"kid": "key-ES256"}), AT)) is ReasonCode.AUTH_TOKEN_INVALID


def test_token_with_a_critical_extension_is_refused() -> None:
    """RFC 7515, 4.1.11: what must be understood and is not, is refused; so is a detached payload (RFC 7797)."""
    headers: list[dict[str, Any]] = [{"crit": ["exp"], "exp": 1}, {"crit": ["b64"], "b64": True}, {"crit": []}, {"crit": None}]
    for header in (*headers, {"b64": False}, {"b64": True}):
        assert code_of(verified(issuer().bearer(header))) is ReasonCode.AUTH_TOKEN_INVALID, header


@pytest.mark.parametrize("kind", ["logout+jwt", "dpop+jwt", "secevent+jwt", "", 1, None, ["JWT"]])
def test_token_of_another_kind_is_refused(kind: Any) -> None:
    """RFC 8725, 3.11: what the issuer signs for something else is no access token."""
    assert code_of(verified(issuer().bearer({"typ": kind}))) is ReasonCode.AUTH_TOKEN_INVALID


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", ABSENT])
def test_access_token_of_any_spelling_is_believed(kind: Any) -> None:
    """`typ` may be left out; RFC 9068 has `at+jwt`, RFC 7519 `JWT`."""
    assert isinstance(verified(issuer().bearer({"typ": kind})), Token)


@pytest.mark.parametrize("claim", ["sub", "exp", "iat", "iss", "aud"])
def test_token_without_a_needed_claim_is_refused(claim: str) -> None:
    """`sub`, `exp`, `iat`, and here `iss` and `aud`, must be there."""
    left_out: dict[str, Any] = {claim: ABSENT}
    assert code_of(verified(issuer().bearer(**left_out))) is ReasonCode.AUTH_TOKEN_INVALID


@pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("value", [None, True, False, "1795503600", "", [], {}, -1, -0.5, 1e300, 2**53, 253_370_764_800])
def test_token_whose_time_is_no_date_is_refused(claim: str, value: Any) -> None:
    """Times are JSON numbers, not texts or truth values, and within the years that can be told."""
    assert code_of(verified(issuer().bearer(**{claim: value}))) is ReasonCode.AUTH_TOKEN_INVALID


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999", b"9" * 400])
def test_token_whose_time_is_no_number_of_json_is_refused(number: bytes) -> None:
    """What a lenient parser would read as infinite never becomes a token without an end."""
    payload = orjson.dumps(CLAIMS).replace(str(CLAIMS["exp"]).encode(), number)
    token = issuer().signed({"alg": "EdDSA", "kid": "k1"}, payload)
    assert code_of(verified(b"Bearer " + token)) is ReasonCode.AUTH_TOKEN_INVALID


@pytest.mark.parametrize("value", [None, "", 7, ["alice"], {"id": "alice"}])
def test_token_whose_subject_is_no_user_is_refused(value: Any) -> None:
    """`sub` is a text that is not empty."""
    assert code_of(verified(issuer().bearer(sub=value))) is ReasonCode.AUTH_TOKEN_INVALID


@pytest.mark.parametrize("payload", [b"", b"null", b"[]", b'"alice"', b"{", b"\xff", b"[" * 3_000])
def test_token_whose_claims_are_no_object_is_refused(payload: bytes) -> None:
    """A good signature over something else proves nothing, and raises nothing."""
    assert code_of(verified(b"Bearer " + issuer().signed({"alg": "EdDSA", "kid": "k1"}, payload))) is ReasonCode.AUTH_TOKEN_INVALID


@pytest.mark.parametrize("leeway", [0, 30])
def test_token_expires_at_its_time_plus_the_leeway(leeway: int) -> None:
    """RFC 7519, 4.1.4: accepted just before `exp`, not at it; the leeway moves both."""
    rules = TokenRules(ISSUER, AUDIENCE, timedelta(seconds=leeway))
    end = AT + timedelta(seconds=300 + leeway)
    assert isinstance(verified(issuer().bearer(), end - MOMENT, rules), Token)
    assert code_of(verified(issuer().bearer(), end, rules)) is ReasonCode.AUTH_TOKEN_EXPIRED


@pytest.mark.parametrize("claim", ["nbf", "iat"])
@pytest.mark.parametrize("leeway", [0, 30])
def test_token_of_the_future_is_refused_until_its_time_less_the_leeway(claim: str, leeway: int) -> None:
    """RFC 7519, 4.1.5: accepted from `nbf` on; and a token that will be issued later is none yet."""
    rules = TokenRules(ISSUER, AUDIENCE, timedelta(seconds=leeway))
    later: dict[str, Any] = {claim: SECONDS + 100}
    bearer = issuer().bearer(**later)
    start = AT + timedelta(seconds=100 - leeway)
    assert code_of(verified(bearer, start - MOMENT, rules)) is ReasonCode.AUTH_TOKEN_INVALID
    assert isinstance(verified(bearer, start, rules), Token)


def test_times_with_fractions_are_kept() -> None:
    """A NumericDate need not be whole."""
    rules = TokenRules(ISSUER, AUDIENCE, timedelta(0))
    bearer = issuer().bearer(exp=SECONDS + 0.5)
    assert isinstance(verified(bearer, AT + timedelta(seconds=0.25), rules), Token)
    assert code_of(verified(bearer, AT + timedelta(seconds=0.5), rules)) is ReasonCode.AUTH_TOKEN_EXPIRED


def test_wall_clock_does_not_matter() -> None:
    """A record that was appended while its token held is believed whenever it is read, and one appended later is not."""
    past, future = 1_000_000, 200_000_000_000
    for moment in (past, future):
        bearer = issuer().bearer(iat=moment, exp=moment + 10)
        at = AT + timedelta(seconds=moment - SECONDS)
        assert isinstance(verified(bearer, at), Token)
        assert code_of(verified(bearer, at + timedelta(seconds=40))) is ReasonCode.AUTH_TOKEN_EXPIRED


def test_expired_token_of_a_stranger_is_invalid_not_expired() -> None:
    """What a token says about itself counts only once its signature holds."""
    forged = Issuer("EdDSA", issuer("EdDSA", "stranger").private_key, "k1").bearer(exp=1)
    assert code_of(verified(forged)) is ReasonCode.AUTH_TOKEN_INVALID


@pytest.mark.parametrize("value", ["https://issuer.example/", "HTTPS://issuer.example", "", None, ["https://issuer.example"], 1])
def test_token_of_another_issuer_is_refused(value: Any) -> None:
    """`iss` must be the very text of the setting."""
    assert code_of(verified(issuer().bearer(iss=value))) is ReasonCode.AUTH_TOKEN_INVALID


def test_issuer_is_not_looked_at_without_a_setting() -> None:
    """Whoever trusts a key alone may leave the issuer open."""
    rules = TokenRules(None, AUDIENCE, LEEWAY)
    assert isinstance(verified(issuer().bearer(iss="anybody"), rules=rules), Token)
    assert isinstance(verified(issuer().bearer(iss=ABSENT), rules=rules), Token)


@pytest.mark.parametrize("value", ["other", "", "orchestrator ", "ORCHESTRATOR", [], ["other"], 1, None, {AUDIENCE: 1}, [AUDIENCE, 1]])
def test_token_for_another_audience_is_refused(value: Any) -> None:
    """`aud` must name this installation."""
    assert code_of(verified(issuer().bearer(aud=value))) is ReasonCode.AUTH_TOKEN_INVALID


@pytest.mark.parametrize("value", [AUDIENCE, [AUDIENCE], ["other", AUDIENCE]])
def test_token_for_this_audience_among_others_is_believed(value: Any) -> None:
    """RFC 7519, 4.1.3: one text, or a list with it."""
    assert isinstance(verified(issuer().bearer(aud=value)), Token)


def test_token_for_an_audience_is_refused_where_none_is_set() -> None:
    """RFC 7519, 4.1.3: who has no name cannot be meant by a token that names somebody."""
    rules = TokenRules(ISSUER, None, LEEWAY)
    assert code_of(verified(issuer().bearer(), rules=rules)) is ReasonCode.AUTH_TOKEN_INVALID
    assert isinstance(verified(issuer().bearer(aud=ABSENT), rules=rules), Token)


@pytest.mark.parametrize(
    ("scope", "scopes"),
    [("trade", {"trade"}), ("", set()), (ABSENT, set()), ("openid  trade ", {"openid", "trade"}), ("trades Trade", {"trades", "Trade"})],
)
def test_scopes_are_the_words_of_the_claim(scope: Any, scopes: set[str]) -> None:
    """Words with spaces between them, whole and with their case; without the claim there are none."""
    token = verified(issuer().bearer(scope=scope))
    assert isinstance(token, Token)
    assert token.scopes == scopes
    refusal = scope_refusal(token, Scope.TRADE)
    assert (refusal is None) == ("trade" in scopes)


@pytest.mark.parametrize("scope", [["trade"], 1, None, {"trade": True}])
def test_token_whose_scope_is_no_text_is_refused(scope: Any) -> None:
    """A list is another standard's; reading it half would be a guess."""
    assert code_of(verified(issuer().bearer(scope=scope))) is ReasonCode.AUTH_TOKEN_INVALID


@pytest.mark.parametrize("scope", Scope)
def test_missing_scope_is_named(scope: Scope) -> None:
    """Whoever may not do something is told which word the token lacks."""
    refusal = scope_refusal(Token("alice", frozenset(set(Scope) - {scope}), AT), scope)
    assert refusal is not None
    assert refusal.code is ReasonCode.AUTH_TOKEN_INVALID
    assert f"`{scope.value}`" in refusal.reason
    assert scope_refusal(Token("alice", frozenset({scope.value}), AT), scope) is None


@pytest.mark.parametrize("user_id", ["bob", "Alice", "alice ", ""])
def test_request_of_another_user_is_refused(user_id: str) -> None:
    """`user_id` must be the token's `sub` to the letter."""
    token = Token("alice", frozenset(), AT)
    assert code_of(user_refusal(token, user_id)) is ReasonCode.AUTH_USER_MISMATCH
    assert user_refusal(token, "alice") is None


def test_headers_that_differ_are_refused() -> None:
    """Two tokens in one record: neither is tried. Two equal ones are one."""
    assert authorization_of(()) is None
    assert authorization_of((("x-totp", b"1"), ("Authorization", b"a"))) == b"a"
    assert authorization_of((("authorization", b"a"), ("AUTHORIZATION", b"a"))) == b"a"
    for pair in ((b"a", b"b"), (b"", b"a"), (b"a", b"")):
        found = authorization_of((("authorization", pair[0]), ("traceparent", b"x"), ("Authorization", pair[1])))
        assert isinstance(found, Refusal)
        assert found.code is ReasonCode.AUTH_TOKEN_INVALID


def test_known_token_is_refused_once_it_expired() -> None:
    """A token whose signature was verified before is held against the time of each record, forwards and backwards."""
    known = verifier(issuer())
    bearer = issuer().bearer()
    assert isinstance(known.verify(bearer, AT), Token)
    assert code_of(known.verify(bearer, AT + timedelta(seconds=330))) is ReasonCode.AUTH_TOKEN_EXPIRED
    assert code_of(known.verify(bearer, AT - timedelta(seconds=91))) is ReasonCode.AUTH_TOKEN_INVALID
    assert isinstance(known.verify(bearer, AT), Token)


def test_known_token_is_refused_once_its_key_was_rotated_out() -> None:
    """New keys make every verified token unknown again: the old key's tokens are refused, the new one's believed."""
    old, new = issuer("EdDSA", "old"), issuer("EdDSA", "new")
    trusted = TrustedKeys([old.trusted()])
    rotating = TokenVerifier(lambda: trusted, RULES)
    bearer = old.bearer()
    assert isinstance(rotating.verify(bearer, AT), Token)
    trusted = TrustedKeys([old.trusted(), new.trusted()])
    assert isinstance(rotating.verify(bearer, AT), Token)
    assert isinstance(rotating.verify(new.bearer(), AT), Token)
    trusted = TrustedKeys([new.trusted()])
    assert code_of(rotating.verify(bearer, AT)) is ReasonCode.AUTH_TOKEN_INVALID
    trusted = TrustedKeys([])
    assert code_of(rotating.verify(new.bearer(), AT)) is ReasonCode.AUTH_TOKEN_INVALID


def test_same_key_id_with_another_key_does_not_keep_old_tokens() -> None:
    """An id that is given to a new key does not pass on what the old one signed."""
    old = issuer("EdDSA", "k1")
    new = Issuer("EdDSA", issuer("EdDSA", "stranger").private_key, "k1")
    trusted = TrustedKeys([old.trusted()])
    rotating = TokenVerifier(lambda: trusted, RULES)
    assert isinstance(rotating.verify(old.bearer(), AT), Token)
    trusted = TrustedKeys([new.trusted()])
    assert code_of(rotating.verify(old.bearer(), AT)) is ReasonCode.AUTH_TOKEN_INVALID


def test_known_tokens_are_bounded_and_bad_ones_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens used last are kept, no more than the bound; a refused one takes no place."""
    made = 0
    small = verifier(issuer(), tokens_max=2)
    key_for = TrustedKeys.named

    def counted(keys: TrustedKeys, key_id: str | None) -> TrustedKey | None:
        nonlocal made
        made += 1
        return key_for(keys, key_id)

    monkeypatch.setattr(TrustedKeys, "named", counted)
    first, second, third = (issuer().bearer(jti=name) for name in "abc")

    def looked_up(bearer: bytes) -> bool:
        before = made
        small.verify(bearer, AT)
        return made > before

    assert [looked_up(bearer) for bearer in (first, second, first)] == [True, True, False]
    for number in range(20):
        small.verify(issuer().bearer(exp=str(number)), AT)
    assert not looked_up(first)
    assert looked_up(third)
    # `second` was used longest ago and gave way.
    assert [looked_up(bearer) for bearer in (first, third, second)] == [False, False, True]


def test_keys_that_a_token_could_confuse_are_refused() -> None:
    """Two keys with one id, or one without among several, are an error of whoever set them up."""
    one, other, nameless = issuer("EdDSA", "k1"), issuer("ES256", "k1"), issuer("ES256", None)
    for pair in ((one, other), (one, nameless), (nameless, nameless)):
        with pytest.raises(ValueError, match="kid"):
            TrustedKeys([each.trusted() for each in pair])


@pytest.mark.parametrize("algorithm", ["none", "HS384", "RS256", ""])
def test_key_for_another_algorithm_than_its_own_cannot_be_trusted(algorithm: str) -> None:
    """A key's algorithm is the one it was made for, and one of those offered."""
    with pytest.raises(ValueError, match="trusted key"):
        TrustedKey("k1", algorithm, PyJWK(issuer("ES256").jwk(), "ES256"))


def test_nothing_of_a_token_or_key_is_shown() -> None:
    """Neither refusals nor reprs repeat what was sent or what it is verified with."""
    secret = issuer("HS256")
    bearer = secret.bearer(sub="a-telling-name")
    shown = [repr(secret.trusted()), repr(TrustedKeys([secret.trusted()])), repr(verifier(secret))]
    bad = [
        bearer + b"A",
        bearer.replace(b"Bearer", b"Basic"),
        secret.bearer({"kid": "a-telling-name"}),
        secret.bearer({"alg": "a-telling-name"}),
        secret.bearer(iss="a-telling-name"),
        secret.bearer(aud="a-telling-name"),
        secret.bearer(exp=1, sub="a-telling-name"),
        b"Bearer " + b"a-telling-name" * 1_000,
    ]
    shown += [repr(verified(each, by=secret)) for each in bad]
    assert all("Refusal" in text for text in shown[3:])
    hidden = [part.decode() for part in bearer.split()[1].split(b".")] + ["a-telling-name", secret.private_key.decode(), secret.jwk()["k"]]
    assert [(text, word) for text in shown for word in hidden if word in text] == []


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({"scope": ABSENT, "scp": "trade withdraw"}, {"trade", "withdraw"}),
        ({"scope": ABSENT, "scp": ["trade", "other"]}, {"trade", "other"}),
        ({"scope": ABSENT, "permissions": ["operate"]}, {"operate"}),
        ({"scope": "trade", "permissions": ["withdraw"], "scp": "openid"}, {"trade", "withdraw", "openid"}),
        ({"scope": ABSENT}, set()),
    ],
)
def test_scopes_are_read_from_the_claims_that_issuers_use(claims: dict[str, Any], scopes: set[str]) -> None:
    """`scope`, `scp` and `permissions`, together."""
    token = verified(issuer().bearer(**claims))
    assert isinstance(token, Token), token
    assert token.scopes == scopes


def test_scopes_are_read_from_the_claim_that_is_named() -> None:
    """And then from no other."""
    rules = replace(RULES, scope_claim="https://example.com/roles")
    token = verified(issuer().bearer(**{"scope": "trade", "scp": 7, "https://example.com/roles": ["withdraw"]}), rules=rules)
    assert isinstance(token, Token), token
    assert token.scopes == {"withdraw"}


@pytest.mark.parametrize("claims", [{"scp": 1}, {"scp": [1]}, {"permissions": {"trade": True}}, {"permissions": [["trade"]]}])
def test_scopes_that_cannot_be_read_are_refused(claims: dict[str, Any]) -> None:
    """A claim of another form is not guessed at, and named in the answer."""
    found = verified(issuer().bearer(scope=ABSENT, **claims))
    assert isinstance(found, Refusal) and found.code is ReasonCode.AUTH_TOKEN_INVALID
    assert next(iter(claims)) in found.reason


def test_session_claim_is_kept_as_a_digest() -> None:
    """Every token of the same user and `sid` names the same session; the claim itself is kept nowhere."""
    one, again = (verified(issuer().bearer(sid="login-1", exp=int(AT.timestamp()) + more)) for more in (300, 600))
    assert isinstance(one, Token) and isinstance(again, Token)
    assert one.session_id == again.session_id is not None
    assert "login-1" not in repr(one)


@pytest.mark.parametrize("sid", [ABSENT, None, 7, "", "x" * 257, ["a"]])
def test_token_whose_sid_is_no_session_names_none(sid: Any) -> None:
    """What others use the claim for does not make a token bad."""
    token = verified(issuer().bearer(sid=sid))
    assert isinstance(token, Token) and token.session_id is None
    assert code_of(session_claim_refusal(token)) is ReasonCode.AUTH_TOKEN_INVALID


@pytest.mark.parametrize("amr", [ABSENT, "mfa", [1], {"mfa": 1}, ["x"] * 33])
def test_amr_of_another_form_says_nothing(amr: Any) -> None:
    """RFC 8176 has a list of texts; anything else confirms nothing, and refuses nothing."""
    token = verified(issuer().bearer(amr=amr, auth_time="now"))
    assert isinstance(token, Token)
    assert (token.authenticated_by, token.authenticated_at) == (frozenset(), None)


def test_issuers_word_is_read() -> None:
    """Methods and time as they stand."""
    token = verified(issuer().bearer(amr=["pwd", "otp"], auth_time=int(AT.timestamp()) - 60))
    assert isinstance(token, Token)
    assert (token.authenticated_by, token.authenticated_at) == ({"pwd", "otp"}, AT - timedelta(seconds=60))


def test_keys_are_told_apart_by_their_fingerprints() -> None:
    """A fingerprint is the key's own, whatever its `kid`."""
    one, renamed, other = issuer(), Issuer("EdDSA", issuer().private_key, "k2"), issuer("EdDSA", "other")
    assert one.trusted().fingerprint == renamed.trusted().fingerprint != other.trusted().fingerprint
    assert verifier(one, other).issuer_keys() == {one.trusted().fingerprint, other.trusted().fingerprint}
