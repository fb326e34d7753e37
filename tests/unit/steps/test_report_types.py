"""The types of reports: each has its row, records that say none are told by their fields, and what says another is no report."""

import json
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from agents.steps.report_types import REPORT_TYPES, named
from schemas.routing import ON_REPORTS, OnReports
from tests.record_forms import forms

MODELS: tuple[type[BaseModel], ...] = get_args(OnReports)
BARE = [(kind, value) for kind, form, value in forms() if kind.startswith("report ") and form == "bare"]
WRITTEN = {kind.removeprefix("report "): json.loads(value) for kind, value in BARE}
by_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)


def test_every_type_of_report_has_its_row_and_no_row_is_without_one() -> None:
    """The table and the records name the same types, each once."""
    said = [model.model_fields["type"].default for model in MODELS]
    assert len(set(said)) == len(said)
    assert set(said) == set(REPORT_TYPES)


@by_model
def test_report_is_read_by_what_it_says_it_is(model: type[BaseModel]) -> None:
    """And its row says what it is about."""
    report: Any = ON_REPORTS.validate_python(WRITTEN[model.__name__])
    assert type(report) is model
    assert WRITTEN[model.__name__]["type"] == report.type
    assert named(report).subject == REPORT_TYPES[report.type].subject(report)


@by_model
def test_report_of_a_release_that_said_no_type_is_told_by_its_fields(model: type[BaseModel]) -> None:
    """Records that wait on the topic while workers are replaced are read as what they are."""
    written = {name: value for name, value in WRITTEN[model.__name__].items() if name != "type"}
    assert type(ON_REPORTS.validate_python(written)) is model


@by_model
@pytest.mark.parametrize("said", ["moon", "", 7, ["order"], {"order": 1}])
def test_report_of_a_type_that_is_not_known_is_no_report(model: type[BaseModel], said: object) -> None:
    """It is not guessed from the fields: whoever wrote it meant something else."""
    with pytest.raises(ValidationError):
        ON_REPORTS.validate_python({**WRITTEN[model.__name__], "type": said})


@by_model
def test_report_that_says_another_type_is_not_taken_for_it(model: type[BaseModel]) -> None:
    """What it says decides how it is read, so it must have the fields of that."""
    for other in set(MODELS) - {model}:
        with pytest.raises(ValidationError):
            ON_REPORTS.validate_python({**WRITTEN[model.__name__], "type": other.model_fields["type"].default})
