"""The issuer of tokens that `up` makes for a trial installation where tokens are asked for and no key for them is configured.

Invariant: the private key is made once, stays in the data directory, and its owner alone can read it; workers get the public one.

Start with `with_trial_issuer`.
"""

import os
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key

from cli.terminal.exits import CommandFailed, Exit
from infra.settings import Settings

SIGNING_KEY: Final = "issuer.pem"
TRUSTED_KEY: Final = "token-keys.pem"


def with_trial_issuer(settings: Settings, directory: Path) -> Settings:
    """The settings with the data directory's own issuer where no key for tokens is configured. Raises CommandFailed."""
    if settings.token_keys_file is not None:
        return settings
    try:
        public_key = _issuer(directory / SIGNING_KEY)
        trusted = directory / TRUSTED_KEY
        unfinished = trusted.with_suffix(".unfinished")
        unfinished.write_bytes(public_key)
        unfinished.replace(trusted)
    except OSError as error:
        raise CommandFailed(
            f"The trial's issuer of tokens cannot be kept in {directory}: {error.strerror}. Nothing was started and no order was accepted.",
            Exit.OUT_OF_REACH,
        ) from None
    return settings.model_copy(update={"token_keys_file": trusted})


def _issuer(file: Path) -> bytes:
    """The public key in PEM of the issuer in the file, which is made at its first use. Raises CommandFailed for a file that is none."""
    if not file.exists():
        private = Ed25519PrivateKey.generate()
        unfinished = file.with_suffix(".unfinished")
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            opened.flush()
            os.fsync(opened.fileno())
        unfinished.replace(file)
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except (ValueError, TypeError):
        # Without the error behind it, which may hold a part of the file.
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise CommandFailed(
            f"{file} is not the key that an earlier start has made. Nothing was started and no order was accepted. Put the file back, or "
            "remove it: tokens that it has signed are then refused.",
            Exit.USAGE,
        )
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
