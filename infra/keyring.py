"""Secrets at rest: exchange API keys and second factors, under AES-256-GCM and one of the installation's master keys.

Invariants:
1. What a ciphertext belongs to is authenticated with it: a user's API key by its id, or a user's second factor. One that is copied to
   another row does not decrypt there, nor does an API key in the place of a second factor.
2. What is new is encrypted under the first master key. Every other one only decrypts, until `orchestrator keys rotate` has made it
   superfluous.

The master key is one bare base64 value, whose id is 1, or several values `id:base64`, the newest first, apart by line breaks, blanks or
commas. Start with `keyring_of`.
"""

import base64
import binascii
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from infra.settings import Settings

# NIST SP 800-38D, section 8.2.2: 96 random bits; safe for 2^32 encryptions under one key.
_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32
_KEYS_MAX: Final = 32
_BARE_ID: Final = "1"
_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")


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
    """The master keys as (id, 32 bytes), the newest first. `key_id` names the newest, under which everything is encrypted."""

    def __init__(self, keys: Sequence[tuple[str, bytes]]) -> None:
        self.key_id = keys[0][0]
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys}

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of all master keys, the newest first."""
        return tuple(self._ciphers)

    def encrypt(self, user_id: str, api_key_id: str, secret: StoredSecret) -> bytes:
        """An API key's ciphertext under the newest master key."""
        return self._seal(_api_key(user_id, api_key_id), orjson.dumps([secret.api_key, secret.secret]))

    def decrypt(self, user_id: str, api_key_id: str, ciphertext: bytes, encryption_key_id: str | None = None) -> StoredSecret:
        """An API key. Without the id that its row names, every master key is tried.

        Raises MasterKeyError when no master key fits or the row was changed.
        """
        plain = self._open(_api_key(user_id, api_key_id), ciphertext, encryption_key_id)
        if plain is None:
            raise MasterKeyError(
                f"the API key {api_key_id} of user {user_id} cannot be decrypted with {self._named(encryption_key_id)}. Nothing is sent "
                "with it: start with the ORCHESTRATOR_MASTER_KEY it was stored under, or store the key again."
            )
        api_key, text = orjson.loads(plain)
        return StoredSecret(api_key, text)

    def encrypt_second_factor(self, user_id: str, secret: str) -> bytes:
        """The ciphertext of a second factor's secret under the newest master key."""
        return self._seal(_second_factor(user_id), secret.encode())

    def decrypt_second_factor(self, user_id: str, encryption_key_id: str | None, ciphertext: bytes) -> str:
        """A second factor's secret. `encryption_key_id` is the one that its row names; None tries every master key.

        Raises MasterKeyError when no master key fits or the row was changed.
        """
        plain = self._open(_second_factor(user_id), ciphertext, encryption_key_id)
        if plain is None:
            raise MasterKeyError(
                f"the second factor of user {user_id} cannot be decrypted with {self._named(encryption_key_id)}, so no code of it can be "
                "checked: start with the ORCHESTRATOR_MASTER_KEY it was stored under, or enrol the user again."
            )
        return plain.decode()

    def renewed(self, user_id: str, api_key_id: str, ciphertext: bytes, encryption_key_id: str) -> bytes:
        """An API key's ciphertext under the newest master key, in place of one under an older one. Raises MasterKeyError."""
        return self.encrypt(user_id, api_key_id, self.decrypt(user_id, api_key_id, ciphertext, encryption_key_id))

    def renewed_second_factor(self, user_id: str, ciphertext: bytes, encryption_key_id: str) -> bytes:
        """A second factor's ciphertext under the newest master key. Raises MasterKeyError."""
        return self.encrypt_second_factor(user_id, self.decrypt_second_factor(user_id, encryption_key_id, ciphertext))

    def _seal(self, bound_to: bytes, plain: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._ciphers[self.key_id].encrypt(nonce, plain, bound_to)

    def _open(self, bound_to: bytes, ciphertext: bytes, key_id: str | None) -> bytes | None:
        """The plain bytes; None where no key fits."""
        if key_id is None:
            ciphers = list(self._ciphers.values())
        else:
            known = self._ciphers.get(key_id)
            ciphers = [] if known is None else [known]
        nonce, sealed = ciphertext[:_NONCE_BYTES], ciphertext[_NONCE_BYTES:]
        if len(nonce) < _NONCE_BYTES:
            return None
        for cipher in ciphers:
            try:
                return cipher.decrypt(nonce, sealed, bound_to)
            except InvalidTag:
                continue
        return None

    def _named(self, key_id: str | None) -> str:
        if key_id is not None and key_id not in self._ciphers:
            return f"this master key: its row names master key {key_id}, here are only {', '.join(self._ciphers)}"
        return "this master key"


def _api_key(user_id: str, api_key_id: str) -> bytes:
    return f"{user_id}\x00{api_key_id}".encode()


def _second_factor(user_id: str) -> bytes:
    # No user id is empty, so this is no API key's.
    return f"\x00second factor\x00{user_id}".encode()


def new_master_key() -> str:
    """A fresh random key in the form that ORCHESTRATOR_MASTER_KEY takes."""
    return base64.b64encode(os.urandom(_KEY_BYTES)).decode()


def keyring_of(settings: Settings) -> Keyring:
    """The keyring that the settings name. Raises MasterKeyError when they name none, or one that is not as it must be."""
    text = settings.master_key.get_secret_value() if settings.master_key else None
    if text is None and settings.master_key_file is not None:
        try:
            text = settings.master_key_file.read_text(encoding="ascii")
        except OSError as error:
            raise MasterKeyError(f"the master key file cannot be read: {error.strerror}. Nothing can be sent without it.") from error
        except UnicodeDecodeError:
            # Without the error behind it: it holds the bytes.
            raise MasterKeyError("the master key file is not text: it must hold base64. Nothing can be sent without it.") from None
    if text is None:
        raise MasterKeyError("set ORCHESTRATOR_MASTER_KEY or ORCHESTRATOR_MASTER_KEY_FILE: exchange keys are stored encrypted under it")
    return Keyring(master_keys(text))


def master_keys(text: str) -> list[tuple[str, bytes]]:
    """The master keys of a text, as (id, 32 bytes), the newest first. Raises MasterKeyError, whose text repeats no part of a key."""
    entries = [entry for entry in re.split(r"[\s,]+", text) if entry]
    if not entries:
        raise MasterKeyError("the master key is empty: it must be 32 random bytes, base64 encoded")
    if len(entries) > _KEYS_MAX:
        raise MasterKeyError(f"there are {len(entries)} master keys, at most {_KEYS_MAX} are read: take out what `keys rotate` replaced")
    keys: dict[str, bytes] = {}
    for number, entry in enumerate(entries, 1):
        where = "the master key" if len(entries) == 1 else f"master key {number} of {len(entries)}"
        key_id, key = _parsed(entry, where, alone=len(entries) == 1)
        if key_id in keys:
            raise MasterKeyError(f"two master keys have the id {key_id}: every row names its key by the id, so each must have its own")
        if key in keys.values():
            raise MasterKeyError(f"{where} has the same bytes as another one: a new master key must be a new random one")
        keys[key_id] = key
    return list(keys.items())


def _parsed(entry: str, where: str, *, alone: bool) -> tuple[str, bytes]:
    # Base64 has no colon.
    key_id, colon, encoded = entry.rpartition(":")
    if not colon:
        if not alone:
            raise MasterKeyError(f"{where} has no id: where there are several, each is `id:base64`, the newest first")
        key_id = _BARE_ID
    elif not _ID.fullmatch(key_id):
        raise MasterKeyError(f"the id of {where} must be 1 to 32 letters, digits, dots, dashes or underscores")
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise MasterKeyError(f"{where} is not base64: it must be 32 random bytes, base64 encoded") from None
    if len(key) != _KEY_BYTES:
        raise MasterKeyError(f"{where} has {len(key)} bytes, it must have 32, base64 encoded")
    return key_id, key
