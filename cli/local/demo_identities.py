"""The demo's identities: an issuer of tokens and an authenticator app per user, as producers have them.

Invariants:
1. The issuer's private key and the secrets of the second factors are made for one run and kept in memory alone; workers get the public key.
2. A code is given once, and only where it is good when the broker appends the record some seconds later: this step's, or the next one's.

Start with `Identities.headers`.
"""

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import jwt
import pyotp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pipeline.model.second_factor import DIGITS, STEP_SECONDS
from pipeline.requests.authentication import Scope

ISSUER: Final = "orchestrator demo"
AUDIENCE: Final = "orchestrator demo"
# Tokens are renewed long before they expire.
_TOKEN_SECONDS: Final = 7_200
_RENEWED_SECONDS: Final = 1_800
_SCOPES: Final = f"{Scope.TRADE} {Scope.WITHDRAW}"

Headers = list[tuple[str, bytes]]


class Proof(StrEnum):
    """What a record proves of its sender, and what is wrong with it."""

    SESSION = "session"
    CODE = "code"
    OPERATOR = "operator"
    ANONYMOUS = "anonymous"
    ALTERED = "altered"
    STRANGER = "stranger"
    LATE = "late"
    FOREIGN = "foreign"
    UNSCOPED = "unscoped"
    NO_CODE = "no_code"
    WRONG_CODE = "wrong_code"
    USED_CODE = "used_code"
    OTHER_LOGIN = "other_login"


@dataclass(slots=True)
class _Authenticator:
    """One user's app. The repr shows no secret."""

    totp: pyotp.TOTP = field(repr=False)
    last_step: int = -1
    last_code: str = field(default="", repr=False)

    def code(self, now: float) -> str:
        """The next code that is good; where none is left for the moment, the newest again, which is refused as used."""
        step = max(self.last_step + 1, int(now) // STEP_SECONDS)
        if step <= int(now) // STEP_SECONDS + 1:
            self.last_step, self.last_code = step, str(self.totp.generate_otp(step))
        return self.last_code

    def wrong_code(self, now: float) -> str:
        """A code that is none of the steps around."""
        around = range(int(now) // STEP_SECONDS - 3, int(now) // STEP_SECONDS + 4)
        right = {str(self.totp.generate_otp(step)) for step in around}
        return next(code for code in (f"{guess:0{DIGITS}}" for guess in range(len(right) + 1)) if code not in right)


class Identities:
    """Tokens and codes of the users that are enrolled here. Not for use by several threads at once."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self._stranger = Ed25519PrivateKey.generate()
        self._authenticators: dict[str, _Authenticator] = {}
        self._tokens: dict[tuple[str, Proof], tuple[bytes, float]] = {}

    @property
    def public_key(self) -> bytes:
        """What workers trust, in PEM."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def enrol(self, user_id: str) -> str:
        """Makes a second factor for a user; returns its secret, base32, to be stored encrypted."""
        secret = str(pyotp.random_base32())
        self._authenticators[user_id] = _Authenticator(pyotp.TOTP(secret, digits=DIGITS, interval=STEP_SECONDS))
        return secret

    def headers(self, user_id: str | None, proof: Proof, *, now: float | None = None) -> Headers:
        """The headers that a record is sent with now. `user_id` None: it names nobody, and proves nothing."""
        if user_id is None or proof is Proof.ANONYMOUS:
            return []
        moment = time.time() if now is None else now
        headers = [("authorization", b"Bearer " + self._token(user_id, proof, moment))]
        app = self._authenticators.get(user_id)
        if app is not None and proof in {Proof.CODE, Proof.OPERATOR}:
            headers.append(("x-totp", app.code(moment).encode()))
        elif app is not None and proof is Proof.WRONG_CODE:
            headers.append(("x-totp", app.wrong_code(moment).encode()))
        elif app is not None and proof is Proof.USED_CODE:
            headers.append(("x-totp", (app.last_code or app.code(moment)).encode()))
        return headers

    def _token(self, user_id: str, proof: Proof, now: float) -> bytes:
        known = self._tokens.get((user_id, proof))
        if known is not None and now - known[1] < _RENEWED_SECONDS:
            return known[0]
        token = self._signed(user_id, proof, int(now))
        self._tokens[user_id, proof] = token, now
        return token

    def _signed(self, user_id: str, proof: Proof, now: int) -> bytes:
        claims: dict[str, object] = {
            "sub": user_id,
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": now - 1,
            "exp": now + _TOKEN_SECONDS,
            "scope": _SCOPES,
            "sid": f"login of {user_id}",
        }
        match proof:
            case Proof.LATE:
                claims |= {"iat": now - 7_200, "exp": now - 3_600}
            case Proof.FOREIGN:
                claims["sub"] = f"{user_id}-neighbour"
            case Proof.UNSCOPED:
                claims["scope"] = "openid profile"
            case Proof.OPERATOR:
                claims["scope"] = Scope.OPERATE.value
            case Proof.NO_CODE:
                del claims["sid"]
            case Proof.OTHER_LOGIN:
                claims["sid"] = f"another login of {user_id}"
        token = jwt.encode(claims, self._stranger if proof is Proof.STRANGER else self._key, "EdDSA").encode()
        if proof is Proof.ALTERED:
            # One character of the signature, not the last, whose bits may all be padding.
            place = token.rindex(b".") + 5
            token = token[:place] + (b"A" if token[place:place + 1] != b"A" else b"B") + token[place + 1:]
        return token
