"""What is loaded for a batch of requests, apart from what `Changes` holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.gate.context import AccountState
from pipeline.model.api_key import ApiKeyState
from pipeline.model.halts import HaltBook
from pipeline.model.rules import Rules
from pipeline.model.venue import MarketData
from pipeline.model.withdrawal import AllowedAddress, Network


@dataclass(frozen=True, slots=True)
class IntakeState:
    """What was loaded for a batch, apart from what `Changes` holds: the users, their keys, prices per exchange, and the stops in force; for
    withdrawals the networks per exchange and the users' addresses. `issuer_keys` are the fingerprints of the keys trusted for tokens."""

    accounts: Mapping[str, AccountState]
    api_keys: Mapping[tuple[str, str], ApiKeyState]
    market_data: Mapping[str, MarketData]
    halts: HaltBook
    rules: Rules
    networks: Mapping[str, Mapping[tuple[str, str], Network]] = field(default_factory=dict)
    addresses: Mapping[str, tuple[AllowedAddress, ...]] = field(default_factory=dict)
    issuer_keys: frozenset[str] = frozenset()
