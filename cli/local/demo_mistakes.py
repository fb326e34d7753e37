"""What the demo's bad requests say otherwise than good ones; one of the alternatives of a kind is drawn."""

from typing import Final

Fields = dict[str, object]

# What each kind of unreasonable request says otherwise than a good one.
UNREASONABLE: Final[dict[str, tuple[Fields, ...]]] = {
    "insufficient": ({"side": "sell", "quantity": "20"},),
    "unknown_user": tuple({"user_id": f"nobody-{number}"} for number in range(5)),
    "unknown_symbol": tuple({"symbol": symbol} for symbol in ("DOGE/USDT", "btc/usdt", "BTCUSDT", "BTC/USDT/ETH")),
    "unknown_exchange": tuple({"exchange": exchange} for exchange in ("nowhere", "Binance", "kraken")),
    "unknown_key": ({"api_key_id": "another"},),
    "too_large": ({"quantity": "40"},),
    "too_small": ({"quantity": "0.000001"},),
    "off_the_grid": ({"quantity": "0.00100005"},),
    "stop_order": ({"order_type": "stop_loss", "stop_price": "30000"},),
    "unknown_field": tuple({name: "1"} for name in ("stopprice", "leverage", "Quantity")),
    "wrong_version": tuple({"schema_version": version} for version in (0, 2, "1")),
    "wrong_type": tuple({name: 7} for name in ("user_id", "symbol", "side", "idempotency_key")),
    # Above the highest price that the exchange takes, which only the exchange knows.
    "refused_by_exchange": ({"side": "sell", "order_type": "limit", "quantity": "0.0001", "price": "2000000"},),
    "two_amounts": ({"quote_quantity": "50"},),
    # The largest times of .NET and Python: one store takes them for "never", another gives them back without a zone.
    "out_of_time": tuple(
        {"expires_at": at} for at in ("9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z")
    ),
    "free_of_charge": ({"order_type": "limit", "price": "0"},),
}
NO_SESSION: Final[Fields] = {"revoke": True, "session_id": "s" + "0" * 32}
WRONG_DECIMALS: Final[tuple[object, ...]] = (
    0.001, 1, "NaN", "Infinity", "1e3", "-1", "0", "+1", " 1", "", "1.", ".5", "1,5", "0." + "1" * 19, "1" + "0" * 30, None, [], {},
)  # fmt: skip
