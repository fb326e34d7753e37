"""The house: nothing uses what lies above it, and nothing goes in circles."""

from pathlib import Path

import pytest

from checks.house import House


def _house(root: Path, files: dict[str, str]) -> House:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return House.read(root)


def test_no_module_is_part_of_a_circle() -> None:
    """No circle of imports among the product's modules, not even for types alone."""
    assert House.read().circle() == []


def test_no_room_uses_what_does_not_lie_below_it() -> None:
    """Every room has its place, and imports lead down only."""
    assert list(House.read().upward()) == []


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"pipeline/books/ledger.py": "from pipeline.gate.check import x", "pipeline/gate/check.py": ""}, "pipeline.books.ledger imports"),
        ({"pipeline/orders/a.py": "from pipeline.deposits import b", "pipeline/deposits/b.py": ""}, "pipeline.orders.a imports"),
        ({"cli/terminal/a.py": "import cli.main", "cli/main.py": ""}, "cli.terminal.a imports cli.main"),
        ({"infra/postgres/a.py": "from infra.postgres.admin.b import c", "infra/postgres/admin/b.py": ""}, "infra.postgres.a imports"),
        ({"pipeline/somewhere/a.py": ""}, "pipeline has no room 'somewhere'"),
    ],
)
def test_import_that_leads_upward_is_named(tmp_path: Path, files: dict[str, str], found: str) -> None:
    """An import of a room above or beside, or a room without a place, is found."""
    assert [line for line in _house(tmp_path, files).upward() if found in line]


def test_circle_is_named_even_for_types(tmp_path: Path) -> None:
    """Two modules that know each other, one for its types only, are a circle."""
    files = {
        "schemas/a.py": "from schemas.b import B",
        "schemas/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from schemas.a import A\n",
    }
    assert set(_house(tmp_path, files).circle()) == {"schemas.a", "schemas.b"}
