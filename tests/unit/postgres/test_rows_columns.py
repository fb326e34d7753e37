"""The columns of tables whose rows are objects of ours."""

from dataclasses import fields
from typing import Any

import pytest

from infra.postgres.deposits import ANNOUNCEMENTS, DEPOSITS
from infra.postgres.drifts import DRIFTS
from infra.postgres.rows import CANCELS, CLAIMS, ORDERS, SOURCE, Columns
from infra.postgres.sessions import SESSIONS
from infra.postgres.withdrawals import WITHDRAWALS
from pipeline.books.changes import Claim, PendingCancel
from pipeline.model.deposit import Announcement, Deposit
from pipeline.model.drift import StoredDrift
from pipeline.model.order import Order
from pipeline.model.session import Session
from pipeline.model.withdrawal import Withdrawal

_TABLES = [
    (ORDERS, Order), (WITHDRAWALS, Withdrawal), (DEPOSITS, Deposit), (ANNOUNCEMENTS, Announcement), (CLAIMS, Claim),
    (CANCELS, PendingCancel), (DRIFTS, StoredDrift), (SESSIONS, Session),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "of"), _TABLES, ids=lambda value: getattr(value, "table", None))
def test_table_has_a_column_for_every_field_and_no_other(columns: Columns[Any], of: type[Any]) -> None:
    """A field that is added and not stored, or a column of a name that no field has, is found here; nothing is named twice."""
    names = [name for name, _, _ in columns.columns]
    assert len(names) == len(set(names))
    sources = {name for name, _, _ in SOURCE}
    wanted = {field.name for field in fields(of)}
    assert {name for name in names if name not in sources} == wanted - {"source"}
    assert sources <= set(names) if "source" in wanted else not sources & set(names)
