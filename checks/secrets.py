"""Finds what looks like a secret in the tree: `python -m checks.secrets`, exit code 1 when it finds one.

Two kinds of rules: the shapes that issuers give their keys, and a long random string assigned to a telling name. A line that is meant to
hold such a string says why: `not a secret: REASON`.
"""

import math
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Final

from checks.tree import ROOT, files

_EXEMPT: Final = re.compile(r"not a secret: \S+")
_SHAPES: Final[dict[str, re.Pattern[str]]] = {
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "GitHub token": re.compile(r"\b(?:gh[oprsu]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})\b"),
    "Slack token": re.compile(r"\bxox[abeprs]-[A-Za-z0-9-]{10,}"),
    "Google API key": re.compile(r"\bAIza[A-Za-z0-9_-]{35}\b"),
    "package registry token": re.compile(r"\b(?:pypi-AgE[A-Za-z0-9_-]{50,}|npm_[A-Za-z0-9]{36})\b"),
    "JSON web token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    "password in an address": re.compile(
        r"\b[a-z][a-z0-9+]*://[^\s:/@{}$<>]+:(?P<value>[^\s/@{}$<>]{8,})@"
        # Not where nobody can be: this machine, and the names that RFC 2606 reserves.
        r"(?!127\.0\.0\.1\b|localhost\b|\[::1\]|[\w.-]+\.(?:example|invalid|test)\b)"
    ),
}
_ASSIGNED: Final = re.compile(
    r"(?i)(?:secret|password|passwd|token|api_?key|master_?key|private_?key)[a-z0-9_]*[\"']?\s*[:=]\s*[\"']?(?P<value>[A-Za-z0-9+/=_-]{20,})"
)
# Bits per character. English stays below, random base64 above.
_ENTROPY_MIN: Final = 4.0
# How often neighbours are of different kinds (small, capital, digit, other). About 0.65 in random base64, below 0.25 in words and counters.
_MIXTURE_MIN: Final = 0.35
_HEX: Final = re.compile(r"[0-9a-f]{32,}")
_HEX_ENTROPY_MIN: Final = 3.0
# Passwords that anybody can see through: examples.
_PLACEHOLDERS: Final = frozenset({"password", "changeme"})
_BYTES_MAX: Final = 5_000_000


def entropy(text: str) -> float:
    """Shannon's, in bits per character."""
    counts = Counter(text)
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts.values())


def _mixture(text: str) -> float:
    kinds = [(character.islower(), character.isupper(), character.isdigit()) for character in text]
    return sum(one != other for one, other in pairwise(kinds)) / (len(kinds) - 1)


def _is_random(value: str) -> bool:
    if _HEX.fullmatch(value):
        return entropy(value) >= _HEX_ENTROPY_MIN
    return entropy(value) >= _ENTROPY_MIN and _mixture(value) >= _MIXTURE_MIN


def findings(text: str) -> list[tuple[int, str]]:
    """(line number, kind) of everything in a text that looks like a secret. The secret itself is never repeated."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if _EXEMPT.search(line):
            continue
        for kind, shape in _SHAPES.items():
            match = shape.search(line)
            if match and match.groupdict().get("value") not in _PLACEHOLDERS:
                found.append((number, kind))
        found += [(number, "random value under a telling name") for match in _ASSIGNED.finditer(line) if _is_random(match["value"])]
    return found


def problems(root: Path) -> list[str]:
    """One line per finding, with its place."""
    lines = []
    for path in files(root):
        content = path.read_bytes()
        if b"\x00" in content[:1024]:
            continue
        place = path.relative_to(root)
        if len(content) > _BYTES_MAX:
            lines.append(f"{place}: {len(content)} bytes are too many for a source file; it was not looked through")
            continue
        found = findings(content.decode("utf-8", errors="replace"))
        lines += [f"{place}:{number}: looks like a secret ({kind})" for number, kind in found]
    return lines


def main() -> int:
    found = problems(ROOT)
    for line in found:
        sys.stderr.write(f"{line}\n")
    if found:
        sys.stderr.write("Revoke what is real, take it out, and mark what is not with `not a secret: REASON` on its line.\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
