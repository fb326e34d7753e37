"""What a venue's dialect is stands in its own module: nothing else in the gateway knows a word of it."""

import ast
import re
from pathlib import Path

from checks.tree import ROOT

EXCHANGE = ROOT / "infra" / "exchange"
BINANCE = EXCHANGE / "venues" / "binance"
# Names of fields, endpoints and rules: what is written like one.
WIRE = re.compile(r"[a-z]+[A-Z]\w+|[A-Z]+(_[A-Z]+)+|/(api|sapi)/.*|X-.*")
# ccxt's own words, the same for every venue.
UNIFIED = frozenset({"clientOrderId", "timeInForce", "postOnly"})


def _words(path: Path) -> set[str]:
    """The constants, and the names of ccxt's implicit endpoints, that are written like words of a wire."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    words = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    words |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and re.match("(public|private|sapi)[A-Z]", node.attr)}
    return {word for word in words - UNIFIED if WIRE.fullmatch(word)}


def test_gateway_knows_no_word_of_a_venues_wire() -> None:
    """Neither the gateway nor what venues share names a field, an endpoint or a rule of Binance: another venue needs no change there."""
    dialect = set().union(*(_words(path) for path in BINANCE.glob("*.py")))
    assert {"recvWindow", "origClientOrderId", "LOT_SIZE", "withdrawOrderId", "/api/v3/order", "publicGetTickerPrice"} <= dialect
    others = [path for path in EXCHANGE.rglob("*.py") if BINANCE not in path.parents]
    assert {path.name: found for path in others if (found := _words(path) & dialect)} == {}
