"""The markets: assets, ticks, steps and limits as Binance has them, and how `exchangeInfo` shows them.

BTCUSDT has a step of 0.000001 where Binance now has 0.00001, so that the quantities of recorded trades of 2021 (six places) are valid.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

ORDER_TYPES: Final = ("LIMIT", "LIMIT_MAKER", "MARKET")
ASSETS: Final = ("BTC", "ETH", "SOL", "BNB", "USDT")


@dataclass(frozen=True, slots=True)
class Symbol:
    """`depth_quantity`: how much base stands at each price level; a larger order fills at several prices, `slip_ticks` apart."""

    name: str
    base: str
    quote: str
    tick: Decimal
    step: Decimal
    price_max: Decimal
    quantity_max: Decimal
    market_quantity_max: Decimal
    notional_min: Decimal
    start_price: Decimal
    depth_quantity: Decimal
    slip_ticks: int
    # Down and up, as multiples of the last price.
    bid_multipliers: tuple[Decimal, Decimal] = (Decimal("0.2"), Decimal(5))
    ask_multipliers: tuple[Decimal, Decimal] = (Decimal("0.2"), Decimal(5))
    market_quantity_min: Decimal = Decimal(0)
    notional_max: Decimal = Decimal(9_000_000)
    open_orders_max: int = 200
    # Zero: as much as somebody wants.
    position_max: Decimal = Decimal(0)

    def is_on_tick(self, price: Decimal) -> bool:
        return price % self.tick == 0

    def is_on_step(self, quantity: Decimal) -> bool:
        return quantity % self.step == 0

    def round_to_tick(self, price: Decimal) -> Decimal:
        """The nearest price not below one tick."""
        return max(self.tick, (price / self.tick).quantize(Decimal(1)) * self.tick)

    def floor_to_step(self, quantity: Decimal) -> Decimal:
        return quantity // self.step * self.step


def make_symbols(notional_min: Decimal) -> dict[str, Symbol]:
    """The markets by name. `notional_min` is in USDT; ETHBTC keeps Binance's 0.0001 BTC unless it is zero."""
    d = Decimal
    btc_notional = d("0.0001") if notional_min else d(0)
    million = d(1_000_000)
    rows = (
        Symbol("BTCUSDT", "BTC", "USDT", d("0.01"), d("0.000001"), million, d(9000), d(120), notional_min, d("39432.48"), d(5), 5),
        Symbol("ETHUSDT", "ETH", "USDT", d("0.01"), d("0.0001"), million, d(9000), d(3000), notional_min, d("1224.70"), d(100), 2),
        Symbol(
            "SOLUSDT", "SOL", "USDT", d("0.01"), d("0.001"), d(100_000), d(90_000), d(40_000), notional_min, d("141.50"), d(1000), 1,
            bid_multipliers=(d("0.5"), d("1.3")), ask_multipliers=(d("0.7"), d(2)), market_quantity_min=d("0.002"),
        ),
        Symbol(
            "BNBUSDT", "BNB", "USDT", d("0.01"), d("0.001"), d(100_000), d(9_000), d(2_000), notional_min, d("605.20"), d(300), 1,
            position_max=million,
        ),
        Symbol("ETHBTC", "ETH", "BTC", d("0.00001"), d("0.0001"), d(922), d(100_000), d(3000), btc_notional, d("0.03106"), d(100), 1),
    )
    return {row.name: row for row in rows}


def exchange_info_row(symbol: Symbol) -> dict[str, object]:
    """One entry of `symbols` in GET /api/v3/exchangeInfo."""
    return {
        "symbol": symbol.name,
        "status": "TRADING",
        "baseAsset": symbol.base,
        "baseAssetPrecision": 8,
        "quoteAsset": symbol.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "baseCommissionPrecision": 8,
        "quoteCommissionPrecision": 8,
        "orderTypes": list(ORDER_TYPES),
        "icebergAllowed": False,
        "ocoAllowed": False,
        "otoAllowed": False,
        "quoteOrderQtyMarketAllowed": True,
        "allowTrailingStop": False,
        "cancelReplaceAllowed": False,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": f"{symbol.tick:.8f}",
                "maxPrice": f"{symbol.price_max:.8f}",
                "tickSize": f"{symbol.tick:.8f}",
            },
            {
                "filterType": "LOT_SIZE",
                "minQty": f"{symbol.step:.8f}",
                "maxQty": f"{symbol.quantity_max:.8f}",
                "stepSize": f"{symbol.step:.8f}",
            },
            {
                "filterType": "MARKET_LOT_SIZE",
                "minQty": f"{symbol.market_quantity_min:.8f}",
                "maxQty": f"{symbol.market_quantity_max:.8f}",
                "stepSize": "0.00000000",
            },
            {
                "filterType": "NOTIONAL",
                "minNotional": f"{symbol.notional_min:.8f}",
                "applyMinToMarket": True,
                "maxNotional": f"{symbol.notional_max:.8f}",
                "applyMaxToMarket": False,
                "avgPriceMins": 0,
            },
            {
                "filterType": "PERCENT_PRICE_BY_SIDE",
                "bidMultiplierUp": f"{symbol.bid_multipliers[1]}",
                "bidMultiplierDown": f"{symbol.bid_multipliers[0]}",
                "askMultiplierUp": f"{symbol.ask_multipliers[1]}",
                "askMultiplierDown": f"{symbol.ask_multipliers[0]}",
                "avgPriceMins": 0,
            },
            {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": symbol.open_orders_max},
            {"filterType": "MAX_NUM_ALGO_ORDERS", "maxNumAlgoOrders": 5},
            *([{"filterType": "MAX_POSITION", "maxPosition": f"{symbol.position_max:.8f}"}] if symbol.position_max else []),
        ],
        "permissions": [],
        "permissionSets": [["SPOT"]],
        "defaultSelfTradePreventionMode": "EXPIRE_MAKER",
        "allowedSelfTradePreventionModes": ["EXPIRE_TAKER", "EXPIRE_MAKER", "EXPIRE_BOTH"],
    }
