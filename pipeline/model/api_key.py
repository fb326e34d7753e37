"""A stored exchange key, as decisions see it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class ApiKeyState:
    """A stored exchange key: which exchange it is for and whether it may be used.

    `status` is `active`, `revoked`, `expired` or `refused` (by the exchange); `permissions` holds `trade` and `withdraw`; from `expires_at`
    on it is expired whatever its status says, None means never.
    """

    exchange: str
    status: str
    permissions: frozenset[str] = frozenset({"trade"})
    expires_at: datetime | None = None
