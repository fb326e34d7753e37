"""`python -m checks.floats`: nothing that moves money has the type `float`.

mypy is asked for the type of every expression in the packages that money passes through. One that is a float, or may be one, must be a
time: its line names one (`_TIME`, or what its file calls its times, `_TIMES_OF`). That finds what a search for the word does not: a
literal, `total / 2` of two integers, a library's answer. Declarations that nothing uses yet are found by their annotation.

What mypy cannot know is what an exchange or a library answers without a type: it is read by functions that refuse floats at run time
(infra/exchange/venues/reading.amount, schemas/decimals.parse_decimal), and Decimal itself refuses them (pipeline/model/money).

The simulated exchange is left out: its own invariants judge it, and it shares no code with those it judges.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from mypy import nodes
from mypy.build import build
from mypy.config_parser import parse_config_file
from mypy.modulefinder import BuildSource
from mypy.options import Options
from mypy.types import Instance, TupleType, Type, UnionType, get_proper_type

from checks.tree import ROOT, modules

_PACKAGES: Final = ("schemas", "pipeline", "infra/postgres", "infra/exchange", "verification", "agents")
_LEFT_OUT: Final = ("infra/postgres/migrations/",)
# A part of a name that says that a number is a time, or comes from a clock.
_TIME: Final = re.compile(
    r"(?<![a-z])(seconds|timeout|timestamp|monotonic|clock|sleep|pauses?|since|until|due|interval|patience|silent|round_trip|wait|at)(?![a-z])",
    re.IGNORECASE,
)
# Names of times that do not say so, by the file that uses them.
_TIMES_OF: Final[Mapping[str, frozenset[str]]] = {
    "agents/watches/mass_cancel.py": frozenset({"now"}),
    "agents/process/keys.py": frozenset({"kept", "_kept"}),
    "agents/process/last_resort.py": frozenset({"_limit"}),
    "agents/watches/looks.py": frozenset({"_told"}),
    "agents/watches/orders.py": frozenset({"_asked", "first", "last", "started"}),
    "agents/process/watchdog.py": frozenset({"_limit", "_rebalance_limit", "_seen", "allowed", "asked", "now", "of"}),
    "agents/process/worker.py": frozenset({"ages", "age"}),
    "infra/exchange/ccxt/connection.py": frozenset({"_measured", "total"}),
    "pipeline/requests/authentication.py": frozenset({"value"}),
    "verification/promises/answers.py": frozenset({"ended", "begun"}),
}
# References to what another file defines: following them would leave the file.
_REFERENCES: Final = frozenset({"node", "info", "type", "unanalyzed_type", "original_def", "def_frame", "analyzed", "var"})
_WORDS: Final = re.compile(r"[A-Za-z_]\w*")


def _may_be_float(found: Type | None) -> bool:
    if found is None:
        return False
    proper = get_proper_type(found)
    if isinstance(proper, Instance):
        return proper.type.fullname in {"builtins.float", "builtins.complex"} or any(_may_be_float(part) for part in proper.args)
    return isinstance(proper, UnionType | TupleType) and any(_may_be_float(part) for part in proper.items)


def _nodes_of(tree: nodes.MypyFile) -> Iterator[nodes.Node]:
    """Every node of a file. mypy's own visitors are compiled and cannot be extended from here."""
    waiting: list[object] = list(tree.defs)
    seen: set[int] = set()
    while waiting:
        found = waiting.pop()
        if isinstance(found, list | tuple):
            waiting += found
        elif isinstance(found, nodes.Node) and id(found) not in seen:
            seen.add(id(found))
            yield found
            names = getattr(type(found), "__mypyc_attrs__", ())
            waiting += [getattr(found, name, None) for name in names if name not in _REFERENCES]


def _annotated(text: str) -> set[int]:
    return {node.lineno for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name) and node.id in {"float", "complex"}}


def floats_in(files: Iterable[Path], root: Path = ROOT) -> list[str]:
    """`file:line: text` of every line on which something has the type float and no time is named. Raises ValueError where mypy fails."""
    options = Options()
    parse_config_file(options, lambda: None, str(ROOT / "pyproject.toml"))
    options.export_types, options.preserve_asts, options.incremental = True, True, False
    sources = {path: ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in files}
    result = build([BuildSource(str(path), module) for path, module in sources.items()], options)
    if result.errors:
        raise ValueError("mypy fails: " + "; ".join(result.errors[:5]))
    found = []
    for path, module in sources.items():
        text, name = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
        typed = {
            node.line
            for node in _nodes_of(result.files[module])
            if isinstance(node, nodes.Expression) and _may_be_float(result.types.get(node))
        }
        lines = text.splitlines()
        for line in sorted(typed | _annotated(text)):
            words = _WORDS.findall(lines[line - 1])
            if not any(_TIME.search(word) or word in _TIMES_OF.get(name, ()) for word in words):
                found.append(f"{name}:{line}: {lines[line - 1].strip()}")
    return found


def main() -> int:
    """Prints what is found; the exit code is 1 when there is any."""
    files = [path for path in modules(*_PACKAGES) if not path.relative_to(ROOT).as_posix().startswith(_LEFT_OUT)]
    found = floats_in(files)
    for line in found:
        sys.stderr.write(f"a float where money may pass: {line}\n")
    if not found:
        sys.stderr.write(f"{len(files)} files: no float where money may pass\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
