"""`withdrawals`: the state of what is paid out, and an operator's word on what waits for approval.

Reading needs the database alone. `approve` and `refuse` are records on `trade.commands` with the operator's token and second factor, as a
halt is (cli/operate/halts): a worker judges them, and what counts is the command's audit event.

Start with `show_withdrawals` and `decide`.
"""

import asyncio
import uuid
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError
from sqlalchemy import text

from cli.access.confirmation import confirm
from cli.access.credentials import operator_name, token_in, usage, words_of
from cli.access.database import Row, reading, rows_of
from cli.access.installation import Installation
from cli.access.operator_commands import send_command
from cli.access.operator_options import NO_CREDENTIALS, Credentials
from cli.show.entity import Listing, books_of, list_rows, show_one
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import printable, say, to_json, to_text, write_line
from schemas.commands import DecisionWord, WithdrawalDecision
from schemas.orders import WithdrawalStatus

_LISTED: Final = (
    "withdrawal_id", "user_id", "exchange", "asset", "amount", "fee", "network", "address", "status", "usd_value", "requested_at",
    "decision", "decided_by", "decision_reason",
)  # fmt: skip

# An operator's word on a withdrawal, as its audit trail has it.
_DECISION: Final = """
    LEFT JOIN LATERAL (
        SELECT CASE told ->> 'event_type' WHEN 'WITHDRAWAL_APPROVED' THEN 'approved' ELSE 'refused' END AS decision,
            COALESCE(told ->> 'claimed_operator' || ' (claimed)', told ->> 'actor') AS decided_by,
            told ->> 'operator_reason' AS decision_reason
        FROM (
            SELECT seq, body::jsonb AS told FROM audit_events
            WHERE audit_events.order_id = withdrawals.withdrawal_id
        ) AS events
        WHERE told ->> 'event_type' IN ('WITHDRAWAL_APPROVED', 'WITHDRAWAL_REFUSED') AND told ->> 'operator_reason' IS NOT NULL
        ORDER BY seq DESC LIMIT 1
    ) AS decision ON true
"""
_WITHDRAWALS: Final = text(
    f"""
    SELECT withdrawal_id, client_withdrawal_id, exchange_withdrawal_id, transaction_id, user_id, idempotency_key, request_id, exchange,
           api_key_id, asset, network, address, address_tag, amount, fee, status, reason_code, reason, hold_amount, usd_value, approved_by,
           expires_at, requested_at, decided_at, updated_at, executed_at, decision.*
    FROM withdrawals {_DECISION}
    WHERE (CAST(:user_id AS text) IS NULL OR user_id = :user_id) AND (CAST(:status AS text) IS NULL OR status = :status)
    ORDER BY requested_at DESC, withdrawal_id LIMIT :limit
"""  # noqa: S608 — literals
)
_ONE: Final = text(
    f"SELECT * FROM withdrawals {_DECISION} WHERE withdrawal_id = :id OR client_withdrawal_id = :id"  # noqa: S608 — literals
)


@dataclass(frozen=True, slots=True)
class DecisionOptions:
    """What was asked for."""

    word: DecisionWord
    withdrawal_id: str
    reason: str
    credentials: Credentials = NO_CREDENTIALS
    as_json: bool = False
    yes: bool = False


async def show_withdrawals(
    installation: Installation, *, user_id: str | None, status: WithdrawalStatus | None, limit: int, as_json: bool
) -> None:
    """Prints the newest withdrawals first. Raises CommandFailed when the database is out of reach."""
    listing = Listing(_WITHDRAWALS, _LISTED, "No matching withdrawals.")
    await list_rows(installation, listing, user_id=user_id, status=status.value if status else None, limit=limit, as_json=as_json)


async def show_withdrawal(installation: Installation, withdrawal_id: str, *, as_json: bool) -> None:
    """Prints one withdrawal, found by its id or client id, with its audit history and its ledger transfers. Raises CommandFailed."""
    async with reading(installation) as connection:
        found = await rows_of(connection, _ONE, id=withdrawal_id)
        if not found:
            raise _unknown(withdrawal_id)
        withdrawal = found[0]
        books = await books_of(connection, withdrawal["withdrawal_id"])
    show_one("withdrawal", withdrawal, books, as_json=as_json)


def _unknown(withdrawal_id: str) -> CommandFailed:
    return CommandFailed(
        f"There is no withdrawal {to_text(withdrawal_id)}. Nothing was changed. `orchestrator withdrawals` lists them; a request that was "
        "refused at once has none: its answer is on trade.results.",
        Exit.NOT_SO,
    )


async def decide(installation: Installation, options: DecisionOptions) -> Exit:
    """Sends an operator's word and waits until it is applied. Returns NOT_SO when it was refused; raises CommandFailed when nobody applied
    it."""
    asked = _decision(options, token_in(options.credentials.token_file))
    async with reading(installation) as connection:
        found = await rows_of(connection, _ONE, id=asked.withdrawal_id)
    if not found:
        raise _unknown(asked.withdrawal_id)
    if not options.as_json:
        say(printable(_asked_for(found[0])))
    if options.word is DecisionWord.APPROVE:
        await asyncio.to_thread(confirm, "withdrawals approve", printable(asked.withdrawal_id), options.yes)
    look_up = f"orchestrator withdrawals show {asked.withdrawal_id}"
    event = await send_command(installation, asked, asked.withdrawal_id, options.credentials, look_up=look_up)
    if event is None:
        return Exit.NOT_SO
    if options.as_json:
        write_line(to_json({"command_id": asked.command_id, "withdrawal_id": asked.withdrawal_id, "decision": asked.command.value}))
        return Exit.DONE
    done = asked.command is DecisionWord.APPROVE
    say("Approved: it is queued for its exchange." if done else "Refused: nothing is sent and the funds are free again.")
    return Exit.DONE


def _asked_for(row: Row) -> str:
    """What an operator decides about, in one line."""
    tag = f" (tag {row['address_tag']})" if row["address_tag"] else ""
    worth = f"{to_text(row['amount'])} {row['asset']}, worth {to_text(row['usd_value'])} USD with the fee"
    return f"{row['user_id']} asks for {worth}, to {row['address']}{tag} on {row['network']}."


def _decision(options: DecisionOptions, token: str | None) -> WithdrawalDecision:
    try:
        return WithdrawalDecision(
            schema_version=1,
            command_id=str(uuid.uuid4()),
            command=options.word,
            operator=operator_name(options.credentials, token),
            reason=words_of("reason", options.reason),
            withdrawal_id=options.withdrawal_id,
        )
    except ValidationError as error:
        # Without the values.
        raise usage(f"The decision cannot be sent: {error.errors(include_input=False, include_url=False)[0]['msg']}.") from None
