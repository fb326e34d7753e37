"""The exchange keys of the orders at hand: read together, and remembered for a moment.

Invariants:
1. A key that is revoked or replaced is used for `KEPT_SECONDS` more at most; nothing is remembered of a key that was not found.
2. One that cannot be decrypted counts as not found, which refuses its own user's orders before anything is sent: one damaged row must
   not stop everybody's.
3. All who ask in one turn of the event loop share one statement: a batch of orders costs one round trip, not one per order.
4. At most `_KEPT_MAX` keys are kept.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from time import monotonic
from typing import Final

import structlog

from infra.exchange.gateway import Credentials
from infra.keyring import MasterKeyError
from infra.postgres.keys import SealedKey

log = structlog.get_logger(__name__)

KEPT_SECONDS: Final = 1.0
_KEPT_MAX: Final = 4_096
_FACTORS_KEPT_MAX: Final = 100_000

Key = tuple[str, str]


class KeyReader:
    """A `CredentialSource`. `read` gives those keys, by (user id, API key id), that exist and may be used."""

    def __init__(
        self,
        read: Callable[[frozenset[Key]], Awaitable[Mapping[Key, SealedKey]]],
        decrypt: Callable[[str, str, bytes], Credentials],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._read = read
        self._decrypt = decrypt
        self._clock = clock
        self._kept: dict[Key, tuple[Credentials, float]] = {}
        self._wanted: set[Key] = set()
        self._reading: asyncio.Task[dict[Key, Credentials]] | None = None

    async def __call__(self, user_id: str, api_key_id: str) -> Credentials | None:
        """The credentials, None when there is no such key, or it may not be used, or it cannot be decrypted. Raises what `read` raises."""
        key = (user_id, api_key_id)
        kept = self._kept.get(key)
        if kept is not None and self._clock() - kept[1] < KEPT_SECONDS:
            return kept[0]
        self._wanted.add(key)
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_wanted(), name="exchange keys")
        # One caller that is cancelled must not end the reading of the others.
        found = await asyncio.shield(self._reading)
        return found.get(key)

    async def _read_wanted(self) -> dict[Key, Credentials]:
        # Everybody who can run now asks first.
        await asyncio.sleep(0)
        wanted, self._wanted, self._reading = frozenset(self._wanted), set(), None
        # Before the question: a key never counts as younger than what was read.
        asked_at = self._clock()
        stored = await self._read(wanted)
        found: dict[Key, Credentials] = {}
        for key, sealed in stored.items():
            try:
                opened = self._decrypt(*key, sealed.ciphertext)
                found[key] = replace(opened, version=sealed.version, account_id=sealed.account_id, stored_at=sealed.stored_at)
            except MasterKeyError as error:
                log.error("api_key_unreadable", user_id=key[0], api_key_id=key[1], what=str(error))
        if len(self._kept) + len(found) > _KEPT_MAX:
            self._kept.clear()
        for key, credentials in found.items():
            self._kept[key] = (credentials, asked_at)
        return found


class SecondFactorReader:
    """Decrypts second factors, and remembers what it has decrypted: the same ciphertext is asked for with every request of its user.

    One that cannot be decrypted reads as empty, which `pipeline.model.second_factor` refuses: one damaged row must not stop everybody's
    orders.
    """

    def __init__(self, decrypt: Callable[[str, str | None, bytes], str]) -> None:
        self._decrypt = decrypt
        self._kept: dict[tuple[str, bytes], str] = {}

    def __call__(self, user_id: str, encryption_key_id: str, ciphertext: bytes) -> str:
        """The secret in base32."""
        key = user_id, ciphertext
        secret = self._kept.get(key)
        if secret is None:
            try:
                secret = self._decrypt(user_id, encryption_key_id, ciphertext)
            except MasterKeyError as error:
                log.error("second_factor_unreadable", user_id=user_id, what=str(error))
                secret = ""
            if len(self._kept) >= _FACTORS_KEPT_MAX:
                self._kept.clear()
            self._kept[key] = secret
        return secret
