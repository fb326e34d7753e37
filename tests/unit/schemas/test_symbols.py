"""What a symbol is, and what is taken for another."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.gate.check import Step
from pipeline.gate.ladder import refusal_of
from schemas.commands import HaltScope, _Scoped
from schemas.reasons import ReasonCode
from schemas.symbols import is_symbol, skeleton
from tests.unit.builders import BTC_USDT, market_data, trade
from tests.unit.gate_builders import code_of, context_of, first_refusal

CHINESE = "币安人生/USDT"


def listed(symbol: str) -> dict[str, object]:
    base, _, quote = symbol.partition("/")
    market = replace(BTC_USDT, symbol=symbol, base=base, quote=quote, notional_min=Decimal(0))
    return {"market_data": market_data(markets=[BTC_USDT, market], prices={"BTC/USDT": Decimal(50_000), symbol: Decimal("50000")})}


@pytest.mark.parametrize("symbol", [CHINESE, "1000SATS/USDT", "BTC/USDT", "ÄPFEL/USDT", "1/USDT"])
def test_listed_symbol_of_any_script_passes(symbol: str) -> None:
    """What the exchange lists is traded."""
    assert is_symbol(symbol)
    assert code_of(trade(symbol=symbol), **listed(symbol)) is None


@pytest.mark.parametrize(
    "symbol",
    ["BTCUSDT", "btc/usdt", "BTC/USDT/X", "/USDT", "BTC/", "BTC /USDT", "BTC/USDT\n", "BTC/USDT\x00", "BTC\u200b/USDT", "A" * 21 + "/USDT",
     "BTC-/USDT", "A\u0308PFEL/EUR", "\u202eBTC/USDT"],
)  # fmt: skip
def test_what_is_no_symbol_is_refused(symbol: str) -> None:
    """Another form, blanks, invisible characters, and what is not in normal form C."""
    assert not is_symbol(symbol)
    assert code_of(trade(symbol=symbol)) is ReasonCode.SYMBOL_INVALID


@pytest.mark.parametrize(
    ("symbol", "code"),
    [
        ("ＢＴＣ/USDT", ReasonCode.SYMBOL_UNKNOWN),
        ("ВТС/USDT", ReasonCode.SYMBOL_UNKNOWN),
        ("ΒΤC/USDT", ReasonCode.SYMBOL_UNKNOWN),
        ("BTC/USDТ", ReasonCode.SYMBOL_UNKNOWN),
        ("B\u200bTC/USDT", ReasonCode.SYMBOL_INVALID),
        ("BTC\u2060/USDT", ReasonCode.SYMBOL_INVALID),
        ("btc/usdt", ReasonCode.SYMBOL_INVALID),
        ("BTC/USDT ", ReasonCode.SYMBOL_INVALID),
        ("𝐁𝐓𝐂/USDT", ReasonCode.SYMBOL_UNKNOWN),
    ],
)
def test_look_alike_of_a_listed_symbol_is_refused_by_name(symbol: str, code: ReasonCode) -> None:
    """The answer names the symbol that it is taken for, and nothing of it is executed."""
    refusal = first_refusal(context_of(trade(symbol=symbol)))
    assert refusal is not None
    assert refusal.code is code
    assert "it looks like BTC/USDT but is not" in refusal.reason


def test_symbol_like_no_other_is_refused_without_a_name() -> None:
    """One that nobody lists and that looks like none is told as such."""
    refusal = first_refusal(context_of(trade(symbol="DOGE/USDT")))
    assert refusal is not None
    assert refusal.code is ReasonCode.SYMBOL_UNKNOWN
    assert "looks like" not in refusal.reason


def test_symbol_itself_is_no_look_alike_of_another() -> None:
    """A symbol that is listed passes though its name could be taken for another's."""
    assert refusal_of(context_of(trade(symbol="ВТС/USDT"), **listed("ВТС/USDT")), Step.CONNECTION) is None


@given(st.text(max_size=70))
def test_any_text_has_a_skeleton_and_is_a_symbol_or_none(text: str) -> None:
    """Nothing that a producer sends raises; what is a symbol can be encoded and is printable."""
    skeleton(text)
    if is_symbol(text):
        assert text.encode()
        assert text.isprintable()


def test_halt_takes_a_symbol_of_any_script() -> None:
    """What can be traded can be halted."""
    assert _Scoped(scope=HaltScope.SYMBOL, target=CHINESE).target == CHINESE
