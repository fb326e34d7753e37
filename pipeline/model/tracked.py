"""The rows of one kind in one batch: as loaded, as decided, and which of them are to be written."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

from pipeline.model.invariants import InvariantViolation

E = TypeVar("E")


class Tracked(Mapping[str, E]):
    """Rows by id, in their newest form. `made` are those of this batch, `changed` are others that it gave another form."""

    def __init__(self, loaded: Mapping[str, E] | None = None) -> None:
        self._rows = dict(loaded or {})
        self.made: set[str] = set()
        self.changed: set[str] = set()

    def __getitem__(self, key: str) -> E:
        return self._rows[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def make(self, key: str, row: E) -> None:
        """Takes in a row that the database does not have. Raises InvariantViolation for an id that is there."""
        if key in self._rows:
            raise InvariantViolation(f"{key} is there already and would be made again; nothing was written. Report this as a defect.")
        self._rows[key] = row
        self.made.add(key)

    def keep(self, key: str, row: E) -> None:
        """Replaces a row by its next form."""
        self._rows[key] = row
        if key not in self.made:
            self.changed.add(key)
