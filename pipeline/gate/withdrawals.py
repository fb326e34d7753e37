"""The gate of a withdrawal: may this user send this much of an asset to this address now?

The steps are those of a trade (pipeline/gate/ladder), with checks of their own. Invariants:
1. Checks read a `WithdrawalContext` and change nothing; the first refusal is given. Nothing was held or sent then.
2. What is not known (no price, no fee, no such network) refuses, it never passes.
3. A halt of either level stops withdrawals: what leaves cannot be called back.

Start with `WITHDRAWAL_GATE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import ClassVar, Final

from pipeline.gate.addresses import address_problem
from pipeline.gate.api_key import api_key_is_known, api_key_is_usable, api_key_may_withdraw
from pipeline.gate.check import Gate, Step, check
from pipeline.gate.context import UNTOUCHED, ExchangeContext
from pipeline.gate.risk import cooldown_is_over, message_rate_is_kept, withdrawal_is_within_limit
from pipeline.gate.safety import exchange_is_offered, request_is_fresh, user_is_active
from pipeline.model.dollars import usd_rate_of
from pipeline.model.halts import HaltBook
from pipeline.model.money import is_multiple
from pipeline.model.refusal import Refusal
from pipeline.model.venue import MarketData
from pipeline.model.withdrawal import AllowedAddress, Network
from schemas.decimals import format_decimal
from schemas.orders import Mode
from schemas.reasons import ReasonCode as R
from schemas.requests import WithdrawalRequest


@dataclass(frozen=True, eq=False, kw_only=True)
class WithdrawalContext(ExchangeContext):
    """All that the checks of one withdrawal may look at.

    `networks` has the exchange's networks by asset and name, `addresses` the user's list.
    """

    request: WithdrawalRequest
    market_data: MarketData | None
    networks: Mapping[tuple[str, str], Network]
    addresses: tuple[AllowedAddress, ...]
    halts: HaltBook

    untouched: ClassVar = UNTOUCHED

    @property
    def expires_at(self) -> datetime:
        """The moment after which it must not be sent any more: the producer's own, else the default after the broker's time, which is
        longer where an operator has to approve it."""
        allowed = self.rules.withdrawal_approval_time if self.needs_approval else self.rules.submission_deadline
        return self.request.expires_at or self.appended_at + allowed

    @property
    def is_late(self) -> bool:
        return self.now > (self.request.expires_at or self.appended_at + self.rules.submission_deadline)

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


@check(Step.SAFETY, R.REQUEST_UNSUPPORTED)
def withdrawal_mode_is_live(context: WithdrawalContext) -> Refusal | None:
    """It is real money that is to be paid out. No unit."""
    if context.request.mode is Mode.LIVE:
        return None
    return Refusal(R.REQUEST_UNSUPPORTED, f"paper money is simulated and cannot be withdrawn. {UNTOUCHED} Only mode live pays out.")


@check(Step.SAFETY, R.TRADING_HALTED)
def withdrawals_are_not_halted(context: WithdrawalContext) -> Refusal | None:
    """No halt, `reduce` included, covers it. No unit."""
    if context.halts.level_for(context.request.exchange, "", context.request.user_id) is None:
        return None
    return Refusal(
        R.TRADING_HALTED,
        f"nothing is paid out now: a halt covers this user, exchange or everybody. {UNTOUCHED} Try again under a new key when an operator "
        "has lifted it.",
    )


@check(Step.RISK, R.ADDRESS_NOT_ALLOWED)
def address_fits_the_network(context: WithdrawalContext) -> Refusal | None:
    """The address has the form of its network, checksum included. No unit. Source: pipeline/gate/addresses."""
    request = context.request
    if request.network is None:
        return Refusal(
            R.ADDRESS_NOT_ALLOWED, f"name the `network`: the same address can belong to several. {UNTOUCHED} Send it under a new key."
        )
    problem = address_problem(request.network, request.address, request.address_tag)
    if problem is None:
        return None
    return Refusal(R.ADDRESS_NOT_ALLOWED, f"the address is none of {request.network}: {problem}. {UNTOUCHED} Compare it; use a new key.")


@check(Step.RISK, R.ADDRESS_NOT_ALLOWED)
def address_is_on_the_list(context: WithdrawalContext) -> Refusal | None:
    """Exactly this network, address and tag are on the user's list. No unit. Source: `orchestrator addresses add`."""
    if context.allowed is not None:
        return None
    return Refusal(
        R.ADDRESS_NOT_ALLOWED,
        f"this address (with this tag, on this network) is not on the user's list. {UNTOUCHED} An operator can add it; then it waits.",
    )


@check(Step.RISK, R.ADDRESS_NOT_ALLOWED)
def address_has_waited(context: WithdrawalContext) -> Refusal | None:
    """The address is on the list for `ORCHESTRATOR_ADDRESS_WAIT_HOURS`. Unit: time since it was added. Source: the contract (24 hours)."""
    allowed = context.allowed
    if allowed is None:
        return address_is_on_the_list(context)
    usable_at = allowed.added_at + context.rules.address_wait
    if context.now >= usable_at:
        return None
    text = f"the address was added lately and can be used from {usable_at.isoformat(timespec='seconds')} on"
    return Refusal(R.ADDRESS_NOT_ALLOWED, f"{text}. {UNTOUCHED} Send it then, under a new key.")


@check(Step.RISK, R.EXCHANGE_UNAVAILABLE)
def network_is_known(context: WithdrawalContext) -> Refusal | None:
    """The exchange has told lately that it pays the asset out over the network, and its fee. Unit: time since it was asked. Source: the
    venue's own list (Binance: "All Coins' Information"). Without its fee nothing can be reserved."""
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


@check(Step.RISK, R.AMOUNT_BELOW_MINIMUM, R.AMOUNT_ABOVE_MAXIMUM, R.PRECISION_INVALID)
def withdrawal_amount_fits(context: WithdrawalContext) -> Refusal | None:
    """The amount is above zero, and with the fee one that the exchange pays out. Unit: the asset. Source: the venue's own list."""
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


@check(Step.RISK, R.DAILY_WITHDRAWAL_EXCEEDED, R.PRICE_UNAVAILABLE, limits=("daily_withdrawal_usd_max",))
def daily_withdrawals_are_within_limit(context: WithdrawalContext) -> Refusal | None:
    """With this one the withdrawals of the last 24 hours are worth no more than this, at a fresh price. Unit: USD at a fresh price. Source:
    the contract, Limits."""
    value = context.usd_value
    if value is None:
        return Refusal(
            R.PRICE_UNAVAILABLE,
            f"no fresh price turns {context.request.asset} into US dollars, so it cannot be valued. {UNTOUCHED} Try again in a moment "
            "under a new key.",
        )
    return withdrawal_is_within_limit(context.account.limits, context.account.usage, value)


WITHDRAWAL_GATE: Final[Gate[WithdrawalContext]] = Gate(
    request_is_fresh,
    withdrawal_mode_is_live,
    exchange_is_offered,
    withdrawals_are_not_halted,
    user_is_active,
    api_key_is_known,
    api_key_is_usable,
    api_key_may_withdraw,
    message_rate_is_kept,
    cooldown_is_over,
    address_fits_the_network,
    address_is_on_the_list,
    address_has_waited,
    network_is_known,
    withdrawal_amount_fits,
    daily_withdrawals_are_within_limit,
)
