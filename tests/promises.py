"""The promises, checked for a test's installation from the topics, the database and the exchange's own log."""

import asyncio
from time import monotonic

from tests.installation import Installation
from verification.evidence.evidence import gather_evidence
from verification.promises.finding import Finding
from verification.promises.promises import check_all

# What is true a moment after the last answer: the workers move their offsets past transaction markers when they are idle.
_SETTLE_SECONDS = 90.0


async def findings_of(made: Installation) -> list[Finding]:
    """Every promise of an installation, as its evidence shows it now."""
    settings = made.settings
    if settings.kafka_bootstrap_servers is None or settings.database_url is None:
        raise RuntimeError("an installation has a broker and a database")
    url = settings.database_url.get_secret_value()
    return check_all(await gather_evidence(settings, settings.kafka_bootstrap_servers, url, made.exchange_log))


async def assert_promises_hold(made: Installation) -> None:
    """Fails with the breaches, by name, when a promise is still broken after a while of idling."""
    deadline = monotonic() + _SETTLE_SECONDS
    while True:
        broken = [finding for finding in await findings_of(made) if not finding.holds]
        if not broken:
            return
        if monotonic() > deadline:
            logs = "\n".join(made.worker_log(number)[-2_000:] for number in range(len(made.workers)))
            raise AssertionError("\n".join(f"{finding.name}: {finding.claim}: {finding.examples}" for finding in broken) + "\n" + logs)
        await asyncio.sleep(0.5)
