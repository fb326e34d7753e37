"""The documents say what the code does, as far as a program can tell."""

import ast
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest

from agents.process.worker import exit_code_of
from checks.generate_docs import documents, exit_codes, problems, settings, with_parts
from checks.tree import ROOT, files
from infra.settings import Settings
from pipeline.model.crash_points import CrashPoint
from schemas.reasons import MEANING, ReasonCode

MARKDOWN = sorted(path for path in files() if path.suffix == ".md")
# Read by the settings' own loader, not fields of theirs.
BESIDES_SETTINGS = {"CONFIG", "OPERATOR_TOKEN_FILE"}
# Results of a run on the reader's own machine.
MADE_BY_COMMANDS = {"bench/latest.json", "bench/latest-gate.json", "bench/latest-ledger.json"}


def heading_anchors(text: str) -> set[str]:
    """The anchors that a forge makes of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_generated_documents_are_current() -> None:
    """`make docs` would change nothing."""
    assert problems(ROOT) == []


def test_generated_documents_check_finds_a_stale_one(tmp_path: Path) -> None:
    """A table that was edited by hand, or a file that is missing, is named."""
    for path, text in documents(ROOT).items():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    assert problems(tmp_path) == []
    operations = tmp_path / "docs/operations.md"
    operations.write_text(operations.read_text().replace("`ORCHESTRATOR_DATA_DIR`", "`ORCHESTRATOR_DATA_DIRECTORY`", 1))
    (tmp_path / "docs/topics.md").unlink()
    assert sorted(problem.split(" ")[0] for problem in problems(tmp_path)) == ["docs/operations.md", "docs/topics.md"]


def test_generated_part_that_is_missing_is_refused() -> None:
    """A document that lost a generated part is not passed over."""
    with pytest.raises(ValueError, match="must have exactly these generated parts: exit-codes, settings"):
        with_parts("<!-- generated: settings -->\n<!-- end -->\n", {"settings": settings, "exit-codes": exit_codes}, "operations.md")


@pytest.mark.parametrize("code", ReasonCode)
def test_reason_code_has_a_meaning(code: ReasonCode) -> None:
    """Every code is explained in sentences for the one who sent the request."""
    assert MEANING[code].endswith(".")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_setting_is_explained(name: str) -> None:
    """Every setting says in a docstring what it means."""
    assert str(Settings.model_fields[name].description).endswith(".")


def test_settings_that_are_named_exist() -> None:
    """Every `ORCHESTRATOR_…` in a document, in the compose file and in the image is a setting."""
    known = {name.upper() for name in Settings.model_fields} | BESIDES_SETTINGS
    sources = [*MARKDOWN, ROOT / "docker-compose.yml", ROOT / "Dockerfile", ROOT / "Makefile"]
    named = {
        (path.name, name)
        for path in sources
        for name in re.findall(r"ORCHESTRATOR_([A-Z][A-Z0-9_]*[A-Z0-9])", path.read_text(encoding="utf-8"))
    }
    assert sorted((path, name) for path, name in named if name not in known) == []


def _paths_not_there(text: str, folder: Path) -> list[str]:
    """The paths of this repository in a text that nothing is at, from the root or from the text's own folder. What follows a module's name
    with a dot is in the module."""
    known = {path.relative_to(ROOT).parts[0] for path in files() if path.parent != ROOT}
    named = re.findall(r"(?<![\w./:-])((?:[\w.-]+/)+[\w.*-]*[\w*])", text)
    return [
        path
        for path in named
        if path.split("/")[0] in known
        and path not in MADE_BY_COMMANDS
        and not any((base / form).exists() or any(base.glob(form)) for base in (ROOT, folder) for form in _forms(path))
    ]


def _forms(path: str) -> tuple[str, ...]:
    folders, _, name = path.rpartition("/")
    return path, f"{path}.py", f"{folders}/{name.partition('.')[0]}.py"


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_paths_that_are_named_exist(path: Path) -> None:
    """Every file and folder of this repository that a document names is there."""
    assert _paths_not_there(path.read_text(encoding="utf-8"), path.parent) == []


@pytest.mark.parametrize("gone", ["docs/nothing.md", "infra/nothing", "pipeline/gate/nothing.at_all", "tests/unit/test_no_*.py"])
def test_path_that_is_not_there_is_found(gone: str) -> None:
    """A file, a module, what is in one, and a pattern that fits nothing."""
    assert _paths_not_there(f"See `{gone}` and `agents/process/app.py`.", ROOT) == [gone]


def test_commands_that_are_named_exist() -> None:
    """Every `make TARGET` in a document is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for path in MARKDOWN for name in re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)}
    assert named
    assert named - targets == set()


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link of a document names a file that is there, and a heading in it."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in heading_anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    assert broken == []


def test_errors_that_end_a_worker_are_documented() -> None:
    """Every exception that has an exit code of its own has a line that says what it means and what to do."""
    source = ast.parse(inspect.getsource(exit_code_of))
    named = {node.cls.id for node in ast.walk(source) if isinstance(node, ast.MatchClass) and isinstance(node.cls, ast.Name)}
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    assert sorted(name for name in named - {"KafkaError"} if not re.search(rf"^\|.*`{name}`.*\| .+ \| .+ \|$", text, re.MULTILINE)) == []


@pytest.mark.parametrize("point", CrashPoint)
def test_crash_point_is_documented(point: CrashPoint) -> None:
    """The architecture says what the next owner finds and does, for each crash point."""
    assert re.search(rf"^\| `{point.value}` \| .+ \| .+ \|$", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), re.MULTILINE)


_MAKERS = frozenset({"_trip", "halt_user"})


def _trips_made(source: str) -> int:
    """How many places of a module stop trading by themselves: each makes a trip, or asks one of the makers of trips for it."""
    tree = ast.parse(source)
    makers = {id(call) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in _MAKERS for call in ast.walk(node)}
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call) and id(node) not in makers]
    return sum(getattr(func, "id", getattr(func, "attr", None)) in {"HaltTrip", *_MAKERS} for func in calls)


def test_operations_list_every_trip() -> None:
    """Each place in the code at which the system stops trading by itself has a row that says what it sees and what ends the cause."""
    sources = [path for path in files() if path.suffix == ".py" and not path.is_relative_to(ROOT / "tests")]
    made = {str(path.relative_to(ROOT)): _trips_made(path.read_text(encoding="utf-8")) for path in sources}
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    table = text.partition("### What stops by itself")[2].partition("Only an operator resumes")[0]
    listed = Counter(re.findall(r"\| \[(\S+)\]\(\.\./\1\) \|$", table, re.MULTILINE))
    assert len(table.strip().splitlines()) - 4 == listed.total()
    assert listed == {module: count for module, count in made.items() if count}
