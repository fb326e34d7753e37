"""docker-compose.yml is valid, and the check that says so fails on every kind of mistake it is there for."""

import ast
import importlib
from pathlib import Path

import pytest
import yaml

from checks.compose import problems
from checks.tree import ROOT

TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")

# (what stands in the file, what is put in its place, a part of the problem that must be named)
MISTAKES = [
    ("restart: always", "restart: sometimes", "restart has a value of the wrong form"),
    ("restart: unless-stopped", "restart: no", "restart has a value of the wrong form"),
    ("    restart: unless-stopped\n", "", "says nothing about restart"),
    ("image: postgres:18", "image: postgres", "not pinned"),
    ("image: postgres:18", "image: postgres:latest", "not pinned"),
    ("image: postgres:18", "imagee: postgres:18", "imagee is no key"),
    ("    image: postgres:18\n", "", "neither image nor build"),
    ("build: .", "build: ./nowhere", "Dockerfile is missing"),
    ("condition: service_healthy", "condition: service_well", "depends_on has a value of the wrong form"),
    ("    kafka:\n      condition", "    kafca:\n      condition", "depends on kafca, which is not there"),
    ("interval: 5s", "interval: 5 seconds", "healthcheck has a value of the wrong form"),
    ('test: ["CMD", "pg_isready"', 'test: ["pg_isready"', "healthcheck has a value of the wrong form"),
    ('KAFKA_NODE_ID: "1"', "KAFKA_NODE_ID: 1", "environment has a value of the wrong form"),
    ("127.0.0.1:9094:9094", "9094:9094", "open to other machines"),
    ("127.0.0.1:8082:8080", "127.0.0.1:8080:8080", "published by worker-1 already"),
    ("127.0.0.1:9094:9094", "127.0.0.1:99999:9094", "out of range"),
    ("  simulator-data:\n", "", "simulator-data is used but not declared"),
    ("volumes:\n  kafka-data:", "volumes:\n  spare-data:\n  kafka-data:", "spare-data is declared but not used"),
    ("POSTGRES_PASSWORD: ${POSTGRES_PASSWORD:?run make env-file first}", "POSTGRES_PASSWORD: letmein", "a secret is written out"),
    ("${POSTGRES_PASSWORD:?run make env-file first}@", "letmein@", "a password is written out in an address"),
    ("${ORCHESTRATOR_MASTER_KEY:?run", "${ORCHESTRATOR_MASTER_KEY:-run", "has a default that everybody knows"),
    ("ORCHESTRATOR_WEB_PORT", "ORCHESTRATOR_WEB_PROT", "there is no such setting"),
    ("${POSTGRES_PASSWORD:?run", "$POSTGRES_PASSWORD:?run", "is no substitution"),
    ("services:\n", "service:\n", "service: is no top-level element"),
    ("  postgres:\n    image", "  kafka:\n    image", "given twice"),
    ("services:\n", "services: [\n", "is no YAML"),
    ("&image", "&picture", "is no YAML"),
]


def test_compose_file_is_valid() -> None:
    """The file that ships has no problem."""
    assert problems(TEXT, ROOT) == []


@pytest.mark.parametrize(("right", "wrong", "problem"), MISTAKES, ids=lambda text: text.strip()[:40])
def test_compose_file_with_a_mistake_is_refused(right: str, wrong: str, problem: str) -> None:
    """Each mistake, made once in the file that ships, is named."""
    assert right in TEXT
    assert any(problem in found for found in problems(TEXT.replace(right, wrong, 1), ROOT))


def test_compose_file_with_a_circle_is_refused() -> None:
    """Services that wait for each other never start; the check names the circle."""
    circle = "    depends_on:\n      worker-1:\n        condition: service_healthy\n"
    text = TEXT.replace("    command: [\"simulator\"", circle + "    command: [\"simulator\"", 1)
    assert any("in a circle" in found for found in problems(text, ROOT))


def test_workers_are_started_again_whatever_their_exit_code() -> None:
    """A worker ends by design when it is fenced or stands still, so its restart policy knows no exception, and a stop leaves it time."""
    services = yaml.safe_load(TEXT)["services"]
    workers = {name: service for name, service in services.items() if service.get("command") == ["worker"]}
    assert len(workers) == 2
    assert {service["restart"] for service in workers.values()} == {"always"}
    assert {service["stop_grace_period"] for service in workers.values()} == {"30s"}


def test_program_in_the_compose_file_names_what_exists() -> None:
    """The program that opens the trial accounts compiles, and imports and calls what is there, with arguments that are taken."""
    program = yaml.safe_load(TEXT)["services"]["trial-users"]["command"][0]
    tree = ast.parse(program)
    imported = {
        alias.name: getattr(importlib.import_module(node.module or ""), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in imported]
    taken = set(imported["ensure_trial_users"].__annotations__)
    keywords = {keyword.arg for call in calls for keyword in call.keywords}
    assert keywords == taken - {"settings", "return"}


def test_image_holds_what_it_copies() -> None:
    """Every file that the Dockerfile copies from the tree is there and let through by .dockerignore."""
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_through = {line[1:] for line in ignore if line.startswith("!")}
    copied: set[str] = set()
    for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= set(line.split()[1:-1])
    assert copied == let_through
    assert [name for name in sorted(copied) if not Path(ROOT / name).exists()] == []
