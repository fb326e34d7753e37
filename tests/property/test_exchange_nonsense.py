"""Whatever an exchange says is a value or no answer: for every endpoint that is read, arbitrary JSON, true answers with parts exchanged for
nonsense, and bodies that are no JSON at all, each read by the gateway as production makes it, ccxt's own parsers included."""

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.exchange.ccxt.gateway import CcxtGateway
from infra.exchange.gateway import Credentials, VenueUnavailable
from infra.exchange.key_check import KeyAccepted, KeyRefused, KeyUnanswered
from infra.metrics import ANSWERS_UNREADABLE
from pipeline.model.deposit import VenueDeposits
from pipeline.model.venue import Absent, AccountBalances, Confirmed, Found, InDoubt, LookUpFailed, OrderReference, Refused
from pipeline.model.withdrawal import Taken, WithdrawalHistory, WithdrawalSubmission
from schemas.orders import Mode
from tests.integration.scripted_venue import API_KEY, EXCHANGE_INFO, SECRET, order_row, submission, trade_row

# They share one reader.
pytestmark = pytest.mark.xdist_group("exchange_nonsense")

NOW = datetime.now(UTC)
OUR_ID = "co" + "1" * 28
PAYOUT_ID = "cw" + "2" * 28
TRUE_ANSWERS: Mapping[tuple[str, str], Any] = {
    ("GET", "/api/v3/time"): {"serverTime": int(NOW.timestamp() * 1_000)},
    ("GET", "/api/v3/exchangeInfo"): EXCHANGE_INFO,
    ("GET", "/api/v3/ticker/price"): [{"symbol": "BTCUSDT", "price": "50000.01"}, {"symbol": "ETHUSDT", "price": "2500.00"}],
    ("POST", "/api/v3/order"): {
        **order_row(OUR_ID, status="FILLED", executed="0.002", paid="100"),
        "transactTime": 1_700_000_000_000,
        "fills": [{"price": "50000", "qty": "0.002", "commission": "0.000002", "commissionAsset": "BTC", "tradeId": 1}],
    },
    ("GET", "/api/v3/order"): order_row(OUR_ID, status="FILLED", executed="0.002", paid="100"),
    ("DELETE", "/api/v3/order"): order_row(f"{OUR_ID}-c", status="CANCELED"),
    ("GET", "/api/v3/allOrders"): [order_row(OUR_ID)],
    ("GET", "/api/v3/myTrades"): [trade_row(quantity="0.002", fee="0.000002")],
    ("GET", "/api/v3/account"): {
        "uid": 354937868, "canTrade": True, "canWithdraw": False, "balances": [{"asset": "BTC", "free": "1.5", "locked": "0.1"}],
    },
    ("GET", "/sapi/v1/account/apiRestrictions"): {
        "ipRestrict": True, "enableSpotAndMarginTrading": True, "enableWithdrawals": False,
        "tradingAuthorityExpirationTime": 1_900_000_000_000,
    },
    ("GET", "/sapi/v1/capital/deposit/hisrec"): [
        {
            "id": "769800519366885376", "amount": "0.001", "coin": "BNB", "network": "BNB", "status": 1, "address": "bnb136ns",
            "addressTag": "1", "txId": "98A3EA56", "insertTime": 1_700_000_000_000, "completeTime": 1_700_000_000_500,
        },
    ],
    ("POST", "/sapi/v1/capital/withdraw/apply"): {"id": "7213fea8e94b4a5593d507237e5a555b"},
    ("GET", "/sapi/v1/capital/withdraw/history"): [
        {
            "id": "b6ae22b3", "amount": "8.9", "transactionFee": "0.004", "coin": "USDT", "status": 6, "address": "0x94", "txId": "0xb5",
            "network": "ETH", "withdrawOrderId": PAYOUT_ID, "info": "",
        },
    ],
    ("GET", "/sapi/v1/capital/config/getall"): [
        {
            "coin": "BTC", "withdrawAllEnable": True,
            "networkList": [
                {
                    "network": "BTC", "coin": "BTC", "withdrawEnable": True, "withdrawFee": "0.0002", "withdrawMin": "0.001",
                    "withdrawMax": "750", "withdrawIntegerMultiple": "0.00000001",
                },
            ],
        },
    ],
}  # fmt: skip
UNKNOWN_ORDER = '{"code":-2013,"msg":"Order does not exist."}'


@dataclass
class Response:
    body: bytes
    status: int = 200
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def content(self) -> "Response":
        return self

    async def iter_any(self) -> AsyncIterator[bytes]:
        yield self.body


class Venue:
    """In the place of the HTTP session: answers truly, but for the paths in `said`, with status and bytes."""

    def __init__(self) -> None:
        self.said: dict[tuple[str, str], tuple[int, bytes]] = {}

    @asynccontextmanager
    async def request(self, method: str, url: Any, **_options: object) -> AsyncIterator[Response]:
        name = method, url.path
        status, body = self.said.get(name) or (200, json.dumps(TRUE_ANSWERS[name]).encode())
        yield Response(body, status)

    async def close(self) -> None:
        """Nothing is open."""


REFERENCE = OrderReference(Mode.LIVE, "o" + "1" * 32, OUR_ID, "77", "binance", "alice", "key-1", "BTC/USDT", NOW)
BY_NAME = OrderReference(Mode.LIVE, "o" + "1" * 32, OUR_ID, None, "binance", "alice", "key-1", "BTC/USDT")
ACCOUNT = ("alice", "key-1")


def payout() -> WithdrawalSubmission:
    return WithdrawalSubmission(
        "w" + "1" * 32, PAYOUT_ID, "binance", *ACCOUNT, "BTC", "BTC", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq", None, Decimal("0.01"),
        Decimal("0.0002"), datetime.now(UTC), datetime.now(UTC) + timedelta(seconds=30),
    )  # fmt: skip


@dataclass(frozen=True)
class Question:
    """What the gateway is asked, and the kinds of outcome it may have. `others`: answers that are needed to come to that endpoint."""

    endpoint: tuple[str, str]
    ask: Callable[[CcxtGateway], Awaitable[object]]
    outcomes: tuple[type, ...]
    others: Mapping[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)


BEGIN, END = NOW - timedelta(days=1), NOW
NOT_FOUND = {("GET", "/api/v3/order"): (400, UNKNOWN_ORDER.encode())}
QUESTIONS = {
    "submit": Question(
        ("POST", "/api/v3/order"), lambda g: g.submit(submission(client_order_id=OUR_ID)), (Confirmed, Refused, InDoubt)
    ),
    "fees": Question(("GET", "/api/v3/myTrades"), lambda g: g.look_up(REFERENCE), (Found, LookUpFailed)),
    "look up": Question(("GET", "/api/v3/order"), lambda g: g.look_up(REFERENCE), (Found, Absent, LookUpFailed)),
    "list of orders": Question(("GET", "/api/v3/allOrders"), lambda g: g.look_up(BY_NAME), (Found, Absent, LookUpFailed), NOT_FOUND),
    "list of trades": Question(("GET", "/api/v3/myTrades"), lambda g: g.look_up(BY_NAME), (Found, Absent, LookUpFailed), NOT_FOUND),
    "cancel": Question(("DELETE", "/api/v3/order"), lambda g: g.cancel(BY_NAME), (Confirmed, Refused, InDoubt)),
    "balances": Question(("GET", "/api/v3/account"), lambda g: g.account_balances(*ACCOUNT), (AccountBalances, LookUpFailed)),
    "key": Question(
        ("GET", "/sapi/v1/account/apiRestrictions"), lambda g: g.check_key(*ACCOUNT), (KeyAccepted, KeyRefused, KeyUnanswered)
    ),
    "deposits": Question(
        ("GET", "/sapi/v1/capital/deposit/hisrec"), lambda g: g.deposit_history(*ACCOUNT, BEGIN, END), (VenueDeposits, LookUpFailed)
    ),
    "withdraw": Question(("POST", "/sapi/v1/capital/withdraw/apply"), lambda g: g.withdraw(payout()), (Taken, Refused, InDoubt)),
    "withdrawals": Question(
        ("GET", "/sapi/v1/capital/withdraw/history"),
        lambda g: g.withdrawal_history(*ACCOUNT, BEGIN, END),
        (WithdrawalHistory, LookUpFailed),
    ),
    "networks": Question(("GET", "/sapi/v1/capital/config/getall"), lambda g: g.withdrawal_networks(*ACCOUNT), (dict, VenueUnavailable)),
    "prices": Question(("GET", "/api/v3/ticker/price"), lambda g: g.quotes(["BTC/USDT", "ETH/USDT"]), (dict, VenueUnavailable)),
    "markets": Question(("GET", "/api/v3/exchangeInfo"), lambda g: g.markets(), (dict, VenueUnavailable)),
    "time": Question(("GET", "/api/v3/time"), lambda g: g.markets(), (dict, VenueUnavailable)),
}


async def _credentials(_user_id: str, _api_key_id: str) -> Credentials:
    return Credentials(API_KEY, SECRET)


class Reader:
    """A gateway whose venue says what it is told to. One event loop for all examples: ccxt's class takes long to make."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.venue = Venue()
        self.gateway = CcxtGateway("binance", _credentials, base_url="http://127.0.0.1:1", rate_limit=False)
        self.loop.run_until_complete(self._begin())

    async def _begin(self) -> None:
        connection = self.gateway._connection
        connection.public = connection._open()
        await connection.public.http.close()
        connection.public.http = self.venue
        await self.gateway.markets()
        self._true_markets = connection.public

    def asked(self, question: Question, status: int, body: bytes) -> object:
        """The outcome of the question; a VenueUnavailable as a value."""
        connection = self.gateway._connection
        connection._load_again_at, connection.public, connection.clock_difference_ms = 0.0, self._true_markets, 0
        connection._accounts.clear()
        self.venue.said = {**question.others, question.endpoint: (status, body)}

        async def ask() -> object:
            return await question.ask(self.gateway)

        try:
            return self.loop.run_until_complete(ask())
        except VenueUnavailable as error:
            return error


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


def _storable(value: object) -> bool:
    """Whether all text in it can be kept and published, and every amount has digits of ours."""
    if isinstance(value, str):
        value.encode()
        return "\x00" not in value
    if isinstance(value, Decimal):
        return value.is_finite() and value < 10**20 and value % Decimal("1e-18") == 0
    if isinstance(value, datetime):
        return value.utcoffset() == timedelta(0) and value.year < 9999
    if isinstance(value, Mapping):
        return all(_storable(name) and _storable(item) for name, item in value.items())
    if isinstance(value, (list, tuple, frozenset)):
        return all(map(_storable, value))
    if is_dataclass(value):
        return all(_storable(getattr(value, item.name)) for item in fields(value))
    return True


NUMBERS = st.one_of(
    st.integers(), st.sampled_from([10**30, -1, 10**400, 253_402_300_800_000, 2**63]), st.floats(allow_nan=False, allow_infinity=False)
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["abc", "-1", "1e999999", "NaN", "Infinity", "1" * 60, "\x00", "x" * 2_000, "0", "1e-30", "99999999999999999999"]),
)
# Halves of surrogate pairs come as escapes: the JSON text itself is UTF-8.
SURROGATE = st.just("\ud800")
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, SURROGATE)
JSON = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)), max_leaves=6
)


def _places(value: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at]
    if isinstance(value, dict):
        for name, item in value.items():
            found += _places(item, (*at, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += _places(item, (*at, index))
    return found


@st.composite
def mutated(draw: st.DrawFn, truth: Any) -> Any:
    """A true answer of which one to three parts are exchanged for something else, left out, or said twice."""
    answer = copy.deepcopy(truth)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(_places(answer)))
        if not place:
            return draw(JSON)
        parent = answer
        for step in place[:-1]:
            parent = parent[step]
        match draw(st.sampled_from(["exchange", "leave out", "repeat"])):
            case "leave out":
                del parent[place[-1]]
            case "repeat" if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[place[-1]]))
            case _:
                parent[place[-1]] = draw(JSON)
    return answer


@pytest.mark.parametrize("name", QUESTIONS)
def test_true_answer_is_read(name: str, reader: Reader) -> None:
    """What the tests below change is what the gateway reads: each true answer gives the first kind of outcome."""
    question = QUESTIONS[name]
    outcome = reader.asked(question, 200, json.dumps(TRUE_ANSWERS[question.endpoint]).encode())
    assert isinstance(outcome, question.outcomes[:1] if name != "cancel" else (Refused,)), outcome


@pytest.mark.parametrize("name", QUESTIONS)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nonsense_is_an_outcome_and_never_an_error(name: str, reader: Reader, data: st.DataObject) -> None:
    """Arbitrary JSON and changed answers, with any status, give an outcome that the question may have; all of it can be kept."""
    question = QUESTIONS[name]
    said = data.draw(st.one_of(JSON, mutated(TRUE_ANSWERS[question.endpoint])))
    status = data.draw(st.sampled_from([200, 200, 200, 400, 404, 500]))
    outcome = reader.asked(question, status, json.dumps(said).encode())
    assert isinstance(outcome, question.outcomes), outcome
    assert _storable(outcome), outcome
    if isinstance(outcome, VenueUnavailable):
        assert _storable(str(outcome))


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[null]", b'["x"]', b"{", b"[" * 100_000, b"1" * 5_000, b"[" + b"1" * 5_000 + b"]", b"\xff\xfe", b"<html></html>",
     b'[[["BTCUSDT","1"]]]', b'{"symbols":{}}', b'{"a":1,"a":2}', b"[NaN]", b'{"serverTime":1e400}'],
)  # fmt: skip
def test_body_that_is_no_answer_says_nothing(name: str, body: bytes, reader: Reader) -> None:
    """A body of another kind is never a proof: an order or a payment is in doubt, a question stays open, nothing is raised."""
    question = QUESTIONS[name]
    outcome = reader.asked(question, 200, body)
    assert isinstance(outcome, question.outcomes), outcome
    assert not isinstance(outcome, (Confirmed, Found, Taken, KeyAccepted, KeyRefused, AccountBalances)), outcome
    assert name in {"cancel"} or not isinstance(outcome, (Refused, Absent)), outcome


def test_market_row_that_cannot_be_read_costs_that_market_alone(reader: Reader) -> None:
    """Beside a row that is none, one without filters and one with a tick that is no number, the others are there."""
    eth = EXCHANGE_INFO["symbols"][1]  # type: ignore[index]  # a list of rows
    bad_tick = copy.deepcopy(EXCHANGE_INFO["symbols"][0])  # type: ignore[index]
    bad_tick["filters"][0]["tickSize"] = "abc"
    no_filters = {**eth, "symbol": "SOLUSDT", "baseAsset": "SOL", "filters": None}
    said = {**EXCHANGE_INFO, "symbols": [None, bad_tick, 5, no_filters, {"symbol": []}, eth]}
    found = reader.asked(QUESTIONS["markets"], 200, json.dumps(said).encode())
    assert isinstance(found, dict)
    assert list(found) == ["ETH/USDT"]


def test_price_that_cannot_be_read_costs_that_market_alone(reader: Reader) -> None:
    """A price that is an object leaves its market without a new price, and the other with one."""
    said = [None, {"symbol": "BTCUSDT", "price": {"a": 1}}, {"symbol": "ETHUSDT", "price": "2500"}]
    reader.asked(QUESTIONS["markets"], 200, json.dumps(EXCHANGE_INFO).encode())
    found = reader.asked(QUESTIONS["prices"], 200, json.dumps(said).encode())
    assert isinstance(found, dict)
    assert list(found) == ["ETH/USDT"]


def test_answer_that_cannot_be_read_is_counted(reader: Reader) -> None:
    """The metric of unreadable answers counts nonsense, and does not count a refusal in the exchange's own words."""
    counter = ANSWERS_UNREADABLE.labels("binance", "networks")
    before = counter._value.get()
    reader.asked(QUESTIONS["networks"], 400, b'{"code":-1003,"msg":"Too many requests."}')
    assert counter._value.get() == before
    reader.asked(QUESTIONS["networks"], 200, b"[null]")
    assert counter._value.get() == before + 1
