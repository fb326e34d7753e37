"""The ten steps of a trade are where the outline says."""

import importlib
from operator import attrgetter

import pytest

from checks.generate_docs import ten_steps
from checks.outline import TEN_STEPS, TradeStep
from checks.tree import ROOT


def test_outline_has_ten_steps_in_order() -> None:
    """They are numbered from one to ten, each with a name of its own."""
    assert [step.number for step in TEN_STEPS] == list(range(1, 11))
    assert len({step.name for step in TEN_STEPS}) == 10


@pytest.mark.parametrize("step", TEN_STEPS, ids=[step.name for step in TEN_STEPS])
def test_step_is_where_the_outline_says(step: TradeStep) -> None:
    """Every place exists, and can be called."""
    for place in step.places:
        module, _, name = place.partition(":")
        assert callable(attrgetter(name)(importlib.import_module(module)))


def test_architecture_shows_the_outline() -> None:
    """docs/architecture.md has the ten steps as the code names them."""
    assert ten_steps() in (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
