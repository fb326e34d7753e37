"""Exchange keys are read together, kept for a moment, and never longer."""

import asyncio
from collections.abc import Mapping

import pytest

from agents.process.keys import KEPT_SECONDS, Key, KeyReader
from infra.exchange.gateway import Credentials
from infra.keyring import MasterKeyError
from infra.postgres.keys import SealedKey
from pipeline.model.invariants import Retryable

_DAMAGED = b"damaged"


class _Store:
    """Ciphertexts that a test changes, the questions that were asked, and a clock that a test moves."""

    def __init__(self, **ciphertexts: bytes) -> None:
        self.ciphertexts = ciphertexts
        self.asked: list[frozenset[Key]] = []
        self.now = 100.0
        self.away = False
        self.reader = KeyReader(self._read, self._decrypt, lambda: self.now)

    async def _read(self, wanted: frozenset[Key]) -> Mapping[Key, SealedKey]:
        self.asked.append(wanted)
        if self.away:
            raise Retryable("the database is out of reach")
        return {(user, key): SealedKey(self.ciphertexts[user]) for user, key in wanted if user in self.ciphertexts}

    @staticmethod
    def _decrypt(user: str, key: str, ciphertext: bytes) -> Credentials:
        if ciphertext == _DAMAGED:
            raise MasterKeyError("no master key fits")
        return Credentials(f"{user}/{key}", ciphertext.decode())

    async def secret(self, user: str) -> str | None:
        found = await self.reader(user, "k1")
        return None if found is None else found.secret


async def test_keys_asked_for_together_take_one_question() -> None:
    """A batch of orders asks the database once, and each order gets its own user's key."""
    store = _Store(alice=b"a", bob=b"b")
    assert await asyncio.gather(*(store.secret(user) for user in ("alice", "bob", "nobody", "alice"))) == ["a", "b", None, "a"]
    assert store.asked == [frozenset({("alice", "k1"), ("bob", "k1"), ("nobody", "k1")})]


async def test_key_is_kept_for_a_moment_and_no_longer() -> None:
    """A key that was revoked works until the moment is over, and not after it."""
    store = _Store(alice=b"a")
    assert await store.secret("alice") == "a"
    del store.ciphertexts["alice"]
    store.now += KEPT_SECONDS - 0.01
    assert await store.secret("alice") == "a"
    store.now += 0.01
    assert await store.secret("alice") is None


async def test_missing_key_is_found_as_soon_as_it_is_stored() -> None:
    """That a key was missing is not remembered."""
    store = _Store()
    assert await store.secret("alice") is None
    store.ciphertexts["alice"] = b"a"
    assert await store.secret("alice") == "a"


async def test_key_that_cannot_be_read_raises_for_all_who_wait_and_is_asked_for_again() -> None:
    """While the database is away nobody gets a key; afterwards everybody does."""
    store = _Store(alice=b"a", bob=b"b")
    store.away = True
    answers = await asyncio.gather(store.secret("alice"), store.secret("bob"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Retryable, Retryable]
    store.away = False
    assert await store.secret("alice") == "a"


async def test_key_that_cannot_be_decrypted_is_missing_for_its_own_user_alone() -> None:
    """One damaged row stops its user's orders and nobody else's, and serves again as soon as it is fixed."""
    store = _Store(alice=_DAMAGED, bob=b"b")
    assert await asyncio.gather(store.secret("alice"), store.secret("bob")) == [None, "b"]
    store.ciphertexts["alice"] = b"a"
    assert await store.secret("alice") == "a"


async def test_key_reading_goes_on_when_one_caller_is_cancelled() -> None:
    """The order of another user does not fail because one was given up."""
    store = _Store(alice=b"a", bob=b"b")
    alice, bob = asyncio.create_task(store.secret("alice")), asyncio.create_task(store.secret("bob"))
    await asyncio.sleep(0)
    alice.cancel()
    assert await bob == "b"
    with pytest.raises(asyncio.CancelledError):
        await alice


async def test_keys_kept_are_bounded() -> None:
    """A worker that serves very many users does not keep a key for each of them."""
    store = _Store(**{f"user{number}": b"x" for number in range(6_000)})
    for begin in range(0, 6_000, 500):
        await asyncio.gather(*(store.secret(f"user{number}") for number in range(begin, begin + 500)))
    assert len(store.reader._kept) <= 4_096
