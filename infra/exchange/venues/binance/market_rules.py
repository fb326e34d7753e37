"""The rules that a venue publishes about a market, read from its own list of filters: by its numbers, not by what a client makes of them.

Binance spot API, "Filters" (symbol filters). A number of zero switches its part of a rule off. Rules about what is never sent here (iceberg
and trailing orders, amendments, order lists) are known by name; a rule of another name is told by `unknown_rules`, because an order that
breaks it is refused by the venue only after its funds are held.

Start with `read_market`.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

from infra.exchange.venues.reading import UnreadableBooks, amount, text
from pipeline.model.venue import Lot, Market, PriceBand
from schemas.orders import OrderType
from schemas.symbols import is_symbol

_ZERO: Final = Decimal(0)
_ASSET_MAX: Final = 64
_COUNT_MAX: Final = 10**9
_PLACES_MAX: Final = 18
_TRADING: Final = "TRADING"
# The group of permissions that ccxt, too, takes for a market of the past.
_GROUP_CLOSED: Final = "TRD_GRP_003"
_READ: Final = frozenset({
    "PRICE_FILTER", "PERCENT_PRICE", "PERCENT_PRICE_BY_SIDE", "LOT_SIZE", "MARKET_LOT_SIZE", "MIN_NOTIONAL", "NOTIONAL", "MAX_NUM_ORDERS",
    "MAX_POSITION",
})
# About stop and iceberg orders, order lists and amendments, none of which is offered.
_OF_NO_ORDER_HERE: Final = frozenset({
    "MAX_NUM_ALGO_ORDERS", "MAX_NUM_ICEBERG_ORDERS", "ICEBERG_PARTS", "TRAILING_DELTA", "MAX_NUM_ORDER_AMENDS", "MAX_NUM_ORDER_LISTS",
})
_ORDER_TYPES: Final[Mapping[str, OrderType]] = {
    "MARKET": OrderType.MARKET,
    "LIMIT": OrderType.LIMIT,
    "LIMIT_MAKER": OrderType.LIMIT_MAKER,
    "STOP_LOSS": OrderType.STOP_LOSS,
    "STOP_LOSS_LIMIT": OrderType.STOP_LOSS_LIMIT,
    "TAKE_PROFIT": OrderType.TAKE_PROFIT,
    "TAKE_PROFIT_LIMIT": OrderType.TAKE_PROFIT_LIMIT,
}


def read_market(symbol: str, row: Mapping[str, Any]) -> Market:
    """The market of one row of ccxt's table, whose `info` is the venue's own row. Raises UnreadableBooks where a rule is there and cannot
    be read: no amount for it could be checked."""
    if not is_symbol(symbol):
        raise UnreadableBooks("its symbol is none")
    info = row["info"]
    rules = _by_type(info["filters"])
    price, lot = rules.get("PRICE_FILTER"), rules.get("LOT_SIZE")
    if price is None or lot is None:
        raise UnreadableBooks("it tells no steps of prices or quantities")
    notionals = [rule for name in ("MIN_NOTIONAL", "NOTIONAL") if (rule := rules.get(name)) is not None]
    return Market(
        symbol=text(symbol, "symbol"),
        base=text(row["base"], "base asset", _ASSET_MAX),
        quote=text(row["quote"], "quote asset", _ASSET_MAX),
        active=_is_trading(info),
        price_tick=amount(price["tickSize"], "price tick"),
        price_min=amount(price["minPrice"], "least price"),
        price_max=_bound(price["maxPrice"], "greatest price"),
        percent_band=_percent_band(rules),
        quantity_step=amount(lot["stepSize"], "quantity step"),
        quantity_min=amount(lot["minQty"], "least quantity"),
        quantity_max=_bound(lot["maxQty"], "greatest quantity"),
        market_lot=_market_lot(rules.get("MARKET_LOT_SIZE")),
        notional_min=max((amount(rule["minNotional"], "least value") for rule in notionals), default=_ZERO),
        notional_min_on_market=any(_flag(rule, "applyToMarket", "applyMinToMarket") for rule in notionals),
        notional_max=min((most for rule in notionals if (most := _bound(rule.get("maxNotional", 0), "greatest value"))), default=None),
        notional_max_on_market=any(_flag(rule, "applyMaxToMarket", missing=False) for rule in notionals),
        quote_places=_places(info.get("quoteAssetPrecision", info.get("quotePrecision"))),
        quote_quantity_taken=info.get("quoteOrderQtyMarketAllowed", True) is not False,
        order_types=_order_types(info.get("orderTypes")),
        resting_orders_max=_count(rules, "MAX_NUM_ORDERS", "maxNumOrders", "limit"),
        position_max=None if (rule := rules.get("MAX_POSITION")) is None else _bound(rule["maxPosition"], "greatest position"),
        taker_fee_rate=amount(row.get("taker"), "taker fee"),
        market_id=text(row.get("id"), "the name of the market", _ASSET_MAX) or None,
    )


def unknown_rules(markets: Iterable[Mapping[str, Any]]) -> set[str]:
    """The names of rules that some of these rows of ccxt's table have and nobody here knows."""
    found: set[str] = set()
    for row in markets:
        filters = row["info"].get("filters") if isinstance(row.get("info"), Mapping) else None
        found |= {
            name for rule in filters if isinstance(rule, Mapping) and isinstance(name := rule.get("filterType"), str)
        } if isinstance(filters, list) else set()
    return found - _READ - _OF_NO_ORDER_HERE


def _by_type(filters: Any) -> dict[str, Mapping[str, Any]]:
    if not isinstance(filters, list):
        raise UnreadableBooks("its rules are no list")
    found: dict[str, Mapping[str, Any]] = {}
    for rule in filters:
        name = text(rule["filterType"], "the name of a rule")
        if name in found:
            raise UnreadableBooks(f"it has two rules {name}")
        found[name] = rule
    return found


def _is_trading(info: Mapping[str, Any]) -> bool:
    permissions = info.get("permissions") or ()
    return info.get("status") == _TRADING and info.get("isSpotTradingAllowed", True) is not False and _GROUP_CLOSED not in permissions


def _bound(value: object, name: str) -> Decimal | None:
    """A greatest amount; None where it is switched off."""
    return amount(value, name) or None


def _market_lot(rule: Mapping[str, Any] | None) -> Lot:
    if rule is None:
        return Lot()
    return Lot(
        step=amount(rule["stepSize"], "quantity step of market orders"),
        least=amount(rule["minQty"], "least quantity of market orders"),
        greatest=_bound(rule["maxQty"], "greatest quantity of market orders"),
    )


def _percent_band(rules: Mapping[str, Mapping[str, Any]]) -> PriceBand | None:
    """The narrower of both rules, by side."""
    bands = []
    if (rule := rules.get("PERCENT_PRICE")) is not None:
        up, down = (amount(rule[name], name) for name in ("multiplierUp", "multiplierDown"))
        bands.append(PriceBand(down, up, down, up))
    if (rule := rules.get("PERCENT_PRICE_BY_SIDE")) is not None:
        names = ("bidMultiplierDown", "bidMultiplierUp", "askMultiplierDown", "askMultiplierUp")
        bands.append(PriceBand(*(amount(rule[name], name) for name in names)))
    if not bands:
        return None
    return PriceBand(
        buy_min=max(band.buy_min for band in bands),
        buy_max=min(band.buy_max for band in bands),
        sell_min=max(band.sell_min for band in bands),
        sell_max=min(band.sell_max for band in bands),
    )


def _flag(rule: Mapping[str, Any], *names: str, missing: bool = True) -> bool:
    """The first of these flags that is there."""
    given = [rule[name] for name in names if name in rule]
    if given and not isinstance(given[0], bool):
        raise UnreadableBooks(f"{names[0]} is no flag")
    return bool(given[0]) if given else missing


def _whole(value: object, name: str, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise UnreadableBooks(f"{name} is no count")
    return value


def _places(value: object) -> int | None:
    # The ledger has no more places than 18, so a venue that takes more bounds nothing.
    return None if value is None else min(_whole(value, "precision of the quote asset", _COUNT_MAX), _PLACES_MAX)


def _count(rules: Mapping[str, Mapping[str, Any]], name: str, *fields: str) -> int | None:
    rule = rules.get(name)
    if rule is None:
        return None
    return _whole(next((rule[field] for field in fields if field in rule), None), name, _COUNT_MAX)


def _order_types(names: Any) -> frozenset[OrderType] | None:
    """None where the venue does not say."""
    if names is None:
        return None
    if not isinstance(names, list):
        raise UnreadableBooks("its order types are no list")
    return frozenset(kind for name in names if (kind := _ORDER_TYPES.get(str(name))) is not None)
