"""Dead letters: a copy of a record that was not taken as what it should be, with the reason, on a topic of its own.

Invariants:
1. Key and value are the record's own bytes, cut only where they would not fit, and then the headers say so: a record that cannot be buried
   would stop every worker that reads it.
2. No header goes with it that holds a secret.
"""

from collections.abc import Sequence
from typing import Final

from schemas.reasons import ReasonCode
from schemas.topics import DEAD_LETTER_BYTES_MAX, DEAD_LETTER_HEADERS_BYTES_MAX, DEAD_LETTER_KEY_BYTES_MAX
from schemas.wire import SourceOffset

SECRET_HEADERS: Final = frozenset({"authorization", "x-totp"})
_REASON_MAX: Final = 1_000

Headers = tuple[tuple[str, bytes], ...]


def without_secrets(headers: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The headers that may be kept."""
    return [(name, value) for name, value in headers if name.lower() not in SECRET_HEADERS]


def dead_letter_of(
    source: SourceOffset, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]], code: ReasonCode, reason: str
) -> tuple[bytes | None, bytes | None, Headers]:
    """Key, value and headers of the dead letter of a record."""
    kept = without_secrets(headers)
    if sum(len(name.encode("utf-8", "replace")) + len(text) for name, text in kept) > DEAD_LETTER_HEADERS_BYTES_MAX:
        kept = [("dlq-headers-in-all", str(len(kept)).encode())]
    kept.append(("dlq-source", str(source).encode()))
    kept.append(("dlq-reason-code", code.value.encode()))
    kept.append(("dlq-reason", reason[:_REASON_MAX].encode("utf-8", "replace")))
    if value is not None and len(value) > DEAD_LETTER_BYTES_MAX:
        kept.append(("dlq-bytes-in-all", str(len(value)).encode()))
        value = value[:DEAD_LETTER_BYTES_MAX]
    if key is not None and len(key) > DEAD_LETTER_KEY_BYTES_MAX:
        kept.append(("dlq-key-bytes-in-all", str(len(key)).encode()))
        key = key[:DEAD_LETTER_KEY_BYTES_MAX]
    return key, value, tuple(kept)
