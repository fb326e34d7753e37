"""What the command line says, and how it ends.

Invariants:
1. Standard output carries only what was asked for; progress and complaints go to standard error. So `… --json | jq` always works.
2. A text that others wrote (keys, reasons, identifiers) never reaches a terminal with its control characters.
3. Amounts are decimal strings, times are RFC 3339 in UTC: never a float, never a local time.

Start with `CommandFailed` and `print_table`.
"""

import re
import shlex
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Final

import orjson

from cli.terminal.exits import ReaderGone
from schemas.decimals import format_decimal
from schemas.wire import format_time

# A value of a listing. Nested ones appear in JSON only.
Cell = str | int | bool | None | Decimal | datetime | Sequence["Cell"] | Mapping[str, "Cell"]


@lru_cache(maxsize=1)
def called() -> str:
    """This command as it was called, so that what is printed can be pasted from any directory: its name where the shell finds it by that,
    else its path."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m cli"
    found = shutil.which(_NAME)
    if program.name != _NAME or (found is not None and Path(found).resolve() == program.resolve()):
        # Another name is a test's or a program's that uses this as a library: the name that the documents have says most.
        return _NAME
    return shlex.quote(str(program.absolute()))


_NAME: Final = "orchestrator"
# A command in a sentence, as our messages have it.
_QUOTED_COMMAND: Final = re.compile(r"`orchestrator(?= [a-z])")


def as_called(text: str) -> str:
    """A sentence with the commands in it as they can be pasted."""
    return _QUOTED_COMMAND.sub(lambda _: f"`{called()}", text)


def say(text: str) -> None:
    """A sentence for people, on standard error."""
    sys.stderr.write(f"{as_called(text)}\n")
    sys.stderr.flush()


def write_line(text: str) -> None:
    """One line of what was asked for, on standard output, handed over at once. Raises ReaderGone."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ReaderGone from error


def reason_of(error: BaseException) -> str:
    """An error of a library in one line: its kind and its own words."""
    kind, words = type(error).__name__, str(error).partition("\n")[0]
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if not words:
        return kind
    return words if words.startswith(kind) else f"{kind}: {words}"


def printable(text: str) -> str:
    """The text with control and direction-changing characters escaped, so that a stored value cannot drive the terminal."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii") for character in text
    )


def plain(value: Cell) -> object:
    """A value in the form that JSON shows."""
    if isinstance(value, Decimal):
        return format_decimal(value)
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def to_json(value: Cell) -> str:
    """One line of JSON."""
    return orjson.dumps(plain(value)).decode()


def to_text(value: Cell) -> str:
    """A value as a table shows it; a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, datetime):
        return f"{format_time(value)[:23]}Z"
    shown = plain(value)
    if isinstance(shown, bool):
        return "yes" if shown else "no"
    return printable(shown if isinstance(shown, str) else orjson.dumps(shown).decode())


def _width(text: str) -> int:
    """Columns on a terminal: East Asian wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def screen_width() -> int | None:
    """The columns of the terminal that standard output goes to; None where it goes to a file or a program, which wants whole lines."""
    try:
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    except ValueError:
        # Standard output was closed.
        return None


def wrapped(text: str, indent: int, width: int | None = None) -> list[str]:
    """A sentence broken at blanks to fit the terminal, its further lines indented. A word that is longer, as an id is, stays whole."""
    width = width or screen_width()
    if width is None or _width(text) <= width:
        return [text]
    blanks = " " * min(indent, width // 4)
    return textwrap.wrap(text, width, subsequent_indent=blanks, break_long_words=False, break_on_hyphens=False, drop_whitespace=True)


def table_lines(rows: Sequence[Mapping[str, Cell]], columns: Sequence[str], width: int | None = None) -> list[str]:
    """Aligned lines under the columns' names, numbers to the right.

    Where they are wider than the terminal (`width`, else that of standard output), columns that are empty in every row are left out, and
    the rest continues on further lines, indented. Nothing else is left out or cut off: an id can always be copied.
    """
    width = width or screen_width()
    table = [_Column.of(name, rows) for name in columns]
    if width is None or sum(column.width + len(_GAP) for column in table) - len(_GAP) <= width:
        return [_joined(table, number) for number in range(len(rows) + 1)]
    kept = [column for column in table if not column.is_empty] or table
    lines = _folded(kept, width)
    found = []
    for number in range(len(rows) + 1):
        for position, together in enumerate(lines):
            indent = _INDENT if position else ""
            found += [f"{indent}{text}".rstrip() for text in wrapped(_joined(together, number), 0, max(width - len(indent), 1))]
    return found


_GAP: Final = "  "
_INDENT: Final = "    "


@dataclass(frozen=True, slots=True)
class _Column:
    """A title and a cell per row, as text. `width` is that of the widest."""

    texts: list[str]
    width: int
    to_the_right: bool
    is_empty: bool

    @classmethod
    def of(cls, name: str, rows: Sequence[Mapping[str, Cell]]) -> "_Column":
        values = [row.get(name) for row in rows]
        texts = [name.replace("_", " ").upper(), *map(to_text, values)]
        is_number = bool(rows) and all(isinstance(value, Decimal | int | None) for value in values)
        return cls(texts, max(map(_width, texts)), is_number, is_empty=bool(rows) and all(value is None for value in values))

    def padded(self, number: int) -> str:
        blank = " " * (self.width - _width(self.texts[number]))
        return blank + self.texts[number] if self.to_the_right else self.texts[number] + blank


def _joined(columns: Sequence[_Column], number: int) -> str:
    return _GAP.join(column.padded(number) for column in columns).rstrip()


def _folded(columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """The columns in their order on as few lines as take them; one that is too wide for any has a line of its own."""
    lines: list[list[_Column]] = [[]]
    used = 0
    for column in columns:
        if lines[-1] and used + len(_GAP) + column.width > width:
            lines.append([])
        used = used + len(_GAP) + column.width if lines[-1] else (len(_INDENT) if len(lines) > 1 else 0) + column.width
        lines[-1].append(column)
    return lines


def print_table(rows: Sequence[Mapping[str, Cell]], columns: Sequence[str], *, as_json: bool, nothing: str) -> None:
    """A listing: a table for people, one JSON array for programs. `nothing` is what people read where there is no row."""
    if as_json:
        write_line(to_json(rows))
    elif not rows:
        say(nothing)
    else:
        write_line("\n".join(table_lines(rows, columns)))
