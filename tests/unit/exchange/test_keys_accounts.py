"""What stands at an exchange belongs to the account that it was sent with."""

from dataclasses import replace
from datetime import timedelta

import pytest

from infra.exchange.ccxt.key_accounts import is_account_of
from infra.exchange.gateway import Credentials
from pipeline.model.halts import NO_HALTS
from pipeline.model.venue import KeyVersion
from pipeline.orders.execution import plan, reference_of, submission_of
from schemas.orders import Mode, OrderStatus
from schemas.routing import Action, RoutedOrder
from tests.unit.builders import NOW, ORDER_ID, RULES, USER, changes_of, order_of

KEY = Credentials("key", "secret", version=2, account_id="7", stored_at=NOW)


@pytest.mark.parametrize(
    ("sent_with", "answers"),
    [
        (KeyVersion(2), True),
        (KeyVersion(1), False),
        (KeyVersion(1, "7"), True),
        (KeyVersion(1, "8"), False),
        # Which account it was is not known, so nothing is proven.
        (KeyVersion(3, None), False),
    ],
)
def test_key_answers_for_what_its_own_account_sent(sent_with: KeyVersion, answers: bool) -> None:
    """The same key, or another of the same account: nothing else proves what became of an order."""
    assert is_account_of(KEY, sent_with, NOW) is answers
    assert is_account_of(replace(KEY, account_id=None), sent_with, NOW) is (sent_with.version == 2)


@pytest.mark.parametrize(("stored", "answers"), [(timedelta(0), True), (timedelta(seconds=1), False)])
def test_key_that_was_stored_after_an_order_was_sent_does_not_answer_for_it(stored: timedelta, answers: bool) -> None:
    """Of an order whose sender did not keep its key, by times."""
    assert is_account_of(replace(KEY, stored_at=NOW + stored), None, NOW) is answers


@pytest.mark.parametrize("mode", Mode)
def test_intent_names_the_key_that_is_stored_then(mode: Mode) -> None:
    """It is stored before the first byte leaves, and goes with every later question about the order; a simulated one has no account."""
    changes = changes_of(order_of(mode=mode))
    changes.keys[USER, "k1"] = KeyVersion(4, "7")
    routed = RoutedOrder(schema_version=1, action=Action.SUBMIT, order_id=ORDER_ID, user_id=USER, attempt=1)
    decided = plan([routed], changes, 3, 0, NO_HALTS, RULES.usd_assets)
    expected = KeyVersion(4, "7") if mode is Mode.LIVE else None
    order = changes.orders[ORDER_ID]
    assert (order.status, order.sent_with) == (OrderStatus.SUBMITTING, expected)
    assert [submission.sent_with for submission in decided.submissions] == [expected]
    assert submission_of(order).sent_with == reference_of(order).sent_with == expected
