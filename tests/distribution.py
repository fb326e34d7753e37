"""How the tests are dealt out to the processes of a run (`pytest -n 3 --dist=loadgroup`).

1. Tests of one `xdist_group` run in one process, one after another: what they share is started once. pytest-xdist 3.8 hands groups on in
   the tests' ids, which pytest 9.2 does not let it change (https://github.com/pytest-dev/pytest-xdist/issues/1386), and deals out every
   test by itself without a word. So groups are read from the files here, and tests/conftest.py fails the tests of a divided group.
2. Tests that wait and tests that compute take turns (`mixed`).
"""

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# The directories of tests that start servers and workers.
_WAITING = frozenset({"crash", "integration"})


def groups_of(directory: Path) -> dict[str, str]:
    """The group of each file whose `pytestmark` names one, by the file's path inside `directory`."""
    found = {}
    for file in directory.rglob("test_*.py"):
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "pytestmark" for to in node.targets):
                for call in ast.walk(node.value):
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "xdist_group":
                        found[str(file.relative_to(directory))] = str(ast.literal_eval(call.args[0]))
    return found


class GroupScheduling(LoadScopeScheduling):
    """Deals out groups as wholes and every other test by itself, in the order in which they were collected."""

    def __init__(self, config: pytest.Config, log: Producer, groups: Mapping[str, str]) -> None:
        super().__init__(config, log)
        self._groups = groups
        # The order is that of `mixed`.
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return self._groups.get(nodeid.partition("::")[0], nodeid)


def mixed(items: list[pytest.Item]) -> list[pytest.Item]:
    """The tests in such an order that those with servers and workers, which wait half of their time, and the others, which compute, come to
    their end together: the processes of a run are more than the cores, so neither cores nor waits stand idle. Of either kind groups come
    first, then tests with a time limit of their own, which are the longest, so that none is left running alone at the end."""
    kinds: tuple[list[pytest.Item], list[pytest.Item]] = ([], [])
    for item in sorted(items, key=_precedence):
        kinds[item.path.parent.name in _WAITING].append(item)
    places = [((number + 0.5) / len(kind), item) for kind in kinds for number, item in enumerate(kind)]
    return [item for _, item in sorted(places, key=lambda place: place[0])]


def _precedence(item: pytest.Item) -> int:
    if item.get_closest_marker("xdist_group") is not None:
        return 0
    return 1 if item.get_closest_marker("timeout") is not None else 2
