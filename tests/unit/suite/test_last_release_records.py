"""What this release writes the last release reads, and the other way round: both work at once while one replaces the other.

Every record between agents is written here by the one and read by the other, in a process of its own with that release's source.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from checks.tree import ROOT
from schemas.reasons import ReasonCode
from schemas.results import RESULT
from tests.last_release import needs_last_release, run_there, source_of_last_release
from tests.record_forms import forms, understood

pytestmark = pytest.mark.xdist_group("last_release_records")

# Records that come from outside are closed: a command that says something new is refused by a worker that cannot know what it says.
_CLOSED = "command "
# A report says its type. The last release tells it by the report's fields, and leaves unread what it does not know.
_SAID_ALWAYS = frozenset({"type"})
# A code that the last release does not know says nothing there; docs/operations.md tells what becomes of a copy of its request.
_OF_A_CODE = " reason_code="


@dataclass
class _Exchanged:
    """`written_here` with what each release makes of each record, `written_there` likewise; (kind, form, bytes, here, there)."""

    packages: list[Path]
    written_here: list[tuple[str, str, bytes, dict[str, Any], dict[str, Any]]]
    written_there: list[tuple[str, str, bytes, dict[str, Any], dict[str, Any]]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source_of_last_release(tmp_path_factory.mktemp("last_release"))


@pytest.fixture(scope="module")
def exchanged(source: Path) -> _Exchanged:
    """Every record of both releases."""
    here = [(kind, form, value, understood(kind, value)) for kind, form, value in forms()]
    sent = json.dumps([[kind, form, value.hex()] for kind, form, value, _ in here]).encode()
    packages, there, read_there = map(json.loads, run_there(source, ROOT / "tests" / "record_forms.py", stdin=sent).splitlines())
    return _Exchanged(
        [Path(package) for package in packages],
        [(*row, read) for row, read in zip(here, read_there, strict=True)],
        [(kind, form, data := bytes.fromhex(value), understood(kind, data), read) for kind, form, value, read in there],
    )


@needs_last_release
def test_records_of_this_release_mean_the_same_to_the_last_one(exchanged: _Exchanged) -> None:
    """Each form is read as its own kind, with the same value in every field that both know. What the last release does not know is left out
    while it is unset."""
    known = {kind: set(there["fields"]) for kind, form, _, _, there in exchanged.written_there if form == "full"}
    forms_there = {(kind, form) for kind, form, *_ in exchanged.written_there}
    wrong: list[str] = []
    for kind, form, _, here, there in exchanged.written_here:
        if _OF_A_CODE in form and (kind, form) not in forms_there:
            continue
        unknown = set(here["fields"]) - known.get(kind, set())
        if form == "bare" and unknown - _SAID_ALWAYS:
            wrong.append(f"{kind}: {sorted(unknown)} are written although they are unset")
        if kind.startswith(_CLOSED) and unknown and "refused" in there:
            continue
        shared = {name: given for name, given in here["fields"].items() if name not in unknown}
        if there.get("as") != here["as"] or not shared.items() <= there["fields"].items():
            wrong.append(f"{kind} {form}: {there} there, {here} here")
    assert wrong == []
    assert {kind for kind, *_ in exchanged.written_here} == set(known)


@needs_last_release
def test_records_of_the_last_release_mean_the_same_to_this_one(exchanged: _Exchanged) -> None:
    """Nothing that it writes is refused, taken for another kind, or loses a field."""
    wrong = [
        f"{kind} {form}: {there} there, {here} here"
        for kind, form, _, here, there in exchanged.written_there
        if here.get("as") != there["as"] or not there["fields"].items() <= here["fields"].items()
    ]
    assert wrong == []
    assert len(exchanged.written_there) > 200


@needs_last_release
def test_source_of_the_last_release_is_what_is_compared(exchanged: _Exchanged, source: Path) -> None:
    """And not what is installed: else the code here would be compared with itself."""
    assert len(exchanged.packages) == 2 and all(package.is_relative_to(source) for package in exchanged.packages)


def test_reason_code_of_a_newer_release_reads_as_itself() -> None:
    """A copy of a request is answered with what a newer worker has stored, under a code that this one has never heard of."""
    stored = next(value for kind, form, value in forms() if (kind, form) == ("state Result", "full reason_code=INTERNAL_ERROR"))
    newer = stored.replace(b"INTERNAL_ERROR", b"MOON_TOO_FULL")
    assert RESULT.dump_json(RESULT.validate_json(newer)) == newer
    assert "MOON_TOO_FULL" not in set(ReasonCode)


@pytest.mark.parametrize("text", ["", "moon", "MOON", "MOON_", "A B_C", "MOON_TOO\n", "X" * 100 + "_Y"])
def test_what_is_no_reason_code_is_refused(text: str) -> None:
    """By its form, CATEGORY_CONDITION."""
    with pytest.raises(ValueError, match="ReasonCode"):
        ReasonCode(text)
