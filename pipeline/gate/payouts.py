"""The last gate of a withdrawal: may it still leave? Asked when an operator approves it and when it is about to be sent.

Up to a day lies between acceptance and approval, and what was true then need not be true any more: the user may be frozen or closed, the
key revoked, the address taken off the list, and other withdrawals may have used the day's limit.

Invariants:
1. What is not known refuses: a user of whom nothing was loaded is no user.
2. The day's limit counts what leaves: what was sent in the last 24 hours, whenever it was asked for, and at an approval what is approved
   and not sent yet too. Both are read under the user's lock.

Start with `payout_refusal`.
"""

from datetime import datetime
from decimal import Decimal

from pipeline.gate.addresses import address_problem
from pipeline.gate.api_key import WITHDRAW
from pipeline.model.api_key import ApiKeyState
from pipeline.model.halts import HaltBook
from pipeline.model.payee import Payee
from pipeline.model.refusal import Refusal
from pipeline.model.withdrawal import Withdrawal
from schemas.decimals import format_decimal
from schemas.reasons import ReasonCode as R


def payout_refusal(withdrawal: Withdrawal, payee: Payee, used_usd: Decimal, halts: HaltBook, now: datetime) -> Refusal | None:
    """Why a withdrawal may not leave now, as the beginning of a sentence; None when it may. `used_usd` is what the day's limit has been
    used for without it."""
    if halts.level_for(withdrawal.exchange, "", withdrawal.user_id) is not None:
        return Refusal(R.TRADING_HALTED, "a halt covers it")
    return (
        _user_refusal(payee)
        or _key_refusal(withdrawal, payee.api_keys.get(withdrawal.api_key_id), now)
        or _address_refusal(withdrawal, payee)
        or _limit_refusal(withdrawal, payee, used_usd)
    )


def _user_refusal(payee: Payee) -> Refusal | None:
    if payee.status == "active":
        return None
    if payee.status is None:
        return Refusal(R.USER_UNKNOWN, "there is no such user")
    if payee.status == "pending":
        return Refusal(R.USER_UNVERIFIED, "its user waits for verification")
    return Refusal(R.USER_INACTIVE, f"its user is {payee.status}")


def _key_refusal(withdrawal: Withdrawal, key: ApiKeyState | None, now: datetime) -> Refusal | None:
    if key is None:
        return Refusal(R.API_KEY_UNKNOWN, "its API key is gone")
    if key.status == "revoked":
        return Refusal(R.API_KEY_REVOKED, "its API key was revoked")
    if key.exchange != withdrawal.exchange or key.status == "refused" or WITHDRAW not in key.permissions:
        return Refusal(R.API_KEY_PERMISSION, "its API key may not withdraw there any more")
    if key.status != "active" or (key.expires_at is not None and now >= key.expires_at):
        return Refusal(R.API_KEY_EXPIRED, "its API key is expired")
    return None


def _address_refusal(withdrawal: Withdrawal, payee: Payee) -> Refusal | None:
    wanted = withdrawal.network, withdrawal.address, withdrawal.address_tag or ""
    if not any((one.network, one.address, one.address_tag) == wanted for one in payee.addresses):
        return Refusal(R.ADDRESS_NOT_ALLOWED, "its address is not on the user's list any more, or was added anew and has not waited")
    problem = address_problem(withdrawal.network, withdrawal.address, withdrawal.address_tag)
    return None if problem is None else Refusal(R.ADDRESS_NOT_ALLOWED, f"its address is none of {withdrawal.network} ({problem})")


def _limit_refusal(withdrawal: Withdrawal, payee: Payee, used_usd: Decimal) -> Refusal | None:
    if used_usd + withdrawal.usd_value <= payee.daily_limit_usd:
        return None
    return Refusal(
        R.DAILY_WITHDRAWAL_EXCEEDED,
        f"with this one {format_decimal(used_usd + withdrawal.usd_value)} USD would be withdrawn in 24 hours, "
        f"{format_decimal(payee.daily_limit_usd)} are allowed",
    )
