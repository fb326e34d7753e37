"""Tokens for trials: what `tokens issue` signs is what a worker's verifier takes, for every type of key; everything else is refused."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from infra.settings import Settings
from infra.trusted_keys import token_verifier
from pipeline.model.refusal import Refusal
from pipeline.requests.authentication import Token
from tests.integration.administered import run_command
from tests.orchestrator import Ended

SECRET = "s3cret-of-a-trial-with-more-than-32-bytes"
_PRIVATE = {
    "RS256": lambda: rsa.generate_private_key(public_exponent=65_537, key_size=2_048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


def pem(key: object, password: bytes | None = None) -> bytes:
    assert isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey)
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def public_pem(key: object) -> bytes:
    assert isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey)
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def files(directory: Path, algorithm: str) -> tuple[Path, Path]:
    """The signing key's file, and the file that workers verify with."""
    signing, trusted = directory / "signing", directory / "trusted"
    if algorithm == "HS256":
        signing.write_text(f"{SECRET}\n")
        trusted.write_text(f"{SECRET}\n")
    else:
        key = _PRIVATE[algorithm]()
        signing.write_bytes(pem(key))
        trusted.write_bytes(public_pem(key))
    signing.chmod(0o600)
    return signing, trusted


def issue(directory: Path, signing: Path, *options: str, **settings: str) -> Ended:
    arguments = ("tokens", "issue", "alice", "--signing-key", str(signing), *options)
    return run_command(*arguments, given="", settings=settings, directory=directory)


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256", "EdDSA"])
def test_token_is_taken_by_a_worker_with_the_same_settings(tmp_path: Path, algorithm: str) -> None:
    """Standard output is the token alone; user, scopes and end are what was asked for; without a service in reach."""
    signing, trusted = files(tmp_path, algorithm)
    before = datetime.now(UTC)
    rules = {"TOKEN_KEYS_FILE": str(trusted), "TOKEN_ISSUER": "trial", "TOKEN_AUDIENCE": "here"}
    ended = issue(tmp_path, signing, "--scope", "trade,withdraw", "--scope", "operate", "--hours", "2", **rules)
    assert ended.code == 0, ended.errors
    assert "warning" not in ended.errors
    token = ended.output.removesuffix("\n")
    assert jwt.get_unverified_header(token)["alg"] == algorithm
    verifier = token_verifier(Settings(token_keys_file=trusted, token_issuer="trial", token_audience="here"))
    found = verifier.verify(f"Bearer {token}".encode(), before + timedelta(seconds=1))
    assert isinstance(found, Token), found
    assert (found.user_id, found.scopes) == ("alice", frozenset({"trade", "withdraw", "operate"}))
    assert timedelta(hours=2) - timedelta(seconds=2) <= found.expires_at - before <= timedelta(hours=2, seconds=60)
    assert isinstance(verifier.verify(f"Bearer {token}".encode(), before + timedelta(hours=3)), Refusal)


def test_token_that_workers_would_refuse_is_warned_of(tmp_path: Path) -> None:
    """Another key is trusted here: the token is made, and what would become of it is told."""
    signing, _ = files(tmp_path, "EdDSA")
    other = tmp_path / "other"
    other.write_bytes(public_pem(_PRIVATE["EdDSA"]()))
    ended = issue(tmp_path, signing, TOKEN_KEYS_FILE=str(other))
    assert (ended.code, "would refuse it" in ended.errors) == (0, True)
    assert "TOKEN_KEYS_FILE is not set" in issue(tmp_path, signing).errors
    assert "cannot verify it" in issue(tmp_path, signing, TOKEN_KEYS_FILE=str(tmp_path / "none")).errors


def test_token_names_the_key_it_is_signed_with(tmp_path: Path) -> None:
    """Where workers trust a set of keys, the `kid` chooses."""
    signing, _ = files(tmp_path, "ES256")
    document = issue(tmp_path, signing, "--key-id", "trial-1", "--json").json
    assert (document["user_id"], document["scopes"]) == ("alice", ["trade"])
    assert jwt.get_unverified_header(document["token"])["kid"] == "trial-1"


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_signing_key_that_others_can_read_is_warned_of(tmp_path: Path, mode: int) -> None:
    """Whoever reads it can trade for anybody."""
    signing, _ = files(tmp_path, "HS256")
    assert "can be read by others" not in issue(tmp_path, signing).errors
    signing.chmod(mode)
    assert "can be read by others" in issue(tmp_path, signing).errors


def test_signing_key_that_cannot_sign_is_refused_without_a_word_of_it(tmp_path: Path) -> None:
    """A public key, one behind a password, a weak one, another curve, a short secret, a JWK set: exit code 2, and nothing is printed."""
    weak = rsa.generate_private_key(public_exponent=65_537, key_size=1_024)  # noqa: S505 — that is what is refused
    key = _PRIVATE["ES256"]()
    other_curve = ec.generate_private_key(ec.SECP384R1())
    cases = {
        b"short": "has 5 bytes",
        public_pem(key): "no private key in PEM",
        pem(key, b"password"): "encrypted with a password",
        pem(weak): "1024 bits",
        pem(other_curve): "not RSA, of the curve P-256 or Ed25519",
        b"-----BEGIN PRIVATE KEY-----\nc3VyZWx5IG5vbmU=\n-----END PRIVATE KEY-----\n": "no private key in PEM",  # not a secret: none
        b'{"keys": []}': "A JWK set cannot sign",
        b'{"keys": [': "no JWK set",
        b"x" * 70_000: "larger than a key",
    }
    for content, says in cases.items():
        file = tmp_path / "key"
        file.write_bytes(content)
        file.chmod(0o600)
        ended = issue(tmp_path, file)
        assert (ended.code, ended.output) == (2, ""), (says, ended)
        assert says in ended.errors
        assert "Traceback" not in ended.errors
        for line in content.decode().splitlines():
            assert len(line) < 20 or line not in ended.errors
