"""Batches of requests as they lie on the topic, with tokens and one-time codes, for bench/gate.

Start with `batches_of`.
"""

import base64
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import uuid4

import orjson
import pyotp
from aiokafka import ConsumerRecord
from cryptography.hazmat.primitives.asymmetric import ec
from jwt import PyJWK
from jwt.algorithms import ECAlgorithm

from bench.gate_history import API_KEY_ID, EXCHANGE, hot_users, user_id_of
from pipeline.requests.authentication import TokenRules, TokenVerifier, TrustedKey, TrustedKeys

TOPIC: Final = "trade.requests"
_ISSUER: Final = "https://id.example"
_AUDIENCE: Final = "orchestrator"
# Each batch is decided so much later than the one before, so that its codes are new ones.
_BATCH_APART: Final = timedelta(seconds=31)
_REQUESTS_PER_HOT_ONE: Final = 25


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch as it lies on the topic. `now` is when it is appended and decided."""

    now: datetime
    records: tuple[ConsumerRecord, ...]


def secret_of(user_id: str) -> str:
    """The secret of a user's second factor, base32, 160 bits."""
    return base64.b32encode(hashlib.sha256(user_id.encode()).digest()[:20]).decode()


class Issuer:
    """Signs tokens as an identity provider does: ES256, one token per user, for a day."""

    def __init__(self, now: datetime) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._algorithm = ECAlgorithm(ECAlgorithm.SHA256)
        self._now = int(now.timestamp())
        self._signed: dict[str, bytes] = {}
        jwk = ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        self.keys = TrustedKeys([TrustedKey("bench", "ES256", PyJWK(jwk | {"kid": "bench"}, "ES256"))])

    def bearer(self, user_id: str) -> bytes:
        """The `authorization` header of a user's requests."""
        if user_id not in self._signed:
            head = {"alg": "ES256", "typ": "at+jwt", "kid": "bench"}
            claims = {
                "iss": _ISSUER,
                "aud": _AUDIENCE,
                "sub": user_id,
                "scope": "trade",
                "iat": self._now - 60,
                "exp": self._now + 86_400,
                "jti": str(uuid4()),
            }
            signed = b".".join(base64.urlsafe_b64encode(orjson.dumps(part)).rstrip(b"=") for part in (head, claims))
            signature = base64.urlsafe_b64encode(self._algorithm.sign(signed, self._key)).rstrip(b"=")
            self._signed[user_id] = b"Bearer " + signed + b"." + signature
        return self._signed[user_id]

    def verifier(self) -> TokenVerifier:
        """One that knows no token yet."""
        return TokenVerifier(lambda: self.keys, TokenRules(_ISSUER, _AUDIENCE, timedelta(seconds=30)))


def batches_of(users: int, size: int, count: int, begin: datetime, issuer: Issuer) -> Iterator[Prepared]:
    """`count` batches of `size` distinct users each, drawn as they trade: one in 25 is a hot one, the others come by the weight of their
    history."""
    # The same requests every time that the benchmark is run.
    draw = random.Random(4)
    hot = hot_users(users)
    for number in range(count):
        ranks = set(draw.sample(range(hot), min(hot, size // _REQUESTS_PER_HOT_ONE)))
        while len(ranks) < size:
            ranks.add(hot + int(draw.random() ** 2 * (users - hot)))
        named = [user_id_of(rank, users) for rank in sorted(ranks)]
        draw.shuffle(named)
        now = begin + (number + 1) * _BATCH_APART
        yield Prepared(now, tuple(_record(user, number, at, now, issuer) for at, user in enumerate(named, number * size)))


def _record(user_id: str, batch: int, offset: int, now: datetime, issuer: Issuer) -> ConsumerRecord:
    ether = offset % 5 < 2
    order = {"symbol": "ETH/USDT", "side": "buy", "order_type": "limit", "price": "2840.5", "time_in_force": "GTC"}
    if not ether:
        order = {"symbol": "BTC/USDT", "side": "sell" if offset % 2 else "buy", "order_type": "market"}
    value = orjson.dumps(
        {
            "schema_version": 1,
            "type": "trade",
            "request_id": f"bench-{batch}-{offset}",
            "idempotency_key": f"bench-{batch}-{offset}",
            "user_id": user_id,
            "mode": "live",
            "exchange": EXCHANGE,
            "api_key_id": API_KEY_ID,
            **order,
            "quantity": f"0.{1_000 + offset % 499}",
        }
    )
    code = pyotp.TOTP(secret_of(user_id)).at(now).encode()
    headers = (("authorization", issuer.bearer(user_id)), ("x-totp", code))
    timestamp = int(now.timestamp() * 1_000)
    key = user_id.encode()
    return ConsumerRecord(TOPIC, 0, offset, timestamp, 1, key, value, None, len(key), len(value), headers)
