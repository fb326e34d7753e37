"""Dead letters: every record that is no request is on the dead-letter topic once, as it came, and no secret went with it.

A record that names a user and a key is answered and kept for its key; only what names nobody, or is no JSON object at all, is buried.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from pipeline.model.dead_letter import SECRET_HEADERS
from schemas.reasons import ReasonCode
from schemas.requests import Unreadable, decode_request
from schemas.topics import DEAD_LETTER_BYTES_MAX, DEAD_LETTER_KEY_BYTES_MAX
from schemas.wire import SourceOffset
from verification.promises.finding import Check, Finding

SOURCE_HEADER: Final = "dlq-source"
_CODE_HEADER: Final = "dlq-reason-code"


@dataclass(slots=True)
class DeadLetters:
    """What must be buried, and what was: digests of key and value, by the record they are of."""

    expected: dict[SourceOffset, bytes] = field(default_factory=dict)
    found: dict[str, list[bytes]] = field(default_factory=dict)
    # Records that could not be decided, which may be requests, and records of other topics.
    set_aside: set[str] = field(default_factory=set)
    unnamed: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)

    def add_request(self, source: SourceOffset, key: bytes | None, value: bytes | None) -> None:
        decoded = decode_request(value)
        if isinstance(decoded, Unreadable) and decoded.dead_letter:
            self.expected[source] = _digest(key, value)

    def add_dead_letter(self, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]], where: str) -> None:
        # A producer may have sent a header of the same name; ours is the last.
        sources = [text for name, text in headers if name == SOURCE_HEADER and text is not None]
        if not sources:
            self.unnamed.append(where)
            return
        source = sources[-1].decode(errors="replace")
        self.found.setdefault(source, []).append(_digest(key, value))
        codes = [text for name, text in headers if name == _CODE_HEADER]
        if codes and codes[-1] == ReasonCode.INTERNAL_ERROR.value.encode():
            self.set_aside.add(source)
        if any(name.lower() in SECRET_HEADERS for name, _ in headers):
            self.secrets.append(f"{where} carries a secret header of record {source}")


def _digest(key: bytes | None, value: bytes | None) -> bytes:
    # A dead letter without a key and a value would not be sent at all: it stands with an empty key. What does not fit is cut.
    return sha256((key or b"")[:DEAD_LETTER_KEY_BYTES_MAX] + b"\x00" + (value or b"")[:DEAD_LETTER_BYTES_MAX]).digest()


def check_dead_letters(letters: DeadLetters, requests: Collection[SourceOffset], read_to: Mapping[int, int]) -> Finding:
    """`requests` are the records on the topic, `read_to` is how far each of its partitions is read."""
    claim = "what is no request is on the dead-letter topic once, as it came and without secrets"
    check = Check("dead_letters", claim, len(letters.expected))
    for source, digest in letters.expected.items():
        if source.offset >= read_to.get(source.partition, 0):
            continue
        found = letters.found.get(str(source), [])
        if len(found) != 1:
            check.breach(f"record {source} has {len(found)} dead letters")
        elif found[0] != digest:
            check.breach(f"the dead letter of record {source} has another key or value than the record")
    for source in requests:
        if source not in letters.expected and str(source) in letters.found.keys() - letters.set_aside:
            check.breach(f"record {source} is a request and has a dead letter")
    for text in (*letters.unnamed, *letters.secrets):
        check.breach(text)
    return check.finding()
