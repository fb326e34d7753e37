"""The gate of a withdrawal: may this user send this much of an asset to this address now?

The steps are those of a trade (pipeline/gate/ladder), with checks of their own. Invariants:
1. Checks read a `WithdrawalContext` and change nothing; the first refusal is given. Nothing was held or sent then.
2. What is not known (no price, no fee, no such network) refuses, it never passes.
3. A halt of either level stops withdrawals: what leaves cannot be called back.

Start with `WITHDRAWAL_CHECKS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Final

from pipeline.gate.addresses import address_problem
from pipeline.gate.check import GateCheck, first_refusal
from pipeline.gate.context import AccountState
from pipeline.gate.ladder import Step
from pipeline.gate.risk import withdrawal_is_within_limit
from pipeline.gate.safety import UNTOUCHED, stale_refusal
from pipeline.gate.throttle import cooldown_end, message_conforms
from pipeline.model.api_key import ApiKeyState
from pipeline.model.dollars import usd_rate_of
from pipeline.model.halts import HaltBook
from pipeline.model.money import is_multiple
from pipeline.model.refusal import Refusal
from pipeline.model.rules import Rules
from pipeline.model.venue import MarketData
from pipeline.model.withdrawal import AllowedAddress, Network
from schemas.decimals import format_decimal
from schemas.orders import Mode
from schemas.reasons import ReasonCode as R
from schemas.requests import WithdrawalRequest

WITHDRAW: Final = "withdraw"


@dataclass(frozen=True, eq=False)
class WithdrawalContext:
    """All that the checks of one withdrawal may look at. `appended_at` is the broker's time of the record, `now` the decision's, both UTC.

    `networks` has the exchange's networks by asset and name, `addresses` the user's list.
    """

    request: WithdrawalRequest
    appended_at: datetime
    now: datetime
    rules: Rules
    account: AccountState
    api_key: ApiKeyState | None
    market_data: MarketData | None
    networks: Mapping[tuple[str, str], Network]
    addresses: tuple[AllowedAddress, ...]
    halts: HaltBook

    @cached_property
    def network(self) -> Network | None:
        """How the exchange pays this asset out over this network; None when it does not, or when that was asked too long ago."""
        found = self.networks.get((self.request.asset, self.request.network or ""))
        if found is None or abs(self.now - found.observed_at) > self.rules.network_age_max:
            return None
        return found

    @cached_property
    def allowed(self) -> AllowedAddress | None:
        """The entry of the user's list for exactly this network, address and tag."""
        request = self.request
        wanted = request.network or "", request.address, request.address_tag or ""
        return next((one for one in self.addresses if (one.network, one.address, one.address_tag) == wanted), None)

    @cached_property
    def usd_rate(self) -> Decimal | None:
        """US dollars per unit of the asset: 1 for what the rules call dollars, else by fresh market prices; None without any."""
        return usd_rate_of(self.request.asset, self.market_data, self.now, self.rules.price_age_max, self.rules.usd_assets)

    @cached_property
    def usd_value(self) -> Decimal | None:
        """What leaves the account, fee included, in US dollars; None when fee or price is not known."""
        if self.network is None or self.usd_rate is None:
            return None
        return (self.request.amount + self.network.fee) * self.usd_rate

    @property
    def credentials_settle_at(self) -> datetime | None:
        """Until when a change of the user's credentials is recent."""
        changed_at = self.account.credentials_changed_at
        return changed_at + self.rules.address_wait if changed_at is not None else None

    @property
    def needs_approval(self) -> bool:
        """Whether an operator must approve it: it is worth more than the rules let pass, or the user's credentials changed lately."""
        settle_at = self.credentials_settle_at
        if settle_at is not None and self.now < settle_at:
            return True
        return self.usd_value is None or self.usd_value > self.rules.withdrawal_approval_usd


def withdrawal_expires_at(context: WithdrawalContext) -> datetime:
    """The moment after which it must not be sent any more: the producer's own, else the default after the broker's time, which is longer
    where an operator has to approve it."""
    if context.request.expires_at is not None:
        return context.request.expires_at
    allowed = context.rules.withdrawal_approval_time if context.needs_approval else context.rules.submission_deadline
    return context.appended_at + allowed


def withdrawal_is_fresh(context: WithdrawalContext) -> Refusal | None:
    """The record is not older than keys are kept, and its deadline has not passed. Unit: time since the broker appended it."""
    refusal = stale_refusal(context.appended_at, context.now, context.rules)
    if refusal is not None:
        return refusal
    if context.now <= (context.request.expires_at or context.appended_at + context.rules.submission_deadline):
        return None
    return Refusal(R.REQUEST_EXPIRED, f"the deadline passed before it was decided. {UNTOUCHED} Send it under a new key if you mean it.")


def withdrawal_mode_is_live(context: WithdrawalContext) -> Refusal | None:
    """Only real money can be withdrawn. No unit."""
    if context.request.mode is Mode.LIVE:
        return None
    return Refusal(R.REQUEST_UNSUPPORTED, f"paper money is simulated and cannot be withdrawn. {UNTOUCHED} Only mode live pays out.")


def withdrawal_exchange_is_offered(context: WithdrawalContext) -> Refusal | None:
    """This installation is connected to the exchange. No unit. Source: the setting `exchanges`."""
    if context.request.exchange in context.rules.exchanges:
        return None
    offered = ", ".join(sorted(context.rules.exchanges))
    return Refusal(R.EXCHANGE_UNKNOWN, f"exchange is not one of: {offered}. {UNTOUCHED} Name one of them under a new key.")


def withdrawals_are_not_halted(context: WithdrawalContext) -> Refusal | None:
    """No halt, of either level, covers the user, the exchange or everybody. No unit."""
    if context.halts.level_for(context.request.exchange, "", context.request.user_id) is None:
        return None
    return Refusal(
        R.TRADING_HALTED,
        f"nothing is paid out now: a halt covers this user, exchange or everybody. {UNTOUCHED} Try again under a new key when an operator "
        "has lifted it.",
    )


def user_may_withdraw(context: WithdrawalContext) -> Refusal | None:
    """The user exists, is verified and active. No unit. Source: the user's status, which operators set."""
    status = context.account.status
    if status == "active":
        return None
    if status is None:
        return Refusal(R.USER_UNKNOWN, f"no such user. {UNTOUCHED} An operator can add it.")
    if status == "pending":
        return Refusal(R.USER_UNVERIFIED, f"the user waits for verification. {UNTOUCHED} An operator can verify it.")
    return Refusal(R.USER_INACTIVE, f"the user is {status}. {UNTOUCHED} Only an operator can change that.")


def withdrawal_key_is_usable(context: WithdrawalContext) -> Refusal | None:
    """The user has stored this key, for this exchange, and it is active. Unit: `expires_at` is the first moment at which it is not."""
    key = context.api_key
    if key is None:
        return Refusal(R.API_KEY_UNKNOWN, f"the user has no API key with this api_key_id. {UNTOUCHED} Name another under a new key.")
    if key.exchange != context.request.exchange:
        return Refusal(R.API_KEY_PERMISSION, f"this API key is for another exchange. {UNTOUCHED} Name one of this exchange.")
    if key.status == "revoked":
        return Refusal(R.API_KEY_REVOKED, f"this API key is revoked. {UNTOUCHED} Have another stored.")
    if key.status == "refused":
        return Refusal(R.API_KEY_PERMISSION, f"the exchange has refused this API key. {UNTOUCHED} Have it checked, or another stored.")
    if key.status != "active" or (key.expires_at is not None and context.now >= key.expires_at):
        return Refusal(R.API_KEY_EXPIRED, f"this API key is expired. {UNTOUCHED} Have another stored.")
    return None


def withdrawal_key_may_withdraw(context: WithdrawalContext) -> Refusal | None:
    """The key has the permission `withdraw`. No unit. Source: the permissions given when it was stored."""
    if context.api_key is not None and WITHDRAW in context.api_key.permissions:
        return None
    return Refusal(R.API_KEY_PERMISSION, f"this API key may not withdraw. {UNTOUCHED} Name one that may, or have one stored.")


def withdrawal_rate_is_kept(context: WithdrawalContext) -> Refusal | None:
    """Withdrawals count for the user's message rate as trades do. Unit: messages per second, and messages."""
    limits = context.account.limits
    if message_conforms(context.account.conduct, limits, context.now):
        return None
    text = f"more than {limits.messages_per_second_max} requests per second, with a burst of {limits.messages_burst_max}"
    return Refusal(R.MESSAGE_RATE_EXCEEDED, f"the user sends {text}. {UNTOUCHED} Send more slowly, this one under a new key.")


def withdrawal_cooldown_is_over(context: WithdrawalContext) -> Refusal | None:
    """No cooldown runs: whoever tries addresses or amounts one after another has to wait. What reduces a position passes a cooldown, what
    leaves for good does not: it cannot be called back. Unit: time."""
    until = cooldown_end(context.account.conduct, context.account.limits, context.now)
    if until is None:
        return None
    count = context.account.limits.cooldown_failures
    text = f"after {count} failures in a row nothing is taken until {until.isoformat(timespec='seconds')}"
    return Refusal(R.COOLDOWN_ACTIVE, f"{text}. {UNTOUCHED} See what the failures were, wait, and use a new key.")


def address_fits_the_network(context: WithdrawalContext) -> Refusal | None:
    """The network is named and known, and the address has its form and checksum. No unit. Source: pipeline/gate/addresses."""
    request = context.request
    if request.network is None:
        return Refusal(
            R.ADDRESS_NOT_ALLOWED, f"name the `network`: the same address can belong to several. {UNTOUCHED} Send it under a new key."
        )
    problem = address_problem(request.network, request.address, request.address_tag)
    if problem is None:
        return None
    return Refusal(R.ADDRESS_NOT_ALLOWED, f"the address is none of {request.network}: {problem}. {UNTOUCHED} Compare it; use a new key.")


def address_is_on_the_list(context: WithdrawalContext) -> Refusal | None:
    """Exactly this network, address and tag are on the user's list. No unit. Source: `orchestrator addresses add`."""
    if context.allowed is not None:
        return None
    return Refusal(
        R.ADDRESS_NOT_ALLOWED,
        f"this address (with this tag, on this network) is not on the user's list. {UNTOUCHED} An operator can add it; then it waits.",
    )


def address_has_waited(context: WithdrawalContext) -> Refusal | None:
    """The address is on the list for long enough. Unit: time since it was added. Source: the contract (24 hours)."""
    allowed = context.allowed
    if allowed is None:
        return address_is_on_the_list(context)
    usable_at = allowed.added_at + context.rules.address_wait
    if context.now >= usable_at:
        return None
    text = f"the address was added lately and can be used from {usable_at.isoformat(timespec='seconds')} on"
    return Refusal(R.ADDRESS_NOT_ALLOWED, f"{text}. {UNTOUCHED} Send it then, under a new key.")


def network_is_known(context: WithdrawalContext) -> Refusal | None:
    """The exchange has told within the last hour that it pays the asset out over the network, and what it keeps for it. Unit: time since it
    was asked. Source: the venue's own list (Binance: "All Coins' Information"). Without its fee nothing can be reserved."""
    network = context.network
    if network is None:
        return Refusal(
            R.EXCHANGE_UNAVAILABLE,
            f"the exchange has not told lately that it pays {context.request.asset} out over {context.request.network}, nor its fee. "
            f"{UNTOUCHED} See which networks it has for the asset, and try again under a new key.",
        )
    if network.enabled:
        return None
    return Refusal(
        R.EXCHANGE_UNAVAILABLE,
        f"the exchange does not pay {network.asset} out over {network.network} now. {UNTOUCHED} Try later or another network.",
    )


def withdrawal_amount_fits(context: WithdrawalContext) -> Refusal | None:
    """The amount is above zero, and with the fee within the venue's least and greatest and on its step. Unit: the asset. Source: the
    venue's own list."""
    network, amount = context.network, context.request.amount
    if network is None:
        return network_is_known(context)
    if amount <= 0:
        return Refusal(R.AMOUNT_BELOW_MINIMUM, f"amount must be above zero. {UNTOUCHED} Send another under a new key.")
    total = amount + network.fee
    if total < network.amount_min:
        code, text = R.AMOUNT_BELOW_MINIMUM, f"the exchange pays out no less than {format_decimal(network.amount_min)} with its fee"
    elif network.amount_max is not None and total > network.amount_max:
        code, text = R.AMOUNT_ABOVE_MAXIMUM, f"the exchange pays out no more than {format_decimal(network.amount_max)} with its fee"
    elif not is_multiple(total, network.amount_step):
        code, text = R.PRECISION_INVALID, f"amount and fee must be a multiple of {format_decimal(network.amount_step)}"
    else:
        return None
    fee = f"the fee is {format_decimal(network.fee)} {network.asset}"
    return Refusal(code, f"{text}; {fee}. {UNTOUCHED} Send another amount under a new key.")


def daily_withdrawals_are_within_limit(context: WithdrawalContext) -> Refusal | None:
    """With this one the withdrawals of the last 24 hours, fees included and without those that were not paid, are worth no more than
    `daily_withdrawal_usd_max`. Unit: USD at a fresh price. Source: the contract, Limits."""
    value = context.usd_value
    if value is None:
        return Refusal(
            R.PRICE_UNAVAILABLE,
            f"no fresh price turns {context.request.asset} into US dollars, so it cannot be valued. {UNTOUCHED} Try again in a moment "
            "under a new key.",
        )
    return withdrawal_is_within_limit(context.account.limits, context.account.usage, value)


WITHDRAWAL_CHECKS: Final[tuple[GateCheck[WithdrawalContext], ...]] = (
    GateCheck(
        Step.SAFETY,
        withdrawal_is_fresh,
        (R.REQUEST_STALE, R.REQUEST_EXPIRED),
        "The record is no older than keys are kept (24 h), and its deadline (`expires_at`, else 30 s) has not passed.",
    ),
    GateCheck(Step.SAFETY, withdrawal_mode_is_live, (R.REQUEST_UNSUPPORTED,), "It is real money that is to be paid out."),
    GateCheck(
        Step.SAFETY, withdrawal_exchange_is_offered, (R.EXCHANGE_UNKNOWN,), "This installation is connected to the exchange."
    ),
    GateCheck(Step.SAFETY, withdrawals_are_not_halted, (R.TRADING_HALTED,), "No halt, `reduce` included, covers it."),
    GateCheck(
        Step.SAFETY,
        user_may_withdraw,
        (R.USER_UNKNOWN, R.USER_UNVERIFIED, R.USER_INACTIVE),
        "The user exists, is verified, and neither frozen nor closed.",
    ),
    GateCheck(
        Step.API_KEY,
        withdrawal_key_is_usable,
        (R.API_KEY_UNKNOWN, R.API_KEY_PERMISSION, R.API_KEY_REVOKED, R.API_KEY_EXPIRED),
        "The user has stored this key, for this exchange, and it is active.",
    ),
    GateCheck(Step.API_KEY, withdrawal_key_may_withdraw, (R.API_KEY_PERMISSION,), "The key has the permission `withdraw`."),
    GateCheck(
        Step.RISK,
        withdrawal_rate_is_kept,
        (R.MESSAGE_RATE_EXCEEDED,),
        "The user's requests keep the rate, with bursts up to a number.",
        ("messages_per_second_max", "messages_burst_max"),
    ),
    GateCheck(
        Step.RISK,
        withdrawal_cooldown_is_over,
        (R.COOLDOWN_ACTIVE,),
        "No cooldown runs; it follows this many failures in a row.",
        ("cooldown_failures", "cooldown"),
    ),
    GateCheck(
        Step.RISK, address_fits_the_network, (R.ADDRESS_NOT_ALLOWED,), "The address has the form of its network, checksum included."
    ),
    GateCheck(
        Step.RISK, address_is_on_the_list, (R.ADDRESS_NOT_ALLOWED,), "Exactly this network, address and tag are on the user's list."
    ),
    GateCheck(
        Step.RISK, address_has_waited, (R.ADDRESS_NOT_ALLOWED,), "The address is on the list for `ORCHESTRATOR_ADDRESS_WAIT_HOURS`."
    ),
    GateCheck(
        Step.RISK,
        network_is_known,
        (R.EXCHANGE_UNAVAILABLE,),
        "The exchange has told lately that it pays the asset out over the network, and its fee.",
    ),
    GateCheck(
        Step.RISK,
        withdrawal_amount_fits,
        (R.AMOUNT_BELOW_MINIMUM, R.AMOUNT_ABOVE_MAXIMUM, R.PRECISION_INVALID),
        "The amount is above zero, and with the fee one that the exchange pays out.",
    ),
    GateCheck(
        Step.RISK,
        daily_withdrawals_are_within_limit,
        (R.DAILY_WITHDRAWAL_EXCEEDED, R.PRICE_UNAVAILABLE),
        "With this one the withdrawals of the last 24 hours are worth no more than this, at a fresh price.",
        ("daily_withdrawal_usd_max",),
    ),
)

# What an acceptance lists as passed; the hold is its own check: what is not there cannot be held.
WITHDRAWAL_PASSED: Final = [*(check.name for check in WITHDRAWAL_CHECKS), "balance_covers_the_hold"]


def withdrawal_refusal(context: WithdrawalContext, step: Step) -> Refusal | None:
    """The first check of a step that does not hold, or None when all hold."""
    return first_refusal(WITHDRAWAL_CHECKS, context, step)
