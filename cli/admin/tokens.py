"""`tokens issue`: a token for trials and development, signed here, where no identity provider issues them.

Invariants:
1. Standard output has the token and nothing else; nothing of the key is in any message.
2. The key's type chooses the algorithm; there is no way to ask for `none`.

Start with `issue`.
"""

import stat
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cli.access.administration import user_id_of
from cli.access.credentials import usage
from cli.access.installation import Installation
from cli.terminal.output import say, to_json, to_text, write_line
from infra.settings import Settings
from infra.trusted_keys import RSA_BITS_MIN, TrustedKeysError, read_trusted_keys, token_verifier
from pipeline.model.session import SESSION_CLAIM_LENGTH_MAX
from pipeline.requests.authentication import Scope, Token

_FILE_BYTES_MAX: Final = 65_536
_HOURS_MAX: Final = 24 * 366
_PEM: Final = b"-----BEGIN "

SigningKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | bytes


def read_signing_key(file: Path) -> tuple[SigningKey, str]:
    """A private key in PEM or an HMAC secret, with the one algorithm that it is for. Raises CommandFailed, whose text has nothing of it."""
    try:
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            say(f"warning: {file} can be read by others on this machine, who could issue tokens as well. chmod 600 {file}")
        with file.open("rb") as opened:
            content = opened.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise usage(f"The signing key in {file} cannot be read ({error.strerror}).") from error
    if len(content) > _FILE_BYTES_MAX:
        raise usage(f"{file} is larger than a key can be.")
    return _private_key(content, file) if _PEM in content else (_secret(content, file), "HS256")


def _secret(content: bytes, file: Path) -> bytes:
    """As the verifier reads it: the same file serves both."""
    problem = ""
    try:
        trusted = read_trusted_keys(content).keys
    except TrustedKeysError as error:
        # Not chained: the error may hold the file's content.
        problem = str(error)
    if problem:
        raise usage(f"{file} cannot be used to sign: {problem}.")
    key = trusted[0].key.key if len(trusted) == 1 else None
    if not isinstance(key, bytes):
        raise usage(f"{file} holds no private key and no single HMAC secret. A JWK set cannot sign: give the private key in PEM.")
    return key


def _private_key(content: bytes, file: Path) -> tuple[SigningKey, str]:
    key: object = None
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        problem = "its private key is encrypted with a password: give one without"
    except (ValueError, UnsupportedAlgorithm):
        problem = "it is no private key in PEM"
    else:
        problem = "its key is not RSA, of the curve P-256 or Ed25519"
    if isinstance(key, RSAPrivateKey):
        if key.key_size >= RSA_BITS_MIN:
            return key, "RS256"
        problem = f"its RSA key has {key.key_size} bits and can be broken; at least {RSA_BITS_MIN} are taken"
    if isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1):
        return key, "ES256"
    if isinstance(key, Ed25519PrivateKey):
        return key, "EdDSA"
    raise usage(f"{file} cannot be used to sign: {problem}.")


def scopes_of(texts: list[str]) -> list[str]:
    """Scopes from words that may stand together, `trade,withdraw`. Raises CommandFailed."""
    words = list(dict.fromkeys(word for text in texts for word in text.replace(",", " ").split()))
    known = {scope.value for scope in Scope}
    if not words or not known.issuperset(words):
        raise usage(f"--scope takes {', '.join(sorted(known))}, also several of them.")
    return words


async def issue(
    installation: Installation,
    user_id: str,
    *,
    scopes: list[str],
    hours: float,
    signing_key: Path,
    key_id: str | None,
    session: str | None = None,
    as_json: bool,
) -> None:
    """Prints a token; `session` is its `sid`, None for a new one. Raises CommandFailed."""
    user_id, words = user_id_of(user_id), scopes_of(scopes)
    if not 0 < hours <= _HOURS_MAX:
        raise usage(f"--hours takes more than 0 and at most {_HOURS_MAX}.")
    if session is not None and not 0 < len(session) <= SESSION_CLAIM_LENGTH_MAX:
        raise usage(f"--session takes 1 to {SESSION_CLAIM_LENGTH_MAX} characters.")
    key, algorithm = read_signing_key(signing_key)
    settings = installation.settings
    now = datetime.now(UTC)
    expires_at = now + timedelta(hours=hours)
    claims = {
        "sub": user_id,
        "scope": " ".join(words),
        "iat": int(now.timestamp()),
        "nbf": int(now.timestamp()),
        "exp": int(expires_at.timestamp()),
        "jti": uuid.uuid4().hex,
        "sid": session or uuid.uuid4().hex,
        **({} if settings.token_issuer is None else {"iss": settings.token_issuer}),
        **({} if settings.token_audience is None else {"aud": settings.token_audience}),
    }
    token = jwt.encode(claims, key, algorithm, headers={} if key_id is None else {"kid": key_id})
    write_line(to_json({"token": token, "user_id": user_id, "scopes": words, "expires_at": expires_at}) if as_json else token)
    say(f"A token of {user_id} for {' and '.join(words)}, until {to_text(expires_at)}. Send it as the header `authorization: Bearer …`.")
    _compare(settings, token, now)


def _compare(settings: Settings, token: str, now: datetime) -> None:
    """Says so where this installation's own workers would not take the token."""
    if settings.token_keys_file is None:
        say("note: ORCHESTRATOR_TOKEN_KEYS_FILE is not set here, so it is not known whether workers trust this key.")
        return
    try:
        found = token_verifier(settings).verify(f"Bearer {token}".encode(), now)
    except TrustedKeysError as error:
        say(f"warning: workers cannot verify it: {error}")
        return
    if not isinstance(found, Token):
        say(f"warning: workers of this installation would refuse it: {found.reason}")
