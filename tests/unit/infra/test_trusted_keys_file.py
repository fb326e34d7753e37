"""The keys that tokens are verified with: which files are taken, and what happens when they change."""

import json
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from structlog.testing import capture_logs

from infra.settings import Settings
from infra.trusted_keys import FILE_BYTES_MAX, TrustedKeyFile, TrustedKeysError, read_trusted_keys, token_verifier
from pipeline.model.refusal import Refusal
from pipeline.requests.authentication import Token, TokenVerifier
from schemas.reasons import ReasonCode
from tests.unit.tokens import ABSENT, AT, AUDIENCE, ISSUER, RULES, Issuer, base64url, issuer

ASYMMETRIC = ("RS256", "ES256", "EdDSA")
SECRET = b"a secret for tests, of 32 bytes or more"


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def jwks(*members: dict[str, Any]) -> bytes:
    return orjson.dumps({"keys": list(members)})


def pem(key: Any) -> bytes:
    content: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return content


def believes(content: bytes, bearer: bytes) -> bool:
    keys = read_trusted_keys(content)
    return isinstance(TokenVerifier(lambda: keys, RULES).verify(bearer, AT), Token)


def refusal_of(content: bytes) -> str:
    with pytest.raises(TrustedKeysError) as caught:
        read_trusted_keys(content)
    return str(caught.value)


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_public_key_in_pem_verifies_its_tokens(algorithm: str) -> None:
    """RSA, P-256 and Ed25519 keys are read as openssl writes them, and are for one algorithm each."""
    by = issuer(algorithm)
    assert believes(by.public_pem(), by.bearer())
    assert not believes(by.public_pem(), by.bearer({"alg": "HS256"}))
    assert [(key.key_id, key.algorithm) for key in read_trusted_keys(b"a comment\n" + by.public_pem()).keys] == [(None, algorithm)]


def test_rsa_key_in_its_own_pem_form_is_read() -> None:
    """`BEGIN RSA PUBLIC KEY` (PKCS #1) is the same key."""
    by = issuer("RS256")
    assert believes(by.private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1), by.bearer())


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_secret_of_text_is_read_without_its_line_end(end: bytes) -> None:
    """Editors and `openssl rand` end the line; that is no part of the secret."""
    assert believes(SECRET + end, Issuer("HS256", SECRET, None).bearer())


@pytest.mark.parametrize("secret", [SECRET + b"\n\n", bytes(range(128, 160)) + b"\n", b"\x00" * 31 + b"\n"])
def test_secret_of_bytes_is_taken_as_it_is(secret: bytes) -> None:
    """Random bytes may well end like a line: nothing is taken off them."""
    assert believes(secret, Issuer("HS256", secret, None).bearer())


@pytest.mark.parametrize(
    ("form", "size"),
    [("file", 0), ("file", 1), ("file", 31), ("file with line end", 0), ("file with line end", 31), ("JWK", 1), ("JWK", 31)],
)
def test_short_secret_is_refused(form: str, size: int) -> None:
    """RFC 7518, 3.2: below 32 bytes a secret can be guessed from a token."""
    secret = b"s" * size
    content = {"file": secret, "file with line end": secret + b"\n", "JWK": jwks({"kty": "oct", "k": base64url(secret).decode()})}[form]
    assert f"has {size} bytes" in refusal_of(content)
    assert believes(b"s" * 32, Issuer("HS256", b"s" * 32, None).bearer())


@pytest.mark.parametrize("form", ["PEM", "JWK"])
def test_short_rsa_key_is_refused(form: str) -> None:
    """RFC 7518, 3.3: below 2048 bits a key can be broken."""
    weak = Issuer("RS256", rsa.generate_private_key(65_537, 1_024), "k1")  # noqa: S505  (weak is what the test is about)
    assert "1024 bits" in refusal_of(weak.public_pem() if form == "PEM" else jwks(weak.jwk()))


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_private_key_is_refused(algorithm: str) -> None:
    """A worker needs none: with it, whoever reads the file could issue tokens."""
    by = issuer(algorithm)
    assert "private key" in refusal_of(by.private_pem())
    assert "private key" in refusal_of(by.public_pem() + by.private_pem())
    assert "private key" in refusal_of(jwks(by.private_jwk()))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: pem(ec.generate_private_key(ec.SECP384R1()).public_key()), "no public key of"),
        (lambda: pem(ec.generate_private_key(ec.SECP256K1()).public_key()), "no public key of"),
        (lambda: pem(ed448.Ed448PrivateKey.generate().public_key()), "no public key of"),
        (lambda: pem(x25519.X25519PrivateKey.generate().public_key()), "no public key of"),
        (lambda: b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no public key of"),
        (lambda: b"-----BEGIN PUBLIC KEY-----", "no public key of"),
        (lambda: b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate"),
        (lambda: issuer("ES256").public_pem() + issuer("EdDSA").public_pem(), "several keys"),
        (lambda: issuer("RS256").private_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo), "public key"),
        (lambda: issuer("EdDSA").private_key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH), "public key"),
        (lambda: b"{" + b" " * FILE_BYTES_MAX, "larger"),
    ],
)
def test_file_of_another_kind_is_refused(make: Callable[[], bytes], says: str) -> None:
    """Other curves, certificates, several keys without ids, and above all public keys that would pass for a secret."""
    assert says in refusal_of(make())


@pytest.mark.parametrize("algorithm", ["HS256", *ASYMMETRIC])
@pytest.mark.parametrize("named", [True, False])
def test_jwk_without_algorithm_gets_the_only_one_of_its_type(algorithm: str, named: bool) -> None:
    """`alg` is optional (RFC 7517, 4.4), and what it may be follows from the type."""
    by = issuer(algorithm)
    content = jwks(by.jwk() | ({"alg": algorithm} if named else {}))
    assert believes(content, by.bearer())
    assert [(key.key_id, key.algorithm) for key in read_trusted_keys(content).keys] == [("k1", algorithm)]


def test_jwk_set_finds_each_key_by_its_id() -> None:
    """A set with keys of all types verifies the tokens of each, and no others."""
    issuers = [issuer(algorithm, f"key-{algorithm}") for algorithm in ("HS256", *ASYMMETRIC)]
    content = jwks(*(each.jwk() for each in issuers))
    assert [believes(content, each.bearer()) for each in issuers] == [True] * 4
    assert not believes(content, issuers[1].bearer({"kid": "key-HS256"}))
    assert not believes(content, issuers[1].bearer({"kid": "unknown"}))
    assert not believes(content, issuers[1].bearer({"kid": ABSENT}))


@pytest.mark.parametrize(
    "members",
    [
        {"use": "enc"},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"alg": "HS256"},
        {"alg": "RS512"},
        {"alg": "none"},
        {"alg": None},
        {"kty": "other"},
        {"kty": None},
        {"kty": ["RSA"]},
        {"kty": "EC", "crv": ["P-256"]},
        {"kty": "EC", "crv": "P-384"},
        {"kty": "OKP", "crv": "X25519"},
    ],
)
def test_jwk_for_something_else_is_not_trusted(members: dict[str, Any]) -> None:
    """RFC 7517, section 5: providers publish keys of other uses and types in one set; they are left out, the others stay."""
    other = issuer("RS256", "other").jwk() | members
    content = jwks(issuer().jwk(), other)
    assert [key.key_id for key in read_trusted_keys(content).keys] == ["k1"]
    assert read_trusted_keys(jwks(other)).keys == ()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "JWK set"),
        (b"{}", "JWK set"),
        (b'{"keys": {}}', "JWK set"),
        (b'{"keys": [1]}', "JWK set"),
        (b'{"kty": "oct"}', "JWK set"),
        (jwks({"kty": "oct"}), "key 1: it is malformed"),
        (jwks({"kty": "oct", "k": 1}), "key 1: it is malformed"),
        (jwks({"kty": "oct", "k": ""}), "key 1: it is malformed"),
        (jwks({"kty": "RSA", "n": "AQAB"}), "key 1: it is malformed"),
        (jwks({"kty": "EC", "crv": "P-256", "x": "AQAB", "y": "AQAB"}), "key 1: it is malformed"),
        (jwks({"kty": "OKP", "crv": "Ed25519", "x": "AQAB"}), "key 1: it is malformed"),
    ],
)
def test_malformed_jwk_set_is_refused(content: bytes, says: str) -> None:
    """A key that should be usable and is not is named, not passed over."""
    assert says in refusal_of(content)


@pytest.mark.parametrize("key_id", [1, ["k1"], True])
def test_jwk_whose_id_is_no_text_is_refused(key_id: Any) -> None:
    """No token could name it."""
    assert "`kid`" in refusal_of(jwks(issuer().jwk() | {"kid": key_id}))


def test_jwk_set_in_which_a_token_could_mean_two_keys_is_refused() -> None:
    """Two keys with one id, or a key without one among others."""
    assert "`kid`" in refusal_of(jwks(issuer().jwk(), issuer("ES256").jwk()))
    assert "`kid`" in refusal_of(jwks(issuer().jwk(), issuer("ES256", None).jwk()))


@pytest.mark.parametrize(
    "content",
    [
        jwks({"kty": "oct", "k": base64url(b"telling").decode(), "d": "x"}),
        jwks({"kty": "oct", "k": "telling"}),
        jwks({"kty": "oct", "telling": "telling"}),
        b'{"keys": [{"kty": "oct", "k": "telling"',
        b"telling",
        b"-----BEGIN PRIVATE " + b"KEY-----\ntelling",
        jwks({"kty": "RSA", "n": "telling", "e": "AQAB"}),
    ],
)
def test_error_shows_nothing_of_the_file(content: bytes, tmp_path: Path) -> None:
    """Neither the error, nor what it was caused by, nor its traceback has a word of the content."""
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(TrustedKeysError) as caught:
        TrustedKeyFile(path)
    error: BaseException | None = caught.value
    assert str(path) in str(error)
    while error is not None:
        assert isinstance(error, TrustedKeysError)
        assert not any(word in f"{error!r} {vars(error)}" for word in ("telling", base64url(b"telling").decode()))
        error = error.__cause__ or error.__context__
    assert "telling" not in "".join(traceback.format_exception(caught.value)).replace("nothing_of_the_file", "")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """Without keys nobody could trade: that is said at the start, with the setting to fix."""
    with pytest.raises(TrustedKeysError, match=r"cannot be read \(No such file.*ORCHESTRATOR_TOKEN_KEYS_FILE"):
        TrustedKeyFile(tmp_path / "missing")


def test_file_without_a_usable_key_is_refused_at_the_start(tmp_path: Path) -> None:
    """A worker that would refuse everybody does not start."""
    path = tmp_path / "keys.json"
    for content in (jwks(), jwks(issuer().jwk() | {"use": "enc"})):
        path.write_bytes(content)
        with pytest.raises(TrustedKeysError, match="names no key"):
            TrustedKeyFile(path)


def test_changed_file_is_read_within_a_second(tmp_path: Path) -> None:
    """Rotation needs no restart: the new key is trusted, the old one no longer, and a token that was known is refused too."""
    clock = Clock()
    path = tmp_path / "keys.json"
    old, new = issuer("EdDSA", "old"), issuer("ES256", "new")
    path.write_bytes(jwks(old.jwk()))
    file = TrustedKeyFile(path, clock)
    verifier = TokenVerifier(file.current, RULES)
    assert isinstance(verifier.verify(old.bearer(), AT), Token)
    path.write_bytes(jwks(new.jwk()))
    clock.now += 0.999
    assert isinstance(verifier.verify(old.bearer(), AT), Token)
    clock.now += 0.001
    refused = verifier.verify(old.bearer(), AT)
    assert isinstance(refused, Refusal)
    assert refused.code is ReasonCode.AUTH_TOKEN_INVALID
    assert isinstance(verifier.verify(new.bearer(), AT), Token)


def test_replaced_file_is_noticed_with_the_same_time_and_size(tmp_path: Path) -> None:
    """A file that is put in the place of another may have its time and size."""
    clock = Clock()
    path = tmp_path / "secret"
    path.write_bytes(b"a" * 40)
    file = TrustedKeyFile(path, clock)
    before = file.current()
    other = tmp_path / "other"
    other.write_bytes(b"b" * 40)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)
    clock.now += 1
    assert file.current() is not before


def test_unchanged_file_gives_the_same_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at once a second at most and read when it changed: known tokens stay known."""
    clock = Clock()
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    file = TrustedKeyFile(path, clock)
    before = file.current()
    looks = []
    stat = Path.stat

    def counted(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        looks.append(self)
        return stat(self, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", counted)
    for _ in range(100):
        clock.now += 0.1
        assert file.current() is before
    assert 9 <= len(looks) <= 10


@pytest.mark.parametrize("damage", ["gone", "malformed", "weak", "directory"])
def test_file_that_cannot_be_read_any_more_leaves_the_last_keys(damage: str, tmp_path: Path) -> None:
    """Tokens go on being verified, it is said once, and the file is read as soon as it is whole again."""
    clock = Clock()
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    file = TrustedKeyFile(path, clock)
    before = file.current()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes({"malformed": b'{"keys": telling', "weak": b"telling"}[damage])
    with capture_logs() as logs:
        for _ in range(5):
            clock.now += 1
            assert file.current() is before
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert "telling" not in str(logs)
    if damage == "directory":
        path.rmdir()
    path.write_bytes(jwks(issuer().jwk()))
    clock.now += 1
    assert [key.key_id for key in file.current().keys] == ["k1"]
    # The next failure is told again.
    path.unlink()
    with capture_logs() as logs:
        clock.now += 1
        file.current()
    assert [entry["log_level"] for entry in logs] == ["warning"]


def test_file_that_comes_back_unchanged_is_read(tmp_path: Path) -> None:
    """The keys are those of the file again, whatever its time says."""
    clock = Clock()
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    file = TrustedKeyFile(path, clock)
    path.rename(tmp_path / "aside")
    clock.now += 1
    file.current()
    (tmp_path / "aside").rename(path)
    clock.now += 1
    assert [key.algorithm for key in file.current().keys] == ["HS256"]
    with capture_logs() as logs:
        path.unlink()
        clock.now += 1
        file.current()
    assert len(logs) == 1


def test_set_that_was_emptied_trusts_nobody(tmp_path: Path) -> None:
    """Taking every key out is how all tokens are revoked at once: the last keys are not kept then."""
    clock = Clock()
    path = tmp_path / "keys.json"
    path.write_bytes(jwks(issuer().jwk()))
    file = TrustedKeyFile(path, clock)
    verifier = TokenVerifier(file.current, RULES)
    assert isinstance(verifier.verify(issuer().bearer(), AT), Token)
    path.write_bytes(jwks())
    clock.now += 1
    with capture_logs() as logs:
        assert isinstance(verifier.verify(issuer().bearer(), AT), Refusal)
    assert [entry["log_level"] for entry in logs] == ["warning"]


def test_log_names_keys_by_id_alone(tmp_path: Path) -> None:
    """What is logged about a secret is its id and algorithm."""
    path = tmp_path / "keys.json"
    by = issuer("HS256", "telling-id")
    path.write_bytes(jwks(by.jwk()))
    with capture_logs() as logs:
        TrustedKeyFile(path)
    assert "telling-id: HS256" in json.dumps(logs)
    assert by.jwk()["k"] not in json.dumps(logs)


def test_settings_make_the_verifier(tmp_path: Path) -> None:
    """File, issuer, audience and leeway are those of the settings; without a file it is said which one is missing."""
    path = tmp_path / "keys.pem"
    path.write_bytes(issuer("ES256", None).public_pem())
    settings = Settings(token_keys_file=path, token_issuer=ISSUER, token_audience=AUDIENCE, token_leeway_seconds=5)
    verifier = token_verifier(settings)
    by = issuer("ES256", None)
    assert isinstance(verifier.verify(by.bearer(), AT + timedelta(seconds=304)), Token)
    assert isinstance(verifier.verify(by.bearer(), AT + timedelta(seconds=305)), Refusal)
    assert isinstance(verifier.verify(by.bearer(iss="other"), AT), Refusal)
    assert isinstance(verifier.verify(by.bearer(aud="other"), AT), Refusal)
    with pytest.raises(TrustedKeysError, match="ORCHESTRATOR_TOKEN_KEYS_FILE"):
        token_verifier(Settings())
