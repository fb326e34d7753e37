"""What bench/gate measures: the gate in parts and as a whole, each a function of one batch.

Everything here calls what a worker calls, with a worker's connection. A request that is not accepted raises `BenchFailed`: a refusal ends
the gate early, so that something else would be measured.

Start with `rows`.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

import orjson

from agents.process.keys import SecondFactorReader
from agents.steps.batch import StepContext
from agents.steps.intake import IntakeStep
from agents.steps.isolation import Isolation, QuarantineLimit
from agents.steps.step import Batch, StepRunner
from bench.gate_history import EXCHANGE
from bench.gate_requests import TOPIC, Issuer, Prepared
from infra.keyring import Keyring
from infra.postgres.database import Database, InputPartition
from infra.postgres.gate import accounts, api_keys, halt_book
from infra.postgres.step import Progress, StepTransaction, take_partition
from pipeline.books.ledger import AccountKey, Balance
from pipeline.gate import api_key, connection, safety
from pipeline.gate.check import Step
from pipeline.gate.context import AccountState, TradeContext
from pipeline.gate.ladder import refusal_of
from pipeline.gate.limits import Limits
from pipeline.gate.surveillance import assess
from pipeline.model.api_key import ApiKeyState
from pipeline.model.conduct import Conduct
from pipeline.model.crash_points import pass_by
from pipeline.model.halts import NO_HALTS
from pipeline.model.refusal import Refusal
from pipeline.model.rules import Rules
from pipeline.model.second_factor import check_code, code_of
from pipeline.model.venue import Market, MarketData, Quote
from pipeline.requests.authentication import TokenVerifier
from pipeline.requests.intake_state import IntakeState
from pipeline.requests.record import Arrival, arrive, authenticated
from schemas.requests import TradeRequest
from schemas.topics import Topics
from schemas.wire import SourceOffset

_NO_PARTITION: Final = InputPartition("bench", TOPIC, 0, 0)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# No request of the benchmark must meet a limit; what the limits are costs nothing.
LIMITS: Final = Limits(
    hourly_trades_max=10**6, daily_volume_usd_max=Decimal(10**12), open_orders_max=10**6, open_orders_usd_max=Decimal(10**12),
    exchange_open_usd_max=Decimal(10**12), position_usd_max=Decimal(10**12), daily_loss_usd_max=Decimal(10**12), suspicion_block=10**6,
)  # fmt: skip
_PRICES: Final = {"BTC/USDT": Decimal("48500.12"), "ETH/USDT": Decimal("2850.55")}
# What the first version of the gate checked.
TEN_CHECKS: Final = (
    safety.request_is_fresh,
    safety.kind_is_offered,
    safety.user_is_active,
    safety.exchange_is_offered,
    api_key.api_key_is_usable,
    safety.symbol_is_well_formed,
    safety.price_is_positive,
    connection.market_price_is_fresh,
    safety.amount_keeps_maximum,
    connection.quantity_fits_the_lot,
)
_TEN_NEED: Final = """
    SELECT users.user_id, users.status, key.exchange, key.status AS key_status, key.expires_at
    FROM unnest($1::text[], $2::text[]) AS wanted (user_id, api_key_id)
    JOIN users USING (user_id) JOIN api_keys AS key USING (user_id, api_key_id)
"""


class BenchFailed(Exception):
    """A run that measured something else than it should have. Its text says what."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Everything that the gate needs beside the database, as a worker has it."""

    rules: Rules
    verifier: TokenVerifier
    unseal: SecondFactorReader
    issuer: Issuer

    @classmethod
    def of(cls, keyring: Keyring, issuer: Issuer) -> "Gate":
        rules = Rules(
            exchanges=frozenset({EXCHANGE}),
            slippage_allowance=Decimal("0.05"),
            usd_assets=frozenset({"USD", "USDT", "USDC", "FDUSD"}),
            price_age_max=timedelta(seconds=5),
            submission_deadline=timedelta(seconds=30),
            key_lifetime=timedelta(hours=24),
            receive_window=timedelta(seconds=5),
            venue_timeout=timedelta(seconds=10),
            cancel_attempts_max=20,
        )
        return cls(rules, issuer.verifier(), SecondFactorReader(keyring.decrypt_second_factor), issuer)

    def market_data(self, now: datetime) -> Mapping[str, MarketData]:
        """Both markets, with prices of this moment."""
        markets = {symbol: _market(symbol) for symbol in _PRICES}
        quotes = {symbol: Quote(price, now) for symbol, price in _PRICES.items()}
        return {EXCHANGE: MarketData(EXCHANGE, markets, quotes)}


def _market(symbol: str) -> Market:
    base, _, quote = symbol.partition("/")
    return Market(
        symbol,
        base,
        quote,
        active=True,
        price_tick=Decimal("0.01"),
        quantity_step=Decimal("0.0001"),
        quantity_min=Decimal("0.0001"),
        quantity_max=Decimal(9_000),
        notional_min=Decimal(5),
        taker_fee_rate=Decimal("0.001"),
    )


def decoded(batch: Prepared) -> list[Arrival]:
    """The records as the intake agent reads them."""
    return [
        arrive(
            SourceOffset(record.topic, record.partition, record.offset), _EPOCH + timedelta(milliseconds=record.timestamp),
            record.key, record.value, record.headers,
        )
        for record in batch.records
    ]  # fmt: skip


def _trade_of(arrival: Arrival) -> TradeRequest:
    if not isinstance(arrival.decoded, TradeRequest):
        raise BenchFailed(f"a request could not be read: {arrival.decoded}")
    return arrival.decoded


async def no_checks(_database: Database, _gate: Gate, batch: Prepared) -> None:
    """The records are read, nothing else."""
    for arrival in decoded(batch):
        _trade_of(arrival)


async def ten_checks(database: Database, gate: Gate, batch: Prepared) -> None:
    """The first version's checks, with what they need: one statement."""
    arrivals = decoded(batch)
    requests = [_trade_of(arrival) for arrival in arrivals]
    async with database.connection() as held:
        wanted = [request.user_id for request in requests], [request.api_key_id for request in requests]
        rows = {row["user_id"]: row for row in await held.fetch(_TEN_NEED, *wanted)}
    market_data = gate.market_data(batch.now)[EXCHANGE]
    for arrival, request in zip(arrivals, requests, strict=True):
        row = rows[request.user_id]
        key = ApiKeyState(row["exchange"], row["key_status"], expires_at=row["expires_at"])
        account = AccountState(request.user_id, row["status"], limits=LIMITS)
        context = TradeContext(
            request=request,
            appended_at=arrival.appended_at,
            now=batch.now,
            rules=gate.rules,
            account=account,
            api_key=key,
            market_data=market_data,
            halts=NO_HALTS,
            balances={},
            idempotency_key=request.idempotency_key,
        )
        for check in TEN_CHECKS:
            refusal = check(context)
            if refusal is not None:
                raise _refused(refusal)


async def all_checks(database: Database, gate: Gate, batch: Prepared) -> None:
    """Tokens, everything that is loaded, second factors, every check: up to the hold in the ledger."""
    await _all_checks(database, gate, batch, gate.verifier)


async def all_checks_new_tokens(database: Database, gate: Gate, batch: Prepared) -> None:
    """The same where no token was seen before."""
    await _all_checks(database, gate, batch, gate.issuer.verifier())


async def loaded(
    database: Database, gate: Gate, users: Sequence[str], symbols: Iterable[tuple[str, str]], now: datetime
) -> tuple[IntakeState, dict[AccountKey, Balance]]:
    """What the intake agent loads for a batch of these users, but for what comes with the lock, which is the step's."""
    conduct = dict.fromkeys(users, Conduct())
    async with database.connection() as held, held.transaction():
        states = await accounts(held, users, symbols, conduct, LIMITS, gate.unseal, now)
        keys = await api_keys(held, users)
        balances = await StepTransaction(held, _NO_PARTITION, Progress(-1, -1, (), ())).balances(users)
        return IntakeState(states, keys, gate.market_data(now), await halt_book(held), gate.rules), balances


async def _all_checks(database: Database, gate: Gate, batch: Prepared, verifier: TokenVerifier) -> None:
    arrivals = [authenticated(arrival, verifier) for arrival in decoded(batch)]
    users = sorted({key[0] for arrival in arrivals if (key := arrival.proven_key) is not None})
    symbols = {(request.user_id, request.symbol) for request in map(_trade_of, arrivals)}
    state, balances = await loaded(database, gate, users, symbols, batch.now)
    for arrival in arrivals:
        request = _trade_of(arrival)
        account = state.accounts[request.user_id]
        context = TradeContext(
            request=request,
            appended_at=arrival.appended_at,
            now=batch.now,
            rules=state.rules,
            account=account,
            api_key=state.api_keys.get((request.user_id, request.api_key_id)),
            market_data=state.market_data.get(request.exchange),
            halts=state.halts,
            balances=balances,
            idempotency_key=request.idempotency_key,
        )
        refusal = arrival.unproven or _refusal(arrival, context)
        if refusal is not None:
            raise _refused(refusal)


def _refusal(arrival: Arrival, context: TradeContext) -> Refusal | None:
    """The steps of `pipeline.orders.acceptance` up to the decision, without what is written of it."""
    refusal = refusal_of(context, Step.SAFETY)
    if refusal is not None:
        return refusal
    code = code_of(arrival.headers)
    refusal = code if isinstance(code, Refusal) else check_code(context.account.factor, code, arrival.appended_at)[0]
    refusal = refusal or refusal_of(context, Step.API_KEY) or refusal_of(context, Step.RISK)
    if refusal is not None:
        return refusal
    assess(context)
    return refusal_of(context, Step.CONNECTION)


def _refused(refusal: Refusal) -> BenchFailed:
    return BenchFailed(f"a request was refused where every one should be accepted: {refusal.code}, {refusal.reason}")


Row = Callable[[Database, Gate, Prepared], Awaitable[None]]


class WholeStep:
    """The intake agent's whole step: fence, locks, claims, the gate, the hold, audit trail, orders, answers, commit."""

    def __init__(self) -> None:
        self._partitions: dict[Database, tuple[InputPartition, int]] = {}

    async def __call__(self, database: Database, gate: Gate, batch: Prepared) -> None:
        """Decides and stores one batch, after all those before it."""
        topics = Topics("")
        if database not in self._partitions:
            partition, progress = await take_partition(database, "bench", TOPIC, 0, batch.now)
            self._partitions[database] = partition, progress.next_offset
        partition, base = self._partitions[database]
        next_offset = batch.records[-1].offset + 1
        runner = StepRunner(database, lambda: batch.now, 1.0)
        isolation = Isolation(runner, topics, gate.rules, QuarantineLimit(1, timedelta(minutes=1)), lambda: batch.now)
        context = StepContext(runner, topics, gate.rules, lambda: batch.now, pass_by, isolation)
        market_data = gate.market_data(batch.now)
        step = IntakeStep(context, lambda: market_data, dict, gate.verifier, LIMITS, gate.unseal, len(batch.records))
        outputs = await step.run(Batch(partition, batch.records, base, next_offset))
        self._partitions[database] = partition, next_offset
        if sum(record.topic == topics.orders(EXCHANGE) for record in outputs) != len(batch.records):
            answers = [orjson.loads(record.value or b"{}") for record in outputs if record.topic == topics.results]
            refused = next(answer for answer in answers if answer["status"] != "accepted")
            raise BenchFailed(f"a request was refused where every one should be accepted: {refused['reason_code']}, {refused['reason']}")


FULL: Final = "all checks"


def rows() -> dict[str, Row]:
    """What is measured, by name, in the order of each round. What writes comes last: the others must not find its codes used."""
    return {
        "0 checks": no_checks,
        "10 checks": ten_checks,
        FULL: all_checks,
        "all checks, unknown tokens": all_checks_new_tokens,
        "whole step": WholeStep(),
    }
