"""Every promise's check: it passes what is sound, and reports each way of breaking it by name."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from pipeline.books.ledger import AccountKey, Balance, TransferKind, clearing
from pipeline.books.order_words import result_of_order
from pipeline.deposits.announcements import result_of_announcement
from pipeline.deposits.settlement import deposit_state
from pipeline.model.identifiers import deposit_id_of
from pipeline.withdrawals.acceptance import result_of_withdrawal, withdrawal_state
from schemas.audit import EventType
from schemas.deposits import DEPOSIT_STATE
from schemas.orders import AnnouncementStatus, DepositStatus, Mode, OrderStatus, WithdrawalStatus
from schemas.results import ResultStatus
from schemas.withdrawals import WITHDRAWAL_STATE
from tests.unit.sound_evidence import (
    ANNOUNCED,
    ARRIVED,
    FILLED,
    NOW,
    PAID,
    PAPER,
    REFUSED,
    RESTING,
    SESSION,
    TAKEN_BACK,
    USER,
    Sound,
    announcement_of,
    booked_deposit,
    booked_order,
    booked_payout,
    client_id,
    make_order,
    sound,
    source,
)
from verification.promises.accounts import TransferTotal
from verification.promises.answers import tally
from verification.promises.books import books_missing
from verification.promises.deposits import Booked, Movement, deposits_missing
from verification.promises.finding import EXAMPLES_KEPT_MAX, Check, still_broken
from verification.promises.progress import PartitionProgress
from verification.promises.promises import AUDIT, DEPOSITS, LEDGER, PAYOUTS, TOPICS, UNDER_WAY, all_hold, check_all

USDT = AccountKey(USER, "binance", "live", "USDT")


def broken(made: Sound) -> set[str]:
    return {finding.name for finding in check_all(made.evidence()) if not finding.holds}


def test_promises_of_sound_evidence_all_hold() -> None:
    """Nothing is reported where nothing is wrong, and everything was looked at."""
    findings = check_all(sound().evidence())
    assert [finding for finding in findings if not finding.holds] == []
    assert [finding.name for finding in findings if not finding.checked] == []


def _forget_answer(made: Sound) -> None:
    del made.answers.finals[source(3)]


def _forget_order_answer(made: Sound) -> None:
    del made.answers.finals[source(0)]


def _never_read(made: Sound) -> None:
    made.answers.add_request(source(99), 1_000)


def _answer_twice(made: Sound) -> None:
    made.tell(replace(result_of_order(made.orders[FILLED]), replayed=True))


def _answer_unasked(made: Sound) -> None:
    made.tell(replace(result_of_order(made.orders[FILLED]), source=source(50), replayed=True))


def _two_answers_for_a_key(made: Sound) -> None:
    made.answers.add_request(source(5), 1_000)
    made.tell(replace(result_of_order(made.orders[FILLED]), source=source(5)), stored=False)


def _replay_of_nothing(made: Sound) -> None:
    made.answers.add_request(source(5), 1_000)
    made.tell(replace(result_of_order(made.orders[FILLED]), source=source(5), idempotency_key="never", replayed=True, order_id=None))


def _replay_differs(made: Sound) -> None:
    made.answers.add_request(source(5), 1_000)
    wrong = replace(result_of_order(made.orders[FILLED]), source=source(5), replayed=True, filled_quantity=Decimal(2))
    made.tell(wrong)


def _stored_answer_differs(made: Sound) -> None:
    made.stored[USER, f"key-{FILLED}"] = b"other"


def _result_lags_behind(made: Sound) -> None:
    made.orders[RESTING] = replace(made.orders[RESTING], status=OrderStatus.PARTIALLY_FILLED, cum_quantity=Decimal("0.5"))


def _accepted_twice(made: Sound) -> None:
    made.books.orders.append(replace(booked_order(made.orders[FILLED]), exchange_order_id="x-2"))


def _two_orders_for_a_key(made: Sound) -> None:
    other = make_order("o-other", 5, OrderStatus.NEW, idempotency_key=f"key-{FILLED}")
    made.orders[other.order_id] = other
    made.books.orders.append(booked_order(other))


def _rejected_yet_accepted(made: Sound) -> None:
    made.books.orders.append(replace(booked_order(made.orders[REFUSED]), status=OrderStatus.FILLED))


def _queued_again_yet_accepted(made: Sound) -> None:
    made.orders[RESTING] = replace(made.orders[RESTING], status=OrderStatus.ACCEPTED)


def _told_rejected_yet_accepted(made: Sound) -> None:
    made.answers.finals[source(0)] = [replace(result_of_order(made.orders[FILLED]), status=ResultStatus.REJECTED)]


def _executed_yet_unknown(made: Sound) -> None:
    made.books.orders = [row for row in made.books.orders if row.client_order_id != client_id(FILLED)]


def _open_yet_unknown(made: Sound) -> None:
    made.books.orders = [row for row in made.books.orders if row.client_order_id != client_id(RESTING)]


def _foreign_order(made: Sound) -> None:
    made.books.orders.append(replace(booked_order(made.orders[FILLED]), client_order_id="somebody-else"))


def _asked_otherwise(made: Sound) -> None:
    made.books.orders[0].price = Decimal(101)


def _paper_at_exchange(made: Sound) -> None:
    made.books.orders.append(booked_order(made.orders[PAPER]))


def _paper_told_as_real(made: Sound) -> None:
    made.tell(replace(result_of_order(made.orders[PAPER]), mode=Mode.LIVE))


def _paper_with_an_id_of_the_exchange(made: Sound) -> None:
    made.tell(replace(result_of_order(made.orders[PAPER]), exchange_order_id="123"))


def _real_told_as_paper(made: Sound) -> None:
    made.tell(replace(result_of_order(made.orders[RESTING]), mode=Mode.PAPER))


def _paper_money_into_real_book(made: Sound) -> None:
    made.balances[USDT] = replace(made.balances[USDT], posted=made.balances[USDT].posted + 1)
    simulated = USDT._replace(book="paper")
    made.balances[simulated] = replace(made.balances[simulated], posted=made.balances[simulated].posted - 1)


def _money_at_another_exchange(made: Sound) -> None:
    made.balances[USDT] = replace(made.balances[USDT], posted=made.balances[USDT].posted - 1)
    made.balances[USDT._replace(exchange="binanceus")] = Balance(Decimal(1))


def _figures_differ(made: Sound) -> None:
    made.books.orders[0].cum_quote = Decimal("98.5")


def _fee_differs(made: Sound) -> None:
    made.books.orders[0].fees = {"BTC": Decimal("0.002")}


def _funds_differ_from_exchange(made: Sound) -> None:
    made.books.balances[USER, "USDT"] -= Decimal("0.01")


def _sum_is_not_zero(made: Sound) -> None:
    made.balances[USDT] = replace(made.balances[USDT], posted=made.balances[USDT].posted + 1)


def _balance_without_transfers(made: Sound) -> None:
    made.balances[USDT._replace(asset="ETH")] = Balance(Decimal(1))


def _transfer_without_balance(made: Sound) -> None:
    other = clearing("binance", "live", "USDT")
    made.totals.append(TransferTotal(TransferKind.POST, USDT, other, Decimal(5)))


def _hold_without_order(made: Sound) -> None:
    made.held["o-none"] = Decimal(1)


def _hold_of_ended_order(made: Sound) -> None:
    made.held[FILLED] = Decimal(1)


def _pending_without_hold(made: Sound) -> None:
    made.balances[USDT] = replace(made.balances[USDT], pending=Decimal(50))


def _negative(made: Sound) -> None:
    made.balances[USDT] = Balance(Decimal(50), Decimal(100))


def _gap_in_chain(made: Sound) -> None:
    del made.database.links[f"{FILLED}:2"]


def _rewritten_event(made: Sound) -> None:
    made.database.links[f"{FILLED}:2"] = replace(made.database.links[f"{FILLED}:2"], is_right=False)


def _cut_chain(made: Sound) -> None:
    made.database.heads[USER] = (99, "0" * 64)


def _row_of_another_event(made: Sound) -> None:
    row = made.trail.rows[0]
    made.database.add(row.account, row.seq, "another", row.hash, row.body.decode())


def _gap_on_topic(made: Sound) -> None:
    del made.topic.links[f"{FILLED}:2"]


def _changed_on_topic(made: Sound) -> None:
    row = made.trail.rows[0]
    made.topic.add(row.event_id.encode(), row.value.replace(b'"quantity":"1"', b'"quantity":"9"'), "trade.audit/0/99")


def _garbage_on_topic(made: Sound) -> None:
    made.topic.add(b"x", b"[]", "trade.audit/0/99")


def _key_of_order(made: Sound) -> None:
    for row in made.trail.rows:
        made.topic.add((row.order_id or "").encode(), row.value, f"trade.audit/0/{row.seq}")


def _event_not_stored(made: Sound) -> None:
    row = made.trail.append(USER, FILLED, EventType.ORDER_FILLED, {})
    made.topic.add(row.event_id.encode(), row.value, "trade.audit/0/99")


def _event_not_published(made: Sound) -> None:
    row = made.trail.append(USER, FILLED, EventType.ORDER_FILLED, {})
    made.database.add(row.account, row.seq, row.event_id, row.hash, row.body.decode())
    made.database.heads[USER] = (row.seq, row.hash)


def _status_jumps(made: Sound) -> None:
    made.record(EventType.ORDER_FILLED, made.orders[RESTING], OrderStatus.PARTIALLY_FILLED)


def _session_counts_too_little(made: Sound) -> None:
    made.sessions[SESSION] = replace(made.sessions[SESSION], orders_used=2)


def _session_counts_another_amount(made: Sound) -> None:
    made.sessions[SESSION] = replace(made.sessions[SESSION], amount_usd_used=Decimal("299.99"))


def _session_beyond_its_bound(made: Sound) -> None:
    made.sessions[SESSION] = replace(made.sessions[SESSION], orders_max=2)


def _session_confirms_unnoticed(made: Sound) -> None:
    made.sessions["s-idle"] = replace(made.sessions[SESSION], orders_used=1, amount_usd_used=Decimal(0))


def _stale_snapshot(made: Sound) -> None:
    made.snapshots[RESTING] = made.snapshots[RESTING].replace(b'"new"', b'"accepted"')


def _no_snapshot(made: Sound) -> None:
    del made.snapshots[RESTING]


def _no_snapshot_of_what_was_over_after_removal_began(made: Sound) -> None:
    over = made.withdrawals[PAID]
    assert over.executed_at is not None
    made.snapshots_removed = {("withdrawal", over.exchange): over.executed_at - timedelta(microseconds=1)}
    del made.snapshots[PAID]


def _snapshot_of_nothing(made: Sound) -> None:
    made.snapshots["o-none"] = made.snapshots[RESTING]


def _offset_ahead(made: Sound) -> None:
    made.partitions[0] = PartitionProgress("trade.requests", 0, 10, 10, 9)


def _carried_left(made: Sound) -> None:
    made.partitions[0] = replace(made.partitions[0], carries=True)


def _records_wait(made: Sound) -> None:
    made.partitions[0] = PartitionProgress("trade.requests", 0, 11, 10, 10)


def _left_submitting(made: Sound) -> None:
    made.orders[RESTING] = replace(made.orders[RESTING], status=OrderStatus.SUBMITTING)


def _cancel_waits(made: Sound) -> None:
    made.pending_cancels.add(source(7))


def _in_doubt(made: Sound) -> None:
    made.orders[RESTING] = replace(made.orders[RESTING], status=OrderStatus.IN_DOUBT)


def _not_buried(made: Sound) -> None:
    made.letters.found.clear()


def _buried_twice(made: Sound) -> None:
    made.letters.add_dead_letter(b"k", b"{", [("dlq-source", str(source(4)).encode())], "trade.requests.dlq/0/1")


def _buried_otherwise(made: Sound) -> None:
    made.letters.found.clear()
    made.letters.add_dead_letter(b"k", b"[", [("dlq-source", str(source(4)).encode())], "trade.requests.dlq/0/1")


def _request_buried(made: Sound) -> None:
    made.letters.add_dead_letter(b"k", b"v", [("dlq-source", str(source(0)).encode())], "trade.requests.dlq/0/1")


def _buried_without_a_name(made: Sound) -> None:
    made.letters.add_dead_letter(b"k", b"v", [], "trade.requests.dlq/0/1")


def _secret_buried(made: Sound) -> None:
    headers = [("Authorization", b"Bearer x"), ("dlq-source", b"t/0/0")]
    made.letters.add_dead_letter(b"k", b"v", headers, "trade.requests.dlq/0/1")


def _paid_again(made: Sound) -> None:
    made.books.payouts.append(replace(made.books.payouts[0], exchange_withdrawal_id="x2"))


def _two_payouts_for_a_key(made: Sound) -> None:
    again = replace(made.withdrawals[PAID], withdrawal_id="w-again", client_withdrawal_id="cw-again", source=source(8))
    made.withdrawals["w-again"] = again
    made.books.payouts.append(booked_payout(again))


def _payout_of_nobody(made: Sound) -> None:
    made.books.payouts.append(replace(made.books.payouts[0], client_withdrawal_id="cw-foreign"))


def _paid_elsewhere(made: Sound) -> None:
    made.books.payouts[0].address = "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"


def _paid_more(made: Sound) -> None:
    made.books.payouts[0].amount += 1


def _completed_yet_given_back(made: Sound) -> None:
    made.books.payouts[0].paid = False


def _completed_yet_unknown(made: Sound) -> None:
    made.books.payouts.clear()


def _rejected_yet_paid(made: Sound) -> None:
    made.withdrawals[PAID] = replace(made.withdrawals[PAID], status=WithdrawalStatus.REJECTED)


def _failed_yet_paid(made: Sound) -> None:
    made.withdrawals[PAID] = replace(made.withdrawals[PAID], status=WithdrawalStatus.FAILED)


def _fee_of_payout_differs(made: Sound) -> None:
    made.books.payouts[0].fee = Decimal("0.4")


def _told_completed_yet_not_paid(made: Sound) -> None:
    del made.withdrawals[PAID]
    made.books.payouts[0].paid = False


def _hold_of_ended_withdrawal(made: Sound) -> None:
    made.held[PAID] = Decimal(1)


def _withdrawal_snapshot_stale(made: Sound) -> None:
    before = replace(made.withdrawals[PAID], status=WithdrawalStatus.PROCESSING)
    made.snapshots[PAID] = WITHDRAWAL_STATE.dump_json(withdrawal_state(before))


def _forget_withdrawal_answer(made: Sound) -> None:
    del made.answers.finals[made.withdrawals[PAID].source]


def _withdrawal_result_lags_behind(made: Sound) -> None:
    paid = made.withdrawals[PAID]
    made.answers.newest[paid.source] = result_of_withdrawal(replace(paid, status=WithdrawalStatus.PROCESSING))


def _left_paying(made: Sound) -> None:
    made.withdrawals[PAID] = replace(made.withdrawals[PAID], status=WithdrawalStatus.PROCESSING)


def _withdrawal_in_doubt(made: Sound) -> None:
    made.withdrawals[PAID] = replace(made.withdrawals[PAID], status=WithdrawalStatus.IN_DOUBT)


def _never_credited(made: Sound) -> None:
    del made.deposits[made.deposit(ARRIVED).deposit_id]


def _credited_to_nobody(made: Sound) -> None:
    made.change_deposit(ARRIVED, status=DepositStatus.CONFIRMING)


def _not_reversed(made: Sound) -> None:
    made.change_deposit(TAKEN_BACK, status=DepositStatus.CREDITED)


def _credited_yet_not_shown(made: Sound) -> None:
    made.books.deposits = [row for row in made.books.deposits if row.exchange_deposit_id != ARRIVED]


def _credited_yet_under_way(made: Sound) -> None:
    made.books.deposits[0].state = Booked.UNDER_WAY


def _credited_more(made: Sound) -> None:
    made.books.deposits[0].amount = Decimal("2.9")


def _credited_to_another(made: Sound) -> None:
    made.books.deposits[0].user_id = "bob"


def _credited_by_two_transfers(made: Sound) -> None:
    made.movements[made.deposit(ARRIVED).deposit_id] = Movement(2, Decimal(6), Decimal(0))


def _credited_without_a_transfer(made: Sound) -> None:
    del made.movements[made.deposit(ARRIVED).deposit_id]


def _reversed_without_a_transfer(made: Sound) -> None:
    made.movements[made.deposit(TAKEN_BACK).deposit_id] = Movement(1, Decimal(5), Decimal(0))


def _transfer_of_no_deposit(made: Sound) -> None:
    made.movements["d-other"] = Movement(1, Decimal(1), Decimal(0))


def _hold_for_a_deposit(made: Sound) -> None:
    made.held[made.deposit(ARRIVED).deposit_id] = Decimal(1)


def _deposit_snapshot_stale(made: Sound) -> None:
    before = replace(made.deposit(ARRIVED), status=DepositStatus.CONFIRMING)
    made.snapshots[before.deposit_id] = DEPOSIT_STATE.dump_json(deposit_state(before))


def _deposit_without_snapshot(made: Sound) -> None:
    del made.snapshots[made.deposit(ARRIVED).deposit_id]


def _announcement_of_another_amount(made: Sound) -> None:
    made.announcements[ANNOUNCED] = replace(made.announcements[ANNOUNCED], amount=Decimal(4))


def _deposit_for_two_announcements(made: Sound) -> None:
    made.announcements["n-2"] = replace(made.announcements[ANNOUNCED], announcement_id="n-2", source=source(9))


def _announcement_never_answered(made: Sound) -> None:
    made.announcements[ANNOUNCED] = replace(made.announcements[ANNOUNCED], status=AnnouncementStatus.FAILED)
    del made.answers.finals[made.announcements[ANNOUNCED].source]


def _announcement_result_lags_behind(made: Sound) -> None:
    one = made.announcements[ANNOUNCED]
    made.answers.newest[one.source] = result_of_announcement(replace(one, status=AnnouncementStatus.EXPECTED))


WAYS: tuple[tuple[str, Callable[[Sound], None]], ...] = (
    ("paid_out_twice", _paid_again),
    ("paid_out_twice", _two_payouts_for_a_key),
    ("paid_out_unasked", _payout_of_nobody),
    ("paid_out_unasked", _paid_elsewhere),
    ("paid_out_unasked", _paid_more),
    ("payouts_match_exchange", _completed_yet_given_back),
    ("payouts_match_exchange", _completed_yet_unknown),
    ("payouts_match_exchange", _rejected_yet_paid),
    ("payouts_match_exchange", _failed_yet_paid),
    ("payouts_match_exchange", _fee_of_payout_differs),
    ("payouts_match_exchange", _told_completed_yet_not_paid),
    ("holds_match_orders", _hold_of_ended_withdrawal),
    ("state_matches_database", _withdrawal_snapshot_stale),
    ("lost", _forget_withdrawal_answer),
    ("results_match_database", _withdrawal_result_lags_behind),
    ("nothing_unfinished", _left_paying),
    ("in_doubt", _withdrawal_in_doubt),
    ("deposits_credited", _never_credited),
    ("deposits_credited", _credited_to_nobody),
    ("deposits_credited", _not_reversed),
    ("credited_unproven", _credited_yet_not_shown),
    ("credited_unproven", _credited_yet_under_way),
    ("credited_unproven", _credited_more),
    ("credited_unproven", _credited_to_another),
    ("deposits_match_transfers", _credited_by_two_transfers),
    ("deposits_match_transfers", _credited_without_a_transfer),
    ("deposits_match_transfers", _reversed_without_a_transfer),
    ("deposits_match_transfers", _transfer_of_no_deposit),
    ("holds_match_orders", _hold_for_a_deposit),
    ("state_matches_database", _deposit_snapshot_stale),
    ("state_matches_database", _deposit_without_snapshot),
    ("announcements_match_deposits", _announcement_of_another_amount),
    ("announcements_match_deposits", _deposit_for_two_announcements),
    ("lost", _announcement_never_answered),
    ("results_match_database", _announcement_result_lags_behind),
    ("lost", _forget_answer),
    ("lost", _forget_order_answer),
    ("lost", _never_read),
    ("answered_twice", _answer_twice),
    ("answered_unasked", _answer_unasked),
    ("one_answer_per_key", _two_answers_for_a_key),
    ("one_answer_per_key", _replay_of_nothing),
    ("replays_agree", _replay_differs),
    ("results_match_database", _stored_answer_differs),
    ("results_match_database", _result_lags_behind),
    ("dead_letters", _not_buried),
    ("dead_letters", _buried_twice),
    ("dead_letters", _buried_otherwise),
    ("dead_letters", _request_buried),
    ("dead_letters", _buried_without_a_name),
    ("dead_letters", _secret_buried),
    ("executed_twice", _accepted_twice),
    ("executed_twice", _two_orders_for_a_key),
    ("rejected_but_executed", _rejected_yet_accepted),
    ("rejected_but_executed", _queued_again_yet_accepted),
    ("rejected_but_executed", _told_rejected_yet_accepted),
    ("executed_but_unknown", _executed_yet_unknown),
    ("executed_but_unknown", _open_yet_unknown),
    ("foreign_orders", _foreign_order),
    ("foreign_orders", _asked_otherwise),
    ("paper_stays_here", _paper_at_exchange),
    ("foreign_orders", _paper_at_exchange),
    ("paper_is_marked", _paper_told_as_real),
    ("paper_is_marked", _paper_with_an_id_of_the_exchange),
    ("paper_is_marked", _real_told_as_paper),
    ("figures_match_exchange", _figures_differ),
    ("figures_match_exchange", _fee_differs),
    ("balances_match_exchange", _funds_differ_from_exchange),
    ("ledger_sums_to_zero", _sum_is_not_zero),
    ("ledger_sums_to_zero", _paper_money_into_real_book),
    ("ledger_sums_to_zero", _money_at_another_exchange),
    ("balances_match_transfers", _balance_without_transfers),
    ("balances_match_transfers", _transfer_without_balance),
    ("holds_match_orders", _hold_without_order),
    ("holds_match_orders", _hold_of_ended_order),
    ("holds_match_orders", _pending_without_hold),
    ("nothing_negative", _negative),
    ("audit_chain", _gap_in_chain),
    ("audit_chain", _rewritten_event),
    ("audit_chain", _cut_chain),
    ("audit_chain", _row_of_another_event),
    ("audit_chain_on_topic", _gap_on_topic),
    ("audit_chain_on_topic", _changed_on_topic),
    ("audit_chain_on_topic", _garbage_on_topic),
    ("audit_key_unique", _key_of_order),
    ("audit_on_topic_matches_database", _event_not_stored),
    ("audit_on_topic_matches_database", _event_not_published),
    ("status_steps_join", _status_jumps),
    ("sessions_match_orders", _session_counts_too_little),
    ("sessions_match_orders", _session_counts_another_amount),
    ("sessions_match_orders", _session_beyond_its_bound),
    ("sessions_match_orders", _session_confirms_unnoticed),
    ("state_matches_database", _stale_snapshot),
    ("state_matches_database", _no_snapshot),
    ("state_matches_database", _no_snapshot_of_what_was_over_after_removal_began),
    ("state_matches_database", _snapshot_of_nothing),
    ("offsets_match_database", _offset_ahead),
    ("offsets_match_database", _carried_left),
    ("nothing_waits", _records_wait),
    ("nothing_unfinished", _left_submitting),
    ("nothing_unfinished", _cancel_waits),
    ("in_doubt", _in_doubt),
)


@pytest.mark.parametrize(("name", "break_it"), WAYS, ids=[f"{name}-{way.__name__[1:]}" for name, way in WAYS])
def test_promise_broken_on_purpose_is_reported_by_name(name: str, break_it: Callable[[Sound], None]) -> None:
    """The check of each promise can fail, and names it."""
    made = sound()
    break_it(made)
    assert name in broken(made)


def test_promises_have_each_a_way_to_break_them() -> None:
    """No check is left that was never seen to fail."""
    assert {finding.name for finding in check_all(sound().evidence())} == {name for name, _ in WAYS}
    assert {name for name, _ in WAYS} >= LEDGER | AUDIT | PAYOUTS | DEPOSITS | TOPICS | UNDER_WAY


def test_promise_of_one_answer_allows_a_key_again_after_its_day() -> None:
    """A key lives 24 hours; afterwards its next use is a request of its own."""
    made = sound()
    order = replace(made.orders[FILLED], decided_at=NOW.replace(day=26), source=source(5))
    made.answers.add_request(source(5), 1_000)
    made.tell(result_of_order(order), stored=False)
    assert "one_answer_per_key" not in broken(made)


def test_promise_of_no_loss_allows_an_open_order_and_its_cancel() -> None:
    """A resting order has no final answer yet, nor has the cancel that waits for it."""
    made = sound()
    made.answers.add_request(source(7), 1_000)
    made.pending_cancels.add(source(7))
    assert "lost" not in broken(made)


def test_queue_of_a_system_at_work_is_no_loss_and_a_missing_answer_is() -> None:
    """A record that is read next and an order that is sent next wait; an order that ended without a final answer does not."""
    made = sound()
    _never_read(made)
    made.orders[FILLED] = replace(made.orders[FILLED], status=OrderStatus.SUBMITTING)
    _forget_order_answer(made)
    assert "lost" in broken(made)
    assert "lost" not in {finding.name for finding in check_all(made.evidence(), at_rest=False) if not finding.holds}
    made = sound()
    _forget_order_answer(made)
    assert "lost" in {finding.name for finding in check_all(made.evidence(), at_rest=False) if not finding.holds}


def test_funds_of_a_user_in_doubt_are_not_compared() -> None:
    """Nobody can say yet what an order in doubt has moved."""
    made = sound()
    _in_doubt(made)
    _funds_differ_from_exchange(made)
    assert "balances_match_exchange" not in broken(made)


def test_repeated_event_with_the_same_bytes_is_no_breach() -> None:
    """A topic may carry an exact re-emission; compaction removes one of the two."""
    made = sound()
    row = made.trail.rows[0]
    made.topic.add(row.event_id.encode(), row.value, "trade.audit/0/99")
    assert broken(made) == set()


def test_books_that_are_missing_are_skipped_and_said_so() -> None:
    """Without the exchange's log nothing is claimed about it."""
    findings = check_all(replace(sound().evidence(), books=None, books_missing_because="no log"))
    skipped = {finding.name for finding in findings if finding.skipped == "no log"}
    assert skipped == {finding.name for finding in (*books_missing(""), *deposits_missing(""))} | PAYOUTS
    assert all_hold(findings)


def test_deposit_that_need_not_be_credited_is_no_breach() -> None:
    """Not what came before the opening balance, nor what a person must look at, nor what is not seen yet while the system works."""
    made = sound()
    early = replace(booked_deposit(made.deposit(ARRIVED)), exchange_deposit_id="e-early", credited_at=NOW.replace(day=23, hour=1))
    odd = replace(early, exchange_deposit_id="e-odd", credited_at=NOW)
    made.books.deposits += [early, odd]
    made.disputed.add(deposit_id_of("binance", odd.transaction_id, odd.asset, odd.address, odd.exchange_deposit_id))
    assert broken(made) == set()
    made.books.deposits.append(replace(odd, exchange_deposit_id="e-new"))
    assert broken(made) == {"deposits_credited"}
    assert all_hold(check_all(made.evidence(), at_rest=False))


def test_announcement_that_is_expected_is_no_loss() -> None:
    """It has no final answer before its deposit arrives or its time is over."""
    made = sound()
    expected = announcement_of(
        announcement_id="n-3", status=AnnouncementStatus.EXPECTED, source=source(9), executed_at=None, deposit_id=None, request_id="r-3"
    )
    made.announcements["n-3"] = expected
    made.answers.add_request(expected.source, 1_000)
    made.tell(result_of_announcement(expected))
    assert broken(made) == set()


def test_breach_that_an_earlier_look_did_not_have_is_work_under_way() -> None:
    """Only what is broken in the same words at both looks lasts."""

    def look(*texts: str) -> Check:
        check = Check("lost", "claim", 10)
        for text in texts:
            check.breach(text)
        return check

    lasting = still_broken([look("a", "b").finding()], [look("b", "c").finding()])
    assert [finding.examples for finding in lasting] == [("b",)]
    assert lasting[0].breaches == 1
    many = look(*(str(number) for number in range(EXAMPLES_KEPT_MAX + 3))).finding()
    assert still_broken([look().finding()], [many])[0].breaches == 3


def test_tally_counts_the_records_of_this_run_only() -> None:
    """Figures are about the records from the given offsets on; a replay is a duplicate, not an execution."""
    answers = sound().answers
    whole = tally(answers, {0: 0})
    assert (whole.requests, whole.results_final, whole.executed, whole.rejected, whole.duplicates) == (8, 7, 2, 2, 1)
    assert whole.rejected_by_reason == {"EXCHANGE_REFUSED": 1, "SCHEMA_INVALID": 1}
    assert (whole.p50_ms, whole.p99_ms, whole.seconds) == (1_000, 1_000, 1.0)
    assert tally(answers, {0: 3}).requests == 5
    assert tally(answers, {0: 9}).requests == 0


def test_snapshot_may_be_gone_of_what_was_over_when_removal_reached_it() -> None:
    """Of its kind and exchange alone, and never of what still runs."""
    made = sound()
    over = made.withdrawals[PAID]
    assert over.executed_at is not None
    made.snapshots_removed = {("withdrawal", over.exchange): over.executed_at, ("order", over.exchange): NOW + timedelta(days=400)}
    del made.snapshots[PAID]
    assert all_hold(check_all(made.evidence()), frozenset({"state_matches_database"}))
    del made.snapshots[RESTING]
    assert not all_hold(check_all(made.evidence()), frozenset({"state_matches_database"}))
