"""The promises, checked for a test's installation from the topics, the database and the exchange's own log."""

from tests.installation import Installation


async def assert_promises_hold(made: Installation) -> None:
    """Fails with the breaches, by name."""
