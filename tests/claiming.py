"""Changes of administration in tests of something else, as an installation without operators has them: whoever asks is believed, and the
audit trail says so."""

from datetime import datetime

from infra.postgres.admin.operators import By
from pipeline.commands.operators import ClaimedOperator


def claimed(name: str, at: datetime, reason: str | None = None) -> By:
    """Somebody who claims to be an operator."""
    return By(ClaimedOperator(name, "tester", "postgres"), at, reason)
