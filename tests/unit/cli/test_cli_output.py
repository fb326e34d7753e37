"""What the command line prints: forms of values, tables, and what never reaches a terminal."""

from datetime import UTC, datetime
from decimal import Decimal

import orjson
import pytest

from cli.terminal.findings import Finding
from cli.terminal.output import Cell, print_table, printable, reason_of, table_lines, to_json, to_text, wrapped


def test_json_of_amounts_and_times_is_decimal_strings_and_utc() -> None:
    """An amount is the shortest decimal string, a time ends in Z: never a float, never a local time."""
    row = {"amount": Decimal("1.500000000000000000"), "tiny": Decimal("0.000000010"), "at": datetime(2026, 1, 2, 3, 4, 5, 6, UTC)}
    assert orjson.loads(to_json(row)) == {"amount": "1.5", "tiny": "0.00000001", "at": "2026-01-02T03:04:05.000006Z"}


def test_json_of_nested_rows_keeps_their_form() -> None:
    """Decimals inside lists and maps are strings as well."""
    assert to_json([{"transfers": [{"amount": Decimal("10.0")}]}]) == '[{"transfers":[{"amount":"10"}]}]'


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "a\rb", "\x07", "\u202eevil", "\x9b31m"])
def test_text_with_control_characters_is_escaped(text: str) -> None:
    """A stored key cannot clear the screen, move the cursor, or turn the reading direction."""
    shown = to_text(text)
    assert shown.isprintable()
    assert "\\" in shown


def test_text_in_any_script_is_shown_as_it_is() -> None:
    """Only what drives the terminal is escaped."""
    assert printable("Müller 東京 – ok") == "Müller 東京 – ok"


def test_table_aligns_numbers_right_and_cuts_nothing_off() -> None:
    """A long identifier stays whole, whatever the terminal's width, and amounts line up at their end."""
    rows = [{"id": "x" * 300, "amount": Decimal("0.5")}, {"id": "y", "amount": Decimal(12345)}]
    title, first, second = table_lines(rows, ("id", "amount"))
    assert "x" * 300 in first
    assert first.endswith("    0.5")
    assert second.endswith("  12345")
    assert title.endswith("AMOUNT")


_WIDE_ROWS: list[dict[str, Cell]] = [
    {"order_id": "o" + "1" * 32, "user_id": "alice", "symbol": "BTC/USDT", "price": None, "status": "filled", "why": "a few words " * 12},
    {"order_id": "o" + "2" * 32, "user_id": "bob", "symbol": "ETH/USDT", "price": None, "status": "new", "why": None},
]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_table_wider_than_the_terminal_continues_on_further_lines(width: int) -> None:
    """Every line fits, every value is there whole, and a column with nothing in it takes no room."""
    lines = table_lines(_WIDE_ROWS, ("order_id", "user_id", "symbol", "price", "status", "why"), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for row in _WIDE_ROWS:
        assert all(str(row[name]) in text for name in ("order_id", "user_id", "symbol", "status"))
    assert text.count("words") == 12
    assert "ORDER ID" in lines[0]
    assert "PRICE" not in text


def test_id_that_is_wider_than_the_terminal_is_not_cut() -> None:
    """It has a line of its own, and can be copied."""
    lines = table_lines([{"user_id": "alice", "hash": "f" * 64}], ("user_id", "hash"), 40)
    assert any("f" * 64 in line for line in lines)


def test_table_that_fits_or_goes_to_a_program_has_a_line_per_row() -> None:
    """Whole lines for `grep` and `awk`; every column is there, also an empty one."""
    columns = ("order_id", "user_id", "symbol", "price", "status", "why")
    assert len(table_lines(_WIDE_ROWS, columns, 1_000)) == len(table_lines(_WIDE_ROWS, columns)) == 3
    assert "PRICE" in table_lines(_WIDE_ROWS, columns)[0]


def test_sentence_is_broken_at_blanks_and_indented() -> None:
    """As a finding of `doctor` is shown on a narrow terminal."""
    lines = wrapped("problem  check: " + "word " * 30 + "x" * 90, 9, 80)
    assert all(line.startswith(" " * 9) for line in lines[1:])
    assert max(len(line) for line in lines[:-1]) <= 80
    assert "x" * 90 in lines[-1]


def test_table_with_wide_characters_stays_aligned() -> None:
    """East Asian characters take two columns each."""
    _, wide, narrow = table_lines([{"a": "東京", "b": "x"}, {"a": "abcd", "b": "x"}], ("a", "b"))
    assert wide == "東京  x"
    assert narrow == "abcd  x"


def test_empty_listing_is_an_empty_array_for_programs_and_a_sentence_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output holds the array or nothing; the sentence goes to standard error."""
    print_table([], ("a",), as_json=True, nothing="None.")
    print_table([], ("a",), as_json=False, nothing="None.")
    captured = capsys.readouterr()
    assert captured.out == "[]\n"
    assert captured.err == "None.\n"


def test_reason_of_an_error_names_its_kind_once() -> None:
    """Errors that repeat their own name, or have no words, still read well."""
    assert reason_of(ValueError("ValueError: wrong")) == "ValueError: wrong"
    assert reason_of(ValueError("wrong\nmore")) == "ValueError: wrong"
    assert reason_of(ValueError()) == "ValueError"
    assert reason_of(TimeoutError()) == "no answer in time"


def test_finding_line_names_what_to_do() -> None:
    """A line for people holds the check, what is wrong and the remedy, in one line."""
    line = Finding.problem("topics", "bad\nnews", "fix it").line()
    assert line == "problem  topics: bad\\nnews → fix it"
