"""Symbols: what a market is called, `BASE/QUOTE`, and which names are taken for another.

Which symbols there are is the exchange's to say, in whatever script: its list is compared with exactly. Here stands only what no symbol is.

Invariants:
1. A symbol is in Unicode's normal form C, without control, format and blank characters: what looks the same compares the same, and can be
   stored and sent everywhere.
2. `skeleton` is the same for names that people take for one another (Unicode TS #39, "Confusable detection"): width, case, accents and
   invisible characters do not count, and letters of Greek and Cyrillic count as the Latin capitals that they are drawn like.

Start with `is_symbol`.
"""

import unicodedata
from typing import Final

PART_LENGTH_MAX: Final = 20
SYMBOL_LENGTH_MAX: Final = 64
FORM: Final = "must be BASE/QUOTE in capitals as the exchange lists it, such as BTC/USDT, in Unicode's normal form C"

# Unicode TS #39, confusables.txt, as far as it is about capitals and digits: Cyrillic, Greek, and Latin letters beside A to Z.
_DRAWN_LIKE: Final = str.maketrans({
    "А": "A", "В": "B", "Е": "E", "Ѕ": "S", "І": "I", "Ј": "J", "К": "K", "М": "M", "Н": "H", "О": "O", "Р": "P", "С": "C", "Т": "T",
    "У": "Y", "Х": "X", "Ү": "Y", "Ӏ": "I", "Ԁ": "D", "Ԍ": "G", "Ԛ": "Q", "Ԝ": "W", "З": "3",
    "Α": "A", "Β": "B", "Ε": "E", "Ζ": "Z", "Η": "H", "Ι": "I", "Κ": "K", "Μ": "M", "Ν": "N", "Ο": "O", "Ρ": "P", "Τ": "T", "Υ": "Y",
    "Χ": "X", "Ϲ": "C", "Ϳ": "J", "Ʋ": "V", "Ǝ": "E", "0": "O", "1": "I", "L": "I", "∕": "/", "⁄": "/", "／": "/",
})  # fmt: skip


def is_symbol(text: str) -> bool:
    """Whether a text can be a symbol: two names of 1 to 20 characters, capitals where their script has any, and one slash between them."""
    base, slash, quote = text.partition("/")
    if not slash or "/" in quote or not all(0 < len(part) <= PART_LENGTH_MAX for part in (base, quote)):
        return False
    if text.isascii():
        return base.isalnum() and quote.isalnum() and text == text.upper()
    visible = not any(unicodedata.category(character)[0] in "CZ" for character in text)
    return visible and unicodedata.is_normalized("NFC", text) and text == text.upper()


def skeleton(text: str) -> str:
    """What is left of a name when all that people overlook is taken off; equal for names that look alike."""
    plain = unicodedata.normalize("NFKD", text).casefold().upper()
    seen = "".join(character for character in plain if unicodedata.category(character)[0] not in "CZM")
    return unicodedata.normalize("NFKC", seen).translate(_DRAWN_LIKE)
