"""Acceptance: the way of one trade request through the gate, to an order that is queued for its exchange.

The ten steps of a real-money trade (checks/outline) as far as they happen before the exchange is called:
1. safety validation → refused under its key
2. the database transaction is open around all of this (infra/postgres/step)
3. second factor → refused, the key stays free
4. API key → 5. risk, with the scored rules → 6. exchange connection → refused under its key
then the funds are held, the order is recorded, and everything is audited; execution takes it from there.

Invariant: what is accepted has passed every check of `pipeline/gate/ladder` against all that was accepted before it, in this batch too.
"""

from collections.abc import Callable
from decimal import Decimal

from pipeline.books.audit import Value
from pipeline.books.changes import Changes, Claim
from pipeline.books.ledger import AccountKey, book_of
from pipeline.books.order_words import ORDER_LIFE, REAL_MONEY_WARNING, result_of_order
from pipeline.gate.check import Step
from pipeline.gate.context import AccountState, TradeContext
from pipeline.gate.ladder import PASSED_IN, refusal_of
from pipeline.gate.surveillance import Assessment, assess
from pipeline.gate.valuation import hold_of
from pipeline.model.identifiers import client_order_id_of
from pipeline.model.money import round_up
from pipeline.model.order import Order
from pipeline.model.refusal import Refusal
from pipeline.model.second_factor import code_of
from pipeline.requests.confirmation import Asked, Confirmation, way_of
from pipeline.requests.intake_state import IntakeState
from pipeline.requests.passage import confirmation_fields, through_the_gate
from pipeline.requests.record import Arrival
from pipeline.requests.rejection import reject
from schemas.audit import EventType
from schemas.decimals import format_decimal
from schemas.orders import Mode, OrderStatus
from schemas.reasons import ReasonCode
from schemas.requests import TradeRequest
from schemas.routing import Action


def take_in_trade(arrival: Arrival, request: TradeRequest, claim: Callable[[], Claim], state: IntakeState, changes: Changes) -> None:
    """Accepts or refuses one trade request. `claim` claims its key, once it is clear that it may."""
    account = state.accounts[request.user_id]
    context = TradeContext(
        request=request,
        appended_at=arrival.appended_at,
        now=changes.now,
        rules=state.rules,
        account=account.in_mode(request.mode),
        api_key=state.api_keys.get((request.user_id, request.api_key_id)),
        market_data=state.market_data.get(request.exchange),
        halts=state.halts,
        balances=changes.ledger.balances,
        idempotency_key=request.idempotency_key,
    )
    through_the_gate(
        arrival,
        account,
        request.mode,
        safety=refusal_of(context, Step.SAFETY),
        claim=claim,
        behind=lambda claimed, confirmed: _behind_the_second_factor(arrival, context, account, claimed, confirmed, changes),
        changes=changes,
        way=lambda: _way_of(arrival, context, state, changes),
    )


def _way_of(arrival: Arrival, context: TradeContext, state: IntakeState, changes: Changes) -> Confirmation | Refusal:
    """How a real order is confirmed."""
    if context.usd_value is None:
        return Refusal(ReasonCode.PRICE_UNAVAILABLE, "no fresh price values the order; nothing was executed, and the key is still free")
    asked = Asked(
        # Two that differ are for the trial to refuse.
        has_code=bool(code_of(arrival.headers)),
        is_enrolled=context.account.factor is not None,
        symbol=context.request.symbol,
        usd_value=round_up(context.usd_value),
        at=arrival.appended_at,
        generation=context.account.session_generation,
        issuer_keys=state.issuer_keys,
    )
    token = arrival.token
    session = changes.sessions.get(token.session_id or "") if token is not None else None
    return way_of(asked, token, session, state.rules.confirmation)


def _behind_the_second_factor(
    arrival: Arrival, context: TradeContext, account: AccountState, claimed: Claim, confirmation: Confirmation, changes: Changes
) -> ReasonCode | None:
    """Steps 4 to 6 and the hold, in their order; returns why the request was refused, None when it was accepted. `account` is the user as
    it is, of which the context shows what counts in the request's mode."""
    refusal = refusal_of(context, Step.API_KEY) or refusal_of(context, Step.RISK)
    if refusal is not None:
        reject(arrival, claimed, refusal, changes)
        return refusal.code
    assessment = assess(context) if context.request.mode is Mode.LIVE else Assessment(0, ())
    if assessment.score >= account.limits.suspicion_block:
        _block(arrival, claimed, account, assessment, changes)
        return ReasonCode.SUSPICIOUS_ACTIVITY
    refusal = refusal_of(context, Step.CONNECTION) or _hold_and_accept(arrival, claimed, context, assessment, confirmation, changes)
    if refusal is not None:
        reject(arrival, claimed, refusal, changes)
        return refusal.code
    return None


def _block(arrival: Arrival, claim: Claim, account: AccountState, assessment: Assessment, changes: Changes) -> None:
    """Refuses a request that fits a pattern of misuse, and freezes its user until an operator has looked."""
    text = (
        "the request fits a pattern of misuse, so it was refused and its user is frozen; nothing was sent or held. Open orders stay as "
        "they are and can be canceled. An operator looks at it."
    )
    reject(arrival, claim, Refusal(ReasonCode.SUSPICIOUS_ACTIVITY, text), changes, _evidence(assessment))
    account.status = "frozen"
    changes.frozen[account.user_id] = "suspicious activity"
    fields: dict[str, Value] = {
        "user_id": account.user_id,
        "request_id": claim.request_id,
        "idempotency_key": claim.idempotency_key,
        "reason_code": ReasonCode.SUSPICIOUS_ACTIVITY.value,
        "reason": f"score {assessment.score}, {account.limits.suspicion_block} freezes",
        "evidence": _evidence(assessment),
    }
    changes.audit(account.user_id, None, EventType.USER_FROZEN, fields, arrival.traceparent)


def _evidence(assessment: Assessment) -> list[str]:
    return [f"{found.rule} ({found.score}): {found.text}" for found in assessment.evidence]


def _hold_and_accept(
    arrival: Arrival, claim: Claim, context: TradeContext, assessment: Assessment, confirmation: Confirmation, changes: Changes
) -> Refusal | None:
    """Holds the funds and accepts the order; a refusal, and nothing changed, where the funds do not cover it."""
    hold, usd_value, usd_rate = hold_of(context), context.usd_value, context.usd_rate
    if hold is None or usd_value is None or usd_rate is None:
        return Refusal(ReasonCode.PRICE_UNAVAILABLE, "no fresh price says what to reserve; nothing was sent")
    order = _order_of(arrival, claim, context, hold, round_up(usd_value), usd_rate)
    account = AccountKey(order.user_id, order.exchange, book_of(order.mode), order.hold_asset)
    if not changes.ledger.hold(f"{order.order_id}:hold", order.order_id, account, order.hold_amount):
        available = changes.ledger.balance(account).available
        wanted = f"{format_decimal(order.hold_amount)} {order.hold_asset}"
        reason = f"{wanted} would be reserved, {format_decimal(available)} are available; nothing was sent"
        return Refusal(ReasonCode.BALANCE_INSUFFICIENT, reason)
    if order.mode is Mode.LIVE and order.symbol not in context.account.known_symbols:
        changes.symbols_new.add((order.user_id, order.symbol))
    context.account.accepted(order.order_id, context.request, order.usd_value, order.requested_at, changes.now)
    flagged = assessment.score >= context.account.limits.suspicion_flag
    if confirmation.session is not None:
        session = confirmation.session.using(order.usd_value)
        changes.sessions[session.session_id] = session
        changes.sessions_moved.add(session.session_id)
    _accept(order, _evidence(assessment) if flagged else [], confirmation, changes)
    return None


def _order_of(
    arrival: Arrival, claim: Claim, context: TradeContext, hold: tuple[str, Decimal], usd_value: Decimal, usd_rate: Decimal
) -> Order:
    order_id = claim.order_id or ""
    request = context.request
    return Order(
        order_id=order_id,
        client_order_id=client_order_id_of(order_id),
        exchange_order_id=None,
        user_id=request.user_id,
        idempotency_key=request.idempotency_key,
        request_id=claim.request_id,
        source=arrival.source,
        mode=request.mode,
        exchange=request.exchange,
        api_key_id=request.api_key_id,
        symbol=request.symbol,
        side=request.side,
        order_type=request.order_type,
        time_in_force=request.time_in_force,
        quantity=request.quantity,
        quote_quantity=request.quote_quantity,
        price=request.price,
        status=OrderStatus.ACCEPTED,
        reason_code=None,
        reason=None,
        cum_quantity=Decimal(0),
        cum_quote=Decimal(0),
        fee=Decimal(0),
        fee_asset=None,
        hold_asset=hold[0],
        hold_amount=hold[1],
        attempt=0,
        fencing_epoch=0,
        work_partition=-1,
        submitting_at=None,
        expires_at=context.expires_at,
        requested_at=arrival.appended_at,
        decided_at=context.now,
        updated_at=context.now,
        executed_at=None,
        traceparent=arrival.traceparent,
        usd_value=usd_value,
        usd_rate=usd_rate,
        market_id=context.market.market_id if context.market is not None else None,
    )


def _accept(order: Order, evidence: list[str], confirmation: Confirmation, changes: Changes) -> None:
    extra: dict[str, Value] = {
        **confirmation_fields(confirmation),
        "checks": PASSED_IN[order.mode],
        "evidence": evidence,
        "warning": REAL_MONEY_WARNING if order.mode is Mode.LIVE else None,
    }
    ORDER_LIFE.advance(None, order, EventType.ORDER_ACCEPTED, changes, extra)
    changes.tell(result_of_order(order), order.traceparent)
    changes.route(Action.SUBMIT, order.order_id, 1, order, order.traceparent)
