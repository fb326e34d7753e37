"""Records between our own agents, while workers of two releases run side by side: what a newer one adds does not stop the older one."""

from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from schemas.balances import ReportedDrift
from schemas.commands import COMMAND, DECISION
from schemas.routing import ON_REPORTS, OnReports, ReportedFee, RoutedOrder

_AT = datetime(2026, 11, 24, tzinfo=UTC)
_REPORTS: tuple[type[BaseModel], ...] = get_args(OnReports)
_OURS: tuple[type[BaseModel], ...] = (*_REPORTS, RoutedOrder, ReportedFee, ReportedDrift)


def _required(model: type[BaseModel]) -> set[str]:
    return {name for name, found in model.model_fields.items() if found.is_required()}


@pytest.mark.parametrize("model", _OURS, ids=lambda model: model.__name__)
def test_field_of_a_newer_release_is_no_obstacle(model: type[BaseModel]) -> None:
    """Every record that only agents write is read by those who do not know all of it."""
    assert model.model_config.get("extra") == "ignore"


@pytest.mark.parametrize("model", _REPORTS, ids=lambda model: model.__name__)
def test_report_reads_as_itself_although_fields_are_passed_over(model: type[BaseModel]) -> None:
    """No report has all that another one must have: so none is taken for another, whatever it has besides."""
    assert [other.__name__ for other in _REPORTS if other is not model and _required(other) <= set(model.model_fields)] == []


def test_work_and_reports_with_more_than_is_known_mean_what_is_known() -> None:
    """As they would come from the next release."""
    work = {"schema_version": 1, "action": "submit", "order_id": "o1", "user_id": "alice", "attempt": 1}
    assert RoutedOrder.model_validate({**work, "priority": "high"}) == RoutedOrder.model_validate(work)
    report = {"schema_version": 1, "order_id": "o1", "user_id": "alice", "attempt": 1, "found": False, "looked_up_at": _AT}
    assert ON_REPORTS.validate_python({**report, "looks": 2}) == ON_REPORTS.validate_python(report)


@pytest.mark.parametrize("adapter", [COMMAND, DECISION])
def test_what_comes_from_outside_stays_closed(adapter: TypeAdapter[Any]) -> None:
    """A field that an operator or a producer has misspelt is refused, not passed over."""
    command = {"schema_version": 1, "command_id": "c-1", "operator": "olga", "reason": "why"}
    known = (
        {**command, "command": "halt", "scope": "all"}
        if adapter is COMMAND
        else {**command, "command": "approve_withdrawal", "withdrawal_id": "w-1"}
    )
    adapter.validate_python(known)
    with pytest.raises(ValidationError, match="extra"):
        adapter.validate_python({**known, "cancel_opn": True})
