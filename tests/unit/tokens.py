"""Issues tokens for tests: a key pair per algorithm, made once per process, and tokens with whatever header and claims a test wants."""

from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

import orjson
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt import PyJWK
from jwt.algorithms import Algorithm, get_default_algorithms

from pipeline.requests.authentication import TokenRules, TokenVerifier, TrustedKey, TrustedKeys

AT: Final = datetime(2026, 11, 24, 7, 0, tzinfo=UTC)
ISSUER: Final = "https://issuer.example"
AUDIENCE: Final = "orchestrator"
LEEWAY: Final = timedelta(seconds=30)
RULES: Final = TokenRules(ISSUER, AUDIENCE, LEEWAY)
CLAIMS: Final[dict[str, Any]] = {
    "sub": "alice",
    "iss": ISSUER,
    "aud": AUDIENCE,
    "iat": int(AT.timestamp()) - 60,
    "exp": int(AT.timestamp()) + 300,
    "scope": "trade withdraw",
}
# A claim or header that a test leaves out.
ABSENT: Final = object()


@dataclass(frozen=True)
class Issuer:
    """A private key, the algorithm it signs with, and its `kid`."""

    algorithm: str
    private_key: Any
    key_id: str | None

    @property
    def signer(self) -> Algorithm:
        return get_default_algorithms()[self.algorithm]

    def jwk(self) -> dict[str, Any]:
        """The public half as a JWK, or the secret itself."""
        public = self.private_key if isinstance(self.private_key, bytes) else self.private_key.public_key()
        members: dict[str, Any] = self.signer.to_jwk(public, as_dict=True)
        return members | ({} if self.key_id is None else {"kid": self.key_id})

    def private_jwk(self) -> dict[str, Any]:
        members: dict[str, Any] = self.signer.to_jwk(self.private_key, as_dict=True)
        return members | {"kid": self.key_id}

    def public_pem(self) -> bytes:
        pem: bytes = self.private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem

    def private_pem(self) -> bytes:
        pem: bytes = self.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem

    def trusted(self) -> TrustedKey:
        return TrustedKey(self.key_id, self.algorithm, PyJWK(self.jwk(), self.algorithm))

    def signed(self, header: Mapping[str, Any], payload: bytes) -> bytes:
        """A JWS with exactly this header and payload, whatever they say."""
        signed = b".".join((base64url(orjson.dumps(header)), base64url(payload)))
        return signed + b"." + base64url(self.signer.sign(signed, self.private_key))

    def token(self, header: Mapping[str, Any] | None = None, **claims: Any) -> bytes:
        """A token that holds at `AT`, but for what is given here. `ABSENT` leaves a claim or a header out."""
        head = {"alg": self.algorithm, "typ": "JWT", "kid": self.key_id or ABSENT} | dict(header or {})
        return self.signed(_present(head), orjson.dumps(_present(CLAIMS | claims)))

    def bearer(self, header: Mapping[str, Any] | None = None, **claims: Any) -> bytes:
        """The `authorization` header with such a token."""
        return b"Bearer " + self.token(header, **claims)


def _present(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not ABSENT}


def base64url(content: bytes) -> bytes:
    return urlsafe_b64encode(content).rstrip(b"=")


_NEW_KEY: Final[dict[str, Callable[[], Any]]] = {
    "HS256": lambda: b"a secret for tests, of 32 bytes or more",
    "RS256": lambda: rsa.generate_private_key(65_537, 2_048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


@cache
def issuer(algorithm: str = "EdDSA", key_id: str | None = "k1") -> Issuer:
    """The issuer with this algorithm and `kid`; the same one within a process."""
    return Issuer(algorithm, _NEW_KEY[algorithm](), key_id)


def verifier(*issuers: Issuer, rules: TokenRules = RULES, tokens_max: int = 100) -> TokenVerifier:
    """A verifier that trusts these issuers."""
    keys = TrustedKeys(each.trusted() for each in issuers)
    return TokenVerifier(lambda: keys, rules, tokens_max)
