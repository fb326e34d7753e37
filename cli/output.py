"""What the command line says, and how it ends.

Invariants:
1. Standard output carries only what was asked for; progress and complaints go to standard error. So `… --json | jq` always works.
2. A text that others wrote (keys, reasons, identifiers) never reaches a terminal with its control characters.
3. Amounts are decimal strings, times are RFC 3339 in UTC: never a float, never a local time.

Start with `CommandFailed` and `print_table`.
"""

import sys
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from enum import IntEnum

import orjson

from schemas.decimals import format_decimal
from schemas.wire import format_time

# A value of a listing. Nested ones appear in JSON only.
Cell = str | int | bool | None | Decimal | datetime | Sequence["Cell"] | Mapping[str, "Cell"]


class Exit(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    NOT_SO = 1
    USAGE = 2
    OUT_OF_REACH = 3
    # 128 + SIGINT and 128 + SIGPIPE, as shells report them.
    INTERRUPTED = 130
    READER_GONE = 141


class CommandFailed(Exception):
    """Ends a command. The text says what happened, what it means for the money, and what to do next."""

    def __init__(self, text: str, code: Exit) -> None:
        super().__init__(text)
        self.code = code


class ReaderGone(Exception):
    """Whoever read our standard output has ended, as `head` does: there is nobody left to tell."""


def say(text: str) -> None:
    """A sentence for people, on standard error."""
    sys.stderr.write(f"{text}\n")
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


def table_lines(rows: Sequence[Mapping[str, Cell]], columns: Sequence[str]) -> list[str]:
    """Aligned lines under the columns' names, numbers to the right. Nothing is cut off, whatever the terminal's width."""
    titles = [column.replace("_", " ").upper() for column in columns]
    cells = [[to_text(row.get(column)) for column in columns] for row in rows]
    widths = [max(map(_width, column)) for column in zip(titles, *cells, strict=True)]
    right = [bool(rows) and all(isinstance(row.get(column), Decimal | int | None) for row in rows) for column in columns]

    def line(texts: Sequence[str]) -> str:
        padded = []
        for text, width, to_the_right in zip(texts, widths, right, strict=True):
            blank = " " * (width - _width(text))
            padded.append(blank + text if to_the_right else text + blank)
        return "  ".join(padded).rstrip()

    return [line(texts) for texts in (titles, *cells)]


def print_table(rows: Sequence[Mapping[str, Cell]], columns: Sequence[str], *, as_json: bool, nothing: str) -> None:
    """A listing: a table for people, one JSON array for programs. `nothing` is what people read where there is no row."""
    if as_json:
        write_line(to_json(rows))
    elif not rows:
        say(nothing)
    else:
        write_line("\n".join(table_lines(rows, columns)))
