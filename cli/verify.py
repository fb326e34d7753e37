"""`orchestrator verify`: every promise checked against a running installation, one line each."""

from dataclasses import dataclass
from pathlib import Path

from infra.embedded.services import Endpoints
from infra.settings import Settings


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """`exchange_log` is the simulated exchange's own log; without it the checks against the exchange's books are left out, and said so.

    `from_topic`: the audit trail is judged from `trade.audit` alone, without the database.
    """

    settings: Settings
    endpoints: Endpoints
    exchange_log: Path | None = None
    from_topic: bool = False
    as_json: bool = False


async def run_verify(options: VerifyOptions) -> int:
    """Checks and prints; returns the exit code: 0, 1 when a promise is broken, 3 when a service is out of reach."""
    raise NotImplementedError(options)
