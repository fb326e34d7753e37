"""Settings that are fit for a sandbox and refused where money is real."""

from pathlib import Path

import pytest

from agents.process.permitted import ExchangeNotPermitted, require_permitted, trades_real_money
from agents.process.read_lags import timeout_refusal
from infra.postgres.durability import durability_problems
from infra.settings import Settings

_DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}


@pytest.mark.parametrize("milliseconds", [0, 9_999])
def test_venue_timeout_below_the_venues_own_is_refused_for_real_money(milliseconds: int, tmp_path: Path) -> None:
    """An order that the exchange still works on would count as not executed. A simulated exchange may be given less."""
    keys = tmp_path / "secret"
    keys.write_bytes(b"k" * 64)
    real = Settings(token_keys_file=keys, venue_timeout_ms=milliseconds, exchanges=("binance",), exchange_urls={})
    assert trades_real_money(real)
    with pytest.raises(ExchangeNotPermitted, match="ORCHESTRATOR_VENUE_TIMEOUT_MS must be 10000 or more"):
        require_permitted(real)
    simulated = real.model_copy(update={"exchange_urls": {"binance": "http://127.0.0.1:9"}})
    assert not trades_real_money(simulated)
    require_permitted(simulated)


def test_default_windows_are_fit_for_real_money() -> None:
    """What is shipped is what production runs."""
    assert timeout_refusal(Settings(exchanges=("binance",))) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fsync", "off"),
        ("full_page_writes", "off"),
        ("synchronous_commit", "off"),
        ("synchronous_commit", "local"),
        ("synchronous_commit", "remote_write"),
    ],
)
def test_commit_that_a_power_failure_loses_is_told(name: str, value: str) -> None:
    """Each of the three settings that decide about that."""
    assert durability_problems({**_DURABLE, name: value}) == [f"{name} is {value}"]
    assert durability_problems({**_DURABLE, "synchronous_commit": "remote_apply"}) == []
