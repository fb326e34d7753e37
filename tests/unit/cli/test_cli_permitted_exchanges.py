"""Which exchanges a worker may trade at that does not ask who sends."""

from pathlib import Path

import pytest

from agents.process.permitted import ExchangeNotPermitted, require_permitted
from agents.process.worker import ExitCode, run_worker
from infra.settings import Settings
from infra.trusted_keys import TrustedKeysError


def test_worker_with_an_exchange_without_base_address_is_refused_by_name() -> None:
    """Of two exchanges the one without an address is named, and what to set."""
    settings = Settings(authentication="sandbox", exchanges=("binance", "binanceus"), exchange_urls={"binance": "http://127.0.0.1:1"})
    with pytest.raises(ExchangeNotPermitted, match=r"binanceus: no base address in ORCHESTRATOR_EXCHANGE_URLS"):
        require_permitted(settings)


def test_worker_with_an_empty_base_address_is_refused() -> None:
    """An empty address would mean the exchange's own one."""
    with pytest.raises(ExchangeNotPermitted):
        require_permitted(Settings(authentication="sandbox", exchanges=("binance",), exchange_urls={"binance": ""}))


@pytest.mark.parametrize("address", ["https://api.binance.com", "https://API1.Binance.com./", "https://api.binance.us:443/api"])
def test_worker_with_the_address_of_a_real_exchange_is_refused(address: str) -> None:
    """Naming the real exchange as its own sandbox does not open the way to real money."""
    with pytest.raises(ExchangeNotPermitted, match="real exchange"):
        require_permitted(Settings(authentication="sandbox", exchanges=("binance",), exchange_urls={"binance": address}))


def test_worker_with_a_sandbox_of_the_exchange_is_permitted() -> None:
    """The exchange's own sandbox trades for nothing."""
    require_permitted(Settings(authentication="sandbox", exchanges=("binance",), exchange_urls={"binance": "https://testnet.binance.vision"}))


def test_worker_with_base_addresses_for_all_exchanges_is_permitted() -> None:
    """An address for every exchange is all it takes."""
    require_permitted(Settings(authentication="sandbox", exchanges=("binance",), exchange_urls={"binance": "http://127.0.0.1:1", "kraken": "http://x"}))


def test_run_worker_without_base_address_ends_with_the_code_for_settings_before_it_reaches_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends at once though neither broker nor database exists: nothing was asked of them."""
    monkeypatch.setattr("agents.process.worker.configure_logging", lambda _: None)
    settings = Settings(authentication="sandbox", exchanges=("binance",), exchange_urls={})
    assert run_worker(settings, "127.0.0.1:1", "postgresql://127.0.0.1:1/x") == ExitCode.SETTINGS


def test_worker_that_asks_for_tokens_and_has_no_keys_is_refused_before_it_reaches_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could trade: it says so at once, though neither broker nor database exists."""
    monkeypatch.setattr("agents.process.worker.configure_logging", lambda _: None)
    with pytest.raises(TrustedKeysError, match="ORCHESTRATOR_TOKEN_KEYS_FILE"):
        require_permitted(Settings())
    assert run_worker(Settings(), "127.0.0.1:1", "postgresql://127.0.0.1:1/x") == ExitCode.SETTINGS


def test_worker_that_asks_for_tokens_may_trade_at_the_real_exchange(tmp_path: Path) -> None:
    """With the keys to check tokens by, an exchange's own address is permitted."""
    keys = tmp_path / "secret"
    keys.write_text("x7" * 32)
    require_permitted(Settings(token_keys_file=keys, exchange_urls={}))
