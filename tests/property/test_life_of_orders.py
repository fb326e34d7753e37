"""The promises, held against random lives of orders: copies, crashes, lost answers, late requests, fills, races.

A seed is one life of the system, and always the same one; a failure prints its steps. LIFE_SEEDS=20000 looks further.

The exchange's books lag behind by up to what is known of it, and this machine's clock is set now and then.
"""

import os
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from random import Random
from typing import Any, Final

import pytest

from schemas.orders import OrderStatus
from tests.property.world import USERS, World
from tests.unit.builders import EXCHANGE, RULES, cancel, trade

SEEDS: Final = int(os.environ.get("LIFE_SEEDS", "300"))
STEPS: Final = 60
# What is known of the exchange: its books show an order so late at the latest.
LAG: Final = RULES.read_lag(EXCHANGE)
OUTCOMES: Final = ("accepted", "filled", "refused", "lost answer", "lost request", "late", "not sent")
BROKEN: Final = (b"", b"{", b'{"user_id":"alice","idempotency_key":"k1"}', b'{"user_id":"bob","idempotency_key":"c1","x":1}')


class Life:
    """One world and the dice that move it. `steps` tells what happened."""

    def __init__(self, seed: int, read_lag: timedelta = LAG) -> None:
        self.read_lag = read_lag
        self.dice = Random(seed)
        self.world = World()
        self.steps: list[str] = []
        self.seen: Counter[str] = Counter()
        self._sent: list[dict[str, Any] | bytes] = []

    def run(self) -> None:
        rules: tuple[tuple[int, Callable[[], str]], ...] = (
            (6, self._request), (3, self._copy), (2, self._cancel), (1, self._broken), (6, self._intake), (8, self._execute),
            (5, self._time), (1, self._set_clock), (2, self._land), (6, self._fill), (2, self._end), (4, self._look_up), (5, self._settle),
            (2, self._retry),
        )  # fmt: skip
        weights, actions = [weight for weight, _ in rules], [action for _, action in rules]
        for _ in range(STEPS):
            action = self.dice.choices(actions, weights)[0]
            self.steps.append(action.__name__)
            self.steps[-1] += " " + action()
            self.world.check()
        self.steps.append("finish")
        self.world.finish()
        self.world.check_end()
        for order in self.world.orders.values():
            self.seen[order.status.value] += 1
        for result in self.world.results:
            self.seen[f"answered {result.status.value}"] += 1

    def _publish(self, value: dict[str, Any] | bytes) -> str:
        self._sent.append(value)
        self.world.publish(value)
        return str(value)

    def _request(self) -> str:
        dice = self.dice
        return self._publish(
            trade(
                user_id=dice.choice(USERS),
                idempotency_key=f"k{dice.randrange(8)}",
                side=dice.choice(["buy", "sell"]),
                quantity=dice.choice(["0.001", "0.002", "0.01", "3"]),
                order_type="limit",
                price=dice.choice(["40000", "50000", "60000"]),
                time_in_force=dice.choice([None, "GTC", "IOC"]),
                expires_at=dice.choice([None, "2026-11-24T07:00:20Z", "2026-11-24T09:00:00Z", "2026-11-24T09:00:00Z"]),
            )
        )

    def _copy(self) -> str:
        if not self._sent:
            return "of nothing"
        value = self.dice.choice(self._sent)
        self.world.publish(value)
        return str(value)

    def _cancel(self) -> str:
        user_id, number, target = self.dice.choice(USERS), self.dice.randrange(6), self.dice.randrange(8)
        return self._publish(cancel(user_id=user_id, idempotency_key=f"c{number}", target_idempotency_key=f"k{target}"))

    def _broken(self) -> str:
        return self._publish(self.dice.choice(BROKEN))

    def _intake(self) -> str:
        crash = self.dice.random() < 0.1
        self.world.intake(self.dice.randint(1, 6), crash=crash)
        return "and crash" if crash else ""

    def _execute(self) -> str:
        crash_after = self.dice.choice([None, None, None, None, "intent", "call"])
        called: list[str] = []

        def outcome_of(_: object) -> str:
            self.world.exchange.read_lag = self.read_lag * self.dice.choice([0, 0, 0.3, 1])
            called.append(self.dice.choice(OUTCOMES))
            return called[-1]

        self.world.execute(self.dice.randint(1, 4), outcome_of, crash_after=crash_after)
        return f"{called} {crash_after or ''}"

    def _time(self) -> str:
        seconds = self.dice.choice([0.001, 1, 6, 16, 31, 70, 140])
        self.world.tick(seconds)
        return f"{seconds} s"

    def _set_clock(self) -> str:
        seconds = self.dice.choice([-3600, -90, -1, 1, 90, 3600])
        self.world.set_clock(seconds)
        return f"by {seconds} s"

    def _land(self) -> str:
        self.world.exchange.read_lag = self.read_lag * self.dice.choice([0, 0.3, 1])
        self.world.exchange.land()
        return ""

    def _fill(self) -> str:
        books = list(self.world.exchange.books.values())
        if not books:
            return "nothing"
        standing, tenths = self.dice.choice(books), self.dice.randint(1, 10)
        price, asset = self.dice.choice(["39999.99", "40000", "45000.01", "70000"]), self.dice.choice(["BTC", "USDT", "BNB"])
        self.world.exchange.fill(standing, tenths, Decimal(price), asset)
        return f"{standing.exchange_order_id} {tenths}/10 at {price}, fee in {asset}"

    def _end(self) -> str:
        books = list(self.world.exchange.books.values())
        if not books:
            return "nothing"
        standing = self.dice.choice(books)
        status = self.dice.choice([OrderStatus.CANCELED, OrderStatus.EXPIRED, OrderStatus.REJECTED])
        self.world.exchange.end(standing, status)
        return f"{standing.exchange_order_id} {status}"

    def _retry(self) -> str:
        self.world.retry()
        return ""

    def _look_up(self) -> str:
        self.world.look_up()
        return ""

    def _settle(self) -> str:
        count = len(self.world.reports)
        positions = [self.dice.randrange(count) for _ in range(self.dice.randint(1, count + 1))] if count else []
        keep = self.dice.random() < 0.3
        self.world.settle(positions, keep=keep)
        return f"{len(positions)} reports{' that come again' if keep else ''}"


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_one_answer_one_execution_no_loss_whatever_happens(first: int) -> None:
    """Promises 1 to 4 after every step of fifty random lives, and the exchange's books at the end of each."""
    for seed in range(first, first + 50):
        life = Life(seed)
        try:
            life.run()
        except Exception as error:
            story = "\n".join(life.steps)
            raise AssertionError(f"seed {seed}, after:\n{story}") from error


def test_nothing_is_called_not_executed_that_the_exchange_shows_within_its_lag() -> None:
    """Answers lost, requests late within their horizon, books that lag up to what is known: nothing is corrected, ever."""
    for seed in range(200):
        life = Life(seed)
        life.run()
        assert life.world.corrected == 0, "\n".join(life.steps)


def test_order_that_shows_up_later_than_its_exchange_is_known_to_lag_is_corrected_and_its_user_halted() -> None:
    """The fact may be wrong. Then the books are right in the end, the answer is corrected, the user stands still: never silently wrong."""
    corrected = 0
    for seed in range(200):
        life = Life(seed, read_lag=8 * LAG)
        try:
            life.run()
        except Exception as error:
            story = "\n".join(life.steps)
            raise AssertionError(f"seed {seed}, after:\n{story}") from error
        corrected += life.world.corrected
    assert corrected > 20


def test_random_lives_reach_every_end() -> None:
    """The dice are worth rolling: every status and every kind of answer occurs."""
    seen: Counter[str] = Counter()
    for seed in range(80):
        life = Life(seed)
        life.run()
        seen += life.seen
    ends = {status.value for status in (OrderStatus.FILLED, OrderStatus.CANCELED, OrderStatus.EXPIRED, OrderStatus.REJECTED)}
    answers = {f"answered {word}" for word in ("accepted", "executed", "open", "canceled", "rejected", "duplicate", "in_doubt")}
    assert ends | answers <= seen.keys(), seen
