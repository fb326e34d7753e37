"""Answers: every record on `trade.requests` against every result on `trade.results`.

Invariants that are checked (schemas/results states them for readers of the topic):
1. Each record has exactly one final result, unless its order is open or in doubt.
2. Per `(user_id, idempotency_key)` exactly one final result has `replayed: false`, within the 24 hours that a key lives.
3. A replay says what the first answer said, or what corrected it.
4. What the database stored as an answer is what the topic has, byte by byte.
5. Nothing simulated can be taken for real, nor the other way round.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from itertools import pairwise
from typing import Final

from pipeline.books.order_words import result_of_order
from pipeline.deposits.announcements import result_of_announcement
from pipeline.model.deposit import Announcement
from pipeline.model.order import RESTING, TERMINAL, Order
from pipeline.model.withdrawal import TERMINAL as WITHDRAWAL_TERMINAL
from pipeline.model.withdrawal import Withdrawal
from pipeline.orders.paper import is_paper_id
from pipeline.withdrawals.acceptance import result_of_withdrawal
from schemas.orders import AnnouncementStatus, Mode, OrderStatus, RequestType, WithdrawalStatus
from schemas.results import Result, ResultStatus
from schemas.wire import SourceOffset
from verification.promises.finding import Check, Finding

KEY_LIFETIME: Final = timedelta(hours=24)
_QUEUED: Final = frozenset({OrderStatus.ACCEPTED, OrderStatus.SUBMITTING})
# Their results on the topic are as newest as their rows; an order that is queued or being sent has its next result ahead of it.
_TOLD: Final = TERMINAL | RESTING | {OrderStatus.IN_DOUBT}
# The same of withdrawals: what waits for an operator or the exchange has been told so.
_WITHDRAWAL_OPEN: Final = frozenset({WithdrawalStatus.PENDING_APPROVAL, WithdrawalStatus.IN_DOUBT, WithdrawalStatus.PROCESSING})
_WITHDRAWAL_QUEUED: Final = frozenset({WithdrawalStatus.ACCEPTED, WithdrawalStatus.SUBMITTING})

Key = tuple[str, str]


@dataclass(slots=True)
class Answers:
    """Both topics as read from their beginning; times are record timestamps in ms since 1970."""

    requests: dict[SourceOffset, int] = field(default_factory=dict)
    finals: dict[SourceOffset, list[Result]] = field(default_factory=dict)
    newest: dict[SourceOffset, Result] = field(default_factory=dict)
    # The answers that count per key, each with the digest of its bytes.
    first: dict[Key, list[tuple[Result, bytes]]] = field(default_factory=dict)
    # What corrects a final answer, by key and by the order that it is about, in the order in which it came.
    corrections: dict[Key, list[tuple[Result, bytes]]] = field(default_factory=dict)
    corrected: dict[str, Result] = field(default_factory=dict)
    answered_ms: dict[SourceOffset, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def add_request(self, source: SourceOffset, appended_ms: int) -> None:
        self.requests[source] = appended_ms

    def add_result(self, result: Result, value: bytes, appended_ms: int) -> None:
        """Results of one source share a key and so a partition: they must be added in the partition's order."""
        self.newest[result.source] = result
        if result.corrects and result.user_id is not None and result.idempotency_key is not None:
            key = (result.user_id, result.idempotency_key)
            self.corrections.setdefault(key, []).append((result, sha256(value).digest()))
            self.corrected[result.order_id or ""] = result
        if not result.final:
            return
        self.finals.setdefault(result.source, []).append(result)
        self.answered_ms.setdefault(result.source, appended_ms)
        if not result.replayed and result.user_id is not None and result.idempotency_key is not None:
            key = (result.user_id, result.idempotency_key)
            self.first.setdefault(key, []).append((result, sha256(value).digest()))


@dataclass(frozen=True, slots=True)
class Requested:
    """What the database knows of requests: its orders and withdrawals, the records of cancels that wait for their order, and stored
    answers.

    `read_to` is how far the intake partitions are read. `answers` has the digest of the stored final answer per key, `running` the keys
    whose request has none yet.
    """

    orders: Mapping[str, Order]
    pending_cancels: Set[SourceOffset]
    read_to: Mapping[int, int]
    answers: Mapping[Key, bytes]
    running: Set[Key]
    withdrawals: Mapping[str, Withdrawal] = field(default_factory=dict)


def check_answers(
    answers: Answers, requested: Requested, announcements: Mapping[str, Announcement], at_rest: bool = True
) -> list[Finding]:
    """Every finding about answers. Where the system is said to be at rest, records not yet read and orders not yet sent count as lost."""
    return [
        _lost(answers, requested, announcements, at_rest),
        _answered_twice(answers),
        _answered_unasked(answers),
        _one_answer_per_key(answers, requested),
        _replays_agree(answers),
        _results_match(answers, requested, announcements),
        _paper_is_marked(answers, requested),
    ]


def _lost(answers: Answers, requested: Requested, announcements: Mapping[str, Announcement], at_rest: bool) -> Finding:
    claim = "every request has its final answer, or its order is open or in doubt, or its deposit is expected"
    check = Check("lost", claim, len(answers.requests))
    expected = {one.source for one in announcements.values() if one.status is AnnouncementStatus.EXPECTED}
    # A queue may be longer than any look takes; what waits in it is reported as waiting (progress.py).
    waiting = _QUEUED if not at_rest else frozenset[OrderStatus]()
    by_source = {order.source: order for order in requested.orders.values()}
    payouts = {withdrawal.source: withdrawal for withdrawal in requested.withdrawals.values()}
    payouts_waiting = _WITHDRAWAL_OPEN if at_rest else _WITHDRAWAL_OPEN | _WITHDRAWAL_QUEUED
    for source in sorted(answers.requests.keys() - answers.finals.keys()):
        order = by_source.get(source)
        if order is not None and (order.status in RESTING or order.status is OrderStatus.IN_DOUBT or order.status in waiting):
            continue
        if source in requested.pending_cancels or source in expected:
            continue
        payout = payouts.get(source)
        if payout is not None:
            if payout.status not in payouts_waiting:
                check.breach(f"record {source}: its withdrawal {payout.withdrawal_id} is {payout.status}, and no final result tells it")
            continue
        if order is not None:
            check.breach(f"record {source}: its order {order.order_id} is {order.status}, and no final result tells it")
        elif source.offset >= requested.read_to.get(source.partition, 0):
            if at_rest:
                check.breach(f"record {source} was never read")
        else:
            check.breach(f"record {source} was read and never answered")
    return check.finding()


def _answered_twice(answers: Answers) -> Finding:
    check = Check("answered_twice", "no request has two final answers", len(answers.finals))
    for source, results in answers.finals.items():
        if len(results) > 1:
            check.breach(f"record {source} has {len(results)} final results: {', '.join(result.status for result in results)}")
    return check.finding()


def _answered_unasked(answers: Answers) -> Finding:
    check = Check("answered_unasked", "every answer names a request that was made", len(answers.newest))
    earliest: dict[tuple[str, int], int] = {}
    for source in answers.requests:
        where = (source.topic, source.partition)
        earliest[where] = min(earliest.get(where, source.offset), source.offset)
    for source in answers.newest.keys() - answers.requests.keys():
        # Records before the first that is still there may have been answered before retention removed them.
        if source.offset >= earliest.get((source.topic, source.partition), 0):
            check.breach(f"a result names record {source}, which is not on the topic")
    return check.finding()


def _one_answer_per_key(answers: Answers, requested: Requested) -> Finding:
    check = Check("one_answer_per_key", "per user and idempotency key exactly one final answer is not a replay", len(answers.first))
    for key, results in answers.first.items():
        ordered = sorted((result for result, _ in results), key=lambda result: result.decided_at)
        for before, after in pairwise(ordered):
            if after.decided_at - before.decided_at < KEY_LIFETIME:
                check.breach(f"user {key[0]}, key {key[1]!r}: answered for records {before.source} and {after.source}")
    for results_of_source in answers.finals.values():
        for result in results_of_source:
            if not result.replayed or result.user_id is None or result.idempotency_key is None:
                continue
            key = (result.user_id, result.idempotency_key)
            if key not in answers.first and key not in requested.running:
                check.breach(f"user {key[0]}, key {key[1]!r}: record {result.source} got a replay of an answer that nobody got")
    return check.finding()


def _replays_agree(answers: Answers) -> Finding:
    check = Check("replays_agree", "a replayed answer says what the first answer said, or what corrected it")
    for results in answers.finals.values():
        for result in results:
            if not result.replayed or result.status is ResultStatus.DUPLICATE or result.user_id is None or result.idempotency_key is None:
                continue
            if result.order_id is None:
                # A key used for another payload is refused under its own words.
                continue
            check.checked += 1
            key = (result.user_id, result.idempotency_key)
            firsts = [*answers.first.get(key, []), *answers.corrections.get(key, [])]
            if not any(_says_the_same(first, result) for first, _ in firsts):
                check.breach(f"record {result.source} got a replay that differs from the first answer of key {result.idempotency_key!r}")
    return check.finding()


def _says_the_same(first: Result, replay: Result) -> bool:
    names = ("status", "order_id", "exchange_order_id", "order_status", "filled_quantity", "average_price", "fee", "fee_asset")
    return all(getattr(first, name) == getattr(replay, name) for name in names)


def _results_match(answers: Answers, requested: Requested, announcements: Mapping[str, Announcement]) -> Finding:
    check = Check("results_match_database", "the results on the topic are those that the database stored")
    for order in requested.orders.values():
        if order.status not in _TOLD:
            continue
        check.checked += 1
        told = answers.newest.get(order.source)
        if told is None:
            check.breach(f"order {order.order_id} is {order.status}, and no result tells it")
        elif told != result_of_order(order):
            check.breach(f"order {order.order_id} is {order.status}, its newest result says {told.status} ({told.filled_quantity} filled)")
    for withdrawal in requested.withdrawals.values():
        if withdrawal.status not in WITHDRAWAL_TERMINAL | _WITHDRAWAL_OPEN:
            continue
        check.checked += 1
        told = answers.newest.get(withdrawal.source)
        if told != result_of_withdrawal(withdrawal):
            said = "no result tells it" if told is None else f"its newest result says {told.status}"
            check.breach(f"withdrawal {withdrawal.withdrawal_id} is {withdrawal.status}, {said}")
    for announcement in announcements.values():
        check.checked += 1
        told = answers.newest.get(announcement.source)
        if told != result_of_announcement(announcement):
            said = "no result tells it" if told is None else f"its newest result says {told.status}"
            check.breach(f"announcement {announcement.announcement_id} is {announcement.status}, {said}")
    for text in answers.unreadable:
        check.breach(text)
    for key, digest in requested.answers.items():
        check.checked += 1
        if not any(told_digest == digest for _, told_digest in (*answers.first.get(key, []), *answers.corrections.get(key, []))):
            check.breach(f"user {key[0]}, key {key[1]!r}: the stored answer is not on the topic")
    return check.finding()


def _paper_is_marked(answers: Answers, requested: Requested) -> Finding:
    check = Check("paper_is_marked", "every result of a simulated order says that it is one, and no result of a real order does")
    modes = {order.order_id: order.mode for order in requested.orders.values()}
    for result in {id(result): result for result in (*answers.newest.values(), *_all_finals(answers))}.values():
        mode = modes.get(result.order_id or "")
        if mode is None:
            continue
        check.checked += 1
        # An answer of a version that offered `live` alone does not name the mode.
        told = (result.mode or Mode.LIVE, is_paper_id(result.exchange_order_id or ""))
        if told != (mode, mode is Mode.PAPER and result.exchange_order_id is not None):
            check.breach(f"record {result.source} was told mode {result.mode}, id {result.exchange_order_id}; its order is {mode}")
    return check.finding()


def _all_finals(answers: Answers) -> Iterator[Result]:
    for results in answers.finals.values():
        yield from results


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts over the final answers to `requests` records; times in ms from append to the result's record, seconds over all of them."""

    requests: int
    results_final: int
    executed: int
    rejected: int
    rejected_by_reason: dict[str, int]
    duplicates: int
    withdrawals_completed: int
    seconds: float
    p50_ms: int
    p99_ms: int


def tally(answers: Answers, asked_from: Mapping[int, int]) -> Tally:
    """Counts what became of the records from the given offset of each partition on."""
    sources = [source for source in answers.requests if source.offset >= asked_from.get(source.partition, 0)]
    finals = [result for source in sources for result in answers.finals.get(source, [])]
    own = [result for result in finals if not result.replayed]
    rejected = [result for result in finals if result.status is ResultStatus.REJECTED]
    latencies = sorted(answers.answered_ms[source] - answers.requests[source] for source in sources if source in answers.answered_ms)
    begun = min((answers.requests[source] for source in sources), default=0)
    ended = max((answers.answered_ms[source] for source in sources if source in answers.answered_ms), default=begun)
    reasons = Counter(str(result.reason_code) for result in rejected)
    completed = Counter(str(result.type) for result in own if result.status is ResultStatus.COMPLETED)
    return Tally(
        requests=len(sources),
        results_final=len(finals),
        executed=sum(1 for result in own if result.status is ResultStatus.EXECUTED and result.type is RequestType.TRADE),
        rejected=len(rejected),
        rejected_by_reason=dict(sorted(reasons.items())),
        duplicates=sum(1 for result in finals if result.replayed),
        withdrawals_completed=completed["withdrawal"],
        seconds=(ended - begun) / 1000,
        p50_ms=_percentile(latencies, 50),
        p99_ms=_percentile(latencies, 99),
    )


def _percentile(ordered: list[int], percent: int) -> int:
    """The nearest-rank percentile; 0 of nothing."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0
