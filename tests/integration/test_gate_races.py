"""Races: a user's requests arrive on several partitions at once, two workers decide them, and each limit is met exactly at its boundary.

Each race has a user of its own, so that one installation runs all of them at the same time, each judged alone: from the results, from the
order of decisions in the user's audit chain, and from the exchange's own log.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.integration.gate_installation import (
    PARTITIONS,
    GateInstallation,
    Outgoing,
    Result,
    bearer,
    gate_installation,
    order,
    resting,
    step_now,
)
from tests.promises import assert_promises_hold
from tests.unit.tokens import issuer

SEEDS = range(4)
REQUESTS = 20
# The market's price in these tests, which does not move: purchases below it and sales above it rest.
MARKET = Decimal(40_000)
_OPENING_BTC = 50
_SATOSHI = Decimal("0.000001")
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class Race:
    """What one user sends at once, the user's own limits, and how many answers of each reason code must come; None is for accepted ones.

    Where the numbers depend on the order in which workers decide, `expected` is None and `judge` looks at that order.
    """

    user_id: str
    requests: list[dict[str, Any]]
    limits: dict[str, Decimal | int] = field(default_factory=dict)
    expected: dict[str | None, int] | None = None
    judge: Callable[["Race", list[Result]], None] | None = None


def _same(user_id: str, count: int, code: str, make: Callable[[str], dict[str, Any]], **limits: Decimal | int) -> Race:
    """A race of equal requests under a key each, of which `count` fit."""
    return Race(user_id, [make(f"{user_id}-{number}") for number in range(REQUESTS)], limits, {None: count, code: REQUESTS - count})


def _hourly_trades(user_id: str, chance: random.Random) -> Race:
    count = chance.randint(3, 12)
    return _same(user_id, count, "HOURLY_TRADES_EXCEEDED", lambda key: order(user_id, key), hourly_trades_max=count)


def _bid(user_id: str, chance: random.Random) -> tuple[Callable[[str], dict[str, Any]], Decimal]:
    """A purchase that rests, and what it is worth, which has cents."""
    price, quantity = Decimal(chance.randint(200_000, 350_000)) / 10, Decimal(chance.randint(1, 9)) / 10
    return lambda key: resting(user_id, key, "buy", str(quantity), str(price)), price * quantity


def _volume_hit(user_id: str, chance: random.Random) -> Race:
    count, (make, value) = chance.randint(2, 12), _bid(user_id, chance)
    return _same(user_id, count, "DAILY_VOLUME_EXCEEDED", make, daily_volume_usd_max=count * value)


def _volume_missed_by_a_cent(user_id: str, chance: random.Random) -> Race:
    count, (make, value) = chance.randint(2, 12), _bid(user_id, chance)
    return _same(user_id, count - 1, "DAILY_VOLUME_EXCEEDED", make, daily_volume_usd_max=count * value - Decimal("0.01"))


def _volume_mixed(user_id: str, chance: random.Random) -> Race:
    """Orders of many values: what is accepted keeps the limit, and nothing that was refused would have."""
    requests = [
        resting(user_id, f"{user_id}-{number}", "buy", str(Decimal(chance.randint(1, 40)) / 100), str(chance.randint(20_000, 35_000)))
        for number in range(REQUESTS)
    ]
    values = [Decimal(request["quantity"]) * Decimal(request["price"]) for request in requests]
    limit = sum(values, Decimal(0)) / 2

    def judge(_: Race, results: list[Result]) -> None:
        taken = [value for value, result in zip(values, results, strict=True) if result["reason_code"] is None]
        refused = [value for value, result in zip(values, results, strict=True) if result["reason_code"] == "DAILY_VOLUME_EXCEEDED"]
        assert len(taken) + len(refused) == REQUESTS
        assert sum(taken) <= limit
        assert all(sum(taken) + value > limit for value in refused), "one was refused that would have fitted"

    return Race(user_id, requests, {"daily_volume_usd_max": limit}, judge=judge)


def _last_of_what_is_sold(user_id: str, chance: random.Random) -> Race:
    count, missed = chance.choice((4, 5, 8, 10)), chance.random() < 0.5
    quantity = Decimal(_OPENING_BTC) / count + (_SATOSHI if missed else 0)
    fit = count - 1 if missed else count
    return _same(user_id, fit, "BALANCE_INSUFFICIENT", lambda key: resting(user_id, key, "sell", f"{quantity:f}", "42000"))


def _last_of_what_is_paid(user_id: str, chance: random.Random) -> Race:
    count, missed = chance.choice((4, 5, 8, 10)), chance.random() < 0.5
    # 1,000,000 USDT are there, and a Bitcoin is bought for 25,000.
    quantity = Decimal(40) / count + (_SATOSHI if missed else 0)
    fit = count - 1 if missed else count
    return _same(user_id, fit, "BALANCE_INSUFFICIENT", lambda key: resting(user_id, key, "buy", f"{quantity:f}", "25000"))


def _open_orders(user_id: str, chance: random.Random) -> Race:
    count, (make, _) = chance.randint(2, 12), _bid(user_id, chance)
    return _same(user_id, count, "OPEN_ORDERS_EXCEEDED", make, open_orders_max=count)


def _open_value(user_id: str, chance: random.Random) -> Race:
    count, (make, value) = chance.randint(2, 12), _bid(user_id, chance)
    return _same(user_id, count, "OPEN_ORDERS_EXCEEDED", make, open_orders_usd_max=count * value)


def _position(user_id: str, chance: random.Random) -> Race:
    count = chance.randint(2, 12)
    limit = (_OPENING_BTC + count * Decimal("0.5")) * MARKET
    return _same(
        user_id, count, "POSITION_LIMIT_EXCEEDED", lambda key: resting(user_id, key, "buy", "0.5", "30000"), position_usd_max=limit
    )


def _duplicates(user_id: str, chance: random.Random) -> Race:
    make, _ = _bid(user_id, chance)
    return _same(user_id, 1, "DUPLICATE_ORDER", make, duplicate_window=600)


def _failures_in_a_row(user_id: str, chance: random.Random) -> Race:
    count = chance.randint(2, 9)
    requests = [order(user_id, f"{user_id}-{number}") for number in range(REQUESTS)]
    expected: dict[str | None, int] = {"POSITION_LIMIT_EXCEEDED": count, "COOLDOWN_ACTIVE": REQUESTS - count}
    # What the user has already is worth more.
    return Race(user_id, requests, {"cooldown_failures": count, "cooldown": 600, "position_usd_max": 1}, expected)


def _one_key(user_id: str, _: random.Random) -> Race:
    """The same request on every partition: one is executed, every other gets its answer or is told that it is running."""

    def judge(_: Race, results: list[Result]) -> None:
        assert Counter(result["replayed"] for result in results) == {False: 1, True: REQUESTS - 1}
        assert len({result["order_id"] for result in results}) == 1

    return Race(user_id, [order(user_id, f"{user_id}-0")] * REQUESTS, judge=judge)


RACES = (
    _hourly_trades,
    _volume_hit,
    _volume_missed_by_a_cent,
    _volume_mixed,
    _last_of_what_is_sold,
    _last_of_what_is_paid,
    _open_orders,
    _open_value,
    _position,
    _duplicates,
    _failures_in_a_row,
    _one_key,
)
BURST = range(4)


def _races() -> list[Race]:
    races = [make(f"{make.__name__.strip('_')}-{seed}", random.Random(f"{make.__name__} {seed}")) for make in RACES for seed in SEEDS]
    for seed in BURST:
        user_id = f"burst-{seed}"
        size = random.Random(f"burst {seed}").randint(3, 12)
        requests = [order(user_id, f"{user_id}-{number}") for number in range(REQUESTS)]
        races.append(Race(user_id, requests, {"messages_per_second_max": 1, "messages_burst_max": size}))
    return races


def _is_decided(result: Result) -> bool:
    return bool(result["final"]) or result["status"] == "open"


async def test_limits_at_their_boundaries_let_exactly_as_many_through_as_fit(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """52 seeded races between two workers over four partitions: never one too many, and never one too few where it must fit."""
    races = _races()
    async with gate_installation(
        kafka, database_url, unique_prefix, tmp_path, [race.user_id for race in races], "--walk-ms", "0",
        settings={"BATCH_SIZE_MAX": "24"}, trade_usd_max=Decimal(10**9),
    ) as gate:  # fmt: skip
        await gate.set_at_the_exchange("price", {"symbol": "BTCUSDT", "price": str(MARKET)})
        for race in races:
            await gate.limit(race.user_id, **race.limits)
        gate.start_workers()
        await gate.until_shared()
        chance = random.Random(1)
        records = [
            (race, Outgoing(request, partition=(number + chance.randrange(2)) % PARTITIONS))
            for race in races
            for number, request in enumerate(race.requests)
        ]
        chance.shuffle(records)
        sent = await gate.send(*(record for _, record in records))
        answers: dict[str, list[tuple[str, Result]]] = {race.user_id: [] for race in races}
        for (race, record), where in zip(records, sent, strict=True):
            assert isinstance(record.value, dict)
            result = await gate.results.until(where, _is_decided, 90)
            answers[race.user_id].append((record.value["idempotency_key"], result))
        failures = [text for race in races if (text := await _failure_of(gate, race, answers[race.user_id]))]
        assert not failures, "\n".join(failures)
        both = [await gate.metric(worker, f'orchestrator_records_total{{topic="{gate.made.topics.requests}"}}') for worker in range(2)]
        assert all(both), f"the workers decided {both} requests: there was no race"
        await assert_promises_hold(gate.made)


async def _failure_of(gate: GateInstallation, race: Race, answers: list[tuple[str, Result]]) -> str | None:
    """What is wrong with a race, None when nothing is."""
    by_key = dict(answers)
    results = [result for _, result in answers] if len(by_key) == 1 else [by_key[request["idempotency_key"]] for request in race.requests]
    try:
        if race.expected is not None:
            assert Counter(result["reason_code"] for result in results) == race.expected
        if race.judge is not None:
            race.judge(race, results)
        if race.user_id.startswith("burst"):
            await _judge_burst(gate, race, results)
        accepted = {result["order_id"] for result in results if result["order_id"] is not None}
        assert len(gate.at_the_exchange(race.user_id)) == len(accepted)
    except AssertionError as error:
        return f"{race.user_id}: {Counter(result['reason_code'] for result in results)}, expected {race.expected}: {error}"
    return None


async def _judge_burst(gate: GateInstallation, race: Race, results: list[Result]) -> None:
    """Replays the decisions one after the other, in the order of the audit chain, with the cell rate algorithm in its plainest form."""
    burst = int(race.limits["messages_burst_max"])
    appended = {result["request_id"]: datetime.fromisoformat(result["requested_at"]) for result in results}
    clock: datetime | None = None
    decided = 0
    for event in await gate.events(race.user_id):
        if event["event_type"] not in {"ORDER_ACCEPTED", "REQUEST_REJECTED"}:
            continue
        decided += 1
        now = datetime.fromisoformat(event["ts_event"]).astimezone(UTC)
        conforms = clock is None or now >= clock - (burst - 1) * _SECOND
        assert (event["event_type"] == "ORDER_ACCEPTED") == conforms, event
        if conforms:
            clock = max(min(appended[event["request_id"]], now), clock or datetime.min.replace(tzinfo=UTC)) + _SECOND
    assert decided == REQUESTS


TOTP_SEEDS = range(12)
LOCK_SEEDS = range(6)


async def test_second_factor_takes_each_step_once_over_all_partitions(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """One code on four partitions at once moves money once, two codes twice at most and in their order; the fifth wrong guess locks."""
    tried, guessed = [f"code-{seed}" for seed in TOTP_SEEDS], [f"guess-{seed}" for seed in LOCK_SEEDS]
    async with gate_installation(
        kafka, database_url, unique_prefix, tmp_path, [*tried, *guessed], issuers=[issuer()], settings={"BATCH_SIZE_MAX": "12"}
    ) as gate:
        authenticators = {user_id: await gate.enrol(user_id) for user_id in [*tried, *guessed]}
        gate.start_workers()
        await gate.until_shared()
        chance, step = random.Random(2), step_now()
        records: list[tuple[str, Outgoing]] = []
        for user_id, authenticator in authenticators.items():
            token = bearer(user_id)
            for number in range(PARTITIONS * 3):
                if user_id in guessed:
                    code = authenticator.wrong_code(number)
                else:
                    # The odd ones send the codes of two steps.
                    code = authenticator.at(step + (number % 2 if int(user_id.rpartition("-")[2]) % 2 else 0))
                records.append((user_id, Outgoing(order(user_id, f"{user_id}-{number}"), number % PARTITIONS, token, code)))
        chance.shuffle(records)
        sent = await gate.send(*(record for _, record in records))
        codes: dict[str, list[tuple[str | None, str | None]]] = {user_id: [] for user_id in authenticators}
        for (user_id, record), where in zip(records, sent, strict=True):
            result = await gate.results.until(where, lambda result: bool(result["final"]), 60)
            codes[user_id].append((record.code, result["reason_code"]))
        for user_id in tried:
            passed = [code for code, reason in codes[user_id] if reason is None]
            assert {reason for _, reason in codes[user_id]} <= {None, "TOTP_REPLAYED"}
            assert passed and len(passed) == len(set(passed)), f"{user_id}: a code moved money twice: {passed}"
            assert len(gate.at_the_exchange(user_id)) == len(passed)
            (row,) = await gate.fetch("SELECT last_step FROM second_factors WHERE user_id = $1", user_id)
            newest = step + 1 if int(user_id.rpartition("-")[2]) % 2 else step
            assert row["last_step"] == newest
            assert authenticators[user_id].at(newest) in passed
        for user_id in guessed:
            assert Counter(reason for _, reason in codes[user_id]) == {"TOTP_INVALID": 5, "TOTP_LOCKED": PARTITIONS * 3 - 5}
            assert [event["event_type"] for event in await gate.events(user_id)].count("USER_LOCKED_TOTP") == 1
        await assert_promises_hold(gate.made)
