"""Tokens: who sends a request, and what they may ask for. A JWT (RFC 7519) in the `authorization` header, as a Bearer token (RFC 6750).

Owns the rules that a token must keep. Where the keys come from is infra/trusted_keys.py. Invariants:
1. One key has one algorithm, and a token's `alg` never chooses how a key is used (RFC 8725, 3.1 and 3.2).
2. Times are compared with the broker's append time, never with a clock, and anew for every record, however well the token is known.
3. What was verified with one set of keys is forgotten as soon as there is another set.
4. No part of a token or of a key is in a refusal, in a repr or, but for its digest, in the store of known tokens.
5. Only verified tokens are remembered, and at most `TOKENS_MAX`: whoever sends bad ones takes no memory.

PyJWT's algorithms check the signatures. Its `decode` is not used, as it reads a token byte by byte in Python: it would take longer than the
signature, up to 0.3 ms for a bad token of 8 KiB, which anybody may send who may write to the topic.

Start at `TokenVerifier.verify`.
"""

import hashlib
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Final

import orjson
from jwt import PyJWK

from pipeline.model.refusal import Refusal
from pipeline.model.session import SESSION_CLAIM_LENGTH_MAX, session_id_of
from schemas.reasons import ReasonCode
from schemas.requests import is_reserved
from schemas.times import MICROSECONDS_END

ALGORITHMS: Final = ("HS256", "RS256", "ES256", "EdDSA")
TOKEN_BYTES_MAX: Final = 8_192
# About 0.6 KiB each, whatever the token's size. More users than this at once have their tokens' signatures checked again.
TOKENS_MAX: Final = 131_072

_HEADER: Final = "authorization"
_SCHEME: Final = b"bearer "
# RFC 7515, 7.1: three parts in base64url without padding.
_COMPACT: Final = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# RFC 8725, 3.11: other kinds of tokens of the same issuer (a sign-out, a proof of possession …) name their kind here, and are not for this.
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# What a number of JSON becomes; RFC 7519 lets seconds have fractions.
_SECONDS: Final = (int, float)
# The end of what any moment may be: a leeway can still be added.
_SECONDS_MAX: Final = MICROSECONDS_END // 1_000_000


# Where issuers put what a token allows: RFC 8693, 4.2 (`scope`), and the names that widely used identity providers have for the same.
_SCOPE_CLAIMS: Final = ("scope", "scp", "permissions")
_SCOPE_WORDS_MAX: Final = 1_000
# Claims of RFC 8176 (`amr`): more of them say nothing more.
_METHODS_MAX: Final = 32


class Scope(StrEnum):
    """What a token may be for: words of the claims that name its scope. Other words there mean nothing here."""

    TRADE = "trade"
    WITHDRAW = "withdraw"
    OPERATE = "operate"


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key that tokens may be signed with: its `kid`, the one algorithm it is for, the key. Raises ValueError when they do not agree."""

    key_id: str | None
    algorithm: str
    key: PyJWK = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """What tells this key from every other, without saying anything about it: 32 hexadecimal digits."""
        return _fingerprint(self.key)

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS or self.key.algorithm_name != self.algorithm:
            raise ValueError(f"a trusted key must be for one of {', '.join(ALGORITHMS)}, and made for that one")


@lru_cache(maxsize=1_024)
def _fingerprint(key: PyJWK) -> str:
    # The whole of an HMAC secret is in its digest, which nobody can turn round: a secret has 256 bits (infra/trusted_keys).
    members = key.Algorithm.to_jwk(key.key, as_dict=True)
    identity = {name: value for name, value in members.items() if name not in {"kid", "alg", "use", "key_ops"}}
    return hashlib.sha256(b"issuer key\0" + orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


class TrustedKeys:
    """A set of keys, found by `kid`. Raises ValueError when two have one id, or one of several has none."""

    def __init__(self, keys: Iterable[TrustedKey]) -> None:
        self.keys: Final = tuple(keys)
        self.fingerprints: Final = frozenset(key.fingerprint for key in self.keys)
        self._by_id = {key.key_id: key for key in self.keys}
        if len(self._by_id) != len(self.keys):
            raise ValueError("two keys have the same `kid`: which of them a token means would be a guess")
        if len(self.keys) > 1 and None in self._by_id:
            raise ValueError("a key among several has no `kid`: no token could name it")

    def named(self, key_id: str | None) -> TrustedKey | None:
        """The key that a token's `kid` names, None for a key that is not trusted.

        A set of one key is meant by a token without `kid`; a key without an id (a PEM or secret file has none) by any `kid`.
        """
        if len(self.keys) == 1 and (key_id is None or self.keys[0].key_id is None):
            return self.keys[0]
        return None if key_id is None else self._by_id.get(key_id)

    def __repr__(self) -> str:
        return f"TrustedKeys({', '.join(f'{key.key_id}: {key.algorithm}' for key in self.keys)})"


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What tokens must say: `iss` and `aud` (None: see `_audience_refusal`), and how far the issuer's clock may be off the broker's.

    `scope_claim` names the one claim that says what a token allows; None: all of `scope`, `scp` and `permissions` do.
    """

    issuer: str | None
    audience: str | None
    leeway: timedelta
    scope_claim: str | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A token that holds: whose it is (`sub`), what it allows, and when it expires (UTC, without leeway).

    `session_id` stands for its user and its `sid`, None without one; `issuer_key` is the fingerprint of the key that signed it.
    `authenticated_by` (`amr`, RFC 8176) and `authenticated_at` (`auth_time`, UTC) are the issuer's word on how and when its user was
    last asked; empty and None where it says nothing that can be used.
    """

    user_id: str
    scopes: frozenset[str]
    expires_at: datetime
    session_id: str | None = None
    issuer_key: str = ""
    authenticated_by: frozenset[str] = frozenset()
    authenticated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """A token whose signature and claims hold, and the times between which it does; the leeway is in them."""

    token: Token
    valid_from: datetime
    valid_until: datetime


def _invalid(reason: str) -> Refusal:
    return Refusal(ReasonCode.AUTH_TOKEN_INVALID, f"{reason}; nothing was executed")


_MISSING: Final = Refusal(
    ReasonCode.AUTH_TOKEN_MISSING,
    "the record has no `authorization` header; nothing was executed. Send `Bearer` and a token in it, with the same value and key.",
)
_EXPIRED: Final = Refusal(
    ReasonCode.AUTH_TOKEN_EXPIRED,
    "the token had expired when the broker appended the record; nothing was executed. Get a new token and send the request again.",
)
_EARLY: Final = _invalid("the token was not valid yet (`nbf`, `iat`) when the broker appended the record: compare the issuer's clock")


def authorization_of(headers: Iterable[tuple[str, bytes]]) -> bytes | Refusal | None:
    """The value of the record's `authorization` header, whatever the case of its name; None when there is none.

    Kafka lets a header come twice. Two that differ are refused: which of them the sender means would be a guess.
    """
    found: bytes | None = None
    for name, value in headers:
        if name == _HEADER or name.lower() == _HEADER:
            if found is not None and found != value:
                return _invalid("the record has two `authorization` headers that differ")
            found = value
    return found


def user_refusal(token: Token, user_id: str) -> Refusal | None:
    """Refuses a request that names another user than the token does."""
    if token.user_id == user_id:
        return None
    return Refusal(
        ReasonCode.AUTH_USER_MISMATCH,
        "`user_id` is not the token's `sub`; nothing was executed. Send the request with a token of the user who trades.",
    )


def scope_refusal(token: Token, scope: Scope) -> Refusal | None:
    """Refuses what needs a scope that the token does not have."""
    if scope in token.scopes:
        return None
    return _invalid(f"the token's `scope` lacks `{scope}`, which this needs: get a token that has it")


def session_claim_refusal(token: Token) -> Refusal | None:
    """Refuses what is about a session when the token names none."""
    if token.session_id is not None:
        return None
    return _invalid(f"the token has no `sid` (a text of up to {SESSION_CLAIM_LENGTH_MAX} characters), which a session is bound to")


class TokenVerifier:
    """Verifies tokens with the keys that are trusted at the moment.

    `keys` is asked for every record and gives the same object until the keys change. Not for use by several threads at once.
    """

    def __init__(self, keys: Callable[[], TrustedKeys], rules: TokenRules, tokens_max: int = TOKENS_MAX) -> None:
        self._keys = keys
        self._rules = rules
        self._tokens_max = tokens_max
        self._trusted: TrustedKeys | None = None
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    def issuer_keys(self) -> frozenset[str]:
        """The fingerprints of the keys that are trusted now."""
        return self._keys().fingerprints

    def verify(self, authorization: bytes | None, at: datetime) -> Token | Refusal:
        """The token in an `authorization` header, or why it does not hold. `at`: the broker's append time, UTC. Never raises for input."""
        trusted = self._keys()
        if trusted is not self._trusted:
            self._known.clear()
            self._trusted = trusted
        if not authorization:
            return _MISSING
        if len(authorization) > TOKEN_BYTES_MAX + len(_SCHEME):
            return _invalid(f"the `authorization` header is larger than a token of {TOKEN_BYTES_MAX} bytes")
        digest = hashlib.sha256(authorization).digest()
        known = self._known.get(digest)
        if known is None:
            found = self._verified(authorization, trusted)
            if isinstance(found, Refusal):
                return found
            known = self._known[digest] = found
            if len(self._known) > self._tokens_max:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(digest)
        # RFC 7519, 4.1.4 and 4.1.5: not accepted at `exp` or later, accepted from `nbf` on.
        if at >= known.valid_until:
            return _EXPIRED
        return known.token if at >= known.valid_from else _EARLY

    def _verified(self, authorization: bytes, trusted: TrustedKeys) -> _Known | Refusal:
        """Everything about a token that does not change with time."""
        token = _bearer_token(authorization)
        if isinstance(token, Refusal):
            return token
        signed, _, signature = token.rpartition(b".")
        header, _, payload = signed.partition(b".")
        head = _object(_decoded(header))
        if head is None:
            return _invalid("the token's header is no JSON object in base64url")
        key = _key_for(head, trusted)
        if isinstance(key, Refusal):
            return key
        proof = _decoded(signature)
        # The algorithm is the key's own, not the one that the token names.
        if proof is None or not key.key.Algorithm.verify(signed, key.key.key, proof):
            return _invalid("the token is not signed by a trusted key, or was changed on its way")
        return _read_claims(_decoded(payload), self._rules, key.fingerprint)


def _bearer_token(authorization: bytes) -> bytes | Refusal:
    """The token behind the scheme, whose case does not matter (RFC 9110, 11.1)."""
    credentials = authorization.strip(b" \t")
    if credentials[: len(_SCHEME)].lower() != _SCHEME:
        return _invalid("the `authorization` header must be `Bearer`, a space, and a token")
    token = credentials[len(_SCHEME) :].lstrip(b" ")
    if not _COMPACT.fullmatch(token):
        return _invalid("the token must be three parts in base64url (A–Z, a–z, 0–9, - and _, no padding), with a point between them")
    return token


def _decoded(part: bytes) -> bytes | None:
    """A part of a token, whose alphabet was looked at before. None when it is not the one way to write its bytes (RFC 4648, 3.5)."""
    try:
        # More padding than is missing does no harm.
        content = urlsafe_b64decode(part + b"==")
    except ValueError:
        return None
    return content if urlsafe_b64encode(content).rstrip(b"=") == part else None


def _object(content: bytes | None) -> dict[str, object] | None:
    try:
        found = None if content is None else orjson.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _key_for(head: dict[str, object], trusted: TrustedKeys) -> TrustedKey | Refusal:
    """The key that a token's header names. What the header says about itself (`jwk`, `jku`, `x5c` …) is never looked at."""
    if "crit" in head or "b64" in head:
        # RFC 7515, 4.1.11: whoever does not understand an extension that is critical must refuse. RFC 7797, 7: a JWT has no `b64`.
        return _invalid("the token needs an extension (`crit`, `b64`) that is not known here")
    kind = head.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        return _invalid("the token's `typ` is not that of an access token (`JWT` or `at+jwt`)")
    key_id = head.get("kid")
    if key_id is not None and not isinstance(key_id, str):
        return _invalid("the token's `kid` is no text")
    key = trusted.named(key_id)
    if key is None:
        if key_id is None:
            return _invalid("the token has no `kid`, and there is not exactly one trusted key that it could mean")
        return _invalid("the token's `kid` names no trusted key: it was rotated out, or the token is another issuer's")
    if head.get("alg") != key.algorithm:
        return _invalid(f"the token's `alg` is not {key.algorithm}, which its key is for")
    return key


def _read_claims(payload: bytes | None, rules: TokenRules, issuer_key: str) -> _Known | Refusal:
    """What a token with a good signature says, or which of its claims is wrong."""
    claims = _object(payload)
    if claims is None:
        return _invalid("the token's claims are no JSON object")
    user_id = claims.get("sub")
    if not isinstance(user_id, str) or not user_id:
        return _invalid("the token has no `sub` that names a user")
    if is_reserved(user_id):
        return _invalid("the token's `sub` begins with @, as the system's own accounts do: nobody acts under their names")
    expires_at, issued_at = _date(claims.get("exp")), _date(claims.get("iat"))
    not_before = _date(claims.get("nbf", 0))
    if expires_at is None or issued_at is None or not_before is None:
        return _invalid("the token needs `exp` and `iat`, which must be seconds since 1970 as numbers, as must `nbf`")
    if rules.issuer is not None and claims.get("iss") != rules.issuer:
        return _invalid("the token's `iss` is not the issuer that is trusted here")
    refusal = _audience_refusal(claims.get("aud"), rules.audience)
    if refusal is not None:
        return refusal
    scopes = _scopes_in(claims, _SCOPE_CLAIMS if rules.scope_claim is None else (rules.scope_claim,))
    if isinstance(scopes, Refusal):
        return scopes
    named = claims.get("sid")
    # One that is no text of a session's length is none: what other issuers use it for is no reason to refuse their tokens.
    names_session = isinstance(named, str) and 0 < len(named) <= SESSION_CLAIM_LENGTH_MAX
    return _Known(
        Token(
            user_id,
            scopes,
            expires_at,
            session_id_of(user_id, named) if isinstance(named, str) and names_session else None,
            issuer_key,
            _methods(claims.get("amr")),
            _date(claims.get("auth_time")),
        ),
        valid_from=max(issued_at, not_before) - rules.leeway,
        valid_until=expires_at + rules.leeway,
    )


def _scopes_in(claims: dict[str, object], names: tuple[str, ...]) -> frozenset[str] | Refusal:
    """The words that the named claims hold: a text of words, or a list of them (but `scope`, which RFC 8693 has as a text)."""
    found: frozenset[str] = frozenset()
    for name in names:
        if name not in claims:
            continue
        value = claims[name]
        if isinstance(value, str):
            found |= _scopes(value)
        elif name != "scope" and isinstance(value, list) and len(value) <= _SCOPE_WORDS_MAX and all(isinstance(one, str) for one in value):
            found |= _scopes(" ".join(value))
        else:
            how = "" if name == "scope" else ", or a list of them"
            return _invalid(f"the token's `{name}` must be words with spaces between them{how}")
    return found


@lru_cache(maxsize=256)
def _scopes(text: str) -> frozenset[str]:
    """The words of a claim. Kept, so that tokens with the same words share one set."""
    return frozenset(word for word in text.split(" ") if word)


def _methods(value: object) -> frozenset[str]:
    """The values of an `amr` claim (RFC 8176); empty for anything else, which then confirms nothing."""
    if not isinstance(value, list) or len(value) > _METHODS_MAX or not all(isinstance(one, str) for one in value):
        return frozenset()
    return _scopes(" ".join(value))


def _audience_refusal(audience: object, wanted: str | None) -> Refusal | None:
    """RFC 7519, 4.1.3: `aud` is a text or a list of them, and whoever is not named in it must refuse, who has no name too."""
    named = audience if isinstance(audience, list) else [] if audience is None else [audience]
    if not all(isinstance(name, str) for name in named):
        return _invalid("the token's `aud` must be a text or a list of them")
    if wanted is None:
        return _invalid("the token is for an audience (`aud`), and this installation was given no name of its own") if named else None
    return None if wanted in named else _invalid("the token's `aud` does not name this installation")


def _date(value: object) -> datetime | None:
    """A NumericDate (RFC 7519, section 2): seconds since 1970, a JSON number that need not be whole. None for anything else."""
    if isinstance(value, bool) or not isinstance(value, _SECONDS) or not 0 <= value < _SECONDS_MAX:
        return None
    return _EPOCH + timedelta(seconds=value)
