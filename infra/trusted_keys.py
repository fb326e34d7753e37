"""The keys that tokens may be signed with, from one file: a public key in PEM, a JWK set (RFC 7517) or an HMAC secret.

Invariants:
1. A weak key (an HMAC secret below 32 bytes, RSA below 2048 bits) and a private key are refused when the file is read.
2. A file that cannot be read any more leaves the keys that were read last, and says so once. One that names no key trusts nobody.
3. Nothing of a key but its id and algorithm is in an error, a log line or a repr. That is why errors of libraries, whose texts and
   attributes may hold the file's content, are not chained.

Start at `TrustedKeyFile`.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import orjson
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWK, PyJWTError
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm

from infra.settings import Settings
from pipeline.requests.authentication import TokenRules, TokenVerifier, TrustedKey, TrustedKeys

FILE_BYTES_MAX: Final = 1_048_576
LOOK_INTERVAL_SECONDS: Final = 1.0
# RFC 7518, 3.2 and 3.3.
SECRET_BYTES_MIN: Final = 32
RSA_BITS_MIN: Final = 2_048

_PEM: Final = b"-----BEGIN "
_PRIVATE_TEXT: Final = (
    "it holds a private key, with which anybody who reads it could issue tokens. Put the public key there: `openssl pkey -pubout`"
)
# Type and curve of a JWK → the one algorithm that it may be for.
_JWK_ALGORITHMS: Final[dict[tuple[str, str | None], str]] = {
    ("oct", None): "HS256",
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}

_log = structlog.get_logger(__name__)


class TrustedKeysError(Exception):
    """There are no keys that tokens could be verified with: without them nobody may trade."""


class TrustedKeyFile:
    """The keys in a file. Raises TrustedKeysError when it cannot be read at first.

    `monotonic` counts seconds. The file is looked at no more than once in `LOOK_INTERVAL_SECONDS`, and read when it changed.
    """

    def __init__(self, path: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._monotonic = monotonic
        self._looked_at = monotonic()
        self._failing = False
        self._state, self._keys = self._read()
        if not self._keys.keys:
            raise TrustedKeysError(f"{path} names no key that tokens could be signed with: nobody could trade")

    def current(self) -> TrustedKeys:
        """The keys trusted now: the same object until the file changes."""
        now = self._monotonic()
        if now - self._looked_at >= LOOK_INTERVAL_SECONDS:
            self._looked_at = now
            self._look()
        return self._keys

    def _look(self) -> None:
        try:
            if not self._failing and self._state == _state_of(self._path):
                return
            self._state, self._keys = self._read()
        except (TrustedKeysError, OSError) as error:
            if not self._failing:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                _log.warning("the keys for tokens cannot be read any more; those that were read last stay trusted", reason=reason)
            self._failing = True
            return
        self._failing = False

    def _read(self) -> tuple[tuple[int, int, int], TrustedKeys]:
        try:
            # Before the content: a change between the two is seen at the next look.
            state = _state_of(self._path)
            with self._path.open("rb") as file:
                content = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise TrustedKeysError(
                f"{self._path} cannot be read ({error.strerror}): no token could be verified, so nobody could trade. "
                "ORCHESTRATOR_TOKEN_KEYS_FILE must name the file with the keys."
            ) from error
        problem = None
        try:
            keys = read_trusted_keys(content)
        except TrustedKeysError as error:
            problem = str(error)
        if problem is not None:
            raise TrustedKeysError(f"{self._path} cannot be used for tokens: {problem}")
        tell = _log.info if keys.keys else _log.warning
        tell("keys for tokens read" if keys.keys else "no key is trusted any more: every token is refused", keys=repr(keys))
        return state, keys


def _state_of(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written or replaced."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def read_trusted_keys(content: bytes) -> TrustedKeys:
    """The keys in a file's content: JSON is a JWK set, PEM is one public key, anything else is an HMAC secret. Raises TrustedKeysError."""
    if len(content) > FILE_BYTES_MAX:
        raise TrustedKeysError(f"it is larger than {FILE_BYTES_MAX} bytes")
    if content.lstrip().startswith(b"{"):
        return _jwk_set(content)
    if _PEM in content:
        return TrustedKeys([_pem_key(content)])
    return TrustedKeys([_secret_key(content)])


def _secret_key(content: bytes) -> TrustedKey:
    """An HMAC secret. A text's last line end is not part of it; other bytes are taken as they are."""
    secret = content
    text = content.removesuffix(b"\n").removesuffix(b"\r")
    if text.isascii() and text.decode().isprintable():
        secret = text
    _require_secret(secret)
    problem = False
    try:
        # Refuses what is a public key in another form: its bytes are known to everybody.
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except PyJWTError:
        problem = True
    if problem:
        raise TrustedKeysError("it is no secret but a public key in a form that is not read here: give it in PEM, or in a JWK set")
    return _trusted(None, HMACAlgorithm.to_jwk(secret, as_dict=True), "HS256")


def _require_secret(secret: bytes) -> None:
    if len(secret) < SECRET_BYTES_MIN:
        raise TrustedKeysError(
            f"the HMAC secret has {len(secret)} bytes and can be guessed; it must have at least {SECRET_BYTES_MIN} (RFC 7518, 3.2). "
            "Make one with `openssl rand -base64 48`"
        )


def _require_modulus(bits: int) -> None:
    if bits < RSA_BITS_MIN:
        raise TrustedKeysError(f"the RSA key has {bits} bits and can be broken; it must have at least {RSA_BITS_MIN} (RFC 7518, 3.3)")


def _pem_key(content: bytes) -> TrustedKey:
    if b"PRIVATE KEY-----" in content:
        raise TrustedKeysError(_PRIVATE_TEXT)
    if b"CERTIFICATE-----" in content:
        raise TrustedKeysError("it holds a certificate. Put the public key there: `openssl x509 -pubkey -noout`")
    if content.count(_PEM) > 1:
        raise TrustedKeysError("it holds several keys, and PEM has no ids to tell them apart by: put them into a JWK set")
    key: object = None
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, RSAPublicKey):
        _require_modulus(key.key_size)
        return _trusted(None, RSAAlgorithm.to_jwk(key, as_dict=True), "RS256")
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return _trusted(None, ECAlgorithm.to_jwk(key, as_dict=True), "ES256")
    if isinstance(key, Ed25519PublicKey):
        return _trusted(None, OKPAlgorithm.to_jwk(key, as_dict=True), "EdDSA")
    raise TrustedKeysError("it is no public key of RSA, of the curve P-256 or of Ed25519 in PEM")


def _jwk_set(content: bytes) -> TrustedKeys:
    document: Any = None
    try:
        document = orjson.loads(content)
    except ValueError:
        document = None
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
        raise TrustedKeysError('it is no JWK set: JSON of the form {"keys": [{"kty": …, "kid": …}, …]}')
    keys = [key for number, member in enumerate(members, 1) if (key := _jwk(number, member)) is not None]
    try:
        return TrustedKeys(keys)
    except ValueError as error:
        raise TrustedKeysError(str(error)) from error


def _jwk(number: int, member: dict[str, Any]) -> TrustedKey | None:
    """One key of a set. None for one that is not for this: RFC 7517, section 5 has keys ignored whose type or use is not known."""
    kind, curve = member.get("kty"), member.get("crv")
    if kind != "oct" and "d" in member:
        raise TrustedKeysError(f"key {number}: {_PRIVATE_TEXT}")
    algorithm = next((name for (of, on), name in _JWK_ALGORITHMS.items() if kind == of and on in (None, curve)), None)
    operations = member.get("key_ops", ["verify"])
    if (
        algorithm is None
        or member.get("alg", algorithm) != algorithm
        or member.get("use", "sig") != "sig"
        or not isinstance(operations, list)
        or "verify" not in operations
    ):
        _log.info("a key of the JWK set is not used: it is of another type, or for something else than verifying tokens", number=number)
        return None
    key_id = member.get("kid")
    if not isinstance(key_id, str | None):
        raise TrustedKeysError(f"key {number}: its `kid` is no text")
    try:
        key = _trusted(key_id, member, algorithm)
    except TrustedKeysError as error:
        raise TrustedKeysError(f"key {number}: {error}") from error
    return key


def _trusted(key_id: str | None, jwk: dict[str, Any], algorithm: str) -> TrustedKey:
    key: PyJWK | None = None
    try:
        key = PyJWK(jwk, algorithm)
    except (PyJWTError, KeyError, TypeError, ValueError):
        key = None
    if key is None:
        raise TrustedKeysError("it is malformed: a member is missing, or no base64url, or no point of its curve")
    if isinstance(key.key, bytes):
        _require_secret(key.key)
    elif isinstance(key.key, RSAPublicKey):
        _require_modulus(key.key.key_size)
    return TrustedKey(key_id, algorithm, key)


def token_verifier(settings: Settings) -> TokenVerifier:
    """The verifier that the settings describe. Raises TrustedKeysError when they name no file of keys or it cannot be used."""
    if settings.token_keys_file is None:
        raise TrustedKeysError(
            "set ORCHESTRATOR_TOKEN_KEYS_FILE to the file with the keys that tokens are signed with: without it nobody may trade. "
            "(Against the simulated exchange, ORCHESTRATOR_AUTHENTICATION=sandbox does without tokens.)"
        )
    leeway = timedelta(seconds=settings.token_leeway_seconds)
    rules = TokenRules(settings.token_issuer, settings.token_audience, leeway, settings.token_scope_claim)
    return TokenVerifier(TrustedKeyFile(settings.token_keys_file).current, rules)
