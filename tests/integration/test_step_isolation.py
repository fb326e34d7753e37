"""One record of a hundred that a step cannot decide: the ninety-nine others are answered, it is set aside, and nothing is done twice.

The failure is put into every stage of every step, on a real database.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import orjson
import pytest

import agents.steps.conclusion
import agents.steps.control
import agents.steps.execution
import agents.steps.intake
import agents.steps.settlement
import pipeline.intake
from agents.steps.report_types import REPORT_TYPES
from infra.kafka.transactions import CommitUnknown
from infra.postgres.step import StepTransaction, take_partition
from infra.postgres.unfinished import unfinished_orders
from pipeline.commands.halts import CommandArrival
from pipeline.model.invariants import MustStop
from pipeline.model.quarantine import QUARANTINE_ACCOUNT
from pipeline.model.venue import InDoubt, Submission, SubmissionOutcome
from schemas.audit import EventType
from schemas.orders import OrderStatus
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus
from schemas.routing import RoutedOrder
from tests.integration.isolating import GROUP, ORDERS, Stand, filled, finals_in, letters_in, report_filled, request, standing, work_in
from tests.integration.step_database import plain_connection
from tests.unit.builders import EXCHANGE, TOPICS

HUNDRED = 100
CULPRIT = 57
USERS = tuple(f"u{number:02d}" for number in range(HUNDRED))
BAD = USERS[CULPRIT]
Patch = pytest.MonkeyPatch


class Poison(Exception):
    """What no code of the system expects."""


def _requests() -> list[bytes]:
    return [request(user, f"k-{user}") for user in USERS]


async def _trigger(url: str, table: str, condition: str) -> None:
    """Lets the database refuse what a step stores of one record."""
    async with plain_connection(url) as connection:
        await connection.execute("CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'poison'; END $$")
        await connection.execute(
            f"CREATE TRIGGER poison BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION poison()"
        )


async def _quarantine(url: str) -> list[dict[str, Any]]:
    async with plain_connection(url) as connection:
        return [dict(row) for row in await connection.fetch("SELECT * FROM quarantine ORDER BY set_aside_at")]


async def _assert_one_set_aside(url: str, outputs: list[Any], *, stage: str, sparing: bool, offset: int = CULPRIT) -> dict[str, Any]:
    """One row, one dead letter with the code and without more, one audit event, and the commits of the topic in order."""
    (row,) = await _quarantine(url)
    assert (row["source_offset"], row["stage"], row["sparing"], row["state"]) == (offset, stage, sparing, "open")
    (letter,) = letters_in(outputs)
    assert letter["dlq-reason-code"] == "INTERNAL_ERROR"
    assert letter["dlq-source"].endswith(f"/0/{offset}")
    async with plain_connection(url) as connection:
        bodies = await connection.fetch("SELECT body FROM audit_events WHERE account = $1", QUARANTINE_ACCOUNT)
    (event,) = [orjson.loads(body["body"]) for body in bodies]
    assert (event["event_type"], event["request_id"]) == (EventType.RECORD_SET_ASIDE, row["quarantine_id"])
    return row


def _break_arrive(monkeypatch: Patch) -> None:
    arrive = agents.steps.intake.arrive

    def broken(source: Any, at: Any, key: Any, value: Any, headers: Any) -> Any:
        if f'"{BAD}"'.encode() in (value or b""):
            raise Poison("value secret-4711")
        return arrive(source, at, key, value, headers)

    monkeypatch.setattr(agents.steps.intake, "arrive", broken)


def _break_load(monkeypatch: Patch) -> None:
    claims = StepTransaction.claims

    async def broken(self: StepTransaction, keys: Any) -> Any:
        wanted = set(keys)
        if any(user == BAD for user, _ in wanted):
            raise Poison
        return await claims(self, wanted)

    monkeypatch.setattr(StepTransaction, "claims", broken)


def _break_decide(monkeypatch: Patch) -> None:
    decide = pipeline.intake._decide_one

    def broken(arrival: Any, *rest: Any) -> None:
        if arrival.decoded.user_id == BAD:
            raise Poison
        decide(arrival, *rest)

    monkeypatch.setattr(pipeline.intake, "_decide_one", broken)


@pytest.mark.parametrize(
    ("stage", "sparing", "keyed"), [("decode", False, False), ("load", True, False), ("decide", False, True), ("store", False, True)]
)
async def test_intake_with_one_record_that_cannot_be_decided_answers_the_others(
    database_url: str, monkeypatch: Patch, stage: str, sparing: bool, keyed: bool
) -> None:
    """Ninety-nine are accepted; one gets a final answer, under its key where the key could be read, and no order."""
    breaking = {"decode": _break_arrive, "load": _break_load, "decide": _break_decide}
    async with standing(database_url, USERS) as stand:
        if stage == "store":
            await _trigger(database_url, "orders", f"NEW.user_id = '{BAD}'")
        else:
            breaking[stage](monkeypatch)
        outputs = await stand.run(TOPICS.requests, _requests())
        assert not stand.failures
        assert stand.commits == sorted(set(stand.commits))
        assert stand.commits[-1] == HUNDRED
        work = Counter(RoutedOrder.model_validate_json(value).user_id for value in work_in(outputs))
        assert work == Counter({user: 1 for user in USERS if user != BAD})
        (final,) = finals_in(outputs)
        assert (final.status, final.reason_code, final.source.offset) == (ResultStatus.REJECTED, ReasonCode.INTERNAL_ERROR, CULPRIT)
        assert (final.user_id, final.idempotency_key) == ((BAD, f"k-{BAD}") if keyed else (None, None))
        row = await _assert_one_set_aside(database_url, outputs, stage=stage, sparing=sparing)
        assert "secret-4711" not in repr((row["what"], row["error"], letters_in(outputs), final.reason))
        if keyed:
            monkeypatch.undo()
            (copy,) = finals_in(await stand.run(TOPICS.requests, [request(BAD, f"k-{BAD}")]))
            assert (copy.reason_code, copy.replayed) == (ReasonCode.INTERNAL_ERROR, True)


async def _accepted(stand: Stand) -> list[bytes]:
    return work_in(await stand.run(TOPICS.requests, _requests()))


def _order_of(work: list[bytes], user: str) -> str:
    return next(routed.order_id for value in work if (routed := RoutedOrder.model_validate_json(value)).user_id == user)


def _break_orders(monkeypatch: Patch, order_id: str) -> None:
    orders = StepTransaction.orders

    async def broken(self: StepTransaction, order_ids: Any) -> Any:
        if order_id in order_ids:
            raise Poison
        return await orders(self, order_ids)

    monkeypatch.setattr(StepTransaction, "orders", broken)


def _break_plan(monkeypatch: Patch, order_id: str) -> None:
    plan = agents.steps.execution.plan

    def broken(work: Any, *rest: Any) -> Any:
        if any(routed.order_id == order_id for routed in work):
            raise Poison
        return plan(work, *rest)

    monkeypatch.setattr(agents.steps.execution, "plan", broken)


def _break_conclude(monkeypatch: Patch, order_id: str) -> None:
    conclude = agents.steps.conclusion.conclude

    def broken(submitted: Any, *rest: Any) -> None:
        if order_id in submitted:
            raise Poison
        conclude(submitted, *rest)

    monkeypatch.setattr(agents.steps.conclusion, "conclude", broken)


@pytest.mark.parametrize(
    ("stage", "where", "sparing", "sent", "status"),
    [
        ("load", "before the calls", True, 0, OrderStatus.ACCEPTED),
        ("decide", "before the calls", False, 0, OrderStatus.REJECTED),
        ("store", "before the calls", False, 0, OrderStatus.REJECTED),
        ("call", "in the call", False, 1, OrderStatus.IN_DOUBT),
        ("conclude", "after the calls", False, 1, OrderStatus.IN_DOUBT),
        ("conclude", "when its outcome is stored", False, 1, OrderStatus.IN_DOUBT),
    ],
)
async def test_execution_with_one_order_that_cannot_be_executed_executes_the_others_once(
    database_url: str, monkeypatch: Patch, stage: str, where: str, sparing: bool, sent: int, status: OrderStatus
) -> None:
    """Ninety-nine are sent once and filled. The one was not sent and ends with its funds released, or may have been and is in doubt with
    its funds held; whatever fails after a call, no call is made again."""
    async with standing(database_url, USERS) as stand:
        work = await _accepted(stand)
        bad = _order_of(work, BAD)
        if where == "before the calls":
            if stage == "store":
                await _trigger(database_url, "orders", f"NEW.order_id = '{bad}' AND NEW.status = 'submitting'")
            else:
                {"load": _break_orders, "decide": _break_plan}[stage](monkeypatch, bad)
        elif where == "in the call":
            stand.venue.answer = _raising_for(bad)
        elif where == "after the calls":
            _break_conclude(monkeypatch, bad)
        else:
            await _trigger(database_url, "orders", f"NEW.order_id = '{bad}' AND NEW.status = 'filled'")
        outputs = await stand.run(ORDERS, work)
        assert not stand.failures
        assert stand.venue.sent == Counter({_order_of(work, user): 1 for user in USERS if user != BAD or sent})
        executed = [result for result in finals_in(outputs) if result.status is ResultStatus.EXECUTED]
        assert {result.user_id for result in executed} == set(USERS) - {BAD}
        assert len(executed) == HUNDRED - 1
        await _assert_one_set_aside(database_url, outputs, stage=stage, sparing=sparing)
        async with plain_connection(database_url) as connection:
            row = await connection.fetchrow("SELECT status, hold_amount, reason_code FROM orders WHERE order_id = $1", bad)
            assert row["status"] == status
            assert (row["hold_amount"] > 0) == (status is not OrderStatus.REJECTED)
            assert await connection.fetchval("SELECT count(*) FROM orders WHERE status = 'submitting'") == 0
        # The same records again, as after an offset was moved back: nothing is sent.
        monkeypatch.undo()
        stand.venue.answer = filled
        sent_before = Counter(stand.venue.sent)
        if not sparing:
            await stand.run(ORDERS, work)
            assert stand.venue.sent == sent_before


def _raising_for(order_id: str) -> Callable[[Submission], SubmissionOutcome]:
    def answer(submission: Submission) -> SubmissionOutcome:
        if submission.order_id == order_id:
            raise Poison
        return filled(submission)

    return answer


async def test_order_that_stays_submitting_is_put_in_doubt_by_its_record_and_never_sent_again(
    database_url: str, monkeypatch: Patch
) -> None:
    """Nothing of its user can be loaded after the call: its record is kept, and published again by the same owner it sends nothing."""
    async with standing(database_url, USERS) as stand:
        work = await _accepted(stand)
        bad = _order_of(work, BAD)

        def answer(submission: Submission) -> SubmissionOutcome:
            _break_orders(monkeypatch, bad)
            return filled(submission)

        stand.venue.answer = answer
        await stand.run(ORDERS, work)
        assert not stand.failures
        (row,) = await _quarantine(database_url)
        assert row["sparing"]
        monkeypatch.undo()
        stand.venue.answer = filled
        async with plain_connection(database_url) as connection:
            status = "SELECT status FROM orders WHERE order_id = $1"
            assert await connection.fetchval(status, bad) == "submitting"
            # As it would be under the same owner.
            await connection.execute(
                "UPDATE orders SET fencing_epoch = own.fencing_epoch + 1 FROM input_partitions AS own WHERE topic = $1 AND order_id = $2",
                ORDERS,
                bad,
            )
            await stand.run(ORDERS, [row["record_value"]])
            assert await connection.fetchval(status, bad) == "in_doubt"
        assert stand.venue.sent[bad] == 1


async def test_garbage_on_the_orders_topic_is_set_aside_and_the_orders_around_it_are_sent(database_url: str) -> None:
    """No JSON, another shape, an order that nobody knows, no value at all: each by itself."""
    unknown = RoutedOrder(schema_version=1, action="submit", order_id="o" + "0" * 32, user_id="u00", attempt=1).model_dump_json()
    garbage = [b"\xff", b"{}", unknown.encode(), None]
    async with standing(database_url, USERS) as stand:
        work = await _accepted(stand)
        mixed: list[bytes | None] = [*work[:50], *garbage, *work[50:]]
        outputs = await stand.run(ORDERS, mixed)
        assert not stand.failures
        assert sum(stand.venue.sent.values()) == HUNDRED == len(finals_in(outputs))
        rows = await _quarantine(database_url)
        assert [(row["source_offset"], row["stage"]) for row in rows] == [(50, "decode"), (51, "decode"), (52, "decide"), (53, "decode")]


async def _in_doubt(stand: Stand) -> list[bytes]:
    """Reports that fill every order, all of which are in doubt."""
    stand.venue.answer = lambda _: InDoubt("no answer")
    work = await _accepted(stand)
    await stand.run(ORDERS, work)
    return [report_filled(_order_of(work, user), user, 1) for user in USERS]


@pytest.mark.parametrize(("stage", "sparing"), [("decode", False), ("load", False), ("decide", False), ("store", False)])
async def test_settlement_with_one_report_that_cannot_be_applied_settles_the_others(
    database_url: str, monkeypatch: Patch, stage: str, sparing: bool
) -> None:
    """Ninety-nine are executed; the one stays in doubt with its funds held, and is settled by the next look once that is possible."""
    async with standing(database_url, USERS) as stand:
        reports = await _in_doubt(stand)
        bad = json.loads(reports[CULPRIT])["order_id"]
        given: list[bytes] = list(reports)
        if stage == "decode":
            given[CULPRIT] = b'{"schema_version": 1, "order_id"'
        elif stage == "load":
            _break_orders(monkeypatch, bad)
        elif stage == "decide":
            told = REPORT_TYPES["order"]

            def broken(report: Any, *rest: Any) -> None:
                if report.order_id == bad:
                    raise Poison
                told.apply(report, *rest)

            monkeypatch.setattr(agents.steps.settlement, "REPORT_TYPES", {"order": replace(told, apply=broken)})
        else:
            await _trigger(database_url, "orders", f"NEW.order_id = '{bad}' AND NEW.status = 'filled'")
        outputs = await stand.run(TOPICS.reports, given)
        assert not stand.failures
        assert {result.user_id for result in finals_in(outputs)} == set(USERS) - {BAD}
        assert len(finals_in(outputs)) == HUNDRED - 1
        row = await _assert_one_set_aside(database_url, outputs, stage=stage, sparing=sparing)
        async with plain_connection(database_url) as connection:
            status, held = await connection.fetchrow("SELECT status, hold_amount FROM orders WHERE order_id = $1", bad)
            assert (status, held > 0) == ("in_doubt", True)
            # The next looks say the same again and again: one entry stands for all of them.
            if stage != "decode":
                for _ in range(3):
                    await stand.run(TOPICS.reports, [reports[CULPRIT]])
                assert [(one["quarantine_id"], one["repeats"]) for one in await _quarantine(database_url)] == [(row["quarantine_id"], 3)]
            monkeypatch.undo()
            await connection.execute("DROP TRIGGER IF EXISTS poison ON orders")
            (final,) = finals_in(await stand.run(TOPICS.reports, [reports[CULPRIT]]))
            assert (final.user_id, final.status) == (BAD, ResultStatus.EXECUTED)


def _halts() -> list[bytes]:
    command = {"schema_version": 1, "command": "halt", "operator": "op", "reason": "test", "scope": "user"}
    return [json.dumps({**command, "command_id": f"c-{user}", "target": user}).encode() for user in USERS]


@pytest.mark.parametrize("stage", ["decode", "decide", "store"])
async def test_control_with_one_command_that_cannot_be_applied_applies_the_others(
    database_url: str, monkeypatch: Patch, stage: str
) -> None:
    """Ninety-nine halts are in force; the one is refused in the audit trail, so that its operator learns of it."""
    async with standing(database_url, USERS) as stand:
        if stage == "decode":
            arrive = agents.steps.control.arrive_command

            def unread(source: Any, at: Any, value: bytes, *rest: Any) -> CommandArrival:
                if f'"{BAD}"'.encode() in value:
                    raise Poison
                return arrive(source, at, value, *rest)

            monkeypatch.setattr(agents.steps.control, "arrive_command", unread)
        elif stage == "decide":
            decide = agents.steps.control.decide_commands

            def broken(arrivals: Any, *rest: Any) -> Any:
                if any(one.command.target == BAD for one in arrivals):
                    raise Poison
                return decide(arrivals, *rest)

            monkeypatch.setattr(agents.steps.control, "decide_commands", broken)
        else:
            await _trigger(database_url, "halts", f"NEW.target = '{BAD}'")
        outputs = await stand.run(TOPICS.commands, _halts())
        assert not stand.failures
        async with plain_connection(database_url) as connection:
            halted = {row["target"] for row in await connection.fetch("SELECT target FROM halts")}
            refused = await connection.fetch("SELECT body FROM audit_events WHERE account = 'op' AND body LIKE '%COMMAND_REFUSED%'")
        assert halted == set(USERS) - {BAD}
        await _assert_one_set_aside(database_url, outputs, stage=stage, sparing=stage == "decode")
        if stage != "decode":
            (event,) = [orjson.loads(row["body"]) for row in refused]
            assert (event["request_id"], event["reason_code"]) == (f"c-{BAD}", "INTERNAL_ERROR")


async def test_record_set_aside_by_a_worker_that_died_is_published_by_the_next_owner_once(database_url: str, monkeypatch: Patch) -> None:
    """Stored and not published: the partition's row has the answer and the dead letter, and the record is not decided again."""
    _break_decide(monkeypatch)
    async with standing(database_url, USERS) as stand:
        stand.dies_with = CommitUnknown("the broker is gone")
        before = await stand.run(TOPICS.requests, _requests())
        (failure,) = stand.failures
        assert isinstance(failure, CommitUnknown)
        assert not letters_in(before)
        _, progress = await take_partition(stand.database, GROUP, TOPICS.requests, 0, stand.clock())
        assert (progress.base_offset, progress.next_offset) == (CULPRIT, CULPRIT + 1)
        (final,) = finals_in(progress.outputs)
        assert (final.source.offset, final.reason_code) == (CULPRIT, ReasonCode.INTERNAL_ERROR)
        assert len(letters_in(progress.outputs)) == 1
        stand.failures.clear()
        stand.dies_with = None
        after = await stand.run(TOPICS.requests, _requests()[CULPRIT + 1 :], again_from=CULPRIT + 1)
        assert not stand.failures
        assert len(work_in([*before, *progress.outputs, *after])) == HUNDRED - 1
        assert not letters_in(after)
        assert len(await _quarantine(database_url)) == 1


async def test_partition_stops_when_too_many_records_are_set_aside_also_after_a_restart(
    database_url: str, monkeypatch: Patch
) -> None:
    """A defect that hits every record sets aside as many as allowed, then stops with the number; the next owner stops at once."""
    def broken(*_: Any) -> None:
        raise Poison

    monkeypatch.setattr(pipeline.intake, "_decide_one", broken)
    async with standing(database_url, USERS, records_max=5) as stand:
        for begin in (0, 5):
            await stand.run(TOPICS.requests, _requests()[begin:40], again_from=begin)
            (failure,) = stand.failures
            assert isinstance(failure, MustStop)
            assert "5 records of t.trade.requests/0 were set aside within 600 s" in str(failure)
            assert len(await _quarantine(database_url)) == 5
            stand.failures.clear()


async def test_records_of_one_user_do_not_use_up_what_a_partition_may_set_aside(database_url: str, monkeypatch: Patch) -> None:
    """A user whose rows are damaged meets it with each record: all are set aside, and the partition goes on for everybody else."""
    _break_load(monkeypatch)
    async with standing(database_url, USERS[:60], records_max=5) as stand:
        values = [value for number in range(20) for value in (request(BAD, f"bad-{number}"), request("u01", f"good-{number}"))]
        outputs = await stand.run(TOPICS.requests, values)
        assert not stand.failures
        assert len(work_in(outputs)) == 20
        assert len(await _quarantine(database_url)) == 20


async def test_time_without_a_zone_in_a_stored_row_concerns_its_order_alone(database_url: str) -> None:
    """A damaged row of one order: the others of its batch are sent, and its own record is kept."""
    async with standing(database_url, USERS) as stand:
        work = await _accepted(stand)
        bad = _order_of(work, BAD)
        async with plain_connection(database_url) as connection:
            await connection.execute("ALTER TABLE orders DROP CONSTRAINT orders_times_are_finite")
            await connection.execute("UPDATE orders SET expires_at = 'infinity' WHERE order_id = $1", bad)
        await stand.run(ORDERS, work)
        assert not stand.failures
        assert stand.venue.sent == Counter({_order_of(work, user): 1 for user in USERS if user != BAD})
        (row,) = await _quarantine(database_url)
        assert (row["error"], row["sparing"]) == ("RowUnreadable", True)
        assert timedelta(0) < row["set_aside_at"] - row["appended_at"]


async def test_report_of_an_order_whose_older_word_is_not_published_holds_up_nothing(database_url: str) -> None:
    """It is passed over at once, the ninety-nine others are settled, nothing is set aside; the next look settles it."""
    async with standing(database_url, USERS) as stand:
        reports = await _in_doubt(stand)
        bad = json.loads(reports[CULPRIT])["order_id"]
        async with plain_connection(database_url) as connection:
            await connection.execute("UPDATE orders SET updated_at = updated_at + interval '1 microsecond' WHERE order_id = $1", bad)
            await connection.execute(
                """
                UPDATE input_partitions SET base_offset = next_offset - 1, updated_at = orders.updated_at FROM orders
                WHERE topic = $1 AND order_id = $2
                """,
                ORDERS,
                bad,
            )
            outputs = await stand.run(TOPICS.reports, reports)
            assert not stand.failures
            assert stand.commits[-1] == HUNDRED
            assert {result.user_id for result in finals_in(outputs)} == set(USERS) - {BAD}
            assert await _quarantine(database_url) == []
            await connection.execute("UPDATE input_partitions SET base_offset = next_offset WHERE topic = $1", ORDERS)
        (final,) = finals_in(await stand.run(TOPICS.reports, [reports[CULPRIT]]))
        assert (final.user_id, final.status) == (BAD, ResultStatus.EXECUTED)


async def test_look_over_orders_in_doubt_passes_over_one_whose_row_is_damaged(database_url: str) -> None:
    """Every other order has its turn, on full pages; one whose report was set aside a moment ago has its turn later."""
    async with standing(database_url, USERS) as stand:
        reports = await _in_doubt(stand)
        bad, refused = (json.loads(reports[number])["order_id"] for number in (CULPRIT, 3))
        async with plain_connection(database_url) as connection:
            await connection.execute("ALTER TABLE orders DROP CONSTRAINT orders_times_are_finite")
            await connection.execute("UPDATE orders SET expires_at = 'infinity' WHERE order_id = $1", bad)
        seen: list[str] = []
        sizes: list[int] = []
        after = ""
        while not sizes or sizes[-1] == 30:
            page = await unfinished_orders(stand.database, EXCHANGE, [0], [OrderStatus.IN_DOUBT], after, 30)
            seen += [one.order.order_id for one in page]
            sizes.append(len(page))
            after = seen[-1]
        assert sizes == [30, 30, 30, 9]
        assert set(seen) == {json.loads(report)["order_id"] for report in reports} - {bad}
        async with plain_connection(database_url) as connection:
            await connection.execute(
                """
                INSERT INTO quarantine (quarantine_id, source_topic, source_partition, source_offset, appended_at, value_bytes,
                    record_headers, stage, error, place, what, user_id, subject, sparing, set_aside_at, last_at)
                VALUES ('q1', 't', 0, 0, now(), 0, '', 'decide', 'KeyError', '', '', '', $1, false, now(), now())
                """,
                f"order {refused}",
            )
            page = await unfinished_orders(stand.database, EXCHANGE, [0], [OrderStatus.IN_DOUBT], "", 100)
            assert refused not in {one.order.order_id for one in page}
            await connection.execute("UPDATE quarantine SET last_at = now() - interval '2 minutes'")
            page = await unfinished_orders(stand.database, EXCHANGE, [0], [OrderStatus.IN_DOUBT], "", 100)
            assert refused in {one.order.order_id for one in page}
