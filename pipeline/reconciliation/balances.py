"""Balance reconciliation: what an exchange must show of an account, given the ledger, and what follows where it shows something else.

An exchange's answer and the ledger cannot be read at one moment. A look therefore reads the ledger, asks the exchange for its balances,
then about every order that rests there, and reads the ledger again. It counts (`judge`) only when nothing moved in between:

- The user's audit chain is where it was. Every transfer, and every intent to send something, moves it; so the ledger and what was under way
  were the same from the first reading to the last.
- No order is being sent or in doubt, and each order that rests has been filled exactly as far as the ledger has it. A resting order locks
  funds and does not change free + locked together; one that was filled after the balances were read is seen, as fills only grow.

Withdrawals need not be over: an exchange takes the amount out of the balance at some moment until they are, so the truth lies between both
(`AccountLedger.leaving`).

Invariants:
1. Nothing here moves money. A drift is an observation: found, kept while it is there, gone when a look that counts does not show it.
2. A report that is older than what is known of the account, or is that itself, changes nothing.
3. A drift's tolerance is zero: exchanges and ledger keep the same places. What is worth little stays under the threshold.
4. What cannot be valued counts as above the threshold (fail closed).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Final, NamedTuple

from pipeline.books.audit import Value
from pipeline.books.changes import Changes
from pipeline.model.dollars import usd_rate_of
from pipeline.model.drift import StoredDrift
from pipeline.model.money import round_up
from pipeline.model.order import Order
from pipeline.model.rules import Rules
from pipeline.model.venue import AccountBalances, Found, LookUpFailed, LookUpOutcome, MarketData
from schemas.audit import EventType
from schemas.balances import BalanceReport, ReportedDrift
from schemas.decimals import format_decimal

ZERO: Final = Decimal(0)
# Each costs a question per look.
RESTING_MAX: Final = 50


class ExchangeAccount(NamedTuple):
    """What is compared: a user's real money at an exchange. `api_key_ids` are the keys to ask with, the newest first."""

    user_id: str
    exchange: str
    api_key_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AccountLedger:
    """An account as the database has it at one moment.

    `seq` is the newest event of the user's audit chain. `owned` is what lies at the exchange by asset: what the user owns, less what the
    house advanced. `leaving` is what unfinished withdrawals take out, fees included, if the exchange took them. `arriving` is what the
    exchange may show before the ledger does. `resting` are the orders at the exchange, `unsettled` how many are being sent or in doubt.
    """

    seq: int
    owned: Mapping[str, Decimal]
    leaving: Mapping[str, Decimal] = field(default_factory=dict)
    arriving: Mapping[str, Decimal] = field(default_factory=dict)
    resting: tuple[Order, ...] = ()
    unsettled: int = 0
    drifts: Mapping[str, StoredDrift] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Drift:
    """`exchange_amount` is what the exchange shows, `ledger_amount` the nearest amount that the ledger can explain; units of the asset."""

    asset: str
    ledger_amount: Decimal
    exchange_amount: Decimal

    @property
    def difference(self) -> Decimal:
        return self.exchange_amount - self.ledger_amount


@dataclass(frozen=True, slots=True)
class NotJudged:
    """A look that says nothing, and why. `unanswered`: the exchange did not answer, or there is no key to ask it with."""

    why: str
    unanswered: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """A look that counts: all drifts of the account, and those that the database knows."""

    drifts: tuple[Drift, ...]
    stored: Mapping[str, StoredDrift]


Look = Judged | NotJudged


def whole_of(answers: Iterable[AccountBalances]) -> dict[str, Decimal]:
    """What the answers of several keys show together. Keys of one exchange account show the same money, which counts once."""
    totals: dict[str, Decimal] = {}
    seen: set[str | None] = set()
    for answer in answers:
        if answer.account_id in seen:
            continue
        seen.add(answer.account_id)
        for asset, amount in answer.totals.items():
            totals[asset] = totals.get(asset, ZERO) + amount
    return totals


def compare(ledger: AccountLedger, shown: Mapping[str, Decimal]) -> tuple[Drift, ...]:
    """Every asset of which the exchange shows what the ledger cannot explain. An asset that one side does not know is zero there."""
    drifts: list[Drift] = []
    for asset in sorted(ledger.owned.keys() | shown.keys() | ledger.leaving.keys()):
        owned, amount = ledger.owned.get(asset, ZERO), shown.get(asset, ZERO)
        least, most = owned - ledger.leaving.get(asset, ZERO), owned + ledger.arriving.get(asset, ZERO)
        explained = min(max(amount, least), most)
        if amount != explained:
            drifts.append(Drift(asset, explained, amount))
    return tuple(drifts)


def cannot_be_judged(ledger: AccountLedger) -> NotJudged | None:
    """Why it is not worth asking the exchange now; None where it is."""
    if ledger.unsettled:
        return NotJudged(f"{ledger.unsettled} orders are being sent or in doubt")
    if len(ledger.resting) > RESTING_MAX:
        return NotJudged(f"more than {RESTING_MAX} orders rest at the exchange")
    return None


def judge(before: AccountLedger, shown: Mapping[str, Decimal], looked_up: Mapping[str, LookUpOutcome], after: AccountLedger) -> Look:
    """What a look is worth. `looked_up` are the resting orders, by order id, asked about after the balances."""
    early = cannot_be_judged(before)
    if early is not None:
        return early
    if before.seq != after.seq:
        return NotJudged("the account moved meanwhile")
    for order in before.resting:
        outcome = looked_up.get(order.order_id)
        if isinstance(outcome, LookUpFailed):
            return NotJudged(f"order {order.order_id} could not be looked up: {outcome.detail}", unanswered=True)
        if not isinstance(outcome, Found) or not _is_settled(order, outcome):
            return NotJudged(f"order {order.order_id} is further at the exchange than in the ledger")
    return Judged(compare(after, shown), after.drifts)


def _is_settled(order: Order, found: Found) -> bool:
    """Whether the ledger has all that the exchange has executed of an order."""
    told = found.order
    ours = {fee.asset: fee.amount for fee in order.fees}
    fees = {fee.asset: fee.amount for fee in told.fees}
    return (told.cum_quantity, told.cum_quote, fees) == (order.cum_quantity, order.cum_quote, ours)


def value_of(drift: Drift, market_data: MarketData | None, now: datetime, rules: Rules) -> Decimal | None:
    """What a drift is worth in US dollars, whichever its direction; None without fresh prices."""
    rate = usd_rate_of(drift.asset, market_data, now, rules.price_age_max, rules.usd_assets)
    return None if rate is None else round_up(abs(drift.difference) * rate)


def is_above_threshold(values: Collection[Decimal | None], rules: Rules) -> bool:
    """Whether the drifts of an account, each with its value, are more than it may have before it is halted."""
    known = [value for value in values if value is not None]
    return len(known) < len(values) or sum(known, ZERO) > rules.balance_drift_halt_usd


def reported(drift: Drift, usd: Decimal | None) -> ReportedDrift:
    """The drift as a report carries it."""
    return ReportedDrift(asset=drift.asset, ledger_amount=drift.ledger_amount, exchange_amount=drift.exchange_amount, usd=usd)


def halt_reason(report: BalanceReport, stored: Mapping[str, StoredDrift], rules: Rules) -> str | None:
    """Why an account is to be halted now; None where it is not: it has been above the threshold for the minimum age, and still is.

    `stored` is what the database knew before the report, so it takes two looks at least, unless the minimum age is zero.
    """
    if not is_above_threshold([drift.usd for drift in report.drifts], rules):
        return None
    above_since = _above_since(stored)
    if above_since is None or report.looked_up_at - above_since < rules.balance_drift_age:
        return None
    shown = ", ".join(_text(drift) for drift in report.drifts)
    return f"balances at {report.exchange} differ from the ledger since {above_since:%Y-%m-%dT%H:%M:%SZ}: {shown}"[:300]


def apply_balance_report(report: BalanceReport, changes: Changes, rules: Rules) -> None:
    """Keeps what a look has shown of an account: new drifts, those that are still there, and those that are gone."""
    account = report.user_id, report.exchange
    known = changes.drifts.setdefault(account, {})
    if any(drift.last_seen_at >= report.looked_up_at for drift in known.values()):
        return
    above_since = None
    if is_above_threshold([drift.usd for drift in report.drifts], rules):
        above_since = _above_since(known) or report.looked_up_at
    shown = {drift.asset: drift for drift in report.drifts}
    for asset in known.keys() - shown.keys():
        gone = known.pop(asset)
        _note_moved((*account, asset), gone, None, changes)
        if gone.found_at is not None:
            what = f"the exchange shows what the ledger says again; the difference was {_signed(gone.difference)}"
            _audit(report, asset, EventType.BALANCE_DRIFT_GONE, f"{what}, since {gone.first_seen_at:%Y-%m-%dT%H:%M:%SZ}", changes)
    for asset, drift in shown.items():
        before = known.get(asset)
        first_seen_at = before.first_seen_at if before is not None else report.looked_up_at
        found_at = before.found_at if before is not None else None
        if found_at is None and report.looked_up_at - first_seen_at >= rules.balance_drift_age:
            found_at = changes.now
            _audit(report, asset, EventType.BALANCE_DRIFT_FOUND, f"{_text(drift)}, since {first_seen_at:%Y-%m-%dT%H:%M:%SZ}", changes)
        kept = known[asset] = StoredDrift(
            user_id=report.user_id,
            exchange=report.exchange,
            asset=asset,
            ledger_amount=drift.ledger_amount,
            exchange_amount=drift.exchange_amount,
            usd=drift.usd,
            first_seen_at=first_seen_at,
            last_seen_at=report.looked_up_at,
            found_at=found_at,
            above_since=above_since,
        )
        _note_moved((*account, asset), before, kept, changes)


def _note_moved(key: tuple[str, str, str], before: StoredDrift | None, after: StoredDrift | None, changes: Changes) -> None:
    """Notes that a row is to be written or removed; of one that came and went within this batch there is nothing to remove."""
    if before is None and key not in changes.drifts_moved:
        changes.drifts_made.add(key)
    changes.drifts_moved.add(key)
    if after is None and key in changes.drifts_made:
        changes.drifts_made.discard(key)
        changes.drifts_moved.discard(key)


def _above_since(drifts: Mapping[str, StoredDrift]) -> datetime | None:
    """Since when an account has been above the threshold without a break; the same in each of its rows."""
    return min((drift.above_since for drift in drifts.values() if drift.above_since is not None), default=None)


def _audit(report: BalanceReport, asset: str, event_type: EventType, what: str, changes: Changes) -> None:
    fields: dict[str, Value] = {"user_id": report.user_id, "exchange": report.exchange, "asset": asset, "reason": what, "real_money": True}
    changes.audit(report.user_id, None, event_type, fields, None)


def _text(drift: ReportedDrift) -> str:
    worth = "of unknown worth" if drift.usd is None else f"worth {format_decimal(drift.usd)} USD"
    difference = drift.exchange_amount - drift.ledger_amount
    theirs, ours = format_decimal(drift.exchange_amount), format_decimal(drift.ledger_amount)
    return f"{drift.asset} {theirs} at the exchange, {ours} in the ledger ({_signed(difference)}, {worth})"


def _signed(amount: Decimal) -> str:
    return f"{'+' if amount > 0 else ''}{format_decimal(amount)}"
