"""Whether a key answers for what was sent with another one that was stored under its id.

An order, and a withdrawal, stands in the account that it was sent with. Another account knows neither: what it does not find there proves
nothing, and what it cancels there is not it.
"""

from datetime import datetime

from infra.exchange.gateway import Credentials
from pipeline.model.venue import KeyVersion


def is_account_of(credentials: Credentials, sent_with: KeyVersion | None, sent_at: datetime | None) -> bool:
    """Whether a key is proven to belong to the account that something was sent with at `sent_at`.

    It is the same key, or both belong to the account of the same number. Where the sender did not keep which key it was, one that was
    stored before then is the same.
    """
    if sent_with is None:
        return credentials.stored_at is None or sent_at is None or credentials.stored_at <= sent_at
    if credentials.version is None or credentials.version == sent_with.version:
        return True
    return credentials.account_id is not None and credentials.account_id == sent_with.account_id


def other_account(api_key_id: str) -> str:
    """Says that nothing is known, and what to do."""
    return (
        f"key {api_key_id} was replaced since by one that is not proven to be of the same account, so what it finds says nothing; store a "
        "key of the account that it was sent with under this id"
    )
