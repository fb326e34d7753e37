"""The house rules that no linter knows, as tests: each names the place and the rule it breaks."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from checks.tree import PACKAGES, ROOT, files, modules
from pipeline.books.audit import SOFTWARE_VERSION

# Where an amount, a price or a fee may pass.
MONEY = ("schemas", "pipeline", "infra/postgres", "infra/exchange", "simulator", "verification")
# Modules of these that measure waiting in floats beyond constants and arguments that are named for their seconds.
TIMING = frozenset({"infra/exchange/ccxt/connection.py", "simulator/faults.py", "infra/exchange/ccxt/transport.py"})
LINES_MAX = 420
# Longer on purpose, with the length they must not outgrow.
LONGER: dict[str, int] = {}
FUNCTION_LINES_MAX = 80
LONGER_FUNCTIONS = {"agents/process/app.py:compose": 100}
PINNED = ("faust-streaming", "mode-streaming", "aiokafka", "ccxt")
FORBIDDEN_NAMES = ("utils", "util", "helpers", "helper", "common", "manager", "managers", "service", "handler", "handlers", "misc")
TEXT_SUFFIXES = frozenset({".py", ".md", ".toml", ".yml", ".yaml", ".sh", ".in", ".cfg", ".ini", ".txt", ""})
# Put together here, so that this file does not break its own rules.
MARKERS = re.compile(r"\b(?:" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
MACHINE_PATHS = re.compile(r"(?<![\w.$}~])/(?:work|root|tmp/lab|home/\w+|Users/\w+)/[\w.]")
REGISTRY_HOSTS = re.compile(r"\b(?:pypi\.org|pythonhosted\.org|registry\.npmjs\.org|repo1?\.maven\.org|proxy\.golang\.org|crates\.io)\b")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def places(paths: list[Path], broken: Callable[[ast.AST], bool]) -> list[str]:
    """`file:line` of every node that breaks a rule."""
    return [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
        for path in paths
        for node in ast.walk(parsed(path))
        if broken(node)
    ]


def shipped() -> list[Path]:
    return modules(*PACKAGES)


def texts() -> Iterator[tuple[str, str]]:
    """(path, content) of every text file of the project but the lock files."""
    for path in files():
        if path.suffix in TEXT_SUFFIXES:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def lines_with(pattern: re.Pattern[str], *, besides: frozenset[str] = frozenset()) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:80]}"
        for name, text in texts()
        if name not in besides
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def is_float(node: ast.AST) -> bool:
    return (isinstance(node, ast.Constant) and isinstance(node.value, float)) or (isinstance(node, ast.Name) and node.id == "float")


def seconds(tree: ast.Module) -> set[ast.AST]:
    """Everything that belongs to a constant, argument or field that is named for its seconds."""
    named: list[ast.AST] = []
    for node in ast.walk(tree):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]) | ast.arg(arg=name):
                named += [node] if "seconds" in name.lower() else []
            case ast.FunctionDef(args=arguments) | ast.AsyncFunctionDef(args=arguments):
                positional = [*arguments.posonlyargs, *arguments.args]
                defaults = [*zip(positional[len(positional) - len(arguments.defaults) :], arguments.defaults, strict=True)]
                defaults += [pair for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if pair[1]]
                named += [default for argument, default in defaults if "seconds" in argument.arg]
    return {inner for node in named for inner in ast.walk(node)}


def floats(path: Path) -> list[str]:
    """`file:line` of every float that is not named for its seconds."""
    tree = parsed(path)
    besides = seconds(tree)
    return [f"{path.relative_to(ROOT)}:{node.lineno}" for node in ast.walk(tree) if is_float(node) and node not in besides]


def test_money_packages_hold_no_float() -> None:
    """Neither a float literal nor the word `float` stands where money passes, but for seconds of waiting."""
    money = [path for path in modules(*MONEY) if path.relative_to(ROOT).as_posix() not in TIMING]
    assert [place for path in money for place in floats(path)] == []


def test_timing_exceptions_are_all_needed() -> None:
    """Every module on the list of exceptions exists and still needs to be there."""
    assert {name for name in TIMING if (ROOT / name).exists() and floats(ROOT / name)} == TIMING


def test_money_is_rounded_in_one_module() -> None:
    """Which way an amount is rounded is decided in pipeline/model/money.py, and nowhere else."""
    rounding = re.compile(r"^(?:ROUND_(?:UP|DOWN|FLOOR|CEILING|05UP|HALF_\w+)|quantize|to_integral\w*)$")

    def rounds(node: ast.AST) -> bool:
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        return bool(rounding.match(name))

    apart = ("pipeline/model/money.py", "simulator/")
    money = [path for path in modules(*MONEY, "agents") if not path.relative_to(ROOT).as_posix().startswith(apart)]
    assert places(money, rounds) == []
    assert places([ROOT / apart[0]], rounds)


def test_modules_carry_no_empty_names() -> None:
    """No file or directory is named for nothing in particular."""
    names = [path.relative_to(ROOT) for path in files()]
    assert [name.as_posix() for name in names if set(name.with_suffix("").parts) & set(FORBIDDEN_NAMES)] == []


def test_classes_carry_no_empty_names() -> None:
    """No class ends in Manager, Helper, Handler, Util or Service."""
    empty = re.compile(r"(?:Manager|Helper|Handler|Utils?|Service)$")
    assert places(shipped(), lambda node: isinstance(node, ast.ClassDef) and bool(empty.search(node.name))) == []


def test_modules_say_what_they_own() -> None:
    """Every module that has code begins with a docstring."""
    silent = [path for path in [*shipped(), *modules("checks", "bench")] if parsed(path).body and not ast.get_docstring(parsed(path))]
    assert [str(path.relative_to(ROOT)) for path in silent] == []


def test_decisions_are_documented() -> None:
    """Every public function of `schemas` and `pipeline` says in a docstring what it does."""
    undocumented = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in modules("schemas", "pipeline")
        for node in parsed(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert undocumented == []


def test_nothing_is_left_to_do() -> None:
    """No file carries a marker of unfinished work."""
    assert lines_with(MARKERS) == []


def test_nothing_names_a_machine() -> None:
    """No file names a directory of the machine it was written on."""
    assert lines_with(MACHINE_PATHS) == []


def test_nothing_names_a_registry_host() -> None:
    """Packages come from wherever pip, uv and the embedded broker are told to get them."""
    assert lines_with(REGISTRY_HOSTS, besides=frozenset({"tests/architecture/test_house_rules.py"})) == []


def test_only_the_command_line_prints() -> None:
    """`print` is the command line's; everything else logs."""
    quiet = modules(*(package for package in PACKAGES if package != "cli"))
    assert places(quiet, lambda node: isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print") == []


def test_no_exception_is_swallowed_unnamed() -> None:
    """No bare except, and no except whose body is `pass` alone."""

    def swallows(node: ast.AST) -> bool:
        if not isinstance(node, ast.ExceptHandler):
            return False
        names = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else set()
        return node.type is None or bool(names & {"Exception", "BaseException"} and all(isinstance(part, ast.Pass) for part in node.body))

    assert places(shipped(), swallows) == []


def test_input_is_not_checked_by_assert() -> None:
    """`assert` is gone under `python -O`; shipped code raises."""
    assert places(shipped(), lambda node: isinstance(node, ast.Assert)) == []


def test_modules_stay_readable_in_one_sitting() -> None:
    """No module outgrows its limit, and no exception is kept that is not needed."""
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in shipped()}
    assert {name: lines for name, lines in lengths.items() if lines > LONGER.get(name, LINES_MAX)} == {}
    assert {name for name in LONGER if lengths.get(name, 0) <= LINES_MAX} == set()


def test_functions_stay_readable_on_one_screen() -> None:
    """No function outgrows its limit."""
    long = {
        f"{path.relative_to(ROOT).as_posix()}:{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in shipped()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in long.items() if lines > LONGER_FUNCTIONS.get(name, FUNCTION_LINES_MAX)} == {}


def test_packages_on_disk_are_the_packages_that_ship() -> None:
    """pyproject lists every package that lies in the tree, and no other: one that is missing there is missing in an installation."""
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    on_disk = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert set(configuration["tool"]["setuptools"]["packages"]) == on_disk


@pytest.mark.parametrize("name", PINNED)
def test_library_with_private_names_in_use_is_pinned(name: str) -> None:
    """Libraries whose private names or exact requests matter are pinned to one version, and that version is installed."""
    lines = (ROOT / "requirements.in").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line.split(" #")[0]) for line in lines if line and not line.startswith("#")]
    assert [str(requirement.specifier) for requirement in requirements if requirement.name == name] == [f"=={version(name)}"]


def test_version_is_the_same_everywhere() -> None:
    """What the audit trail states as the software's version is the version of the package and of the changelog's newest release."""
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    released = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released is not None
    assert {SOFTWARE_VERSION, configuration["project"]["version"], released[1]} == {version("crypto-orchestrator")}


def test_no_faust_app_is_made_at_import() -> None:
    """An app at module level would be made by whoever imports the module, a test or a tool too."""

    def outer_calls(node: ast.AST) -> Iterator[ast.Call]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.Call):
                yield child
            yield from outer_calls(child)

    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in shipped()
        for call in outer_calls(parsed(path))
        if ast.unparse(call.func).rsplit(".", 1)[-1].endswith("App") and not ast.unparse(call.func).endswith("typer.Typer")
    ]
    assert found == []


def test_tests_state_their_claims() -> None:
    """Every test says in its docstring what it claims."""
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in modules("tests")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert silent == []
