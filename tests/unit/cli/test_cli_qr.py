"""The QR code in a terminal: what a reader sees is the code of the text, light on dark, with its quiet zone."""

import segno

from cli.terminal.qr import qr_lines

_HALVES = {"█": (True, True), "▀": (True, False), "▄": (False, True), " ": (False, False)}
URI = "otpauth://totp/Crypto%20Orchestrator:alice?secret=JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP&issuer=Crypto%20Orchestrator"


def _light(lines: list[str]) -> list[list[bool]]:
    """The modules as a terminal shows them: True is light."""
    rows = []
    for line in lines:
        rows.append([_HALVES[character][0] for character in line])
        rows.append([_HALVES[character][1] for character in line])
    return rows


def test_qr_lines_show_the_modules_of_the_code() -> None:
    """Light is drawn and dark is not, for each module, inside four light ones on all sides."""
    lines = qr_lines(URI)
    size = len(lines[0])
    assert {len(line) for line in lines} == {size}
    rows = _light(lines)
    quiet = [True] * size
    assert rows[:4] == [quiet] * 4
    assert rows[size - 4 :] == [quiet] * (len(rows) - size + 4)
    inside = [row[4:-4] for row in rows[4 : size - 4]]
    expected = [[not module for module in row] for row in segno.make_qr(URI, error="m", boost_error=False).matrix]
    assert inside == expected
    # The finder pattern in the corner: seven dark, then a light one.
    assert inside[0][:8] == [False] * 7 + [True]


def test_qr_lines_fit_a_terminal_of_80_columns() -> None:
    """Also for the longest user id: a code that is wrapped cannot be read."""
    longest = URI.replace("alice", "%40" * 4 + "u" * 116)
    assert len(qr_lines(longest)[0]) <= 80
