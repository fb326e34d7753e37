"""Exchange API secrets at rest: AES-256-GCM under the master key, bound to their row.

Invariant: the user and key id are authenticated with the ciphertext, so that a row copied to another user does not decrypt.
"""

import base64
import binascii
import os
from dataclasses import dataclass
from typing import Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from infra.settings import Settings

_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32


class MasterKeyError(Exception):
    """The master key is missing, malformed or not the one that the stored secrets were encrypted with."""


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """What is encrypted: the API key and its secret. The repr shows neither."""

    api_key: str
    secret: str

    def __repr__(self) -> str:
        return "StoredSecret(…)"


class Keyring:
    """Encrypts and decrypts under one master key; `key_id` names it in every row."""

    def __init__(self, key: bytes, key_id: str = "1") -> None:
        self.key_id = key_id
        self._cipher = AESGCM(key)

    def encrypt(self, user_id: str, api_key_id: str, secret: StoredSecret) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        plain = orjson.dumps([secret.api_key, secret.secret])
        return nonce + self._cipher.encrypt(nonce, plain, _bound_to(user_id, api_key_id))

    def decrypt(self, user_id: str, api_key_id: str, ciphertext: bytes) -> StoredSecret:
        """Raises MasterKeyError when the master key is another one or the row was changed."""
        try:
            plain = self._cipher.decrypt(ciphertext[:_NONCE_BYTES], ciphertext[_NONCE_BYTES:], _bound_to(user_id, api_key_id))
        except InvalidTag as error:
            raise MasterKeyError(
                f"the API key {api_key_id} of user {user_id} cannot be decrypted with this master key. Nothing is sent with it: "
                "start with the ORCHESTRATOR_MASTER_KEY it was stored under, or store the key again."
            ) from error
        api_key, text = orjson.loads(plain)
        return StoredSecret(api_key, text)


def _bound_to(user_id: str, api_key_id: str) -> bytes:
    return f"{user_id}\x00{api_key_id}".encode()


def new_master_key() -> str:
    """A fresh random key in the form that ORCHESTRATOR_MASTER_KEY takes."""
    return base64.b64encode(os.urandom(_KEY_BYTES)).decode()


def keyring_of(settings: Settings) -> Keyring:
    """The keyring that the settings name. Raises MasterKeyError when they name none or no 32 bytes."""
    text = settings.master_key.get_secret_value() if settings.master_key else None
    if text is None and settings.master_key_file is not None:
        try:
            text = settings.master_key_file.read_text(encoding="ascii").strip()
        except OSError as error:
            raise MasterKeyError(f"the master key file cannot be read: {error.strerror}. Nothing can be sent without it.") from error
    if text is None:
        raise MasterKeyError("set ORCHESTRATOR_MASTER_KEY or ORCHESTRATOR_MASTER_KEY_FILE: exchange keys are stored encrypted under it")
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MasterKeyError("the master key is not base64: it must be 32 random bytes, base64 encoded") from error
    if len(key) != _KEY_BYTES:
        raise MasterKeyError(f"the master key has {len(key)} bytes, it must have 32, base64 encoded")
    return Keyring(key)
