"""`python -m checks.house`: how the product is laid out, and that nothing in it uses what lies above it.

A room is a folder of a package, or a module that lies in the package itself. `ROOMS` names them from the top down: a room uses rooms below
it and no other, rooms that stand side by side do not know each other, and no module is part of a circle of imports, not even for its types.
Which package may use which is pyproject.toml's matter (import-linter).
"""

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

from checks.tree import PACKAGES, ROOT, modules

# From the top down; those of one line stand side by side.
ROOMS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "pipeline": (
        ("intake", "commands", "isolation", "reconciliation"),
        ("orders", "withdrawals", "deposits"),
        ("requests",),
        ("gate",),
        ("books",),
        ("model",),
    ),
    "agents": (("__main__",), ("process",), ("watches",), ("steps",)),
    "infra.exchange": (("ccxt", "paper_gateway", "market_data"), ("venues",), ("gateway",), ("key_check",)),
    "infra.postgres": (("admin",), ("",)),
    "verification": (("evidence",), ("promises",)),
    "cli": (("__main__",), ("main",), ("commands",), ("check",), ("operate",), ("admin", "show", "local"), ("access",), ("terminal",)),
}


@dataclass(frozen=True, slots=True)
class House:
    """What every module imports of the others, by dotted name, and how many lines each has."""

    imports: Mapping[str, frozenset[str]]
    lines: Mapping[str, int]

    @classmethod
    def read(cls, root: Path = ROOT) -> "House":
        """The product's modules. Imports for types alone count like any other."""
        paths = {_name(path, root): path for path in modules(*PACKAGES, root=root)}
        texts = {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
        imports = {name: frozenset(_imported(ast.parse(text), paths.keys()) - {name}) for name, text in texts.items()}
        return cls(imports, {name: text.count("\n") for name, text in texts.items()})

    def circle(self) -> list[str]:
        """The modules of one circle of imports; empty when there is none."""
        try:
            TopologicalSorter(self.imports).prepare()
        except CycleError as error:
            return list(error.args[1])
        return []

    def upward(self) -> Iterator[str]:
        """Every import of a room that does not lie below, and every room that has no place in `ROOMS`."""
        for package, floors in ROOMS.items():
            height = {room: -number for number, floor in enumerate(floors) for room in floor}
            for name, imported in sorted(self.imports.items()):
                room = _room(name, package, height)
                if room is None:
                    continue
                if room not in height:
                    yield f"{name}: {package} has no room {room!r} in checks/house.py"
                    continue
                for other in sorted(imported):
                    below = _room(other, package, height)
                    if below is not None and below != room and height.get(below, 0) >= height[room]:
                        yield f"{name} imports {other}, which does not lie below it"

    def figures(self) -> Iterator[tuple[str, int, int, int]]:
        """Per folder: its files, their lines, and how many imports lead out of it to other folders of the product."""
        packages = {name.rpartition(".")[0] for name in self.imports}
        folders = {name: name if name in packages else name.rpartition(".")[0] for name in self.imports}
        files, lines = Counter(folders.values()), Counter[str]()
        out: dict[str, int] = defaultdict(int)
        for name, imported in self.imports.items():
            lines[folders[name]] += self.lines[name]
            out[folders[name]] += sum(folders[other] != folders[name] for other in imported)
        for folder in sorted(files):
            yield folder, files[folder], lines[folder], out[folder]


def _name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _imported(tree: ast.Module, known: Iterable[str]) -> set[str]:
    names, found = set(known), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    # `from package import module` is an import of the module, not of its package.
    return {name for name in found & names if not any(other.startswith(f"{name}.") for other in found & names)}


def _room(name: str, package: str, known: Mapping[str, int]) -> str | None:
    if not name.startswith(f"{package}."):
        return None
    room = name.removeprefix(f"{package}.").partition(".")[0]
    # A package whose own modules are one room.
    return "" if room not in known and "" in known else room


def main() -> int:
    """Prints the figures; the exit code is 1 for a circle or an import that leads upward."""
    house = House.read()
    for folder, files, lines, imports in house.figures():
        sys.stdout.write(f"{folder:<40}{files:>4} files {lines:>6} lines {imports:>4} imports out of it\n")
    circle, upward = house.circle(), list(house.upward())
    sys.stdout.write(f"{len(house.imports)} modules, {'a circle' if circle else 'no circle'} of imports, {len(upward)} imports upward\n")
    for line in [" -> ".join(circle), *upward] if circle else upward:
        sys.stderr.write(f"{line}\n")
    return 1 if circle or upward else 0


if __name__ == "__main__":
    sys.exit(main())
