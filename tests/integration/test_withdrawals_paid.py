"""Withdrawals with a real broker, database and (simulated) exchange over HTTP: paid out once, and the ledger agrees."""

from decimal import Decimal
from pathlib import Path

import pytest

from tests.installation import installation
from tests.promises import assert_promises_hold
from tests.withdrawing import ADDRESS, FAILING, QUICK, allow_withdrawals, balance, paid_out, withdrawal

FEE = Decimal("0.5")


@pytest.mark.timeout(600)
async def test_withdrawal_to_allowed_address_is_completed_once(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """One is paid out, one is taken and not paid: amount and fee leave the ledger for the first alone, as the exchange's log has it."""
    async with installation(kafka, database_url, unique_prefix, tmp_path, "--withdrawal-fee", str(FEE)) as made:
        await allow_withdrawals(made)
        made.start_worker("agents", **QUICK)
        await made.event(0, "networks_known", 40)
        sent = await made.publish([withdrawal(0), withdrawal(1, address=FAILING), withdrawal(0)])
        finals = await made.final_results(sent, 120)
        paid, failed, copy = (finals[record.partition, record.offset] for record in sent)
        assert (paid["status"], paid["filled_quantity"], paid["fee"]) == ("completed", "100", "0.5"), paid
        assert (failed["status"], failed["reason_code"]) == ("failed", "EXCHANGE_REFUSED"), failed
        assert copy["replayed"] and copy["status"] in {"duplicate", "completed"}
        log = paid_out(made)
        assert [(one.label, one.address, one.amount) for one in log.accepted if one.label == "user-0"] == [("user-0", ADDRESS, 100 + FEE)]
        assert len(log.accepted) == 2 and len(log.completed) == 1 and len(log.failed) == 1
        assert await balance(made, "user-0") == (1_000_000 - 100 - FEE, 0)
        assert await balance(made, "user-1") == (1_000_000, 0)
        await assert_promises_hold(made)
